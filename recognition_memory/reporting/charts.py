"""What the charts of the memory report share: one look for each rule and model, one axis for exposures, human lines.

Accuracies are fractions in tables and percent on the page. A band or a bar is always a 95 % interval.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headcam.pages import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, Estimate
from headcam.recognition_memory.human import HumanFigure, human_level
from headcam.recognition_memory.scoring.table import POOLED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RULES = {  # name -> (what it does, colour, marker)
    "calibrated": ("drop since before study", BLUE, "o"),
    "raw": ("lower loss, as published", ORANGE, "s"),
    "unstudied_reference": ("against runs that studied neither", GREEN, "D"),
    "role_swapped": ("against the run that studied the foil; two traces, upper bound", PURPLE, "^"),
    "drop_since_first": ("drop since the first exposure", MUTED, "v"),
}
MODEL_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, INK, MUTED)
MODEL_MARKERS = "osD^vP"
SMALL = 8  # points: legends and the labels of small panels
_POOLED_OVER = {"novel", "exemplar", "state"}
_LOG_FROM = 12  # exposures: longer curves get a logarithmic axis, or the first ones could not be told apart
_TICKS = (0, *(digit * 10**k for k in range(7) for digit in (1, 2, 5)))


def rule_name(rule: str) -> str:
    """A rule as the page writes it."""
    return rule.replace("_", " ")


def percent(row: pd.Series, digits: int = 1) -> Estimate:
    """A row of accuracy.csv as a cell, in percent; without an interval where it has none.

    Halves are rounded up, as in the published tables: shares of 400 decisions often end in them.
    """
    value, low, high = (100 * row[name] + 1e-7 for name in ("accuracy", "low", "high"))
    return Estimate(value, digits=digits) if np.isnan(low) else Estimate(value, low, high, digits)


def once(labels: Sequence[str]) -> list[str]:
    """A table's first column: each label where it is new, and nothing below."""
    return [label if k == 0 or label != labels[k - 1] else "" for k, label in enumerate(labels)]


def words(row: pd.Series) -> str:
    """The same in a sentence: "99.3 % [98.0, 100.0]"."""
    value, interval = percent(row).parts()
    return f"{value} % {interval}".rstrip()


def counts(row: pd.Series) -> str:
    """What it was measured on: "300 pairs, 4 runs"."""
    runs = int(row["n_runs"])
    return f"{int(row['n_pairs']):,} pairs, {runs} run{'s' if runs != 1 else ''}"


def curve(axes: "Axes", rows: pd.DataFrame, *, colour: str, marker: str, label: str, x: str = "exposures") -> None:
    """Accuracy in percent over column `x`, with a band; few points get their markers."""
    rows = rows.sort_values(x)
    axes.fill_between(rows[x], 100 * rows["low"], 100 * rows["high"], color=colour, alpha=0.18, linewidth=0)
    marked = marked_points(rows[x])
    axes.plot(rows[x], 100 * rows["accuracy"], color=colour, marker=marker, markersize=4, markevery=marked, label=label)


def marked_points(x: Sequence[int]) -> list[int]:
    """Which points of a curve get a marker: all of a few; of many the round numbers, which lie apart on a log axis."""
    values = list(x)
    return [k for k, value in enumerate(values) if len(values) <= _LOG_FROM or value in _TICKS]


def exposure_axis(axes: "Axes", exposures: Sequence[int], label: str = "exposures") -> None:
    """0 to the last exposure; logarithmic from 1 on where there are many."""
    last = max(exposures)
    if last > _LOG_FROM:
        log_axis(axes, min(exposures), last)
    else:
        axes.set_xlim(min(0.6, min(exposures) - 0.2), last + 0.2)
        axes.set_xticks(range(min(exposures), last + 1, 1 if last <= 6 else 2))
    axes.set_xlabel(label)


def log_axis(axes: "Axes", first: int, last: int) -> None:
    """`first` to `last` on a logarithmic scale, on which 0 stands apart on the left."""
    if first == 0:
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    else:
        axes.set_xscale("log")
    ticks = [tick for tick in _TICKS if first <= tick <= last]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0 if first == 0 else first / 1.15, last * 1.1)


def published(condition: str, conditions: Collection[str]) -> HumanFigure | None:
    """The human figure of a condition; of all together only where they are the three that the figure is the mean of."""
    if condition == POOLED and set(conditions) - {POOLED} != _POOLED_OVER:
        return None
    return human_level(condition)


def human_line(axes: "Axes", figure: HumanFigure | None, *, label: bool = True) -> None:
    """A published human figure as a dashed line, its standard error as a band; nothing without one."""
    if figure is None:
        return
    accuracy = 100 * figure.accuracy
    if figure.sem is not None:
        axes.axhspan(accuracy - 100 * figure.sem, accuracy + 100 * figure.sem, color=INK, alpha=0.1, linewidth=0)
    axes.axhline(
        accuracy, color=INK, linestyle="--", linewidth=1.2, label="people, one look (published)" if label else None
    )


def chance_line(axes: "Axes", label: bool = True) -> None:
    """50 %: what guessing gives."""
    axes.axhline(50, color=MUTED, linestyle=":", linewidth=1.2, label="chance" if label else None)


def accuracy_axis(axes: "Axes", rows: pd.DataFrame) -> None:
    """From chance, or below where an interval goes there, to 100 %."""
    lowest = np.nanmin([45.0, 100 * rows["low"].min() - 1, 100 * rows["accuracy"].min() - 1])
    axes.set_ylim(lowest, 101.5)


def dots(axes: "Axes", rows: Sequence[pd.Series], y: Sequence[float], *, colour: str, marker: str, label: str) -> None:
    """Accuracies in percent at the heights `y`, with bars."""
    value = np.array([row["accuracy"] for row in rows], float)
    low, high = (np.array([row[end] for row in rows], float) for end in ("low", "high"))
    ends = 100 * np.nan_to_num(np.stack([value - low, high - value]))
    axes.errorbar(
        100 * value, y, xerr=np.maximum(ends, 0), fmt=marker, color=colour, markersize=5, capsize=2, label=label
    )


def bars(axes: "Axes", x, rows, *, colour: str, marker: str, label: str | None, line: str = "-") -> None:
    """Accuracies in percent over `x`, with bars and a line."""
    value, low, high = (100 * np.array([row[k] for row in rows], float) for k in ("accuracy", "low", "high"))
    ends = np.maximum(np.nan_to_num(np.stack([value - low, high - value])), 0)
    axes.errorbar(
        x,
        value,
        yerr=ends,
        color=colour,
        marker=marker,
        markersize=5,
        capsize=2,
        elinewidth=1,
        linestyle=line,
        label=label,
    )
