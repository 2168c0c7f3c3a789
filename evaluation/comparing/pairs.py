"""Two models on the same test pictures: by how much they differ, on which classes, on which pictures, how alike.

All of it follows from what each model said of each picture (`items.parquet`). What is hard or easy for both models
alike cancels in a paired difference, so its interval is shorter than those of the two scores suggest. Where the two
were not tested on the same pictures (one of them could not be read then, say) nothing is paired and the difference
gets the wider interval of independent samples, which says so.

What is looked for among many (the class that differs most, the confusion that differs most) is extreme by selection;
such findings carry a test that is corrected for how many there were to choose from.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from headcam.evaluation.comparing.columns import Column, Grid, Row
from headcam.evaluation.scoring.guesses import Guesses
from headcam.randomness import stream
from headcam.statistics import Interval, bootstrap_mean_over_draws, bootstrap_paired_difference

ALL_PAIRS_UP_TO = 6  # models; of more, each is compared with the first
_LEVEL = 0.95
_SEED = 0  # of the resampling


@dataclass(frozen=True)
class Difference:
    """`first` minus `second` in `column`, in percentage points.

    Attributes:
        interval: with its 95 % ends.
        paired: on the same pictures; else the interval is that of independent samples.
        comparisons: how many differences of this kind stand beside it.
        stands: whether 0 is outside also of the interval that is corrected for so many (Bonferroni).
    """

    column: Column
    first: Row
    second: Row
    interval: Interval
    paired: bool
    comparisons: int
    stands: bool


def model_pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """All pairs, later minus earlier; of more than `ALL_PAIRS_UP_TO` rows each one minus the first."""
    if len(rows) > ALL_PAIRS_UP_TO:
        return [(row, rows[0]) for row in rows[1:]]
    return [(b, a) for a, b in combinations(rows, 2)]


def differences(grid: Grid, column: Column) -> list[Difference]:
    """Of the trained models in a column, each with each or with the first."""
    return _corrected(grid, column, model_pairs(grid.trained_in(column)))


def above_baselines(grid: Grid, column: Column) -> list[Difference]:
    """Each trained model minus its random twin, and minus raw pixels, where they were measured."""
    pairs = [
        (row, other)
        for row in grid.trained_in(column)
        for role in ("random", "pixels")
        if (other := grid.baseline(row, role, column)) is not None
    ]
    return _corrected(grid, column, pairs)


def _corrected(grid: Grid, column: Column, pairs: list[tuple[Row, Row]]) -> list[Difference]:
    if column.top is None:
        return []
    return [difference(a, b, column, comparisons=len(pairs)) for a, b in pairs]


def difference(first: Row, second: Row, column: Column, *, comparisons: int = 1) -> Difference:
    """`first` minus `second`, paired where both said something of the same pictures."""
    hits = paired_hits(first, second, column)
    if hits is None:
        interval, strict = (_independent(first, second, column, level) for level in (_LEVEL, 1 - 0.05 / comparisons))
    else:
        purpose = f"compare: {column.metric}, {first.name} minus {second.name}"
        interval, strict = (
            _paired(*hits, stream(_SEED, purpose, counter), level).percent()
            for counter, level in enumerate((_LEVEL, 1 - 0.05 / comparisons))
        )
        if comparisons == 1:
            strict = interval
    stands = strict.low > 0 or strict.high < 0
    return Difference(column, first, second, interval, hits is not None, comparisons, stands)


def paired_hits(first: Row, second: Row, column: Column) -> tuple[np.ndarray, np.ndarray] | None:
    """Which pictures each had right, (draws, n) bool twice, picture by picture; None where they cannot be paired.

    A few-shot score is the mean of several draws; the draws that both have are paired too (they follow from the same
    rule, so equal numbers are equal lists of labels).
    """
    if not same_pictures(first, second, column):
        return None
    of_first, of_second = (_by_draw(row, column) for row in (first, second))
    shared = sorted(of_first.keys() & of_second.keys())
    if not shared:
        return None
    first_hits, second_hits = (
        np.stack([of[draw].right(column.top) for draw in shared]) for of in (of_first, of_second)
    )
    return first_hits, second_hits


def same_pictures(first: Row, second: Row, column: Column) -> bool:
    """Whether both were tested on the same pictures (by SHA-256) with the same true classes."""
    if column not in first.origin or column not in second.origin:
        return False
    a, b = first.origin[column].items, second.origin[column].items
    # Probes order pictures by class and content, so equal sets are in equal order under any file names.
    return a.sha256 == b.sha256 and a.classes == b.classes and bool(np.array_equal(a.labels, b.labels))


def _by_draw(row: Row, column: Column) -> dict[int, Guesses]:
    """Draw -> what was said of the pictures; a measurement without draws is its own draw -1."""
    whole = row.guesses(column)
    if whole is not None:
        return {-1: whole}
    probe, draws = row.origin[column], re.compile(re.escape(column.stem) + r"/draw(\d+)")
    stems = {stem for model, stem in probe.items.guesses if model == row.models[probe.number]}
    return {int(found[1]): row.guesses(column, found[0]) for stem in stems if (found := draws.fullmatch(stem))}


def _paired(first: np.ndarray, second: np.ndarray, rng: np.random.Generator, level: float) -> Interval:
    if len(first) == 1:
        return bootstrap_paired_difference(first[0], second[0], rng=rng, confidence_level=level)
    return bootstrap_mean_over_draws(
        first.astype(np.float64) - second.astype(np.float64), rng=rng, confidence_level=level
    )


def _independent(first: Row, second: Row, column: Column, level: float) -> Interval:
    """From the intervals of both scores (Newcombe 1998, "Interval estimation for the difference", method 10).

    The distances to the ends of each interval, as far as independent ones add up: in squares. For a level other than
    95 % they are stretched by the ratio of normal quantiles.
    """
    a, b = first.cells[column], second.cells[column]
    stretch = stats.norm.ppf(0.5 + level / 2) / stats.norm.ppf(0.5 + _LEVEL / 2)
    estimate = a.value - b.value
    low = estimate - stretch * math.hypot(a.value - a.low, b.high - b.value)
    high = estimate + stretch * math.hypot(a.high - a.value, b.value - b.low)
    return Interval(estimate, low, high, min(a.n, b.n), level)


@dataclass(frozen=True)
class ClassDifference:
    """Of one class: `first` minus `second` in points, and whether it stands after correction for all classes."""

    name: str
    first: float
    second: float
    interval: Interval
    stands: bool


def class_differences(first: Row, second: Row, column: Column, count: int) -> list[ClassDifference]:
    """The `count` classes whose accuracy differs most between two models, largest first.

    `stands`: the exact sign test on the pictures that only one of the two has right (McNemar 1947), times the number
    of classes, is below 5 %. Few-shot measurements with several draws are left out: their pictures count many times.
    """
    hits = paired_hits(first, second, column)
    if hits is None or len(hits[0]) != 1:
        return []
    (a,), (b,) = hits
    items = first.origin[column].items
    total = np.bincount(items.labels, minlength=len(items.classes))
    sums = [np.bincount(items.labels, weights=h, minlength=len(items.classes)) for h in (a, b)]
    gap = np.divide(sums[0] - sums[1], total, out=np.zeros(len(total)), where=total > 0)
    found = []
    for label in np.lexsort((np.arange(len(gap)), -np.abs(gap)))[:count]:
        if gap[label] == 0:
            break
        of = items.labels == label
        rng = stream(_SEED, f"compare: class {items.classes[label]}, {first.name} minus {second.name}", 0)
        interval = bootstrap_paired_difference(a[of], b[of], rng=rng).percent()
        only = int((a[of] & ~b[of]).sum()), int((b[of] & ~a[of]).sum())
        chance = stats.binomtest(only[0], sum(only)).pvalue
        name = class_title(first, column, label)
        means = (100 * float(h[of].mean()) for h in (a, b))
        found.append(ClassDifference(name, *means, interval, bool(chance * np.count_nonzero(total) < 0.05)))
    return found


@dataclass(frozen=True)
class Confusion:
    """How often `true` was taken for `said`, by each of two models, of `n` pictures of `true`."""

    true: str
    said: str
    first: int
    second: int
    n: int


def confusions(first: Row, second: Row, column: Column, count: int) -> list[Confusion]:
    """The `count` errors (true class, best class) whose number differs most between two models, largest first."""
    if not same_pictures(first, second, column):
        return []
    guesses = [row.guesses(column) for row in (first, second)]
    if None in guesses:
        return []
    items = first.origin[column].items
    classes = len(items.classes)
    tables = []
    for guess in guesses:
        said = guess.top[:, 0].astype(np.int64)
        wrong = said != items.labels
        tables.append((items.labels * classes + said)[wrong])
    codes, place = np.unique(np.concatenate(tables), return_inverse=True)
    a, b = (np.bincount(part, minlength=len(codes)) for part in (place[: len(tables[0])], place[len(tables[0]) :]))
    found = []
    for k in np.lexsort((codes, -np.abs(a - b)))[:count]:
        if a[k] == b[k]:
            break
        true, said = divmod(int(codes[k]), classes)
        names = (class_title(first, column, label) for label in (true, said))
        found.append(Confusion(*names, int(a[k]), int(b[k]), int((items.labels == true).sum())))
    return found


@dataclass(frozen=True)
class Example:
    """A test picture on which models differ: its name, hash and true class, and each model's best class and whether
    that is right, in the order of the rows."""

    name: str
    sha256: str
    true: str
    said: tuple[tuple[str, bool], ...]


def examples(rows: Sequence[Row], column: Column, count: int) -> tuple[list[Example], int]:
    """Pictures that at least one of the models has right and at least one has wrong, and how many there are.

    Which are shown follows from a hash of their content alone (SHA-256 of "example" and the picture's SHA-256,
    smallest first), so nobody has picked them.
    """
    guesses = [row.guesses(column) for row in rows]
    if len(rows) < 2 or None in guesses or not all(same_pictures(rows[0], row, column) for row in rows[1:]):
        return [], 0
    items = rows[0].origin[column].items
    hits = np.stack([guess.top[:, 0] == items.labels for guess in guesses])
    differing = np.flatnonzero(hits.any(axis=0) & ~hits.all(axis=0))
    order = sorted(differing, key=lambda k: hashlib.sha256(f"example {items.sha256[k]}".encode()).digest())
    found = [
        Example(
            items.names[k],
            items.sha256[k],
            class_title(rows[0], column, items.labels[k]),
            tuple(
                (class_title(rows[0], column, guess.top[k, 0]), bool(hit)) for guess, hit in zip(guesses, hits[:, k])
            ),
        )
        for k in order[:count]
    ]
    return found, len(differing)


def class_title(row: Row, column: Column, label: int) -> str:
    """The readable name of a class where the set knows it, else its name; both where readable names repeat."""
    items = row.origin[column].items
    if not items.titles:
        return items.classes[label]
    title = items.titles[label]
    return title if items.titles.count(title) == 1 else f"{title} ({items.classes[label]})"
