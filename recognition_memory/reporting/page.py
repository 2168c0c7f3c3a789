"""The page of the memory report, made from its findings: `headcam.recognition_memory.report` gathers, this file shows.

In the order of a reader's questions: is a picture remembered after one look, how does that go on, how does it compare
with people, why do the scoring rules disagree, what makes a difference, is it hard enough, who else did it, which pairs
are hard, what may be concluded, what was left out.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from headcam import __version__
from headcam.files import sha256_file
from headcam.pages import Estimate, Page, chart
from headcam.recognition_memory.human import human_level
from headcam.recognition_memory.reporting.charts import (
    RULES,
    SMALL,
    accuracy_axis,
    chance_line,
    counts,
    curve,
    exposure_axis,
    human_line,
    once,
    percent,
    published,
    rule_name,
    words,
)
from headcam.recognition_memory.reporting.conclusions import conclusions, cost, why_rules_differ
from headcam.recognition_memory.reporting.harder import harder_tests, serial_position
from headcam.recognition_memory.reporting.items import hardest_pairs, people_too
from headcam.recognition_memory.reporting.models import pretraining_and_size
from headcam.recognition_memory.scoring.table import POOLED

if TYPE_CHECKING:
    from headcam.recognition_memory.report import Findings, Model, Source

_CURVES = 8  # models with a figure of their own; all are in accuracy.csv


def write_page(path: Path, f: "Findings", frames: bool) -> None:
    """Write the page of these findings; with pictures of pairs where `frames` is True and a run names its manifest."""
    page = Page("Is a picture remembered after one look?", headline(f), frames=frames)
    page.facts(_facts(f))
    _curves(page, f)
    _tables(page, f)
    _human_level(page, f)
    why_rules_differ(page, f)
    pretraining_and_size(page, f)
    harder_tests(page, f)
    serial_position(page, f)
    people_too(page, f)
    more_left_out = hardest_pairs(page, f)
    cost(page, f)
    conclusions(page, f)
    _left_out(page, f, more_left_out)
    page.provenance(_provenance(f))
    page.write(path)


def headline(f: "Findings") -> str:
    """The result in a few sentences: the first model by its own rule and by the raw one, people, the other models."""
    model = f.models[0]
    row = model.accuracy(f.scored.accuracy, model.rule, model.first)
    raw = model.accuracy(f.scored.accuracy, "raw", model.first)
    text = (
        f"After {model.studied}, {model.label} tells {words(row)} of the pictures that it studied from foils by the "
        f"{rule_name(model.rule)} rule ({counts(row)})."
    )
    if raw is not None and model.rule != "raw":
        text += (
            f" The raw rule, which compares losses of two different pictures, gives {words(raw)} on the same losses."
        )
    if figure := published(POOLED, model.conditions):
        text += f" People had {100 * figure.accuracy:.1f} % in the published experiment, by another kind of judgement."
    # A bound is no model to compare with: it stands in the tables, with its label.
    first = f.compared[0]
    others = [(m, m.accuracy(f.scored.accuracy, m.rule, m.first)) for m in f.compared[1:] if not m.bound("")]
    if others:
        others.sort(key=lambda pair: pair[1]["accuracy"])
        if first.rule != model.rule:
            own = first.accuracy(f.scored.accuracy, first.rule, first.first)
            text += f" By the {rule_name(first.rule)} rule, which suits all models here, it has {words(own)}."
        text += f" Of the other models, {others[-1][0].label} has {words(others[-1][1])}"
        text += f" and {others[0][0].label} {words(others[0][1])}." if len(others) > 1 else "."
    return text


def _conditions(model: "Model") -> list[str]:
    """Pooled first; left out where there is only one condition to pool."""
    return [POOLED, *model.conditions] if len(model.conditions) > 1 else list(model.conditions)


def _rules(f: "Findings", model: "Model") -> list[str]:
    have = set(model.rows(f.scored.accuracy)["rule"])
    return [rule for rule in RULES if rule in have]


def _facts(f: "Findings") -> list[tuple[str, str]]:
    model = f.models[0]
    condition = _conditions(model)[0]
    facts = []
    for rule in dict.fromkeys((model.rule, "raw")):
        row = model.accuracy(f.scored.accuracy, rule, model.first, condition)
        if row is not None:
            facts.append((f"{percent(row).parts()[0]} %", f"{rule_name(rule)}, exposure {model.first}"))
    if figure := published(condition, model.conditions):
        facts.append((f"{100 * figure.accuracy:.1f} %", f"people, one look ({figure.study} {figure.year})"))
    raw = model.rows(f.scored.human_level, rule="raw", condition=condition)
    if len(raw):
        reached = raw.iloc[0]["exposures"]
        value = f"> {model.last}" if pd.isna(reached) else f"{int(reached)}"
        facts.append((value, "exposures to that level, raw rule"))
    row = model.accuracy(f.scored.accuracy, model.rule, model.first, condition)
    facts.append((f"{int(row['n_pairs']):,}", f"pairs, in {int(row['n_runs'])} runs"))
    if updates := model.source.experiment.get("updates_per_exposure"):
        facts.append((_span(updates.values()), f"updates per exposure, lr {model.source.experiment['lr']:g}"))
    return facts


def _curves(page: Page, f: "Findings") -> None:
    rules = {rule for model in f.models for rule in _rules(f, model)}
    page.section(
        "Accuracy against exposures",
        "A pair is right when its studied picture scores lower than its foil; 50 % is chance. What a score is depends "
        "on the rule: "
        + "; ".join(f"{rule_name(rule)}: {what}" for rule, (what, *_) in RULES.items() if rule in rules)
        + ". The raw rule also measures which of two pictures is simpler; the others take that out.",
    )
    for model in f.models[:_CURVES]:
        conditions = _conditions(model)
        across = min(2, len(conditions))
        down = -(-len(conditions) // across)
        with chart(height=0.9 + 1.75 * down) as figure:
            grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
            for axes in grid.ravel()[len(conditions) :]:
                axes.set_visible(False)
            shown = model.rows(f.scored.accuracy)
            for axes, condition in zip(grid.ravel(), conditions):
                for rule in _rules(f, model)[::-1]:
                    of = shown[(shown["rule"] == rule) & (shown["condition"] == condition)]
                    _, colour, marker = RULES[rule]
                    curve(axes, of, colour=colour, marker=marker, label=rule_name(rule))
                human_line(axes, published(condition, model.conditions))
                chance_line(axes)
                axes.set_title(condition.replace("_", " "), fontsize=10, loc="left")
                axes.tick_params(labelsize=SMALL)
            accuracy_axis(grid[0, 0], shown)
            exposure_axis(grid[0, 0], sorted(shown["exposures"].unique()), label="")
            for k in range(across):
                grid[(len(conditions) - 1 - k) // across, k].set_xlabel("exposures", fontsize=9)
            for axes in grid[:, 0]:
                axes.set_ylabel("% right", fontsize=9)
            handles, labels = grid[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=SMALL)
            row = model.accuracy(f.scored.accuracy, model.rule, model.first, conditions[0])
            page.figure(
                figure,
                f"{model.label}: bands are 95 % intervals over pairs and runs ({counts(row)}). "
                + _human_words(conditions),
                alt=f"{model.label}: {rule_name(model.rule)} {words(row)} at exposure {model.first}",
            )
    if len(f.models) > _CURVES:
        page.bullets([f"Curves of {len(f.models) - _CURVES} more models are in accuracy.csv only."])


def _human_words(conditions: list[str]) -> str:
    figures = [(c, figure) for c in conditions if c != POOLED and (figure := human_level(c))]
    if not figures:
        return "No published human figure belongs to these conditions."
    numbers = ", ".join(
        f"{c.replace('_', ' ')} {100 * g.accuracy:.1f}" + (f" ± {100 * g.sem:.1f}" if g.sem else "") for c, g in figures
    )
    g = figures[0][1]
    return (
        f"Dashed: people, {g.study} {g.year}, {g.n_items:,} pictures seen once for {g.exposure_s:g} s "
        f"({g.participants} people; {numbers} %, ± standard error over people, grey)."
    )


def _tables(page: Page, f: "Findings") -> None:
    conditions = list(dict.fromkeys(c for model in f.models for c in _conditions(model)))
    rows, sets = [], []
    for model in f.models:
        for rule in _rules(f, model):
            of = model.rows(f.scored.accuracy, rule=rule)
            of = of[of["exposures"] > 0]
            for exposure in sorted({of["exposures"].min(), of["exposures"].max()}):
                cells = [of[(of["exposures"] == exposure) & (of["condition"] == c)] for c in conditions]
                rows.append([model.label, rule_name(rule), int(exposure), *_cells(cells)])
        for rule in dict.fromkeys((model.rule, "raw")):
            if (cells := _by_set(f, model, rule)) is not None:
                sets.append([model.label, rule_name(rule), *cells])
    page.section("The numbers")
    n = {c: f.scored.accuracy.loc[f.scored.accuracy["condition"] == c, "n_pairs"].max() for c in conditions}
    page.table(
        ["model", "rule", "exposures", *(c.replace("_", " ") for c in conditions)],
        _model_once(rows),
        "Percent right at the first exposure that a rule is defined for, and at the last, with 95 % intervals. Pairs: "
        + ", ".join(f"{c.replace('_', ' ')} {n[c]:,}" for c in conditions)
        + "; runs: "
        + ", ".join(f"{m.label} {_runs(f, m)}" for m in f.models)
        + ". Every exposure: accuracy.csv.",
    )
    if sets:
        names = sorted(set(f.scored.by_set["study_set"]))
        page.table(
            ["model", "rule", "exposures", *(f"set {name}" for name in names)],
            _model_once(sets),
            "The study sets apart, pooled over conditions. Where the roles are swapped between two sets, a rule that "
            "measures which picture is simpler errs in opposite directions in them. All conditions: "
            "accuracy_by_set.csv.",
        )


def _model_once(rows: list[list]) -> list[list]:
    return [[label, *row[1:]] for label, row in zip(once([row[0] for row in rows]), rows)]


def _runs(f: "Findings", model: "Model") -> int:
    return int(model.rows(f.scored.accuracy)["n_runs"].max())


def _cells(found: list[pd.DataFrame]) -> list[Estimate | str]:
    return [percent(rows.iloc[0]) if len(rows) else "not defined" for rows in found]


def _by_set(f: "Findings", model: "Model", rule: str) -> list | None:
    condition = _conditions(model)[0]
    of = model.rows(f.scored.by_set, rule=rule, condition=condition)
    of = of[of["exposures"] > 0]
    if of.empty:
        return None
    exposure = of["exposures"].min()
    of = of[of["exposures"] == exposure].set_index("study_set")
    names = sorted(set(f.scored.by_set["study_set"]))
    return [int(exposure), *(percent(of.loc[name]) if name in of.index else "none" for name in names)]


def _human_level(page: Page, f: "Findings") -> None:
    table = f.scored.human_level
    if table.empty:
        return
    conditions = sorted(dict.fromkeys(table["condition"]), key=lambda condition: condition != POOLED)
    rows = []
    for model in f.models:
        for rule in _rules(f, model):
            of = model.rows(table, rule=rule).set_index("condition")
            if of.empty:
                continue
            last = int(model.rows(f.scored.accuracy, rule=rule)["exposures"].max())
            cells = [_reached(of.loc[c], last) if c in of.index else "no figure" for c in conditions]
            rows.append([model.label, rule_name(rule), *cells])
    human = {c: table.loc[table["condition"] == c, "human"].iloc[0] for c in conditions}
    page.section(
        "When is the human figure reached?",
        "The first exposure at which a model is right at least as often as people were after one look, with a 95 % "
        "interval. It says how many passes this recipe needs under this rule, not how well people remember: see the "
        "conclusions below.",
    )
    page.table(
        ["model", "rule", *(f"{c.replace('_', ' ')} ({100 * human[c]:.1f}\u00a0%)" for c in conditions)],
        _model_once(rows),
        "Exposures to the human figure, which stands at the head of each column. “> 30” says: not by exposure 30, the "
        "last one measured.",
    )


def _reached(row: pd.Series, last: int) -> str:
    """ "10 [9, 11]"; an end that lies behind the last exposure is said to do so."""
    value, low, high = ("> " + str(last) if pd.isna(x) else f"{x:.0f}" for x in row[["exposures", "low", "high"]])
    return value if value == low == high and value.startswith(">") else f"{value} [{low}, {high}]"


def _left_out(page: Page, f: "Findings", more: list[str]) -> None:
    lines = list(dict.fromkeys([*f.scored.left_out, *f.left_out, *more]))
    notes = list(f.scored.notes)
    for source in f.sources:
        experiment = source.experiment
        notes += [f"{source.path.name}: {note}" for note in experiment.get("notes") or ()]
    for model in f.models:
        if _runs(f, model) < 2:
            notes.append(f"{model.label} has one run only: its interval is over pairs, and says nothing of other runs.")
    page.section("What was left out, and notes", *([] if lines or notes else ["Nothing was left out."]))
    if lines:
        page.bullets([_sentence(line) for line in lines])
    if notes:
        page.bullets([_sentence(note) for note in dict.fromkeys(notes)])
    page.section("How it was measured")
    page.bullets(
        [
            *filter(None, map(_recipe, f.sources)),
            "A pair is right if the studied picture scores strictly lower than its foil; an exact tie counts one half.",
            "Intervals: 95 %, bootstrap crossed over pairs and runs: pairs are drawn once for all runs and both sets, "
            "seeds within each set. The sets are averaged.",
            "Rules: raw is the loss L; calibrated L minus L before study; drop since first L minus L after exposure 1; "
            "role swapped L minus L of the same picture in the run of the other set; unstudied reference L minus its "
            "mean in runs that did not study the picture.",
        ]
    )


def _recipe(source: "Source") -> str:
    """What a run says of its study; nothing for a table."""
    facts = source.experiment
    if not facts.get("study_pictures"):
        return ""
    pictures, updates = (_span(facts[key].values()) for key in ("study_pictures", "updates_per_exposure"))
    return (
        f"{source.path.name}: {pictures} pictures studied, {updates} updates per exposure, learning rate "
        f"{facts['lr']:g} ({facts['lr_chosen']}), scores in {facts['unit']}."
    )


def _span(values: Iterable[int]) -> str:
    least, most = min(values), max(values)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _provenance(f: "Findings") -> dict[str, str]:
    facts = {}
    for k, source in enumerate(f.sources, start=1):
        facts[f"losses {k}"] = f"{source.table}, SHA-256 {sha256_file(source.table)}"
        manifest = source.experiment.get("manifest") or {}
        if manifest.get("hash"):
            facts[f"manifest {k}"] = f"{manifest.get('path')}, hash {manifest['hash']}"
    return facts | {"numbers": str(f.out / "accuracy.csv"), "version": f"headcam {__version__}"}
