"""The crossed bootstrap: intervals that speak of other pairs and of other runs at once.

All runs of a model are tested on the same pairs, so decisions are crossed, not nested: a pair that is easy is easy in
every run. A resample draws pairs once for all runs and both study sets, and seeds within each set (two runs of a pair
of role-swapped sets hold the same pictures: drawn pair by pair in each run, the sets would no longer mirror each other
and intervals of `raw` would be twice too wide). Study sets are not drawn: there are two, and always the same.
This is the pigeonhole bootstrap (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1), percentile
intervals. With two seeds the part that is due to runs is under-estimated: the variance between resampled runs is then
half of that between runs, on average.

Where all decisions are right, or all are wrong, every resample repeats that and would claim certainty; the exact
binomial interval over pairs (Clopper and Pearson 1934) is given instead, as in `headcam.statistics`. Where all
decisions are ties the interval has no width: nothing was remembered in any of them.

Resamples are held as counts of how often each pair and each run is drawn, so that a mean is a matrix product, and one
set of draws serves all exposures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from headcam.recognition_memory.scoring.table import POOLED

_COUNTS_AT_ONCE = 1 << 22  # counts of pairs held at a time: 16 MiB


@dataclass(frozen=True)
class Bootstrapped:
    """A mean by exposure, with its interval, and the same for each study set alone.

    Attributes:
        mean, low, high: (exposures,), over study sets, each with the same weight.
        set_mean, set_low, set_high: (sets, exposures).
        draws: (n_resamples, exposures), the resampled means.
        n_pairs: pairs in each run.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    set_mean: np.ndarray
    set_low: np.ndarray
    set_high: np.ndarray
    draws: np.ndarray
    n_pairs: int


def crossed_bootstrap(
    decisions: Mapping[str, np.ndarray],
    *,
    rng: np.random.Generator,
    n_resamples: int = 9999,
    confidence_level: float = 0.95,
    joint_seeds: bool = False,
) -> dict[str, Bootstrapped]:
    """Mean decision by condition, and over all pairs of all conditions (`pooled`), with crossed bootstrap intervals.

    Pairs are drawn within their condition, which keeps its number of pairs. Equal shapes and equal `rng` give equal
    draws, so that rules and models are compared on the same resamples.

    Args:
        decisions: condition -> (sets, seeds, exposures, pairs), numbers in [0, 1]; a run that a set does not have is
            NaN throughout, in all conditions alike.
        rng: where the resamples come from.
        n_resamples: number of resamples.
        confidence_level: in (0, 1), central.
        joint_seeds: draw a seed for all sets together: where a decision is about a run of each set (`role_swapped`).
    """
    sizes = {condition: values.shape[-1] for condition, values in decisions.items()}
    runs = ~np.isnan(next(iter(decisions.values()))[:, :, 0, 0])  # (sets, seeds)
    known = {condition: np.nan_to_num(values) for condition, values in decisions.items()}
    single = {condition: values.astype(np.float32) for condition, values in known.items()}

    sums = {condition: [] for condition in decisions}  # over pairs and runs of a set: (resamples, sets, exposures)
    rows = max(1, _COUNTS_AT_ONCE // sum(sizes.values()))
    for start in range(0, n_resamples, rows):
        n = min(rows, n_resamples - start)
        # In alphabetical order: the order of conditions in a table must not change its intervals.
        pairs = {condition: _counts(rng, n, sizes[condition]) for condition in sorted(sizes)}
        seeds = _draw_seeds(rng, n, runs, joint_seeds)
        for condition, values in single.items():
            sums[condition].append(_set_sums(values, pairs[condition], seeds, runs))
    drawn = {condition: np.concatenate(parts) for condition, parts in sums.items()}
    total = {condition: values.sum(axis=(1, 3)) for condition, values in known.items()}  # (sets, exposures)
    result = {}
    for condition in (*decisions, POOLED):
        parts = tuple(decisions) if condition == POOLED else (condition,)
        n_pairs = sum(sizes[part] for part in parts)
        n = runs.sum(axis=1)[:, None] * n_pairs  # decisions of each set
        means, draws = sum(total[part] for part in parts) / n, sum(drawn[part] for part in parts) / n
        low, high = _interval(means.mean(axis=0), draws.mean(axis=1), n_pairs, confidence_level)
        by_set = (means, *_interval(means, draws, n_pairs, confidence_level))
        result[condition] = Bootstrapped(means.mean(axis=0), low, high, *by_set, draws.mean(axis=1), n_pairs)
    return result


def _counts(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """(n, size) float32: how often each of `size` things is drawn when `size` are drawn with replacement."""
    picked = rng.integers(size, size=(n, size)) + size * np.arange(n)[:, None]
    return np.bincount(picked.ravel(), minlength=n * size).reshape(n, size).astype(np.float32)


def _draw_seeds(rng: np.random.Generator, n: int, runs: np.ndarray, joint: bool) -> np.ndarray:
    """(n, sets, seeds) float32: how often each run is drawn within its set."""
    counts = np.zeros((n, *runs.shape), np.float32)
    if joint:  # the runs are then the same in all sets
        counts[:, :, runs[0]] = _counts(rng, n, runs[0].sum())[:, None]
        return counts
    for s, present in enumerate(runs):
        counts[:, s, present] = _counts(rng, n, present.sum())
    return counts


def _set_sums(values: np.ndarray, pairs: np.ndarray, seeds: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Resampled sums of (sets, seeds, exposures, pairs) over pairs and runs: (n, sets, exposures) float64.

    Sums of decisions are multiples of 1/2 far below 2**23, so they are exact in float32.
    """
    sums = np.zeros((len(pairs), values.shape[0], values.shape[2]), np.float32)
    for s, k in np.argwhere(runs):
        sums[:, s] += seeds[:, s, k, None] * (pairs @ values[s, k].T)
    return sums.astype(np.float64)


def _interval(
    means: np.ndarray, draws: np.ndarray, n_pairs: int, confidence_level: float
) -> tuple[np.ndarray, np.ndarray]:
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    exact = tail ** (1 / n_pairs)  # Clopper and Pearson's limit for all of n_pairs right; 1 less it for all wrong
    return np.where(means == 1, exact, low), np.where(means == 0, 1 - exact, high)
