"""The memory report: what some runs and tables show together, gathered from their files and scored once.

    folders of `memory run`, tables of losses ──scoring──▶ OUT/accuracy.csv, ... ──here──▶ Findings ──▶ OUT/report.html
    data files of the browser experiment ─────scoring──▶ OUT/people/...      ──┘

This file reads and joins: which models there are and which rule speaks for each, what their runs say about themselves,
where each studied picture stood in its exposure, which pairs are hard. The page is made of that by

    `reporting/page`         the order of the page: headline, curves, tables, human level, notes
    `reporting/models`       models beside each other: pretraining, size, amount of data
    `reporting/harder`       degraded tests, retention, sweeps, recall, place in the exposure
    `reporting/items`        people who did it too, hardest and easiest pairs
    `reporting/conclusions`  why the rules differ, what study cost, what may be concluded

What cannot be read or shown is a line of the page, never a gap.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headcam.errors import HeadcamError, InputError
from headcam.files import write_text
from headcam.randomness import stream
from headcam.recognition_memory.human import ItemCorrelation, item_correlation
from headcam.recognition_memory.people.data import read_people
from headcam.recognition_memory.reporting.page import write_page
from headcam.recognition_memory.running.claim import ABOUT, CONTRACT
from headcam.recognition_memory.scoring.rules import RuleNotDefined, margins
from headcam.recognition_memory.scoring.scores import MOST_SPREAD_LEFT, Scored, score
from headcam.recognition_memory.scoring.signals import spread_left
from headcam.recognition_memory.scoring.table import POOLED, groups, read_losses, write_losses

# Which rule speaks for a model: the first of these that its table allows. One memory and nothing but the model's own
# past first; a reference that needs other runs, or holds a trace itself, later; the raw rule last. Where the losses
# before study know nothing of the pictures (random weights), `calibrated` comes last but for the raw rule.
PREFERENCE = ("calibrated", "unstudied_reference", "drop_since_first", "role_swapped", "raw")


@dataclass(frozen=True)
class Source:
    """A folder of `headcam memory run`, or a table of losses made elsewhere.

    Attributes:
        path: as it was given.
        table: its memory table.
        experiment: experiment.json; empty for a table.
        files: other tables of the folder by name ("positions", "study", "recall", "sweep"), where there.
    """

    path: Path
    table: Path
    experiment: dict[str, Any] = field(default_factory=dict)
    files: dict[str, pd.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model under one pretraining.

    Attributes:
        name, pretraining: as in the table.
        source: where its losses are from.
        rules: that could speak for it, the best first, see `PREFERENCE`.
        rule: that speaks for it.
        first, last: exposures at which that rule is first and last defined.
        conditions: that it was tested in.
    """

    name: str
    pretraining: str
    source: Source
    rules: tuple[str, ...]
    rule: str
    first: int
    last: int
    conditions: tuple[str, ...]

    @property
    def studied(self) -> str:
        """After how much of study its rule is first defined, in words."""
        return "one exposure" if self.first == 1 else f"{self.first} exposures"

    @property
    def label(self) -> str:
        """Name and pretraining in words; says so where the result is only a bound."""
        pretraining = {"none": "not pretrained", "": ""}.get(self.pretraining, self.pretraining)
        about = ", ".join(filter(None, (pretraining, self.bound(""))))
        return f"{self.name} ({about})" if about else self.name

    def bound(self, test: str) -> str:
        """What its result in a test has to be labelled as, where that is no memory: "upper bound", "lower bound"."""
        return (self.source.experiment.get("bounds") or {}).get(test, "")

    def rows(self, frame: pd.DataFrame, **equal: Any) -> pd.DataFrame:
        """The rows of one of the score's tables that are about this model, and have these values; plain tests only."""
        keep = (frame["model"] == self.name) & (frame["pretraining"] == self.pretraining)
        if "test" in frame and "test" not in equal:
            equal = {**equal, "test": ""}
        for column, value in equal.items():
            if column == "test" and column not in frame:
                keep &= value == ""
            else:
                keep &= frame[column] == value
        return frame[keep]

    def accuracy_of_test(self, frame: pd.DataFrame, test: str, rule: str | None = None) -> pd.Series | None:
        """The row of a test other than the plain one (its own rule, its first exposure, pooled)."""
        rows = self.rows(frame, rule=rule or self.rule, exposures=self.first, condition=POOLED, test=test)
        return None if rows.empty else rows.iloc[0]

    def accuracy(self, frame: pd.DataFrame, rule: str, exposure: int, condition: str = POOLED) -> pd.Series | None:
        """The one row of accuracy.csv for that; None where there is none."""
        rows = self.rows(frame, rule=rule, exposures=exposure, condition=condition)
        return None if rows.empty else rows.iloc[0]


