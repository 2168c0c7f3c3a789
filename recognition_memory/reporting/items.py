"""The part of the memory report about single pairs: people who did the same test, and what is hard for whom."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headcam.errors import HeadcamError, InputError
from headcam.pages import Estimate, Page
from headcam.recognition_memory.reporting.charts import once, percent, rule_name
from headcam.recognition_memory.scoring.table import POOLED
from headcam.recognition_memory.stimuli.manifest import MemoryManifest, Pair, load_pictures

if TYPE_CHECKING:
    from headcam.recognition_memory.report import Findings, Model

_SHOWN = 6  # pairs
_SIDE = 128  # pixels


def people_too(page: Page, f: "Findings") -> None:
    """People of the browser experiment beside the models, and whether the same pairs are hard for both."""
    if f.people is not None:
        _participants(page, f)
    if f.correlations:
        page.section(
            "Are the same pairs hard for people?",
            "Rank correlation, over pairs, of the accuracy of people with a model's margin, each condition by itself. "
            "1 would be the same order. The ceiling is what a perfect model of people would reach with data as noisy "
            "as these.",
        )
        page.table(
            ["model", "people of", "condition", "correlation", "ceiling", "pairs"],
            [
                [label, c.people, c.condition.replace("_", " "), Estimate(c.found.rho, c.found.low, c.found.high, 2)]
                + ["not known" if c.found.ceiling is None else f"{c.found.ceiling:.2f}", c.found.n_items]
                for label, c in zip(once([c.model for c in f.correlations]), f.correlations)
            ],
            "Spearman's rank correlation with 95 % intervals over pairs, at the first exposure of each model's rule.",
        )


def _participants(page: Page, f: "Findings") -> None:
    page.section(
        "People who did it too",
        "Participants of the browser experiment, scored by the same code: a pair is right when the studied picture was "
        "chosen. Their task, time and judgement are not the models' (see the conclusions).",
    )
    table = f.people.scored.accuracy
    of = table[(table["rule"] == "raw") & (table["exposures"] == 1)]
    rows = []
    model = f.models[0]
    for _, row in of.sort_values("condition", key=lambda c: c != POOLED, kind="stable").iterrows():
        beside = model.accuracy(f.scored.accuracy, model.rule, model.first, row["condition"])
        rows.append(
            [row["condition"].replace("_", " "), percent(row), int(row["n_pairs"]), int(row["n_runs"])]
            + ["not tested" if beside is None else percent(beside)]
        )
    page.table(
        ["condition", "people, %", "pairs", "people", f"{model.label}, %"],
        rows,
        "Percent right, with 95 % intervals crossed over pairs and people; beside them the model after "
        f"{model.studied}, by the {rule_name(model.rule)} rule.",
    )
    page.table(
        ["person", "set", "right", "repeats noticed", "false alarms", "d' of these", "median s", "note"],
        [
            [str(p["participant"]), p["study_set"], f"{p['accuracy'] * p['n_trials']:.0f} of {p['n_trials']}"]
            + [f"{p['hits']} of {p['repeats']}", f"{p['false_alarms']} of {p['new']}"]
            + ["none" if np.isnan(p["d_prime"]) else f"{p['d_prime']:.2f}", f"{p['rt_ms'] / 1000:.1f}"]
            + [
                p["reason"]
                or ("" if not p["interruptions"] else f"times that the window was left: {p['interruptions']}")
            ]
            for _, p in f.people.summary.iterrows()
        ],
        "Each participant: the test, and how attentive study was (repeats are among the fillers). Whoever stopped "
        "before the end is not in the scores.",
    )


def hardest_pairs(page: Page, f: "Findings") -> list[str]:
    """The pairs with the largest and the smallest margins of the first model, as pictures where its run names them.

    Returns:
        What could not be shown, as sentences.
    """
    model = f.models[0]
    items = model.rows(f.scored.items, rule=model.rule, exposures=model.first)
    items = items[items["condition"] != POOLED].sort_values(["margin", "condition", "pair"])
    if items.empty:
        return []
    hardest, easiest = items.head(_SHOWN), items.tail(min(_SHOWN, len(items) - _SHOWN))[::-1]
    page.section(
        "Easiest and hardest pairs",
        f"Of {model.label}, by the margin of the {rule_name(model.rule)} rule at exposure {model.first}, mean over "
        "runs: how much more familiar the studied picture is than its foil, in the unit of the score"
        + (f" ({model.source.experiment['unit']})." if model.source.experiment.get("unit") else "."),
    )
    manifest, problem = _manifest(model)
    left_out = [problem] if problem else []
    for name, rows in (("Easiest", easiest), ("Hardest", hardest)):
        if rows.empty:
            continue
        if manifest is not None:
            try:
                _tiles(page, manifest, name, rows)
            except HeadcamError as error:
                left_out.append(f"Pictures of the {name.lower()} pairs: {error.problem}.")
        page.table(
            [f"{name.lower()}: condition", "pair", "margin", "right in % of runs"],
            [
                [row["condition"].replace("_", " "), int(row["pair"]), _margin(row["margin"])]
                + [Estimate(100 * row["correct"], digits=0)]
                for _, row in rows.iterrows()
            ],
            f"The {len(rows)} {name.lower()} of {len(items):,} pairs; each is a mean over runs. All: items.csv.",
        )
    return left_out


def _margin(value: float) -> Estimate:
    digits = 1 if abs(value) >= 10 else 3 if abs(value) >= 0.1 else 5
    return Estimate(value, digits=digits, signed=True)


def _manifest(model: "Model") -> tuple[MemoryManifest | None, str]:
    """The manifest that the model's run names, if it is still the same one; else why not."""
    named = model.source.experiment.get("manifest") or {}
    if not named.get("path"):
        return None, f"Pictures of pairs: a table of losses names no manifest ({model.source.path.name})."
    try:
        manifest = MemoryManifest.read(named["path"])
        if manifest.hash != named.get("hash"):
            raise InputError(f"{named['path']} has changed since the run", "prepare it again")
    except HeadcamError as error:
        return None, f"Pictures of pairs: {error.problem}."
    return manifest, ""


def _tiles(page: Page, manifest: MemoryManifest, name: str, rows: pd.DataFrame) -> None:
    study_set = manifest.study_sets[0]
    numbered = {c: {pair.number: pair for pair in manifest.pairs(study_set, c)} for c in set(rows["condition"])}
    pairs: list[Pair] = [numbered[row["condition"]][row["pair"]] for _, row in rows.iterrows()]
    pictures = (
        [
            load_pictures(manifest, [getattr(pair, side) for pair in pairs], (_SIDE, _SIDE)).permute(0, 2, 3, 1).numpy()
            for side in ("seen", "unseen")
        ]
        if page.frames
        else [np.zeros((len(pairs), 8, 8, 3), np.uint8)] * 2
    )
    both = ", or the other way round in the other set" if manifest.role_swapped else ""
    page.tiles(
        [(f"{name}: studied", list(pictures[0])), ("foil", list(pictures[1]))],
        f"{name} pairs, set {study_set}: the studied picture above its foil{both}. In this order: "
        + ", ".join(f"{pair.condition.replace('_', ' ')} {pair.number}" for pair in pairs)
        + ".",
    )
