"""Keyed streams and permutations: equal on every machine, independent of order, and random enough."""

import numpy as np
import pytest
from scipy import stats

from headcam.randomness import hashed, permuted, stream


def test_golden_values_of_the_streams():
    # From our own code (NumPy's Philox, stream-compatible by NumPy's policy): they detect change, on any machine.
    assert stream(0, "crop", 0).integers(0, 1 << 63, 3).tolist() == [
        6718418011517409023,
        3029487881961789733,
        102903080501486038,
    ]
    assert stream(7, "mask", 12345678901).integers(0, 1 << 63, 2).tolist() == [3374479874789804960, 1259605909887343254]
    assert permuted(np.arange(10), 10, 0, "epoch 0").tolist() == [5, 1, 3, 8, 9, 0, 2, 6, 7, 4]


def test_a_stream_is_named_by_seed_purpose_and_counter_alone():
    wanted = stream(3, "flip", 5).random(4)
    for other in (stream(4, "flip", 5), stream(3, "flop", 5), stream(3, "flip", 6)):
        other.random(1000)  # drawing from others moves nothing
        assert not np.array_equal(other.random(4), wanted)
    assert np.array_equal(stream(3, "flip", 5).random(4), wanted)


def test_streams_of_neighbouring_counters_do_not_overlap():
    """Philox yields 4 words a block: a stream that ran into the next counter's would repeat its numbers."""
    words = np.concatenate([stream(0, "x", i).integers(0, 1 << 63, 100) for i in range(20)])
    assert len(np.unique(words)) == len(words)


def test_purposes_and_neighbours_are_uncorrelated():
    draws = {p: np.array([stream(0, p, i).random() for i in range(2000)]) for p in ("time", "crop")}
    assert stats.kstest(draws["time"], "uniform").pvalue > 1e-3
    assert abs(stats.pearsonr(draws["time"], draws["crop"]).statistic) < 0.08
    assert abs(stats.pearsonr(draws["time"][1:], draws["time"][:-1]).statistic) < 0.08


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 2**20 + 1])
def test_permuted_is_a_bijection(n):
    order = permuted(np.arange(n), n, 0, "x")
    assert order.dtype == np.int64 and (np.bincount(order, minlength=n) == 1).all()


@pytest.mark.parametrize("n", [7, 64, 1000])
def test_permuted_at_once_equals_one_by_one_in_any_shape(n):
    order = permuted(np.arange(n), n, 5, "x")
    assert [int(permuted(np.array([k]), n, 5, "x")[0]) for k in range(n)] == order.tolist()
    assert permuted(np.array(3), n, 5, "x").shape == ()
    some = np.array([[5, 0, 3], [3, 1, 2]])
    assert np.array_equal(permuted(some, n, 5, "x"), order[some])
    assert permuted(np.array([], dtype=int), n, 5, "x").shape == (0,)


def test_other_seeds_and_purposes_give_other_orders():
    n = 1000
    orders = [permuted(np.arange(n), n, s, p) for s, p in ((0, "epoch 0"), (0, "epoch 1"), (1, "epoch 0"))]
    orders.append(np.arange(n))
    for k, a in enumerate(orders):
        for b in orders[:k]:
            assert (a == b).sum() < 12  # of two independent permutations: 1 on average, Poisson
            assert abs(stats.spearmanr(a, b).statistic) < 0.13  # 4 standard errors


@pytest.mark.parametrize("n", [5, 16])
def test_each_value_is_equally_likely_in_each_place(n):
    draws = 1500
    counts = np.zeros((n, n))
    for k in range(draws):
        counts[np.arange(n), permuted(np.arange(n), n, k, "x")] += 1
    statistic = ((counts - draws / n) ** 2 / (draws / n)).sum()
    assert 1e-4 < stats.chi2.sf(statistic, (n - 1) ** 2)


def test_neighbours_do_not_stay_neighbours():
    n = 10_000
    steps = np.diff(permuted(np.arange(n), n, 0, "x"))
    assert (np.abs(steps) == 1).sum() < 12  # 2 on average


def test_positions_outside_are_refused():
    for positions in ([-1], [10]):
        with pytest.raises(ValueError, match=r"must lie in \[0, 10\)"):
            permuted(np.array(positions), 10, 0, "x")


def test_hashes_of_rows_are_uniform_and_depend_on_every_column_the_seed_and_the_purpose():
    rows = np.arange(20_000, dtype=np.int64)
    value = hashed([rows % 100, rows // 100], 0, "x")
    assert value.dtype == np.uint64 and len(np.unique(value)) == 20_000
    assert 1e-4 < stats.kstest(value / 2.0**64, "uniform").pvalue
    shuffled = rows[::-1]
    np.testing.assert_array_equal(hashed([shuffled % 100, shuffled // 100], 0, "x"), value[::-1])
    others = [hashed([rows % 100, rows // 100], 1, "x"), hashed([rows % 100, rows // 100], 0, "y")]
    others += [hashed([rows // 100, rows % 100], 0, "x"), hashed([rows % 100, rows // 100 + 1], 0, "x")]
    for other in others:
        assert (other == value).sum() < 3 + 200  # swapped columns agree where both are equal
        assert abs(stats.spearmanr(other, value).statistic) < 0.04
