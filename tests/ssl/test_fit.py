"""`headcam fit`: what a run leaves behind, exact resume after `kill -9`, and one-line errors."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from headcam.cli import main
from headcam.files import sha256_file
from headcam.runs import MetricsFile
from headcam.ssl.weights import build_encoder, load_encoder

SGD_LIKE = {"lr": 0.001, "base_lr_per_256": None, "schedule": "constant", "weight_decay": 0.0}
EXACT = ("step", "train/loss", "lr", "samples", "hours", "val/loss")  # the other columns are times


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k in EXACT} for row in csv.DictReader(file)]


def test_a_run_leaves_everything_that_its_numbers_need(fit_config, tmp_path, capsys):
    run = tmp_path / "runs" / "a"
    assert main(["fit", "--config", str(fit_config()), "--out", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "weights.safetensors")

    assert [int(r["step"]) for r in rows(run)] == list(range(1, 13))
    assert [r["step"] for r in rows(run) if r["val/loss"]] == ["6", "12"]
    assert float(rows(run)[-1]["train/loss"]) < float(rows(run)[0]["train/loss"])
    assert (run / "checkpoints" / "last.ckpt").is_file() and (run / "checkpoints" / "step-00000012.ckpt").is_file()
    assert (run / "pictures" / "step-00000012.png").is_file()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0] or environment["packages"]["torch"]
    manifest = json.loads((run / "data.json").read_text())
    assert len(manifest["frames"]) == 40 and manifest["hours"] == 0
    card = json.loads((run / "card.json").read_text())
    assert card["manifest_hash"] == manifest["hash"]
    assert card["config_hash"] == sha256_file(run / "config.yaml")
    assert card["weights_hash"] == sha256_file(run / "weights.safetensors")
    assert card["samples_seen"] == 96 and card["step"] == 12

    # The written config is complete and trains the same run again.
    again = tmp_path / "runs" / "again"
    assert main(["fit", "--config", str(run / "config.yaml"), "--out", str(again)]) == 0
    assert rows(again) == rows(run)

    # Weights, checkpoint and card rebuild the same encoder; another architecture is refused.
    a, _ = load_encoder(run)
    b, _ = load_encoder(run / "checkpoints" / "last.ckpt")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(a.forward_features(images), b.forward_features(images))
    assert not torch.equal(a.forward_features(images), build_encoder(card, seed=0).forward_features(images))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_mid_epoch_and_resumed_equals_never_stopped(fit_config, tmp_path, workers):
    """40 pictures in batches of 8: an epoch is 5 steps, checkpoints fall on every 7th step, so in mid-epoch."""
    length = {"trainer": {"max_steps": 150, "val_check_interval": 35}, "model": {"depth": 3}}
    config = fit_config(**length, data={"num_workers": workers})
    text = yaml.safe_load(config.read_text()) | {"checkpoint_every": 7}
    config.write_text(yaml.safe_dump(text))

    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    command = [sys.executable, "-m", "headcam", "fit", "--config", str(config), "--out"]
    subprocess.run([*command, str(straight)], check=True, capture_output=True)

    killed_at = []
    for wanted in (20, 60):  # killed twice
        process = subprocess.Popen([*command, str(stopped)], stderr=subprocess.DEVNULL, start_new_session=True)
        metrics = MetricsFile(stopped / "metrics.csv")
        deadline = time.monotonic() + 120
        while not (metrics.rows() and int(metrics.rows()[-1]["step"]) >= wanted):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed_at.append(int(metrics.rows()[-1]["step"]))
    assert all(step < 150 for step in killed_at)

    subprocess.run([*command, str(stopped)], check=True, capture_output=True)
    assert rows(stopped) == rows(straight)
    for name in ("weights.safetensors",):
        assert sha256_file(stopped / name) == sha256_file(straight / name)


def test_samples_of_a_run_do_not_depend_on_workers(fit_config, tmp_path):
    for workers in (0, 2):
        config = fit_config(f"w{workers}", data={"num_workers": workers})
        assert main(["fit", "--config", str(config), "--out", str(tmp_path / f"run{workers}")]) == 0
    assert rows(tmp_path / "run0") == rows(tmp_path / "run2")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_in_every_precision(fit_config, tmp_path, precision, algorithm):
    """With gradients clipped to nothing, AdamW moves the weights by its epsilon's measure only."""
    trainer = {"max_steps": 1, "precision": precision, "gradient_clip_algorithm": algorithm}
    start = fit_config("free", trainer=trainer | {"gradient_clip_val": None}, model={"optimizer": SGD_LIKE})
    clipped = fit_config("clipped", trainer=trainer | {"gradient_clip_val": 1e-30}, model={"optimizer": SGD_LIKE})
    moved = {}
    for config, name in ((start, "free"), (clipped, "clipped")):
        assert main(["fit", "--config", str(config), "--out", str(tmp_path / name)]) == 0
        encoder, _ = load_encoder(tmp_path / name)
        moved[name] = encoder.state_dict()["blocks.0.mlp.fc1.bias"].abs().max()  # biases start at zero
    assert moved["free"] > 1e-4 and moved["clipped"] < 1e-12


