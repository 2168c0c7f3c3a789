"""The part of the memory report about tests that do not saturate.

Degraded pictures and closer foils; retention; sweeps of the recipe; recall; serial
position. A section appears where the runs have something for it.
"""

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headcam.pages import MUTED, Estimate, Page, chart
from headcam.randomness import stream
from headcam.recognition_memory.human import HumanFigure
from headcam.recognition_memory.reporting.charts import (
    MODEL_COLOURS,
    MODEL_MARKERS,
    RULES,
    SMALL,
    accuracy_axis,
    bars,
    chance_line,
    counts,
    curve,
    dots,
    human_line,
    log_axis,
    percent,
    published,
    rule_name,
    words,
)
from headcam.recognition_memory.scoring.table import POOLED
from headcam.statistics import bootstrap_mean

if TYPE_CHECKING:
    from headcam.recognition_memory.report import Findings, Model

_UPDATES = re.compile(r"after ([\d,]+) updates?$")
_SWEPT = {  # column of sweep.csv -> (axis, one line of the others' figures)
    "lr": ("learning rate", "lr {:g}"),
    "batch_size": ("pictures in a batch", "batch {:g}"),
    "study_pictures": ("pictures studied", "{:g} pictures"),
}
_PLACES = 5  # parts of an exposure


def harder_tests(page: Page, f: "Findings") -> None:
    """Degraded pictures and closer foils, retention, sweeps and recall, as far as the runs have them."""
    if "test" in f.scored.accuracy:
        tests = [t for t in dict.fromkeys(f.scored.accuracy["test"]) if t]
        later = {t: int(found[1].replace(",", "")) for t in tests if (found := _UPDATES.match(t))}
        _variants(page, f, [t for t in tests if t not in later])
        _retention(page, f, later)
    for source, table in f.files("sweep"):
        _sweep(page, table, source.path.name)
    for source, table in f.files("recall"):
        _recall(page, table, source.path.name)


def _variants(page: Page, f: "Findings", tests: list[str]) -> None:
    if not tests:
        return
    page.section(
        "Degraded pictures and closer foils",
        "The same models after the same study, tested with pictures that were changed, or against foils that were made "
        "from the studied picture itself. A row “not studied” asks the same of pictures that were never studied, the "
        "original against its change: where study favours one of the two by itself, that shows there, and only what "
        "lies above it is memory.",
    )
    for model in f.models:
        own = [t for t in tests if model.accuracy_of_test(f.scored.accuracy, t) is not None]
        if not own:
            continue
        names = ["", *own]
        found = {t: model.accuracy_of_test(f.scored.accuracy, t) for t in names}
        raw = {t: model.accuracy_of_test(f.scored.accuracy, t, "raw") for t in names}
        lowest = min(100 * row["low"] for row in (*found.values(), *raw.values()) if row is not None)
        with chart(height=1.2 + 0.3 * len(names)) as figure:
            axes = figure.subplots()
            for k, (rows, rule) in enumerate(((found, model.rule), (raw, "raw"))):
                if (rule == "raw" and k == 0) or not all(r is not None for r in rows.values()):
                    continue
                _, colour, marker = RULES[rule]
                heights = np.arange(len(names)) + 0.12 * (2 * k - 1)
                dots(axes, list(rows.values()), heights, colour=colour, marker=marker, label=rule_name(rule))
            axes.axvline(50, color=MUTED, linestyle=":", linewidth=1.2, label="chance")
            axes.set_yticks(range(len(names)), [_test_name(model, t) for t in names], fontsize=9)
            axes.set(xlabel="% right, all conditions", ylim=(len(names) - 0.5, -0.5))
            axes.set_xlim(min(45.0, lowest - 1), 101.5)
            axes.grid(axis="y", visible=False)
            figure.legend(loc="outside lower center", ncols=3, fontsize=SMALL)
            page.figure(
                figure,
                f"{model.label}, exposure {model.first}, with 95 % intervals ({counts(found[''])}).",
                alt="; ".join(f"{t or 'as studied'} {100 * row['accuracy']:.1f} %" for t, row in found.items()),
            )


def _test_name(model: "Model", test: str) -> str:
    bound = model.bound(test)
    return (test or "as studied") + (f"\n({bound})" if bound else "")


