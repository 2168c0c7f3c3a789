"""The adversary: sizes, hinge losses, whose weights a loss reaches, and the adaptive weight by hand."""

import pytest
import torch
from torch import nn

from headcam.errors import InputError
from headcam.tokenizers.losses.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    frozen,
    generator_loss,
)
from headcam.tokenizers.losses.settings import LossSettings


@pytest.mark.parametrize("layers, parameters, side", [(3, 2.77, 30), (2, 0.66, 62)])
def test_published_sizes(layers, parameters, side):
    """2.77 M and 0.66 M parameters in the published VQGANs; 30 x 30 patches of 256 pixels (Isola et al. 2017)."""
    with torch.device("meta"):
        judge = PatchDiscriminator((256, 256), num_layers=layers)
        assert judge(torch.zeros(2, 3, 256, 256)).shape == (2, 1, side, side)
    assert round(sum(p.numel() for p in judge.parameters()) / 1e6, 2) == parameters


def test_clips_of_any_length_and_pictures_of_any_shape():
    for frames in (1, 2, 5, 16):
        judge = PatchDiscriminator((frames, 32, 24), ch=4, num_layers=2)
        scores = judge(torch.rand(2, 3, frames, 32, 24))
        assert scores.ndim == 5 and scores.shape[:2] == (2, 1)
    PatchDiscriminator((24, 24), ch=4)
    with pytest.raises(InputError, match="16 x 16 are too small for a discriminator of 3 layers"):
        PatchDiscriminator((16, 16), ch=4)


def test_a_patch_is_judged_whatever_else_is_in_the_batch():
    """No statistics over a batch: real and reconstructed pictures may go in together, on any number of processes."""
    judge = PatchDiscriminator((32, 32), ch=8).train()
    images = torch.rand(3, 3, 32, 32)
    alone = torch.cat([judge(image[None]) for image in images])
    assert torch.allclose(judge(images), alone, atol=1e-5) and not list(judge.buffers())


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5) / 2 + (0 + 1.5) / 2))
    assert generator_loss(fake).item() == pytest.approx(1.25)


def test_frozen_lets_gradients_through_and_keeps_them_from_its_weights():
    judge, images = PatchDiscriminator((32, 32), ch=4), torch.rand(2, 3, 32, 32, requires_grad=True)
    assert torch.equal(frozen(judge)(images), judge(images))
    generator_loss(frozen(judge)(images)).backward()
    assert images.grad.abs().sum() > 0 and all(p.grad is None for p in judge.parameters())


def test_adaptive_weight_by_hand():
    """A linear last layer: d/dW of mean((W x - y)^2) and of -mean(3 W x) are known in closed form."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 4, generator=generator), torch.randn(20, 2, generator=generator)
    last = nn.Linear(4, 2, bias=False)
    out = last(x)
    weight = adaptive_weight((out - y).square().mean(), -(3 * out).mean(), last.weight)
    error = (x @ last.weight.detach().T - y).double()
    nll = 2 * error.T @ x.double() / y.numel()
    adversarial = -3 * torch.ones(20, 2).double().T @ x.double() / y.numel()
    assert weight.item() == pytest.approx((nll.norm() / (adversarial.norm() + 1e-4)).item(), rel=1e-5)
    assert not weight.requires_grad and last.weight.grad is None
    (weight * (out - y).square().mean()).backward()  # the graph is still there
    assert last.weight.grad is not None

    out = last(x)
    assert adaptive_weight(1e9 * out.square().mean(), 1e-9 * out.mean(), last.weight).item() == pytest.approx(1e4)


def test_the_ramp():
    late = LossSettings(adversarial_weight=1.0, adversarial_start=10, adversarial_warmup=4)
    assert [late.ramp(step) for step in (0, 9, 10, 11, 13, 14, 1000)] == [0, 0, 0.25, 0.5, 1, 1, 1]
    assert [LossSettings(adversarial_start=3).ramp(step) for step in (2, 3, 4)] == [0, 1, 1]


@pytest.mark.parametrize("setting", [
    {"reconstruction_weight": -1.0}, {"perceptual_weight": float("nan")}, {"adversarial_weight": float("inf")},
    {"adversarial_start": -1}, {"adversarial_warmup": -1}, {"disc_layers": 0}, {"disc_ch": 0},
])  # fmt: skip
def test_impossible_settings_are_refused_by_name(setting):
    with pytest.raises(InputError, match=f"loss.{next(iter(setting))} is "):
        LossSettings(**setting)
