"""Episodes: consecutive pieces of recordings, the classes of temporal classification (Orhan et al. 2020, 2021).

A recording is cut into pieces of `seconds` (published: 288 s), from the first second that can be drawn to the last; a
rest shorter than half a piece joins the piece before it. Pieces that hold nothing that can be drawn (quarantined, or
not in the manifest) are no episodes, so that there is no class without an example. All is decided by time and by
recording: no frame rate enters, and no episode goes across recordings.

In the original the classes came out otherwise (repository baby-vision, `read_saycam.py`): frames went into a folder
until it held 288 x 5 of them, and the count was not started anew with a new file. So an episode could join the end of
one recording with the start of another, days apart; at 30.0 frames a second it lasted 336 s instead of 288, since the
stride was wrong; the last one was short; and time stamps were not kept.

A unit (`headcam.video.sampling.units`) belongs, whole, to the episode that its start lies in.
"""

import math

import numpy as np

from headcam.errors import InputError
from headcam.video.sampling.units import Units

_MICROSECONDS = 1_000_000  # times are compared in whole ones, so that borders are exact


class Episodes:
    """The episodes of what `units` hold; memory for each episode and recording, none for each unit.

    Args:
        units: what is trained on.
        seconds: length of an episode.

    Attributes:
        ids: (R,) str, of the recordings, in the order of `units`.
        recording: (E,) int32, position of the episode's recording in `ids`; ascending.
        start_s, end_s: (E,) float64, [start, end) in seconds from the start of the recording; ascending within one.
        seconds: as given.

    Raises:
        InputError: `seconds` is no length of time, or there is no unit.
    """

    def __init__(self, units: Units, seconds: float = 288.0):
        if not (math.isfinite(seconds) and seconds * _MICROSECONDS >= 1):
            raise InputError(f"an episode's length is {seconds} s", "give seconds above 0, such as 288")
        if not len(units):
            raise InputError("there is no video to cut into episodes", "give data with at least one recording")
        self.seconds = float(seconds)
        self.ids = units.facts.ids
        # Units of a recording are numbered one after the other and ascend in time.
        counts = units.counts_by_recording()
        behind = np.cumsum(counts)
        some = np.flatnonzero(counts)  # recordings that hold anything
        first, last = (behind - counts)[some], behind[some] - 1
        start = _microseconds(units.time_of(first))
        end = np.maximum(start, _microseconds(units.time_of(last) + units.seconds_of(last)))

        piece = round(self.seconds * _MICROSECONDS)
        pieces = np.maximum(1, (end - start + piece // 2) // piece)  # half a piece or more is one of its own
        of = np.repeat(np.arange(len(some)), pieces)
        k = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        begins = start[of] + k * piece
        ends = np.where(k + 1 == pieces[of], end[of], begins + piece)
        kept = _holds_a_unit(units, first[of], last[of] + 1, begins, np.where(k + 1 == pieces[of], ends + 1, ends))

        self.recording = some[of[kept]].astype(np.int32)
        self.start_s, self.end_s = begins[kept] / _MICROSECONDS, ends[kept] / _MICROSECONDS
        # All recordings on one line of time, each behind the other, so that one search serves all.
        self._span = int(end.max()) + 1
        self._line = begins[kept] + self.recording * np.int64(self._span)
        self._first = np.searchsorted(self.recording, np.arange(len(counts) + 1))

    def __len__(self) -> int:
        """E, the number of episodes."""
        return len(self.recording)

    def episode_of(self, recording: np.ndarray, time_s: np.ndarray) -> np.ndarray:
        """Numbers of the episodes that times of recordings lie in.

        A time that lies in no episode belongs to the one before it, or to the recording's first one.

        Args:
            recording: positions in `ids`, integers of any shape.
            time_s: of the same shape, in seconds from the start of the recording.
        Returns:
            int64 of that shape, from 0 to E - 1.
        Raises:
            InputError: the recording has no episode.
        """
        recording = np.asarray(recording, np.int64)
        first, behind = self._first[recording], self._first[recording + 1]
        if np.any(first == behind):
            name = self.ids[recording[first == behind].flat[0]]
            raise InputError(f"recording {name} has no episode", "label only recordings that are trained on")
        time = np.clip(_microseconds(time_s), 0, self._span - 1)
        return np.maximum(np.searchsorted(self._line, recording * self._span + time, side="right") - 1, first)


def _holds_a_unit(units: Units, low: np.ndarray, high: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Whether any of the units low .. high - 1 starts in [start, end), microseconds; (n,) bool for n such questions.

    By bisection, so that the work grows with the number of pieces, not with that of units.
    """
    low, behind = low.copy(), high
    high = high.copy()  # the first unit that starts at `start` or later lies in low .. high
    while np.any(open_ := low < high):
        middle = (low + high) // 2
        later = _microseconds(units.time_of(np.minimum(middle, behind - 1))) >= start
        high = np.where(open_ & later, middle, high)
        low = np.where(open_ & ~later, middle + 1, low)
    found = np.minimum(low, behind - 1)
    return (low < behind) & (_microseconds(units.time_of(found)) < end)


def _microseconds(time_s: np.ndarray) -> np.ndarray:
    return np.rint(np.asarray(time_s) * _MICROSECONDS).astype(np.int64)
