"""Intervals for means of per-image scores: the percentile bootstrap over images, for one model and for a pair.

The resampling unit is the image: the estimand is the mean score over the population that the test images were drawn
from (Efron and Tibshirani 1993, chapter 13). Resampling is not stratified by class. Stratified resampling draws
no variation at all from a class with one test image and only (n - 1) / n of it from a class with n, so its intervals
are too short where classes are small; without strata they are at worst a little long on a test set that was balanced
by design. The interval speaks of test images only: not of other seeds of pretraining or of the probe.

A resample of n images with replacement, seen through its mean, is a multinomial draw of how often each distinct
score occurs. Drawing those counts gives exactly the bootstrap distribution and costs nothing where scores take
few values (0 and 1 for accuracy, -1, 0 and 1 for a difference), whatever the number of images.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

_DRAWS_AT_ONCE = 1 << 22  # counts held at a time: 32 MiB


@dataclass(frozen=True)
class Interval:
    """A mean and its interval, in the unit of the scores.

    Attributes:
        estimate: mean over the `n` images.
        low, high: ends of the central interval of `confidence_level`.
        n: number of images.
    """

    estimate: float
    low: float
    high: float
    n: int
    confidence_level: float = 0.95

    def percent(self) -> "Interval":
        """The same in percent, for scores that are fractions."""
        return Interval(100 * self.estimate, 100 * self.low, 100 * self.high, self.n, self.confidence_level)


def bootstrap_mean(
    scores: np.ndarray, *, rng: np.random.Generator, confidence_level: float = 0.95, n_resamples: int = 9999
) -> Interval:
    """Mean of per-image scores with its percentile bootstrap interval.

    Where every score is 0, or every score is 1, each resample repeats that and the bootstrap would claim certainty;
    the exact binomial interval (Clopper and Pearson 1934) is given instead, which then ends at the estimate.

    Args:
        scores: (n,) bool or float, one score an image; n at least 1.
        rng: where the resamples come from.
        confidence_level: in (0, 1).
        n_resamples: number of resamples; the ends of a 95 % interval are steady to about 1 % of its length at 9999.
    Raises:
        ValueError: no scores, a score that is not finite, or a confidence level outside (0, 1).

    >>> bootstrap_mean(np.arange(100) < 30, rng=np.random.default_rng(0))
    Interval(estimate=0.3, low=0.21, high=0.39, n=100, confidence_level=0.95)
    """
    scores = _checked(scores, confidence_level)
    if np.ptp(scores) == 0 and scores[0] in (0.0, 1.0):
        exact = stats.binomtest(int(scores.sum()), scores.size).proportion_ci(confidence_level, "exact")
        return Interval(float(scores[0]), float(exact.low), float(exact.high), scores.size, confidence_level)
    return _percentile_interval(scores, rng, confidence_level, n_resamples)


def bootstrap_paired_difference(
    scores: np.ndarray,
    baseline: np.ndarray,
    *,
    rng: np.random.Generator,
    confidence_level: float = 0.95,
    n_resamples: int = 9999,
) -> Interval:
    """Mean of `scores - baseline`, two models on the same images, with its percentile bootstrap interval.

    Images are resampled as pairs, so what is hard or easy for both models alike does not widen the interval. Where
    all differences are equal (two models that are right on the same images) the interval has no width.

    Args:
        scores, baseline: (n,) bool or float; entry i of both is about image i.
        rng, confidence_level, n_resamples: as for `bootstrap_mean`.
    Raises:
        ValueError: as `bootstrap_mean`, or shapes that differ.
    """
    if np.shape(scores) != np.shape(baseline):
        raise ValueError(
            f"paired scores must be about the same images, got {np.shape(scores)} and {np.shape(baseline)}"
        )
    difference = _checked(scores, confidence_level) - _checked(baseline, confidence_level)
    return _percentile_interval(difference, rng, confidence_level, n_resamples)


def bootstrap_mean_over_draws(
    scores: np.ndarray, *, rng: np.random.Generator, confidence_level: float = 0.95, n_resamples: int = 9999
) -> Interval:
    """Mean of scores of the same images under several draws, with an interval over both.

    A draw is whatever was repeated: a few-shot list, a seed. Draws and images are crossed (every draw is scored on
    every image), so both are resampled, independently (Owen 2007, "The pigeonhole bootstrap"). The interval is for
    another draw's mean on other images, as far as the draws at hand can say it: of D draws the bootstrap sees
    (D - 1) / D of their variance, and with one draw nothing of it.

    Args:
        scores: (D, n) bool or float, draw by image; differences of two models under the same draws serve as well.
        rng, confidence_level, n_resamples: as for `bootstrap_mean`.
    Raises:
        ValueError: as `bootstrap_mean`, or not a matrix.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2:
        raise ValueError(f"scores must be draws by images, got shape {scores.shape}")
    _checked(scores.ravel(), confidence_level)
    draws, n = scores.shape
    if draws == 1 or (np.ptp(scores) == 0 and scores[0, 0] in (0.0, 1.0)):
        return bootstrap_mean(scores[0], rng=rng, confidence_level=confidence_level, n_resamples=n_resamples)
    # Images with the same scores under all draws are one and the same to the mean: only how many there are matters.
    patterns, counts = np.unique(scores, axis=1, return_counts=True)  # (D, P), (P,)
    means = []
    rows = max(1, _DRAWS_AT_ONCE // len(counts))
    for start in range(0, n_resamples, rows):
        size = min(rows, n_resamples - start)
        images = rng.multinomial(n, counts / n, size=size) / n  # (size, P)
        weights = rng.multinomial(draws, np.full(draws, 1 / draws), size=size) / draws  # (size, D)
        means.append(((weights @ patterns) * images).sum(axis=1))
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(scores.mean()), float(low), float(high), n, confidence_level)


def _checked(scores: np.ndarray, confidence_level: float) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"scores must be one number an image, at least one; got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite")
    if not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level must be in (0, 1), got {confidence_level}")
    return scores


def _percentile_interval(
    scores: np.ndarray, rng: np.random.Generator, confidence_level: float, n_resamples: int
) -> Interval:
    values, counts = np.unique(scores, return_counts=True)
    shares = counts / scores.size
    rows = max(1, _DRAWS_AT_ONCE // values.size)
    means = np.concatenate(
        [
            rng.multinomial(scores.size, shares, size=min(rows, n_resamples - start)) @ values / scores.size
            for start in range(0, n_resamples, rows)
        ]
    )
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(scores.mean()), float(low), float(high), scores.size, confidence_level)
