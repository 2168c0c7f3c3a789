"""What a training run leaves behind, and how it shows itself while it runs (Lightning callbacks).

`RunFolder` writes environment, manifest, metrics, pictures and weights into `runs/<name>/`, keeps account of what the
run has lived through, and lists in `replaced.csv` what could not be decoded; `TrainingProgress` shows loss, images/s,
achieved FLOP/s, the share of time spent waiting for data, and the unique hours seen. The first process writes; the
others are silent. A run may go on with another number of processes or micro-batches as long as a step draws the same
samples: `RunFolder` holds that when a checkpoint is loaded.
"""

import csv
import time
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar

from headcam.errors import InputError
from headcam.files import atomic_file, sha256_file, sha256_json, storage_errors, write_json, write_text
from headcam.progress import Progress
from headcam.runs import MetricsFile, environment
from headcam.ssl.looking.tiles import comparison, save_png
from headcam.ssl.objective import Objective
from headcam.ssl.planning.flops import peak_flops, training_flops
from headcam.ssl.training.distributed import gathered, is_sharded
from headcam.ssl.training.health import TrainingHealth
from headcam.ssl.weights import save_weights
from headcam.video.sampling.accounting import Account, Undecoded

_HASHED_SAMPLES = 256  # of a step: enough to tell other data from the same ones


def checkpoints(folder: str | Path, every_n_steps: int, keep: Literal["newest", "all"] = "newest") -> ModelCheckpoint:
    """Lightning's checkpoint callback for a run folder: `checkpoints/step-*.ckpt` and `last.ckpt`."""
    return ModelCheckpoint(
        dirpath=Path(folder) / "checkpoints",
        filename="step-{step:08d}",
        auto_insert_metric_name=False,
        every_n_train_steps=every_n_steps,
        save_last=True,
        save_top_k={"newest": 1, "all": -1}[keep],
        enable_version_counter=False,
    )


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are complete or not there, on any disk; a full one is a one-line error.

    Lightning's own writer goes through the system's temporary folder, which may be another disk (its last step is then
    a copy that a kill can tear), and holds the whole file in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic_file(path) as file:
            torch.save(checkpoint, file)


