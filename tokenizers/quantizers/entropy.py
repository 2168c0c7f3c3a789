"""The entropy of how codes are used, for codes that are a digit in each of several dimensions.

Given a latent, its digits are independent; so the mean distribution over all K codes is a product of two thin matrices,
that of the first digits and that of the others, and the M x K matrix of probabilities is never made: 2^18 codes cost as
much as 2 x 512.
"""

from collections.abc import Sequence

from torch import Tensor

from headcam.tokenizers.quantizers.projected import mean_everywhere

TINY = 1e-20  # below any probability that matters; keeps the logarithm finite


def entropy_of_mean(digits: Sequence[Tensor], everywhere: bool) -> Tensor:
    """Entropy, in nats, of the mean over latents of their distributions over codes; a scalar.

    Args:
        digits: of each dimension the probabilities of its levels, (M, L).
        everywhere: mean over the latents of all processes.
    """
    first = (len(digits) + 1) // 2
    rows = digits[0].new_ones(len(digits[0]), 1)
    mean = _joint(rows, digits[:first]).t() @ _joint(rows, digits[first:]) / len(rows)
    if everywhere:
        mean = mean_everywhere(mean)
    return -(mean * mean.clamp(min=TINY).log()).sum()


def _joint(out: Tensor, digits: Sequence[Tensor]) -> Tensor:
    """Probabilities of all settings of independent digits: (M, 1) and of each (M, L) -> (M, product of L)."""
    for p in digits:
        out = (out[:, :, None] * p[:, None]).flatten(1)
    return out
