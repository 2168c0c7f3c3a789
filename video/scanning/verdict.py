"""What is wrong with one recording: from what decoding took down (`frames`) to stretches with a reason.

- `undecodable`: from the end of the last good frame to the next good key frame. A frame that the decoder marks as
  corrupt counts as refused, and so does all that was decoded after a damage before a key frame came: it may lean on
  what is missing. Of a recording with any damage the rest is then read by the default reader too (`read_back`).
- `timestamps`: gaps, and seconds that the file has twice because its clock jumps back.
- `black`: a covered lens, a camera in its bag. `frozen`: the same picture over and over.

`look` is what runs in a worker process. It knows of no other recording; `duplicate` is for `duplicates` to find.
"""

import base64
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from headcam.errors import DecodeError
from headcam.video.metadata import is_picture, one_line
from headcam.video.quarantine import REASONS
from headcam.video.readers import END_TOLERANCE_S
from headcam.video.scanning.frames import HASHED_S, HASHES_PER_SECOND, HEIGHT, WIDTH, Finding, Shown, Task, decode
from headcam.video.scanning.read_back import refused_by_reader
from headcam.video.stretches import Stretch, merged, without

_FOLLOWS = "needs a frame that is damaged"
_ENDLESS_S = 1.0  # and 5 %: a header that claims so much more than its packets hold was written for a longer file


def look(task: Task, beat: Callable[[Any], None]) -> Finding:
    """Decode one recording and say what is wrong with it. `beat` is told how many packets were decoded so far."""
    if is_picture(task.path):
        return _look_at_picture(task)
    if task.stop_after == 0:
        return unanswered(task, task.lost)
    try:
        shown = decode(task, beat)
    except DecodeError as error:
        return unanswered(task, error.problem.removeprefix(task.path).lstrip(": "), lost=bool(task.lost))
    return _judged(task, shown, beat)


def unanswered(task: Task, reason: str, lost: bool = True) -> Finding:
    """The finding of a recording that gave nothing at all."""
    return Finding([[0.0, task.duration_s, "undecodable", 0.0, reason]], task.duration_s, lost=lost)


def _look_at_picture(task: Task) -> Finding:
    try:
        with Image.open(task.path) as picture:
            luma = np.asarray(picture.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.NEAREST), np.float64)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return unanswered(task, one_line(error), lost=False)
    mean, settings = luma.mean(), task.settings
    if mean <= settings.black_luma and luma.std() <= settings.black_spread:
        return Finding([[0.0, 0.0, "black", round(mean, 3), "a black picture"]], frames=1)
    return Finding(frames=1)


