"""The page of a comparison: `headcam.evaluation.compare` gathers, this file shows.

In the order of a reader's questions: which model is better and by how much, all numbers, which differences are more
than chance, what may not be compared, how accuracy grows, how the models err, how robust they are, what was left out,
where everything comes from.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from headcam import __version__
from headcam.evaluation.comparing.columns import Column, Row, readable, why_apart
from headcam.evaluation.comparing.curves import curves
from headcam.evaluation.comparing.look import MISSING, SMALL, cell, listed, points, sentence, versus, words
from headcam.evaluation.comparing.mistakes import mistakes
from headcam.evaluation.comparing.pairs import ALL_PAIRS_UP_TO, Difference
from headcam.evaluation.comparing.robust import robustness
from headcam.files import sha256_file
from headcam.pages import BLUE, INK, MUTED, PURPLE, Estimate, Page, chart
from headcam.statistics import Interval

if TYPE_CHECKING:
    from headcam.evaluation.compare import Comparison

_ABREAST = 5  # columns of a table of scores
_DIFFERENT = 3  # metrics of the table of differences
_REASONS = 6  # settings that are named where protocols differ


def write_page(path: Path, c: "Comparison", frames: bool) -> None:
    """Write the page; with pictures of the user's labelled folder where `frames` is True and it was given."""
    page = Page(f"{_count(len(c.grid.trained))} compared", headline(c), frames=frames)
    page.facts(_facts(c))
    _chart(page, c)
    _scores(page, c)
    _differences(page, c)
    _apart(page, c)
    curves(page, c)
    mistakes(page, c)
    robustness(page, c)
    _trust(page, c)
    page.provenance(_provenance(c))
    page.write(path)


def headline(c: "Comparison") -> str:
    """The result in a few sentences: best and worst by the main metric, the difference, the baselines."""
    rows = sorted(c.grid.trained_in(c.main), key=lambda row: -row.cells[c.main].value)
    best, worst = rows[0], rows[-1]
    score = best.cells[c.main]
    data = best.origin[c.main].report["data"]
    text = (
        f"Of {score.n:,} test {c.media} in {len(data['classes']):,} classes, {best.name} gets {words(score)} right "
        f"({readable(c.main.metric)}), "
    )
    if len(rows) == 2:
        text += f"and {worst.name} {words(worst.cells[c.main])}. "
    else:
        alike = "" if len(rows) == len(c.grid.trained) else " that were measured alike"
        text += f"the most of {len(rows)} models{alike}, and {worst.name} the fewest, {words(worst.cells[c.main])}. "
    text += _gap(c, best, worst)
    if baselines := _baselines(c):
        text += f" Beside them: {baselines}."
    if alike := [d.first.name for d in c.above_baselines if d.second.role == "random" and d.interval.low <= 0]:
        theirs = "its" if len(alike) == 1 else "their"
        text += f" Not shown to be better than {theirs} own random weights: {listed(alike)}."
    return text


def _gap(c: "Comparison", best: Row, worst: Row) -> str:
    """The difference of two models in words."""
    found = next((d for d in c.differences[c.main] if {id(d.first), id(d.second)} == {id(best), id(worst)}), None)
    if found is None:  # each model is compared with the first: best and worst were not compared with each other
        return "How each differs from the first, picture by picture, stands below."
    ends = sorted((abs(found.interval.low), abs(found.interval.high)))
    how = f"on the same {c.media}" if found.paired else f"not on the same {c.media}, so with a wider interval"
    if found.interval.low <= 0 <= found.interval.high:
        ours = found.interval if found.first is best else _flipped(found.interval)
        low, high = points(ours).parts()[1].strip("[]").split(", ")
        return (
            f"That is a difference of {abs(found.interval.estimate):.1f} points {how}, with an interval from {low} to "
            f"{high}: this test cannot tell the two apart."
        )
    text = f"That is a difference of {abs(found.interval.estimate):.1f} points [{ends[0]:.1f}, {ends[1]:.1f}] {how}."
    if not found.stands:
        text += f" Corrected for {found.comparisons} comparisons it would not stand."
    return text


def _flipped(difference: Interval) -> Interval:
    """The same difference the other way round."""
    return replace(difference, estimate=-difference.estimate, low=-difference.high, high=-difference.low)


