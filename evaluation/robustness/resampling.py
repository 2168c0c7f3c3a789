"""Intervals for numbers that are no means: ratios of counts (shape bias), agreement beyond chance (kappa).

The percentile bootstrap over pictures of `headcam.statistics`, for any smooth function of the means of several columns.
A resample of n pictures with replacement is a multinomial draw of how often each distinct row occurs; rows of counts
take few distinct values, so that a resample costs the same for a hundred pictures and for a million.
"""

from collections.abc import Callable

import numpy as np

from headcam.statistics import Interval

_CONFIDENCE_LEVEL = 0.95
_RESAMPLES = 9999
_DRAWS_AT_ONCE = 1 << 22  # counts held at a time: 32 MiB


def bootstrap_of_means(
    columns: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, rng: np.random.Generator
) -> Interval | None:
    """A function of the means of some columns, with its 95 % percentile bootstrap interval over pictures.

    Resamples in which it is not defined (a ratio over no cases) are left out: the interval is one given that it is.

    Args:
        columns: (n, c) bool or float, a row a picture.
        statistic: means (r, c) float64 to values (r,), not finite where it is not defined.
        rng: where the resamples come from.
    Returns:
        The interval; None where the value itself is not defined.
    """
    columns = np.asarray(columns, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(statistic(columns.mean(axis=0, keepdims=True))[0]) if len(columns) else np.nan
        if not np.isfinite(estimate):
            return None
        values, counts = np.unique(columns, axis=0, return_counts=True)
        shares = counts / len(columns)
        rows = max(1, _DRAWS_AT_ONCE // len(values))
        found = np.concatenate(
            [
                statistic(
                    rng.multinomial(len(columns), shares, size=min(rows, _RESAMPLES - start)) @ values / len(columns)
                )
                for start in range(0, _RESAMPLES, rows)
            ]
        )
    tail = (1 - _CONFIDENCE_LEVEL) / 2
    low, high = np.quantile(found[np.isfinite(found)], [tail, 1 - tail])
    return Interval(estimate, float(low), float(high), len(columns), _CONFIDENCE_LEVEL)
