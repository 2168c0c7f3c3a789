"""The statistics before a linear layer, against NumPy on the whole table."""

import numpy as np
import pytest
import torch

from headcam.evaluation.heads.normalisation import Moments, Normalisation
from headcam.evaluation.protocols import LinearProbe

WHITENING = LinearProbe(normalisation="whitening", eps=1e-9)


def table(n=9000, dim=6):
    rng = np.random.default_rng(0)
    return (5 + rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim))).astype(np.float16)


@pytest.mark.parametrize("products", [False, True])
def test_moments_are_those_of_the_rows_named(products):
    x, rows = table(), np.arange(0, 9000, 2)
    found = Moments.of(x, rows, products=products)
    exact = x[rows].astype(np.float64)
    scatter = np.cov(exact.T, bias=True) * len(rows)
    assert found.n == 4500 and found.mean.numpy() == pytest.approx(exact.mean(0), rel=1e-13)
    assert found.scatter.numpy() == pytest.approx(scatter if products else scatter.diagonal(), rel=1e-11)


@pytest.mark.parametrize("products", [False, True])
def test_moments_of_two_parts_are_those_of_the_whole(products):
    x, aside = table(), np.arange(9000) % 7 == 0
    x[aside] += 3
    parts = [Moments.of(x, np.flatnonzero(mask), products=products) for mask in (aside, ~aside)]
    whole = Moments.of(x, np.arange(9000), products=products)
    assert torch.allclose(parts[0].merged(parts[1]).scatter, whole.scatter, rtol=1e-11)
    assert torch.allclose(parts[0].merged(parts[1]).mean, whole.mean, rtol=1e-13)


def test_batchnorm_is_that_of_torch():
    x = table()
    norm = Normalisation.of(Moments.of(x, np.arange(9000), products=False), LinearProbe(eps=0.01))
    layer = torch.nn.BatchNorm1d(6, affine=False, eps=0.01, momentum=None).double()
    layer(torch.from_numpy(x).double())
    layer.running_var *= 8999 / 9000  # torch keeps the unbiased variance
    ours = norm(x)
    assert torch.allclose(ours[:, :-1].double(), layer.eval()(torch.from_numpy(x).double()), atol=1e-5)
    assert (ours[:, -1] == 1).all()


def test_whitened_features_are_uncorrelated_and_as_near_as_can_be():
    x = table()
    norm = Normalisation.of(Moments.of(x, np.arange(9000), products=True), WHITENING)
    y = norm(x)[:, :-1].double()
    assert torch.allclose(torch.cov(y.T, correction=0), torch.eye(6, dtype=torch.float64), atol=1e-5)
    assert torch.equal(norm.scale, norm.scale.T)  # the symmetric form: no sign or turn is left to chance


def test_directions_without_variance_stay_at_zero():
    x = table()
    doubled = np.concatenate([x, x[:, :2]], axis=1)  # two directions in which nothing varies
    norm = Normalisation.of(Moments.of(doubled, np.arange(9000), products=True), WHITENING)
    y = norm(doubled)[:, :-1].double()
    spectrum = torch.linalg.eigvalsh(torch.cov(y.T, correction=0))
    assert spectrum[:2].abs().max() < 1e-9 and torch.allclose(spectrum[2:], torch.ones(6).double(), atol=1e-4)


def test_eps_is_a_share_of_the_mean_eigenvalue():
    x = np.random.default_rng(0).normal(size=(5000, 2)) * [1.0, 0.01]
    protocol = LinearProbe(normalisation="whitening", eps=0.5)
    for unit in (1.0, 1000.0):  # so that the unit of the features does not matter
        norm = Normalisation.of(Moments.of(unit * x, np.arange(5000), products=True), protocol)
        variance = norm(unit * x)[:, :-1].var(dim=0)
        assert variance.tolist() == pytest.approx([1 / 1.25, 1e-4 / 0.25], rel=0.08)
