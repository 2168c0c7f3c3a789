"""What all objectives share: which parameters decay, the peak learning rate, and the stop on a loss that is none."""

from types import SimpleNamespace

import pytest
import torch

from headcam.errors import InputError
from headcam.ssl.mae import MAE
from headcam.ssl.objective import OptimizerSettings, parameter_groups


@pytest.fixture(scope="module")
def module() -> MAE:
    module = MAE(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4,
        decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4,
    )  # fmt: skip
    module.configure_model()
    return module


def test_matrices_decay_and_nothing_else_does(module):
    decay, no_decay = parameter_groups(module.network, 0.05)
    assert decay["weight_decay"] == 0.05 and no_decay["weight_decay"] == 0.0
    names = {id(p): name for name, p in module.network.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in (decay, no_decay))
    trained = {name for name, p in module.network.named_parameters() if p.requires_grad}
    assert decayed | free == trained and not decayed & free
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert {"encoder.cls_token", "mask_token", "encoder.norm.weight", "decoder_pred.bias"} <= free
    assert not {"encoder.pos_embed", "decoder_pos_embed"} & trained  # fixed sin-cos tables


def test_the_peak_learning_rate_grows_with_the_global_batch_or_is_given():
    assert OptimizerSettings(base_lr_per_256=1.5e-4).peak_lr(4096) == pytest.approx(2.4e-3)  # MAE, table 8
    assert OptimizerSettings(base_lr_per_256=None, lr=3e-4).peak_lr(4096) == 3e-4


@pytest.mark.parametrize("accumulate, world_size", [(1, 1), (2, 1), (1, 4), (3, 4)])
def test_a_step_counts_the_samples_of_all_processes_and_micro_steps(module, accumulate, world_size):
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch_size=8), world_size=world_size, accumulate_grad_batches=accumulate
    )
    other = SimpleNamespace(trainer=trainer)
    assert MAE.samples_per_step(other) == 8 * accumulate * world_size


@pytest.mark.parametrize(
    "settings, telling",
    [
        ({"lr": 1.0}, "set exactly one of them"),
        ({"base_lr_per_256": None}, "set exactly one of them"),
        ({"base_lr_per_256": -1.0}, "optimizer.base_lr_per_256 is -1.0"),
        ({"base_lr_per_256": None, "lr": float("nan")}, "optimizer.lr is nan"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay is -0.1"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps is -1"),
        ({"betas": (0.9, 1.0)}, r"optimizer.betas are \[0.9, 1.0\]"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, telling):
    with pytest.raises(InputError, match=telling):
        OptimizerSettings(**settings)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_step_and_learning_rate(value):
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.25}])
    other = SimpleNamespace(
        global_step=7, trainer=SimpleNamespace(optimizers=[optimizer], log_every_n_steps=0, max_steps=9)
    )
    with pytest.raises(InputError, match=r"became (nan|inf) at step 7 \(learning rate 0.25\)"):
        MAE.check_finite(other, torch.tensor(value))
    MAE.check_finite(other, torch.tensor(1.0))


def test_pixels_are_normalised_with_imagenet_s_mean_and_deviation(module):
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(module.normalize(images), (images / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_the_card_is_that_of_the_model(module):
    card = module.card()
    assert card["objective"] == "mae" and card["parameters"] == sum(p.numel() for p in module.encoder.parameters())
    assert card["parameters_total"] == sum(p.numel() for p in module.network.parameters()) > card["parameters"]
    assert card["architecture"]["arguments"]["embed_dim"] == 48 and card["img_size"] == [32, 32]
