"""The last word on a damaged recording: what passed is asked of the default reader, and what it refuses is out too.

On a sound file a decoder that goes from start to end and a reader that seeks see the same frames. On a damaged one they
may differ by some: the reader gives up frames that were decoded before a damage and are shown after it, and starts
again at other key frames. Whoever trains reads through the reader, so its answer counts. Only recordings in which
something was wrong are decoded this second time.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from headcam.errors import DecodeError
from headcam.video.readers import open_reader
from headcam.video.scanning.frames import Shown, Task
from headcam.video.stretches import Stretch, merged

_SHORT_SIDE = 16  # pixels: the pictures are thrown away


def refused_by_reader(
    task: Task, stretches: Sequence[Stretch], shown: Shown, beat: Callable[[], None]
) -> list[tuple[float, float, str]]:
    """Seconds for which the reader has no frame, or another one than the scan saw.

    Args:
        task: the recording.
        stretches: what to read of it.
        shown: what the scan saw of it; the answer may change where a frame begins, or ends by its own duration.
        beat: called before each frame.
    Returns:
        (start_s, end_s, the reader's words), those that touch as one, with the words of the first.
    """
    pieces = list(_pieces(stretches, sorted({*shown.time, *shown.own_end})))
    times = [time_s for start, end in pieces for time_s in (start, float(np.nextafter(end, start)))]
    words = _refusals(task, times, shown.time, beat)
    refused = {piece: words[2 * k] or words[2 * k + 1] for k, piece in enumerate(pieces)}
    first = {start: said for (start, _), said in refused.items()}
    return [(start, end, first[start]) for start, end in merged(piece for piece, said in refused.items() if said)]


def _pieces(stretches: Iterable[Stretch], edges: Sequence[float]) -> Iterator[Stretch]:
    """`stretches`, cut at the ascending `edges`."""
    for start, end in stretches:
        first, after = np.searchsorted(edges, [start, end], side="right")
        cuts = [start, *(edge for edge in edges[first:after] if edge < end), end]
        yield from pairwise(cuts)


def _refusals(task: Task, times_s: Sequence[float], seen_s: Sequence[float], beat: Callable[[], None]) -> list[str]:
    """For each time the reader's reason not to give the last of the frames at `seen_s`; empty where it gives it."""
    words = []
    try:
        with open_reader(task.path, keyframes=task.keyframes or None, short_side=_SHORT_SIDE) as reader:
            for time_s in times_s:
                beat()
                # One at a time: asked for many, the reader may leave out a damaged packet that none of them needs.
                try:
                    (frame,) = reader.frames_at([time_s])
                    right_s = seen_s[max(bisect_right(seen_s, time_s) - 1, 0)]
                    other = f"the reader shows the frame of {frame.time_s:.6g} s"
                    words.append("" if frame.time_s == right_s else other)
                except DecodeError as error:
                    words.append(_said(task, error))
    except DecodeError as error:  # it cannot even be opened
        return [_said(task, error)] * len(times_s)
    return words


def _said(task: Task, error: DecodeError) -> str:
    return error.problem.removeprefix(task.path).lstrip(": ")
