"""Temporal classification: its loss, its classes from the data, and a run that learns to tell episodes apart."""

import csv
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
import yaml

from headcam.cli import main
from headcam.errors import InputError
from headcam.randomness import permuted
from headcam.ssl.objective import OptimizerSettings, parameter_groups
from headcam.ssl.temporal_classification import TemporalClassification
from headcam.ssl.weights import load_encoder
from headcam.video.data_module import FrameDataModule
from headcam.video.index import index
from headcam.video.stores.frame_store import store

TINY = {"backbone": "vit", "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def built(**how) -> TemporalClassification:
    model = TemporalClassification(**{**TINY, "num_episodes": 5, **how})
    model.configure_model()
    return model


def batch_of(count: int, episodes: int = 5, side: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator),
        "label": torch.randint(0, episodes, (count,), generator=generator),
    }


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_loss_and_accuracy_are_those_of_a_linear_classifier_on_pooled_features(pool):
    model, batch = built(pool=pool), batch_of(6)
    values = model.losses(batch)
    tokens = model.forward(model.normalize(batch["image"]))  # (B, 1 + L, D), the class token first
    weight, bias = (p.detach().double() for p in model.network.head.parameters())
    loss, right = 0.0, 0
    for row, episode in zip(tokens.detach().double(), batch["label"].tolist()):
        pooled = row[0] if pool == "token" else sum(row[1:]) / (len(row) - 1)
        scores = [float(w @ pooled + b) for w, b in zip(weight, bias)]
        loss += math.log(sum(math.exp(s) for s in scores)) - scores[episode]
        right += max(range(5), key=scores.__getitem__) == episode
    assert values["loss"].item() == pytest.approx(loss / 6, abs=1e-5)
    assert float(values["accuracy"]) == pytest.approx(100 * right / 6, abs=1e-4)


@pytest.mark.parametrize(
    "backbone, encoder, whole",
    [("resnext50_32x4d", 22_979_904, 25_028_904), ("resnext101_32x8d", 86_742_336, 88_791_336)],
)
def test_published_trunks_have_the_published_size(backbone, encoder, whole):
    """With 1,000 outputs: 25,028,904 and 88,791,336; with the 16,279 episodes of 2021 120.1 million."""
    card = TemporalClassification(backbone).card()
    assert (card["parameters"], card["parameters_total"]) == (encoder, whole)
    card = TemporalClassification(backbone, num_episodes=16_279).card()
    assert card["parameters_total"] == encoder + 16_279 * 2049 and card["episodes"]["number"] == 16_279


@pytest.mark.parametrize("backbone", ["vit", "resnet50"])
def test_a_step_can_be_planned_without_data_or_memory(backbone):
    model = TemporalClassification(**{**TINY, "backbone": backbone})
    model.network = model.skeleton
    batch = model.example_batch(3)
    assert batch["label"].dtype == torch.int64 and batch["label"].shape == (3,) and batch["label"].is_meta
    values = model.losses(batch)
    values["loss"].backward()
    assert values["loss"].is_meta and model.skeleton.head.weight.grad.shape[0] == 1000


def test_a_view_is_changed_as_published():
    (law,) = TemporalClassification(**TINY).views
    (colours,) = law.colours
    assert (colours.jitter, colours.brightness, colours.contrast, colours.saturation, colours.hue) == (0.9,) * 4 + (
        0.5,
    )
    assert (colours.grayscale, colours.blur, colours.blur_sigma, colours.solarize) == (0.2, 0.5, (0.1, 2.0), 0.0)
    assert law.scale is None and law.flip is None and law.noise == 0 and law.held_out == "centre"


