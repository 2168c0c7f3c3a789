"""The laws of drawing, against slow statements of them and against chance."""

from itertools import pairwise

import numpy as np
import pytest

from headcam.video.sampling.draws import MICROSECONDS, Segments, interleaved, keys, whole
from headcam.video.stretches import without

SECOND = MICROSECONDS


def circle(lengths_s, strata=None, segment_s=float("inf")):
    """Segments of recordings r00, r01, ... of these lengths, and the arguments that `interleaved` takes for them."""
    names = [f"r{k:02d}" for k in range(len(lengths_s))]
    segments = Segments.cut({name: ((0.0, float(s)),) for name, s in zip(names, lengths_s)}, segment_s)
    stratum = keys([str(s) for s in (strata or [0] * len(names))])[segments.recording]
    return segments, ([keys(names)[segments.recording], segments.start], stratum)


def test_cutting_gives_equal_segments_that_lose_nothing():
    segments = Segments.cut({"a": ((0.0, 61.0), (100.0, 100.5)), "b": ((7.25, 187.25),), "c": ()}, 60)
    assert segments.length.tolist() == [30_500_000, 30_500_000, 500_000, *[60_000_000] * 3]
    assert segments.start.tolist() == [0, 30_500_000, 100_000_000, 7_250_000, 67_250_000, 127_250_000]
    assert segments.recording.tolist() == [0, 0, 0, 1, 1, 1] and segments.total == 241_500_000
    assert segments.stretches() == {"a": ((0.0, 61.0), (100.0, 100.5)), "b": ((7.25, 187.25),)}


def test_whole_microseconds_lie_inside_the_stretch():
    rng = np.random.default_rng(0)
    ends = np.sort(rng.uniform(0, 1e5, (2000, 2)), axis=1)
    ends[:500] = np.round(ends[:500], 6)  # those that are whole must not lose any
    stretches = {f"{k:04d}": ((float(a), float(b)),) for k, (a, b) in enumerate(ends)}
    cut = Segments.cut(stretches, 60).stretches()
    for k, (name, ((start, end),)) in enumerate(stretches.items()):
        ((first, last),) = cut[name]
        assert start <= first < start + 1e-6 and end - 1e-6 < last <= end
        if k < 500:
            assert (first, last) == (start, end)
    assert Segments.cut({"x": ((0.1234561, 0.1234569),)}).stretches() == {}


