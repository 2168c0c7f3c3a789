"""Units against a plain list of them: numbers, times, seconds, sums and restrictions, of both kinds and joined."""

import pickle
from dataclasses import replace
from math import ceil

import numpy as np
import pytest

from headcam.video.sampling.units import FrameUnits, JoinedUnits, RecordingFacts, StretchUnits, Units
from headcam.video.stretches import common, total_s

STRETCHES = {  # still picture, whole second, a rest, rounding only, several pieces
    "a": [(0.0, 0.0)],
    "b": [(0.0, 3.0)],
    "c": [(0.0, 2.25), (5.5, 5.75), (8.0, 11.0)],
    "d": [(0.0, 0.1 * 3 / 0.1)],  # 3.0000000000000004
    "e": [(0.5, 0.7)],
}


def stretch_units(stretches=STRETCHES, unit_seconds=1.0, **facts) -> StretchUnits:
    names = list(stretches)
    flat = [(k, a, b) for k, name in enumerate(names) for a, b in stretches[name]]
    recording, start, end = zip(*flat)
    return StretchUnits(
        recording=np.array(recording, np.int32),
        start_s=np.array(start, np.float64),
        end_s=np.array(end, np.float64),
        unit_seconds=unit_seconds,
        width=np.arange(len(names), dtype=np.int32) + 100,
        height=np.arange(len(names), dtype=np.int32) + 50,
        row=np.arange(len(names)) * 10,
        facts=RecordingFacts.unknown(names),
    )


def frame_units(rows, names="abcdefgh") -> FrameUnits:
    """`rows`: (position of recording, time, seconds)."""
    recording, times, seconds = (np.array(column) for column in zip(*rows))
    return FrameUnits(
        recording=recording.astype(np.int32),
        time_s=times.astype(np.float64),
        seconds=seconds.astype(np.float64),
        width=np.full(len(rows), 96, np.int32),
        height=np.full(len(rows), 64, np.int32),
        row=np.arange(len(rows)),
        facts=RecordingFacts.unknown(list(names)[: recording.max() + 1]),
    )


def listed(stretches, unit_seconds=1.0) -> list[tuple[str, float, float]]:
    """(recording, time, seconds) of every unit, stated without arrays."""
    out = []
    for name, pieces in stretches.items():
        for start, end in pieces:
            for k in range(max(1, ceil((end - start) / unit_seconds - 1e-9))):
                time = start + k * unit_seconds
                out.append((name, time, min(unit_seconds, end - time)))
    return out


def told(units: Units) -> list[tuple[str, float, float]]:
    i = np.arange(len(units))
    names = units.recordings
    return list(zip([names[k] for k in units.recording_of(i)], units.time_of(i).tolist(), units.seconds_of(i).tolist()))


@pytest.mark.parametrize("unit_seconds", [1.0, 0.3, 2.0, 100.0])
def test_stretches_are_cut_into_the_units_of_a_plain_loop(unit_seconds):
    units, wanted = stretch_units(unit_seconds=unit_seconds), listed(STRETCHES, unit_seconds)
    assert told(units) == wanted and len(units) == len(wanted)
    one_by_one = [(units.time_of(i), units.seconds_of(i)) for i in range(len(units))]  # numbers as well as arrays
    assert one_by_one == [(time, seconds) for _, time, seconds in wanted]
    width, height = units.size_of(np.arange(len(units)))
    assert (width - 100).tolist() == units.recording_of(np.arange(len(units))).tolist() == (height - 50).tolist()
    assert units.counts_by_recording().tolist() == [sum(w[0] == name for w in wanted) for name in STRETCHES]
    for name, seconds in zip(STRETCHES, units.seconds_by_recording()):
        assert seconds == pytest.approx(sum(w[2] for w in wanted if w[0] == name), abs=1e-6 * len(wanted))
    assert units.hours * 3600 == pytest.approx(sum(map(total_s, STRETCHES.values())), abs=1e-5)


def test_sums_of_microseconds_are_those_of_the_units_one_by_one():
    rng = np.random.default_rng(0)
    pieces = {str(k): [(float(a), float(a + b))] for k, (a, b) in enumerate(rng.uniform(0.01, 9, (50, 2)))}
    for units in (stretch_units(pieces, 1 / 3), stretch_units(pieces, 0.7)):
        one_by_one = units.microseconds_of(np.arange(len(units)))
        assert one_by_one.sum() == units.microseconds_by_recording().sum()


@pytest.mark.parametrize("unit_seconds", [1.0, 0.4])
def test_restricted_stretches_are_the_common_ones_cut_anew(unit_seconds):
    wanted = {"a": ((0.0, 0.0),), "b": ((0.5, 0.9), (2.0, 9.0)), "c": ((2.0, 8.5),), "d": (), "x": ((0.0, 9.0),)}
    units = stretch_units(unit_seconds=unit_seconds).restricted(wanted)
    left = {"a": [(0.0, 0.0)], "b": common(STRETCHES["b"], wanted["b"]), "c": common(STRETCHES["c"], wanted["c"])}
    assert told(units) == listed(left, unit_seconds)
    assert units.recordings == ("a", "b", "c") and units.row.tolist() == [0, 10, 20]
    assert np.unique(units.size_of(np.arange(len(units)))[0]).tolist() == [100, 101, 102]
    assert len(stretch_units().restricted({})) == 0


