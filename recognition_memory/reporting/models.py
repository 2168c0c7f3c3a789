"""The part of the memory report that sets models beside each other: pretraining, size, amount of data."""

from typing import TYPE_CHECKING

import pandas as pd

from headcam.pages import INK, MUTED, Estimate, Page, chart
from headcam.recognition_memory.human import HumanFigure
from headcam.recognition_memory.reporting.charts import (
    MODEL_COLOURS,
    MODEL_MARKERS,
    RULES,
    SMALL,
    accuracy_axis,
    bars,
    chance_line,
    curve,
    dots,
    exposure_axis,
    human_line,
    percent,
    published,
    rule_name,
)
from headcam.recognition_memory.scoring.signals import d_prime
from headcam.recognition_memory.scoring.table import POOLED

if TYPE_CHECKING:
    from headcam.recognition_memory.report import Findings, Model


def pretraining_and_size(page: Page, f: "Findings") -> None:
    """Models beside each other at their first exposure, and over all; nothing where there is only one."""
    if len(f.compared) < 2:
        return
    page.section(
        "Pretraining, size and amount of data",
        "The same test of several models. Accuracy has a ceiling at 100 %; d' (the distance between the scores of "
        "studied pictures and foils in standard deviations) goes on where accuracy stops. One rule, the best that all "
        "models allow, sets them beside each other.",
    )
    _models_at_once(page, f)
    _models_over_exposures(page, f)
    _detectability(page, f)
    for key, label in (("hours", "hours of pretraining video"), ("parameters", "parameters")):
        _against(page, f, key, label)


def _people(f: "Findings") -> HumanFigure | None:
    """The human figure for all conditions, where all models were tested in those."""
    figures = [published(POOLED, model.conditions) for model in f.compared]
    return figures[0] if all(figures) else None


def _models_at_once(page: Page, f: "Findings") -> None:
    rules = [r for r in RULES if r == "raw" or any(m.rule == r for m in f.compared)]
    with chart(height=1.3 + 0.42 * len(f.compared)) as figure:
        axes = figure.subplots()
        shown = []
        for k, rule in enumerate(rules):
            _, colour, marker = RULES[rule]
            found = [
                (row, y - 0.16 + 0.32 * k / max(1, len(rules) - 1))
                for y, m in enumerate(f.compared)
                if rule in (m.rule, "raw") and (row := m.accuracy(f.scored.accuracy, rule, m.first)) is not None
            ]
            if found:
                rows, heights = zip(*found)
                dots(axes, rows, heights, colour=colour, marker=marker, label=rule_name(rule))
                shown += rows
        if figure_of_people := _people(f):
            axes.axvline(100 * figure_of_people.accuracy, color=INK, linestyle="--", linewidth=1.2, label="people")
        axes.axvline(50, color=MUTED, linestyle=":", linewidth=1.2, label="chance")
        axes.set_yticks(range(len(f.compared)), [_folded(m.label) for m in f.compared], fontsize=9)
        axes.set(xlabel="% right, all conditions", ylim=(len(f.compared) - 0.5, -0.5))
        axes.set_xlim(min(45.0, *(100 * row["low"] - 1 for row in shown)), 101)
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=4, fontsize=SMALL)
        firsts = ", ".join(dict.fromkeys(f"exposure {m.first} for {rule_name(m.rule)}" for m in f.compared))
        page.figure(
            figure,
            f"At the first exposure that the rule is defined for ({firsts}), with 95 % intervals.",
            alt="; ".join(f"{m.label} {100 * _first(f, m)['accuracy']:.1f} %" for m in f.compared),
        )


def _first(f: "Findings", model: "Model") -> pd.Series:
    return model.accuracy(f.scored.accuracy, model.rule, model.first)


def _folded(label: str) -> str:
    return label.replace(" (", "\n(")


def _models_over_exposures(page: Page, f: "Findings") -> None:
    with chart(height=5.2 + 0.17 * len(f.compared)) as figure:
        upper, lower = figure.subplots(2, sharex=True)
        for k, model in enumerate(f.compared):
            style = {"colour": MODEL_COLOURS[k % 6], "marker": MODEL_MARKERS[k % 6], "label": model.label}
            for axes, rule in ((upper, model.rule), (lower, "raw")):
                curve(axes, model.rows(f.scored.accuracy, rule=rule, condition=POOLED), **style)
        everything = f.scored.accuracy[f.scored.accuracy["condition"] == POOLED]
        used = list(dict.fromkeys(rule_name(m.rule) for m in f.compared))
        for axes, rule in ((upper, " or ".join(used)), (lower, "raw")):
            human_line(axes, _people(f), label=axes is upper)
            chance_line(axes, label=axes is upper)
            axes.set_title(rule, fontsize=10, loc="left")
            axes.set_ylabel("% right")
            accuracy_axis(axes, everything)
        exposure_axis(lower, sorted(everything["exposures"].unique()))
        figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=SMALL)
        page.figure(
            figure,
            "All conditions, over exposures: above by that rule, below by the raw one. Bands are 95 % intervals.",
            alt="curves of all models by both rules",
        )


