"""Cells: the time of a recording cut into steps of 1/rate seconds, and the frame on screen at the start of each.

The frame store decodes cells in segments, which different processes work on. A frame that fills several cells counts
once, with their seconds added, and this holds across the borders of segments without one knowing of the other.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from headcam.errors import DecodeError
from headcam.video.metadata import one_line
from headcam.video.readers import Frame, Reader, open_reader


@dataclass(frozen=True)
class Skipped:
    """A stretch of a recording that no picture could be had from."""

    recording: str
    path: str
    start_s: float
    end_s: float
    reason: str


@dataclass(frozen=True)
class Segment:
    """Cells [first, last) of a recording with `cells` cells, at `rate` a second; a still picture has rate 0."""

    recording: str
    path: str
    bytes: int
    duration_s: float
    rate: float
    keyframes: tuple[int, ...]
    cells: int
    first: int
    last: int

    def start_s(self, cell: int) -> float:
        return min(cell / self.rate, self.duration_s) if self.rate else 0.0

    def seconds(self, cell: int) -> float:
        return self.start_s(cell + 1) - self.start_s(cell)

    def skipped(self, cell: int, reason: str) -> Skipped:
        return Skipped(self.recording, self.path, self.start_s(cell), self.start_s(self.last), reason)


def segment_frames(
    segment: Segment, backend: str, short_side: int, count: Callable[[int], None]
) -> Iterator[tuple[Frame, float] | Skipped]:
    """Yield the frames that the cells of a segment add, each with its seconds, and at the end what was skipped.

    A frame belongs to the first cell that it fills. So one already on screen in the cell before the segment is left
    to the segment before, and the last one is followed into the cells behind the segment.
    """
    before = segment.start_s(segment.first - 1) if segment.first else -math.inf
    held: tuple[Frame, float] | None = None
    cell = segment.first
    try:
        with open_reader(segment.path, backend, short_side=short_side, keyframes=segment.keyframes or None) as reader:
            for cell, frame in _cells(reader, segment):
                inside = cell < segment.last
                count(int(inside))
                if held is not None and held[0].pts == frame.pts:
                    held = (frame, held[1] + segment.seconds(cell))
                elif not inside:
                    break
                elif frame.time_s > before:
                    if held is not None:
                        yield held
                    held = (frame, segment.seconds(cell))
    except (DecodeError, OSError) as error:
        if held is not None:
            yield held
        failed = getattr(error, "cell", cell)
        reason = error.problem if isinstance(error, DecodeError) else one_line(error)
        if failed < segment.last:
            yield segment.skipped(failed, reason.removeprefix(segment.path).lstrip(": "))
            count(segment.last - failed)
        return
    if held is not None:
        yield held


def _cells(reader: Reader, segment: Segment) -> Iterator[tuple[int, Frame]]:
    """(cell, frame on screen at its start) from the segment's first cell to the recording's last."""
    cells = range(segment.first, segment.cells)
    frames = reader.iter_frames(segment.start_s(cell) for cell in cells)
    for cell in cells:
        try:
            yield cell, next(frames)
        except (DecodeError, OSError) as error:
            error.cell = cell
            raise
