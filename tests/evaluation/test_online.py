"""The online probe in whole runs: it changes nothing, measures when it should, and goes on where a run was stopped."""

import csv
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from headcam.cli import main
from headcam.errors import InputError
from headcam.evaluation.features.encoders import EncoderExtractor, load_frozen
from headcam.evaluation.features.extraction import extract
from headcam.evaluation.labelled.sets import LabelledSet, labels_of, read_labelled
from headcam.evaluation.online import OnlineProbe
from headcam.evaluation.protocols import EncoderFeatures
from headcam.evaluation.watching.record import read_online
from headcam.randomness import stream
from headcam.ssl import resnet
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.token_store import make_token_store

EXACT = ("step", "train/loss", "train/grad_norm", "lr", "samples", "hours")
AT = [0.004, 0.01]  # hours: 14.4 and 36 s
TINY_LINEAR = {"kind": "LinearProbe", "name": "tiny", "version": 2, "epochs": 2, "base_lr_per_256": [0.1, 1.0]}


@pytest.fixture
def labelled(tmp_path) -> Path:
    """Three classes of ten training pictures and six test pictures, told apart by a tint that is often hidden by the
    picture's own; k of the shipped kNN is 20."""
    for part, count in (("train", 10), ("val", 6)):
        for label, name in enumerate(("red", "green", "blue")):
            (tmp_path / "labelled" / part / name).mkdir(parents=True)
            for k in range(count):
                rng = stream(0, f"{part} {name}", k)
                colour = 110 + rng.normal(0, 40, 3) + 40 * np.eye(3)[label]
                pixels = np.clip(colour + rng.normal(0, 30, (24, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "labelled" / part / name / f"{k}.png")
    return tmp_path / "labelled"


@pytest.fixture
def probe(tmp_path, labelled):
    """Function that gives the callback as a config names it."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY_LINEAR))

    def of(**changes) -> dict:
        arguments = {"labelled": str(labelled), "at_hours": AT, "protocols": ["knn", str(tmp_path / "tiny.yaml")]}
        return {"class_path": "headcam.evaluation.online.OnlineProbe", "init_args": arguments | changes}

    return of


@pytest.fixture
def config(fit_config, recordings, probe):
    """Function that writes a run of 8 steps of 6 samples on 72 s of video, probed unless `callbacks` say else."""

    def write(name: str, callbacks: list | None = None, steps: int = 8, **more) -> Path:
        trainer = {"max_steps": steps, "callbacks": [probe()] if callbacks is None else callbacks}
        data = {"train": [str(recordings[0])], "val": None, "batch_size": 6}
        return fit_config(name, data=data | more.pop("data", {}), trainer=trainer | more.pop("trainer", {}), **more)

    return write


def fit(config: Path, out: Path, *more: str) -> int:
    return main(["fit", "--config", str(config), "--out", str(out), "--trainer.enable_progress_bar=false", *more])


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def exact(run: Path) -> list[dict[str, str]]:
    """What must not differ between a run that is probed and one that is not."""
    return [{k: v for k, v in row.items() if k in EXACT} for row in rows(run) if row["train/loss"]]


def knn_by_hand(train: np.ndarray, test: np.ndarray, data: LabelledSet) -> float:
    """Percent right of a vote of the 20 nearest, in loops."""
    train, test = (part / np.linalg.norm(part.astype(np.float64), axis=1, keepdims=True) for part in (train, test))
    right = 0
    for row, truth in zip(test, labels_of(data.test)):
        votes, cosine = np.zeros(len(data.classes)), train @ row
        for k in np.argsort(-cosine)[:20]:
            votes[labels_of(data.train)[k]] += np.exp(cosine[k] / 0.07)
        right += int(votes.argmax() == truth)
    return 100 * right / len(test)


DINO = {
    "class_path": "headcam.ssl.dino.DINO",
    "init_args": {"size": "ti", "depth": 2, "img_size": 16, "local_crops_size": 8, "patch_size": 8, "out_dim": 64}
    | {"local_crops_number": 2, "head_hidden_dim": 32, "head_bottleneck_dim": 16, "use_bn_in_head": True},
}
BATCHNORM = {
    "class_path": "headcam.ssl.temporal_classification.TemporalClassification",
    "init_args": {"backbone": "resnet50", "img_size": 64, "episode_seconds": 8.0},
}


@pytest.mark.parametrize("model", [None, DINO, BATCHNORM], ids=["mae", "dino", "batchnorm"])
def test_a_probed_run_is_bit_for_bit_the_run_without(model, config, tmp_path, monkeypatch):
    """Losses and weights: samples, random numbers, modes and running statistics of the run stay as they are."""
    monkeypatch.setitem(resnet.TRUNKS, "resnet50", ((1, 1, 1, 1), 1, 16))  # seconds less
    for name, callbacks in (("plain", []), ("probed", None)):
        path = config(name, callbacks, steps=3)
        settings = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(settings | ({} if model is None else {"model": model})))
        assert fit(path, tmp_path / name) == 0
    assert exact(tmp_path / "plain") == exact(tmp_path / "probed") and len(exact(tmp_path / "plain")) == 3
    assert [row.step for row in read_online(tmp_path / "probed" / "online_probe.csv")] == [0, 0, 3, 3]
    plain, probed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "probed")
    )
    assert plain.keys() == probed.keys() and all(torch.equal(plain[key], probed[key]) for key in plain)


def test_milestones_fall_on_the_first_step_that_reaches_them(config, tmp_path, capsys):
    assert fit(config("a"), tmp_path / "a") == 0
    found = read_online(tmp_path / "a" / "online_probe.csv")
    # A sample is a unit of a second: 6 s a step. 14.4 s are reached with step 3, 36 s with step 6; 8 is the end.
    assert [row.step for row in found[::2]] == [0, 3, 6, 8]
    assert {row.metric for row in found} == {"knn/k20_T0.07/top1", "tiny/top1"}
    for row in found:
        assert row.samples == 6 * row.step and row.hours_seen * 3600 == pytest.approx(6 * row.step)
        assert row.hours_lived == row.hours_seen and row.n == 18 and row.chance == pytest.approx(100 / 3)
        assert row.low <= row.value <= row.high
    logged = {int(row["step"]): row for row in rows(tmp_path / "a")}
    for row in found:
        assert float(logged[row.step][f"online/{row.metric}"]) == row.value
    assert [step for step, row in logged.items() if row["online/tiny/top1"]] == [0, 3, 6, 8]
    said = [line for line in capsys.readouterr().err.splitlines() if "online probe" in line]
    assert len(said) == 4 and said[1].startswith("headcam: online probe at step 3, 0.005 h seen, 0.005 h lived: knn/")
    page = (tmp_path / "a" / "online_probe.html").read_text()
    assert "random weights" in page and "chance" in page and found[0].data in page


def test_the_last_number_is_that_of_the_weights_that_the_run_saved(config, tmp_path, labelled):
    """kNN of the saved encoder, from the cache of features and a vote in loops; the teacher's, where there is one."""
    path = config("a")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"model": DINO}))
    assert fit(path, tmp_path / "a") == 0
    encoder, card = load_frozen(tmp_path / "a")
    extractor = EncoderExtractor(encoder, card, EncoderFeatures(), "cpu")
    data = read_labelled(labelled)
    train, test = (extract(extractor, part, tmp_path / "cache", quiet=True).values for part in (data.train, data.test))
    last = read_online(tmp_path / "a" / "online_probe.csv")[-2]
    assert (last.step, last.metric, last.data) == (8, "knn/k20_T0.07/top1", data.identity)
    assert last.value == pytest.approx(knn_by_hand(train, test, data))


