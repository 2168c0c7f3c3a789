"""Episodes against a plain statement of what they are, for all kinds of units; borders, holes, size."""

import pickle
import tracemalloc

import numpy as np
import pytest

from headcam.errors import InputError
from headcam.video.episodes import Episodes
from headcam.video.sampling.units import FrameUnits, JoinedUnits, RecordingFacts, StretchUnits


def video(stretches: dict[str, list[tuple[float, float]]], unit_seconds: float = 1.0) -> StretchUnits:
    names = list(stretches)
    flat = [(k, a, b) for k, name in enumerate(names) for a, b in stretches[name]]
    recording, start, end = zip(*flat)
    sides = np.full(len(names), 64, np.int32)
    return StretchUnits(
        np.array(recording, np.int32),
        np.array(start, np.float64),
        np.array(end, np.float64),
        unit_seconds,
        sides,
        sides,
        np.arange(len(names)),
        RecordingFacts.unknown(names),
    )


def pictures(frames: dict[str, list[tuple[float, float]]]) -> FrameUnits:
    """`frames`: recording -> (time, seconds that the picture stands for)."""
    names = list(frames)
    flat = [(k, t, lasting) for k, name in enumerate(names) for t, lasting in frames[name]]
    recording, times, seconds = (np.array(column) for column in zip(*flat))
    sides = np.full(len(flat), 64, np.int32)
    facts = RecordingFacts.unknown(names)
    return FrameUnits(recording.astype(np.int32), times, seconds, sides, sides, np.arange(len(flat)), facts)


def table(episodes: Episodes) -> list[tuple[str, float, float]]:
    ids = episodes.ids[episodes.recording].tolist()
    return list(zip(ids, episodes.start_s.tolist(), episodes.end_s.tolist()))


def stated(units, seconds: float) -> list[tuple[str, float, float]]:
    """The same without arrays: cut, join the rest, drop what is empty."""
    held: dict[str, list[tuple[float, float]]] = {}
    for i in range(len(units)):
        name = units.recordings[int(units.recording_of(i))]
        held.setdefault(name, []).append((float(units.time_of(i)), float(units.seconds_of(i))))
    out = []
    for name, here in held.items():
        start, end = here[0][0], here[-1][0] + here[-1][1]
        edges = [start]
        while end - edges[-1] > seconds:
            edges.append(edges[-1] + seconds)
        if len(edges) > 1 and end - edges[-1] < seconds / 2:
            edges.pop()
        for k, low in enumerate(edges):
            high = edges[k + 1] if k + 1 < len(edges) else end
            last = k + 1 == len(edges)
            if any(low - 1e-7 <= t < high - 1e-7 or (last and t >= low) for t, _ in here):
                out.append((name, low, high))
    return out


@pytest.mark.parametrize(
    "length, expected",
    [
        (10.0, [(0, 10)]),
        (288.0, [(0, 288)]),
        (431.9, [(0, 431.9)]),
        (432.0, [(0, 288), (288, 432)]),
        (1000.0, [(0, 288), (288, 576), (576, 1000)]),
        (1010.0, [(0, 288), (288, 576), (576, 864), (864, 1010)]),
    ],
)
def test_a_rest_shorter_than_half_joins_the_piece_before(length, expected):
    episodes = Episodes(video({"a": [(0.0, length)]}))
    assert table(episodes) == [("a", start, end) for start, end in expected] and len(episodes) == len(expected)


def test_no_episode_goes_across_recordings_and_every_unit_has_its_own():
    units = video({"a": [(0.0, 700.0)], "b": [(0.0, 5.0)], "c": [(13.5, 600.0)]})
    episodes = Episodes(units, 288.0)
    assert table(episodes) == [
        ("a", 0, 288),
        ("a", 288, 700),
        ("b", 0, 5),
        ("c", 13.5, 301.5),
        ("c", 301.5, 600),
    ]
    every = np.arange(len(units))
    found = episodes.episode_of(units.recording_of(every), units.time_of(every))
    assert found.dtype == np.int64 and np.array_equal(np.bincount(found), [288, 412, 5, 288, 299])
    assert np.array_equal(episodes.recording[found], units.recording_of(every))
    assert np.all(episodes.start_s[found] <= units.time_of(every) + 1e-6)
    assert np.all(units.time_of(every) < episodes.end_s[found])
    assert int(episodes.episode_of(0, 287.999)) == 0 and int(episodes.episode_of(0, 288.0)) == 1


