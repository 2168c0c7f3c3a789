"""Intervals: what they are of, how often they hold the truth, and what they refuse."""

import numpy as np
import pytest

from headcam.randomness import stream
from headcam.statistics import bootstrap_mean, bootstrap_mean_over_draws, bootstrap_paired_difference


def rng(i: int = 0) -> np.random.Generator:
    return stream(0, "test of statistics", i)


def test_equals_resampling_of_indices():
    scores = rng().normal(size=60)
    means = scores[rng(1).integers(0, 60, (20_000, 60))].mean(axis=1)
    interval = bootstrap_mean(scores, rng=rng(2), n_resamples=20_000)
    assert interval.estimate == pytest.approx(scores.mean())
    # each end has a Monte Carlo error of about 1.5 % of the interval's length on either side of the comparison
    length = interval.high - interval.low
    assert [interval.low, interval.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.06 * length)


def test_blocks_of_resamples_make_up_the_asked_number(monkeypatch):
    monkeypatch.setattr("headcam.statistics._DRAWS_AT_ONCE", 700)
    interval = bootstrap_mean(np.arange(100) % 2, rng=rng(), n_resamples=2001)
    assert (interval.low, interval.high) == pytest.approx((0.40, 0.60), abs=0.02)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_intervals_cover_at_the_nominal_rate(share):
    covered = 0
    for i in range(400):
        interval = bootstrap_mean(rng(i).random(300) < share, rng=rng(1000 + i), n_resamples=999)
        covered += interval.low <= share <= interval.high
    # 0.95 with a standard error of 0.011 over 400 simulations; the percentile interval falls short by about 0.01
    assert 0.91 <= covered / 400 <= 0.98


def test_paired_intervals_cover_and_are_shorter_than_unpaired_ones():
    covered, paired, unpaired = 0, 0.0, 0.0
    truth = 0.6 - np.mean(rng(9).random(200_000) + rng(10).normal(0, 0.1, 200_000) < 0.5)
    for i in range(300):
        hard = rng(i).random(300)  # how hard an image is, for both models alike
        ours, theirs = hard < 0.6, hard + rng(5000 + i).normal(0, 0.1, 300) < 0.5
        interval = bootstrap_paired_difference(ours, theirs, rng=rng(2000 + i), n_resamples=999)
        covered += interval.low <= truth <= interval.high
        paired += interval.high - interval.low
        alone = [bootstrap_mean(x, rng=rng(3000 + i), n_resamples=999) for x in (ours, theirs)]
        unpaired += np.hypot(*[one.high - one.low for one in alone])
    assert 0.91 <= covered / 300 <= 0.985
    assert paired < 0.6 * unpaired


@pytest.mark.parametrize("value", [0, 1])
def test_scores_that_are_all_right_or_all_wrong_do_not_claim_certainty(value):
    interval = bootstrap_mean(np.full(50, value), rng=rng())
    reach = 1 - 0.025 ** (1 / 50)  # Clopper and Pearson
    assert interval.estimate == value
    assert (interval.low, interval.high) == pytest.approx((1 - reach, 1) if value else (0, reach))


def test_one_seed_one_interval():
    scores = rng().normal(size=40)
    first, again, other = (bootstrap_mean(scores, rng=rng(i)) for i in (1, 1, 2))
    assert first == again != other


def test_percent():
    interval = bootstrap_mean(np.arange(10) < 4, rng=rng())
    assert interval.percent().estimate == pytest.approx(40)
    assert interval.percent().low == pytest.approx(100 * interval.low)
    assert interval.percent().n == 10


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([], {}, "at least one"),
        ([[0.0, 1.0]], {}, r"shape \(1, 2\)"),
        ([0.0, np.nan], {}, "1 of 2 scores are not finite"),
        ([0.0, 1.0], {"confidence_level": 95}, "got 95"),
    ],
)
def test_bad_scores_are_refused(scores, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(scores, rng=rng(), **options)


def test_pairs_must_be_about_the_same_images():
    with pytest.raises(ValueError, match="same images"):
        bootstrap_paired_difference([0, 1], [0, 1, 1], rng=rng())


def test_one_draw_is_an_interval_over_images():
    hits = np.random.default_rng(0).random(200) < 0.3
    one = bootstrap_mean_over_draws(hits[None], rng=np.random.default_rng(1))
    assert one == bootstrap_mean(hits, rng=np.random.default_rng(1))


def test_draws_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    same = np.repeat((rng.random((1, 500)) < 0.5), 5, axis=0)
    shifted = np.stack([rng.random(500) < p for p in (0.3, 0.4, 0.5, 0.6, 0.7)])
    narrow, wide = (bootstrap_mean_over_draws(s, rng=np.random.default_rng(1)) for s in (same, shifted))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert wide.estimate == pytest.approx(shifted.mean()) and wide.n == 500
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 500), rel=0.08)


def test_crossed_bootstrap_against_resampling_the_matrix():
    rng = np.random.default_rng(2)
    scores = (rng.random((4, 60)) < rng.random((4, 1))).astype(float) - (rng.random((4, 60)) < 0.2)
    found = bootstrap_mean_over_draws(scores, rng=np.random.default_rng(3), n_resamples=20_000)
    means = [
        scores[np.ix_(rng.integers(0, 4, 4), rng.integers(0, 60, 60))].mean() for _ in range(20_000)
    ]  # draws and images, independently
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low, abs=0.012), pytest.approx(high, abs=0.012))


def test_crossed_bootstrap_wants_a_matrix_of_numbers():
    with pytest.raises(ValueError, match="draws by images"):
        bootstrap_mean_over_draws(np.zeros(3), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_mean_over_draws(np.full((2, 2), np.nan), rng=np.random.default_rng(0))
    zero = bootstrap_mean_over_draws(np.zeros((3, 20), bool), rng=np.random.default_rng(0))
    assert (zero.estimate, zero.low) == (0, 0) and 0.1 < zero.high < 0.2  # not certain
