"""Curves of the comparison page: accuracy against labels, depth, hours seen during one run, hours of pretraining."""

import re
from typing import TYPE_CHECKING

from headcam.evaluation.comparing.columns import Column, Grid, Kind, Row, readable
from headcam.evaluation.comparing.look import COLOURS, MARKERS, SMALL, line
from headcam.evaluation.watching.record import Row as Measured
from headcam.pages import MUTED, Page, chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from headcam.evaluation.compare import Comparison

_NUMBER = {"labels": re.compile(r"(?<=/)(\d+)(?=/top1$)"), "layer": re.compile(r"(?<=/layer)(\d+)(?=/top1$)")}
_AXES = {"labels": "labelled pictures of each class", "layer": "block of the encoder"}
_TITLES = {"labels": "Accuracy against labels", "layer": "Accuracy from block to block"}
_TEXTS = {
    "labels": "How many labelled pictures of each class the probe had. Each point is the mean over independent draws "
    "of labels; bands are 95 % intervals over test pictures and draws.",
    "layer": "A probe on the output of every block. Where the curve has its top before the last block, the end of the "
    "network has turned to its own task; the best block is read off the test pictures here and is no score.",
}


def curves(page: Page, c: "Comparison") -> None:
    """All curves that these probes have something for."""
    for kind in ("labels", "layer"):
        _families(page, c.grid, kind)
    _online(page, c.grid)
    _hours(page, c)


def _families(page: Page, grid: Grid, kind: Kind) -> None:
    families: dict[Column, list[tuple[int, Column]]] = {}
    for column in grid.of_kind(kind):
        if found := _NUMBER[kind].search(column.metric):
            family = Column(_NUMBER[kind].sub("*", column.metric), column.data, column.protocol_hash)
            families.setdefault(family, []).append((int(found[0]), column))
    if families:
        page.section(_TITLES[kind], _TEXTS[kind])
    for family, members in families.items():
        rows = [row for row in grid.trained if any(column in row.cells for _, column in members)]
        with chart(height=2.7 + _legend_height(rows)) as figure:
            axes = figure.subplots()
            for row in rows:
                shown = [(x, row.cells[column]) for x, column in members if column in row.cells]
                scores = [(s.value, s.low, s.high) for _, s in shown]
                line(axes, grid.trained.index(row), row, [x for x, _ in shown], scores)
            _below(axes, grid, members)
            if kind == "labels":
                _log_axis(axes, sorted({x for x, _ in members}))
            axes.set(xlabel=_AXES[kind], ylabel="% of test pictures right", ylim=(0, None))
            _legend(figure)
            metric = readable(family.metric.replace("/*", "").replace("/layer*", ""))
            best = {row.name: max((row.cells[col].value, x) for x, col in members if col in row.cells) for row in rows}
            page.figure(
                figure,
                f"{metric}. Dotted: {'random weights and ' if _twin(grid, members) else ''}chance.",
                alt="; ".join(f"{name} up to {value:.1f} % at {x}" for name, (value, x) in best.items()),
            )


def _twin(grid: Grid, members: list[tuple[int, Column]]) -> list[Row]:
    return [row for row in grid.rows if row.role == "random" and any(column in row.cells for _, column in members)]


def _below(axes: "Axes", grid: Grid, members: list[tuple[int, Column]]) -> None:
    """Random twins and chance, in grey: what a curve has to stay above."""
    for row in _twin(grid, members):
        shown = sorted((x, row.cells[column].value) for x, column in members if column in row.cells)
        axes.plot(*zip(*shown), color=MUTED, linestyle=":", linewidth=1.2)
    chance = [
        row.cells[col].value for row in grid.rows if row.role == "chance" for _, col in members if col in row.cells
    ]
    if chance:
        axes.axhline(chance[0], color=MUTED, linestyle=":", linewidth=1.2)


