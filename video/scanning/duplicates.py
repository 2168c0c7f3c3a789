"""The same footage in two recordings: encoded again, scaled, cut. (Files with equal bytes the index finds.)

Each recording comes with a hash of its picture every quarter of a second (`frames.picture_hash`). Three steps
find what two of them share, without ever comparing all pairs:

1. *Votes.* Halves of hashes are sorted; two recordings with an equal half vote for each other and for the offset in
   time between the two moments. Stills vote once, not every quarter of a second.
2. *Runs.* For each pair of recordings and offset with at least two votes all hashes are compared, moment by moment.
   What counts is a run of small distances in which the picture changes: a wall looks the same on every day.
3. *Who keeps it.* The longer recording, the one with the smaller id of equals. The other's seconds are out.

Some 60 bytes of memory and 2 microseconds a hash: 10,000 hours (144 million) take about 9 GB and minutes, after the
CPU-months that decoding them took.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headcam.video.scanning.frames import HASHES_PER_SECOND, Settings
from headcam.video.stretches import Stretch, merged, without

# Bits of a hash that are looked up together: both halves, the even and the odd ones. A hash with five wrong bits is
# found by one of the four in one case of eight.
_HALVES = (0x00000000FFFFFFFF, 0xFFFFFFFF00000000, 0x5555555555555555, 0xAAAAAAAAAAAAAAAA)
_NEIGHBOURS = 8  # of recordings with an equal half each is paired with so many before it, however many there are
_VOTES = 2
_OFFSETS = 16  # of a pair are followed up, those with the most votes first
_DISTINCT = 3  # pictures that a run must show


@dataclass(frozen=True)
class Run:
    """Hashes [start, end) of recording `later` show what `keeper` has `offset` hashes later (positions, not ids)."""

    later: int
    keeper: int
    start: int
    end: int
    offset: int
    distance: float  # mean number of bits that differ


def find_duplicates(
    hashes: Mapping[str, np.ndarray], durations_s: Mapping[str, float], settings: Settings
) -> dict[str, list[list[Any]]]:
    """Stretches whose footage another recording has too.

    Args:
        hashes: recording -> uint64 (T,), one each quarter of a second; 0 where there is none.
        durations_s: recording -> seconds.
        settings: `duplicate_s` and `duplicate_bits` are used.
    Returns:
        recording -> rows [start_s, end_s, "duplicate", mean distance in bits, detail], for those that have any.
    """
    ranked = sorted(hashes, key=lambda recording: (-durations_s[recording], recording))
    rows = [np.asarray(hashes[recording], np.uint64) for recording in ranked]
    runs = [run for pair in _candidates(rows) for run in _runs(rows, *pair, settings)]
    # Where runs overlap the longest one is told, and of equals that with the first keeper.
    runs.sort(key=lambda run: (run.later, run.start - run.end, run.distance, run.keeper, run.offset, run.start))
    found: dict[str, list[list[Any]]] = {}
    taken: dict[int, tuple[Stretch, ...]] = {}
    for run in runs:
        recording, keeper = ranked[run.later], ranked[run.keeper]
        whole = (run.start / HASHES_PER_SECOND, min(run.end / HASHES_PER_SECOND, durations_s[recording]))
        for start, end in without([whole], taken.get(run.later, ())):
            if end - start >= settings.duplicate_s or (start, end) == whole:
                at = start + run.offset / HASHES_PER_SECOND
                detail = f"also in {keeper} from {at:.2f} s"
                found.setdefault(recording, []).append([start, end, "duplicate", round(run.distance, 3), detail])
        taken[run.later] = merged([*taken.get(run.later, ()), whole])
    return found


def _candidates(rows: list[np.ndarray]) -> list[tuple[int, int, int]]:
    """(later, keeper, offset) with enough votes, sorted; an offset is the keeper's position minus the later one's."""
    lengths = np.array([len(row) for row in rows], np.int64)
    if not lengths.sum():
        return []
    every = np.concatenate(rows)
    owner = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
    position = (np.arange(len(every)) - np.repeat(np.cumsum(lengths) - lengths, lengths)).astype(np.int32)
    span = 2 * int(lengths.max()) + 1
    votes = []
    for mask in _HALVES:
        half = every & np.uint64(mask)
        speaks = every != 0
        speaks[1:] &= (half[1:] != half[:-1]) | (owner[1:] != owner[:-1]) | (every[:-1] == 0)
        at = np.flatnonzero(speaks)
        at = at[np.argsort(half[at], kind="stable")]  # stable: equal halves stay in the order of rank and time
        for lag in range(1, min(_NEIGHBOURS, len(at) - 1) + 1):
            first, second = at[:-lag], at[lag:]
            both = (half[first] == half[second]) & (owner[first] != owner[second])
            first, second = first[both], second[both]
            offset = position[first].astype(np.int64) - position[second] + span // 2
            votes.append((owner[second].astype(np.int64) * len(rows) + owner[first]) * span + offset)
    tally, counts = np.unique(np.concatenate(votes), return_counts=True) if votes else (np.zeros(0, np.int64),) * 2
    pair, offset = tally // span, tally % span - span // 2
    # A true offset that lies between two quarters of a second shares its votes among them.
    beside = np.zeros_like(counts)
    near = (np.diff(tally) == 1) if len(tally) > 1 else np.zeros(0, bool)
    beside[1:] += np.where(near, counts[:-1], 0)
    beside[:-1] += np.where(near, counts[1:], 0)
    enough = counts + beside >= _VOTES
    pair, offset, counts = pair[enough], offset[enough], counts[enough]
    order = np.lexsort((offset, -counts, pair))
    pair, offset = pair[order], offset[order]
    starts = np.searchsorted(pair, pair)  # of the pair's first entry: the rank within it is what is left
    kept = np.arange(len(pair)) - starts < _OFFSETS
    return [(int(p) // len(rows), int(p) % len(rows), int(o)) for p, o in zip(pair[kept], offset[kept])]


def _runs(rows: list[np.ndarray], later: int, keeper: int, offset: int, settings: Settings) -> list[Run]:
    """Where recording `later` shows what `keeper` shows at that offset, for long enough."""
    start = max(0, -offset)
    end = min(len(rows[later]), len(rows[keeper]) - offset)
    if end - start < 2:
        return []
    ours, theirs = rows[later][start:end], rows[keeper][start + offset : end + offset]
    known = (ours != 0) & (theirs != 0)
    distance = np.bitwise_count(ours ^ theirs).astype(np.int64)
    same = known & (distance <= settings.duplicate_bits)
    # The two were sampled up to an eighth of a second apart. Where the picture changes more than that within a quarter,
    # a distance no larger than the change speaks neither for nor against.
    change = np.bitwise_count(theirs[1:] ^ theirs[:-1]).astype(np.int64)
    moving = np.maximum(np.append(change, 0), np.insert(change, 0, 0))
    passes = same | (known & (distance < moving))
    runs = []
    edges = np.flatnonzero(np.diff(np.concatenate([[0], passes.astype(np.int8), [0]])))
    for first, after in zip(edges[::2], edges[1::2]):
        here = slice(first, after)
        long_enough = (after - first) / HASHES_PER_SECOND >= settings.duplicate_s
        if long_enough and 2 * same[here].sum() >= after - first and len(np.unique(ours[here])) >= _DISTINCT:
            mean = float(distance[here].mean())
            runs.append(Run(later, keeper, start + int(first), start + int(after), offset, mean))
    return runs