@dataclass(frozen=True)
class People:
    """People who took the browser experiment: their scores, a row a participant, and their accuracy on each pair."""

    scored: Scored
    summary: pd.DataFrame
    items: Path


@dataclass(frozen=True)
class Correlation:
    """Of a model (its label) with people (where from) on the pairs of a condition."""

    model: str
    people: str
    condition: str
    found: ItemCorrelation


@dataclass(frozen=True)
class Findings:
    """Everything that the page shows.

    Attributes:
        out: folder of the page.
        sources, models: in the order in which they were given.
        compared: the models under one rule, the best that all of them allow (bounds apart): accuracies under two rules
            are not to be compared.
        scored: the scores of all tables.
        losses: all tables, one below the other.
        positions: a row for each run, exposure and pair: model (its label), exposures, place (0 to 1, first to last of
            the exposure), margin (in standard deviations of that model and exposure), pair.
        people: None without.
        correlations: with people on single pairs, of the file that was given and of the participants.
        left_out: sentences on what was asked for and is not on the page.
    """

    out: Path
    sources: tuple[Source, ...]
    models: tuple[Model, ...]
    compared: tuple[Model, ...]
    scored: Scored
    losses: pd.DataFrame
    positions: pd.DataFrame
    people: People | None
    correlations: tuple[Correlation, ...]
    left_out: tuple[str, ...]

    def files(self, name: str) -> list[tuple[Source, pd.DataFrame]]:
        """That table of every run that has it."""
        return [(source, source.files[name]) for source in self.sources if name in source.files]


def report(
    runs: Sequence[str | PathLike],
    out: str | PathLike,
    *,
    people: Sequence[str | PathLike] = (),
    human_items: str | PathLike | None = None,
    frames: bool = True,
    quiet: bool = False,
) -> Path:
    """Score runs and tables together, and write one page on what they show.

    Args:
        runs: folders of `headcam memory run`, memory tables (CSV, also .csv.gz), or both. The first is the one that the
            headline is about.
        out: folder for report.html and the tables of the score; people's scores go to `out`/people.
        people: data files of the browser experiment (`headcam memory page`).
        human_items: CSV with the accuracy of people on single pairs, see `headcam.recognition_memory.human`.
        frames: whether pictures of pairs are shown; they are read from the manifest that a run names, and checked.
        quiet: no progress on standard error.
    Returns:
        The page.
    Raises:
        InputError: a run or table that cannot be read or scored, two tables about the same runs.

    >>> report(["runs/gpt", "igpt_brady_losses.csv.gz"], "reports/memory")
    PosixPath('reports/memory/report.html')
    """
    out = Path(out)
    sources = tuple(_open(Path(path)) for path in runs)
    if not sources:
        raise InputError("no run was given", "name folders of headcam memory run, or tables of losses")
    left_out: list[str] = []
    scored = score(
        [source.table for source in sources],
        out,
        predictions=_predictions(sources, left_out),
        role_swapped=_role_swapped(sources),
        quiet=quiet,
    )
    frames_by_source = [read_losses(source.table) for source in sources]
    models = tuple(
        model for source, frame in zip(sources, frames_by_source) for model in _models(source, frame, scored.accuracy)
    )
    participants = _people(people, out, quiet) if people else None
    correlations = []
    if human_items is not None:
        correlations += _correlations(Path(human_items), Path(human_items).name, models, scored, left_out)
        if not correlations:
            raise InputError(f"{human_items}: {left_out[-1]}", "name conditions and pairs as the table of losses does")
    if participants is not None:
        correlations += _correlations(participants.items, "the participants", models, scored, left_out)
    findings = Findings(
        out=out,
        sources=sources,
        models=models,
        compared=_compared(models, scored.accuracy),
        scored=scored,
        losses=pd.concat(frames_by_source, ignore_index=True),
        positions=_positions(models, left_out),
        people=participants,
        correlations=tuple(correlations),
        left_out=tuple(left_out),
    )
    page = out / "report.html"
    write_page(page, findings, frames=frames)
    return page