def _retention(page: Page, f: "Findings", later: dict[str, int]) -> None:
    if not later:
        return
    last = max(later.values())
    page.section(
        "Retention",
        "After its last exposure the model goes on learning other pictures, and is tested again after 1, 2, 4, ... "
        "updates. 0 is the test straight after study.",
    )
    table = f.scored.accuracy
    with chart(height=3.4 + 0.17 * len(f.models)) as figure:
        axes = figure.subplots()
        lines = []
        for k, model in enumerate(f.models):
            of = model.rows(table, rule=model.rule, condition=POOLED, exposures=model.last)
            own = table[(table["model"] == model.name) & (table["pretraining"] == model.pretraining)]
            own = own[(own["rule"] == model.rule) & (own["condition"] == POOLED) & own["test"].isin(later)]
            if own.empty:
                continue
            own = own[own["exposures"] == own["exposures"].max()]
            rows = pd.concat([of.assign(updates=0), own.assign(updates=own["test"].map(later))])
            style = {"colour": MODEL_COLOURS[k % 6], "marker": MODEL_MARKERS[k % 6]}
            curve(axes, rows, x="updates", label=f"{model.label}, {rule_name(model.rule)}", **style)
            lines.append((model, rows.sort_values("updates")))
        human_line(axes, published(POOLED, f.models[0].conditions))
        chance_line(axes)
        log_axis(axes, 0, last)
        accuracy_axis(axes, pd.concat([rows for _, rows in lines]))
        axes.set(xlabel="updates on other pictures", ylabel="% right, all conditions")
        figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL)
        page.figure(
            figure,
            "Accuracy while other things are learned; bands are 95 % intervals. People were tested up to 5.5 hours "
            "after they saw a picture, with thousands of others between.",
            alt="; ".join(
                f"{m.label} from {100 * rows.iloc[0]['accuracy']:.1f} to {100 * rows.iloc[-1]['accuracy']:.1f} %"
                for m, rows in lines
            ),
        )
    page.table(
        ["model", "rule", "updates", "% right"],
        [
            [m.label, rule_name(m.rule), int(row["updates"]), percent(row)]
            for m, rows in lines
            for _, row in rows.iterrows()
        ],
        f"The same as numbers ({counts(lines[0][1].iloc[0])}).",
    )


def _sweep(page: Page, table: pd.DataFrame, name: str) -> None:
    page.section(
        f"Learning rate, batch and list length: {name}",
        "Every cell is an experiment of its own with all study sets and seeds. Few updates, small steps and long lists "
        "keep a test from saturating; what one exposure does follows from them.",
    )
    done = table[table["accuracy"].notna() & (table["exposures"] > 0)]
    if len(done):
        first = done[(done["condition"] == POOLED) & (done["exposures"] == done["exposures"].min())]
        best = next(rule for rule in RULES if rule in set(first["rule"]))
        people = published(POOLED, set(done["condition"]))
        swept = [key for key in _SWEPT if table[key].nunique() > 1]
        for key in swept:
            _swept_figure(page, first, best, people, key, [other for other in swept if other != key])
        raw = first[first["rule"] == "raw"].set_index("cell")
        page.table(
            ["lr", "batch", "pictures", f"{rule_name(best)} %", "raw %", "d'", "bits", "capacity"],
            [
                [f"{row['lr']:g}", int(row["batch_size"]), int(row["study_pictures"]), percent(row)]
                + [percent(raw.loc[row["cell"]]), Estimate(row["d_prime"], digits=2)]
                + [Estimate(row["bits_2afc"], digits=2), Estimate(row["capacity_bits"], digits=0)]
                for _, row in first[first["rule"] == best].iterrows()
            ],
            f"All conditions, exposure {int(first['exposures'].min())} ({counts(first.iloc[0])} a cell). d', bits and "
            f"capacity by the {rule_name(best)} rule. Bits: what a decision between two pictures tells, one at most. "
            "Capacity: bits times the pictures studied, so a lower bound of what was kept. Other exposures, conditions "
            "and rules: sweep.csv.",
        )
    failed = table[table["accuracy"].isna()]
    if len(failed):
        page.bullets([f"{row['cell']} has no figures: {row['reason']}." for _, row in failed.iterrows()])


def _swept_figure(
    page: Page, rows: pd.DataFrame, best: str, people: HumanFigure | None, key: str, others: list[str]
) -> None:
    """Accuracy against one swept setting, a line for each combination of the others; `raw` dotted."""
    cells = list(rows.groupby(others, sort=True)) if others else [((), rows)]
    with chart(height=3.1 + 0.1 * len(cells)) as figure:
        axes = figure.subplots()
        for k, (values, cell) in enumerate(cells):
            fixed = ", ".join(_SWEPT[other][1].format(value) for other, value in zip(others, values))
            for rule in dict.fromkeys((best, "raw")):
                of = cell[cell["rule"] == rule].sort_values(key)
                bars(
                    axes,
                    of[key],
                    [row for _, row in of.iterrows()],
                    colour=MODEL_COLOURS[k % 6],
                    marker=MODEL_MARKERS[k % 6],
                    line="-" if rule == best else ":",
                    label=None if rule != best else fixed or rule_name(rule),
                )
        human_line(axes, people)
        chance_line(axes)
        accuracy_axis(axes, rows)
        values = sorted(rows[key].unique())
        axes.set(xlabel=_SWEPT[key][0], ylabel="% right, all conditions", xscale="log")
        axes.set_xticks(values, [f"{value:,g}" for value in values])
        axes.minorticks_off()
        figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL)
        page.figure(
            figure,
            f"Accuracy against {_SWEPT[key][0]}, exposure {int(rows['exposures'].min())}: {rule_name(best)} (solid) "
            "and raw (dotted, of the same colour); bars are 95 % intervals.",
            alt="; ".join(f"{row[key]:g}: {words(row)}" for _, row in rows[rows["rule"] == best].iterrows()),
        )


