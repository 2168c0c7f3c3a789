"""Cells: the usable time of a recording cut into steps, and the frame on screen at the wanted moment of each.

What both stores have in common about time. Cells follow the stretches that may be used (verified, and drawn by a
manifest): each stretch is cut from its own start, so a cell never reaches across a hole. Different processes work on
different cells of a recording (a `Piece`), and none needs to know of the other. Where a recording is damaged,
decoding goes on at the first key frame behind the damage, and the cells between come with the reason instead.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headcam.errors import DecodeError
from headcam.video.metadata import one_line
from headcam.video.readers import Frame, open_reader
from headcam.video.stretches import Stretch

_PATIENCE = 4  # failures in a row, each tried again at the next key frame, before key frames are passed over


@dataclass(frozen=True)
class Skipped:
    """A stretch of a recording that no picture could be had from."""

    recording: str
    path: str
    start_s: float
    end_s: float
    reason: str


@dataclass(frozen=True)
class Piece:
    """Cells [first, last) of the `cells` cells of a recording, and what the index says of it.

    `width` and `height` are those of the upright picture; `keyframes` and `start_pts` count in `time_base` seconds.
    """

    recording: str
    path: str
    bytes: int
    width: int
    height: int
    frame_rate: Fraction  # 0 where unknown
    time_base: Fraction
    start_pts: int
    keyframes: tuple[int, ...]
    stretches: tuple[Stretch, ...]
    cells: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(self.path).name

    def time_s(self, pts: np.ndarray | Sequence[int]) -> np.ndarray:
        """Seconds from the recording's start, (N,) float64, as `Reader.time_s` gives them."""
        ticks = np.asarray(pts, dtype=np.int64) - self.start_pts
        return ticks * self.time_base.numerator / self.time_base.denominator

    def skipped(self, start_s: float, end_s: float, reason: str) -> Skipped:
        """That [start_s, end_s) was skipped; the reason without the path, which has a column of its own."""
        return Skipped(self.recording, self.path, start_s, end_s, reason.removeprefix(self.path).lstrip(": "))

    def skipped_cell(self, cells: "Cells", number: int, reason: str) -> Skipped:
        """That cell `number` of the recording's `cells` was skipped."""
        return self.skipped(float(cells.start_s[number]), float(cells.end_s[number]), reason)


class Cells(NamedTuple):
    """Cells of a recording in ascending order: each covers [start_s, end_s) and shows the frame at `time_s`.

    Three (N,) float64 arrays. Cells of one stretch touch; lengths sum up to the seconds of all stretches.
    """

    time_s: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray


def steady_cells(stretches: Iterable[Stretch], rate: float) -> Cells:
    """Cells of 1/rate seconds from the start of each stretch, the last of a stretch shorter; wanted at their start.

    A still picture's stretch (0, 0) is one cell. No cell is made for a rest that is due to rounding.
    """
    starts, ends = [], []
    for start, end in stretches:
        count = max(1, int(np.ceil((end - start) * rate - 1e-9)))
        edges = start + np.arange(count) / rate
        starts.append(edges)
        ends.append(np.append(edges[1:], end))
    start_s = np.concatenate(starts)
    return Cells(start_s, start_s, np.concatenate(ends))


def keyframe_cells(stretches: Iterable[Stretch], keyframes_s: np.ndarray) -> Cells:
    """A cell from each key frame to the next within a stretch, wanted at the key frame.

    What a stretch has before its first key frame counts to that one, since the key frame before it may lie in seconds
    that are not to be used. A stretch without any key frame is one cell, wanted at its start.
    """
    times, starts, ends = [], [], []
    for start, end in stretches:
        inside = np.unique(keyframes_s[(keyframes_s >= start) & (keyframes_s < end)])
        times.append(inside if len(inside) else np.array([start]))
        starts.append(np.append([start], inside[1:]))
        ends.append(np.append(inside[1:], [end]))
    return Cells(np.concatenate(times), np.concatenate(starts), np.concatenate(ends))


def frames_on_screen(
    piece: Piece, times_s: np.ndarray, first: int, last: int, backend: str, short_side: int
) -> Iterator[tuple[int, Frame | str]]:
    """Yield (k, frame on screen at times_s[k]) for k = first, first + 1, ..., or (k, why there is none).

    `times_s` (N,) ascends. Goes on beyond `last`, for who has to know how long the last frame stays; until then
    nothing behind it is planned for. After damage, decoding goes on at the first wanted time behind the next key
    frame; where that fails as well some times in a row, ever more key frames are passed over, so that a file cut
    short costs some attempts and not one for every key frame that it lost.
    """
    keyframes_s = np.unique(piece.time_s(piece.keyframes))
    k, stop, failures = first, min(last + 1, len(times_s)), 0
    try:
        with open_reader(piece.path, backend, short_side=short_side, keyframes=piece.keyframes or None) as reader:
            while k < stop:
                try:
                    for frame in reader.iter_frames(times_s[k:stop].tolist()):
                        yield k, frame
                        k, failures = k + 1, 0
                except (DecodeError, OSError) as error:
                    reason, failures = _reason(error), failures + 1
                    behind = _first_behind(times_s, k, keyframes_s, 1 << max(0, failures - _PATIENCE))
                    while k < min(behind, stop):
                        yield k, reason
                        k += 1
                if k == stop:
                    stop = min(len(times_s), stop + max(1, stop - first))
    except (DecodeError, OSError) as error:
        for lost in range(k, len(times_s)):
            yield lost, _reason(error)


def _first_behind(times_s: np.ndarray, k: int, keyframes_s: np.ndarray, ahead: int) -> int:
    """The first wanted time at or behind the key frame that is the `ahead`-th after time number k."""
    keyframe = bisect_right(keyframes_s, times_s[k]) + ahead - 1
    if keyframe >= len(keyframes_s):
        return len(times_s)
    return int(np.searchsorted(times_s, keyframes_s[keyframe]))


def _reason(error: Exception) -> str:
    return error.problem if isinstance(error, DecodeError) else one_line(error)


def merged_skips(skips: Iterable[Skipped]) -> list[Skipped]:
    """Neighbours that touch as one, with the reason of the first: what failed there failed for the same cause."""
    out: list[Skipped] = []
    for skip in skips:
        if out and (out[-1].recording, out[-1].end_s) == (skip.recording, skip.start_s):
            skip = Skipped(skip.recording, skip.path, out[-1].start_s, skip.end_s, out.pop().reason)
        out.append(skip)
    return out
