"""What people remember: published figures as a typed table, and your own item-level data beside a model's items.

`human.csv` beside this file holds one published number a row, with the length of the list, the time that a picture was
seen, the delay and how sure the figure is. None of these studies tested several exposures, small pictures, or a
judgement that may use a reference from before study: a figure here is a mark to compare with, never a ceiling.

    A           read in the paper's abstract or text, its author's page, or the original analysis code
    B           read in a secondary source
    C           general knowledge, not verified
    computed    from rows of certainty A
    inference   ours, from other figures of the same paper

Where you have data of single items (a picture pair and the share of people who were right on it), `item_correlation`
says whether what is hard for people is hard for a model, and how high such a correlation could be at best.
"""

import csv
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files
from os import PathLike
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy import stats

from headcam.errors import InputError

Certainty = Literal["A", "B", "C", "computed", "inference"]

# The figures that a model's curve is held against: those that need no further checking (and the mean of three such).
_LEVELS = {
    "novel": ("Brady", 2008),
    "exemplar": ("Brady", 2008),
    "state": ("Brady", 2008),
    "pooled": ("Brady", 2008),
    "16_exemplar": ("Konkle objects", 2010),
}
_FEWEST_ITEMS = 10
_RESAMPLES_AT_ONCE = 500


@dataclass(frozen=True)
class HumanFigure:
    """One published number.

    Attributes:
        study, year: first authors as they are cited, year of publication.
        condition: as in our tables ("novel", "16_exemplar", ...; "pooled" is the mean of novel, exemplar and state), or
            the study's own where there is none.
        n_items: length of the studied list, pictures.
        participants: number of people; None where not known.
        exposure_s: seconds that each picture was seen; None where not known.
        delay: from study to test, in words.
        accuracy: fraction right, chance 0.5.
        sem: standard error of the mean over people, a fraction; None where not known.
        source: where the number was read, and what is unsure about the other columns.
        certainty: how sure the number is, see the module.
    """

    study: str
    year: int
    condition: str
    n_items: int
    participants: int | None
    exposure_s: float | None
    delay: str
    accuracy: float
    sem: float | None
    source: str
    certainty: Certainty


@lru_cache
def human_figures() -> tuple[HumanFigure, ...]:
    """All figures of `human.csv`, in its order.

    Raises:
        InputError: a row that is not as `HumanFigure` says; the message names line and column.
    """
    text = files("headcam.recognition_memory").joinpath("human.csv").read_text("utf-8")
    return _parse_figures(text)


def _parse_figures(text: str) -> tuple[HumanFigure, ...]:
    rows = csv.DictReader(text.splitlines())
    names = [field.name for field in fields(HumanFigure)]
    if rows.fieldnames != names:
        raise InputError(f"human.csv has the columns {rows.fieldnames}", f"make them {','.join(names)}")
    return tuple(_parse_figure(row, rows.line_num) for row in rows)


def _parse_figure(row: dict[str, str], line: int) -> HumanFigure:
    number = {"year": int, "n_items": int, "participants": int, "exposure_s": float, "accuracy": float, "sem": float}
    optional = ("participants", "exposure_s", "sem")
    values = {}
    for name, text in row.items():
        try:
            values[name] = None if name in optional and not text else number.get(name, str)(text)
        except ValueError:
            raise InputError(
                f"human.csv, line {line}: {name} is {text!r}", f"write {number[name].__name__} there"
            ) from None
    limits = {"accuracy": 0 < values["accuracy"] <= 1, "sem": values["sem"] is None or 0 < values["sem"] < 0.5}
    for name, good in limits.items():
        if not good:
            raise InputError(f"human.csv, line {line}: {name} is {row[name]}", "give it as a fraction, not in percent")
    if row["certainty"] not in get_args(Certainty):
        raise InputError(
            f"human.csv, line {line}: certainty is {row['certainty']!r}", f"use one of {', '.join(get_args(Certainty))}"
        )
    return HumanFigure(**values)


