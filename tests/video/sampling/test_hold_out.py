"""Held-out seconds against sets of seconds: whole blocks, the share that was asked for, whatever the index's order."""

import numpy as np
import pytest

from headcam.errors import InputError
from headcam.video.sampling.hold_out import hold_out
from headcam.video.sampling.units import FrameUnits, JoinedUnits, RecordingFacts, StretchUnits, Units
from headcam.video.stretches import common, total_s


def units(names: list[str], stretches: list[list[tuple[float, float]]]) -> StretchUnits:
    edges = [edge for own in stretches for edge in own]
    return StretchUnits(
        recording=np.repeat(np.arange(len(names), dtype=np.int32), [len(own) for own in stretches]),
        start_s=np.array([a for a, _ in edges], float),
        end_s=np.array([b for _, b in edges], float),
        unit_seconds=1.0,
        width=np.full(len(names), 64, np.int32),
        height=np.full(len(names), 48, np.int32),
        row=np.arange(len(names)),
        facts=RecordingFacts.unknown(names),
    )


def frames(of: Units, every: int = 1) -> FrameUnits:
    """Pictures of a store, each standing for `every` seconds."""
    i = np.arange(0, len(of), every)
    width, height = of.size_of(i)
    return FrameUnits(of.recording_of(i), of.time_of(i), np.full(len(i), float(every)), width, height, i, of.facts)


BLOCK_S = 10.0
NAMES = [f"r{k:02d}" for k in range(40)]
LENGTHS = np.random.default_rng(0).uniform(5, 400, 40)
MANY = units(NAMES, [[(0, length)] for length in LENGTHS])


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_is_reached_by_whole_blocks_and_no_second_is_on_both_sides(share):
    train, held = hold_out(MANY, share, BLOCK_S)
    kept, out = MANY.restricted(train), MANY.restricted(held)
    assert kept.hours + out.hours == pytest.approx(MANY.hours)
    assert share <= out.hours / MANY.hours < share + BLOCK_S / 3600 / MANY.hours
    for name in NAMES:
        assert not common(train.get(name, ()), held.get(name, ()))
        for start, end in held.get(name, ()):
            assert start % BLOCK_S == end % BLOCK_S == 0


def test_the_choice_depends_on_ids_alone_and_grows_with_the_share():
    _, held = hold_out(MANY, 0.2, BLOCK_S)
    order = np.random.default_rng(1).permutation(40)
    _, mixed = hold_out(units([NAMES[k] for k in order], [[(0, LENGTHS[k])] for k in order]), 0.2, BLOCK_S)
    assert mixed == held
    assert hold_out(JoinedUnits([MANY, MANY.restricted({})]), 0.2, BLOCK_S)[1] == held
    _, more = hold_out(MANY, 0.4, BLOCK_S)
    assert all(total_s(common(held[name], more[name])) == total_s(held[name]) for name in held)
    _, others = hold_out(units([f"s{k}" for k in range(40)], [[(0, length)] for length in LENGTHS]), 0.2, BLOCK_S)
    assert sorted(others.values()) != sorted(held.values())


def test_blocks_are_spread_over_recordings_and_times():
    _, held = hold_out(units(["a", "b"], [[(0, 20_000)], [(0, 20_000)]]), 0.25, BLOCK_S)
    for name in "ab":
        middles = [(a + b) / 2 for a, b in held[name]]
        assert 4000 < total_s(held[name]) < 6000
        counts = np.histogram(middles, bins=10, range=(0, 20_000))[0]
        assert counts.min() > 15, "about 37 stretches in every tenth"


def test_holes_hold_nothing_so_none_is_held_out():
    of = units(["a"], [[(0, 10), (990, 1000)]])
    for share in (0.1, 0.5):
        train, held = hold_out(of, share, BLOCK_S)
        assert of.restricted(held).hours == of.restricted(train).hours == pytest.approx(10 / 3600)


def test_a_store_s_frames_are_on_one_side_at_most():
    for every in (1, 3, 7):
        of = frames(MANY, every)
        train, held = hold_out(of, 0.3, BLOCK_S)
        kept, out = of.restricted(train), of.restricted(held)
        assert not set(kept.row) & set(out.row) and len(kept) + len(out) > 0.97 * len(of)
        assert 0.2 < len(out) / len(of) < 0.4


def test_still_pictures_stay_in_training():
    of = units(["a", "b"], [[(0, 0)], [(0, 40)]])
    train, held = hold_out(of, 0.3, BLOCK_S)
    assert set(held) == {"b"} and len(of.restricted(train)) == 21 and of.restricted(train).recordings == ("a", "b")


@pytest.mark.parametrize("stretches", [[(0, 9.5)], [(0, 0)]])
def test_too_little_video_for_two_sides_is_refused(stretches):
    with pytest.raises(InputError, match=r"data\.hold_out 0\.1 leaves no seconds to train on: there are 0 blocks"):
        hold_out(units(["a"], [stretches]), 0.1, BLOCK_S)


def test_a_recording_of_one_block_stays_in_training_and_blocks_may_have_any_length():
    of = units(["a", "b"], [[(0, 9.5)], [(0, 60)]])
    train, held = hold_out(of, 0.2, BLOCK_S)
    assert set(held) == {"b"} and "a" in train
    _, held = hold_out(of, 0.2, 2.5)
    for stretches in held.values():
        assert all(start % 2.5 == end % 2.5 == 0 for start, end in stretches)
    assert sum(map(total_s, held.values())) == pytest.approx(0.2 * 69.5, abs=2.5)
