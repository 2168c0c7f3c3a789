"""The health of a training run: steps that must not be taken, and time that is lost waiting for data.

A step whose loss or gradient is not finite is skipped: AdamW leaves weights, moments and its counters as they are, the
run goes on with the next samples, and `skipped.csv` says which samples it was. `StepCheck` decides that inside the
optimizer step, on the device: the verdict reaches fused AdamW as the `found_inf` that loss scalers give it, so a GPU
is never waited for. `TrainingHealth`, a Lightning callback, reads the verdicts afterwards (on a CPU after every step,
else where the run logs, validates or saves), lists them, and stops a run that skips too often. A step's samples
follow from its number, so nothing has to be kept to name them.

All processes of a run decide alike: their verdicts are added up before any of them acts.
"""

import csv
import math
import os
import sys
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.files import storage_errors
from headcam.ssl.training.distributed import AgreedError, is_sharded, local, sum_over_processes

if TYPE_CHECKING:
    from headcam.ssl.objective import Objective

_WINDOW_SECONDS = 60.0  # of training over which the wait for data is judged; shorter ones are all start-up and chance


@dataclass
class HealthSettings:
    """When a run is not well.

    Attributes:
        max_skipped: Steps with a loss or gradient that is no number that a run may skip before it stops.
        max_skipped_in_a_row: The same for steps that follow each other; steps that a loss scaler (fp16) skips to find
            its scale count here only.
        max_data_wait: Share of the time that may pass waiting for data before one line says what to do.
    """

    max_skipped: int = 100
    max_skipped_in_a_row: int = 10
    max_data_wait: float = 0.5

    def __post_init__(self) -> None:
        for name in ("max_skipped", "max_skipped_in_a_row"):
            if getattr(self, name) < 0:
                raise InputError(f"health.{name} is {getattr(self, name)}", "give 0 (stop at the first) or more")
        if not 0 < self.max_data_wait <= 1:
            raise InputError(f"health.max_data_wait is {self.max_data_wait}", "give a share in (0, 1]; 1 never warns")