def _recall(page: Page, table: pd.DataFrame, name: str) -> None:
    overall = table[table["study_set"].isna() | (table["study_set"] == "")]
    if overall.empty:
        return
    page.section(
        f"Recall: {name}",
        "The upper half of a picture is given, and the model completes the lower one. Recalled: of the lower halves of "
        "all tested pictures, its own is the nearest to what was completed. An upper half tells much of the lower one "
        "without any memory; so foils that were never studied, the model before study, and chance stand beside it.",
    )
    rows = [
        [row["role"], rule_name(row["rule"]), int(row["exposures"]), percent(row.rename({"recalled": "accuracy"}))]
        + [Estimate(100 * row["chance"]), Estimate(row["mean_rank"]), Estimate(row["chance_rank"])]
        for _, row in overall.iterrows()
    ]
    of = overall.iloc[0]
    page.table(
        ["pictures", "rule", "exposures", "recalled %", "chance %", "mean rank", "by chance"],
        rows,
        f"{int(of['n_pictures']):,} pairs, {int(of['candidates']):,} candidates; 95 % intervals over pairs. "
        "Calibrated: by how much nearer a candidate has come since before study. The difference is what study did.",
    )


def serial_position(page: Page, f: "Findings") -> None:
    """Margin against the place of a picture within its exposure; nothing where no run kept positions."""
    if f.positions.empty:
        return
    page.section(
        "Place in the exposure",
        "Every exposure shows the pictures in a new order, and the test follows at once. What came last may be "
        "remembered better than what came first, only because less came after it.",
    )
    frame = f.positions.assign(part=np.minimum((f.positions["place"] * _PLACES).astype(int), _PLACES - 1))
    exposures = sorted(frame["exposures"].unique())
    with chart(height=2.9 + 0.17 * frame["model"].nunique()) as figure:
        panels = figure.subplots(1, len(exposures), sharey=True, squeeze=False)[0]
        for axes, exposure in zip(panels, exposures):
            for k, model in enumerate(dict.fromkeys(frame["model"])):
                of = frame[(frame["model"] == model) & (frame["exposures"] == exposure)]
                if of.empty:
                    continue
                middle, estimates = _by_place(of, k)
                value = np.array([e.estimate for e in estimates])
                ends = np.stack([value - [e.low for e in estimates], [e.high for e in estimates] - value])
                axes.errorbar(
                    np.array(middle) + 0.015 * k,
                    value,
                    yerr=ends,
                    color=MODEL_COLOURS[k % 6],
                    marker=MODEL_MARKERS[k % 6],
                    markersize=5,
                    capsize=2,
                    label=model if axes is panels[0] else None,
                )
            axes.set_title(f"exposure {exposure}", fontsize=10, loc="left")
            axes.set(xlim=(0, 1), xlabel="place in the exposure")
            axes.set_xticks([0.1, 0.5, 0.9], ["first", "middle", "last"])
            axes.axhline(0, color=MUTED, linestyle=":", linewidth=1.2)
        panels[0].set_ylabel("margin (standard deviations)")
        figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL)
        page.figure(
            figure,
            f"Mean margin of the pairs whose studied picture stood there, in fifths of an exposure, all conditions and "
            f"runs ({len(frame):,} values); 95 % intervals over pairs.",
            alt="margin against place in the exposure",
        )


def _by_place(of: pd.DataFrame, k: int) -> tuple[list[float], list]:
    """Of one model and exposure: the middle of each part of the exposure, and the mean margin there."""
    middle, estimates = [], []
    for part, rows in of.groupby("part"):
        by_pair = rows.groupby(["condition", "pair"])["margin"].mean().to_numpy()  # the unit that is resampled
        estimates.append(bootstrap_mean(by_pair, rng=stream(k, "memory report, place", int(part))))
        middle.append((part + 0.5) / _PLACES)
    return middle, estimates
