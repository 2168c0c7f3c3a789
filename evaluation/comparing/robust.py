"""Robustness on the comparison page: other pictures of the same classes, corrupted pictures, shape against texture."""

from typing import TYPE_CHECKING

from headcam.evaluation.comparing.columns import Column, Row, readable
from headcam.evaluation.comparing.look import MISSING, cell
from headcam.evaluation.robustness.shape_bias import reference_figures
from headcam.pages import BLUE, INK, MUTED, Estimate, Page, chart

if TYPE_CHECKING:
    from headcam.evaluation.compare import Comparison

_MODELS_ABREAST = 5  # of more, the table is cut
_HALF_OF_CUES = 480  # decisions: not more come from the smaller of the two sets of cue conflict that people answered


def robustness(page: Page, c: "Comparison") -> None:
    """Tables of all robustness metrics, people beside them where they are known, and a chart of the shape bias."""
    columns = [column for column in c.grid.of_kind("robustness") if not _severity(column)]
    if not columns:
        return
    page.section(
        "Robustness",
        "The heads were fitted on the plain training pictures and meet these pictures unprepared. A set is answered "
        "among those of its classes that a head knows; what was left out stands in the notes below. Numbers of all "
        "severities of a corruption are in compare.csv.",
    )
    _shape_bias(page, c, [column for column in columns if column.metric.endswith("/shape_bias")])
    people = {column: _people(c, column) for column in columns}
    rows = [row for row in c.grid.rows if any(column in row.cells for column in columns)]
    for start in range(0, len(rows), _MODELS_ABREAST):
        part = rows[start : start + _MODELS_ABREAST]
        shown = [column for column in columns if any(column in row.cells for row in part)]
        beside = ["people"] if any(people[column] for column in shown) else []
        page.table(
            ["%", *(row.name for row in part), *beside],
            [
                [
                    c.grid.title(column),
                    *(cell(row.cells.get(column)) for row in part),
                    *([people[column] or MISSING] if beside else []),
                ]
                for column in shown
            ],
            "Values in percent with 95 % intervals over pictures."
            + (
                " People: mean over observers, in brackets ± one standard deviation; they chose among 16 categories, "
                "and a head that knows fewer of them had an easier choice."
                if beside
                else ""
            ),
        )


def _severity(column: Column) -> bool:
    """One strength of a corruption; the mean over strengths stands in the table."""
    return "/corruption/" in column.metric and any(part.isdigit() for part in column.metric.split("/"))


def _shape_bias(page: Page, c: "Comparison", columns: list[Column]) -> None:
    for column in columns:
        rows = [row for row in c.grid.rows if column in row.cells and row.role != "chance"]
        human = _people(c, column)
        with chart(height=1.1 + 0.34 * len(rows)) as figure:
            axes = figure.subplots()
            for y, row in enumerate(rows):
                score = row.cells[column]
                ends = [[score.value - score.low], [score.high - score.value]]
                colour = BLUE if row.role == "trained" else MUTED
                axes.errorbar([score.value], [y], xerr=ends, fmt="o", color=colour, capsize=2)
            if human is not None:
                axes.axvspan(human.low, min(100, human.high), color=INK, alpha=0.12, linewidth=0)
                axes.axvline(
                    human.value, color=INK, linestyle="--", linewidth=1.2, label=f"people, {human.value:.1f} %"
                )
                figure.legend(loc="outside lower center")
            axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=9)
            axes.set(xlabel="decided by shape, % (the rest by texture)", xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5))
            axes.grid(axis="y", visible=False)
            page.figure(
                figure,
                f"Shape bias: of the pictures of cue conflict that were decided by their shape or by their texture, "
                f"the share that went by shape ({readable(column.metric)}), with 95 % intervals."
                + (" Grey: people ± one standard deviation over observers (Geirhos et al. 2019)." if human else ""),
                alt="; ".join(f"{row.name} {row.cells[column].value:.1f} %" for row in rows),
            )


def _people(c: "Comparison", column: Column) -> Estimate | None:
    """What people do on the same pictures, mean ± sd over observers in percent; None where it is not known."""
    *_, folder, measure = ["", *column.metric.split("/")]
    rows: list[Row] = [row for row in c.grid.rows if column in row.cells and row.role == "trained"]
    n = max(row.cells[column].n for row in rows)
    names = (f"{folder}-480", folder) if n <= _HALF_OF_CUES else (folder,)
    for name in names:
        for found in reference_figures():
            if (found.set, found.measure, found.observer) == (name, measure, "humans"):
                ends = () if found.sd is None else (found.value - found.sd, found.value + found.sd)
                return Estimate(found.value, *ends)
    return None