def _open(path: Path) -> Source:
    if path.is_file():
        return Source(path, path)
    if not (path / ABOUT).is_file():
        found = f"has no {ABOUT}" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {found}", "name a folder of headcam memory run, or a table of losses (CSV)")
    experiment = json.loads((path / ABOUT).read_text("utf-8"))
    if experiment.get("contract") != CONTRACT:
        raise InputError(
            f"{path / ABOUT} is of contract {experiment.get('contract')}, not {CONTRACT}",
            "make the run again with this version of headcam",
        )
    if not experiment.get("complete"):
        raise InputError(f"{path} is not finished", "run headcam memory run again, with the same words: it goes on")
    places = {"positions": "positions.csv", "study": "study.csv", "recall": "recall.csv", "sweep": "sweep/sweep.csv"}
    found = {
        name: pd.read_csv(path / place, dtype={"study_set": str}, keep_default_na=True)
        for name, place in places.items()
        if (path / place).is_file()
    }
    return Source(path, path / "losses.csv", experiment, found)


def _predictions(sources: Sequence[Source], left_out: list[str]) -> int | None:
    """Of how many predictions a loss is the mean, where that is the same for all."""
    found = {source.experiment.get("predictions") for source in sources}
    if len(found) == 1:
        return found.pop()
    left_out.append("Bits saved per picture: the losses are means over different numbers of predictions.")
    return None


def _role_swapped(sources: Sequence[Source]) -> bool | None:
    """Whether all study sets are mirror images, as the manifests say; None, to be seen in the losses, without them."""
    found = {source.experiment.get("manifest", {}).get("role_swapped") for source in sources}
    return found.pop() if len(found) == 1 else None


def _models(source: Source, losses: pd.DataFrame, accuracy: pd.DataFrame) -> list[Model]:
    models = []
    for name, pretraining in losses[["model", "pretraining"]].drop_duplicates().itertuples(index=False):
        rows = accuracy[(accuracy["model"] == name) & (accuracy["pretraining"] == pretraining)]
        if "test" in rows:
            rows = rows[rows["test"] == ""]
        studied = rows[rows["exposures"] > 0]
        rows_of = losses[(losses["model"] == name) & (losses["pretraining"] == pretraining)]
        plain = next((group for group in groups(rows_of) if not group.test), None)
        known = plain is None or not spread_left(plain) > MOST_SPREAD_LEFT
        order = PREFERENCE if known else (*PREFERENCE[1:-1], "calibrated", "raw")
        rules = tuple(rule for rule in order if (studied["rule"] == rule).any())
        if not rules:  # nothing but variants, or nothing after study
            continue
        conditions = tuple(c for c in dict.fromkeys(rows["condition"]) if c != POOLED)
        model = Model(name, pretraining, source, rules, rules[0], 0, 0, conditions)
        models.append(_by_rule(model, rules[0], accuracy))
    return models