def _judged(task: Task, shown: Shown, beat: Callable[[Any], None]) -> Finding:
    """From the columns to stretches."""
    settings, keyframes_only = task.settings, task.settings.decode == "keyframes"
    time = np.array(shown.time)
    good = ~_suspect(shown) if len(time) else np.zeros(0, bool)
    marks, lost_at = _marks(shown, time, good)
    steps = np.diff(marks)
    step = float(np.median(steps)) if len(steps) else 0.0
    gap = max(settings.gap_s, settings.gap_steps * step)
    claimed_s = task.duration_s
    if 1.05 * task.duration_s + _ENDLESS_S < shown.header_s <= HASHED_S:
        claimed_s = shown.header_s

    # When what is shown at each mark leaves the screen; the last stays until the end, if that is not far.
    last_until = min(max(task.duration_s, marks[-1] + step), marks[-1] + gap) if len(marks) else 0.0
    if len(marks) and keyframes_only:
        last_until = max(task.duration_s, marks[-1])
    if len(time) and not keyframes_only and time[-1] == marks[-1]:
        last_until = min(last_until, shown.own_end[-1] + END_TOLERANCE_S)  # the reader's rule
    if len(marks) and shown.end:
        last_until = min(last_until, marks[-1] + step)
    until = np.append(marks[1:], last_until)
    places = np.searchsorted(marks, time)
    ends = until[places]
    if lost_at and not keyframes_only:  # before a lost frame, a frame stays for its own duration, as in the reader
        next_lost = np.isin(np.append(marks[1:], math.nan), [at for at, _ in lost_at])[places]
        ends = np.where(next_lost, np.minimum(ends, shown.own_end), ends)
    in_gap = np.zeros(len(time), bool) if keyframes_only else ends - time > gap
    leaves = np.minimum(np.where(in_gap, time + step, ends), max(claimed_s, step))

    found: dict[str, list[list[Any]]] = {reason: [] for reason in REASONS}
    covered = list(zip(time[good].tolist(), ends[good].tolist()))
    first_lost = lost_at[0][0] if lost_at else math.inf
    if covered and covered[0][0] < first_lost and (keyframes_only or covered[0][0] <= 2 * step):
        covered[0] = (0.0, covered[0][1])  # a first frame that comes late by a frame or two hides no damage
    if keyframes_only and not len(marks) and not shown.end:
        covered = [(0.0, task.duration_s)]  # the only key frame is cut away by an edit list
    for start, end in without([(0.0, claimed_s)], covered):
        if end - start > 1e-6:
            lost = [words for at, words in lost_at if start - 1e-6 <= at < end]
            cause = next((words for words in lost if words != _FOLLOWS), lost[0] if lost else "")
            at_end = end >= task.duration_s and (shown.end or "the file ends before")
            words = cause or at_end or "nothing to decode"
            found["undecodable"].append([start, end, "undecodable", float(len(lost)), words])
    gaps = list(zip(time[in_gap & good].tolist(), ends[in_gap & good].tolist()))
    if keyframes_only:  # packets tell as much, undecoded
        all_times = np.unique(np.array(shown.packet_times)[np.isfinite(shown.packet_times)])
        step = float(np.median(np.diff(all_times))) if len(all_times) > 1 else 0.0
        wide = np.flatnonzero(np.diff(all_times) > max(settings.gap_s, settings.gap_steps * step))
        gaps = list(zip(all_times[wide].tolist(), all_times[wide + 1].tolist()))
    for start, end in gaps:
        found["timestamps"].append([start + step, end, "timestamps", end - start, f"no frame for {end - start:.3g} s"])
    for start, end in shown.back:
        words = f"the clock jumps back by {end - start:.3g} s: these seconds are there twice"
        found["timestamps"].append([start, min(end, claimed_s), "timestamps", end - start, words])

    mean, same_as = np.array(shown.mean), np.array(shown.same_as, int)
    black = (mean <= settings.black_luma) & (np.array(shown.spread) <= settings.black_spread)
    for first, last in _runs(black):
        enough = last > first or not keyframes_only  # one black key frame says little of what follows it
        if enough and leaves[last] - time[first] >= settings.black_s:
            level = float(mean[first : last + 1].mean())
            found["black"].append([time[first], leaves[last], "black", level, f"mean luma {level:.1f} of 255"])
    firsts = np.unique(same_as)
    for first, last in zip(firsts, np.append(firsts[1:], len(time)) - 1):
        if last > first and leaves[last] - time[first] >= settings.frozen_s:
            change, pictures = float(max(shown.change[first : last + 1])), last - first + 1
            words = f"the same picture {pictures} times"
            found["frozen"].append([time[first], leaves[last], "frozen", change, words])

    stretches = _apart(found)
    if shown.is_doubtful and not keyframes_only:
        left = without([(0.0, task.duration_s)], [(row[0], row[1]) for row in stretches])
        for start, end, words in refused_by_reader(task, left, shown, lambda: beat(len(shown.packet_times))):
            found["undecodable"].append([start, end, "undecodable", 0.0, words])
        stretches = _apart(found)
    return Finding(
        stretches=stretches,
        claimed_s=claimed_s,
        frames=int(good.sum()),
        frame_s=step,
        notes=_notes(task, shown),
        hashes=_packed_hashes(task, shown, stretches),
        lost=bool(task.lost),
    )


