"""What all quantizers share: latents to codes and back, by one contract.

A quantizer takes the latents of an encoder, (B, D) at every place of a grid, to one of K codes at every place, and says
which (`indices`), what the decoder gets instead of the latents (`quantized`), and what training should add to the loss
(`loss`). The rounding has no gradient; `straight_through` copies that of the decoder's input to the encoder's output
(Bengio et al. 2013; van den Oord et al. 2017, section 3.2). All of it is computed in float32, also under autocast:
codes are compared by differences that 16 bits do not show.

`forward` draws no random number of its own (what a scheme needs comes in as `noise`, keyed by sample) and changes no
state beyond gathering statistics in training; what a codebook learns outside of the optimizer (moving averages, codes
that are given a new place) happens in `after_step`, which the objective calls after every optimizer step. In eval mode
nothing changes. So steps that are skipped, gradients that are accumulated, and runs that are resumed change no result.

Shapes: B batch, D width of latents, `grid` (h, w) or (t, h, w), K codes.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantizer makes of latents.

    Attributes:
        quantized: (B, D, *grid) float32, exactly what `dequantize(indices)` gives; its gradient is that of the latents.
        indices: (B, *grid) int64, in [0, K).
        loss: scalar float32, what the quantizer adds to the loss; 0 where it adds nothing.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """Base of the quantizers; a subclass is one scheme of one paper.

    Args:
        codebook_size: K.
        dim: D of the latents that come in and of what goes out.
        options: the subclass's further arguments as they were given, for the card.

    Attributes:
        arguments: with which the class makes this quantizer again.
        draws: whether training needs `noise`.
    """

    draws = False

    def __init__(self, codebook_size: int, dim: int, **options: Any):
        super().__init__()
        self.codebook_size, self.dim = codebook_size, dim
        self.arguments = {"codebook_size": codebook_size, "dim": dim, **options}

    def forward(self, latents: Tensor, noise: Tensor | None = None) -> Quantized:
        """Codes of latents.

        Args:
            latents: (B, D, *grid) of any float type.
            noise: (B,) uniform in [0, 1), the keys of what is drawn for each sample in training; schemes that draw
                nothing do not look at it, and in eval mode nothing is drawn.
        """
        raise NotImplementedError

    def dequantize(self, indices: Tensor) -> Tensor:
        """The latents that codes stand for: (B, *grid) int64 -> (B, D, *grid) float32."""
        raise NotImplementedError

    def set_step(self, step: int) -> None:
        """Called before the forward pass of every optimizer step, with its number, for what follows a schedule."""

    def after_step(self, step: int, skip: Tensor | float = 0.0) -> None:
        """Called once after every optimizer step, with its number.

        Args:
            step: number of the step, from 0.
            skip: 1 where the step was not taken, since a loss or gradient was no number (a tensor that a GPU is not
                waited for): then nothing may change.
        """


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, quantized: Tensor) -> Tensor:
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` bit for bit, with the gradient of `latents`: two of one shape.

    The usual `latents + (quantized - latents).detach()` is off by a rounding, so that a decoder would be trained on
    other numbers than the codes stand for.
    """
    return _StraightThrough.apply(latents, quantized)


def places_last(latents: Tensor) -> Tensor:
    """(B, D, *grid) -> (B * places, D), float32."""
    return latents.float().movedim(1, -1).reshape(-1, latents.shape[1])


def places_back(rows: Tensor, like: Tensor) -> Tensor:
    """(B * places, D) -> (B, D, *grid), the inverse of `places_last` for the grid of `like`."""
    grid = like.shape[2:]
    return rows.view(like.shape[0], *grid, rows.shape[-1]).movedim(-1, 1)
