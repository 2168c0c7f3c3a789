"""Collapse of self-distillation: how it shows, and an alarm that can stop a run.

A network that learns from its own average can come to say the same of every picture, with a loss that looks well. Two
ways of it are known (Caron et al. 2021, section 5.3): the teacher prefers no prototype (its entropy and the loss stay
at ln K), or always the same one (its entropy falls to 0). In both, the mean of its distributions over a batch is no
wider than each of them. Features that lie along few directions are another sign, which RankMe counts (Garrido et al.
2023, "RankMe: Assessing the downstream performance of pretrained self-supervised representations by their rank").

`collapse_figures` measures all that on a batch; an objective logs it; `CollapseAlarm` reads the log. The figures come
from the batch of one step, so that a resumed run has the same ones: RankMe is at most the number of its views.
"""

import sys
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from headcam.errors import InputError

_NEAR_UNIFORM = 0.01  # share of ln K by which loss or entropy may be away from it
_SAME_FOR_ALL = 0.01  # nats that the batch's mean distribution is wider than the single ones
_ONE_DIRECTION = 1.1  # RankMe; 1 is one direction alone

_REMEDY = (
    "start again with a lower model.teacher_temp and a longer model.warmup_teacher_temp_steps, "
    "fewer prototypes (model.out_dim=8192) or model.momentum_teacher=0.99"
)


def collapse_figures(features: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Figures of one batch, each a scalar.

    Args:
        features: (N, D) of the teacher's backbone.
        teacher: (N, K) its distributions.
    Returns:
        `teacher_entropy`: mean entropy of a distribution, in nats; `mean_entropy`: entropy of their mean, at least
        that (equal: it says the same of every view); `rankme`; `feature_std`: mean deviation of unit features along an
        axis, times sqrt(D): 1 where they point everywhere, 0 where all point the same way (Chen and He 2021, SimSiam,
        section 4.1).
    """
    features = features.detach().float()
    spread = F.normalize(features, dim=-1).std(0).mean() * features.shape[1] ** 0.5
    return {
        "teacher_entropy": _entropy(teacher).mean(),
        "mean_entropy": _entropy(teacher.mean(0)),
        "rankme": rankme(features),
        "feature_std": spread,
    }


def rankme(features: Tensor) -> Tensor:
    """Effective rank of (N, D) features: exp of the entropy of their normalised singular values, in [1, min(N, D)]."""
    values = torch.linalg.svdvals(features.float())
    return _entropy(values / values.sum()).exp()


def _entropy(p: Tensor) -> Tensor:
    """Entropy in nats over the last dimension; 0 log 0 = 0."""
    return torch.special.entr(p).sum(-1)


class CollapseAlarm(Callback):
    """Says in one line when a run has collapsed, and stops it where asked.

    It looks at every logged step (`trainer.log_every_n_steps`), at the mean over processes, and speaks when a sign has
    held for `patience` steps: at the start of a healthy run all signs may hold for a while.

    Args:
        stop: end the run, with its checkpoint, at the alarm.
        patience: optimizer steps that a sign has to hold.

    Attributes:
        alarms: the lines that were said.
    """

    def __init__(self, stop: bool = False, patience: int = 2000):
        if patience < 1:
            raise InputError(f"patience is {patience}", "give optimizer steps from 1 on, such as 2000")
        self.stop, self.patience = stop, patience
        self.alarms: list[str] = []
        self._since: dict[str, int] = {}  # sign -> first of the logged steps in a row at which it was seen
        self._told: set[str] = set()  # signs in such a row that were spoken of

    def state_dict(self) -> dict[str, Any]:
        return {"since": dict(self._since), "told": sorted(self._told), "alarms": list(self.alarms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._since, self._told = dict(state_dict["since"]), set(state_dict["told"])
        self.alarms = list(state_dict["alarms"])

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not hasattr(module, "uniform_entropy"):
            raise InputError(
                f"CollapseAlarm cannot watch {type(module).__name__}, which has no teacher",
                "take it out of trainer.callbacks",
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, trainer.log_every_n_steps
        if (batch_idx + 1) % trainer.accumulate_grad_batches or not every or step % every:
            return
        keys = ("loss", "teacher_entropy", "mean_entropy", "rankme")
        values = torch.stack([trainer.callback_metrics[f"train/{key}"].float() for key in keys])
        for sign in self.due(step, dict(zip(keys, values.tolist())), module.uniform_entropy):
            end = "the run is stopped" if self.stop else "the run goes on"
            self.alarms.append(f"{sign}, for {self.patience} steps up to step {step}; {end}. Fix: {_REMEDY}")
            if trainer.is_global_zero:
                print(f"headcam: collapse: {self.alarms[-1]}", file=sys.stderr, flush=True)
            if self.stop:
                trainer.should_stop = True

    def due(self, step: int, values: dict[str, float], uniform_entropy: float) -> list[str]:
        """Signs that have just held long enough.

        Args:
            step: a logged one; called for each in turn.
            values: `loss`, `teacher_entropy`, `mean_entropy` and `rankme` of it.
            uniform_entropy: ln K.
        """
        near_uniform = abs(values["loss"] - uniform_entropy) <= _NEAR_UNIFORM * uniform_entropy
        signs = {
            f"the loss is within {_NEAR_UNIFORM:.0%} of ln K = {uniform_entropy:.2f}": near_uniform,
            "the teacher says the same of every picture": (
                values["mean_entropy"] - values["teacher_entropy"] <= _SAME_FOR_ALL
            ),
            "the features of all pictures lie along one direction": values["rankme"] <= _ONE_DIRECTION,
        }
        found = []
        for sign, holds in signs.items():
            if not holds:
                self._since.pop(sign, None)
                self._told.discard(sign)
            elif step - self._since.setdefault(sign, step) >= self.patience and sign not in self._told:
                self._told.add(sign)
                found.append(sign)
        return found