class RunFolder(Callback):
    """Keeps the run folder.

    Args:
        folder: `runs/<name>/`.
        config: complete config of the run, YAML.
        health: the run's, for its count of skipped steps and its eye on the wait for data.
        num_pictures: samples in each picture of completions.
    """

    def __init__(self, folder: str | Path, config: str, health: TrainingHealth, num_pictures: int = 8):
        self.folder = Path(folder)
        self.health = health
        self.config = config
        self.num_pictures = num_pictures
        self.metrics = MetricsFile(self.folder / "metrics.csv")
        self.account: Account | None = None  # of the samples up to the newest step that was looked at
        self._undecoded: list[Undecoded] = []  # of the checkpoint that the run goes on from
        self._listed = 0  # of the account's undecoded pictures, in replaced.csv
        self._saved_step = -1  # of the newest checkpoint
        self._mark = self._mark_wait = self._validating_since = 0.0  # clocks of the measurement in progress
        self._mark_step = 0
        self._flops: dict[int, float] = {}  # of a sample, by the first step of the stage that it belongs to

    def on_fit_start(self, trainer: pl.Trainer, module: Objective) -> None:
        if not trainer.is_global_zero:
            return
        # Only now, with model and data in place: a run that cannot start leaves no folder behind.
        if not (self.folder / "config.yaml").exists():
            write_text(self.folder / "config.yaml", self.config)
        path = self.folder / "environment.json"
        if not path.exists():
            facts = {"processes": trainer.world_size, "precision": trainer.precision, "attention": module.attention}
            write_json(path, environment() | facts)
        trainer.datamodule.manifest.write(self.folder / "data.json")

    def on_train_start(self, trainer: pl.Trainer, module: Objective) -> None:
        self.account = Account(trainer.datamodule.plan)
        self.account.advance(_samples(trainer, module), self._undecoded)
        if trainer.is_global_zero:
            self.metrics.resume(trainer.global_step)
            self._list_undecoded(anew=True)
        self._mark = time.perf_counter()
        self._mark_step = trainer.global_step
        self._mark_wait = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Objective, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        every = trainer.log_every_n_steps  # 0: only the last step
        logs = bool(every and step % every == 0) or step == trainer.max_steps
        if logs or trainer.world_size == 1:  # processes meet only where they log
            self.count(trainer, module)
        if logs and trainer.is_global_zero:
            self.metrics.log(step, self.measure(trainer, module))

    def measure(self, trainer: pl.Trainer, module: Objective) -> dict[str, float]:
        """Figures since the last call: what the objective logs, rates, speed, wait for data; and the account so far.

        Losses are means over the micro-batches and processes of the newest step. Speed is that of all processes, in
        images (all views of a sample that count as such) and in FLOP/s without recomputation; `peak_share` is its
        share of what the devices could do, where that is published. The wait is this process's. Where data have
        several sources, `hours/NAME` and `samples/NAME` are those of each.
        """
        step, now, account = trainer.global_step, time.perf_counter(), self.account
        wait = trainer.datamodule.train_loader.wait_seconds
        passed, waited = max(now - self._mark, 1e-9), wait - self._mark_wait
        rate = (step - self._mark_step) * module.samples_per_step() / passed
        logged = trainer.callback_metrics.items()
        values = {
            **{name: float(value) for name, value in logged if name.startswith("train/")},
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "samples": account.samples,
            "passes": account.samples / len(account.plan.units),
            "hours": account.hours,
            "replaced": account.replaced,
            "replaced_share": account.replaced / account.samples,
            "skipped": len(self.health.skipped),
            "images_per_second": rate * module.views_per_sample,
            **({"tokens_per_second": rate * module.tokens_per_sample} if module.tokens_per_sample else {}),
            **self.work(trainer, module, rate),
            "data_wait": min(1.0, waited / passed),
        }
        if len(account.sources) > 1:
            for name, facts in account.by_source().items():
                values |= {f"hours/{name}": facts["hours"], f"samples/{name}": facts["samples"]}
        self.health.watch_wait(waited, passed, trainer.datamodule.num_workers)
        self._mark, self._mark_step, self._mark_wait = now, step, wait
        return values

    def work(self, trainer: pl.Trainer, module: Objective, samples_per_second: float) -> dict[str, float]:
        """`flops_per_second` at that rate and, where the devices' peak is known, its share of it, `peak_share`."""
        first, views = [stage for stage in module.view_stages if stage[0] < max(1, trainer.global_step)][-1]
        if first not in self._flops:
            usual, module.views = module.views, views
            try:
                self._flops[first] = training_flops(module)
            finally:
                module.views = usual
        done = samples_per_second * self._flops[first]
        device = trainer.strategy.root_device
        peak = peak_flops(torch.cuda.get_device_name(device), trainer.precision) if device.type == "cuda" else None
        return {"flops_per_second": done} | ({"peak_share": done / peak / trainer.world_size} if peak else {})

    def count(self, trainer: pl.Trainer, module: Objective) -> None:
        """Bring account and list up to the trainer's step; in a run of several processes, all of them have to call it.

        Raises:
            InputError: too many pictures could not be decoded.
        """
        samples = _samples(trainer, module)
        if samples == self.account.samples:
            return
        loaded = trainer.datamodule.train_loader.undecoded
        mine = [astuple(found) for found in loaded if found.sample < samples]
        loaded[:] = [found for found in loaded if found.sample >= samples]  # of batches that no step has used yet
        parts = [mine]
        if trainer.world_size > 1:
            parts = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, mine)
        self.account.advance(samples, (Undecoded(*found) for part in parts for found in part))
        if trainer.is_global_zero:
            self._list_undecoded()
        self.account.refuse_beyond(trainer.datamodule.max_replaced)

    def _list_undecoded(self, anew: bool = False) -> None:
        """Add to `replaced.csv` what it lacks; `anew`: write it as the checkpoint knows it, for a run that goes on."""
        path, found = self.folder / "replaced.csv", self.account.undecoded
        if anew:
            path.unlink(missing_ok=True)
            self._listed = 0
        if self._listed == len(found):
            return
        header = () if path.exists() else ([field.name for field in fields(Undecoded)],)
        with storage_errors(path), open(path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([*header, *map(astuple, found[self._listed :])])
        self._listed = len(found)

    def on_train_end(self, trainer: pl.Trainer, module: Objective) -> None:
        # The checkpoints' own rhythm need not fall on the last step, whose weights are what the run is for.
        if self._saved_step != trainer.global_step and not trainer.fast_dev_run:
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")

    def on_validation_start(self, trainer: pl.Trainer, module: Objective) -> None:
        self._validating_since = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, module: Objective) -> None:
        if trainer.sanity_checking or "val/loss" not in trainer.callback_metrics:
            return
        if trainer.is_global_zero:
            found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            self.metrics.log(trainer.global_step, found)
        # Sharded weights are put together block by block as the model is used, by all processes or none.
        if trainer.is_global_zero or any(map(is_sharded, module.parameters())):
            self.save_picture(trainer, module)
        self.pause(time.perf_counter() - self._validating_since)

    def pause(self, seconds: float) -> None:
        """Take `seconds` of something else, such as validation, out of the speed that is being measured."""
        self._mark += seconds

    def save_picture(self, trainer: pl.Trainer, module: Objective) -> None:
        """Write `pictures/step-*.png`: held-out frames, what the model sees of them, what it completes."""
        if not hasattr(module, "reconstruct"):
            return
        data = trainer.datamodule.val_data
        items = [data[k] for k in range(min(self.num_pictures, len(data)))]
        batch = {k: torch.stack([item[k] for item in items]).to(module.device) for k in items[0]}
        completions = module.reconstruct(batch)
        if not trainer.is_global_zero:
            return
        picture = comparison(completions, module.mean, module.std, module.encoder.tubelet_size)
        save_png(self.folder / "pictures" / f"step-{trainer.global_step:08d}.png", picture)
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_image"):  # TensorBoard
                logger.experiment.add_image("completions", picture, trainer.global_step, dataformats="HWC")

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Objective, checkpoint: dict[str, Any]) -> None:
        self.count(trainer, module)
        card = self.card(trainer, module)
        checkpoint["headcam_card"] = card
        checkpoint["headcam_undecoded"] = [astuple(found) for found in self.account.undecoded]
        checkpoint["headcam_samples_per_step"] = module.samples_per_step()
        checkpoint["headcam_next_samples"] = self._next_samples(trainer, trainer.global_step, module)
        self._saved_step = trainer.global_step
        encoder = gathered(module.encoder, module.skeleton.encoder)
        if trainer.is_global_zero:
            save_weights(self.folder, encoder, card)

    def on_load_checkpoint(self, trainer: pl.Trainer, module: Objective, checkpoint: dict[str, Any]) -> None:
        """Take over the account; hold that the run goes on with the samples that it would have gone on with.

        Raises:
            InputError: a step would draw another number of samples, or, in the same folder, other samples.
        """
        self._undecoded = [Undecoded(*found) for found in checkpoint.get("headcam_undecoded", ())]
        step, here = checkpoint["global_step"], module.samples_per_step()
        there = checkpoint.get("headcam_samples_per_step", here)
        if there != here:
            raise InputError(
                f"the checkpoint was trained with {there} samples a step, here it is {here}: data.batch_size "
                f"{trainer.datamodule.batch_size} x {trainer.world_size} processes x {trainer.accumulate_grad_batches} "
                "micro-batches",
                f"choose the three so that their product is {there}",
            )
        own = Path(trainer.ckpt_path).resolve().is_relative_to(self.folder.resolve())
        expected = checkpoint.get("headcam_next_samples") if own else None
        if expected is not None and expected != self._next_samples(trainer, step, module):
            raise InputError(
                f"{self.folder} was trained on other data: sample {step * here} and those behind it are not the same",
                "give the data as they were, or choose another --out and start from these weights with --init",
            )
        _count_batches_anew(checkpoint, step, trainer.accumulate_grad_batches)

    def _next_samples(self, trainer: pl.Trainer, step: int, module: Objective) -> str:
        """Hash of the samples behind `step`: the same on any number of processes, another for other data."""
        first, data = step * module.samples_per_step(), trainer.datamodule
        digest = data.plan.digest(first, first + min(module.samples_per_step(), _HASHED_SAMPLES))
        return sha256_json([data.manifest.hash, digest])

    def card(self, trainer: pl.Trainer, module: Objective) -> dict[str, Any]:
        """The objective's card with what this run adds to it."""
        account, manifest = self.account, trainer.datamodule.manifest
        return {
            **module.card(),
            **({"step_s": trainer.datamodule.step_s} if module.num_frames > 1 else {}),
            "name": self.folder.name,
            "step": trainer.global_step,
            "samples_seen": account.samples,
            "samples_replaced": account.replaced,
            "passes": account.samples / len(account.plan.units),
            "hours": account.hours,
            "hours_available": manifest.hours,
            "by_source": account.by_source(),
            "manifest_hash": manifest.hash,
            "config_hash": sha256_file(self.folder / "config.yaml"),
        }


