"""How many codes a tokenizer uses while it is trained: columns of the log, by data source too, and an alarm.

Codebook collapse, few codes serving for everything, shows in no loss. So the tokens of training are counted between one
report and the next, those of held-out pictures at every validation (`headcam.tokenizers.quantizers.usage` has the
figures). A report is due at every validation and after every pass over the data; it adds to `metrics.csv`

    train/usage, train/perplexity, train/dead      and with several sources train/usage/SOURCE, ...
    val/usage, val/perplexity, val/dead            and with several sources val/usage/SOURCE, ...

Counts are summed over processes. Those of a report under way are not kept by checkpoints: after a restart the next
report counts from there.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from headcam.errors import InputError
from headcam.ssl.training.distributed import sum_over_processes
from headcam.ssl.training.run_folder import RunFolder
from headcam.tokenizers.quantizers.usage import CodeCounts, collapse_line
from headcam.video.sampling.units import Units

if TYPE_CHECKING:
    from headcam.tokenizers.autoencoders.training import TokenizerObjective

_REPORTS = 2  # in a row that show a collapse and no recovery: the start of a healthy run looks like one, too
_RECOVERY = 1.05  # times the perplexity of the report before
_FLUSH = 64  # batches whose sources are looked up together, so that a GPU is seldom waited for


class _Counts:
    """Tokens, counted by the source of the video that they are of.

    Args:
        units: of the data.
        unit_of: (M,) numbers that batches carry -> (M,) units.
        codes: K.
        device: of the tokens.
    """

    def __init__(self, units: Units, unit_of: Callable[[np.ndarray], np.ndarray], codes: int, device: torch.device):
        names = np.array([name or "unknown" for name in units.facts.source_names])[units.facts.source]
        self._names, self._source_of_recording = np.unique(names, return_inverse=True)  # of each recording
        self._units, self._unit_of = units, unit_of
        self._codes, self._device = codes, device
        self.clear()

    def clear(self) -> None:
        self._pending: list[tuple[Tensor, Tensor]] = []  # numbers and tokens of batches, not counted yet
        self._of_source = [CodeCounts(self._codes, self._device) for _ in self._names]

    def add(self, numbers: Tensor, tokens: Tensor) -> None:
        """Count tokens (B, ...) of the samples with these numbers (B,)."""
        if len(self._names) == 1:
            self._of_source[0].add(tokens)
            return
        self._pending.append((numbers, tokens))
        if len(self._pending) >= _FLUSH:
            self._count_pending()

    def total(self, prefix: str) -> tuple[CodeCounts, dict[str, float]]:
        """Counts of all sources and processes, and the log's columns; none where nothing was counted."""
        self._count_pending()
        together, columns = CodeCounts(self._codes, self._device), {}
        for name, counts in zip(self._names, self._of_source):
            sum_over_processes(counts.counts)
            together.counts += counts.counts
            if len(self._names) > 1:
                columns |= {f"{prefix}/{key}/{name}": value for key, value in counts.figures().items()}
        if not together.tokens:
            return together, {}
        return together, columns | {f"{prefix}/{key}": value for key, value in together.figures().items()}

    def _count_pending(self) -> None:
        if not self._pending:
            return
        numbers, tokens = (torch.cat(parts) for parts in zip(*self._pending))
        self._pending = []
        recordings = self._units.recording_of(self._unit_of(numbers.cpu().numpy()))
        source = torch.from_numpy(self._source_of_recording[recordings]).to(tokens.device)
        for k, counts in enumerate(self._of_source):
            counts.add(tokens[source == k])


class CodebookUsage(Callback):
    """Reports usage, perplexity and dead codes, and says in one line when a codebook has collapsed.

    Attributes:
        alarms: the lines that were said.
    """

    def __init__(self) -> None:
        self.alarms: list[str] = []
        self._row = 0  # reports in a row that show a collapse and no recovery
        self._perplexity = 0.0  # of the newest report
        self._train: _Counts | None = None
        self._held_out: _Counts | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"alarms": list(self.alarms), "row": self._row, "perplexity": self._perplexity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.alarms, self._row = list(state_dict["alarms"]), state_dict["row"]
        self._perplexity = state_dict["perplexity"]

    def on_fit_start(self, trainer: pl.Trainer, module: "TokenizerObjective") -> None:
        if not hasattr(module, "tokens"):
            raise InputError(
                f"CodebookUsage cannot watch {type(module).__name__}, which makes no tokens",
                "take it out of trainer.callbacks",
            )

    def on_train_start(self, trainer: pl.Trainer, module: "TokenizerObjective") -> None:
        plan = trainer.datamodule.plan
        self._train = _Counts(plan.units, plan.unit, module.encoder.vocab_size, module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: "TokenizerObjective", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._train.add(batch["sample"], module.tokens)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and self._ends_a_pass(trainer, module):
            self._report(trainer, module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: "TokenizerObjective") -> None:
        units = trainer.datamodule.val_data.source.units
        self._held_out = _Counts(units, lambda numbers: numbers, module.encoder.vocab_size, module.device)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: "TokenizerObjective", outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        self._held_out.add(batch["unit"], module.tokens)

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: "TokenizerObjective") -> None:
        if trainer.sanity_checking:
            return
        for name, value in self._held_out.total("val")[1].items():
            module.log(name, value)
        if trainer.state.fn == "fit":
            self._report(trainer, module)

    def _ends_a_pass(self, trainer: pl.Trainer, module: "TokenizerObjective") -> bool:
        """Whether the newest step is the first one to have drawn every unit once more."""
        per_step, units = module.samples_per_step(), len(trainer.datamodule.plan.units)
        drawn = trainer.global_step * per_step
        return drawn // units > (drawn - per_step) // units

    def _report(self, trainer: pl.Trainer, module: "TokenizerObjective") -> None:
        """Write what was counted since the last report to the row of the newest step; begin anew."""
        together, columns = self._train.total("train")
        if not together.tokens:  # a validation right behind the end of a pass has said it all
            return
        for callback in trainer.callbacks:
            if isinstance(callback, RunFolder) and trainer.is_global_zero:
                callback.metrics.log(trainer.global_step, columns)
        figures = together.figures()
        line = collapse_line(figures, module.encoder.vocab_size, together.tokens)
        self._train.clear()
        recovers = figures["perplexity"] > _RECOVERY * self._perplexity
        self._row = self._row + 1 if line and not recovers else 0
        self._perplexity = figures["perplexity"]
        if self._row == _REPORTS:
            self.alarms.append(f"step {trainer.global_step}: {line}")
            if trainer.is_global_zero:
                print(f"headcam: codes: {self.alarms[-1]}", file=sys.stderr, flush=True)
