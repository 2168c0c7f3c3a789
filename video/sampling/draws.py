"""The laws by which a subset is drawn: whole numbers of microseconds on a circle, so that every claim is exact.

All footage is cut into segments, and the segments are laid around a circle in an order that the rule decides. A subset
is the arc of the wanted length from a point that the seed picks, the same for all lengths. Hence
- a smaller subset of a seed lies inside a larger one, and hours are exact;
- every second has the same chance to be drawn, length of the subset / length of the circle, whatever the order,
  because the arc's start is uniform on the circle;
- an arc holds of each stratum what its share of the whole is, up to a segment, because the order interleaves them
  (`interleaved`).

Keyed hashes of content stand for chance (`headcam.randomness.hashed`): no result depends on the order of rows, or on
paths where the rule itself does not ask for them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headcam.randomness import hashed, stream
from headcam.video.stretches import Stretch

MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class Segments:
    """Segments of recordings, n of them, as parallel arrays; none overlaps another.

    Attributes:
        recordings: (R,) ids.
        recording: (n,) int64, index into `recordings`.
        start, length: (n,) int64, microseconds from the recording's start; `length` is at least 1.
    """

    recordings: tuple[str, ...]
    recording: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    @property
    def total(self) -> int:
        """Microseconds in all."""
        return int(self.length.sum())

    @staticmethod
    def cut(stretches: Mapping[str, Sequence[Stretch]], longest_s: float = float("inf")) -> "Segments":
        """Cut each stretch into the fewest equal segments that are not longer than `longest_s`.

        Equal, so that no sliver is left at a stretch's end. A stretch loses less than a microsecond at either end to
        whole numbers; one that has nothing left then is not there.
        """
        recordings = tuple(stretches)
        counts = np.array([len(stretches[name]) for name in recordings], np.int64)
        edges = np.array([edge for name in recordings for stretch in stretches[name] for edge in stretch], np.float64)
        first, last = edges.reshape(-1, 2).T
        start, end = (np.rint(edge * MICROSECONDS).astype(np.int64) for edge in (first, last))
        start += start / MICROSECONDS < first  # up, and the end down, so that nothing outside is taken in
        end -= end / MICROSECONDS > last
        recording = np.repeat(np.arange(len(recordings)), counts)
        recording, start, length = (column[end > start] for column in (recording, start, end - start))

        pieces = np.ones(len(start), np.int64)
        if np.isfinite(longest_s):
            pieces = -(-length // max(1, round(longest_s * MICROSECONDS)))
        of = np.repeat(np.arange(len(start)), pieces)
        k = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        here, after = length[of] * k // pieces[of], length[of] * (k + 1) // pieces[of]
        return Segments(recordings, recording[of], start[of] + here, after - here)

    def arc(self, order: np.ndarray, size: int, seed: int, purpose: str) -> "Segments":
        """The pieces of the segments that lie in an arc of the circle, from the point that the seed picks.

        Args:
            order: (n,) positions of the segments in the order in which they lie around the circle.
            size: length of the arc in microseconds, from 0 to `total`.
            seed, purpose: of the draw.
        """
        total, start = self.total, _start(self.total, seed, purpose)
        at = np.empty(len(self), np.int64)
        at[order] = np.cumsum(self.length[order]) - self.length[order]
        parts = []
        for low, high in ((start, min(start + size, total)), (0, start + size - total)):  # before, behind the seam
            first, last = np.maximum(at, low), np.minimum(at + self.length, high)
            inside = np.flatnonzero(last > first)
            parts.append((self.recording[inside], (self.start + first - at)[inside], (last - first)[inside]))
        return Segments(self.recordings, *(np.concatenate(columns) for columns in zip(*parts)))

    def stretches(self) -> dict[str, tuple[Stretch, ...]]:
        """The segments as stretches of their recordings, in the order of ids; those that touch become one."""
        rank = np.argsort(np.argsort(np.array(self.recordings)))
        order = np.lexsort((self.start, rank[self.recording]))
        recording, start, end = self.recording[order], self.start[order], (self.start + self.length)[order]
        new = np.ones(len(order), bool)
        new[1:] = (recording[1:] != recording[:-1]) | (start[1:] != end[:-1])
        heads = np.flatnonzero(new)
        tails = np.append(heads[1:], len(order))[: len(heads)] - 1
        out: dict[str, list[Stretch]] = {}
        for k, a, b in zip(recording[heads], start[heads] / MICROSECONDS, end[tails] / MICROSECONDS):
            out.setdefault(self.recordings[k], []).append((float(a), float(b)))
        return {name: tuple(found) for name, found in out.items()}


def keys(names: Sequence[str]) -> np.ndarray:
    """A fixed number for each name, (n,) uint64: what `hashed` and `interleaved` know it by."""
    return np.array([int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) for name in names], np.uint64)


def interleaved(
    length: np.ndarray, identity: Sequence[np.ndarray], stratum: np.ndarray, seed: int, purpose: str
) -> np.ndarray:
    """An order of segments in which every stretch of the order is a fair mixture of all strata.

    Within its stratum a segment comes in the order of its keyed hash. Its place is the share of the stratum's length
    that lies before its middle, plus a phase that the stratum's own key picks, modulo 1; all segments are then sorted
    by place. Between two places that are t apart lies the share t of each stratum, up to a segment; a stratum of one
    segment stands anywhere with the same chance.

    Args:
        length: (n,) int64, above 0.
        identity: integer columns (n,) that together name a segment; equal ones may not occur twice.
        stratum: (n,) uint64, the stratum's key (`keys`).
        seed, purpose: of the draw.
    Returns:
        (n,) positions: the first segment of the order, the second, ...
    """
    chance = hashed([*identity], seed, f"segment:{purpose}")
    order = np.lexsort((*identity, chance, stratum))
    sizes, strata = length[order], stratum[order]
    heads = np.flatnonzero(np.append(True, strata[1:] != strata[:-1])[: len(order)])
    counts = np.diff(np.append(heads, len(order)))
    before = np.cumsum(sizes) - sizes
    before -= np.repeat(before[heads], counts)
    whole = np.repeat(np.add.reduceat(sizes, heads), counts)
    phase = (hashed([strata], seed, f"stratum:{purpose}") >> np.uint64(11)) * 2.0**-53
    place = ((before + sizes / 2) / whole + phase) % 1.0
    return order[np.lexsort((chance[order], place))]


def whole(
    length: np.ndarray, order: np.ndarray, size: int, seed: int, purpose: str, at_least_one: bool = False
) -> np.ndarray:
    """Which members of a circle have their middle in an arc of it: a draw of members that are not cut.

    Each has the same chance, `size` / length of the circle, however long it is; together they are about `size` long.

    Args:
        length: (n,) int64, at least 1; the circle is as long as all together.
        order: (n,) positions of the members in the order in which they lie around the circle.
        size: of the arc, from the point that the seed picks.
        seed, purpose: of the draw.
        at_least_one: where the arc holds no middle, take the next one that it would come to.
    Returns:
        (n,) bool.
    """
    total = int(length.sum())
    middle = np.empty(len(length), np.int64)
    middle[order] = np.cumsum(length[order]) - length[order] // 2 - 1
    away = (middle - _start(total, seed, purpose)) % total
    taken = away < size
    if at_least_one and not taken.any():
        taken[np.argmin(away)] = True
    return taken


def _start(total: int, seed: int, purpose: str) -> int:
    """Where the arcs of a draw start on a circle of length `total`."""
    return int(stream(seed, f"arc:{purpose}", 0).integers(total))