def test_accumulated_gradients_see_the_same_samples_as_one_large_batch(fit_config, tmp_path):
    large = fit_config("large", data={"batch_size": 8})
    small = fit_config(
        "small", data={"batch_size": 4}, trainer={"accumulate_grad_batches": 2, "val_check_interval": 12}
    )
    for config, name in ((large, "large"), (small, "small")):
        assert main(["fit", "--config", str(config), "--out", str(tmp_path / name)]) == 0
    a, b = rows(tmp_path / "large"), rows(tmp_path / "small")
    assert [r["samples"] for r in a] == [r["samples"] for r in b]
    assert abs(float(a[-1]["val/loss"]) - float(b[-1]["val/loss"])) < 1e-4


def test_the_same_command_on_a_finished_run_changes_nothing(fit_config, tmp_path):
    command = ["fit", "--config", str(fit_config()), "--out", str(tmp_path / "a")]
    assert main(command) == 0
    before = sha256_file(tmp_path / "a" / "metrics.csv"), sha256_file(tmp_path / "a" / "weights.safetensors")
    assert main(command) == 0
    assert before == (sha256_file(tmp_path / "a" / "metrics.csv"), sha256_file(tmp_path / "a" / "weights.safetensors"))


@pytest.mark.parametrize(
    "change, telling",
    [
        (["--model.patch_size=15"], "patch_size 15 does not divide the image side 32"),
        (["--model.mask_ratio=75"], "mask_ratio must be in [0, 1), got 75. Fix: did you mean 0.75"),
        (["--model.pach_size=8"], "'pach_size' is not "),
        (["--trainer.max_step=3"], "max_step"),
        (["--trainer.max_steps=-1"], "trainer.max_steps is -1"),
        (["--data.train=[nowhere]"], "nowhere does not exist. Fix: make a frame store"),
        (["--data.batch_size=0"], "data.batch_size is 0"),
        (["--ckpt_path=nowhere.ckpt"], "--ckpt_path nowhere.ckpt does not exist"),
        (["--model.optimizer.base_lr_per_256=1"], "set exactly one of them"),
        (["--model=headcam.ssl.mae.MEA"], "MEA"),
    ],
)
def test_bad_settings_get_one_line_and_leave_nothing(fit_config, tmp_path, capsys, change, telling):
    run = tmp_path / "run"
    assert main(["fit", "--config", str(fit_config()), "--out", str(run), *change]) == 2
    error = capsys.readouterr().err
    assert telling in error and error.count("\n") == 1 and error.startswith("headcam: ")
    assert not run.exists()