def _suspect(shown: Shown) -> np.ndarray:
    """bool (frames,): the frame is corrupt, or leans on a packet that was refused or on a corrupt frame.

    A frame leans on what was decoded between it and the last good key frame that comes before it both in the file and
    on the screen: the leading pictures of an open GOP follow their key frame in the file and still need the GOP before.
    """
    corrupt = np.array(shown.corrupt)
    bad = sorted({*shown.refused, *(order for order, is_bad in zip(shown.order, shown.corrupt) if is_bad)})
    if not bad:
        return corrupt
    keys = sorted((shown.order[k], shown.time[k]) for k in np.flatnonzero(np.array(shown.key) & ~corrupt))
    suspect = corrupt.copy()
    for k, (order, time_s) in enumerate(zip(shown.order, shown.time)):
        worst = bisect_right(bad, order) - 1  # the last damage that was decoded before this frame
        if worst < 0 or suspect[k]:
            continue
        at = bisect_right(keys, (order, math.inf)) - 1
        while at >= 0 and keys[at][1] > time_s:
            at -= 1
        suspect[k] = at < 0 or keys[at][0] < bad[worst]
    return suspect


def _marks(shown: Shown, time: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Times at which something new should be on screen, ascending; and which of them are lost, with the reason.

    These are the frames that came out, and the packets in which a frame was lost.
    """
    lost = {}
    for at, is_corrupt in zip(time[~good].tolist(), np.array(shown.corrupt, bool)[~good]):
        lost[at] = "the decoder marks it as corrupt" if is_corrupt else _FOLLOWS
    known = set(time.tolist())
    for order, words in shown.refused.items():
        at = shown.packet_times[order] if order < len(shown.packet_times) else math.nan
        if math.isfinite(at) and at not in known:
            lost[at] = words
    return np.array(sorted(known | set(lost))), sorted(lost.items())


def _runs(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last) of each stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    for first, after in zip(edges[::2], edges[1::2]):
        yield int(first), int(after) - 1


def _apart(found: dict[str, list[list[Any]]]) -> list[list[Any]]:
    """Rows without overlap: a second that is bad twice counts for the reason that comes first in `REASONS`.

    Times stay as exact as they are: where a hole ends is the time of a frame, to the last bit.
    """
    rows: list[list[Any]] = []
    taken: tuple[Stretch, ...] = ()
    for reason in REASONS:
        for start, end, _, measure, detail in found[reason]:
            for left in without([(start, end)], taken):
                rows.append([*(float(edge) for edge in left), reason, round(float(measure), 6), detail])
        taken = merged([*taken, *((row[0], row[1]) for row in found[reason])])
    rows.sort(key=lambda row: row[:3])
    joined: list[list[Any]] = []
    for row in rows:
        if joined and row[2] == "undecodable" == joined[-1][2] and row[0] == joined[-1][1]:
            joined[-1][1], joined[-1][3] = row[1], joined[-1][3] + row[3]  # one damage, told by its first words
        else:
            joined.append(row)
    return joined


def _notes(task: Task, shown: Shown) -> list[str]:
    notes = []
    if shown.not_rising:
        notes.append(f"{shown.not_rising} frames whose time is not later than the one before are passed over")
    if task.settings.decode == "all" and len(shown.time) > 1 and not shown.refused:
        rate = (len(shown.time) - 1) / (shown.time[-1] - shown.time[0])
        if shown.rate and abs(shown.rate / rate - 1) > 0.2 and abs(shown.rate - rate) * task.duration_s > 2:
            notes.append(f"the header says {shown.rate:.6g} frames/s, frames come at {rate:.6g}")
    if shown.end and not task.lost:
        notes.append(f"reading ended early: {shown.end}")
    if task.duration_s > HASHED_S:
        notes.append(f"says that it lasts {task.duration_s / 3600:.0f} hours: not compared with other recordings")
    return notes


def _packed_hashes(task: Task, shown: Shown, stretches: Sequence[Sequence[Any]]) -> str:
    """Hashes on their grid; none in stretches that are out already: what is the same there is the same nothing."""
    if not shown.hashes:
        return ""
    grid = np.zeros(max(shown.hashes) + 1, "<u8")
    grid[list(shown.hashes)] = np.array(list(shown.hashes.values()), np.uint64)
    for start, end, *_ in stretches:
        grid[math.ceil(start * HASHES_PER_SECOND) : math.ceil(end * HASHES_PER_SECOND)] = 0
    return base64.b64encode(grid.tobytes()).decode()
