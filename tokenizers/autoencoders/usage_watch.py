"""How many codes a tokenizer uses while it is trained: columns of the log, by data source too, and an alarm.

Codebook collapse, few codes serving for everything, shows in no loss. So the tokens of training are counted between one
report and the next, those of held-out pictures at every validation (`headcam.tokenizers.quantizers.usage` has the
figures). A report is due at every validation and after every pass over the data; it adds to `metrics.csv`

    train/usage, train/perplexity, train/dead      and with several sources train/usage/SOURCE, ...
    val/usage, val/perplexity, val/dead

Counts are summed over processes. Those of a report under way are not kept by checkpoints: after a restart the next
report counts from there.
"""

import sys
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

if TYPE_CHECKING:
    from headcam.tokenizers.autoencoders.training import TokenizerObjective

_REPORTS = 2  # in a row that show a collapse and no recovery: the start of a healthy run looks like one, too
_RECOVERY = 1.05  # times the perplexity of the report before
_FLUSH = 64  # batches whose sources are looked up together, so that a GPU is seldom waited for


class CodebookUsage(Callback):
    """Reports usage, perplexity and dead codes, and says in one line when a codebook has collapsed.

    Attributes:
        alarms: the lines that were said.
    """

    def __init__(self) -> None:
        self.alarms: list[str] = []
        self._row = 0  # reports in a row that show a collapse and no recovery
        self._perplexity = 0.0  # of the newest report
        self._train: dict[str, CodeCounts] = {}  # by source
        self._held_out: CodeCounts | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []  # samples and tokens of batches, not counted yet

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
        facts = trainer.datamodule.plan.units.facts
        names = np.array([name or "unknown" for name in facts.source_names])[facts.source]  # of each recording
        self._sources, self._source_of_recording = np.unique(names, return_inverse=True)
        self._begin(module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: "TokenizerObjective", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if len(self._sources) == 1:
            self._train[str(self._sources[0])].add(module.tokens)
        else:
            self._pending.append((batch["sample"], module.tokens))
            if len(self._pending) >= _FLUSH:
                self._count_pending(trainer)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and self._ends_a_pass(trainer, module):
            self._report(trainer, module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: "TokenizerObjective") -> None:
        self._held_out = CodeCounts(module.encoder.vocab_size, module.device)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: "TokenizerObjective", outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        self._held_out.add(module.tokens)

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: "TokenizerObjective") -> None:
        if trainer.sanity_checking:
            return
        sum_over_processes(self._held_out.counts)
        for name, value in self._held_out.figures().items():
            module.log(f"val/{name}", value)
        if trainer.state.fn == "fit":
            self._report(trainer, module)

    def _ends_a_pass(self, trainer: pl.Trainer, module: "TokenizerObjective") -> bool:
        """Whether the newest step is the first one to have drawn every unit once more."""
        per_step, units = module.samples_per_step(), len(trainer.datamodule.plan.units)
        drawn = trainer.global_step * per_step
        return drawn // units > (drawn - per_step) // units

    def _begin(self, module: "TokenizerObjective") -> None:
        self._train = {str(name): CodeCounts(module.encoder.vocab_size, module.device) for name in self._sources}

    def _count_pending(self, trainer: pl.Trainer) -> None:
        """Count the tokens of the batches that wait for it, each picture under the source that it was drawn from."""
        if not self._pending:
            return
        samples, tokens = (torch.cat(parts) for parts in zip(*self._pending))
        self._pending = []
        plan = trainer.datamodule.plan
        recordings = plan.units.recording_of(plan.unit(samples.cpu().numpy()))
        source = torch.from_numpy(self._source_of_recording[recordings]).to(tokens.device)
        for k, name in enumerate(self._sources):
            self._train[str(name)].add(tokens[source == k])

    def _report(self, trainer: pl.Trainer, module: "TokenizerObjective") -> None:
        """Write what was counted since the last report to the row of the newest step; begin anew."""
        self._count_pending(trainer)
        together = CodeCounts(module.encoder.vocab_size, module.device)
        values = {}
        for name, counts in self._train.items():
            sum_over_processes(counts.counts)
            together.counts += counts.counts
            if len(self._sources) > 1:
                values |= {f"train/{key}/{name}": value for key, value in counts.figures().items()}
        if not together.tokens:  # a validation right behind the end of a pass has said it all
            return
        figures = together.figures()
        values |= {f"train/{key}": value for key, value in figures.items()}
        for callback in trainer.callbacks:
            if isinstance(callback, RunFolder) and trainer.is_global_zero:
                callback.metrics.log(trainer.global_step, values)
        line = collapse_line(figures, module.encoder.vocab_size, together.tokens)
        self._begin(module)
        recovers = figures["perplexity"] > _RECOVERY * self._perplexity
        self._row = self._row + 1 if line and not recovers else 0
        self._perplexity = figures["perplexity"]
        if self._row == _REPORTS:
            self.alarms.append(f"step {trainer.global_step}: {line}")
            if trainer.is_global_zero:
                print(f"headcam: codes: {self.alarms[-1]}", file=sys.stderr, flush=True)
