"""Recall: given the upper half of a picture, does the model complete it with the lower half that it studied?

    upper halves of tested pictures ──Learner.complete──▶ lower halves ──distance to all tested pictures──▶ (Q, C)
                                                                            before study, and after it

The tested pictures of some pairs are completed, the studied one and its foil alike, and each completion is compared
with the lower halves of all tested pictures. A picture is recalled where its own lower half is the nearest. That alone
proves no memory: an upper half tells much of the lower one, and some lower halves (plain ones) are near to everything.
So three baselines stand beside it: chance; the same model before study; and foils, which were completed in the same way
but never studied. The difference between studied pictures and foils is what study did.

Rules, as for recognition: `raw` ranks the candidates by distance, `calibrated` by how much nearer than before study the
completion has come to each of them. Distances are Euclidean (the root of the mean square), not squared, for the second
rule's sake: by the triangle inequality no candidate can gain more than the one that is reproduced to the pixel, which
does not hold of squares. Completions before and after study draw the same random numbers, so a model that has not
changed is at chance by the calibrated rule: all candidates tie.

Shapes: Q completions, C candidates; pictures are uint8 (N, 3, H, W).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from headcam.errors import InputError
from headcam.randomness import permuted, stream
from headcam.recognition_memory.experiment import RecallSettings
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.stimuli.manifest import Pair, Stimulus
from headcam.statistics import Interval, bootstrap_mean, bootstrap_paired_difference

ITEM_COLUMNS = (
    "study_set",
    "seed",
    "exposures",
    "condition",
    "pair",
    "role",  # "studied" or "foil"
    "rule",  # "raw" or "calibrated"
    "nearest",  # 1: its own lower half is the nearest; 1/k where k candidates are equally near; else 0
    "rank",  # of its own lower half: 1 is the nearest; the mean of the ranks where several are equally near
    "candidates",
)
COLUMNS = (
    "study_set",  # empty: over all runs
    "seed",
    "exposures",
    "role",  # "studied", "foil" or "studied minus foil"
    "rule",
    "recalled",  # proportion with the own lower half nearest
    "low",
    "high",
    "mean_rank",
    "chance",  # 1 / candidates
    "chance_rank",  # (candidates + 1) / 2
    "n_pictures",
    "candidates",
)
_DIFFERENCE = "studied minus foil"


@dataclass(frozen=True)
class Question:
    """One picture to complete: the studied one, or the foil, of a pair; `candidate` is its own number among them."""

    condition: str
    pair: int
    role: str
    candidate: int


@dataclass(frozen=True)
class RecallTask:
    """What is completed, and what it is compared with.

    Attributes:
        candidates: all tested pictures of the conditions, seen and unseen, each once, by rising SHA-256: an order that
            says nothing about roles.
        questions: of `num` pairs drawn from all conditions alike, the studied picture and the foil of each.
    """

    candidates: tuple[Stimulus, ...]
    questions: tuple[Question, ...]


def recall_task(pairs: Mapping[str, Sequence[Pair]], num: int) -> RecallTask:
    """Choose what to complete. The same pairs for every run: the choice follows from their conditions and numbers.

    Args:
        pairs: condition -> pairs of one study set.
        num: pairs of which both pictures are completed; all where there are not as many.
    Raises:
        InputError: no pairs.
    """
    asked = sorted(
        ((pair.condition, pair.number, pair) for some in pairs.values() for pair in some), key=lambda p: p[:2]
    )
    if not asked:
        raise InputError("recall has no pair to complete", "test at least one condition")
    tested = {stimulus.sha256: stimulus for *_, pair in asked for stimulus in (pair.seen, pair.unseen)}
    candidates = tuple(tested[sha256] for sha256 in sorted(tested))
    number = {stimulus.sha256: k for k, stimulus in enumerate(candidates)}
    chosen = np.sort(permuted(np.arange(min(num, len(asked))), len(asked), 0, "recall"))
    questions = [
        Question(condition, k, role, number[stimulus.sha256])
        for condition, k, pair in (asked[p] for p in chosen.tolist())
        for role, stimulus in (("studied", pair.seen), ("foil", pair.unseen))
    ]
    return RecallTask(candidates, tuple(questions))


def completion_distances(
    learner: Learner, pictures: Tensor, task: RecallTask, settings: RecallSettings, *, seed: int, batch_size: int
) -> np.ndarray:
    """How far each completed lower half lies from the lower half of each candidate.

    Args:
        learner: as it is now, before or after study.
        pictures: uint8 (C, 3, H, W) of `task.candidates`, at the learner's size, on its device.
        seed: of the sampling; the same before and after study. It also follows from `batch_size`.
    Returns:
        (Q, C) float64: root mean square difference in grey levels (0 to 255) over the pixels of the lower half and over
        `settings.samples` completions.
    Raises:
        InputError: the learner completes nothing.
    """
    rows = pictures.shape[2] // 2  # kept: the upper half
    shown = pictures[[question.candidate for question in task.questions]]
    lower = _flat(pictures[:, :, rows:])
    squares = np.zeros((len(shown), len(pictures)))
    for start in range(0, len(shown), batch_size):
        batch = slice(start, start + batch_size)
        for sample in range(settings.samples):
            rng = stream(seed, f"recall {sample}", start)
            completed = learner.complete(shown[batch], rows, rng, settings.temperature, settings.top_k)
            squares[batch] += _squared_distances(_flat(completed[:, :, rows:]), lower)
    return np.sqrt(squares / (settings.samples * lower.shape[1]))


def _flat(pixels: Tensor) -> np.ndarray:
    return pixels.cpu().flatten(1).numpy().astype(np.float64)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # Expanded, and still exact, so that equal pictures tie: whole numbers far below 2**53 in double precision.
    return (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T


def recall_items(
    task: RecallTask, before: np.ndarray, after: np.ndarray, *, study_set: str, seed: int, exposures: int
) -> list[dict]:
    """One row a picture and rule (`ITEM_COLUMNS`): before study (exposure 0) by `raw`, after it by both rules.

    Args:
        before, after: (Q, C) of `completion_distances` at exposure 0 and at exposure `exposures`.
    """
    own = np.array([question.candidate for question in task.questions])
    rows = []
    for exposure, rule, distances in (
        (0, "raw", before),
        (exposures, "raw", after),
        (exposures, "calibrated", after - before),
    ):
        nearest, rank = _ranked(distances, own)
        rows += [
            {
                "study_set": study_set,
                "seed": seed,
                "exposures": exposure,
                "condition": question.condition,
                "pair": question.pair,
                "role": question.role,
                "rule": rule,
                "nearest": float(nearest[k]),
                "rank": float(rank[k]),
                "candidates": len(task.candidates),
            }
            for k, question in enumerate(task.questions)
        ]
    return rows


def _ranked(distances: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the own candidate in each row of (Q, C): the share of the first place that it holds, and its mean rank."""
    mine = distances[np.arange(len(own)), own][:, None]
    nearer, equal = (distances < mine).sum(1), (distances == mine).sum(1)
    return np.where(nearer == 0, 1 / equal, 0.0), 1 + nearer + (equal - 1) / 2