def human_level(condition: str) -> HumanFigure | None:
    """The figure that a curve of `condition` is held against: Brady's or Konkle's objects; None where there is none.

    The conditions of Konkle's objects with fewer exemplars, and his scenes, have figures too (`human_figures`), but
    none that was read in the paper.
    """
    key = _LEVELS.get(condition)
    return next((f for f in human_figures() if f.condition == condition and (f.study, f.year) == key), None)


@dataclass(frozen=True)
class ItemCorrelation:
    """Do people and a model find the same pairs hard?

    Attributes:
        rho: Spearman's rank correlation over items (ties share their mean rank).
        low, high: ends of its percentile interval, items resampled.
        n_items: pairs that both have.
        n_human_only, n_model_only: pairs that only one has; they are not used.
        reliability: share of the variance of the human accuracies that is not noise of sampling; None where `n` is not
            known for every item.
        ceiling: the correlation that a noiseless model of people would reach with these data, sqrt(reliability).
    """

    rho: float
    low: float
    high: float
    n_items: int
    n_human_only: int
    n_model_only: int
    reliability: float | None
    ceiling: float | None
    confidence_level: float = 0.95


def item_correlation(
    human_csv: str | PathLike,
    items: pd.DataFrame,
    *,
    rng: np.random.Generator,
    measure: Literal["margin", "correct"] = "margin",
    confidence_level: float = 0.95,
    n_resamples: int = 9999,
) -> ItemCorrelation:
    """Correlate the accuracy of people on each pair with a model's.

    Conditions differ in mean accuracy for both, which alone makes a correlation: pass the items of one condition to
    ask about items. `correct` is all but constant at the ceiling; the margin is not.

    The ceiling: the accuracy p of n people on an item varies around the item's own by p(1 - p) / n, estimated without
    bias by p(1 - p) / (n - 1). The reliability is 1 - (mean of that over items) / (variance of p over items), 0 at
    least; it is what the correlation of two split halves, stepped up by Spearman and Brown's formula, estimates. The
    correlation with anything is at most its square root (Spearman 1904). Both are statements about Pearson's
    correlation and hold for ranks about.

    Args:
        human_csv: CSV with the columns condition, pair, accuracy (fraction of people right) and, where known, n (number
            of people) and study_set. Sets are averaged, weighted by n where given: pairs are the same pictures.
        items: rows of one model, pretraining, rule and number of exposures of a score's `items.csv`.
        measure: column of `items` to take.
        rng: where the resamples of items come from. A resample in which either side is constant counts as 0.
        n_resamples: number of resamples.
    Raises:
        InputError: a file or columns that cannot be used, items of more than one run, fewer than 10 common items, or no
            difference between items on one of the sides.
    """
    human = _read_items(human_csv)
    model = _one_model(items, measure)
    both = human.join(model, how="inner")
    if len(both) < _FEWEST_ITEMS:
        raise InputError(
            f"{human_csv} and the model's items have {len(both)} pairs in common; a correlation needs {_FEWEST_ITEMS}",
            "name conditions and pairs as the manifest does (column pair counts from 0 within a condition)",
        )
    people, model_values = both["accuracy"].to_numpy(), both["model"].to_numpy(np.float64)
    for values, what in ((people, f"accuracy in {human_csv}"), (model_values, f"{measure} of the model's items")):
        if np.ptp(values) == 0:
            raise InputError(
                f"{what} is {values[0]:g} for all {len(both)} common pairs, which correlates with nothing",
                "use margin instead of correct, or an earlier exposure",
            )
    draws = []
    for start in range(0, n_resamples, _RESAMPLES_AT_ONCE):
        size = (min(_RESAMPLES_AT_ONCE, n_resamples - start), len(both))
        index = rng.integers(len(both), size=size)
        draws.append(_spearman(people[index], model_values[index]))
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
    reliability = _reliability(people, both["n"].to_numpy(np.float64))
    return ItemCorrelation(
        rho=float(_spearman(people[None], model_values[None])[0]),
        low=float(low),
        high=float(high),
        n_items=len(both),
        n_human_only=len(human) - len(both),
        n_model_only=len(model) - len(both),
        reliability=reliability,
        ceiling=None if reliability is None else reliability**0.5,
        confidence_level=confidence_level,
    )