def _baselines(c: "Comparison") -> str:
    names = {"random": "the same networks with random weights", "pixels": "raw pixels", "chance": "chance"}
    parts = []
    for role, name in names.items():
        values = sorted(row.cells[c.main].value for row in c.grid.rows if row.role == role and c.main in row.cells)
        if values:
            span = f"{values[0]:.1f}" if values[-1] - values[0] < 0.05 else f"{values[0]:.1f} to {values[-1]:.1f}"
            parts.append(f"{name} {span} %")
    return listed(parts) if parts else ""


def _facts(c: "Comparison") -> list[tuple[str, str]]:
    rows = c.grid.trained_in(c.main)
    best = max(rows, key=lambda row: row.cells[c.main].value)
    data = best.origin[c.main].report["data"]
    found = c.differences[c.main]
    facts = [
        (f"{len(rows)}", "models on the same test"),
        (f"{best.cells[c.main].value:.1f} %", f"{best.name}, {readable(c.main.metric)}"),
        (f"{data['test']:,}", f"test {c.media}, {len(data['classes']):,} classes"),
    ]
    if len(found) == 1:
        facts.append((f"{points(found[0].interval).parts()[0]} points", versus(found[0])))
    elif found:
        facts.append((f"{sum(d.stands for d in found)} of {len(found)}", "differences stand after correction"))
    return facts


def _chart(page: Page, c: "Comparison") -> None:
    """The main metric of all models, each beside its random twin; pixels and chance as lines."""
    rows = c.grid.trained_in(c.main)
    with chart(height=1.2 + 0.36 * len(rows)) as figure:
        axes = figure.subplots()
        _dots(axes, c.main, [(y - 0.08, row) for y, row in enumerate(rows)], BLUE, "o", "trained")
        twins = [(y + 0.14, twin) for y, row in enumerate(rows) if (twin := c.grid.baseline(row, "random", c.main))]
        _dots(axes, c.main, twins, MUTED, "s", "its random weights")
        for role, colour, style in (("pixels", PURPLE, "--"), ("chance", INK, ":")):
            for row in c.grid.rows:
                if row.role == role and c.main in row.cells:
                    value = row.cells[c.main].value
                    axes.axvline(value, color=colour, linestyle=style, linewidth=1.2, label=row.name)
        axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=9)
        axes.set(xlabel=f"% of test {c.media} right ({readable(c.main.metric)})", xlim=(0, None))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=4, fontsize=SMALL)
        page.figure(
            figure,
            f"{c.grid.title(c.main)}: points with their 95 % intervals over test {c.media}; where intervals of "
            "two models overlap, the paired differences below still can tell them apart.",
            alt="; ".join(f"{row.name} {row.cells[c.main].value:.1f} %" for row in rows),
        )


def _dots(axes, column: Column, rows: list[tuple[float, Row]], colour: str, marker: str, label: str) -> None:
    if not rows:
        return
    y, scores = [y for y, _ in rows], [row.cells[column] for _, row in rows]
    value = [s.value for s in scores]
    ends = [[max(0.0, s.value - s.low) for s in scores], [max(0.0, s.high - s.value) for s in scores]]
    axes.errorbar(value, y, xerr=ends, fmt=marker, color=colour, markersize=5, capsize=2, label=label)


def _scores(page: Page, c: "Comparison") -> None:
    page.section(
        "The numbers",
        f"Percent of test {c.media} right, with 95 % intervals. Numbers in one column were got by the same protocol on "
        "the same pictures, and only those may be compared; “–”: not measured.",
    )
    for data in dict.fromkeys(column.data for column in [c.main, *c.grid.of_kind("plain")]):
        columns = [column for column in c.grid.of_kind("plain") if column.data == data]
        columns.sort(key=lambda column: (column != c.main, column.top != 1))
        for start in range(0, len(columns), _ABREAST):
            part = columns[start : start + _ABREAST]
            rows = [row for row in c.grid.rows if any(column in row.cells for column in part)]
            probe = next(row.origin[col] for row in rows for col in part if col in row.origin)
            about = probe.report["data"]
            n = sorted({row.cells[column].n for row in rows for column in part if column in row.cells})
            page.table(
                ["model", *(c.grid.title(column) for column in part)],
                [[row.name, *(cell(row.cells.get(column)) for column in part)] for row in rows],
                f"{about['name']}: {len(about['classes']):,} classes, {about['train']:,} training and "
                f"{' or '.join(f'{k:,}' for k in n)} test {c.media}.",
                highlight=_best(rows, part[0]),
            )


def _best(rows: list[Row], column: Column) -> int | None:
    """Place of the best trained model, where there are several to choose from."""
    found = [k for k, row in enumerate(rows) if row.role == "trained" and column in row.cells]
    return max(found, key=lambda k: rows[k].cells[column].value) if len(found) > 1 else None