def test_repeats_count_as_seen_and_not_as_lived_and_steps_can_be_asked_for(config, probe, tmp_path):
    """72 s of video, 6 s a step: with the 12th step all is lived, with the 15th some is seen again."""
    path = config("a", [probe(at_hours=[1.0], every_steps=5)], steps=15)
    assert fit(path, tmp_path / "a") == 0
    found = read_online(tmp_path / "a" / "online_probe.csv")[::2]
    assert [row.step for row in found] == [0, 5, 10, 15]
    assert [round(3600 * row.hours_seen) for row in found] == [0, 30, 60, 90]
    assert [round(3600 * row.hours_lived) for row in found] == [0, 30, 60, 72]
    assert "video is seen again" in (tmp_path / "a" / "online_probe.html").read_text()


def test_a_stopped_run_goes_on_with_its_curve(config, tmp_path, monkeypatch):
    """Killed while it measures at step 6, with the checkpoint of step 5: the measurement of step 3 is not made again,
    that of step 6 is, and the files read as if the run had never stopped."""
    path = config("a")
    assert fit(path, tmp_path / "straight", "--checkpoint_every=5") == 0
    write, measured = OnlineProbe._write, []

    def killed(self, trainer, module, rows, seconds):
        measured.append(trainer.global_step)
        if trainer.global_step == 6:
            write(self, trainer, module, rows, seconds)  # as far as it can come without a checkpoint
            raise KeyboardInterrupt
        write(self, trainer, module, rows, seconds)

    monkeypatch.setattr(OnlineProbe, "_write", killed)
    assert fit(path, tmp_path / "stopped", "--checkpoint_every=5") == 130
    assert [row.step for row in read_online(tmp_path / "stopped" / "online_probe.csv")] == [0, 0, 3, 3, 6, 6]
    monkeypatch.setattr(
        OnlineProbe,
        "_write",
        lambda self, trainer, *more: measured.append(trainer.global_step) or write(self, trainer, *more),
    )
    assert fit(path, tmp_path / "stopped", "--checkpoint_every=5") == 0
    assert measured == [0, 3, 6, 6, 8]
    names = ("online_probe.csv", "weights.safetensors")
    for name in names:
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    online = [
        [{k: v for k, v in row.items() if "online/" in k} for row in rows(tmp_path / run)]
        for run in ("stopped", "straight")
    ]
    assert online[0] == online[1]