def _samples(trainer: pl.Trainer, module: Objective) -> int:
    """Samples that all processes together have trained on."""
    return trainer.global_step * module.samples_per_step()


def _count_batches_anew(checkpoint: dict[str, Any], step: int, accumulate: int) -> None:
    """Let Lightning's loops stand behind optimizer step `step`, whatever the micro-batches of the run before.

    They count (micro-)batches as well as steps, and would put the borders of steps elsewhere where a step has another
    number of them now.
    """
    loop = checkpoint["loops"]["fit_loop"]
    for part in ("total", "current"):
        counts = loop["epoch_loop.batch_progress"][part]
        counts |= {name: step * accumulate for name in counts}
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step


class TrainingProgress(ProgressBar):
    """The progress bar of `headcam fit`: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, run: RunFolder, quiet: bool = False):
        super().__init__()
        self.run, self.quiet = run, quiet
        self._progress: Progress | None = None

    def disable(self) -> None:
        self.quiet = True

    def enable(self) -> None:
        self.quiet = False

    def on_train_start(self, trainer: pl.Trainer, module: Objective) -> None:
        quiet = self.quiet or not trainer.is_global_zero
        self._progress = Progress("training", trainer.max_steps, "steps", quiet, done=trainer.global_step)
        self._progress.__enter__()
        self._start, self._first, self._loss = time.perf_counter(), trainer.global_step, float("nan")

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Objective, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        passed = max(time.perf_counter() - self._start, 1e-9)
        rate = (trainer.global_step - self._first) * module.samples_per_step() / passed
        wait = trainer.datamodule.train_loader.wait_seconds / passed
        every = trainer.log_every_n_steps
        if module.device.type == "cpu" or (every and trainer.global_step % every == 0):  # looking makes a GPU wait
            self._loss = float(trainer.callback_metrics["train/loss"])
        work, account, skipped = self.run.work(trainer, module, rate), self.run.account, len(self.run.health.skipped)
        text = f"loss {self._loss:.4f}, {rate * module.views_per_sample:.0f} images/s, "
        text += f"{work['flops_per_second'] / 1e12:.3g} TFLOP/s"
        text += f" ({work['peak_share']:.0%} of peak)" if "peak_share" in work else ""
        text += f", data wait {wait:.0%}, {account.hours:.2f} h seen"
        text += f", {account.replaced} replaced" if account.replaced else ""
        self._progress.advance(current=text + (f", {skipped} steps skipped" if skipped else ""))

    def on_train_end(self, trainer: pl.Trainer, module: Objective) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, module: Objective, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None
