"""The network that is finetuned: parity with timm and torch, and what fits what."""

import copy
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from headcam.errors import InputError
from headcam.evaluation.finetuning import head as head_module
from headcam.evaluation.finetuning.head import Classifier, SyncedBatchNorm, check_encoder, sync_batch_norms
from headcam.evaluation.finetuning.optimizer import build_optimizer, set_rate
from headcam.evaluation.protocols import Finetune
from headcam.ssl.resnet import ResNet
from headcam.ssl.vit import VisionTransformer


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(3)


def vit(**more):
    torch.manual_seed(0)
    return VisionTransformer(**{"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2} | more)


def classifier(encoder, pool="avg", drop_path=0.0, num_classes=5):
    return Classifier(encoder, num_classes, pool, drop_path, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_a_step_is_that_of_timm_and_torch(rng, pool):
    """timm's ViT, nn.BatchNorm1d, nn.Linear and AdamW, put together by hand, make the same two steps."""
    ours = classifier(vit(positions="learned"), pool)
    theirs = timm.models.VisionTransformer(
        16, 8, embed_dim=32, depth=2, num_heads=2, num_classes=0, global_pool="", drop_path_rate=0.0
    )
    theirs.load_state_dict(ours.encoder.state_dict())
    norm, linear = nn.BatchNorm1d(32, affine=False, eps=1e-6), nn.Linear(32, 5)
    linear.load_state_dict(ours.linear.state_dict())
    plain = [p for p in [*theirs.parameters(), *linear.parameters()]]
    no_decay = {id(p) for n, p in theirs.named_parameters() if p.ndim == 1 or "token" in n or "pos" in n}
    no_decay.add(id(linear.bias))
    groups = [
        {"params": [p for p in plain if id(p) not in no_decay], "weight_decay": 0.05},
        {"params": [p for p in plain if id(p) in no_decay], "weight_decay": 0.0},
    ]
    their_optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), fused=False, foreach=False)
    protocol = Finetune()
    optimizer = build_optimizer(ours, protocol)
    for step in range(2):
        x, labels = torch.randn(6, 3, 16, 16, generator=rng), torch.tensor([0, 1, 2, 3, 4, 0])
        tokens = theirs(x)
        logits = linear(norm(tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1)))
        their_optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        their_optimizer.step()
        found = ours(x)
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)
        set_rate(optimizer, protocol, 1e-3, step, 10)
        optimizer.zero_grad()
        F.cross_entropy(found, labels).backward()
        optimizer.step()
    for name, parameter in theirs.named_parameters():
        if name == "norm.bias":
            continue  # batch normalisation takes shifts off: its gradient is rounding alone
        # AdamW divides gradients by their size: rounding of a gradient near 0 moves its weight by up to the rate.
        torch.testing.assert_close(ours.encoder.get_parameter(name), parameter, rtol=0, atol=2e-4, msg=name)
    torch.testing.assert_close(ours.norm.running_var, norm.running_var, rtol=1e-4, atol=1e-5)
    x = torch.randn(4, 3, 16, 16, generator=rng)
    ours.eval(), norm.eval()
    tokens = theirs(x)
    expected = linear(norm(tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1)))
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-2)


def test_the_head_starts_small_and_by_its_seed():
    one, two = classifier(vit()), classifier(vit())
    assert torch.equal(one.linear.weight, two.linear.weight) and not one.linear.bias.any()
    other = Classifier(vit(), 5, "avg", 0.0, torch.Generator().manual_seed(2))
    assert not torch.equal(one.linear.weight, other.linear.weight)
    assert 0.007 < one.linear.weight.std() < 0.013
    assert not list(one.norm.parameters()) and one.norm.eps == 1e-6


def test_frames_through_an_image_encoder_have_their_logits_averaged(rng):
    model = classifier(vit()).eval()
    clips = torch.randn(2, 3, 4, 16, 16, generator=rng)
    by_frame = torch.stack([model(clips[:, :, t]) for t in range(4)])
    torch.testing.assert_close(model(clips), by_frame.mean(dim=0))


