"""Scores of recognition memory: from tables of losses to accuracies with intervals, traces, bits, and the human mark.

    losses.csv ... ─table─▶ groups ─rules─▶ decisions, margins ─bootstrap, signals─▶ OUT/*.csv, OUT/scores.json

| file                  | a row for each                     | what                                                 |
|-----------------------|------------------------------------|------------------------------------------------------|
| `accuracy.csv`        | model, condition, exposure, rule   | share right with its interval, study sets averaged   |
| `accuracy_by_set.csv` | the same and study set             | each study set alone                                 |
| `signals.csv`         | model, condition, exposure, rule   | margins, AUC, d', bits                               |
| `memory.csv`          | model, condition, exposure         | memory against complexity (role-swapped sets only)   |
| `human_level.csv`     | model, condition, rule             | first exposure at or above people, with interval     |
| `items.csv`           | model, condition, pair, rule       | each pair, at the rule's first and last exposure     |
| `scores.json`         | all                                | tables, their hashes, settings, what was left out    |

Accuracies are fractions. The condition `pooled` holds all pairs of all conditions. A column `test` comes last in each
file where the table has other tests than the plain one (`human_level.csv` is about the plain one only). A cell is empty
where a figure is not defined; in `human_level.csv`: where people are not reached by the last exposure.

Of the columns that do not say it themselves: `d_prime_2afc` is sqrt(2) z(accuracy), `d_prime_yes_no` sqrt(2) z(auc)
(`signals.d_prime`); `bits_2afc` is what one two-alternative decision tells; `bits_saved` the mean margin in bits of a
whole picture, what the model's code for the studied picture has become shorter by than that for its foil: of one trace,
but of two traces under `role_swapped`, and under `raw` with the difference in complexity, which cancels over
role-swapped sets only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import headcam
from headcam.errors import InputError
from headcam.files import atomic_file, sha256_file, write_json
from headcam.progress import Progress
from headcam.randomness import stream
from headcam.recognition_memory.scoring import signals
from headcam.recognition_memory.scoring.bootstrap import Bootstrapped, crossed_bootstrap
from headcam.recognition_memory.scoring.rules import RULES, Margins, RuleNotDefined, decisions, margins
from headcam.recognition_memory.scoring.table import POOLED, TEST, Group, check_losses, groups, read_losses

if TYPE_CHECKING:
    from headcam.recognition_memory.human import HumanFigure

CONTRACT = "memory_scores/1"
CONFIDENCE_LEVEL = 0.95
MOST_SPREAD_LEFT = 0.5  # by `calibrated`, see `signals.spread_left`; beyond, another rule speaks for a model
_MARGIN_FIGURES = ("mean", "sd", "robust_sd", "mean_over_sd")
_COLUMNS = {
    "accuracy": (
        *("model", "pretraining", "condition", "exposures", "rule"),
        *("accuracy", "low", "high", "n_pairs", "n_runs"),
    ),
    "accuracy_by_set": (
        *("model", "pretraining", "condition", "exposures", "rule"),
        *("accuracy", "low", "high", "n_pairs", "n_runs", "study_set"),
    ),
    "signals": (
        *("model", "pretraining", "condition", "exposures", "rule", *_MARGIN_FIGURES, "d_prime_2afc"),
        *("auc", "auc_low", "auc_high", "d_prime_yes_no", "bits_2afc", "bits_saved"),
    ),
    "memory": (
        *("model", "pretraining", "condition", "exposures", "mean_m", "sd_m", "robust_sd_m", "mean_over_sd_m"),
        *("sd_c", "m_over_sd_c", "predicted_raw", "opposite", "seeds_agree"),
    ),
    "human_level": ("model", "pretraining", "condition", "rule", "human", "exposures", "low", "high"),
    "items": ("model", "pretraining", "condition", "pair", "rule", "exposures", "correct", "margin"),
}
_TYPES = dict.fromkeys(("model", "pretraining", "condition", "rule", "study_set", TEST), str) | dict.fromkeys(
    ("exposures", "pair", "n_pairs", "n_runs"), "int64"
)


@dataclass(frozen=True)
class Scored:
    """What `score` found and wrote; the frames are the files of the same name (`by_set`: accuracy_by_set.csv).

    Attributes:
        folder: where the files are.
        left_out: rules that a table does not allow, each with its reason.
        notes: what a reader of the numbers has to know.
    """

    folder: Path
    accuracy: pd.DataFrame
    by_set: pd.DataFrame
    signals: pd.DataFrame
    memory: pd.DataFrame
    human_level: pd.DataFrame
    items: pd.DataFrame
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def score(
    tables: Sequence[str | PathLike] | str | PathLike,
    out: str | PathLike,
    *,
    predictions: int | None = None,
    human: Sequence["HumanFigure"] | None = None,
    role_swapped: bool | None = None,
    seed: int = 0,
    n_resamples: int = 9999,
    quiet: bool = False,
) -> Scored:
    """Score memory tables under every rule that they allow, and write the files that the module names to `out`.

    Args:
        tables: memory tables, see `table.read_losses`; several are scored as one.
        predictions: how many predictions a loss is the mean of, where losses are nats; gives `bits_saved`.
        human: human figures to mark, at most one for a condition; None: Brady's and Konkle's where conditions are
            called like theirs (`headcam.recognition_memory.human.human_level`).
        role_swapped: whether two study sets are mirror images, see `table.groups`.
        seed: of the bootstrap; the draws depend on nothing else than the numbers of pairs and runs.
        n_resamples: of the bootstrap, at least 100.
    Raises:
        InputError: a table that cannot be used; a setting out of range.
    """
    tables = [tables] if isinstance(tables, str | PathLike) else list(tables)
    if not tables:
        raise InputError("no memory table was given", "name one or more CSV files of losses")
    if n_resamples < 100:
        raise InputError(f"n_resamples is {n_resamples}", "use 100 or more; 9999 is the default")
    if predictions is not None and predictions < 1:
        raise InputError(f"predictions is {predictions}", "give how many predictions a loss is the mean of, 1 or more")
    frame = read_losses(tables[0])
    if len(tables) > 1:
        frame = check_losses(
            pd.concat([frame, *map(read_losses, tables[1:])], ignore_index=True), " + ".join(map(str, tables))
        )
    found = groups(frame, role_swapped)

    rows: dict[str, list[dict]] = {name: [] for name in _COLUMNS}
    refused: dict[str, list[str]] = {}  # sentence -> groups that it is about
    noted: dict[str, list[str]] = {}
    with Progress("scoring", total=len(found) * len(RULES), unit="rules", quiet=quiet) as progress:
        for group in found:
            of_group: dict[str, list[dict]] = {name: [] for name in _COLUMNS}
            remarks = _group_notes(group)
            for rule in RULES:
                try:
                    scorer = _Scorer(group, rule, seed, n_resamples)
                except RuleNotDefined as reason:
                    refused.setdefault(f"{rule} is left out: {reason}", []).append(group.name)
                else:
                    of_group["accuracy"] += scorer.accuracy()
                    of_group["accuracy_by_set"] += scorer.accuracy_by_set()
                    of_group["signals"] += scorer.signals(predictions)
                    of_group["human_level"] += scorer.human_level(human)
                    of_group["items"] += scorer.items()
                    remarks += scorer.notes()
                progress.advance(current=f"{group.name}, {rule}")
            if group.role_swapped:
                of_group["memory"] = signals.memory_figures(group)
            for remark in remarks:
                noted.setdefault(remark, []).append(group.name)
            for name, new in of_group.items():
                names = {"model": group.model, "pretraining": group.pretraining, TEST: group.test}
                rows[name] += [names | row for row in new]

    left_out = tuple(_about(sentence, names, len(found)) for sentence, names in refused.items())
    notes = tuple(_about(sentence, names, len(found)) for sentence, names in noted.items())
    frames = {name: _frame(name, rows[name], any(group.test for group in found)) for name in _COLUMNS}
    out = Path(out)
    for name, table in frames.items():
        with atomic_file(out / f"{name}.csv", "w") as file:
            table.to_csv(file, index=False, float_format="%.10g", lineterminator="\n")
    write_json(
        out / "scores.json",
        {
            "contract": CONTRACT,
            "headcam": headcam.__version__,
            "tables": [{"file": Path(table).name, "sha256": sha256_file(table)} for table in tables],
            "settings": {
                "predictions": predictions,
                "role_swapped": role_swapped,
                "seed": seed,
                "n_resamples": n_resamples,
                "confidence_level": CONFIDENCE_LEVEL,
            },
            "left_out": left_out,
            "notes": notes,
        },
    )
    return Scored(out, by_set=frames.pop("accuracy_by_set"), left_out=left_out, notes=notes, **frames)


class _Scorer:
    """One rule applied to one group: everything that is said of it. Raises `RuleNotDefined`."""

    def __init__(self, group: Group, rule: str, seed: int, n_resamples: int):
        self.group, self.rule = group, rule
        self.margins: dict[str, Margins] = {c: margins(rule, group, c) for c in group.conditions}
        first = self.margins[group.conditions[0]]
        self.exposures, self.runs = first.exposures, first.runs
        self.decisions = {c: decisions(m) for c, m in self.margins.items()}
        self._bootstrap = {"seed": seed, "n_resamples": n_resamples}
        self.result = self._resampled(self.decisions)

    def _resampled(self, values: dict[str, np.ndarray]) -> dict[str, Bootstrapped]:
        return crossed_bootstrap(
            values,
            # The same stream for every rule and group: what is compared is resampled alike.
            rng=stream(self._bootstrap["seed"], "memory scores", 0),
            n_resamples=self._bootstrap["n_resamples"],
            confidence_level=CONFIDENCE_LEVEL,
            joint_seeds=self.rule == "role_swapped",
        )

    def _row(self, condition: str, e: int) -> dict:
        return {"condition": condition, "exposures": self.exposures[e], "rule": self.rule}

    def accuracy(self) -> list[dict]:
        return [
            self._row(condition, e)
            | {"accuracy": b.mean[e], "low": b.low[e], "high": b.high[e]}
            | {"n_pairs": b.n_pairs, "n_runs": int(self.runs.sum())}
            for condition, b in self.result.items()
            for e in range(len(self.exposures))
        ]

    def accuracy_by_set(self) -> list[dict]:
        return [
            self._row(condition, e)
            | {"accuracy": b.set_mean[s, e], "low": b.set_low[s, e], "high": b.set_high[s, e]}
            | {"n_pairs": b.n_pairs, "n_runs": int(self.runs[s].sum()), "study_set": study_set}
            for condition, b in self.result.items()
            for s, study_set in enumerate(self.group.study_sets)
            for e in range(len(self.exposures))
        ]

    def signals(self, predictions: int | None) -> list[dict]:
        choices = self.group.choices
        auc = {} if choices else self._auc()
        # Both runs of a pair are one decision under `role_swapped`.
        runs = int(self.runs.sum()) // (2 if self.rule == "role_swapped" else 1)
        rows = []
        for condition, b in self.result.items():
            trials = b.n_pairs * runs
            columns = {
                "d_prime_2afc": signals.d_prime(b.mean, trials),
                "bits_2afc": signals.bits_2afc(b.mean),
            }
            if not choices:
                values = np.concatenate([self.margins[c].values for c in self._parts(condition)], axis=-1)
                columns |= signals.margin_figures(values)
                area = auc[condition]
                # Resamples are linear in the components, so an end may come out a trifle beyond 1.
                low, high = np.clip([area.low, area.high], 0, 1)
                columns |= {"auc": area.mean, "auc_low": low, "auc_high": high}
                columns["d_prime_yes_no"] = signals.d_prime(area.mean, trials * b.n_pairs)
                if predictions is not None:
                    columns["bits_saved"] = columns["mean"] * predictions / np.log(2)
            rows += [
                self._row(condition, e) | {name: values[e] for name, values in columns.items()}
                for e in range(len(self.exposures))
            ]
        return rows

    def _auc(self) -> dict[str, Bootstrapped]:
        """By condition, and pooled: one criterion for all pictures of all conditions."""
        conditions = self.group.conditions
        alone = {c: signals.auc_components(self.margins[c].scores) for c in conditions}
        together = signals.auc_components(np.concatenate([self.margins[c].scores for c in conditions], axis=-2))
        ends = np.cumsum([self.group.pairs[c].size for c in conditions])[:-1]
        pooled = dict(zip(conditions, np.split(together, ends, axis=-1)))
        return self._resampled(alone) | {POOLED: self._resampled(pooled)[POOLED]}

    def human_level(self, human: Sequence["HumanFigure"] | None) -> list[dict]:
        if self.group.test or self.group.choices:  # people saw the pictures themselves; and are not their own mark
            return []
        rows = []
        for condition, b in self.result.items():
            level = _human_level(condition, self.group.conditions, human)
            if level is None:
                continue
            studied = np.array([e >= 1 for e in self.exposures])
            exposures = np.array(self.exposures)[studied]
            first = _first_reached(b.mean[None, studied], level)[0]
            tail = (1 - CONFIDENCE_LEVEL) / 2
            # Of ordered exposures the last of which is "later than the table": no value between two of them.
            low, high = np.quantile(_first_reached(b.draws[:, studied], level), [tail, 1 - tail], method="inverted_cdf")
            named = [int(exposures[i]) if i < exposures.size else pd.NA for i in (first, low, high)]
            rows.append(
                {"condition": condition, "rule": self.rule, "human": level}
                | dict(zip(("exposures", "low", "high"), named))
            )
        return rows

    def items(self) -> list[dict]:
        studied = [e for e, exposure in enumerate(self.exposures) if exposure >= 1] or [0]
        rows = []
        for condition, m in self.margins.items():
            values, right = _over_runs(m.values), _over_runs(self.decisions[condition])
            rows += [
                self._row(condition, e) | {"pair": int(pair), "correct": right[e, p], "margin": values[e, p]}
                for e in dict.fromkeys((studied[0], studied[-1]))
                for p, pair in enumerate(self.group.pairs[condition])
            ]
        return rows

    def notes(self) -> list[str]:
        tied = [
            exposure
            for e, exposure in enumerate(self.exposures)
            if all((d[:, :, e][self.runs] == 0.5).all() for d in self.decisions.values())
        ]
        if not tied:
            return []
        return [
            f"every decision of {self.rule} is a tie at {len(tied)} of {len(self.exposures)} "
            f"exposures (first at {tied[0]}): study changed no score there, and the interval has no width"
        ]

    def _parts(self, condition: str) -> tuple[str, ...]:
        return self.group.conditions if condition == POOLED else (condition,)


def _over_runs(values: np.ndarray) -> np.ndarray:
    """Mean over seeds, then over study sets: (sets, seeds, exposures, pairs) -> (exposures, pairs)."""
    return np.nanmean(values, axis=1).mean(axis=0)


def _first_reached(accuracy: np.ndarray, level: float) -> np.ndarray:
    """Index of the first exposure at or above `level` in each row of (n, exposures); their number where none is."""
    reached = accuracy >= level - 1e-9  # sums of fractions: 0.925 must reach 0.925
    return np.where(reached.any(axis=1), reached.argmax(axis=1), accuracy.shape[1])


def _human_level(condition: str, conditions: tuple[str, ...], human: Sequence["HumanFigure"] | None) -> float | None:
    if condition == POOLED and set(conditions) != {"novel", "exemplar", "state"}:
        return None  # the human mean is over these three
    if human is None:
        from headcam.recognition_memory.human import human_level

        figure = human_level(condition)
    else:
        figure = next((figure for figure in human if figure.condition == condition), None)
    return None if figure is None else figure.accuracy


def _group_notes(group: Group) -> list[str]:
    notes = list(group.notes)
    seeds = group.runs.sum(axis=1)
    if group.choices:
        notes.append("choices between two pictures: no margins and no AUC")
    if seeds.min() < 2:
        notes.append(
            f"{'there is one run' if seeds.sum() == 1 else 'a study set has one run'}, so no interval over runs is "
            "possible: intervals speak of other pairs only"
        )
    elif seeds.min() == 2:
        notes.append(
            "two runs in a study set: the part of the intervals that is due to runs is under-estimated, five are better"
        )
    left = signals.spread_left(group)
    if left > MOST_SPREAD_LEFT:
        notes.append(
            "the losses before study hardly know which pictures are complex (random weights?), so calibrated does not "
            f"take that out: {100 * left:.0f} % of the spread of unstudied pictures is left; read unstudied_reference"
        )
    if len(group.study_sets) == 1:
        notes.append("one study set: which picture of a pair is easier does not cancel in the raw rule")
    return notes


def _about(sentence: str, names: list[str], of: int) -> str:
    """A sentence with the groups that it is about, where it is not about all."""
    more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
    return sentence if len(names) == of else f"{sentence} ({'; '.join(names[:3])}{more})"


def _frame(name: str, rows: list[dict], with_tests: bool) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=[*_COLUMNS[name], TEST])
    types = {column: _TYPES.get(column, "float64") for column in frame}
    if name == "human_level":  # whole numbers of which some are missing
        types |= dict.fromkeys(("exposures", "low", "high"), "Int64")
    return frame.astype(types).drop(columns=TEST if name == "human_level" or not with_tests else [])
