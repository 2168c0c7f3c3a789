"""`online_probe.html`: the learning curve of one run, accuracy against hours of video, as a page."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headcam.evaluation.watching.record import Row
from headcam.pages import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, Estimate, Page, chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_EQUAL = 1.001  # hours seen over hours lived, up to which they count as equal: some units may not be decodable
_LINES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"))


def write_page(
    path: str | os.PathLike, rows: Sequence[Row], name: str, start: str, provenance: Mapping[str, str]
) -> None:
    """Write the page of a run.

    Args:
        rows: of the record, at least one; curves are drawn of top-1.
        name: of the run.
        start: what the weights were at step 0, such as "random weights".
        provenance: for the foot of the page.
    """
    top1 = [row for row in rows if row.metric.endswith("/top1")]
    metrics = list(dict.fromkeys(row.metric for row in top1))
    newest = top1[-1]
    page = Page(f"What {name} sees, by hours of video", _lead(top1, metrics, start))
    page.facts(
        [
            (f"{_hours(newest.hours_seen)} h", "of video seen, repeats included"),
            (f"{_hours(newest.hours_lived)} h", "of them unique"),
            (f"{newest.step:,}", "optimizer steps"),
        ]
    )
    if newest.step > 0:
        _curve(page, top1, metrics, start)
    shown = list(dict.fromkeys(row.metric for row in rows))
    by_step: dict[int, dict[str, Row]] = {}
    for row in rows:
        by_step.setdefault(row.step, {})[row.metric] = row
    page.table(
        ["hours seen", "hours lived", "step", *shown],
        [
            [_hours((first := next(iter(found.values()))).hours_seen), _hours(first.hours_lived), first.step]
            + [Estimate(found[m].value, found[m].low, found[m].high) if m in found else "not measured" for m in shown]
            for found in by_step.values()
        ],
        "All measurements, in percent with 95 % intervals.",
    )
    page.section("How it was measured")
    page.bullets(
        [
            "One run, measured while it trained: all points share its samples and its learning rate schedule, whose "
            "end only the last one can reach. A run of its own for each number of hours, which ends its schedule "
            "there, is the fairer measure of what those hours are worth.",
            "The encoder is frozen and in eval mode; settings of the probes are chosen on training pictures, test "
            "pictures are only scored. Nothing of it goes back into the run.",
            "Intervals are over test pictures. They say nothing about other seeds of pretraining.",
        ]
    )
    page.provenance(provenance)
    page.write(path)


def _curve(page: Page, top1: Sequence[Row], metrics: Sequence[str], start: str) -> None:
    newest = top1[-1]
    page.section("Accuracy against hours of video" if newest.hours_seen else "Accuracy against pictures")
    with chart(height=3.4) as figure:
        _draw(figure.subplots(), top1, metrics, start)
        page.figure(
            figure,
            f"Top-1 accuracy on {newest.n:,} test pictures of {newest.data}; bands are 95 % intervals over pictures. "
            f"{_repeats(top1)}",
            alt="; ".join(
                f"{metric}: " + ", ".join(f"{r.value:.1f} % at {_hours(r.hours_seen)} h" for r in _of(top1, metric))
                for metric in metrics
            ),
        )


def _lead(rows: Sequence[Row], metrics: Sequence[str], start: str) -> str:
    sentences = []
    for metric in metrics:
        *_, last = found = _of(rows, metric)
        before = f", {found[0].value:.1f} % with {start}" if found[0].step == 0 and len(found) > 1 else ""
        sentences.append(
            f"{metric.removesuffix('/top1')}: {last.value:.1f} % [{last.low:.1f}, {last.high:.1f}] right after "
            f"{_hours(last.hours_seen)} hours of video{before}, {last.chance:.1f} % by chance."
        )
    return " ".join(sentences)


def _repeats(rows: Sequence[Row]) -> str:
    """Where the run began to see the same video again."""
    if not rows[-1].hours_seen:
        return "The training data are still pictures, which stand for no time."
    again = next((row for row in rows if row.hours_seen > row.hours_lived * _EQUAL), None)
    if again is None:
        return "No second of video was seen twice."
    return f"Behind {_hours(again.hours_lived)} hours at the latest, video is seen again (thin line)."


def _draw(axes: "Axes", rows: Sequence[Row], metrics: Sequence[str], start: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    timed = rows[-1].hours_seen > 0
    axes.set_xscale("log")
    for (colour, marker), metric in zip(_LINES, metrics):
        found = _of(rows, metric)
        label = metric.removesuffix("/top1")
        if found[0].step == 0:
            axes.axhline(found[0].value, color=colour, linestyle="--", linewidth=1.1, label=f"{label}, {start}")
        curve = [row for row in found if row.step > 0]  # a logarithm has no 0
        x, value = [row.hours_seen if timed else row.samples for row in curve], [row.value for row in curve]
        new = sum(row.hours_seen <= row.hours_lived * _EQUAL for row in curve)  # of them are of video seen once
        axes.fill_between(x, [r.low for r in curve], [r.high for r in curve], color=colour, alpha=0.18, linewidth=0)
        axes.plot(x, value, color=colour, linewidth=0.9)
        axes.plot(x[:new], value[:new], color=colour)
        axes.plot(x, value, color=colour, marker=marker, markersize=4, linestyle="none", label=label)
    axes.axhline(rows[0].chance, color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("right, %", color=INK)
    axes.set_xlabel("hours of video seen" if timed else "pictures seen")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.figure.legend(loc="outside lower center", ncols=2, fontsize=9)


def _of(rows: Sequence[Row], metric: str) -> list[Row]:
    return [row for row in rows if row.metric == metric]


def _hours(hours: float) -> str:
    return f"{hours:.3g}" if hours < 100 else f"{hours:,.0f}"
