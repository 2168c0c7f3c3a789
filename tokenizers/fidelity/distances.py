"""How far two sets of pictures are apart as sets: Frechet and kernel distances between their features.

Both compare the distribution of features of originals with that of reconstructions (or samples). The Frechet distance
(FID) fits a Gaussian to each set; its estimate is biased upwards by an amount that depends on the number of pictures
and on the model, so it is refused below `FID_PICTURES`. The kernel distance (KID) has no bias at any number, which is
why it is what small sets are measured with, and its interval says how much a small set can tell.

Reconstructions come in pairs with their originals. The usual estimate of KID compares all originals with all
reconstructions, the own one included, which is right for independent samples and too small for pairs; here own ones are
left out (Gretton et al. 2012, lemma 6, equation 4), which is unbiased for both.

Numbers of different feature networks, or of one network in different programs, must not be compared: a label goes with
each of them (`headcam.tokenizers.fidelity.features`). Everything here is float64.
"""

import math

import numpy as np

from headcam.errors import InputError
from headcam.statistics import Interval

FID_PICTURES = 10_000
_LEAST = 4  # pictures for a kernel distance with an interval
_BLOCK = 1024  # rows of the kernel matrix held at a time
_NORMAL_95 = 1.959964  # ends of the central 95 % of a normal distribution


def frechet_distance(originals: np.ndarray, others: np.ndarray) -> float:
    """Squared Frechet distance of Gaussians fitted to features (Heusel et al. 2017): FID.

    Args:
        originals, others: (n, D) and (m, D), at least `FID_PICTURES` rows each.
    Raises:
        InputError: fewer pictures.
    """
    n = min(len(originals), len(others))
    if n < FID_PICTURES:
        raise InputError(
            f"FID of {n:,} pictures would mostly measure how few they are",
            f"give at least {FID_PICTURES:,} pictures, or look at KID, which has no such bias",
        )
    a, b = np.asarray(originals, np.float64), np.asarray(others, np.float64)
    return gaussian_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


def gaussian_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    The trace of the root is taken over the symmetric C_a^(1/2) C_b C_a^(1/2), which has the same eigenvalues and stays
    real where a covariance is singular (fewer pictures than features).

    Args:
        mean_a, mean_b: (D,).
        cov_a, cov_b: (D, D), symmetric.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return float(max(distance, 0.0))  # rounding can leave equal sets a little below 0


def kernel_distance(originals: np.ndarray, others: np.ndarray) -> Interval:
    """Squared maximum mean discrepancy with the cubic kernel k(x, y) = (x y / D + 1)^3 (Binkowski et al. 2018): KID.

    With h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i), the estimate is the mean of h over i != j. It can
    be below 0 where the sets hardly differ. The interval is estimate +- 1.96 standard errors, from the jackknife over
    pictures (Arvesen 1969): leave picture i (of both sets) out, for every i.

    Args:
        originals, others: (n, D) each, n at least 4; row i of both may be of one picture.
    Raises:
        ValueError: other shapes.
    """
    x, y = np.asarray(originals, np.float64), np.asarray(others, np.float64)
    n = len(x)
    if x.shape != y.shape or x.ndim != 2 or n < _LEAST:
        raise ValueError(f"KID needs two sets of at least {_LEAST} rows, alike in shape; got {x.shape} and {y.shape}")
    rows = np.empty(n)  # sum of h_ij over j != i
    for start in range(0, n, _BLOCK):
        i = np.arange(start, min(start + _BLOCK, n))
        h = _kernel(x[i], x) + _kernel(y[i], y) - _kernel(x[i], y) - _kernel(y[i], x)
        h[i - start, i] = 0
        rows[i] = h.sum(axis=1)
    total = rows.sum()
    estimate = total / (n * (n - 1))
    left_out = (total - 2 * rows) / ((n - 1) * (n - 2))
    error = math.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2))
    return Interval(float(estimate), float(estimate - _NORMAL_95 * error), float(estimate + _NORMAL_95 * error), n)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
