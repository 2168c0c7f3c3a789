"""Study: one learner goes through its list in exact passes, and says in between how familiar pictures are.

    Student(learner, settings, seed) ─▶ scores (exposure 0) ─▶ expose(pictures, 1) ─▶ scores ─▶ expose(pictures, 2) ...

An exposure shows every picture exactly once: 2,500 pictures in batches of 32 are 78 batches and a last one of 4, none
padded, none dropped. (The original, Orhan 2022, repeated 12 pictures in each pass so that 16 processes had equal
shares.) A batch's loss is the mean over its pictures, whether they go through the model together or in micro-batches.
The order follows from the seed and the exposure alone. Learning rate constant, no warm-up, no clipping, no dropout, the
optimizer's state fresh at the start: what changes between two exposures is what was studied.

On a CPU, the same seed, libraries and number of threads give the same bytes; on a GPU, rounding may differ from run to
run. Shapes: N pictures, B of a batch; pixels are uint8 (N, 3, H, W) RGB on the CPU.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headcam.devices import usable_device
from headcam.errors import InputError
from headcam.randomness import permuted, stream
from headcam.recognition_memory.experiment import StudySettings
from headcam.recognition_memory.learners.learner import Learner
from headcam.ssl.training.precision import resolve_precision


def study_order(n: int, seed: int, exposure: int) -> np.ndarray:
    """The order in which a list of `n` pictures is studied: (n,) int64, their numbers in the list, each once.

    Args:
        seed: of the run.
        exposure: 1 for the first.
    """
    return permuted(np.arange(n), n, seed, f"study order of exposure {exposure}")


class Diverged(InputError):
    """A study loss or a score that is not finite."""


class Student:
    """One learner with its optimizer.

    Args:
        learner: after `Learner.begin`. It is moved to the device and changed.
        settings: how it studies.
        seed: of the run: of the order, and of masks and augmentation.
        device: where it computes.
    Attributes:
        updates: optimizer steps so far.
        exposure: the newest exposure; 0 before study.
        precision: of study: "32", or "bf16" where that was asked for and the device computes in it.
        note: why the precision is not the one that was asked for; else empty.
    """

    def __init__(self, learner: Learner, settings: StudySettings, seed: int, device: str | torch.device = "cpu"):
        self.device = usable_device(device)
        self.learner = learner.to(self.device)
        self.settings = settings
        self.seed = seed
        self.updates = 0
        self.exposure = 0
        resolved, self.note = resolve_precision(settings.precision, self.device.type == "cpu")
        self.precision = "bf16" if resolved == "bf16" else "32"
        trained = [parameter for parameter in self.learner.parameters() if parameter.requires_grad]
        self._optimizer = _optimizer(trained, settings) if trained else None

    def expose(self, pictures: Tensor, exposure: int, progress: Callable[[int], None] | None = None) -> float | None:
        """One pass: every picture is studied once.

        Args:
            pictures: uint8 (N, 3, H, W), the study list.
            exposure: 1, 2, ...: decides the order.
            progress: is told of each batch how many pictures it had.
        Returns:
            Mean study loss over the pictures, each as it was studied; None for a learner without a loss.
        Raises:
            Diverged: a loss that is not finite.
        """
        self.exposure = exposure
        order = torch.from_numpy(study_order(len(pictures), self.seed, exposure))
        total: float | None = 0.0
        for number, batch in enumerate(order.split(self.settings.batch_size)):
            # A stream for each batch, so that what it draws does not depend on what was drawn before.
            rng = stream(self.seed, f"study of exposure {exposure}", number)
            loss = self.update(self.settings.augmentation.apply(pictures[batch], rng), rng)
            total = None if loss is None or total is None else total + loss * len(batch)
            if progress is not None:
                progress(len(batch))
        return None if total is None else total / len(pictures)

    def update(self, pixels: Tensor, rng: np.random.Generator) -> float | None:
        """One optimizer step on pictures, which are taken as they are: uint8 (B, 3, H, W).

        Args:
            rng: where the learner's masks and the like come from.
        Returns:
            Mean study loss over the pictures before the step; None for a learner that keeps them without a loss.
        Raises:
            Diverged: a loss that is not finite.
        """
        self.learner.train()
        losses = []
        for part in pixels.split(self.settings.micro_batch_size or len(pixels)):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                loss = self.learner.study_loss(part.to(self.device), rng)
            if loss is None:
                continue
            share = len(part) / len(pixels)
            (share * loss).backward()
            losses.append(share * loss.item())
        if not losses:
            return None
        mean = math.fsum(losses)
        if not math.isfinite(mean):
            raise Diverged(
                f"the study loss of {type(self.learner).__name__} is {mean} at exposure {self.exposure}, update "
                f"{self.updates + 1}, learning rate {self.settings.lr:g}",
                "study with a smaller --study.lr",
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        self.learner.after_update()
        return mean

    @torch.no_grad()  # and not inference mode: what a learner caches here may meet gradients in study
    def scores(self, pixels: Tensor, batch_size: int, names: Sequence[str] | None = None) -> np.ndarray:
        """How unfamiliar pictures are now, lower for more familiar, in 32 bits whatever the precision of study.

        Args:
            pixels: uint8 (N, 3, H, W).
            batch_size: pictures that are scored together.
            names: (N,) how messages call the pictures; None: by their numbers.
        Returns:
            (N,) float64.
        Raises:
            Diverged: a score that is not finite.
        """
        self.learner.eval()
        found = [self.learner.scores(part.to(self.device)) for part in pixels.split(batch_size)]
        scores = torch.cat(found).to(torch.float64).cpu().numpy()
        if scores.shape != (len(pixels),):
            raise ValueError(f"{type(self.learner).__name__} gave scores {scores.shape} of {len(pixels)} pictures")
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            picture = names[bad[0]] if names is not None else f"picture {bad[0]}"
            raise Diverged(
                f"{len(bad)} of {len(scores)} scores of {type(self.learner).__name__} are not finite after exposure "
                f"{self.exposure} ({self.updates} updates), first {scores[bad[0]]} of {picture}",
                "study with a smaller --study.lr; before study, check the learner's weights",
            )
        return scores

    def state_dict(self) -> dict[str, Any]:
        """All that study has changed, for `load_state_dict` of a student of the same learner after `Learner.begin`."""
        return {
            "learner": self.learner.state_dict(),
            "optimizer": self._optimizer.state_dict() if self._optimizer else None,
            "updates": self.updates,
            "exposure": self.exposure,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another student was."""
        self.learner.load_state_dict(state["learner"])
        if self._optimizer:
            self._optimizer.load_state_dict(state["optimizer"])
        self.updates, self.exposure = state["updates"], state["exposure"]


def _optimizer(trained: list[torch.nn.Parameter], settings: StudySettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(trained, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
