"""Stretches against the obvious statement: sets of whole seconds."""

from itertools import pairwise

import numpy as np
import pytest

from headcam.video.stretches import common, merged, total_s, without


def seconds(stretches):
    return {s for start, end in stretches for s in range(int(start), int(end))}


@pytest.mark.parametrize("seed", range(40))
def test_arithmetic_is_that_of_sets_and_results_are_canonical(seed):
    rng = np.random.default_rng(seed)
    a, b = (
        [(float(s), float(s + n)) for s, n in zip(rng.integers(0, 30, k), rng.integers(0, 7, k))]
        for k in rng.integers(0, 6, 2)
    )
    for found, expected in (
        (merged(a), seconds(a)),
        (common(a, b), seconds(a) & seconds(b)),
        (without(a, b), seconds(a) - seconds(b)),
    ):
        assert seconds(found) == expected and total_s(found) == len(expected)
        assert all(start < end for start, end in found)
        assert all(one[1] < two[0] for one, two in pairwise(found))  # apart: touching ones are one


def test_edges():
    assert merged([(2.0, 2.0), (3.0, 1.0)]) == ()
    assert without([(0.0, 10.0)], []) == ((0.0, 10.0),)
    assert without([(0.0, 10.0)], [(-5.0, 1.0), (9.5, 99.0)]) == ((1.0, 9.5),)
    assert without([(0.0, 1.0)], [(0.0, 1.0)]) == () == common([(0.0, 1.0)], [(1.0, 2.0)])
    assert total_s([(0.0, 2.0), (1.0, 3.0)]) == 3.0
