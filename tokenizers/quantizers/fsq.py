"""Finite scalar quantization (Mentzer et al. 2023, "Finite scalar quantization: VQ-VAE made simple").

Few dimensions, each bounded and rounded to a small number of levels: a code is a point of that grid, so there is no
codebook to learn and none that could collapse. The paper adds nothing to the loss and leaves it to long training that
all codes come into use; over a short one, on video with many plain patches, few of them do. So the default adds the
divergence of their mean use from even use, a term that LFQ has too (Yu et al. 2023, MAGVIT-v2).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.tokenizers.quantizers.entropy import entropy_of_mean
from headcam.tokenizers.quantizers.projected import ProjectedQuantizer
from headcam.tokenizers.quantizers.quantizer import straight_through
from headcam.tokenizers.quantizers.whitening import Whitening

_EPS = 1e-3  # by which the bounds lie outside of the outermost levels, so that these can be reached
_MOST_LEVELS = 16
_SHARPNESS = 4.0  # of a latent's distribution over levels: at a level, the next one has 2 % of its probability


class FSQ(ProjectedQuantizer):
    """FSQ with a linear layer from the latents to the bounded dimensions, and one back.

    Two levels are refused: the published shift, which makes latents of 0 stand for the upper one, then puts the border
    between the two at -3.8, and the lower one is hardly ever used. LFQ is the scheme for two levels a dimension.

    Args:
        codebook_size: K, the product of the levels.
        dim: D of the latents.
        levels: of each dimension, each at least 3; null: `default_levels(codebook_size)`.
        diversity_weight: of the divergence, in nats, of the mean distribution over codes from even use; a latent's
            distribution falls with the squared distance to the levels (the paper: 0).
        whiten: spread latents over the levels by their running mean and covariance (not in the paper, whose networks
            have to learn it).
    Raises:
        InputError: levels below 3 or whose product is not K, or a K that has no such levels.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        levels: Sequence[int] | None = None,
        diversity_weight: float = 0.03,
        whiten: bool = True,
    ):
        if diversity_weight < 0:
            raise InputError(f"diversity_weight is {diversity_weight}", "give a number from 0 on")
        chosen = default_levels(codebook_size) if levels is None else tuple(levels)
        if any(level < 3 for level in chosen):
            raise InputError(
                f"levels are {list(chosen)}", "give at least 3 each (for two levels, take the quantizer lfq)"
            )
        if math.prod(chosen) != codebook_size:
            raise InputError(
                f"levels {list(chosen)} make {math.prod(chosen)} codes, codebook_size is {codebook_size}",
                f"set codebook_size to {math.prod(chosen)}, or leave the levels out",
            )
        super().__init__(
            codebook_size,
            dim,
            len(chosen),
            levels=None if levels is None else list(chosen),
            diversity_weight=diversity_weight,
            whiten=whiten,
        )
        self.levels, self.diversity_weight = chosen, diversity_weight
        self.whitening = Whitening(len(chosen)) if whiten else None
        level = torch.tensor(chosen)
        half = (level - 1) * (1 + _EPS) / 2
        offset = torch.where(level % 2 == 0, 0.5, 0.0)  # even numbers of levels lie one more below 0 than above
        constants = {
            "_half": half,
            "_offset": offset,
            "_shift": torch.atanh(offset / half),  # 0 stays 0; the published code has tan here, close for many levels
            "_center": level // 2,
            "_levels": level,
            "_basis": torch.cat([level.new_ones(1), level[:-1].cumprod(0)]),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def round(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.whitening is not None:
            rows = self.whitening(rows)
        bounded = torch.tanh(rows + self._shift) * self._half - self._offset
        indices = ((bounded.round().long() + self._center) * self._basis).sum(1)
        return straight_through(bounded / self._center, self.lookup(indices)), indices, self._loss(bounded)

    def _loss(self, bounded: Tensor) -> Tensor:
        """Of the bounded rows (M, d), in units of levels."""
        if not self.diversity_weight:
            return bounded.new_zeros(())
        digits = []
        for x, levels in zip(bounded.unbind(1), self.levels):
            places = torch.arange(levels, device=x.device) - levels // 2
            digits.append((-_SHARPNESS * (x[:, None] - places).square()).softmax(1))
        even = math.log(self.codebook_size)
        return self.diversity_weight * (even - entropy_of_mean(digits, everywhere=self.training))

    def lookup(self, indices: Tensor) -> Tensor:
        digits = indices[:, None] // self._basis % self._levels
        return (digits - self._center).float() / self._center

    def after_step(self, step: int, skip: Tensor | float = 0.0) -> None:
        if self.whitening is not None:
            self.whitening.update(skip)


def default_levels(codebook_size: int) -> tuple[int, ...]:
    """Levels whose product is K: between 4 and 8 where that can be, of as few dimensions as can be, as even as can be.

    For the sizes of the paper's table 1 (240, 1,000, 4,375, 15,360, 64,000) these are its levels.

    Raises:
        InputError: K is no product of numbers from 3 to 16.
    """
    found = _products(codebook_size, _MOST_LEVELS)
    if not found:
        raise InputError(
            f"codebook_size {codebook_size} is no product of levels from 3 to {_MOST_LEVELS}",
            "take another one, such as 1000, 1024, 4375, 8192 or 16384, or give the levels",
        )
    return min(found, key=lambda levels: (sum(not 4 <= x <= 8 for x in levels), len(levels), levels))


@lru_cache
def _products(number: int, most: int) -> tuple[tuple[int, ...], ...]:
    """All ways to write a number as a product of falling factors from `most` down to 3."""
    if number == 1:
        return ((),)
    factors = [x for x in range(min(most, number), 2, -1) if number % x == 0]
    return tuple((x, *rest) for x in factors for rest in _products(number // x, x))