def test_adamw_without_decay_is_adam():
    models = [built(optimizer=OptimizerSettings(lr=1e-3, base_lr_per_256=None, weight_decay=0.0)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    settings = models[0].optimizer_settings
    optimizers = [
        torch.optim.AdamW(parameter_groups(models[0].network, settings.weight_decay), lr=1e-3),
        torch.optim.Adam(models[1].network.parameters(), lr=1e-3),
    ]
    for _ in range(3):
        for model, optimizer in zip(models, optimizers):
            optimizer.zero_grad()
            model.losses(batch_of(4))["loss"].backward()
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        assert torch.allclose(a, b, atol=1e-7)


def test_validation_leaves_batch_statistics_alone():
    model = built(backbone="resnet50")
    before = {key: value.clone() for key, value in model.network.encoder.state_dict().items() if "running" in key}
    model.network.eval()
    losses = [float(model.losses(batch_of(count))["loss"].detach()) for count in (4, 4)]
    assert losses[0] == losses[1]
    assert all(torch.equal(value, model.network.encoder.state_dict()[key]) for key, value in before.items())
    model.network.train()
    model.losses(batch_of(4))
    assert not all(torch.equal(value, model.network.encoder.state_dict()[key]) for key, value in before.items())


def test_settings_that_do_not_fit_are_named():
    for how, telling in [
        ({"num_episodes": 1}, "num_episodes is 1"),
        ({"episode_seconds": 0.0}, "episode_seconds is 0"),
        ({"backbone": "resnet50", "pool": "token"}, "resnet50 has no class token"),
        ({"patch_size": 5}, "patch_size 5 does not divide"),
    ]:
        with pytest.raises(InputError, match=telling):
            TemporalClassification(**{**TINY, **how})


# Runs on generated video


def scene(recording: int, part: int, time: int) -> np.ndarray:
    """(64, 96, 3) uint8: rows, columns or squares (by recording) of a width that is the part's, drifting in time."""
    width = (3, 8, 20)[part]
    y, x = np.mgrid[:64, :96] + time
    stripes = ((y // width) % 2, (x // width) % 2, (y // width + x // width) % 2)[recording]
    return np.where(stripes[..., None], np.uint8([230, 200, 180]), np.uint8([30, 60, 50]))


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """The index of three videos of 48 s, each of three scenes of 16 s, and a store of all their frames."""
    root = tmp_path_factory.mktemp("walk")
    (root / "media").mkdir()
    for recording, name in enumerate("abc"):
        with av.open(str(root / "media" / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=5, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            pictures = [av.VideoFrame.from_ndarray(scene(recording, k // 80, k), format="rgb24") for k in range(240)]
            for packet in (packet for picture in [*pictures, None] for packet in stream.encode(picture)):
                container.mux(packet)
    index(root / "media", root / "r.parquet", processes=1, quiet=True)
    store(root / "r.parquet", root / "frames", frames_per_second=5, short_side=64, processes=1, quiet=True)
    return root


@pytest.fixture
def fit(walk, tmp_path):
    """Function that runs `headcam fit` with a small config, changed by its arguments; returns the run folder."""

    def run(model: dict | None = None, data: dict | None = None, trainer: dict | None = None, status: int = 0) -> Path:
        optimizer = {
            "lr": 1e-3,
            "base_lr_per_256": None,
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup_steps": 10,
        }
        config = {
            "seed_everything": 0,
            "model": {
                "class_path": "headcam.ssl.temporal_classification.TemporalClassification",
                "init_args": {**TINY, "embed_dim": 64, "episode_seconds": 16.0, "optimizer": optimizer} | (model or {}),
            },
            "data": {
                "class_path": "headcam.video.data_module.FrameDataModule",
                "init_args": {"train": [str(walk / "frames")], "batch_size": 32, "num_workers": 0} | (data or {}),
            },
            "trainer": {"max_steps": 4, "accelerator": "cpu", "log_every_n_steps": 1} | (trainer or {}),
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]) == status
        return tmp_path / "run"

    return run


def test_a_run_learns_to_tell_episodes_apart_and_knows_seconds_that_it_never_saw(fit):
    run = fit(
        model={"pool": "token"},
        data={"scale": [0.6, 1.0], "hold_out": 0.2},
        trainer={"max_steps": 70, "val_check_interval": 70},
    )
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    early, late = (np.mean([float(row["train/accuracy"]) for row in part]) for part in (rows[:10], rows[-10:]))
    assert early < 30 and late > 50  # percent; chance is 11
    assert float(rows[-1]["val/accuracy"]) > 50 and float(rows[-1]["val/loss"]) < 0.7 * math.log(9)
    card = json.loads((run / "card.json").read_text())
    assert card["episodes"] == {"number": 9, "seconds": 16.0} and card["objective"] == "temporal_classification"
    encoder, _ = load_encoder(run)
    assert encoder.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 17, 64)


def test_labels_are_the_scenes_whether_decoded_or_stored_trained_on_or_held_out(walk):
    model = TemporalClassification(**TINY, episode_seconds=16.0)
    for path in ("r.parquet", "frames"):
        data = FrameDataModule([str(walk / path)], num_workers=0, hold_out=0.2)
        data.trainer = SimpleNamespace(
            lightning_module=model, global_rank=0, world_size=1, accumulate_grad_batches=1, global_step=0
        )
        data.setup("fit")
        assert len(data.episodes) == 9
        for items, units in (
            ([data.train_data[i] for i in range(60)], data.plan.units),
            ([data.val_data[i] for i in range(20)], data.val_data.source.units),
        ):
            labels = [int(item["label"]) for item in items]
            if items[0].get("sample") is not None:
                drawn = [int(data.plan.unit(item["sample"].numpy())) for item in items]
            else:
                drawn = [int(permuted(np.int64(i), len(units), 0, "held out")) for i in range(20)]
            names = [units.recordings[int(units.recording_of(unit))] for unit in drawn]
            scenes = [int(units.time_of(unit) + 1e-6) // 16 for unit in drawn]
            first = {name: 3 * k for k, name in enumerate(sorted(set(data.episodes.ids.tolist())))}
            assert labels == [first[name] + part for name, part in zip(names, scenes)]


@pytest.mark.parametrize(
    "model, data, telling",
    [
        ({"episode_seconds": 100.0, "num_episodes": 5}, {}, "num_episodes is 5, the data hold 3 episodes of 100 s"),
        ({}, {"val": ["frames"]}, "data.val"),
    ],
)
def test_data_that_do_not_fit_are_refused(fit, walk, capsys, model, data, telling):
    if "val" in data:
        data = {"val": [str(walk / "frames")], "train": [str(walk / "frames")]}
    fit(model, data, status=2)
    assert telling in capsys.readouterr().err


def test_one_episode_is_refused(fit, walk, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    shutil.copy(walk / "media" / "a.mp4", tmp_path / "one")
    index(tmp_path / "one", tmp_path / "one.parquet", processes=1, quiet=True)
    fit({"episode_seconds": 48.0}, {"train": [str(tmp_path / "one.parquet")]}, status=2)
    assert "the data hold 1 episode of 48 s: nothing to tell apart" in capsys.readouterr().err
