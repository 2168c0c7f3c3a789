"""Several processes train as one: same samples, same losses, one stop, one error; resume on another number of them."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import yaml

from headcam.cli import main
from headcam.errors import InputError
from headcam.runs import MetricsFile
from headcam.ssl.mae import MAE
from headcam.ssl.training.distributed import agreeing
from headcam.ssl.weights import load_encoder
from headcam.video.sampling.plan import step_samples

ROOT = Path(__file__).resolve().parents[3]
SLOW_LR = {"optimizer": {"lr": 0.0005, "base_lr_per_256": None, "schedule": "constant"}}
TWO = {"devices": 2, "strategy": "ddp"}
FSDP = TWO | {
    "strategy": {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
    }
}
# headcam fit that writes down the samples of every step; process 1 has a loss that is no number at step $SICK.
RECORDED = """
import json, os, sys
from headcam.cli import main
from headcam.ssl.objective import Objective

healthy = Objective.training_step

def training_step(self, batch, batch_idx):
    with open(f"{os.environ['SEEN']}.{os.getpid()}", "a") as file:
        file.write(json.dumps([self.global_step + 1, batch["sample"].tolist()]) + "\\n")
    loss = healthy(self, batch, batch_idx)
    if self.global_rank == 1 and self.global_step + 1 == int(os.environ.get("SICK", 0)):
        self.step_check._sums["loss"] = self.step_check._sums["loss"] * float("nan")
    return loss

Objective.training_step = training_step
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""

# headcam fit that cannot read the third sample of process 1.
HALF_BLIND = """
import os, sys
from headcam.cli import main
from headcam.errors import InputError
from headcam.video.datasets import PlannedFrames
from headcam.video.sampling.plan import step_samples

healthy = PlannedFrames.__getitem__

def item(self, i):
    if i == step_samples(0, batch_size=4, rank=1, world_size=2)[2]:
        raise InputError("the disk is gone", "plug it in")
    return healthy(self, i)

PlannedFrames.__getitem__ = item
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


class Runs:
    """Runs in processes of their own, and what they saw."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "fit.py").write_text(RECORDED)

    def start(self, config: Path, name: str, *more: str, **environment: str) -> subprocess.Popen:
        words = [sys.executable, str(self.folder / "fit.py"), "fit", "--config", str(config)]
        words += ["--out", str(self.folder / name), "--trainer.enable_progress_bar=false", *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SEEN": str(self.folder / f"{name}.seen"), **environment}
        return subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def fit(self, config: Path, name: str, *more: str, status: int = 0, **environment: str) -> str:
        process = self.start(config, name, *more, **environment)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == status, errors
        return errors

    def stop_at(self, step: int, process: subprocess.Popen, name: str, number: int) -> str:
        """Send a signal to the first process when `step` is logged; the standard error until its end."""
        metrics = MetricsFile(self.folder / name / "metrics.csv")
        deadline = time.monotonic() + 120
        while not (metrics.rows() and int(metrics.rows()[-1]["step"]) >= step):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, number)
        return process.communicate(timeout=60)[1]

    def rows(self, name: str) -> list[dict[str, str]]:
        with open(self.folder / name / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))

    def losses(self, name: str) -> list[float]:
        return [float(row["train/loss"]) for row in self.rows(name)]

    def seen(self, name: str) -> dict[int, list[int]]:
        """The samples of each step, over all processes; of a step that was taken twice, those of both."""
        found = defaultdict(list)
        for file in self.folder.glob(f"{name}.seen.*"):
            for line in file.read_text().splitlines():
                step, samples = json.loads(line)
                found[step] += samples
        return {step: sorted(samples) for step, samples in found.items()}


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(tmp_path)


