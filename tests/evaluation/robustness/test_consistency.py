"""Error consistency: Cohen's kappa of right and wrong."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from headcam.evaluation.robustness.consistency import error_consistency
from headcam.randomness import stream


def hits(share: float, n: int, counter: int) -> np.ndarray:
    return stream(0, "hits", counter).random(n) < share


def test_is_cohens_kappa():
    a, b = hits(0.7, 400, 0), hits(0.6, 400, 1) | (hits(0.7, 400, 0) & hits(0.5, 400, 2))
    found = error_consistency(a, b, rng=stream(0, "bootstrap", 0))
    assert found.estimate == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
    assert found.low < found.estimate < found.high and found.n == 400


def test_ends_and_zero():
    a = np.arange(200) < 120
    same = error_consistency(a, a, rng=stream(0, "bootstrap", 0))
    assert same.estimate == same.low == same.high == 1
    opposite = error_consistency(a[:200], np.arange(200) >= 120, rng=stream(0, "bootstrap", 0))
    assert opposite.estimate < -0.9
    independent = error_consistency(hits(0.8, 5000, 3), hits(0.8, 5000, 4), rng=stream(0, "bootstrap", 0))
    assert independent.low < 0 < independent.high and independent.high - independent.low < 0.1


def test_two_that_never_err_have_no_errors_to_compare():
    assert error_consistency(np.ones(9, bool), np.ones(9, bool), rng=stream(0, "bootstrap", 0)) is None
    # One of them errs: the expected agreement is below 1, and kappa is 0.
    assert error_consistency(np.ones(9, bool), np.arange(9) > 0, rng=stream(0, "bootstrap", 0)).estimate == 0


def test_intervals_cover():
    """200 experiments of deciders that share an answer with probability .4 and are right with .7: kappa is .4."""
    covered = 0
    for i in range(200):
        rng = stream(5, "experiment", i)
        a, own = rng.random(300) < 0.7, rng.random(300) < 0.7
        found = error_consistency(a, np.where(rng.random(300) < 0.4, a, own), rng=rng)
        covered += found.low <= 0.4 <= found.high
    assert 178 <= covered <= 199


def test_other_pictures_are_refused():
    with pytest.raises(ValueError, match="the same pictures"):
        error_consistency(np.ones(3, bool), np.ones(4, bool), rng=stream(0, "bootstrap", 0))