def recall_summary(items: Iterable[Mapping], *, seed: int = 0) -> pd.DataFrame:
    """Proportions recalled with 95 % intervals (`COLUMNS`), for each run and, in rows without study set, over all runs.

    Pairs are resampled. Over runs, each pair first takes its mean over them, so that the runs (which share the pairs)
    do not count as independent; nor is their own spread in the interval.

    Args:
        items: rows of `recall_items` of all runs.
        seed: of the resampling.
    """
    table = pd.DataFrame(items, columns=ITEM_COLUMNS)
    of_all = table.assign(study_set="", seed=pd.NA)
    rows, keys = [], ["study_set", "seed", "exposures", "rule"]
    for part in (table, of_all):
        for (study_set, run, exposures, rule), cells in part.groupby(keys, sort=True, dropna=False):
            # Conditions may share pictures; a pair of one condition is one unit all the same.
            by_pair = cells.pivot_table(index=["condition", "pair"], columns="role", values=["nearest", "rank"])
            rng = stream(seed, f"recall {study_set} {run} {rule}", int(exposures))
            recalled = {role: by_pair["nearest", role].to_numpy() for role in ("studied", "foil")}
            ranks = {role: by_pair["rank", role].mean() for role in ("studied", "foil")}
            ranks[_DIFFERENCE] = ranks["studied"] - ranks["foil"]
            candidates = int(cells["candidates"].max())
            for role in ("studied", "foil", _DIFFERENCE):
                if role == _DIFFERENCE:
                    interval = bootstrap_paired_difference(recalled["studied"], recalled["foil"], rng=rng)
                else:
                    interval = bootstrap_mean(recalled[role], rng=rng)
                rows.append(
                    {"study_set": study_set, "seed": run, "exposures": exposures, "role": role, "rule": rule}
                    | _measures(interval, float(ranks[role]), candidates, role == _DIFFERENCE)
                )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"seed": "Int64"})


def _measures(interval: Interval, mean_rank: float, candidates: int, difference: bool) -> dict:
    return {
        "recalled": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "mean_rank": mean_rank,
        "chance": 0.0 if difference else 1 / candidates,
        "chance_rank": 0.0 if difference else (candidates + 1) / 2,
        "n_pictures": interval.n,
        "candidates": candidates,
    }
