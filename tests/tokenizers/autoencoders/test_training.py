"""Training of tokenizers: whose weights a loss reaches, what is minimised, plans, overfitting, skipped steps, a run."""

import copy
import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

from headcam.cli import main
from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.ssl.planning.flops import training_flops
from headcam.ssl.planning.memory_plan import plan_memory
from headcam.tokenizers.autoencoders import training
from headcam.tokenizers.autoencoders.tokenizer import load_tokenizer
from headcam.tokenizers.autoencoders.training import VQGAN, TokenizerObjective, VideoVQGAN, ViTVQ, psnr
from headcam.tokenizers.losses.discriminator import adaptive_weight
from headcam.tokenizers.losses.lpips import LPIPS
from headcam.tokenizers.losses.settings import LossSettings

CONV = {"img_size": 32, "ch": 8, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "attn_resolutions": (8,), "z_channels": 8,
        "embed_dim": 8, "codebook_size": 16}  # fmt: skip
VIDEO = {"img_size": 32, "num_frames": 4, "downsample": (2, 4, 4), "ch": 8, "num_res_blocks": 1, "codebook_size": 16,
         "embed_dim": 8}  # fmt: skip
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "latent_dim": 8,
       "codebook_size": 64}  # fmt: skip
ADVERSARY = {"adversarial_weight": 0.5, "disc_ch": 8, "disc_layers": 2}
ALL = [(VQGAN, CONV, ADVERSARY), (VideoVQGAN, VIDEO, ADVERSARY), (ViTVQ, VIT, {})]


def built(kind: type[TokenizerObjective], settings: dict, loss: dict) -> TokenizerObjective:
    torch.manual_seed(0)
    objective = kind(**settings, loss=LossSettings(**loss))
    objective.configure_model()
    return objective


def batch_for(objective: TokenizerObjective, batch_size: int = 2) -> dict[str, torch.Tensor]:
    """Smooth pictures that differ by sample, and noise."""
    batch = objective.example_batch(batch_size, "cpu")
    generator, name = torch.Generator().manual_seed(1), objective.views[0].name
    shape = batch[name].shape
    coarse = torch.rand(batch_size, 3, 1, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(1, *shape[-2:]), mode="trilinear")
    pixels = smooth[:, :, 0] if len(shape) == 4 else smooth.expand(shape)
    return batch | {name: (pixels * 255).byte()}


@pytest.fixture
def perceptual(monkeypatch):
    """LPIPS of small made-up weights under the name `made up`, without a file."""

    def load(spec: str) -> LPIPS:
        generator, model = torch.Generator().manual_seed(0), LPIPS()
        for parameter in model.parameters():
            parameter.normal_(std=0.05, generator=generator).abs_()
        model.source = spec
        return model

    monkeypatch.setattr(training, "load_perceptual", load)
    monkeypatch.setattr(training, "perceptual_trunk", lambda spec: "alexnet")
    return "made up"


@pytest.mark.parametrize("kind, settings, loss", ALL)
def test_what_is_minimised(kind, settings, loss, perceptual):
    weights = {"reconstruction_weight": 2.0, "perceptual": perceptual, "perceptual_weight": 3.0}
    objective = built(kind, settings, weights | loss)
    batch = batch_for(objective)
    objective.eval()
    values = objective.losses(batch)
    parts = 2 * values["reconstruction"] + 3 * values["perceptual"] + values["quantizer"]
    assert torch.allclose(values["loss"], parts)
    assert set(values) == {"loss", "reconstruction", "perceptual", "quantizer", "psnr"}
    assert objective.losses(batch)["loss"] == values["loss"]  # nothing is drawn

    images, out = objective.reconstruct(batch)
    assert values["reconstruction"].item() == pytest.approx((images - out).abs().mean().item(), rel=1e-5)
    squared = built(kind, settings, loss | {"reconstruction": "l2"}).eval().losses(batch)
    assert squared["reconstruction"].item() == pytest.approx((images - out).square().mean().item(), rel=1e-5)

    objective.train()
    values = objective.losses(batch)
    values["loss"].backward()
    assert all(p.grad is not None for p in objective.network.parameters())  # or several processes would wait
    assert objective.tokens.shape == (2, *objective.encoder.grid)
    if loss:
        parts = 2 * values["reconstruction"] + 3 * values["perceptual"] + values["quantizer"]
        parts = parts + values["discriminator"] + values["adversarial_weight"] * values["adversarial"]
        assert torch.allclose(values["loss"], parts)