def test_an_arc_is_what_a_loop_over_the_circle_finds():
    segments, columns = circle([3, 12, 1, 7, 5, 4], strata=[0, 1, 0, 1, 2, 2], segment_s=4)
    wraps = 0
    for seed in range(40):
        order = interleaved(segments.length, *columns, seed, "t")
        assert sorted(order) == list(range(len(segments)))
        line = [
            (int(segments.recording[k]), int(segments.start[k] + s))
            for k in order
            for s in range(0, segments.length[k], SECOND // 2)
        ]  # half seconds in the order of the circle
        whole_circle = segments.arc(order, segments.total, seed, "t")
        assert whole_circle.stretches() == segments.stretches()
        parts = [segments.arc(order, size * SECOND, seed, "t") for size in (0, 1, 2, 9, 20)]
        assert [part.total for part in parts] == [0, SECOND, 2 * SECOND, 9 * SECOND, 20 * SECOND]
        for smaller, larger in pairwise(parts):  # nested, exactly
            outer = larger.stretches()
            assert all(not without(inner, outer.get(name, ())) for name, inner in smaller.stretches().items())
        inside = [
            any(
                a == r and b <= at and at + SECOND // 2 <= b + n
                for a, b, n in zip(parts[3].recording, parts[3].start, parts[3].length)
            )
            for r, at in line
        ]
        changes = sum(inside[k] != inside[k - 1] for k in range(len(inside)))
        assert changes == 2 and 16 <= sum(inside) <= 18  # one block around the circle
        wraps += inside[0] and inside[-1]
    assert 5 < wraps < 30  # 9 of 32 seconds: about 11 of 40


def test_a_stratum_keeps_its_share_within_some_segments():
    rng = np.random.default_rng(1)
    lengths = rng.uniform(5, 900, 120)
    strata = rng.choice(4, 120, p=[0.7, 0.2, 0.07, 0.03]).tolist()
    segments, columns = circle(lengths, strata, segment_s=10)
    label = np.array(strata)[segments.recording]
    totals = np.bincount(label, segments.length, 4)
    for seed in range(30):
        order = interleaved(segments.length, *columns, seed, "t")
        for fraction in (0.01, 0.1, 0.5):
            size = round(fraction * segments.total)
            drawn = segments.arc(order, size, seed, "t")
            got = np.bincount(np.array(strata)[drawn.recording], drawn.length, 4)
            assert drawn.total == size
            assert np.abs(got - fraction * totals).max() < 3 * 10 * SECOND


@pytest.mark.parametrize("strata", [None, [0, 0, 1, 1, 1, 2, 3, 3]])
def test_every_second_has_the_same_chance(strata):
    """Segments of very different length, alone in their stratum or not, whole recordings cut or not cut."""
    lengths = [1, 60, 2, 30, 7, 100, 50, 3]
    segments, columns = circle(lengths, strata, segment_s=20)
    seeds, fraction = 4000, 0.1
    size = round(fraction * segments.total)
    edges = np.concatenate([[0], np.cumsum(np.array(lengths) * 2)])
    count = np.zeros(edges[-1])  # of each half second, how often it was drawn
    members = np.zeros(len(lengths))
    one = np.array(lengths) * SECOND
    for seed in range(seeds):
        order = interleaved(segments.length, *columns, seed, "t")
        drawn = segments.arc(order, size, seed, "t")
        for r, a, n in zip(drawn.recording, drawn.start, drawn.length):
            bins = np.arange(a * 2 // SECOND, -(-2 * (a + n) // SECOND))
            low, high = np.maximum(bins * SECOND // 2, a), np.minimum((bins + 1) * SECOND // 2, a + n)
            count[edges[r] + bins] += (high - low) * 2 / SECOND
        whole_order = interleaved(
            one, [keys([f"r{k:02d}" for k in range(8)])], keys([str(s) for s in strata or [0] * 8]), seed, "t"
        )
        members += whole(one, whole_order, size, seed, "t")
    spread = np.sqrt(fraction * (1 - fraction) / seeds)
    assert np.abs(count / seeds - fraction).max() < 5 * spread
    assert np.abs(members / seeds - fraction).max() < 4.5 * spread


def test_seeds_are_independent_draws():
    segments, columns = circle([60] * 300, strata=[k % 5 for k in range(300)], segment_s=30)
    drawn = []
    for seed in range(20):
        order = interleaved(segments.length, *columns, seed, "t")
        part = segments.arc(order, segments.total // 10, seed, "t")
        drawn.append(set(zip(part.recording.tolist(), (part.start // (30 * SECOND)).tolist())))
    overlaps = [len(a & b) / len(a) for k, a in enumerate(drawn) for b in drawn[:k]]
    assert 0.08 < np.mean(overlaps) < 0.13 and max(overlaps) < 0.3


def test_whole_members_are_nested_and_near_the_wanted_size():
    rng = np.random.default_rng(2)
    lengths = (rng.uniform(1, 100, 60) * SECOND).astype(np.int64)
    names = keys([str(k) for k in range(60)])
    for seed in range(20):
        order = interleaved(lengths, [names], np.zeros(60, np.uint64), seed, "t")
        before = np.zeros(60, bool)
        for size in (0.1, 0.2, 0.5, 1.0):
            wanted = round(size * lengths.sum())
            taken = whole(lengths, order, wanted, seed, "t")
            assert not (before & ~taken).any()
            assert abs(int(lengths[taken].sum()) - wanted) <= lengths.max()
            before = taken
        assert before.all()
        assert whole(lengths, order, 0, seed, "t").sum() == 0
        assert whole(lengths, order, 0, seed, "t", at_least_one=True).sum() == 1


def test_strata_of_one_segment_do_not_come_all_at_once():
    """Days with a single short recording: a tenth of the hours holds about a tenth of them, whatever the seed."""
    segments, columns = circle([10] * 200 + [2000], strata=[*range(200), "large"], segment_s=10)
    for seed in range(50):
        order = interleaved(segments.length, *columns, seed, "t")
        drawn = segments.arc(order, segments.total // 10, seed, "t")
        assert 5 < len(set(drawn.recording.tolist()) - {200}) < 40  # 20 and two cut ones on average, SD 4