def _by_rule(model: Model, rule: str, accuracy: pd.DataFrame) -> Model:
    """The model with another rule to speak for it."""
    rows = model.rows(accuracy, rule=rule)
    exposures = rows.loc[rows["exposures"] > 0, "exposures"]
    return replace(model, rule=rule, first=int(exposures.min()), last=int(exposures.max()))


def _compared(models: Sequence[Model], accuracy: pd.DataFrame) -> tuple[Model, ...]:
    """The models by the best rule that all but the bounds allow; as they are where there is none but the raw one."""
    real = [model for model in models if not model.bound("")]
    common = [rule for rule in PREFERENCE if real and all(rule in model.rules for model in real)]
    if any(model.rule != "calibrated" for model in real):  # not defined for all, or it says little of some
        common = [rule for rule in common if rule != "calibrated"]
    if not common or common[0] == "raw":
        return tuple(models)
    return tuple(_by_rule(m, common[0], accuracy) if common[0] in m.rules else m for m in models)


def _positions(models: Sequence[Model], left_out: list[str]) -> pd.DataFrame:
    """Where each tested picture stood in its first and last exposure, with its margin afterwards."""
    parts = []
    for model in models:
        table = model.source.files.get("positions")
        if table is None:
            continue
        losses = read_losses(model.source.table)
        losses = losses[(losses["model"] == model.name) & (losses["pretraining"] == model.pretraining)]
        group = next(group for group in groups(losses) if not group.test)
        for condition in group.conditions:
            try:
                found = margins(model.rule, group, condition)
            except RuleNotDefined as error:
                left_out.append(f"Serial position of {model.label}, {condition}: {error}.")
                continue
            index = pd.MultiIndex.from_product(
                [group.study_sets, group.seeds, found.exposures, group.pairs[condition]],
                names=["study_set", "seed", "exposures", "pair"],
            )
            values = pd.Series(found.values.ravel(), index, name="margin").reset_index()
            values = values[values["exposures"].isin((model.first, model.last))]
            places = table[table["condition"] == condition]
            both = values.merge(places, on=["study_set", "seed", "exposures", "pair"])
            parts.append(both.assign(model=model.label, condition=condition))
    if not parts:
        return pd.DataFrame(columns=["model", "exposures", "condition", "pair", "place", "margin"])
    frame = pd.concat(parts, ignore_index=True)
    runs = frame.groupby(["model", "exposures"])
    frame["place"] = frame["position"] / runs["position"].transform("max").clip(lower=1)
    spread = runs["margin"].transform("std")
    frame["margin"] /= spread.where(spread > 0, np.nan)
    return frame.dropna(subset="margin")


def _people(files: Sequence[str | PathLike], out: Path, quiet: bool) -> People:
    frame, summary = read_people(files)
    folder = out / "people"
    write_losses(folder / "losses.csv", frame)
    right = (frame["loss_seen"] < frame["loss_unseen"]).groupby([frame["condition"], frame["pair"]])
    items = folder / "human_items.csv"
    write_text(items, right.agg(accuracy="mean", n="size").to_csv(lineterminator="\n"))
    return People(score(folder / "losses.csv", folder, quiet=quiet), summary, items)


def _correlations(
    items: Path, people: str, models: Sequence[Model], scored: Scored, left_out: list[str]
) -> list[Correlation]:
    """Of each model's margins with people's accuracies, condition by condition: conditions differ in mean for both."""
    found = []
    for k, model in enumerate(models):
        own = model.rows(scored.items, rule=model.rule, exposures=model.first)
        for condition, rows in own.groupby("condition", sort=False):
            try:
                rng = stream(0, f"memory report, items of {condition}", k)
                found.append(Correlation(model.label, people, condition, item_correlation(items, rows, rng=rng)))
            except HeadcamError as error:
                left_out.append(f"Correlation of {model.label} with people, {condition}: {error.problem}.")
    return found
