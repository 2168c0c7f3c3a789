"""Distances of sets of features: closed forms, an independent statement, coverage of the interval."""

import math

import numpy as np
import pytest
from scipy import linalg

from headcam.errors import InputError
from headcam.tokenizers.fidelity import distances
from headcam.tokenizers.fidelity.distances import frechet_distance, gaussian_distance, kernel_distance


def test_gaussians_that_are_shifted_or_wider():
    mean, cov = np.array([1.0, -2.0, 0.5]), np.diag([1.0, 4.0, 9.0])
    assert gaussian_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-12)
    assert gaussian_distance(mean, cov, mean + [3, 4, 0], cov) == pytest.approx(25)
    assert gaussian_distance(mean, cov, mean, 4 * cov) == pytest.approx(1 + 4 + 9)  # sum of (2 s - s)^2


def test_gaussian_distance_is_that_of_the_matrix_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(50, 6)) + 0.3
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a @ cov_b).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert gaussian_distance(a.mean(0), cov_a, b.mean(0), cov_b) == pytest.approx(wanted, rel=1e-9)
    thin = np.cov(a[:4].T)  # singular: fewer pictures than features
    assert np.isfinite(gaussian_distance(a.mean(0), thin, b.mean(0), cov_b))


def test_fid_needs_ten_thousand_pictures_and_finds_a_shift():
    rng = np.random.default_rng(1)
    with pytest.raises(InputError, match="FID of 9,999 pictures would mostly measure how few they are"):
        frechet_distance(np.zeros((9_999, 2)), np.zeros((20_000, 2)))
    x = rng.normal(size=(10_000, 4)).astype(np.float32)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 0.5) == pytest.approx(1.0, rel=1e-4)


def test_kid_is_the_mean_over_pairs_of_different_items():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(7, 5)), rng.normal(size=(7, 5)) + 1

    def k(a, b):
        return (a @ b / 5 + 1) ** 3

    def statistic(left):
        pairs = [(i, j) for i in left for j in left if i != j]
        return np.mean([k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs])

    found = kernel_distance(x, y)
    assert found.estimate == pytest.approx(statistic(range(7)), rel=1e-12) and found.n == 7
    without = np.array([statistic([j for j in range(7) if j != i]) for i in range(7)])
    error = math.sqrt(6 / 7 * ((without - without.mean()) ** 2).sum())
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * error, rel=1e-9)


def test_kid_in_blocks_is_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 25, 3))
    whole = kernel_distance(x, y)
    monkeypatch.setattr(distances, "_BLOCK", 4)
    assert kernel_distance(x, y).estimate == pytest.approx(whole.estimate, rel=1e-12)
    assert kernel_distance(x, x).estimate == 0
    with pytest.raises(ValueError, match="alike in shape"):
        kernel_distance(x, y[:20])


def test_kid_is_unbiased_for_pairs_and_its_interval_covers():
    """In one dimension the kernel's expectation is one of moments: E(xy + 1)^3 with x and y independent."""
    mean, sd, shift, scale = 0.5, 0.4, 0.3, 0.8  # y = scale * x + shift, so every y comes with its own x

    def expected(a, b):
        return a[2] * b[2] + 3 * a[1] * b[1] + 3 * a[0] * b[0] + 1

    def moments(mean, sd):
        return mean, mean**2 + sd**2, mean**3 + 3 * mean * sd**2

    p, q = moments(mean, sd), moments(scale * mean + shift, scale * sd)
    truth = expected(p, p) + expected(q, q) - 2 * expected(p, q)
    rng, found = np.random.default_rng(4), []
    for _ in range(300):
        x = rng.normal(mean, sd, size=(100, 1))
        found.append(kernel_distance(x, scale * x + shift))
    estimates = np.array([f.estimate for f in found])
    assert abs(estimates.mean() - truth) < 4 * estimates.std() / 300**0.5, "the mean over experiments is the truth"
    coverage = np.mean([f.low <= truth <= f.high for f in found])
    assert 0.9 <= coverage <= 0.985