def _differences(page: Page, c: "Comparison") -> None:
    columns = [c.main, *(col for col in c.differences if col != c.main and col.top == 1 and col.kind == "plain")]
    columns = [column for column in columns if c.differences[column]][:_DIFFERENT]
    every = [d for column in columns for d in c.differences[column]]
    m = len(c.differences[c.main])
    many = len(c.grid.trained) > ALL_PAIRS_UP_TO
    page.section(
        "Differences between models",
        "In percentage points, picture by picture: what is hard for all models alike does not blur the difference. An "
        "interval that spans 0 says that the test cannot tell the two apart. Intervals are over test pictures "
        "(and over draws of labels where there are several), not over other runs of pretraining: another seed may "
        "differ by more.",
        f"Of intervals at 95 %, one in twenty misses 0 even where nothing differs, and {len(every)} stand here."
        + (
            f" The last column says whether 0 is still outside when the {m} differences of "
            f"{readable(c.main.metric)} are corrected for (Bonferroni)."
            if m > 1
            else ""
        )
        + (f" With more than {ALL_PAIRS_UP_TO} models, each is compared with the first only." if many else ""),
    )
    by_pair: dict[tuple[int, int], dict[Column, Difference]] = {}
    for d in every:
        by_pair.setdefault((id(d.first), id(d.second)), {})[d.column] = d
    page.table(
        ["points", *(c.grid.title(column) for column in columns), *(["stands corrected"] if m > 1 else [])],
        [
            [
                versus(next(iter(of.values()))),
                *(points(of[column].interval) if column in of else MISSING for column in columns),
                *([_stands(of.get(c.main))] if m > 1 else []),
            ]
            for of in by_pair.values()
        ],
        "Later minus earlier, 95 % intervals." + _unpaired(every),
    )
    if c.above_baselines:
        rows = c.grid.trained_in(c.main)
        cells = []
        for row in rows:
            of = {d.second.role: d for d in c.above_baselines if d.first is row}
            cells.append([row.name, *(points(of[r].interval) if r in of else MISSING for r in ("random", "pixels"))])
        page.table(
            ["points above", "its random weights", "raw pixels"],
            cells,
            f"What training has brought ({readable(c.main.metric)}), 95 % intervals." + _unpaired(c.above_baselines),
        )


def _stands(found: Difference | None) -> str:
    return "–" if found is None else "yes" if found.stands else "no"


def _unpaired(found: list[Difference]) -> str:
    names = dict.fromkeys(f"{versus(d)} ({readable(d.column.metric)})" for d in found if not d.paired)
    if not names:
        return " All are on the same pictures."
    return f" Not on the same pictures, hence unpaired with a wider interval: {'; '.join(names)}."


def _apart(page: Page, c: "Comparison") -> None:
    """Metrics that exist in several forms, and what sets these apart."""
    found: dict[tuple[int, str, str], list[str]] = {}  # (number, reasons, models) -> metrics
    for metric in dict.fromkeys(column.metric for column in c.grid.columns if column.kind != "draw"):
        same = [column for column in c.grid.columns if column.metric == metric]
        for number, other in enumerate(same[1:], start=2):
            reasons = "; ".join(why_apart(c.grid, same[0], other)[:_REASONS])
            models = "; ".join(
                f"({k}) of {listed([row.name for row in c.grid.trained_in(column)])}"
                for k, column in ((1, same[0]), (number, other))
            )
            found.setdefault((number, reasons, models), []).append(readable(metric))
    if not found:
        return
    page.section(
        "What may not be compared",
        "The same metric was measured in different ways; such numbers stand in columns of their own, (1), (2) and so "
        "on, and no difference between them is given.",
    )
    page.table(
        ["columns", "models", "differ in", "metrics"],
        [
            [f"(1) | ({number})", models, reasons, _some(metrics)]
            for (number, reasons, models), metrics in found.items()
        ],
        "Which settings or pictures differ, with their values in (1) and in the other column.",
    )


