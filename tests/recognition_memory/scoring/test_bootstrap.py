"""The crossed bootstrap against all resamples there are, and against a plain one in loops."""

import itertools

import numpy as np
import pytest

from headcam.recognition_memory.scoring.bootstrap import crossed_bootstrap


def test_the_draws_have_the_distribution_of_all_resamples():
    """Two sets of two seeds, three pairs: 27 x 4 x 4 equally likely resamples."""
    right = np.random.default_rng(0).integers(0, 3, (2, 2, 1, 3)) / 2
    means = [
        np.mean([right[s, k, 0, p] for s in (0, 1) for k in seeds[s] for p in pairs])
        for pairs in itertools.product(range(3), repeat=3)
        for seeds in itertools.product(itertools.product(range(2), repeat=2), repeat=2)
    ]
    draws = crossed_bootstrap({"a": right}, rng=np.random.default_rng(1), n_resamples=40_000)["a"].draws[:, 0]
    for level in np.unique(np.round(means, 9)):
        assert np.mean(draws <= level + 1e-6) == pytest.approx(np.mean(np.array(means) <= level + 1e-6), abs=0.01)


def test_pairs_are_drawn_once_for_all_runs():
    """Mirror-image sets: a picture that wins in both gives 1 and 0, always half, however pairs are drawn."""
    first = np.random.default_rng(0).integers(0, 2, (1, 2, 1, 40)).astype(float)
    first[:, 1] = first[:, 0]
    result = crossed_bootstrap({"a": np.concatenate([first, 1 - first])}, rng=np.random.default_rng(0))["a"]
    assert result.mean[0] == result.low[0] == result.high[0] == 0.5
    assert result.set_high[0, 0] - result.set_low[0, 0] > 0.2  # though each set alone is quite uncertain


def test_runs_widen_the_interval():
    rng = np.random.default_rng(0)
    ability = np.array([0.55, 0.65, 0.75, 0.85])[None, :, None, None]
    right = (rng.random((1, 4, 1, 400)) < ability).astype(float)
    result = crossed_bootstrap({"a": right}, rng=rng)["a"]
    alone = crossed_bootstrap({"a": right.mean(axis=1, keepdims=True)}, rng=rng)["a"]
    assert result.high[0] - result.low[0] > 2 * (alone.high[0] - alone.low[0])


def test_pooled_holds_all_pairs_alike():
    rng = np.random.default_rng(0)
    values = {"few": np.ones((2, 2, 1, 10)), "many": np.zeros((2, 2, 1, 30))}
    result = crossed_bootstrap(values, rng=rng)
    assert result["pooled"].mean[0] == 0.25
    assert result["pooled"].n_pairs == 40
    # Conditions keep their numbers of pairs, so nothing varies here.
    assert result["pooled"].low[0] == result["pooled"].high[0] == 0.25


def test_sets_weigh_the_same_whatever_the_number_of_their_runs():
    values = np.zeros((2, 3, 1, 20))
    values[0] = 1.0
    values[1, 1:] = np.nan
    result = crossed_bootstrap({"a": values}, rng=np.random.default_rng(0))["a"]
    assert result.mean[0] == 0.5
    assert result.set_mean[:, 0].tolist() == [1, 0]


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 0.8316, 1.0), (0.0, 0.0, 0.1684)])
def test_all_right_is_no_certainty(value, low, high):
    """Clopper-Pearson of 20 out of 20: 0.025 ** (1 / 20)."""
    result = crossed_bootstrap({"a": np.full((2, 2, 1, 20), value)}, rng=np.random.default_rng(0), n_resamples=200)["a"]
    assert result.mean[0] == value
    assert (result.low[0], result.high[0]) == pytest.approx((low, high), abs=1e-4)
    assert (result.set_low[0, 0], result.set_high[1, 0]) == pytest.approx((low, high), abs=1e-4)


def test_draws_follow_from_the_generator_alone():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 2, 2, 3, 25)).astype(float)
    first = crossed_bootstrap({"a": a, "b": b}, rng=np.random.default_rng(7), n_resamples=300)
    again = crossed_bootstrap({"b": b, "a": a}, rng=np.random.default_rng(7), n_resamples=300)
    other = crossed_bootstrap({"a": a, "b": b}, rng=np.random.default_rng(8), n_resamples=300)
    for condition in ("a", "b", "pooled"):
        assert (first[condition].draws == again[condition].draws).all()
        assert (first[condition].draws != other[condition].draws).any()
    # One exposure alone meets the same resamples as among others.
    alone = crossed_bootstrap({"a": a[:, :, [1]], "b": b[:, :, [1]]}, rng=np.random.default_rng(7), n_resamples=300)
    assert (alone["pooled"].draws[:, 0] == first["pooled"].draws[:, 1]).all()