def test_everything_restricts_to_itself():
    units = stretch_units()
    assert told(units.restricted({k: tuple(v) for k, v in STRETCHES.items()})) == told(units)


def test_a_frame_is_in_with_the_seconds_inside_where_more_than_half_of_them_are():
    units = frame_units([(0, 0.0, 1.0), (0, 0.97, 1.0), (0, 1.97, 1.0), (1, 0.0, 3.0), (2, 0.0, 0.0), (3, 0.0, 0.0)])
    left = units.restricted({"a": ((1.0, 2.0),), "b": ((0.0, 1.0), (2.0, 3.0)), "c": ((0.0, 0.0),)})
    assert told(left) == [("a", 0.97, 0.97), ("b", 0.0, 2.0), ("c", 0.0, 0.0)]
    assert left.row.tolist() == [1, 3, 4]
    assert told(units.restricted({"b": ((0.0, 1.5),)})) == []  # exactly half
    assert told(units.restricted({"b": ((0.0, 1.50001),)})) == [("b", 0.0, 1.50001)]
    assert told(units.restricted({})) == []


def test_restricted_frames_agree_with_a_plain_loop_over_many():
    rng = np.random.default_rng(1)
    rows = sorted(
        (int(r), float(t), float(s)) for r, t, s in zip(rng.integers(0, 8, 300), *rng.uniform(0, 9, (2, 300)))
    )
    names = "abcdefgh"
    wanted = {
        n: tuple((float(k), k + float(w)) for k, w in zip(range(0, 18, 2), rng.uniform(0.1, 2, 9))) for n in names[1:7]
    }
    units = frame_units(rows)
    kept = []
    for r, time, seconds in rows:
        inside = sum(max(0.0, min(time + seconds, b) - max(time, a)) for a, b in wanted.get(names[r], ()))
        if inside > seconds / 2:
            kept.append((names[r], time, inside))
    found = told(units.restricted(wanted))
    assert [f[:2] for f in found] == [k[:2] for k in kept] and 20 < len(kept) < 280
    assert np.allclose([f[2] for f in found], [k[2] for k in kept], atol=2e-5)


def test_joined_units_answer_as_their_parts_in_turn():
    parts = [stretch_units(), frame_units([(0, 0.5, 1.0), (1, 0.0, 0.25)]), stretch_units({"z": [(1.0, 2.5)]})]
    joined = JoinedUnits(parts)
    assert told(joined) == [unit for part in parts for unit in told(part)]
    assert joined.recordings == ("a", "b", "c", "d", "e", "a", "b", "z")
    assert joined.counts_by_recording().tolist() == [1, 3, 7, 3, 1, 1, 1, 2]
    assert joined.hours == pytest.approx(sum(part.hours for part in parts))
    assert joined.size_of(np.arange(len(joined)))[0].tolist() == [
        w for part in parts for w in part.size_of(np.arange(len(part)))[0].tolist()
    ]
    assert told(joined.restricted({"z": ((0.0, 2.0),)})) == [("z", 1.0, 1.0)]


def test_joined_sources_of_one_name_become_one_and_others_stay_apart():
    def facts(ids, source, names):
        return RecordingFacts(np.array(ids), np.array(source, np.int32), names, *(np.full((2, len(ids)), np.nan)))

    both = RecordingFacts.concatenate(
        [facts(["r", "s"], [1, 0], ("babyview", "saycam")), facts(["t", "u"], [0, 1], ("", "babyview"))]
    )
    assert [both.source_names[k] for k in both.source] == ["saycam", "babyview", "", "babyview"]


def test_lived_takes_ages_or_dates_whichever_are_known():
    def lived(ages, dates):
        facts = RecordingFacts(np.array(["a", "b"]), np.zeros(2, np.int32), ("",), np.array(ages), np.array(dates))
        return replace(frame_units([(0, 0, 1), (1, 0, 1)]), facts=facts).lived

    nan = np.nan
    assert lived([3.0, 1.0], [nan, 7.0]).tolist() == [3.0, 1.0]
    assert lived([nan, 1.0], [8.0, 7.0]).tolist() == [8.0, 7.0]
    assert np.isnan(lived([nan, nan], [nan, nan])).all()


def test_units_stay_small_and_survive_pickling():
    many = {f"{k:016x}": [(0.0, 36_000.0)] for k in range(2000)}  # 20,000 hours
    units = stretch_units(many)
    assert len(units) == 72_000_000 and len(pickle.dumps(units)) < 2000 * 250
    copy = pickle.loads(pickle.dumps(units))
    i = np.array([0, 35_999, 36_000, 71_999_999])
    assert copy.time_of(i).tolist() == units.time_of(i).tolist() == [0.0, 35_999.0, 0.0, 35_999.0]


def test_units_out_of_order_are_a_bug():
    with pytest.raises(ValueError, match="recording by recording"):
        frame_units([(1, 0.0, 1.0), (0, 0.0, 1.0)])