class StepCheck:
    """Mean values and the verdict of one optimizer step; `add` each micro-batch, then `close`.

    Attributes:
        values: of the newest step, means over its micro-batches and processes: name -> scalar tensor.
        bad: 1.0 where the newest step was skipped, else 0.0 (scalar float32 on the device); None before the first.
        verdict: (3,) float32 tensor of the newest step: `bad`, loss, norm of the gradient before clipping.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.bad: Tensor | None = None
        self.verdict: Tensor | None = None
        self._sums: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor], share: float) -> None:
        """Count a micro-batch, `share` of its step, with scalar `values`, one of them `loss`."""
        for name, value in values.items():
            value = value.detach().float() * share
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def close(self, norm: Tensor) -> Tensor:
        """End the step, whose gradient has the Euclidean norm `norm`; every process has to call it. Returns `bad`."""
        sums, self._sums = self._sums, {}
        mine = ~(sums["loss"].isfinite() & norm.isfinite())
        together = torch.stack([mine.float(), *sums.values()])
        together[1:] /= sum_over_processes(together)
        self.bad = (together[0] > 0).float()
        self.values = dict(zip(sums, together[1:]))
        self.verdict = torch.stack([self.bad, self.values["loss"], norm.float()])
        return self.bad


def skip_where(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's coming step do nothing where `bad` is 1: weights, moments and counters stay as they are.

    Fused optimizers read the flag on the device. The others are left without gradients, which needs a look at it.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if optimizer.defaults.get("fused") and not any(map(is_sharded, parameters)):
        optimizer.found_inf = bad
    elif bad.item():
        for parameter in parameters:
            parameter.grad = None


@dataclass(frozen=True)
class Skipped:
    """A step that was not taken.

    Attributes:
        step: its number, from 1 on, as in metrics.csv.
        first_sample, samples: the samples that all processes together drew for it: first number in the plan, count.
        loss: mean over micro-batches and processes.
        gradient_norm: before clipping.
    """

    step: int
    first_sample: int
    samples: int
    loss: float
    gradient_norm: float


class TrainingHealth(Callback):
    """Counts skipped steps, lists them in `skipped.csv`, stops a run that skips too often, warns of waits for data.

    Args:
        folder: the run folder.
        settings: see `HealthSettings`.
    """

    def __init__(self, folder: str | Path, settings: HealthSettings | None = None):
        self.path = Path(folder) / "skipped.csv"
        self.settings = settings or HealthSettings()
        self.skipped: list[Skipped] = []
        self._row = 0  # steps skipped in a row, up to the newest that was looked at
        self._pending: list[tuple[int, Tensor]] = []  # steps whose verdicts have not been read
        self._waited = self._passed = 0.0  # seconds of the window in progress
        self._slow_windows = 0
        self._said_slow = False

    def on_train_start(self, trainer: pl.Trainer, module: "Objective") -> None:
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)  # as the checkpoint knows it, for a run that goes on
            self._list(self.skipped)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: "Objective", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step, every = trainer.global_step, trainer.log_every_n_steps
        self._pending.append((step, module.step_check.verdict))
        if module.step_check.verdict.device.type == "cpu" or (every and step % every == 0) or step == trainer.max_steps:
            self.look(trainer, module)

    def on_validation_start(self, trainer: pl.Trainer, module: "Objective") -> None:
        if not trainer.sanity_checking and trainer.training:
            self.look(trainer, module)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: "Objective", checkpoint: dict[str, Any]) -> None:
        self.look(trainer, module)
        refuse_broken_weights(module, trainer.global_step)
        checkpoint["headcam_skipped"] = {"steps": [astuple(one) for one in self.skipped], "row": self._row}

    def on_load_checkpoint(self, trainer: pl.Trainer, module: "Objective", checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get("headcam_skipped", {"steps": (), "row": 0})
        self.skipped, self._row = [Skipped(*one) for one in found["steps"]], found["row"]

    def look(self, trainer: pl.Trainer, module: "Objective") -> None:
        """Read the verdicts of the steps since the last look: list, count, and stop where they are too many.

        Raises:
            AgreedError: more skipped steps than the settings allow.
        """
        if not self._pending:
            return
        steps, verdicts = zip(*self._pending)
        self._pending = []
        new = []
        for step, (bad, loss, norm) in zip(steps, torch.stack(verdicts).tolist()):
            self._row = self._row + 1 if bad else 0
            # A loss scaler tries scales until one overflows; that is no fault of the samples.
            if bad and not (module.scales_gradients and math.isfinite(loss)):
                samples = module.samples_per_step()
                new.append(Skipped(step, (step - 1) * samples, samples, loss, norm))
        self.skipped += new
        if trainer.is_global_zero:
            self._list(new)
        self._refuse_too_many(trainer, steps[-1])

    def _refuse_too_many(self, trainer: pl.Trainer, step: int) -> None:
        settings = self.settings
        row = self._row > settings.max_skipped_in_a_row
        if not row and len(self.skipped) <= settings.max_skipped:
            return
        count, name = (self._row, "max_skipped_in_a_row") if row else (len(self.skipped), "max_skipped")
        last = self.skipped[-1] if self.skipped else None
        values = f", last with loss {last.loss:.4g} and gradient norm {last.gradient_norm:.4g}" if last else ""
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        raise AgreedError(
            f"{count} steps{' in a row' if row else ''} up to step {step} had a loss or gradient that is no number "
            f"(learning rate {rate:.3g}{values}), more than health.{name} {getattr(settings, name)}",
            f"lower the learning rate or set trainer.gradient_clip_val, and resume from the last checkpoint; the "
            f"samples are in {self.path}",
        )

    def _list(self, new: list[Skipped]) -> None:
        if not new:
            return
        header = () if self.path.exists() else ([field.name for field in fields(Skipped)],)
        with storage_errors(self.path), open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([*header, *map(astuple, new)])

    def watch_wait(self, waited: float, passed: float, num_workers: int) -> None:
        """Warn in one line, once a run, where two windows in a row lost too much of their time waiting for data.

        Args:
            waited: seconds waited for data since the last call, of `passed` seconds of training.
            num_workers: loader processes, for the advice.
        """
        self._waited, self._passed = self._waited + waited, self._passed + passed
        if self._passed < _WINDOW_SECONDS:
            return
        share = self._waited / self._passed
        self._waited = self._passed = 0.0
        self._slow_windows = self._slow_windows + 1 if share > self.settings.max_data_wait else 0
        if self._slow_windows >= 2 and not self._said_slow:
            self._said_slow = True
            print(
                f"headcam: {share:.0%} of the time is spent waiting for data (health.max_data_wait): raise "
                f"data.num_workers (now {num_workers}, of {os.cpu_count()} cores), or decode once with headcam store",
                file=sys.stderr,
            )


def refuse_broken_weights(module: nn.Module, step: int) -> None:
    """Raise `AgreedError` where a weight is no number: such a checkpoint is not written over a good one."""
    tensors = [local(t) for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    broken = (~torch.stack([torch.isfinite(t).all() for t in tensors]).all()).float()
    sum_over_processes(broken)
    if broken.item():
        raise AgreedError(
            f"weights are no numbers any more at step {step}, so no checkpoint is written",
            "lower the learning rate, and resume from the last checkpoint, which is whole",
        )