@pytest.mark.parametrize("seconds", [0.7, 3.0, 10.0, 288.0])
def test_any_length_and_any_kind_of_units_as_stated(seconds):
    rng = np.random.default_rng(0)
    edges = {name: np.cumsum(rng.uniform(0.3, 20, 2 * rng.integers(1, 5))) for name in "abcdef"}
    held = {name: [tuple(pair) for pair in edge.round(3).reshape(-1, 2).tolist()] for name, edge in edges.items()}
    times = {
        name: [(float(t), 1.3) for t in np.sort(rng.uniform(0, 90, rng.integers(1, 30)).round(3))] for name in "gh"
    }
    for units in (video(held), video(held, 0.25), pictures(times), JoinedUnits([pictures(times), video(held)])):
        episodes = Episodes(units, seconds)
        expected = stated(units, seconds)
        assert [name for name, _, _ in table(episodes)] == [name for name, _, _ in expected]
        assert np.allclose([row[1:] for row in table(episodes)], [row[1:] for row in expected], atol=2e-6)
        every = np.arange(len(units))
        found = episodes.episode_of(units.recording_of(every), units.time_of(every))
        assert np.array_equal(np.unique(found), np.arange(len(episodes))), "an episode without an example"
        assert np.all(np.diff(found) >= 0)


def test_what_is_held_out_of_an_episode_keeps_its_label():
    """Seconds that are not trained on, within or around the episodes, have the label of those around them."""
    episodes = Episodes(video({"a": [(10.0, 20.0), (30.0, 50.0), (200.0, 250.0)], "b": [(0.0, 40.0)]}), 40.0)
    assert table(episodes) == [("a", 10, 50), ("a", 170, 210), ("a", 210, 250), ("b", 0, 40)]
    at = episodes.episode_of(np.zeros(6, int), np.array([0.0, 25.0, 60.0, 199.0, 249.0, 1e6]))
    assert at.tolist() == [0, 0, 0, 1, 2, 2]
    assert episodes.episode_of(1, -1.0) == 3 and episodes.episode_of(1, 1e9) == 3


def test_stills_are_episodes_of_their_own():
    assert table(Episodes(pictures({"a": [(0.0, 0.0)], "b": [(0.0, 0.0)]}))) == [("a", 0, 0), ("b", 0, 0)]
    assert table(Episodes(video({"a": [(0.0, 0.0)], "b": [(0.0, 300.0)]}))) == [("a", 0, 0), ("b", 0, 300)]


def test_a_hundred_thousand_recordings_are_small():
    n = 100_000
    length = np.random.default_rng(0).uniform(30, 600, n)
    units = video({f"{k:016x}": [(0.0, float(s))] for k, s in enumerate(length)})
    tracemalloc.start()
    episodes = Episodes(units)
    kept, peak = (size / 1e6 for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    assert len(episodes) == np.maximum(1, np.floor(length / 288 + 0.5)).sum()
    assert peak < 60 and kept < 10  # megabytes; there are 31 million units
    assert len(pickle.dumps(episodes)) < 15e6
    again = pickle.loads(pickle.dumps(episodes))
    assert again.episode_of(np.array([0, n - 1]), np.array([5.0, 1.0])).tolist() == [0, len(episodes) - 1]


def test_bad_requests_are_named():
    units = video({"a": [(0.0, 5.0)], "b": [(0.0, 5.0)]})
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"an episode's length is .* s\. Fix: give seconds above 0"):
            Episodes(units, seconds)
    with pytest.raises(InputError, match="no video to cut"):
        Episodes(units.restricted({}))