@pytest.mark.slow
def test_two_processes_are_one_and_a_stopped_run_goes_on_with_another_number(fit_config, tmp_path, runs):
    """Two processes with 4 samples each, stopped by SIGTERM to the first; one goes on with 2 micro-batches of 4."""
    length = {"max_steps": 60, "val_check_interval": 1000}
    assert main_fit(fit_config("one", model=SLOW_LR, trainer=length), tmp_path / "one") == 0
    two = fit_config("two", model=SLOW_LR, data={"batch_size": 4, "num_workers": 1}, trainer=length | TWO)
    process = runs.start(two, "two")
    errors = runs.stop_at(5, process, "two", signal.SIGTERM)
    stopped = int(runs.rows("two")[-1]["step"])
    assert process.returncode == 143 and errors.count("\n") == 1, errors
    assert f"stopped by SIGTERM after step {stopped}, saved" in errors and 5 <= stopped < 60
    saved = torch.load(tmp_path / "two" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == stopped
    assert runs.losses("two") == pytest.approx(runs.losses("one")[:stopped], rel=1e-5)
    assert len(list(tmp_path.glob("two.seen.*"))) == 2

    # A product that is another one is refused; the right one goes on.
    alone = fit_config("alone", model=SLOW_LR, data={"batch_size": 4}, trainer=length | {"accumulate_grad_batches": 2})
    assert "trained with 8 samples a step, here it is 4" in runs.fit(
        alone, "two", "--trainer.accumulate_grad_batches=1", status=2
    )
    runs.fit(alone, "two")
    assert runs.losses("two") == pytest.approx(runs.losses("one"), rel=1e-5)
    assert runs.seen("two") == {step: list(range(8 * step - 8, 8 * step)) for step in range(1, 61)}
    columns = ("step", "lr", "samples", "hours", "passes", "skipped")
    assert [[r[c] for c in columns] for r in runs.rows("two")] == [[r[c] for c in columns] for r in runs.rows("one")]


@pytest.mark.slow
def test_dino_in_two_processes_is_dino_in_one(fit_config, tmp_path, runs):
    """Its centre and its teacher are those of all samples; FSDP2 is tested with the masked autoencoder below."""
    arguments = {"size": "ti", "img_size": 32, "local_crops_size": 16, "patch_size": 8, "depth": 2, "out_dim": 64}
    model = {"class_path": "headcam.ssl.dino.DINO", "init_args": arguments}
    trainer = {"max_steps": 5, "val_check_interval": 1000, "log_every_n_steps": 1}
    for name, more in (("one", {}), ("two", TWO)):
        config = fit_config(name, data={"batch_size": 4 if more else 8}, trainer=trainer | more)
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"model": model}))
    assert main_fit(tmp_path / "one.yaml", tmp_path / "one") == 0
    runs.fit(tmp_path / "two.yaml", "two")
    assert runs.losses("two") == pytest.approx(runs.losses("one"), rel=1e-5)
    one, two = (load_encoder(tmp_path / name)[0].state_dict() for name in ("one", "two"))
    for key, weight in one.items():
        torch.testing.assert_close(two[key], weight, rtol=1e-3, atol=1e-5)
    centres = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["network.center"]
        for name in ("one", "two")
    ]
    torch.testing.assert_close(*centres, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_skips_the_step_in_all(fit_config, runs):
    config = fit_config(data={"batch_size": 4}, trainer={"max_steps": 4, "val_check_interval": 1000} | TWO)
    errors = runs.fit(config, "two", status=1, SICK="3")
    assert errors.count("1 steps were skipped") == 1
    assert [row["skipped"] for row in runs.rows("two")] == ["0", "0", "1", "1"]
    with open(runs.folder / "two" / "skipped.csv", newline="") as file:
        assert [(r["step"], r["first_sample"], r["samples"]) for r in csv.DictReader(file)] == [("3", "16", "8")]


@pytest.mark.slow
def test_sharded_weights_train_as_whole_ones_and_are_saved_whole(fit_config, tmp_path, runs):
    """FSDP2 through Lightning's ModelParallelStrategy, on two CPU processes with gloo."""
    length = {"max_steps": 8, "val_check_interval": 4}
    assert main_fit(fit_config("one", model=SLOW_LR, trainer=length), tmp_path / "one") == 0
    config = fit_config("two", model=SLOW_LR, data={"batch_size": 4}, trainer=length | FSDP)
    process = runs.start(config, "two")
    runs.stop_at(2, process, "two", signal.SIGTERM)
    stopped = len(runs.rows("two"))
    assert process.returncode in (0, 143)
    assert runs.losses("two") == pytest.approx(runs.losses("one")[:stopped], rel=1e-5)
    runs.fit(config, "two")  # sharded again
    assert runs.losses("two") == pytest.approx(runs.losses("one"), rel=1e-5)
    assert float(runs.rows("two")[-1]["val/loss"]) == pytest.approx(float(runs.rows("one")[-1]["val/loss"]), rel=1e-4)
    one, two = (load_encoder(tmp_path / name)[0].state_dict() for name in ("one", "two"))
    for key, weight in one.items():
        if not key.endswith("qkv.bias"):  # see test_health
            torch.testing.assert_close(two[key], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_torchrun_starts_the_processes_too_and_an_error_of_one_is_said_once(fit_config, tmp_path):
    """Process 1 cannot read its part of the first batch: both stop on one line, before any model is built."""
    (tmp_path / "fit.py").write_text(HALF_BLIND)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words += [str(tmp_path / "fit.py"), "fit", "--config", str(fit_config(data={"batch_size": 4}, trainer=TWO))]
    words += ["--out", str(tmp_path / "a")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"})
    said = [line for line in done.stderr.splitlines() if line.startswith("headcam: ") and "not verified" not in line]
    assert done.returncode != 0 and len(said) == 1, done.stderr
    numbers = step_samples(0, batch_size=4, rank=1, world_size=2)
    assert said[0] == f"headcam: process 1: sample {numbers[2]}: the disk is gone. Fix: plug it in"
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_stop_by_signal_loses_nothing(fit_config, tmp_path, runs):
    """Bit for bit, also where the stop falls on a step that is validated."""
    config = fit_config(data={"num_workers": 1}, trainer={"max_steps": 40, "val_check_interval": 4})
    process = runs.start(config, "stopped")
    errors = runs.stop_at(6, process, "stopped", signal.SIGUSR1)
    assert process.returncode == 143 and "stopped by SIGUSR1" in errors, errors
    assert main_fit(config, tmp_path / "stopped") == 0
    assert main_fit(config, tmp_path / "straight") == 0
    for name in ("train/loss", "val/loss", "lr", "samples"):
        assert [r[name] for r in runs.rows("stopped")] == [r[name] for r in runs.rows("straight")]


def test_preflight_names_the_sample_before_the_model_is_built(fit_config, tmp_path, stores, capsys, monkeypatch):
    store = shutil.copytree(stores[0], tmp_path / "store")
    os.remove(store / "frames-000000.tar")
    monkeypatch.setattr(MAE, "configure_model", lambda self: pytest.fail("the model was built"))
    assert main_fit(fit_config(data={"train": [str(store)]}), tmp_path / "a") == 2
    error = capsys.readouterr().err
    assert "sample 0: " in error and "frames-000000.tar is missing" in error and error.count("\n") == 1


def test_an_error_of_one_process_alone_is_raised_as_it_is():
    with pytest.raises(InputError, match=r"^a\. Fix: b$"), agreeing():
        raise InputError("a", "b")


@pytest.mark.parametrize("script", sorted((ROOT / "configs" / "slurm").glob("*.sh")), ids=lambda path: path.name)
def test_slurm_scripts_parse_and_name_recipes_that_exist(script):
    text = script.read_text("utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True)
    named = [word for word in text.split() if word.startswith("configs/") and word.endswith(".yaml")]
    assert named and all((ROOT / name).is_file() for name in named)
    for wanted in ("#SBATCH --signal=", "#SBATCH --requeue", "#SBATCH --open-mode=append", "scontrol requeue"):
        assert wanted in text


def test_there_are_slurm_scripts():
    assert len(list((ROOT / "configs" / "slurm").glob("*.sh"))) >= 3


def main_fit(config: Path, out: Path) -> int:
    return main(["fit", "--config", str(config), "--out", str(out), "--trainer.enable_progress_bar=false"])