def test_features_beyond_float16_are_said_and_the_run_goes_on(config, tmp_path, capsys, monkeypatch):
    compute = EncoderExtractor.compute
    monkeypatch.setattr(EncoderExtractor, "compute", lambda self, batch: compute(self, batch) * 1e7)
    assert fit(config("a", steps=2), tmp_path / "a") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "online probe" in line]
    assert len(said) == 2 and said[1].endswith("at step 2: features are not finite in float16; not measured")
    assert not (tmp_path / "a" / "online_probe.csv").exists()


def test_a_finished_run_run_again_measures_nothing(config, tmp_path, monkeypatch):
    path = config("a", steps=2)
    assert fit(path, tmp_path / "a") == 0
    before = (tmp_path / "a" / "online_probe.csv").read_bytes()
    monkeypatch.setattr(OnlineProbe, "_measure", lambda *_: pytest.fail("measured again"))
    assert fit(path, tmp_path / "a") == 0
    assert (tmp_path / "a" / "online_probe.csv").read_bytes() == before


def test_another_set_of_pictures_is_no_part_of_the_same_curve(config, tmp_path, labelled, capsys):
    assert fit(config("a", steps=2), tmp_path / "a") == 0
    next((labelled / "train" / "red").iterdir()).unlink()
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    longer = config("b", steps=4)
    assert fit(longer, tmp_path / "b", "--ckpt_path", str(last)) == 0  # a folder and a curve of its own
    assert [row.step for row in read_online(tmp_path / "b" / "online_probe.csv")] == [2, 2, 3, 3, 4, 4]
    (tmp_path / "b" / "online_probe.csv").write_bytes((tmp_path / "a" / "online_probe.csv").read_bytes())
    (tmp_path / "b" / "checkpoints" / "last.ckpt").write_bytes(last.read_bytes())
    assert fit(longer, tmp_path / "b") == 2
    assert "was measured with other pictures (labelled@" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, telling",
    [
        ({"labelled": "absent"}, "labelled folder absent does not exist"),
        ({"at_hours": [1.0, 0.0]}, "at_hours of OnlineProbe has 0.0"),
        ({"every_steps": 0}, "every_steps of OnlineProbe is 0"),
        ({"max_pictures_per_class": 1}, "max_pictures_per_class of OnlineProbe is 1"),
        ({"protocols": []}, "protocols of OnlineProbe are"),
        ({"protocols": ["knn", "knn"]}, "protocols of OnlineProbe are"),
        ({"protocols": ["linear-aug"]}, "cannot measure linear-aug"),
        ({"protocols": ["linear-layers"]}, "cannot measure linear-layers"),
        ({"protocols": ["label-curve"]}, "cannot measure label-curve"),
        ({"protocols": ["lineal"]}, "protocol lineal is unknown"),
    ],
)
def test_bad_settings_are_one_line_before_anything_is_trained(config, probe, tmp_path, capsys, changes, telling):
    assert fit(config("a", [probe(**changes)]), tmp_path / "a") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "not verified" not in line]
    assert len(error) == 1 and telling in error[0] and "Fix: " in error[0]
    assert not (tmp_path / "a").exists()


def test_still_pictures_stand_for_no_hours(fit_config, probe, tmp_path, capsys):
    assert fit(fit_config("a", trainer={"callbacks": [probe()]}), tmp_path / "a") == 2
    assert "stand for no hours of video. Fix: set every_steps" in capsys.readouterr().err
    stepped = fit_config("b", trainer={"callbacks": [probe(every_steps=2)], "max_steps": 2})
    assert fit(stepped, tmp_path / "b") == 0
    assert [(r.step, r.hours_seen) for r in read_online(tmp_path / "b" / "online_probe.csv")[::2]] == [(0, 0), (2, 0)]
    assert "pictures seen" in (tmp_path / "b" / "online_probe.html").read_text()