def test_a_still_through_a_video_encoder_is_a_clip_of_equal_frames(rng):
    model = classifier(vit(num_frames=4, tubelet_size=2, positions="separable")).eval()
    still = torch.randn(2, 3, 16, 16, generator=rng)
    torch.testing.assert_close(model(still), model(still.unsqueeze(2).expand(-1, -1, 4, -1, -1)), rtol=0, atol=1e-5)


def test_drop_path_drops_by_the_noise_that_is_passed(rng):
    model = classifier(vit(), drop_path=0.5)
    assert model.drop_noise_shape == (2, 2) and classifier(vit()).drop_noise_shape is None
    x = torch.randn(3, 3, 16, 16, generator=rng)
    kept, dropped = torch.full((3, 2, 2), 0.9), torch.full((3, 2, 2), 0.1)
    assert not torch.allclose(model(x, kept), model(x, dropped))
    assert torch.equal(model(x, dropped), model(x, dropped))


def test_resnets_are_pooled_by_mean_and_have_no_class_token(rng):
    encoder = ResNet("resnet50", 32)
    model = classifier(encoder).eval()
    x = torch.randn(2, 3, 32, 32, generator=rng)
    expected = model.linear(model.norm(encoder.forward_features(x).mean(dim=1)))
    torch.testing.assert_close(model(x), expected)
    check_encoder(encoder, "avg", 0.0)
    with pytest.raises(InputError, match="pool cls does not fit a ResNet"):
        check_encoder(encoder, "cls", 0.0)
    with pytest.raises(InputError, match=r"drop_path 0.1 does not fit a ResNet"):
        check_encoder(encoder, "avg", 0.1)
    with pytest.raises(InputError, match="a Linear cannot be finetuned here"):
        check_encoder(nn.Linear(2, 2), "avg", 0.0)


@pytest.mark.parametrize("shape", [(12, 6), (12, 6, 3, 3)])
def test_synced_batch_norm_over_parts_is_batch_norm_over_the_batch(rng, monkeypatch, shape):
    """Two processes in one: the parts are worked on in turn, and each is told the sum of both.

    That needs three passes: the first learns both parts' sums, the second both parts' squares, the third is it.
    """
    x, weight = torch.randn(shape, generator=rng) * 3 + 100, torch.randn(shape, generator=rng)
    plain = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(6)
    nn.init.normal_(plain.weight, generator=rng)
    both = [copy.deepcopy(nn.Sequential(plain)) for _ in range(2)]
    for model in both:
        sync_batch_norms(model)
        assert isinstance(model[0], SyncedBatchNorm)
    whole = x.clone().requires_grad_()
    expected = plain(whole)
    (expected * weight).sum().backward()

    messages: list[list[torch.Tensor]] = [[], []]
    sent: list[list[torch.Tensor]] = [[], []]

    def all_reduce(rank, tensor):
        place = len(sent[rank])
        sent[rank].append(tensor.clone())
        other = messages[1 - rank]
        tensor += other[place] if place < len(other) else tensor

    monkeypatch.setattr(head_module, "many", lambda: True)
    for _ in range(6):  # messages: count, mean, variance forward, then two backward, each of which needs those before
        for rank, model in enumerate(both):
            monkeypatch.setattr(head_module, "dist", SimpleNamespace(all_reduce=lambda t, r=rank: all_reduce(r, t)))
            sent[rank].clear()
            model[0].load_state_dict({**plain.state_dict(), "running_mean": torch.zeros(6)})
            model[0].running_var.fill_(1.0)
            part = x[rank::2].clone().requires_grad_()
            out = model(part)
            (out * weight[rank::2]).sum().backward()
            both[rank].found = (out.detach(), part.grad)
        messages = [list(sent[0]), list(sent[1])]
    for rank, model in enumerate(both):
        out, gradient = model.found
        torch.testing.assert_close(out, expected[rank::2].detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient, whole.grad[rank::2], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model[0].running_mean, plain.running_mean)
        torch.testing.assert_close(model[0].running_var, plain.running_var, rtol=1e-4, atol=1e-4)
