"""What a training run leaves behind, and how it shows itself while it runs (Lightning callbacks).

`RunFolder` writes environment, manifest, metrics, pictures and weights into `runs/<name>/`; `TrainingProgress` shows
loss, images/s, the share of time spent waiting for data, and the unique hours seen.
"""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from PIL import Image

from headcam.files import atomic_file, sha256_file, write_json, write_text
from headcam.progress import Progress
from headcam.runs import MetricsFile, environment
from headcam.ssl.objective import Objective
from headcam.ssl.pictures import triptych
from headcam.ssl.weights import save_weights


def checkpoints(folder: str | Path, every_n_steps: int) -> ModelCheckpoint:
    """Lightning's checkpoint callback for a run folder: `checkpoints/step-*.ckpt` (the newest) and `last.ckpt`."""
    return ModelCheckpoint(
        dirpath=Path(folder) / "checkpoints",
        filename="step-{step:08d}",
        auto_insert_metric_name=False,
        every_n_train_steps=every_n_steps,
        save_last=True,
        save_top_k=1,
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
        num_pictures: samples in each picture of completions.
    """

    def __init__(self, folder: str | Path, config: str, num_pictures: int = 8):
        self.folder = Path(folder)
        self.config = config
        self.num_pictures = num_pictures
        self.metrics = MetricsFile(self.folder / "metrics.csv")
        self.hours = 0.0
        self._counted = self._microseconds = 0  # samples that were counted, and the unique video in them
        self._saved_step = -1  # of the newest checkpoint
        self._mark = self._mark_wait = self._validating_since = 0.0  # clocks of the measurement in progress
        self._mark_step = 0

    def on_fit_start(self, trainer: pl.Trainer, module: Objective) -> None:
        if not trainer.is_global_zero:
            return
        # Only now, with model and data in place: a run that cannot start leaves no folder behind.
        if not (self.folder / "config.yaml").exists():
            write_text(self.folder / "config.yaml", self.config)
        path = self.folder / "environment.json"
        if not path.exists():
            write_json(path, environment())
        trainer.datamodule.manifest.write(self.folder / "data.json")

    def on_train_start(self, trainer: pl.Trainer, module: Objective) -> None:
        if trainer.is_global_zero:
            self.metrics.resume(trainer.global_step)
        self._count_hours(trainer, module)
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
        if trainer.is_global_zero and ((every and step % every == 0) or step == trainer.max_steps):
            self.metrics.log(step, self.measure(trainer, module))

    def measure(self, trainer: pl.Trainer, module: Objective) -> dict[str, float]:
        """Figures since the last call: learning rate, speed, data wait; samples and unique hours in all.

        The loss is that of the newest (micro-)batch of this process.
        """
        step, now = trainer.global_step, time.perf_counter()
        wait = trainer.datamodule.train_loader.wait_seconds
        passed = max(now - self._mark, 1e-9)
        samples = step * module.samples_per_step()
        self._count_hours(trainer, module)
        values = {
            "train/loss": float(trainer.callback_metrics["train/loss"]),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "samples": samples,
            "hours": self.hours,
            "images_per_second": (step - self._mark_step) * module.samples_per_step() / passed,
            "data_wait": min(1.0, (wait - self._mark_wait) / passed),
        }
        self._mark, self._mark_step, self._mark_wait = now, step, wait
        return values

    def _count_hours(self, trainer: pl.Trainer, module: Objective) -> None:
        samples = trainer.global_step * module.samples_per_step()
        self._microseconds += trainer.datamodule.plan.microseconds_seen(samples, since=self._counted)
        self._counted, self.hours = samples, self._microseconds / 3.6e9

    def on_train_end(self, trainer: pl.Trainer, module: Objective) -> None:
        # The checkpoints' own rhythm need not fall on the last step, whose weights are what the run is for.
        if self._saved_step != trainer.global_step and not trainer.fast_dev_run:
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")

    def on_validation_start(self, trainer: pl.Trainer, module: Objective) -> None:
        self._validating_since = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, module: Objective) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or "val/loss" not in trainer.callback_metrics:
            return
        self.metrics.log(trainer.global_step, {"val/loss": float(trainer.callback_metrics["val/loss"])})
        self.save_picture(trainer, module)
        self._mark += time.perf_counter() - self._validating_since  # validation is no training time

    def save_picture(self, trainer: pl.Trainer, module: Objective) -> None:
        """Write `pictures/step-*.png`: held-out frames, what the model sees of them, what it completes."""
        if not hasattr(module, "reconstruct"):
            return
        data = trainer.datamodule.val_data
        items = [data[k] for k in range(min(self.num_pictures, len(data)))]
        batch = {k: torch.stack([item[k] for item in items]).to(module.device) for k in items[0]}
        picture = triptych(*module.reconstruct(batch))
        with atomic_file(self.folder / "pictures" / f"step-{trainer.global_step:08d}.png") as file:
            Image.fromarray(picture).save(file, format="PNG")
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_image"):  # TensorBoard
                logger.experiment.add_image("completions", picture, trainer.global_step, dataformats="HWC")

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Objective, checkpoint: dict[str, Any]) -> None:
        card = self.card(trainer, module)
        checkpoint["headcam_card"] = card
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            save_weights(self.folder, module.encoder, card)

    def card(self, trainer: pl.Trainer, module: Objective) -> dict[str, Any]:
        """The objective's card with what this run adds to it."""
        samples = trainer.global_step * module.samples_per_step()
        plan, manifest = trainer.datamodule.plan, trainer.datamodule.manifest
        return {
            **module.card(),
            "name": self.folder.name,
            "step": trainer.global_step,
            "samples_seen": samples,
            "hours": plan.hours_seen(samples),
            "hours_available": manifest.hours,
            "manifest_hash": manifest.hash,
            "config_hash": sha256_file(self.folder / "config.yaml"),
        }


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
        self._start, self._first, self._wait = time.perf_counter(), trainer.global_step, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Objective, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        passed = max(time.perf_counter() - self._start, 1e-9)
        rate = (trainer.global_step - self._first) * module.samples_per_step() / passed
        wait = trainer.datamodule.train_loader.wait_seconds / passed
        loss = trainer.callback_metrics.get("train/loss", float("nan"))
        self._progress.advance(
            current=f"loss {float(loss):.4f}, {rate:.0f} images/s, data wait {wait:.0%}, {self.run.hours:.2f} h seen"
        )

    def _count_hours(self, trainer: pl.Trainer, module: Objective) -> None:
        samples = trainer.global_step * module.samples_per_step()
        self._microseconds += trainer.datamodule.plan.microseconds_seen(samples, since=self._counted)
        self._counted, self.hours = samples, self._microseconds / 3.6e9

    def on_train_end(self, trainer: pl.Trainer, module: Objective) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, module: Objective, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None