def _detectability(page: Page, f: "Findings") -> None:
    rows = []
    for model in f.compared:
        of = model.rows(f.scored.signals, rule=model.rule, exposures=model.first, condition=POOLED)
        if of.empty:
            continue
        signal, experiment = of.iloc[0], model.source.experiment
        rows.append(
            [model.label, _size(experiment.get("parameters")), _hours(experiment.get("hours"))]
            + [percent(_first(f, model)), _d_prime(_first(f, model), signal)]
            + [_number(signal["mean_over_sd"], 2), _auc(signal)]
            + [_number(signal["bits_2afc"], 2), _number(signal["bits_saved"], 1)]
        )
    columns = ["model", "parameters", "hours", "% right", "d'", "mean/SD", "AUC", "bits", "bits saved"]
    known = [k for k in range(len(columns)) if any(row[k] != "not known" for row in rows)]
    page.table(
        [columns[k] for k in known],
        [[row[k] for k in known] for row in rows],
        "At each model's first exposure, all conditions. d': from the share of pairs that are right, √2 z(p), kept "
        "finite at 100 % by the correction that the score's documentation names. mean/SD: of the margins, which has no "
        "ceiling, but is moved by single pairs. AUC: one criterion for all pictures, old or new, with its interval. "
        "Bits: what a decision between two pictures tells. Bits saved: of a picture's code, where losses are nats.",
    )


def _size(parameters: float | None) -> str:
    if parameters is None:
        return "not known"
    scale, unit = next(s for s in ((1e9, " B"), (1e6, " M"), (1e3, " k"), (1, "")) if parameters >= s[0] or s[0] == 1)
    return f"{parameters / scale:.3g}{unit}"


def _hours(hours: float | None) -> str:
    return "not known" if hours is None else f"{hours:.3g}"


def _auc(signal: pd.Series) -> Estimate | str:
    if pd.isna(signal["auc"]):
        return "not known"
    return Estimate(signal["auc"], signal["auc_low"], signal["auc_high"], digits=3)


def _d_prime(row: pd.Series, signal: pd.Series) -> Estimate:
    """The ends of the accuracy's interval, as d'."""
    trials = int(row["n_pairs"] * row["n_runs"])
    low, high = (float(d_prime(row[end], trials)) for end in ("low", "high"))
    return Estimate(signal["d_prime_2afc"], min(low, signal["d_prime_2afc"]), high, 2)


def _number(value: float, digits: int) -> Estimate | str:
    return "not known" if pd.isna(value) else Estimate(value, digits=digits)


def _against(page: Page, f: "Findings", key: str, label: str) -> None:
    """Accuracy and d' against a number that the runs state of themselves, where at least two differ in it."""
    known = [(m.source.experiment[key], m) for m in f.compared if m.source.experiment.get(key)]
    if len({value for value, _ in known}) < 2:
        return
    with chart(height=4.6) as figure:
        upper, lower = figure.subplots(2, sharex=True)
        for rule in RULES:
            found = [
                (value, row, signal.iloc[0]["mean_over_sd"])
                for value, m in sorted(known, key=lambda pair: pair[0])
                if rule in (m.rule, "raw")
                and (row := m.accuracy(f.scored.accuracy, rule, m.first)) is not None
                and len(signal := m.rows(f.scored.signals, rule=rule, exposures=m.first, condition=POOLED))
            ]
            if not found:
                continue
            x, rows, strength = zip(*found)
            _, colour, marker = RULES[rule]
            bars(upper, x, rows, colour=colour, marker=marker, label=rule_name(rule))
            lower.plot(x, strength, color=colour, marker=marker, markersize=5)
        human_line(upper, _people(f))
        chance_line(upper)
        upper.set_ylabel("% right")
        lower.set(xlabel=label, ylabel="mean/SD of the margin", xscale="log")
        values = sorted({value for value, _ in known})
        lower.set_xticks(values, [_size(value) for value in values])
        lower.minorticks_off()
        figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=SMALL)
        page.figure(
            figure,
            f"Against {label}, at the first exposure; bars are 95 % intervals. Models may differ in more than this.",
            alt="; ".join(f"{m.label}: {value:g}" for value, m in known),
        )