def _online(page: Page, grid: Grid) -> None:
    """What online probes measured during the runs: the metric that most runs have, on equal data and protocol."""
    found: dict[tuple[str, str, str], dict[int, list[Measured]]] = {}
    for number, row in enumerate(grid.trained):
        for entry in row.probes[0].online:
            if entry.metric.endswith("/top1"):
                key = (entry.metric, entry.data.rpartition("@")[2], entry.protocol_hash)
                found.setdefault(key, {}).setdefault(number, []).append(entry)
    if not found:
        return
    key = max(found, key=lambda k: (len(found[k]), k[0].startswith("linear"), k))
    page.section(
        "Accuracy during pretraining",
        "Measured by online probes while the models were trained: one run gives the whole curve of how much video "
        "brings how much accuracy. Hours seen count repeats; nothing in a run was chosen by these numbers.",
    )
    rows = [grid.trained[number] for number in found[key]]
    with chart(height=2.7 + _legend_height(rows)) as figure:
        axes = figure.subplots()
        every = []
        for number, entries in found[key].items():
            shown = [e for e in entries if e.hours_seen > 0]  # a log axis has no place for the start
            hours = [e.hours_seen for e in shown]
            every += hours
            if shown:
                line(axes, number, grid.trained[number], hours, [(e.value, e.low, e.high) for e in shown])
        for start in {e.value for entries in found[key].values() for e in entries if e.step == 0}:
            axes.axhline(start, color=MUTED, linestyle=":", linewidth=1.2)
        axes.set_xscale("log")
        axes.set(xlabel="hours of video seen (log scale)", ylabel="% of test pictures right", ylim=(0, None))
        _legend(figure)
        left = len(grid.trained) - len(rows)
        page.figure(
            figure,
            f"{readable(key[0])}; bands are 95 % intervals over test pictures. Dotted: before training."
            + (f" {left} of the models here have no online probe of this kind." if left else ""),
            alt=f"accuracy over {min(every):.3g} to {max(every):.3g} hours seen"
            if every
            else "no point after the start",
        )


def _hours(page: Page, c: "Comparison") -> None:
    """The main score against the hours that each model has lived, where at least two cards say so and differ."""
    rows = [row for row in c.grid.trained_in(c.main) if (row.about.get("hours") or 0) > 0]
    hours = [row.about["hours"] for row in rows]
    if len(set(hours)) < 2:
        return
    page.section(
        "Hours of pretraining video against score",
        "The hours are unique hours of the training video, as the checkpoints' cards say. Models may differ in more "
        "than these hours (objective, size, passes): a line through the points would not be a law.",
    )
    with chart(height=2.7 + _legend_height(rows)) as figure:
        axes = figure.subplots()
        for row, x in zip(rows, hours):
            number, score = c.grid.trained.index(row), row.cells[c.main]
            ends = [[score.value - score.low], [score.high - score.value]]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            hollow = {"markerfacecolor": "none"} if number >= len(COLOURS) else {}
            axes.errorbar([x], [score.value], yerr=ends, fmt=marker, color=colour, capsize=2, label=row.name, **hollow)
        if max(hours) > 10 * min(hours):
            axes.set_xscale("log")
        axes.set(xlabel="unique hours of pretraining video", ylabel=f"{readable(c.main.metric)}, %", ylim=(0, None))
        _legend(figure)
        left = len(c.grid.trained_in(c.main)) - len(rows)
        page.figure(
            figure,
            f"{readable(c.main.metric)} with 95 % intervals."
            + (f" {left} more models' cards do not say how many hours they lived." if left else ""),
            alt="; ".join(f"{row.name}: {x:.3g} h, {row.cells[c.main].value:.1f} %" for row, x in zip(rows, hours)),
        )


def _log_axis(axes: "Axes", ticks: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_xticks([], minor=True)


def _legend_height(rows: list[Row]) -> float:
    return 0.17 * len(rows)


def _legend(figure) -> None:
    figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL, handlelength=3)