def test_a_plain_trainer_has_no_run_folder(config, probe, tmp_path):
    import lightning.pytorch as pl

    trainer = pl.Trainer(callbacks=[OnlineProbe(**probe()["init_args"])], logger=False, accelerator="cpu")
    with pytest.raises(InputError, match="there is none"):
        trainer.callbacks[0].setup(trainer, None, "fit")


def start(config: Path, out: Path, strategy: str) -> subprocess.Popen:
    """A run of two processes in processes of their own."""
    sharded = {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
    }
    settings = yaml.safe_load(config.read_text())
    settings["trainer"] |= {"devices": 2, "strategy": sharded if strategy == "fsdp" else "ddp"}
    settings["data"]["init_args"]["batch_size"] = 3
    path = config.with_name(f"{strategy}.yaml")
    path.write_text(yaml.safe_dump(settings))
    words = [sys.executable, "-m", "headcam", "fit", "--config", str(path), "--out", str(out)]
    return subprocess.run([*words, "--trainer.enable_progress_bar=false"], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_measure_what_one_measures_once(strategy, config, tmp_path, labelled):
    """And an error of the first process, which alone reads the pictures, ends both in one line."""
    path = config("one", steps=6, trainer={"log_every_n_steps": 5})
    assert fit(path, tmp_path / "one") == 0
    done = start(path, tmp_path / "two", strategy)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("online probe at step") == 3
    one, two = (read_online(tmp_path / run / "online_probe.csv") for run in ("one", "two"))
    for a, b in zip(one, two, strict=True):  # weights differ by rounding
        assert replace(b, value=0, low=0, high=0) == replace(a, value=0, low=0, high=0)
        assert b.value == pytest.approx(a.value, abs=100 / 18 + 1e-9)
    assert one[0] == two[0]  # before training

    if strategy == "ddp":
        return
    shutil.rmtree(labelled / "val" / "blue")
    done = start(path, tmp_path / "three", strategy)
    said = [line for line in done.stderr.splitlines() if line.startswith("headcam: ") and "not verified" not in line]
    assert done.returncode == 2 and len(said) == 1 and "process 0: the classes of" in said[0], done.stderr


def test_a_gpt_on_tokens_is_probed_with_the_tokenizer_of_its_run(fit_config, probe, recordings, tmp_path):
    """Features of its middle block, as `headcam probe` has them."""
    levels = torch.tensor([40.0, 128.0, 215.0])
    tokenizer = PaletteTokenizer(8, 27)
    tokenizer.quantizer.codebook.copy_(torch.cartesian_prod(levels, levels, levels))
    card = {"contract": "card", "version": 1, "name": "palette", "objective": "palette", "img_size": [8, 8]}
    card |= {"architecture": {"class": "PaletteTokenizer", "arguments": tokenizer.arguments}}
    save_weights(tmp_path / "palette", tokenizer, card | {"mean": list(tokenizer.mean), "std": list(tokenizer.std)})
    make_token_store(recordings[0], tmp_path / "palette", tmp_path / "tokens", num_workers=0, quiet=True)
    gpt = {"vocab_size": 27, "grid": [8, 8], "embed_dim": 24, "depth": 2, "num_heads": 2, "positions": "rotary"}
    settings = yaml.safe_load(fit_config().read_text())
    settings["model"] = {"class_path": "headcam.tokenizers.autoregression.training.TokenGPT", "init_args": gpt}
    settings["data"] = {
        "class_path": "headcam.tokenizers.token_data.TokenDataModule",
        "init_args": {"train": [str(tmp_path / "tokens")], "batch_size": 6, "num_workers": 0},
    }
    losses = []
    for name, callbacks in (("plain", []), ("probed", [probe()])):
        settings["trainer"] |= {"max_steps": 3, "callbacks": callbacks}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        assert fit(path, tmp_path / name) == 0
        losses.append(exact(tmp_path / name))
    assert losses[0] == losses[1]
    found = read_online(tmp_path / "probed" / "online_probe.csv")
    assert [row.step for row in found] == [0, 0, 3, 3]

    encoder, card = load_frozen(tmp_path / "probed")
    data = read_labelled(tmp_path / "labelled")
    extractor = EncoderExtractor(encoder, card, EncoderFeatures(), "cpu")
    train, test = (extract(extractor, part, tmp_path / "cache", quiet=True).values for part in (data.train, data.test))
    assert found[2].value == pytest.approx(knn_by_hand(train, test, data))
