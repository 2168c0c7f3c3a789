"""Stretches of a recording: [start_s, end_s) in seconds from its start, and the little arithmetic on them.

What was verified, what a manifest drew and what a store holds are all lists of stretches. Results are sorted, apart
from each other and none is empty, so that equal sets of seconds are equal lists. Inputs may come in any order and
overlap.
"""

from collections.abc import Iterable
from itertools import pairwise

Stretch = tuple[float, float]


def merged(stretches: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """The seconds that lie in any of `stretches`; those that touch become one."""
    out: list[Stretch] = []
    for start, end in sorted(s for s in stretches if s[1] > s[0]):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return tuple(out)


def without(stretches: Iterable[Stretch], holes: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """The seconds of `stretches` that lie in none of `holes`."""
    edges = [-float("inf"), *(edge for hole in merged(holes) for edge in hole), float("inf")]
    return common(stretches, [pair for k, pair in enumerate(pairwise(edges)) if k % 2 == 0])


def common(a: Iterable[Stretch], b: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """The seconds that lie both in `a` and in `b`."""
    first, second, out = merged(a), merged(b), []
    j = 0
    for start, end in first:
        while j < len(second) and second[j][1] <= start:
            j += 1
        k = j
        while k < len(second) and second[k][0] < end:
            out.append((max(start, second[k][0]), min(end, second[k][1])))
            k += 1
    return tuple(out)


def total_s(stretches: Iterable[Stretch]) -> float:
    """How many seconds lie in `stretches`, each counted once."""
    return sum(end - start for start, end in merged(stretches))
