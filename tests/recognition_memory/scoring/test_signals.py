"""AUC, d', bits and the split into memory and complexity, against loops and closed forms."""

import numpy as np
import pytest
from scipy import stats

from headcam.recognition_memory.scoring import signals
from headcam.recognition_memory.scoring.table import Group


def plain_auc(seen: np.ndarray, unseen: np.ndarray) -> float:
    wins = (seen[:, None] < unseen[None, :]) + 0.5 * (seen[:, None] == unseen[None, :])
    return wins.sum() / (len(seen) * len(unseen))


def test_auc_is_the_share_of_comparisons_with_ties_as_half():
    scores = np.random.default_rng(0).integers(0, 12, (2, 3, 15, 2)).astype(float)
    scores[..., 0] -= 2
    components = signals.auc_components(scores)
    for index in np.ndindex(2, 3):
        assert components[index].mean() == pytest.approx(plain_auc(*scores[index].T), abs=1e-12)
    assert signals.auc_components(-scores).mean(-1) == pytest.approx(1 - components.mean(-1))
    assert signals.auc_components(np.exp(scores)).mean(-1) == pytest.approx(components.mean(-1))


def test_resampled_components_are_the_auc_of_the_resample():
    """To first order in 1 / pairs: the spread over resamples of pairs is that of the plain bootstrap."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(60, 2)) + [0, 1]
    picks = rng.integers(60, size=(150, 60))
    plain = np.array([plain_auc(*scores[pick].T) for pick in picks])
    linear = signals.auc_components(scores)[picks].mean(axis=1)
    assert np.corrcoef(plain, linear)[0, 1] > 0.99
    assert linear.std() == pytest.approx(plain.std(), rel=0.05)


def test_absent_runs_have_no_auc():
    scores = np.random.default_rng(0).normal(size=(2, 4, 2))
    scores[1] = np.nan
    assert np.isnan(signals.auc_components(scores)).tolist() == [[False] * 4, [True] * 4]


def test_d_prime():
    """Two alternatives, unit-variance normal scores d' apart: right with Phi(d' / sqrt 2)."""
    for d in (0.0, 0.5, 2.0, -1.0):
        assert signals.d_prime(stats.norm.cdf(d / np.sqrt(2)), 10**9) == pytest.approx(d, abs=1e-9)
    assert signals.d_prime(1.0, 100) == pytest.approx(np.sqrt(2) * stats.norm.ppf(0.995))
    assert signals.d_prime(0.0, 100) == pytest.approx(-signals.d_prime(1.0, 100))
    assert (np.diff(signals.d_prime(np.array([0.0, 0.01, 0.99, 1.0]), 100)) > 0).all()


def test_bits_of_a_decision():
    share = np.array([0.0, 0.4, 0.5, 0.75, 0.89, 1.0])
    bits = signals.bits_2afc(share)
    assert bits[[0, 1, 2, 5]].tolist() == [0, 0, 0, 1]
    assert bits[3] == pytest.approx(1 + 0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert bits[4] == pytest.approx(0.5, abs=1e-3)


def test_margins_have_a_robust_spread():
    values = np.random.default_rng(0).normal(3, 2, (2, 2, 1, 500))
    values[0, 0, 0, :3] = 1000.0  # a few pairs that went wrong
    values[1, 1] = np.nan
    figures = signals.margin_figures(values)
    assert figures["robust_sd"][0] == pytest.approx(2, abs=0.15)
    assert figures["sd"][0] > 20
    flat = values[~np.isnan(values)]
    assert figures["mean_over_sd"][0] == pytest.approx(flat.mean() / flat.std())
    assert np.isnan(signals.margin_figures(np.ones((1, 1, 1, 5)))["mean_over_sd"][0])


def test_memory_and_complexity_are_told_apart():
    """Traces and complexities that are put in come out, and the two normal distributions predict the raw rule."""
    rng = np.random.default_rng(0)
    pairs, seeds = 5000, 2
    losses, complexity = {}, {}
    for condition, spread in (("novel", 2.0), ("state", 0.5)):
        a, b = complexity[condition] = rng.normal(0, spread, (2, pairs))
        trace = rng.normal(0.6, 0.3, (2, seeds, pairs))
        first = np.stack([a - trace[0], np.broadcast_to(b, (seeds, pairs))], axis=-1)
        second = np.stack([b - trace[1], np.broadcast_to(a, (seeds, pairs))], axis=-1)
        losses[condition] = np.stack([first, second])[:, :, None]
    numbers = np.arange(pairs)
    group = Group(
        *("m", "p", "", ("1", "2"), (0, 1), (1,), ("novel", "state"), losses),
        pairs={"novel": numbers, "state": numbers},
        role_swapped=True,
    )
    rows = {row["condition"]: row for row in signals.memory_figures(group)}
    for condition in losses:
        row, (a, b) = rows[condition], complexity[condition]
        assert row["mean_m"] == pytest.approx(0.6, abs=0.02)
        assert row["sd_m"] == pytest.approx(0.3 / np.sqrt(2), abs=0.01)  # a mean of two traces
        assert row["robust_sd_m"] == pytest.approx(0.3 / np.sqrt(2), abs=0.02)
        assert row["sd_c"] == pytest.approx(np.hypot(np.std(b - a), 0.3 / np.sqrt(2)), rel=0.03)  # traces differ too
        right = [(losses[condition][s, ..., 0] < losses[condition][s, ..., 1]) for s in (0, 1)]
        assert row["predicted_raw"] == pytest.approx(np.mean(right), abs=0.015)
        assert row["opposite"] == pytest.approx(np.mean(right[0] != right[1]))
        assert row["seeds_agree"] == pytest.approx(np.mean([r[0] == r[1] for r in right]))
    assert rows["pooled"]["predicted_raw"] == pytest.approx(np.mean([rows[c]["predicted_raw"] for c in losses]))
