"""How many codes are in use: the figures of a codebook's health, and the line that says when it has collapsed.

A codebook collapses when the encoder comes to use few codes, and those learn to serve for all: the loss falls, the
tokens say little. It shows in the share of codes that occur, and in the perplexity: the number of codes that, used
evenly, would be as unpredictable as those of the tokens (exp of their entropy; van den Oord et al. 2017).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_LEAST_USED = 0.25  # of the codes that even use would show; healthy codebooks use nearly all
_LEAST_PERPLEXITY = 0.05  # of the same; pictures are no even mixture, so healthy ones are well below 1
_REMEDY = (
    "start again with model.quantizer=fsq, which has no codebook that could collapse, or give vq and ema "
    "k-means (kmeans), codes of few dimensions (code_dim 8, l2_normalize) and revival (threshold_ema_dead_code 0.1)"
)


class CodeCounts:
    """How often each code occurred.

    Args:
        codebook_size: K.
        device: where to count; indices may come from another.

    Attributes:
        counts: (K,) int64; may be summed over processes in place.
    """

    def __init__(self, codebook_size: int, device: str | torch.device = "cpu"):
        self.counts = torch.zeros(codebook_size, dtype=torch.int64, device=device)

    @property
    def tokens(self) -> int:
        """Codes that were counted in all."""
        return int(self.counts.sum())

    def add(self, indices: Tensor) -> None:
        """Count codes: int64 of any shape, in [0, K)."""
        indices = indices.flatten().to(self.counts.device)
        self.counts.scatter_add_(0, indices, torch.ones_like(indices))

    def figures(self) -> dict[str, float]:
        """`usage`: share of codes that occurred; `perplexity`: exp of their entropy, in [1, K]; `dead`: those that
        never occurred. All zero but `dead` where nothing was counted."""
        share = self.counts.double() / max(1, self.tokens)
        used = int((self.counts > 0).sum())
        perplexity = float(torch.special.entr(share).sum().exp()) if used else 0.0
        return {"usage": used / len(share), "perplexity": perplexity, "dead": float(len(share) - used)}


def collapse_line(figures: Mapping[str, float], codebook_size: int, tokens: int) -> str | None:
    """The alarm's one line with its remedy, where the figures of so many tokens show a collapse; else None.

    Few tokens cannot show many codes: what was used is held against what the same number of tokens, spread evenly over
    all codes, would show, K (1 - exp(-tokens / K)).
    """
    possible = codebook_size * -math.expm1(-tokens / codebook_size)
    used = round(figures["usage"] * codebook_size)
    if used >= _LEAST_USED * possible and figures["perplexity"] >= _LEAST_PERPLEXITY * possible:
        return None  # also where nothing was counted
    return (
        f"{used} of {codebook_size} codes in use by {tokens} tokens, perplexity {figures['perplexity']:.1f}: "
        f"the codebook is collapsing. Fix: {_REMEDY}"
    )
