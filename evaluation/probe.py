"""Score a checkpoint on a labelled folder, and beside it what the number has to be compared with.

    encoder, pretrained          ┐
    encoder, random weights      ├─ frozen features ─┬─ kNN ──────────┐
    raw pixels, 16 x 16 x 3      ┘                   └─ linear probe ─┴─ top-1, top-5 with intervals ─▶ scores.csv
    chance                                                                                            ─▶ probe.json

All three see the same pictures, the same splits and the same search over learning rates. `scores.csv` holds one row a
number; `probe.json` holds everything else that a reader needs to trust it: settings, chosen learning rates, what was
skipped and why, and the paired differences between the encoder and its baselines on the same test pictures. Features
are kept under OUT/features, so a probe that was interrupted, or run again, computes only what is missing.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headcam.devices import usable_device
from headcam.errors import InputError
from headcam.evaluation import protocols
from headcam.evaluation.features import (
    EncoderExtractor,
    Extractor,
    FeatureTable,
    PixelExtractor,
    extract,
    load_frozen,
    random_twin,
)
from headcam.evaluation.knn import knn_votes
from headcam.evaluation.labelled import LabelledSet, Picture, labels_of, read_labelled, selection_mask
from headcam.evaluation.linear_probe import LinearResult, in_top, linear_probe
from headcam.evaluation.scores import Score, write_scores
from headcam.files import sha256_json, write_json
from headcam.randomness import stream
from headcam.runs import environment
from headcam.statistics import bootstrap_mean, bootstrap_paired_difference

VERSION = 1  # of the contract "probe", OUT/probe.json
PIXELS = "raw pixels"
CHANCE = "chance"
POOLS = ("avg", "cls")
_TOP5_ABOVE = 5  # classes; with five or fewer every guess is among the five best


@dataclass(frozen=True)
class ProbeResult:
    """What `probe` found, and where it lies.

    Attributes:
        model: name of the pretrained encoder; its random twin is called `<model> (random weights)`.
        scores: all rows of scores.csv, the pretrained encoder's first.
        report: what probe.json holds.
        skipped: name and reason of each labelled picture that could not be read.
        scores_file, report_file: the files.
    """

    model: str
    scores: tuple[Score, ...]
    report: dict[str, Any]
    skipped: tuple[tuple[str, str], ...]
    scores_file: Path
    report_file: Path


@dataclass(frozen=True)
class _Subject:
    """One thing to be probed; `centre`: take the training mean off its features."""

    name: str
    weights_hash: str
    extractor: Extractor
    features: protocols.EncoderFeatures | protocols.PixelFeatures
    centre: bool


@dataclass(frozen=True)
class _Outcome:
    """What a subject got: `hits[metric]` (n,) bool of the test pictures, and the protocol of each metric."""

    subject: _Subject
    hits: dict[str, np.ndarray]
    protocols: dict[str, protocols.Protocol]
    linear: LinearResult


def probe(
    source: str | os.PathLike,
    labelled: str | os.PathLike,
    out: str | os.PathLike,
    *,
    seed: int = 0,
    pool: str = "avg",
    layer: str | None = None,
    device: str = "cpu",
    quiet: bool = False,
) -> ProbeResult:
    """Probe the encoder of `source` on the pictures of `labelled`; write OUT/scores.csv and OUT/probe.json.

    Args:
        source: run folder, weights.safetensors with its card, or Lightning checkpoint.
        labelled: folder of labelled pictures (see `headcam.evaluation.labelled`).
        out: folder for results and cached features, made where missing.
        seed: of the random weights, the order of pictures in the linear probe, and the resampling of intervals.
        pool: "avg" (mean of patch tokens) or "cls" (class token).
        layer: of a GPT or tokenizer, see `load_frozen`.
        device: where the encoder and the probes run, as torch names it.
        quiet: no progress on standard error.
    Returns:
        The result; accuracies in percent. Top-5 is left out where there are five classes or fewer.
    Raises:
        InputError: a checkpoint or a labelled folder that cannot be used, a device that is not there, or an `out` that
            holds the results of another probe.
        StorageError: `out` cannot be written.
    """
    if pool not in POOLS:
        raise InputError(f"pool {pool!r} is unknown", f"use one of {', '.join(POOLS)}")
    out, device = Path(out), usable_device(device)
    encoder, card = load_frozen(source, layer)
    data = read_labelled(labelled)
    subjects = _subjects(encoder, card, seed, pool, device)
    settings = _settings(data, subjects, seed, card.get("layer"))
    _check_folder(out / "probe.json", settings)

    tables = {
        (subject.name, part): extract(
            subject.extractor, pictures, out / "features", description=f"{subject.name}, {part} features", quiet=quiet
        )
        for subject in subjects
        for part, pictures in (("train", data.train), ("test", data.test))
    }
    skipped = list(data.skipped)
    kept: dict[str, np.ndarray] = {}
    for part, pictures in (("train", data.train), ("test", data.test)):
        table = tables[subjects[0].name, part]  # decoding is the same for all subjects, and so is what it cannot read
        skipped += [(pictures[row].name, reason) for row, reason in sorted(table.unreadable.items())]
        kept[part] = np.flatnonzero(table.readable)
        _check_classes(data, part, pictures, kept[part])

    labels = {
        "train": labels_of(data.train)[kept["train"]],
        "test": labels_of(data.test)[kept["test"]],
    }
    selection = selection_mask(labels["train"])
    outcomes = [
        _probe_one(
            subject,
            _rows(tables[subject.name, "train"], kept["train"]),
            _rows(tables[subject.name, "test"], kept["test"]),
            labels,
            selection,
            len(data.classes),
            seed,
            device,
            quiet,
        )
        for subject in subjects
    ]

    scores = [score for outcome in outcomes for score in _scores(outcome, data, seed)]
    scores += _chance(data, outcomes[0].hits, len(labels["test"]), seed)
    report = _report(card, data, outcomes, labels, selection, skipped, settings, seed, pool, device)
    scores_file, report_file = out / "scores.csv", out / "probe.json"
    write_json(report_file, report)
    write_scores(scores_file, scores)
    return ProbeResult(subjects[0].name, tuple(scores), report, tuple(skipped), scores_file, report_file)


def _settings(data: LabelledSet, subjects: list[_Subject], seed: int, layer: int | str | None) -> str:
    """SHA-256 of all that the numbers of a probe follow from: weights, pictures, protocols, seed, layer."""
    return sha256_json(
        {
            "weights": [subject.weights_hash for subject in subjects],
            "data": data.hash,
            "protocols": [
                protocols.protocol_hash(kind(subject.features))
                for subject in subjects
                for kind in (protocols.KNN, protocols.LinearProbe)
            ],
            "seed": seed,
            **({} if layer is None else {"layer": layer}),
        }
    )


def _check_folder(report_file: Path, settings: str) -> None:
    """A folder that holds the results of another probe is not written over."""
    if not report_file.is_file():
        return
    try:
        found = json.loads(report_file.read_text("utf-8"))
    except ValueError:
        found = {}
    if not isinstance(found, dict) or found.get("settings_hash") != settings:
        raise InputError(
            f"{report_file} is the report of another probe (other weights, layer, pictures, protocol or seed)",
            "choose another --out, or remove that file",
        )


def _subjects(
    encoder: torch.nn.Module, card: dict[str, Any], seed: int, pool: str, device: torch.device
) -> list[_Subject]:
    features, pixels = protocols.EncoderFeatures(pool=pool), protocols.PixelFeatures()
    name = card["name"]
    pretrained = EncoderExtractor(encoder, card, features, device)
    random = EncoderExtractor(random_twin(encoder, card, seed), card, features, device)
    return [
        _Subject(name, card["weights_hash"], pretrained, features, centre=False),
        _Subject(f"{name} (random weights)", random.weights_hash, random, features, centre=False),
        _Subject(PIXELS, "", PixelExtractor(pixels), pixels, centre=True),
    ]


def _check_classes(data: LabelledSet, part: str, pictures: tuple[Picture, ...], kept: np.ndarray) -> None:
    missing = set(range(len(data.classes))) - {pictures[row].label for row in kept}
    if missing:
        raise InputError(
            f"not one {part} picture of class {data.classes[min(missing)]} in {data.name} can be decoded",
            "replace its files, or remove the class",
        )


def _rows(table: FeatureTable, kept: np.ndarray) -> np.ndarray:
    """The rows that could be read; the memory map itself where that is all of them."""
    return table.values if len(kept) == len(table.values) else table.values[kept]


def _probe_one(
    subject: _Subject,
    train: np.ndarray,
    test: np.ndarray,
    labels: dict[str, np.ndarray],
    selection: np.ndarray,
    num_classes: int,
    seed: int,
    device: torch.device,
    quiet: bool,
) -> _Outcome:
    if subject.centre:
        mean = train.mean(axis=0, dtype=np.float64).astype(np.float32)
        train, test = train - mean, test - mean
    knn, linear = protocols.KNN(subject.features), protocols.LinearProbe(subject.features)
    votes = knn_votes(train, labels["train"], test, num_classes, knn, device)
    fitted = linear_probe(
        train,
        labels["train"],
        selection,
        test,
        num_classes,
        linear,
        seed=seed,
        device=device,
        description=f"{subject.name}, linear probe",
        quiet=quiet,
    )
    hits, used = {}, {}
    for protocol, scores in ((knn, votes), (linear, fitted.logits)):
        for k in _tops(num_classes):
            metric = f"{protocol.metric}/top{k}"
            hits[metric] = in_top(scores, torch.from_numpy(labels["test"]), k).numpy()
            used[metric] = protocol
    return _Outcome(subject, hits, used, fitted)


def _tops(num_classes: int) -> tuple[int, ...]:
    return (1, 5) if num_classes > _TOP5_ABOVE else (1,)


def _scores(outcome: _Outcome, data: LabelledSet, seed: int) -> list[Score]:
    rows = []
    for metric, hits in outcome.hits.items():
        interval = bootstrap_mean(hits, rng=stream(seed, f"bootstrap: {metric}", 0)).percent()
        protocol = outcome.protocols[metric]
        rows.append(
            Score(
                model=outcome.subject.name,
                weights_hash=outcome.subject.weights_hash,
                data=data.identity,
                protocol=protocols.label(protocol),
                protocol_hash=protocols.protocol_hash(protocol),
                metric=metric,
                value=interval.estimate,
                low=interval.low,
                high=interval.high,
                n=interval.n,
                seed=seed,
            )
        )
    return rows


def _chance(data: LabelledSet, metrics: dict[str, np.ndarray], n: int, seed: int) -> list[Score]:
    """A guess that gives every class the same probability, once for each metric that it stands beside."""
    protocol = protocols.Chance()
    rows = []
    for metric in metrics:
        value = 100 * int(metric.rpartition("/top")[2]) / len(data.classes)
        label, digest = protocols.label(protocol), protocols.protocol_hash(protocol)
        rows.append(Score(CHANCE, "", data.identity, label, digest, metric, value, value, value, n, seed))
    return rows


def _report(
    card: dict[str, Any],
    data: LabelledSet,
    outcomes: list[_Outcome],
    labels: dict[str, np.ndarray],
    selection: np.ndarray,
    skipped: list[tuple[str, str]],
    settings: str,
    seed: int,
    pool: str,
    device: torch.device,
) -> dict[str, Any]:
    pretrained, *baselines = outcomes
    used = {protocol for outcome in outcomes for protocol in outcome.protocols.values()} | {protocols.Chance()}
    counts = np.bincount(labels["test"], minlength=len(data.classes))
    return {
        "contract": "probe",
        "version": VERSION,
        "settings_hash": settings,
        "model": {
            key: card.get(key)
            for key in ("name", "weights_hash", "layer", "img_size", "hours", "samples_seen", "parameters")
            if key != "layer" or key in card
        },
        "data": {
            "name": data.identity,
            "hash": data.hash,
            "layout": data.layout,
            "classes": list(data.classes),
            "train": len(labels["train"]),
            "of_which_set_aside_for_the_learning_rate": int(selection.sum()),
            "test": len(labels["test"]),
            "largest_class_percent_of_test": 100 * int(counts.max()) / len(labels["test"]),
            "test_pictures_also_in_train": list(data.leaked),
            "skipped": [{"picture": name, "reason": reason} for name, reason in skipped],
        },
        "seed": seed,
        "pool": pool,
        "protocols": {
            protocols.protocol_hash(p): {"label": protocols.label(p), **asdict(p)}
            for p in sorted(used, key=protocols.protocol_hash)
        },
        "linear_probes": [
            {
                "model": outcome.subject.name,
                "base_lr_per_256": outcome.linear.base_lr_per_256,
                "at_the_end_of_the_range": outcome.linear.base_lr_per_256
                in (min(outcome.linear.selection_top1), max(outcome.linear.selection_top1)),
                "selection_top1_percent": [
                    {"base_lr_per_256": rate, "top1": 100 * top1}
                    for rate, top1 in outcome.linear.selection_top1.items()
                ],
                "train_top1_percent": 100 * outcome.linear.train_top1,
            }
            for outcome in outcomes
        ],
        "differences": [
            _difference(pretrained, baseline, metric, seed) for baseline in baselines for metric in pretrained.hits
        ],
        "device": str(device),
        "environment": environment(),
    }


def _difference(pretrained: _Outcome, baseline: _Outcome, metric: str, seed: int) -> dict[str, Any]:
    """Pretrained minus baseline on the same test pictures, in percentage points."""
    rng = stream(seed, f"bootstrap: {metric} minus {baseline.subject.name}", 0)
    interval = bootstrap_paired_difference(pretrained.hits[metric], baseline.hits[metric], rng=rng).percent()
    return {"metric": metric, "minus": baseline.subject.name, **asdict(interval)}
