"""What studies pictures and is tested on them: any model with a score.

    begin(seed, pictures) ─▶ scores (exposure 0) ─▶ study_loss, batch by batch ─▶ scores (exposure 1) ─▶ ...

A learner says two things of a picture: the loss that an optimizer lowers while it is studied, and a score of how
familiar it is, lower for more familiar. Both see the same pixels. What study changes is in its `state_dict`, so that a
run can be stopped after any exposure and go on.

    likelihood of tokens under a GPT                      `headcam.recognition_memory.learners.gpt`
    error of a masked autoencoder, of a tokenizer         `headcam.recognition_memory.learners.reconstruction`
    change of an embedding, similarity to stored ones     `headcam.recognition_memory.learners.embedding`
    upper and lower bounds, a function of yours           `headcam.recognition_memory.learners.bounds`

Shapes: N pictures, B of a batch; pixels are uint8 (N, 3, H, W) RGB.
"""

from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from headcam.errors import InputError

Bound = Literal["", "upper bound", "lower bound"]


class Learner(nn.Module):
    """Base of the learners. A subclass sets `img_size` and `unit`, and implements `study_loss` and `scores`.

    Attributes:
        img_size: (H, W) in pixels of the pictures that it takes.
        unit: of a score, such as "nats per token".
        predictions: how many predictions a score is the mean of, where its unit is nats: scores times predictions are
            nats of a picture; None otherwise.
        card: of the weights that it starts from; None where it starts from random ones, or has none.
        origins: constructor's arguments that name files, and the hash of what was read from there: an experiment goes
            by content, wherever its files lie.
    """

    img_size: tuple[int, int]
    unit: str
    predictions: int | None = None
    card: dict[str, Any] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[str, str] = {}

    def begin(self, seed: int, pictures: Tensor) -> None:
        """Take the state before study, which follows from the constructor's arguments, `seed` and `pictures` alone.

        Args:
            seed: of whatever is random in that state, such as weights that are not pretrained.
            pictures: all different pictures of the manifest, studied and foils of all sets alike, in an order that says
                nothing about their roles: what is fitted before study (a palette) may be fitted on them.
        """

    def study_loss(self, pixels: Tensor, rng: np.random.Generator) -> Tensor | None:
        """The mean loss of a batch, a scalar with its gradient.

        None says that nothing is learned by gradients: what is to be kept of these pictures has been kept.

        Args:
            pixels: uint8 (B, 3, H, W) on the learner's device, each picture once in an exposure.
            rng: where masks and the like come from.
        """
        raise NotImplementedError

    def after_update(self) -> None:
        """Called after every optimizer step, for what follows the weights (a teacher, say)."""

    def scores(self, pixels: Tensor) -> Tensor:
        """How unfamiliar each picture is: uint8 (N, 3, H, W) on the learner's device -> (N,) float64 on the CPU.

        The score of a picture depends on nothing else than its pixels and what has been studied. In eval mode, without
        gradient.
        """
        raise NotImplementedError

    def bound(self, test: str) -> Bound:
        """What the result has to be labelled as, where it is no test of memory; `test` as in the memory table."""
        return ""

    def complete(
        self, pixels: Tensor, rows: int, rng: np.random.Generator, temperature: float = 1.0, top_k: int | None = 128
    ) -> Tensor:
        """Pictures with the rows below the first `rows` made anew from those above: uint8 (N, 3, H, W), on the CPU.

        Raises:
            InputError: a learner that completes nothing.
        """
        raise InputError(
            f"{type(self).__name__} completes no pictures", "leave recall out, or use a GPT or a masked autoencoder"
        )