def test_a_key_that_does_not_exist_in_the_file_is_named(fit_config, tmp_path, capsys):
    path = fit_config()
    path.write_text(path.read_text().replace("log_every_n_steps", "log_every_n_stepz"))
    assert main(["fit", "--config", str(path), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "log_every_n_stepz" in error and error.count("\n") == 1


def test_resume_from_another_architecture_is_refused(fit_config, tmp_path, capsys):
    assert main(["fit", "--config", str(fit_config()), "--out", str(tmp_path / "a")]) == 0
    checkpoint = str(tmp_path / "a" / "checkpoints" / "last.ckpt")
    other = ["fit", "--config", str(fit_config()), "--out", str(tmp_path / "b"), "--model.depth=3"]
    capsys.readouterr()
    assert main([*other, "--ckpt_path", checkpoint]) == 2
    error = capsys.readouterr().err
    assert "depth 2 (here 3)" in error and error.count("\n") == 1
    assert not (tmp_path / "b").exists()
    # The same folder with another config is refused as well, and named.
    assert main(["fit", "--config", str(fit_config()), "--out", str(tmp_path / "a"), "--model.depth=3"]) == 2
    assert "model.init_args.depth is 2 there and 3 here" in capsys.readouterr().err


def test_validation_on_training_recordings_is_refused(fit_config, tmp_path, capsys, stores):
    config = fit_config(data={"val": [str(stores[0])]})
    assert main(["fit", "--config", str(config), "--out", str(tmp_path / "a")]) == 2
    assert "40 recordings stand in data.train and in data.val" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["garbage", "foreign", "truncated"])
def test_damaged_checkpoints_are_refused_by_name(tmp_path, damage, fit_config, capsys):
    path = tmp_path / "x.ckpt"
    if damage == "garbage":
        path.write_bytes(b"no checkpoint at all")
    elif damage == "foreign":
        torch.save({"model": {"w": torch.zeros(3)}}, path)
    else:
        torch.save({"model": {"w": torch.zeros(30_000)}}, path)
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(Exception, match=r"x\.ckpt .*Fix: "):
        load_encoder(path)
    assert main(["fit", "--config", str(fit_config()), "--out", str(tmp_path / "a"), "--ckpt_path", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not (tmp_path / "a").exists()


def test_print_config_is_complete_and_loadable(fit_config, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(fit_config()), "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["decoder_num_heads"] == 4
    assert printed["trainer"]["max_steps"] == 12 and printed["data"]["init_args"]["scale"] == [0.2, 1.0]


def test_a_memory_plan_trains_nothing(fit_config, tmp_path, capsys):
    command = ["fit", "--config", str(fit_config()), "--out", str(tmp_path / "run"), "--plan_memory", "true"]
    more = ["--trainer.precision=bf16-mixed", "--trainer.accelerator=cuda", "--trainer.devices=4"]
    assert main([*command, *more]) == 0
    said = capsys.readouterr()
    assert "bf16-mixed" in said.out and "optimizer state" in said.out and "batch 8" in said.out
    assert not (tmp_path / "run").exists() and said.err == ""


def test_a_run_starts_from_another_one_s_weights(fit_config, tmp_path, capsys):
    """With a learning rate of zero, what comes out is what went in."""
    assert main(["fit", "--config", str(fit_config()), "--out", str(tmp_path / "a")]) == 0
    still = {"optimizer": {"lr": 0.0, "base_lr_per_256": None}}
    command = ["fit", "--config", str(fit_config("b", model=still, trainer={"max_steps": 6}))]
    command += ["--out", str(tmp_path / "b"), "--init", str(tmp_path / "a")]
    assert main(command) == 0
    a, b = (load_encoder(tmp_path / name)[0].state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    card = json.loads((tmp_path / "b" / "card.json").read_text())
    assert str(tmp_path / "a") in json.dumps(card["init"])
    # A run that goes on needs them no more, and still says what it began with.
    (tmp_path / "a").rename(tmp_path / "moved")
    assert main(command) == 0
    assert json.loads((tmp_path / "b" / "card.json").read_text())["init"] == card["init"]
    assert main([*command[:-1], str(tmp_path / "moved")]) == 2
    assert "init is " in capsys.readouterr().err


def test_a_run_of_an_older_version_goes_on_with_defaults_for_what_it_could_not_say(fit_config, tmp_path, capsys):
    command = ["fit", "--config", str(fit_config()), "--out", str(tmp_path / "a")]
    assert main(command) == 0
    path = tmp_path / "a" / "config.yaml"
    old = yaml.safe_load(path.read_text())
    del old["health"], old["init"], old["model"]["init_args"]["norm_pix_loss"], old["data"]["init_args"]["step_s"]
    path.write_text(yaml.safe_dump(old))
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--model.norm_pix_loss=false"]) == 2
    assert "norm_pix_loss is True there and False here" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_data(fit_config, tmp_path, capsys, stores):
    frames = tmp_path / "frames"
    command = ["fit", "--config", str(fit_config(data={"train": [str(frames)], "val": None})), "--out"]
    command += [str(tmp_path / "a")]
    shutil.copytree(stores[0], frames)
    assert main([*command, "--checkpoint_every=2"]) == 0
    shutil.rmtree(frames)
    shutil.copytree(stores[1], frames)
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "was trained on other data: sample 96 and those behind it" in error and error.count("\n") == 1
