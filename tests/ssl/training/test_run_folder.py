"""The run folder at its edges: last steps, odd rhythms, hours of video, checkpoints, one-line errors."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headcam.cli import main
from headcam.runs import MetricsFile
from headcam.ssl.training.run_folder import WholeCheckpoints
from headcam.video.stores.frame_store import FrameStore

EXACT = ("step", "train/loss", "lr", "samples", "passes", "hours", "replaced", "replaced_share", "val/loss")
ACCOUNT = ("step", "samples", "passes", "hours", "replaced", "replaced_share")


def fit(config: Path, out: Path, *more: str) -> int:
    return main(["fit", "--config", str(config), "--out", str(out), "--trainer.enable_progress_bar=false", *more])


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k in EXACT} for row in csv.DictReader(file)]


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


CONSTANT = {"optimizer": {"lr": 0.002, "base_lr_per_256": None, "schedule": "constant"}}


def test_weights_checkpoint_and_validation_are_those_of_the_last_step_whatever_the_rhythm(fit_config, tmp_path):
    """12 steps; checkpoints fall on every 5th, validation on every 7th, logged rows on every 5th."""
    config = fit_config(trainer={"val_check_interval": 7, "log_every_n_steps": 5})
    assert fit(config, tmp_path / "a", "--checkpoint_every=5") == 0
    assert [r["step"] for r in rows(tmp_path / "a")] == ["5", "7", "10", "12"]
    assert [r["step"] for r in rows(tmp_path / "a") if r["val/loss"]] == ["7", "12"]
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card["step"] == 12 and card["samples_seen"] == 96
    saved = checkpoint(tmp_path / "a")
    assert saved["global_step"] == 12
    assert {k: v for k, v in card.items() if k != "weights_hash"} == saved["headcam_card"]  # hours and hashes as well

    # A run that logs every step has the same figures in those rows.
    assert fit(fit_config(trainer={"val_check_interval": 7}), tmp_path / "b") == 0
    dense = {r["step"]: r for r in rows(tmp_path / "b")}
    for row in rows(tmp_path / "a"):
        if row["train/loss"]:
            assert row == dense[row["step"]]


def test_checkpoints_stay_where_that_is_asked_for(fit_config, tmp_path):
    config = fit_config(trainer={"max_steps": 4})
    for keep, steps in (("newest", [4]), ("all", [2, 4])):
        assert fit(config, tmp_path / keep, "--checkpoint_every=2", f"--keep_checkpoints={keep}") == 0
        files = [f"step-{step:08d}.ckpt" for step in steps]
        assert sorted(p.name for p in (tmp_path / keep / "checkpoints").iterdir()) == ["last.ckpt", *files]
    assert fit(config, tmp_path / "newest", "--checkpoint_every=2", "--keep_checkpoints=all") == 0  # the same run


def test_a_finished_run_run_again_changes_nothing_and_fills_in_what_a_kill_left_out(fit_config, tmp_path):
    run, config = tmp_path / "a", fit_config(trainer={"val_check_interval": 5})
    assert fit(config, run) == 0
    before, weights = (run / "metrics.csv").read_text(), (run / "weights.safetensors").read_bytes()
    assert fit(config, run) == 0
    assert (run / "metrics.csv").read_text() == before and (run / "weights.safetensors").read_bytes() == weights
    # Killed between the last step and its validation:
    lines = before.splitlines(keepends=True)
    value = rows(run)[-1]["val/loss"]
    (run / "metrics.csv").write_text("".join([*lines[:-1], lines[-1].replace(value, "")]))
    assert fit(config, run) == 0
    assert (run / "metrics.csv").read_text() == before
    (run / "metrics.csv").unlink()  # a user's tidying is no reason for a traceback
    assert fit(config, run) == 0


def test_a_longer_run_from_a_finished_one_equals_the_long_run(fit_config, tmp_path):
    length = {"max_steps": 20, "val_check_interval": 5}
    straight = fit_config("long", model=CONSTANT, trainer=length)
    short = fit_config("short", model=CONSTANT, trainer=length | {"max_steps": 12})
    assert fit(straight, tmp_path / "straight") == 0
    assert fit(short, tmp_path / "short", "--checkpoint_every=5") == 0
    last = tmp_path / "short" / "checkpoints" / "last.ckpt"
    assert fit(straight, tmp_path / "longer", "--ckpt_path", str(last)) == 0
    behind = [r for r in rows(tmp_path / "straight") if int(r["step"]) > 12]
    assert rows(tmp_path / "longer") == behind


def test_a_run_goes_on_with_other_micro_batches_where_the_step_s_samples_stay(fit_config, tmp_path, capsys):
    """From an odd step with one micro-batch to two: the borders of steps must not move."""
    straight = fit_config("straight", model=CONSTANT)
    part = fit_config("part", model=CONSTANT, trainer={"max_steps": 5})
    halves = {"max_steps": 12, "accumulate_grad_batches": 2, "val_check_interval": 12}
    halves = fit_config("halves", model=CONSTANT, data={"batch_size": 4}, trainer=halves)
    assert fit(straight, tmp_path / "straight") == 0 and fit(part, tmp_path / "part") == 0
    last = str(tmp_path / "part" / "checkpoints" / "last.ckpt")
    assert fit(halves, tmp_path / "resumed", "--ckpt_path", last) == 0
    expected, found = rows(tmp_path / "straight")[5:], rows(tmp_path / "resumed")
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    assert [r["step"] for r in found if r["val/loss"]] == ["6", "12"]
    for a, b in zip(expected, found):
        assert float(a["train/loss"]) == pytest.approx(float(b["train/loss"]), rel=1e-5)
    capsys.readouterr()
    assert fit(halves, tmp_path / "other", "--ckpt_path", last, "--data.batch_size=8") == 2
    assert "trained with 8 samples a step, here it is 16" in capsys.readouterr().err


def test_a_row_says_how_much_was_computed(fit_config, tmp_path):
    assert fit(fit_config(trainer={"max_steps": 3}), tmp_path / "a") == 0
    with open(tmp_path / "a" / "metrics.csv", newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:
        a_sample = float(row["flops_per_second"]) / float(row["images_per_second"])
        # 6 FLOP a weight and token: 192-wide blocks see 4 + 1 tokens, the decoder's 32-wide ones 16 + 1.
        assert 6 * 5 * 2 * 12 * 192**2 < a_sample < 1.5 * 6 * (5 * 2 * 12 * 192**2 + 17 * 2 * 12 * 32**2 + 16 * 192**2)
        assert 0 <= float(row["data_wait"]) <= 1 and "peak_share" not in row


def test_hours_of_video_count_each_second_once_and_survive_a_restart_bit_for_bit(fit_config, tmp_path, write_videos):
    table = write_videos(tmp_path)  # two videos, 2 + 1.5 s: 4 units
    data = {"train": [str(table)], "val": None, "batch_size": 1}
    config = fit_config(model=CONSTANT, data=data, trainer={"max_steps": 6})
    assert fit(config, tmp_path / "straight") == 0
    hours = [float(r["hours"]) * 3600 for r in rows(tmp_path / "straight")]
    assert hours == sorted(hours) and hours[3:] == pytest.approx([3.5] * 3)
    assert hours[0] == pytest.approx(1.0) or hours[0] == pytest.approx(0.5)
    card = json.loads((tmp_path / "straight" / "card.json").read_text())
    assert card["hours"] * 3600 == pytest.approx(3.5) and card["samples_seen"] == 6

    part = fit_config("part", model=CONSTANT, data=data, trainer={"max_steps": 2})
    assert fit(part, tmp_path / "part") == 0
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    assert fit(config, tmp_path / "resumed", "--ckpt_path", str(last)) == 0
    assert rows(tmp_path / "resumed") == rows(tmp_path / "straight")[2:]


@pytest.fixture
def write_videos(tmp_path_factory):
    """Function that writes two short videos and returns their index."""
    import av
    import numpy as np

    from headcam.video.index import index

    def write(root: Path) -> Path:
        (root / "videos").mkdir()
        for name, frames in (("a", 20), ("b", 15)):
            with av.open(str(root / "videos" / f"{name}.mp4"), "w") as container:
                stream = container.add_stream("libx264", rate=10)
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
                for k in range(frames):
                    picture = np.full((48, 64, 3), 10 * k, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                container.mux(stream.encode())
        index(root / "videos", root / "index.parquet", processes=1)
        return root / "index.parquet"

    return write


@pytest.fixture
def torn_store(stores, tmp_path):
    """The store of 40 pictures with the data of three of them overwritten."""
    folder = shutil.copytree(stores[0], tmp_path / "torn")
    frames = FrameStore(folder)
    for k in (3, 14, 15):
        with open(folder / f"frames-{frames.shard[k]:06d}.tar", "r+b") as file:
            file.seek(int(frames.offset[k]))
            file.write(bytes(int(frames.length[k])))
    return folder


def replaced(run: Path) -> list[tuple[str, ...]]:
    with open(run / "replaced.csv", newline="") as file:
        return [(r["sample"], r["attempt"], r["recording"], r["source"]) for r in csv.DictReader(file)]


def test_pictures_that_cannot_be_decoded_are_replaced_counted_and_listed(fit_config, tmp_path, torn_store):
    """40 pictures, 3 torn, 12 steps of 8 samples: two epochs and 16 samples of a third."""
    torn = {"train": [str(torn_store)], "max_replaced": 0.02}
    config = fit_config(model=CONSTANT, data=torn)
    assert fit(config, tmp_path / "a") == 0
    found = rows(tmp_path / "a")
    assert len(replaced(tmp_path / "a")) >= 6
    own = [int(sample) for sample, attempt, *_ in replaced(tmp_path / "a") if attempt == "0"]
    assert own == sorted(own) and sum(i < 80 for i in own) == 6  # each torn picture once an epoch
    assert [int(r["replaced"]) for r in found] == [sum(i < int(r["samples"]) for i in own) for r in found]
    assert float(found[-1]["replaced_share"]) == len(own) / 96 and float(found[-1]["passes"]) == 96 / 40
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card["samples_replaced"] == len(own) and card["samples_seen"] == 96
    assert card["by_source"] == {
        "train": {"hours": 0.0, "hours_available": 0.0, "units": 40, "samples": 96, "passes": 2.4}
    }

    # Neither workers nor a restart in between changes anything.
    assert fit(fit_config("workers", model=CONSTANT, data=torn | {"num_workers": 1}), tmp_path / "w") == 0
    assert fit(fit_config("short", model=CONSTANT, data=torn, trainer={"max_steps": 6}), tmp_path / "short") == 0
    last = str(tmp_path / "short" / "checkpoints" / "last.ckpt")
    assert fit(config, tmp_path / "resumed", "--ckpt_path", last) == 0
    assert rows(tmp_path / "w") == found and rows(tmp_path / "resumed") == found[6:]
    assert replaced(tmp_path / "w") == replaced(tmp_path / "resumed") == replaced(tmp_path / "a")


def test_too_many_replacements_stop_the_run_and_name_the_recordings(fit_config, tmp_path, torn_store, capsys):
    config = fit_config(data={"train": [str(torn_store)], "max_replaced": 0.002})
    assert fit(config, tmp_path / "a") == 2
    error = capsys.readouterr().err
    assert "3 of " in error and "could not be decoded, more than the share data.max_replaced 0.002" in error
    assert "headcam scan" in error and error.count("\n") == 1
    own = [row for row in replaced(tmp_path / "a") if row[1] == "0"]
    assert len(own) == 3 and all(row[2] in error for row in own)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(fit_config, tmp_path, torn_store):
    """Validation falls on no multiple of the run's length: the processes must agree on who validates at the end.

    They log every 5 steps, and only there and at checkpoints tell each other which pictures they had to replace.
    """
    torn, trainer = {"train": [str(torn_store)], "max_replaced": 0.02}, {"val_check_interval": 7}
    assert fit(fit_config("one", data=torn | {"batch_size": 8}, trainer=trainer), tmp_path / "one") == 0
    trainer |= {"devices": 2, "strategy": "ddp", "log_every_n_steps": 5}
    config = fit_config("two", data=torn | {"batch_size": 4}, trainer=trainer)
    words = [sys.executable, "-m", "headcam", "fit", "--config", str(config), "--out", str(tmp_path / "two")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 12 steps") == 1
    one, two = {r["step"]: r for r in rows(tmp_path / "one")}, rows(tmp_path / "two")
    assert [r["step"] for r in two] == ["5", "7", "10", "12"]
    for row in two:
        alone = one[row["step"]]
        if row["samples"]:
            assert {k: row[k] for k in (*ACCOUNT, "lr")} == {k: alone[k] for k in (*ACCOUNT, "lr")}
        assert (row["val/loss"] == "") == (alone["val/loss"] == "")
        if row["val/loss"]:
            assert float(row["val/loss"]) == pytest.approx(float(alone["val/loss"]), rel=1e-5)
    assert int(two[-1]["replaced"]) > 6 and replaced(tmp_path / "two") == replaced(tmp_path / "one")


def test_several_sources_are_accounted_for_one_by_one(fit_config, tmp_path, write_videos, stores):
    table = write_videos(tmp_path)  # source "videos": 2 + 1.5 s, 4 units
    config = fit_config(data={"train": [str(stores[0]), str(table)]}, trainer={"max_steps": 6})
    assert fit(config, tmp_path / "a") == 0
    with open(tmp_path / "a" / "metrics.csv", newline="") as file:
        found = [r for r in csv.DictReader(file) if r["samples"]]
    assert all(int(r["samples/train"]) + int(r["samples/videos"]) == int(r["samples"]) for r in found)
    assert all(r["hours/videos"] == r["hours"] and float(r["hours/train"]) == 0 for r in found)
    by_source = json.loads((tmp_path / "a" / "card.json").read_text())["by_source"]
    assert by_source["videos"]["hours"] * 3600 == pytest.approx(3.5) and by_source["videos"]["units"] == 4
    assert by_source["train"]["units"] == 40 and by_source["train"]["passes"] == by_source["train"]["samples"] / 40
    data = json.loads((tmp_path / "a" / "data.json").read_text())
    assert data["settings"]["sources"]["videos"]["hours"] * 3600 == pytest.approx(3.5)
    assert [one["quarantine_hash"] for one in data["settings"]["data"]] == [None, None]


def test_callbacks_of_the_user_s_run_beside_ours(fit_config, tmp_path):
    extra = tmp_path / "extra.yaml"
    settings = {"dirpath": str(tmp_path / "theirs"), "every_n_train_steps": 1}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": settings}
    extra.write_text(json.dumps({"trainer": {"callbacks": [callback]}}))
    assert fit(fit_config(), tmp_path / "a", "--config", str(extra), "--trainer.max_steps=1") == 0
    assert len(os.listdir(tmp_path / "theirs")) == 1
    assert (tmp_path / "a" / "weights.safetensors").is_file() and rows(tmp_path / "a")


@pytest.mark.parametrize(
    "change, telling",
    [
        ("--trainer.accelerator=cuda", "CUDAAccelerator"),
        ("--trainer.gradient_clip_algorithm=x", "gradient_clip_algorithm"),
        ("--model.decoder_num_heads=0", "0 decoder heads"),
        ("--data.flip=5", "flip is 5.0"),
        ("--model.optimizer.lr=-1", "optimizer.lr is -1.0"),
    ],
)
def test_mistakes_get_one_line(fit_config, tmp_path, capsys, change, telling):
    if "cuda" in change and torch.cuda.is_available():
        pytest.skip("this machine has the GPU that is asked for")
    assert fit(fit_config(), tmp_path / "a", change) == 2
    error = capsys.readouterr().err
    assert telling in error and error.count("\n") == 1 and not (tmp_path / "a").exists()


def test_a_missing_shard_is_one_line_also_from_a_worker(fit_config, tmp_path, capsys, stores):
    store = shutil.copytree(stores[0], tmp_path / "store")
    os.remove(store / "frames-000000.tar")
    config = fit_config(data={"train": [str(store)], "num_workers": 1})
    assert fit(config, tmp_path / "a") == 2
    error = capsys.readouterr().err
    assert "frames-000000.tar is missing" in error and error.count("\n") == 1


def test_logging_never_but_at_the_end(fit_config, tmp_path):
    assert fit(fit_config(data={"val": None}, trainer={"log_every_n_steps": 0}), tmp_path / "a") == 0
    assert [r["step"] for r in rows(tmp_path / "a")] == ["12"]


def test_a_checkpoint_that_cannot_be_written_whole_leaves_the_old_one(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"a": torch.arange(3)}, path)
    with pytest.raises(Exception, match="pickle"):
        WholeCheckpoints().save_checkpoint({"a": lambda: None}, path)
    assert torch.load(path)["a"].tolist() == [0, 1, 2] and os.listdir(path.parent) == ["last.ckpt"]


def test_the_folder_s_name_follows_from_the_config_however_it_is_given(fit_config, tmp_path, monkeypatch):
    config = fit_config("mine", data={"val": None})
    monkeypatch.chdir(tmp_path)
    for words in (["--config", str(config)], [f"--config={config}"]):
        assert main(["fit", *words, "--trainer.max_steps=1"]) == 0
    assert os.listdir(tmp_path / "runs") == ["mine"] and MetricsFile(tmp_path / "runs/mine/metrics.csv").rows()
