"""What all objectives share: which parameters decay, the learning rate, pixels, the card, and how a model starts."""

from types import SimpleNamespace

import pytest
import torch

from headcam.errors import InputError
from headcam.ssl.mae import MAE
from headcam.ssl.objective import ComputeSettings, OptimizerSettings, parameter_groups
from headcam.ssl.weights import save_weights


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


def test_milestones_need_a_constant_schedule_and_sensible_steps():
    assert OptimizerSettings(schedule="constant", milestones={10: 0.1}).milestones == {10: 0.1}
    with pytest.raises(InputError, match="milestones go with the schedule constant"):
        OptimizerSettings(milestones={10: 0.1})
    with pytest.raises(InputError, match="give steps above 0"):
        OptimizerSettings(schedule="constant", milestones={0: 0.1})


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


def test_an_objective_of_other_pixels_says_so_in_its_card(module, monkeypatch):
    monkeypatch.setattr(module, "mean", (0.45, 0.45, 0.45))
    monkeypatch.setattr(module, "std", (0.225, 0.225, 0.225))
    images = torch.full((1, 3, 2, 2, 2), 255, dtype=torch.uint8)  # a clip
    assert module.normalize(images) == pytest.approx(torch.full((1, 3, 2, 2, 2), 0.55 / 0.225), rel=1e-5)
    assert module.card()["mean"] == [0.45] * 3 and module.card()["std"] == [0.225] * 3


def test_a_checkpoint_of_a_version_with_fewer_arguments_is_the_same_model(module):
    card = module.card()
    arguments = {k: v for k, v in card["architecture"]["arguments"].items() if k not in ("num_frames", "positions")}
    older = card | {"architecture": card["architecture"] | {"arguments": arguments}}
    module.on_load_checkpoint({"headcam_card": older})
    arguments = arguments | {"num_frames": 16}
    other = card | {"architecture": card["architecture"] | {"arguments": arguments}}
    with pytest.raises(InputError, match=r"num_frames 16 \(here 1\)"):
        module.on_load_checkpoint({"headcam_card": other})


def small(**more) -> MAE:
    sizes = {
        "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4,
        "decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 4,
    }  # fmt: skip
    return MAE(**(sizes | more))


def test_the_backend_that_a_device_has_is_used_and_another_wish_is_answered_on_one_line(capsys):
    module = small(compute=ComputeSettings(attention="xformers"))
    module.configure_model()
    error = capsys.readouterr().err
    assert module.attention == "sdpa" and "xformers" in error and error.count("\n") == 1
    math = small(compute=ComputeSettings(attention="math"))
    math.configure_model()
    assert math.attention == "math" and capsys.readouterr().err == ""
    images = torch.randn(2, 3, 32, 32)
    math.network.load_state_dict(module.network.state_dict())
    torch.testing.assert_close(math(images), module(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["none", "encoder", "decoder", "all"])
def test_checkpointing_reaches_the_parts_that_it_names(what):
    module = small(compute=ComputeSettings(checkpointing=what))
    module.configure_model()
    found = {
        part: on for part, on in (("encoder", module.encoder.checkpointing), ("decoder", module.network.checkpointing))
    }
    assert found == {"encoder": what in ("encoder", "all"), "decoder": what in ("decoder", "all")}


def test_a_model_starts_from_weights_that_it_is_given_and_its_card_says_so(module, tmp_path):
    torch.manual_seed(5)
    with torch.no_grad():
        module.network.encoder.norm.weight.add_(0.5)
    save_weights(tmp_path, module.encoder, module.card() | {"name": "first"})
    other = small()
    other.initial_weights = str(tmp_path)
    other.configure_model()
    for name, weight in module.encoder.state_dict().items():
        assert torch.equal(other.encoder.state_dict()[name], weight)
    assert str(tmp_path) in str(other.card()["init"]["source"]) and "init" not in small().card()
    resumed = small()
    resumed.on_load_checkpoint({"headcam_card": other.card()})
    assert resumed.card()["init"] == other.card()["init"]


def test_positions_of_weights_from_another_resolution_are_kept_by_a_run_that_goes_on(module, tmp_path):
    save_weights(tmp_path, module.encoder, module.card() | {"name": "first"})
    larger = small(img_size=48)
    larger.initial_weights = str(tmp_path)
    larger.configure_model()
    assert larger.card()["architecture"]["arguments"]["position_field"] == [4, 4]
    resumed = small(img_size=48)
    resumed.configure_model()
    resumed.on_load_checkpoint({"headcam_card": larger.card()})
    resumed.network.load_state_dict(larger.network.state_dict())
    assert resumed.card() == larger.card()
    for grid in ((6, 6), (3, 5)):
        assert torch.equal(resumed.encoder.position_table(grid), larger.encoder.position_table(grid))
