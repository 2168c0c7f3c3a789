"""What the parts of the comparison page share: one look for each model, numbers as cells and in sentences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headcam.evaluation.comparing.columns import Row
from headcam.evaluation.comparing.pairs import Difference
from headcam.evaluation.scoring.scores import Score
from headcam.pages import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, Estimate
from headcam.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, INK, MUTED)
MARKERS = "osD^vP"
SMALL = 8  # points: legends and the labels of many models


@dataclass(frozen=True)
class _Missing(Estimate):
    """A number that was not measured: its column stays one of numbers."""

    def parts(self) -> tuple[str, str]:
        return "–", ""


MISSING = _Missing(math.nan)


def cell(score: Score | None) -> Estimate:
    """A number as a table's cell, without an interval where it is exact."""
    if score is None:
        return MISSING
    return Estimate(score.value) if score.low == score.high else Estimate(score.value, score.low, score.high)


def points(interval: Interval) -> Estimate:
    """A difference in percentage points, with its sign."""
    return Estimate(interval.estimate, interval.low, interval.high, signed=True)


def words(score: Score) -> str:
    """In a sentence: "31.2 % [29.4, 33.0]"."""
    value, interval = cell(score).parts()
    return f"{value} % {interval}".rstrip()


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def listed(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def versus(difference: Difference) -> str:
    """How a row of differences is called."""
    return f"{difference.first.name} minus {difference.second.name}"


def line(axes: "Axes", number: int, row: Row, x: Sequence[float], scores: Sequence[tuple[float, float, float]]) -> None:
    """The curve of one trained model over `x`, (value, low, high) at each, with the band of its 95 % intervals."""
    order = np.argsort(x)
    x, (value, low, high) = np.asarray(x, float)[order], np.asarray(scores, float)[order].T
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    dashes = "-" if number < len(COLOURS) else "--"
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(x, value, color=colour, marker=marker, markersize=4, linestyle=dashes, label=row.name)
