"""Scores of a classifier on robustness sets and on corrupted pictures, with intervals over pictures.

A classifier is any function from pictures to logits of its classes: a linear head on frozen features, or a finetuned
network. It was chosen and fitted elsewhere; nothing here chooses anything. All values are in percent.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from headcam.errors import InputError
from headcam.evaluation.labelled.sets import LabelledSet, Picture, labels_of
from headcam.evaluation.robustness.corruptions import KINDS, SEVERITIES
from headcam.evaluation.robustness.resampling import bootstrap_of_means
from headcam.evaluation.robustness.sets import RobustnessSet, read_robustness
from headcam.evaluation.robustness.shape_bias import CHANCE, shape_bias
from headcam.evaluation.scoring.guesses import guesses
from headcam.randomness import stream
from headcam.statistics import Interval, bootstrap_mean

_TOP5_ABOVE = 10  # classes; among fewer, guessing is right too often for it to say much


@dataclass(frozen=True)
class Robustness:
    """One number.

    Attributes:
        set: name of the pictures, such as "imagenet-a"; "corruption" for corrupted test pictures.
        data: name and content hash of the pictures, as in scores.
        metric: such as `linear/imagenet-a/top1`, `linear/cue-conflict/shape_bias`, `linear/corruption/mean/top1`.
        value, low, high: the number and its 95 % interval, in percent.
        n: number of pictures; for shape bias the number of decisions that name shape or texture.
        chance: what guessing gets, in percent; None where there is no such value.
        notes: what was left out, a sentence each.
    """

    set: str
    data: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    chance: float | None
    notes: tuple[str, ...] = ()


def measure(
    folder: str | os.PathLike,
    score: Callable[[Sequence[Picture]], torch.Tensor],
    classes: Sequence[str],
    *,
    stem: str = "linear",
    seed: int = 0,
    hashes: Path | None = None,
    quiet: bool = True,
) -> list[Robustness]:
    """Score a classifier on one robustness set.

    Args:
        folder: the set, see `headcam.evaluation.robustness.sets`.
        score: pictures to logits or log-probabilities (n, K); rows of NaN where a picture could not be decoded.
        classes: names of the K classes, in the order of the scores.
        stem: how the classifier is called in metrics.
        seed: of the resampling.
        hashes: file of remembered hashes, see `headcam.evaluation.labelled.hashes`.
    Returns:
        top1 (and top5 of sets with more than ten classes), or for cue conflict shape_bias and shape_or_texture.
    Raises:
        InputError: see `read_robustness`; or no picture can be decoded.
    """
    data = read_robustness(folder, classes, hashes=hashes, quiet=quiet)
    scores = score(data.pictures)
    if scores.shape != (len(data.pictures), len(classes)):
        raise ValueError(f"scores of {len(data.pictures)} pictures and {len(classes)} classes, got {scores.shape}")
    read = ~scores.isnan().any(dim=1)
    notes = list(data.notes)
    if lost := int((~read).sum()) + len(data.skipped):
        notes.append(f"{lost} of {len(read) + len(data.skipped)} pictures could not be read")
    if not read.any():
        raise InputError(f"robustness set {folder}: none of its {len(read)} pictures can be decoded", "check the files")
    of = _of_conflict if data.kind == "cue conflict" else _of_answers
    return of(data, scores[read], read.numpy(), f"{stem}/{data.name}", seed, tuple(notes))


def _of_answers(
    data: RobustnessSet, scores: torch.Tensor, read: np.ndarray, stem: str, seed: int, notes: tuple[str, ...]
) -> list[Robustness]:
    """top1 and top5 among the answers of the set."""
    found = guesses(data.answer_scores(scores), labels_of(data.pictures)[read])
    rows = []
    for k in (1, 5) if data.kind == "classes" and len(data.answers) > _TOP5_ABOVE else (1,):
        metric = f"{stem}/top{k}"
        interval = bootstrap_mean(found.right(k), rng=stream(seed, f"robustness {metric}", 0))
        rows.append(_row(data.name, data.identity, metric, interval, k / len(data.answers), notes))
    return rows


def _of_conflict(
    data: RobustnessSet, scores: torch.Tensor, read: np.ndarray, stem: str, seed: int, notes: tuple[str, ...]
) -> list[Robustness]:
    """Shape bias, where any decision names shape or texture, and how many do."""
    shapes, textures = labels_of(data.pictures)[read], np.array(data.textures, dtype=np.int64)[read]
    decisions = data.decisions(scores)
    metric = f"{stem}/shape_bias"
    found = shape_bias(decisions, shapes, textures, rng=stream(seed, f"robustness {metric}", 0))
    counted = (
        f"of {len(decisions)} pictures {found.shape} decisions name the shape, {found.texture} the texture and "
        f"{found.other} neither",
    )
    rows = []
    if found.bias:
        bias = Interval(found.bias.estimate, found.bias.low, found.bias.high, found.shape + found.texture)
        rows.append(_row(data.name, data.identity, metric, bias, CHANCE, notes + counted))
    metric = f"{stem}/shape_or_texture"
    either = (decisions == shapes) | (decisions == textures)
    interval = bootstrap_mean(either, rng=stream(seed, f"robustness {metric}", 0))
    rows.append(_row(data.name, data.identity, metric, interval, 2 / len(data.answers), notes + counted))
    return rows


def measure_corruptions(
    score: Callable[[str, int], torch.Tensor],
    clean: torch.Tensor,
    data: LabelledSet,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    stem: str = "linear",
    seed: int = 0,
) -> list[Robustness]:
    """Score a classifier on the corrupted test pictures of the set that it was fitted on.

    Args:
        score: (kind, severity) to logits (n, K) of the test pictures so corrupted.
        clean: (n, K), of the same pictures as they are; rows of NaN where a picture could not be decoded.
        data: the labelled set of the n test pictures and K classes.
        kinds: which corruptions; all severities of each.
        stem: how the classifier is called in metrics.
        seed: of the resampling.
    Returns:
        top1 for each kind and severity (`<stem>/corruption/<kind>/<severity>/top1`), the mean over severities
        (`.../<kind>/mean/top1`), the mean over all (`.../mean/top1`), and the ratio of that to clean accuracy
        (`.../relative/top1`; left out where no clean picture is right).
    Raises:
        InputError: no kinds, one that does not exist, or a set of videos.
    """
    if data.media != "pictures":
        raise InputError(f"corruptions are of pictures, and {data.name} is a set of {data.media}", "leave them out")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise InputError(
            f"corruption {unknown[0] if unknown else 'list'} is unknown or empty", f"use {', '.join(KINDS)}"
        )
    read = ~clean.isnan().any(dim=1).numpy()
    labels, chance = labels_of(data.test)[read], 1 / len(data.classes)
    notes = () if read.all() else (f"{int((~read).sum())} of {len(read)} pictures could not be read",)
    rows: list[Robustness] = []

    def add(name: str, hits: np.ndarray) -> None:
        metric = f"{stem}/corruption/{name}/top1"
        interval = bootstrap_mean(hits, rng=stream(seed, f"robustness {metric}", 0))
        rows.append(_row("corruption", data.identity, metric, interval, chance, notes))

    means = []
    for kind in kinds:
        hits = []
        for severity in SEVERITIES:
            hits.append(guesses(score(kind, severity)[torch.from_numpy(read)], labels).right(1))
            add(f"{kind}/{severity}", hits[-1])
        means.append(np.mean(hits, axis=0))
        add(f"{kind}/mean", means[-1])
    # Rounded: sums of the same shares in another order differ in their last bits, and would be distinct scores.
    mean = np.mean(means, axis=0).round(9)
    add("mean", mean)
    columns = np.stack([mean, guesses(clean[torch.from_numpy(read)], labels).right(1)], axis=1)
    metric = f"{stem}/corruption/relative/top1"
    rng = stream(seed, f"robustness {metric}", 0)
    if ratio := bootstrap_of_means(columns, lambda means: means[:, 0] / means[:, 1], rng=rng):
        rows.append(_row("corruption", data.identity, metric, ratio, None, notes))
    return rows


def _row(
    name: str, data: str, metric: str, interval: Interval, chance: float | None, notes: tuple[str, ...]
) -> Robustness:
    """Fractions to percent."""
    p = interval.percent()
    return Robustness(
        name, data, metric, p.estimate, p.low, p.high, p.n, None if chance is None else 100 * chance, notes
    )