def _trust(page: Page, c: "Comparison") -> None:
    lines = [f"{probe.folder}: {alarm}" for probe in c.grid.probes for alarm in probe.alarms]
    nothing = f"Nothing was skipped, and no test {c.media[:-1]} is also in a training set."
    page.section("What was left out, alarms and notes", *([] if lines else [nothing]))
    lines += [*_ends(c), *_notes(c)]
    if lines:
        page.bullets([sentence(line) for line in lines])
    if gaps := _chosen_on_test(c):
        page.table(
            ["model", "protocol", "chosen on training pictures", "chosen on the test", "flattered by"],
            gaps,
            "Top-1 in percent: by how much choosing the learning rate or the epoch on the test pictures would have "
            "flattered each model (means over draws). The numbers chosen on the test are biased and no scores; they "
            "stand here because they were asked for.",
        )
    page.section("How it was measured")
    seeds = sorted({score.seed for probe in c.grid.probes for score in probe.scores})
    page.bullets(
        [
            f"Nothing was chosen on test {c.media}: learning rates, k and epochs come from a fifth of the training "
            f"{c.media}, and those of the test were scored once.",
            f"Intervals of scores: 95 %, bootstrap over test {c.media}, and over draws of labels where there are more.",
            "Of few-shot scores with several draws, the differences are of the draws that both models have.",
            f"Seeds of the probes: {', '.join(map(str, seeds))}.",
        ]
    )


def _ends(c: "Comparison") -> list[str]:
    """Learning rates that were best at the end of what was tried: a better one may lie outside."""
    found: dict[tuple[str, str], list[str]] = {}
    for probe in c.grid.probes:
        for outcome in probe.report["outcomes"]:
            details = outcome["details"]
            if details.get("at_the_end_of_the_range"):
                key = f"{probe.folder}: {outcome['model']}", f"{details['base_lr_per_256']:g}"
                found.setdefault(key, []).append(outcome["stem"])
    return [
        f"alarm: the learning rate that was chosen, {rate}, is at the end of the range ({name}, {_some(stems)}); the "
        "model may be better than its score"
        for (name, rate), stems in found.items()
    ]


def _notes(c: "Comparison") -> list[str]:
    """What the probes say of their sets and of protocols that do not apply to a baseline, each once."""
    notes = []
    for probe in c.grid.probes:
        data = probe.report["data"]
        notes += data.get("notes") or []
        if doubled := data.get("same_bytes_other_label"):
            notes.append(f"{data['name']} has {len(doubled)} pairs of equal {c.media} with different labels")
        notes += probe.report.get("robustness_notes") or []
        notes += [f"no {left['protocol']} of {left['model']}: {left['reason']}" for left in probe.report["left_out"]]
    return list(dict.fromkeys(notes))


def _some(stems: list[str]) -> str:
    return ", ".join(stems[:3]) + (f" and {len(stems) - 3} more" if len(stems) > 3 else "")


def _chosen_on_test(c: "Comparison") -> list[list]:
    found: dict[tuple[int, str, str], list[tuple[float, float]]] = {}
    for probe in c.grid.probes:
        for gap in probe.report["test_selection"]:
            key = (probe.number, gap["model"], re.sub(r"/draw\d+$", "", gap["stem"]))
            found.setdefault(key, []).append((gap["honest_top1"], gap["top1"]))
    rows = []
    for (number, model, stem), pairs in found.items():
        honest, flattered = (sum(values) / len(pairs) for values in zip(*pairs))
        name = next(row.name for row in c.grid.rows if row.models.get(number) == model)
        rows.append([name, stem, Estimate(honest), Estimate(flattered), Estimate(flattered - honest, signed=True)])
    return list({(row[0], row[1], row[2].value, row[3].value): row for row in rows}.values())  # raw pixels: once


def _provenance(c: "Comparison") -> dict[str, str]:
    facts = {}
    for k, probe in enumerate(c.grid.probes, start=1):
        environment = probe.report.get("environment") or {}
        facts[f"probe {k}"] = (
            f"{probe.folder}, scores.csv SHA-256 {sha256_file(probe.folder / 'scores.csv')[:16]}, "
            f"weights {str(probe.report['model'].get('weights_hash'))[:16]}, "
            f"headcam {environment.get('headcam', 'unknown')}, commit {environment.get('git_commit') or 'none'}"
        )
    measured = [column for column in c.grid.of_kind("plain", "labels", "layer") if column.top == 1]
    facts |= {f"protocol {_label(c, column)}": column.protocol_hash for column in measured}
    return facts | {"test pictures": c.main.data, "numbers": str(c.table), "version": f"headcam {__version__}"}


def _label(c: "Comparison", column: Column) -> str:
    row = c.grid.trained_in(column)[0]
    same = [other for other in c.grid.columns if other.metric == column.metric]
    number = "" if len(same) == 1 else f" ({same.index(column) + 1})"
    return row.cells[column].protocol + number


def _count(n: int) -> str:
    words_of = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    return f"{(words_of[n] if n < len(words_of) else str(n)).capitalize()} models"
