"""What can be drawn: units, short stretches of one recording that are drawn whole or not at all.

A unit is a second of video of an index, or a picture of a frame store with the seconds that it stands for, or a still
picture. Units are numbered 0..n-1: recording by recording, and by time within each. There are two kinds behind one
interface, and a join of several:

    StretchUnits   seconds of recordings cut into equal units; memory for each stretch, none for each unit
    FrameUnits     pictures that were chosen before, with arrays of one entry a picture
    JoinedUnits    the units of several sources, one source after the other

All look-ups take int64 arrays `i` (any shape, or one number) and are pure NumPy, so that units of 100,000 recordings
are small, quick to send to a worker, and hold no Python object that a forked worker would copy by counting references.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from headcam.video.stretches import Stretch, common

_HOUR = 3600.0
_MICROSECONDS = 1_000_000
_HAIR_S = 1e-6  # by which a stretch may be too short, from rounding: a clip as long as its recording fits
_STILL: tuple[Stretch, ...] = ((0.0, 0.0),)


@dataclass(frozen=True, eq=False)
class RecordingFacts:
    """What is known of R recordings: parallel arrays of length R.

    Attributes:
        ids: str.
        source: int32, position in `source_names`.
        source_names: names of the sources, "" for recordings whose source is unknown.
        age_days: float64, of the wearer; NaN where unknown.
        recorded_on: float64, the date as a proleptic Gregorian ordinal (`date.toordinal`); NaN where unknown.
    """

    ids: np.ndarray
    source: np.ndarray
    source_names: tuple[str, ...]
    age_days: np.ndarray
    recorded_on: np.ndarray

    @staticmethod
    def unknown(ids: Sequence[str]) -> "RecordingFacts":
        """Recordings of which nothing but their id is known."""
        nothing = np.full(len(ids), np.nan)
        return RecordingFacts(np.array(ids, dtype=str), np.zeros(len(ids), np.int32), ("",), nothing, nothing)

    def take(self, rows: np.ndarray) -> "RecordingFacts":
        """The facts of some recordings, `rows` (int64 array)."""
        return RecordingFacts(
            self.ids[rows], self.source[rows], self.source_names, self.age_days[rows], self.recorded_on[rows]
        )

    @staticmethod
    def concatenate(parts: Sequence["RecordingFacts"]) -> "RecordingFacts":
        """The recordings of `parts` one after the other; sources of equal name become one."""
        names = tuple(sorted({name for part in parts for name in part.source_names}))
        codes = [np.array([names.index(name) for name in part.source_names], np.int32) for part in parts]
        return RecordingFacts(
            ids=np.concatenate([part.ids for part in parts]),
            source=np.concatenate([code[part.source] for code, part in zip(codes, parts)]),
            source_names=names,
            age_days=np.concatenate([part.age_days for part in parts]),
            recorded_on=np.concatenate([part.recorded_on for part in parts]),
        )


class Units(ABC):
    """What can be drawn; see the module. `facts` are those of the recordings that the units come from."""

    facts: RecordingFacts

    @abstractmethod
    def __len__(self) -> int:
        """Number of units."""

    @abstractmethod
    def recording_of(self, i: np.ndarray) -> np.ndarray:
        """Position of the unit's recording in `recordings`: int32."""

    @abstractmethod
    def time_of(self, i: np.ndarray) -> np.ndarray:
        """Start of the unit in seconds from the start of its recording: float64."""

    @abstractmethod
    def seconds_of(self, i: np.ndarray) -> np.ndarray:
        """Seconds of video that the unit stands for: float64; 0 for a still picture."""

    @abstractmethod
    def size_of(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Width and height in pixels of the upright picture that a sample of the unit is cut from: int32."""

    @abstractmethod
    def counts_by_recording(self) -> np.ndarray:
        """(R,) int64: units of each recording."""

    @abstractmethod
    def microseconds_by_recording(self) -> np.ndarray:
        """(R,) int64: video of each recording, each unit rounded to whole microseconds, so that sums are exact."""

    @abstractmethod
    def restricted(self, stretches: Mapping[str, tuple[Stretch, ...]]) -> "Units":
        """The units within `stretches` (recording id -> stretches); recordings that are left without any are gone."""

    @property
    def recordings(self) -> tuple[str, ...]:
        """Ids of the R recordings."""
        return tuple(self.facts.ids.tolist())

    @property
    def sources(self) -> tuple[str, ...]:
        """Name of the source of each of the R recordings, "" where unknown."""
        return tuple(self.facts.source_names[k] for k in self.facts.source)

    @property
    def lived(self) -> np.ndarray:
        """(R,) float64: when each recording was lived, comparable within these units; NaN where unknown.

        Ages in days; or, where fewer ages than dates are known, ordinals of the dates.
        """
        ages, dates = self.facts.age_days, self.facts.recorded_on
        return ages if np.isfinite(ages).sum() >= np.isfinite(dates).sum() else dates

    @property
    def hours(self) -> float:
        """Hours of video that all units together stand for."""
        return int(self.microseconds_by_recording().sum()) / (_HOUR * _MICROSECONDS)

    def seconds_by_recording(self) -> np.ndarray:
        """(R,) float64: seconds of video of each recording, to the microsecond."""
        return self.microseconds_by_recording() / _MICROSECONDS

    def microseconds_of(self, i: np.ndarray) -> np.ndarray:
        """Video that the unit stands for, in whole microseconds: int64."""
        return _microseconds(self.seconds_of(i))


@dataclass(frozen=True, eq=False)
class StretchUnits(Units):
    """Stretches of recordings cut into units of `unit_seconds`; the last unit of a stretch is shorter.

    Args:
        recording: (B,) int32, position of the stretch's recording; ascending.
        start_s, end_s: (B,) float64, the stretches; ascending within a recording, equal for a still picture.
        unit_seconds: length of a unit.
        width, height: (R,) int32, of a recording's upright pictures, in pixels.
        row: (R,) int64, where the source finds the recording (its row in the index).
        facts: of the recordings.
        least_s: shorter pieces that a restriction leaves are no stretches any more, see `at_least`.
    """

    recording: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    unit_seconds: float
    width: np.ndarray
    height: np.ndarray
    row: np.ndarray
    facts: RecordingFacts
    least_s: float = 0.0

    def __post_init__(self) -> None:
        _check_order(self.recording)
        # Not a unit more for a stretch that exceeds whole units by rounding only; at least one, for a still picture.
        counts = np.maximum(1, np.ceil((self.end_s - self.start_s) / self.unit_seconds - 1e-9)).astype(np.int64)
        object.__setattr__(self, "_first", np.concatenate([[0], np.cumsum(counts)]))

    def __len__(self) -> int:
        return int(self._first[-1])

    def recording_of(self, i: np.ndarray) -> np.ndarray:
        return self.recording[self._stretch(i)]

    def time_of(self, i: np.ndarray) -> np.ndarray:
        stretch = self._stretch(i)
        return self.start_s[stretch] + (i - self._first[stretch]) * self.unit_seconds

    def seconds_of(self, i: np.ndarray) -> np.ndarray:
        stretch = self._stretch(i)
        left = self.end_s[stretch] - (self.start_s[stretch] + (i - self._first[stretch]) * self.unit_seconds)
        return np.minimum(self.unit_seconds, left)

    def size_of(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        recording = self.recording_of(i)
        return self.width[recording], self.height[recording]

    def counts_by_recording(self) -> np.ndarray:
        return _sum_by(self.recording, np.diff(self._first), len(self.facts.ids))

    def microseconds_by_recording(self) -> np.ndarray:
        whole = (np.diff(self._first) - 1) * _microseconds(np.float64(self.unit_seconds))
        last = self.microseconds_of(self._first[1:] - 1)
        return _sum_by(self.recording, whole + last, len(self.facts.ids))

    def restricted(self, stretches: Mapping[str, tuple[Stretch, ...]]) -> Self:
        """What of the stretches lies in `stretches`, cut into units anew: each piece starts with a unit of its own."""
        ends = np.searchsorted(self.recording, np.arange(len(self.facts.ids) + 1))
        pieces: list[Stretch] = []
        counts = np.zeros(len(self.facts.ids), np.int64)
        for k, name in enumerate(self.facts.ids.tolist()):
            if name in stretches:
                here = slice(ends[k], ends[k + 1])
                have = tuple(zip(self.start_s[here].tolist(), self.end_s[here].tolist()))
                both = _STILL if have == _STILL == tuple(stretches[name]) else common(have, stretches[name])
                both = [(a, b) for a, b in both if b - a >= self.least_s - _HAIR_S]
                pieces += both
                counts[k] = len(both)
        kept = np.flatnonzero(counts)
        edges = np.array(pieces, dtype=np.float64).reshape(-1, 2)
        return replace(
            self,
            recording=np.repeat(np.arange(len(kept), dtype=np.int32), counts[kept]),
            start_s=edges[:, 0].copy(),
            end_s=edges[:, 1].copy(),
            width=self.width[kept],
            height=self.height[kept],
            row=self.row[kept],
            facts=self.facts.take(kept),
        )

    def stretch_of(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Start and end of the stretch that the unit lies in, in seconds from the start of its recording: float64."""
        stretch = self._stretch(i)
        return self.start_s[stretch], self.end_s[stretch]

    def at_least(self, seconds: float) -> Self:
        """The units of those stretches that last `seconds` or longer, here and in all restrictions of the result."""
        kept = np.flatnonzero(self.end_s - self.start_s >= seconds - _HAIR_S)
        recordings, recording = np.unique(self.recording[kept], return_inverse=True)
        return replace(
            self,
            recording=recording.astype(np.int32),
            start_s=self.start_s[kept],
            end_s=self.end_s[kept],
            width=self.width[recordings],
            height=self.height[recordings],
            row=self.row[recordings],
            facts=self.facts.take(recordings),
            least_s=seconds,
        )

    def _stretch(self, i: np.ndarray) -> np.ndarray:
        return self._first.searchsorted(i, side="right") - 1


@dataclass(frozen=True, eq=False)
class FrameUnits(Units):
    """Pictures that were chosen before, such as those of a frame store: arrays of length n.

    Args:
        recording: int32, position of the picture's recording; ascending.
        time_s: float64, the picture's time in seconds from the start of its recording.
        seconds: float64, the stretch of video that it stands for; 0 for a still picture.
        width, height: int32, pixels.
        row: int64, where the source finds the picture (its number in the store).
        facts: of the recordings.
    """

    recording: np.ndarray
    time_s: np.ndarray
    seconds: np.ndarray
    width: np.ndarray
    height: np.ndarray
    row: np.ndarray
    facts: RecordingFacts

    def __post_init__(self) -> None:
        _check_order(self.recording)

    def __len__(self) -> int:
        return len(self.time_s)

    def recording_of(self, i: np.ndarray) -> np.ndarray:
        return self.recording[i]

    def time_of(self, i: np.ndarray) -> np.ndarray:
        return self.time_s[i]

    def seconds_of(self, i: np.ndarray) -> np.ndarray:
        return self.seconds[i]

    def size_of(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.width[i], self.height[i]

    def counts_by_recording(self) -> np.ndarray:
        return np.bincount(self.recording, minlength=len(self.facts.ids)).astype(np.int64)

    def microseconds_by_recording(self) -> np.ndarray:
        return _sum_by(self.recording, _microseconds(self.seconds), len(self.facts.ids))

    def restricted(self, stretches: Mapping[str, tuple[Stretch, ...]]) -> Self:
        """The pictures of which more than half of [time, time + seconds) lies in `stretches`.

        A picture then stands for the seconds in there alone. Half, because a frame's own time is a little before the
        time that it was asked for: cut at the full second, "the frame on screen at 2 s" may have the time 1.97 s. A
        still picture is in where its recording is.
        """
        # All recordings on one line of whole microseconds, each behind the other, so that one search serves all.
        names = self.facts.ids.tolist()
        edges = [(k, a, b) for k, name in enumerate(names) for a, b in stretches.get(name, ())]
        owner = np.array([k for k, _, _ in edges], np.int64)
        start, end = (_microseconds(np.array([edge[column] for edge in edges], np.float64)) for column in (1, 2))
        times, lasting = _microseconds(self.time_s), _microseconds(self.seconds)
        span = int(max((times + lasting).max(initial=0), end.max(initial=0))) + 1
        start, end = start + owner * span, end + owner * span
        before = np.concatenate([[0], np.cumsum(end - start)])  # covered by the stretches before each

        def covered(x: np.ndarray) -> np.ndarray:
            k = start.searchsorted(x, side="right")
            last = np.maximum(k - 1, 0)
            inside = np.minimum(x, end[last]) - start[last] if len(start) else 0
            return np.where(k > 0, before[last] + inside, 0)

        at = times + self.recording.astype(np.int64) * span
        overlap = covered(at + lasting) - covered(at)
        still = (lasting == 0) & np.isin(self.recording, owner)
        kept = np.flatnonzero((2 * overlap > lasting) | still)
        recordings, recording = np.unique(self.recording[kept], return_inverse=True)
        seconds = np.where(overlap[kept] == lasting[kept], self.seconds[kept], overlap[kept] / _MICROSECONDS)
        return replace(
            self,
            recording=recording.astype(np.int32),
            time_s=self.time_s[kept],
            seconds=seconds,
            width=self.width[kept],
            height=self.height[kept],
            row=self.row[kept],
            facts=self.facts.take(recordings),
        )


class JoinedUnits(Units):
    """The units of several sources, one source after the other; a recording that stands in two stays two."""

    def __init__(self, parts: Sequence[Units]):
        self.parts = tuple(parts)
        self.facts = RecordingFacts.concatenate([part.facts for part in parts])
        self.first = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        self._first_recording = np.concatenate([[0], np.cumsum([len(part.facts.ids) for part in parts])])

    def __len__(self) -> int:
        return int(self.first[-1])

    def recording_of(self, i: np.ndarray) -> np.ndarray:
        return self._each(i, lambda k, own: self.parts[k].recording_of(own) + self._first_recording[k], np.int32)

    def time_of(self, i: np.ndarray) -> np.ndarray:
        return self._each(i, lambda k, own: self.parts[k].time_of(own), np.float64)

    def seconds_of(self, i: np.ndarray) -> np.ndarray:
        return self._each(i, lambda k, own: self.parts[k].seconds_of(own), np.float64)

    def size_of(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width, height = (
            self._each(i, lambda k, own, side=side: self.parts[k].size_of(own)[side], np.int32) for side in (0, 1)
        )
        return width, height

    def counts_by_recording(self) -> np.ndarray:
        return np.concatenate([part.counts_by_recording() for part in self.parts])

    def microseconds_by_recording(self) -> np.ndarray:
        return np.concatenate([part.microseconds_by_recording() for part in self.parts])

    def restricted(self, stretches: Mapping[str, tuple[Stretch, ...]]) -> "JoinedUnits":
        return JoinedUnits([part.restricted(stretches) for part in self.parts])

    def part_of(self, i: np.ndarray) -> np.ndarray:
        """Position of the source that a unit comes from."""
        return self.first.searchsorted(i, side="right") - 1

    def _each(self, i, look_up, dtype) -> np.ndarray:
        part = self.part_of(i)
        if np.ndim(part) == 0:
            return look_up(part, i - self.first[part])
        out = np.empty(part.shape, dtype)
        for k in np.unique(part):
            chosen = part == k
            out[chosen] = look_up(k, i[chosen] - self.first[k])
        return out


def _microseconds(seconds: np.ndarray) -> np.ndarray:
    return np.rint(seconds * _MICROSECONDS).astype(np.int64)


def _sum_by(recording: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros(n, np.int64)
    np.add.at(out, recording, values)
    return out


def _check_order(recording: np.ndarray) -> None:
    if np.any(recording[1:] < recording[:-1]):
        raise ValueError("units must come recording by recording")