@pytest.mark.parametrize("kind, settings, loss", ALL[:2])
def test_neither_half_of_the_adversary_moves_the_other(kind, settings, loss):
    """The discriminator's gradient is that of its loss alone, the tokenizer's that of all but it."""
    objective = built(kind, settings, loss)
    batch, network = batch_for(objective), objective.network
    values = objective.losses(batch)
    judges, tokenizer = list(network.discriminator.parameters()), list(network.encoder.parameters())
    both = torch.autograd.grad(values["loss"], judges + tokenizer, retain_graph=True)
    of_judges = torch.autograd.grad(values["discriminator"], judges, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(both, of_judges))
    assert all(g is None for g in torch.autograd.grad(values["discriminator"], tokenizer, allow_unused=True))
    added = values["adversarial_weight"] * values["adversarial"]
    assert all(g is None for g in torch.autograd.grad(added, judges, allow_unused=True, retain_graph=True))
    assert added.requires_grad and torch.autograd.grad(added, network.encoder.decoder.conv_out.weight)[0].any()


def test_the_adversarial_weight_is_adaptive_or_not_and_starts_late(monkeypatch):
    objective = built(VQGAN, CONV, ADVERSARY)
    batch = batch_for(objective)
    values = objective.losses(batch)
    last = objective.encoder.decoder.conv_out.weight
    by_hand = 0.5 * adaptive_weight(values["reconstruction"], values["adversarial"], last)
    assert torch.allclose(values["adversarial_weight"], by_hand)

    plain = built(VQGAN, CONV, ADVERSARY | {"adversarial_adaptive": False}).losses(batch)
    assert plain["adversarial_weight"].item() == 0.5

    objective.loss_settings.adversarial_start, objective.loss_settings.adversarial_warmup = 10, 4
    objective.loss_settings.adversarial_adaptive = False
    objective._trainer = object()  # a run is under way
    for step, weight in ((9, 0.0), (10, 0.125), (13, 0.5)):
        monkeypatch.setattr(objective, "_step", lambda step=step: step)
        values = objective.losses(batch)
        assert values["adversarial_weight"].item() == weight and ("adversarial" in values) == (weight > 0)
        assert values["discriminator"] > 0  # it learns from the first step on
    objective._trainer = None


def test_a_still_of_a_clip_is_the_frame_that_the_noise_says():
    objective = VideoVQGAN(**VIDEO)
    clips = torch.arange(2 * 3 * 4 * 2 * 2).view(2, 3, 4, 2, 2).float()
    stills = objective.stills(clips, torch.tensor([[0.0], [0.75]]))
    assert torch.equal(stills, torch.stack([clips[0, :, 0], clips[1, :, 3]]))
    assert torch.equal(objective.stills(clips, torch.tensor([[0.249], [0.999999999]])), stills)
    assert objective.views[0].noise == 1 and VQGAN(**CONV).views[0].noise == 0
    assert VQGAN(**CONV, quantizer="gumbel").views[0].noise == 1
    assert VideoVQGAN(**VIDEO, quantizer="gumbel").views[0].noise == 2


def test_psnr_by_hand():
    images = torch.zeros(2, 3, 4, 4)
    others = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 1.5)])
    assert psnr(images, others).tolist() == pytest.approx([20.0, 6.0206], abs=1e-3)  # errors 0.1, and 0.5 when clipped


@pytest.mark.parametrize("kind, settings, loss", ALL)
def test_plans_without_memory(kind, settings, loss, perceptual):
    objective = kind(**settings, loss=LossSettings(**loss, perceptual=perceptual))
    less = kind(**settings, loss=LossSettings(**loss))
    assert training_flops(objective) > training_flops(less) > 0
    if kind is VideoVQGAN:  # has it all
        assert plan_memory(objective, "bf16-mixed").peak_bytes(2) > 4 * sum(p.numel() for p in LPIPS().parameters())
    assert objective.network is None and objective.tokens is None


def test_the_perceptual_network_is_neither_trained_nor_saved(perceptual):
    objective = built(VQGAN, CONV, {"perceptual": perceptual})
    before = {k: v.clone() for k, v in objective.perceptual(torch.zeros(1)).state_dict().items()}
    objective.losses(batch_for(objective))["loss"].backward()
    assert not any("features" in name for name in objective.state_dict())
    assert all(p.grad is None for p in objective.perceptual(torch.zeros(1)).parameters())
    assert all(torch.equal(v, before[k]) for k, v in objective.perceptual(torch.zeros(1)).state_dict().items())
    card = objective.card()
    assert card["losses"]["perceptual"] == "made up; trained on ImageNet labels"
    assert card["parameters"] == sum(p.numel() for p in objective.encoder.parameters())


def test_a_missing_perceptual_file_is_said_when_a_run_starts_and_not_before(capsys):
    objective = VQGAN(**CONV, loss=LossSettings(perceptual="nowhere.safetensors"))
    with pytest.raises(InputError, match=r"nowhere\.safetensors does not exist"):
        objective.setup("fit")
    VQGAN(**CONV).setup("fit")
    assert "without a perceptual loss" in capsys.readouterr().err