def _read_items(path: str | PathLike) -> pd.DataFrame:
    """Index (condition, pair), columns accuracy and n (NaN where not known), sets averaged."""
    try:
        frame = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", "give a CSV with condition, pair, accuracy, n") from None
    if missing := [name for name in ("condition", "pair", "accuracy") if name not in frame]:
        raise InputError(f"{path} lacks {', '.join(missing)}", "give the columns condition, pair, accuracy and n")
    keys = ["condition", "pair", *(["study_set"] if "study_set" in frame else [])]
    if frame[keys].duplicated().any():
        row = frame.loc[frame[keys].duplicated(), keys].iloc[0]
        raise InputError(f"{path} has {' '.join(map(str, row))} twice", "give one row an item")
    legal = {  # column -> what may stand there, and whether it does; the number of people may be unknown
        "condition": ("its name", lambda text, number: text.notna()),
        "pair": ("a whole number from 0", lambda text, number: (number >= 0) & (number % 1 == 0)),
        "accuracy": ("a fraction from 0 to 1", lambda text, number: number.between(0, 1)),
        "n": ("the number of people, or nothing", lambda text, number: text.isna() | (number >= 1)),
    }
    for name, (allowed, holds) in legal.items():
        if name not in frame:
            continue
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if not (good := holds(frame[name], numbers)).all():
            row = int(np.argmin(good.to_numpy()))
            raise InputError(f"{path}, line {row + 2}: {name} is {frame[name][row]!r}", f"give {allowed} there")
        frame[name] = frame[name] if name == "condition" else numbers
    frame["pair"] = frame["pair"].astype(int)
    n = frame["n"] if "n" in frame else pd.Series(np.nan, frame.index)
    frame["weight"] = n if n.notna().all() else 1.0
    frame["right"] = frame["accuracy"] * frame["weight"]
    sums = frame.groupby(["condition", "pair"])[["right", "weight"]].sum()
    known = sums["weight"] if n.notna().all() else np.nan
    return pd.DataFrame({"accuracy": sums["right"] / sums["weight"], "n": known}, index=sums.index)


def _one_model(items: pd.DataFrame, measure: str) -> pd.DataFrame:
    if missing := [name for name in ("condition", "pair", measure) if name not in items]:
        raise InputError(f"the model's items lack {', '.join(missing)}", "pass the items.csv of headcam memory score")
    if items.duplicated(["condition", "pair"]).any():
        many = [
            name
            for name in ("model", "pretraining", "rule", "exposures", "test")
            if name in items and items[name].nunique(dropna=False) > 1
        ]
        raise InputError(
            f"the model's items are of more than one run: {', '.join(many) or 'pairs'} differ",
            "pass the rows of one model, pretraining, rule and number of exposures",
        )
    return (
        items.astype({"condition": str, "pair": int})
        .set_index(["condition", "pair"])[[measure]]
        .set_axis(["model"], axis=1)
    )


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(R, n), (R, n) -> (R,): rank correlation of each row; 0 where a side is constant."""
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (stats.rankdata(a, axis=1), stats.rankdata(b, axis=1)))
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)


def _reliability(accuracy: np.ndarray, n: np.ndarray) -> float | None:
    if np.isnan(n).any() or n.min() < 2:
        return None
    noise = (accuracy * (1 - accuracy) / (n - 1)).mean()
    return float(max(0.0, 1 - noise / accuracy.var(ddof=1)))