@pytest.mark.parametrize("kind, settings, loss", ALL)
def test_a_handful_of_pictures_can_be_learned_by_heart(kind, settings, loss):
    objective = built(kind, settings, {})
    batch = batch_for(objective, 4)
    optimizer = torch.optim.AdamW(objective.network.parameters(), lr=4e-3, weight_decay=0)
    start = objective.eval().losses(batch)["reconstruction"].item()
    objective.train()
    for step in range(50):
        optimizer.zero_grad()
        objective.losses(batch)["loss"].backward()
        optimizer.step()
        objective.encoder.quantizer.after_step(step, torch.zeros(()))
    end = objective.eval().losses(batch)
    assert end["reconstruction"] < 0.6 * start and end["psnr"] > 14


def test_a_skipped_step_leaves_the_codebook_alone():
    objective = built(VQGAN, CONV | {"quantizer": "ema"}, {})
    objective.losses(batch_for(objective))["loss"].backward()
    before = copy.deepcopy(objective.encoder.quantizer.state_dict())
    objective.step_check.bad = torch.ones(())
    objective.after_optimizer_step()
    assert all(torch.equal(v, before[k]) for k, v in objective.encoder.quantizer.state_dict().items())
    objective.losses(batch_for(objective))["loss"].backward()
    objective.step_check.bad = torch.zeros(())
    objective.after_optimizer_step()
    assert any(not torch.equal(v, before[k]) for k, v in objective.encoder.quantizer.state_dict().items())


@pytest.fixture
def run_config(stores, tmp_path) -> Path:
    """A config of a run of 12 steps of VQGAN with an adversary that counts from step 4 on."""
    loss = ADVERSARY | {"adversarial_start": 4, "adversarial_warmup": 2}
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "headcam.tokenizers.autoencoders.training.VQGAN",
            "init_args": {k: list(v) if isinstance(v, tuple) else v for k, v in CONV.items()}
            | {
                "quantizer": "ema",
                "loss": loss,
                "optimizer": {"lr": 1e-3, "base_lr_per_256": None, "betas": [0.5, 0.9]},
            },
        },
        "data": {
            "class_path": "headcam.video.data_module.FrameDataModule",
            "init_args": {"train": [str(stores[0])], "val": [str(stores[1])], "batch_size": 8, "num_workers": 0},
        },
        "trainer": {"max_steps": 12, "val_check_interval": 6, "log_every_n_steps": 1, "accelerator": "cpu"},
        "checkpoint_every": 5,
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def rows(run: Path) -> list[dict[str, str]]:
    """The log without times, and without counts that begin anew with a restart."""
    with open(run / "metrics.csv", newline="") as file:
        keys = (
            "step",
            "train/loss",
            "train/adversarial_weight",
            "train/discriminator",
            "val/loss",
            "val/psnr",
            "val/usage",
        )
        return [{k: row[k] for k in keys} for row in csv.DictReader(file)]


def test_a_run_stopped_and_resumed_equals_one_that_was_not(run_config, tmp_path, monkeypatch, capsys):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert main(["fit", "--config", str(run_config), "--out", str(straight)]) in (0, 1)
    assert "without a perceptual loss" in capsys.readouterr().err

    after = TokenizerObjective.after_optimizer_step

    def interrupted(self):
        after(self)
        if self.global_step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerObjective, "after_optimizer_step", interrupted)
        assert main(["fit", "--config", str(run_config), "--out", str(stopped)]) == 130
    assert main(["fit", "--config", str(run_config), "--out", str(stopped)]) in (0, 1)
    assert rows(stopped) == rows(straight)
    assert sha256_file(stopped / "weights.safetensors") == sha256_file(straight / "weights.safetensors")

    log = rows(straight)
    assert [float(row["train/adversarial_weight"]) > 0 for row in log] == [False] * 4 + [True] * 8
    assert (straight / "pictures" / "step-00000012.png").is_file()
    with open(straight / "metrics.csv", newline="") as file:
        full = list(csv.DictReader(file))
    # Reports: at validations (steps 6, 12) and at the ends of passes over the 40 pictures (steps 5, 10).
    assert [int(row["step"]) for row in full if row["train/usage"]] == [5, 6, 10, 12]
    assert all(0 < float(row["train/usage"]) <= 1 for row in full if row["train/usage"])

    tokenizer, card = load_tokenizer(straight)
    assert card["losses"]["perceptual"] is None and card["objective"] == "vqgan"
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape
    assert json.loads((straight / "card.json").read_text())["architecture"]["class"] == "ConvTokenizer"
