"""From measurements to tables: scores with intervals, accuracy by class, paired differences, the report.

`Found` holds all that a probe measured. Everything here is arithmetic on guesses that are finished: nothing is chosen,
and no test label changes what was guessed.
"""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headcam.evaluation import protocols
from headcam.evaluation.labelled.faults import contradictions, cross_duplicates
from headcam.evaluation.labelled.sets import LabelledSet, groups_of, labels_of, selection_mask
from headcam.evaluation.outcomes import Measured
from headcam.evaluation.robustness.measure import Robustness
from headcam.evaluation.scoring.guesses import TOP, multilabel_right
from headcam.evaluation.scoring.scores import Score
from headcam.evaluation.subjects import CHANCE, Subject
from headcam.files import atomic_file
from headcam.randomness import stream
from headcam.runs import environment
from headcam.statistics import Interval, bootstrap_mean_over_draws, bootstrap_paired_difference

VERSION = 2  # of the contract "probe", OUT/probe.json
PER_CLASS = "per_class/1"  # contract of OUT/per_class.csv
_CLASS_RESAMPLES = 1999  # a class has few pictures, and there are many classes

# of (model, protocol hash): what its head scored on other pictures than the test set's
Robust = dict[tuple[str, str], list[Robustness]]


@dataclass
class Found:
    """All that was measured: (subject, protocol as it is on it, measurements), what was left out, and robustness."""

    rows: list[tuple[Subject, protocols.Protocol, list[Measured]]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    robust: Robust = field(default_factory=dict)

    def of(self, subject: Subject) -> Iterable[tuple[protocols.Protocol, str, list[Measured]]]:
        """(protocol, stem, its measurements: one, or one a draw) of a subject."""
        for who, protocol, measured in self.rows:
            if who.name == subject.name:
                for stem in dict.fromkeys(m.stem for m in measured):
                    yield protocol, stem, [m for m in measured if m.stem == stem]


def _tops(num_classes: int) -> tuple[int, ...]:
    return (1, TOP) if num_classes > TOP else (1,)


def all_scores(
    subjects: list[Subject], found: Found, data: LabelledSet, truths: list[frozenset[int]] | None, seed: int
) -> list[Score]:
    """All rows of scores.csv, the trained encoder's first and chance last.

    Args:
        truths: of each test picture the classes that count as right in multi-label accuracy; None: not measured.
    """
    own = [score for subject in subjects for score in _scores(subject, found, data, truths, seed)]
    robust = [score for subject in subjects for score in _robust_scores(subject, found, seed)]
    trained = subjects[0]
    return [*own, *robust, *_chance(data, own, trained.name, seed), *_robust_chance(trained, found, seed)]


def _scores(
    subject: Subject, found: Found, data: LabelledSet, truths: list[frozenset[int]] | None, seed: int
) -> Iterable[Score]:
    """Rows of one subject: of every measurement, and where there are draws of each and of their mean."""
    for protocol, stem, measured in found.of(subject):
        row = {
            "model": subject.name,
            "weights_hash": subject.weights_hash,
            "data": data.identity,
            "protocol": protocols.label(protocol),
            "protocol_hash": protocols.protocol_hash(protocol),
        }
        for metric, of_draw in _hits(measured, truths, len(data.classes)).items():
            name = f"{stem}/{metric}"
            yield Score(**row, metric=name, seed=seed, **_bounds(_interval(list(of_draw.values()), name, seed)))
        if measured[0].draw is not None:
            for m in measured:
                for metric, of_draw in _hits([m], truths, len(data.classes)).items():
                    name = f"{m.full_stem}/{metric}"
                    interval = _interval(list(of_draw.values()), name, seed)
                    yield Score(**row, metric=name, seed=m.draw, **_bounds(interval))


def _hits(
    measured: list[Measured], truths: list[frozenset[int]] | None, num_classes: int
) -> dict[str, dict[int | None, np.ndarray]]:
    """metric -> draw -> whether each test picture was right, (n,) bool."""
    out = {f"top{k}": {m.draw: m.guesses.right(k) for m in measured} for k in _tops(num_classes)}
    if truths is not None:
        out["multilabel_top1"] = {m.draw: multilabel_right(m.guesses, truths) for m in measured}
    return out


def _interval(hits: list[np.ndarray], name: str, seed: int) -> Interval:
    """Over test pictures; over draws as well where there are several. In percent."""
    rng = stream(seed, f"bootstrap: {name}", 0)
    return bootstrap_mean_over_draws(np.stack(hits), rng=rng).percent()


def _bounds(interval: Interval) -> dict[str, float | int]:
    return {"value": interval.estimate, "low": interval.low, "high": interval.high, "n": interval.n}


def _chance(data: LabelledSet, scores: list[Score], model: str, seed: int) -> list[Score]:
    """A guess that gives every class the same probability, once for each metric that it stands beside."""
    protocol = protocols.Chance()
    label, digest = protocols.label(protocol), protocols.protocol_hash(protocol)
    rows = []
    for score in scores:
        stem, _, k = score.metric.rpartition("/top")
        if score.model == model and stem and "/draw" not in stem and k.isdigit():
            value = 100 * int(k) / len(data.classes)
            rows.append(
                Score(CHANCE, "", data.identity, label, digest, score.metric, value, value, value, score.n, seed)
            )
    return rows


def _robust_scores(subject: Subject, found: Found, seed: int) -> Iterable[Score]:
    """Rows of other pictures than the test set's, of one subject."""
    for who, protocol, _ in found.rows:
        if who.name == subject.name:
            digest = protocols.protocol_hash(protocol)
            for row in found.robust.get((subject.name, digest), []):
                bounds = {"value": row.value, "low": row.low, "high": row.high, "n": row.n}
                label = protocols.label(protocol)
                yield Score(
                    subject.name, subject.weights_hash, row.data, label, digest, row.metric, **bounds, seed=seed
                )


def _robust_chance(trained: Subject, found: Found, seed: int) -> Iterable[Score]:
    chance = protocols.Chance()
    label, digest = protocols.label(chance), protocols.protocol_hash(chance)
    for who, protocol, _ in found.rows:
        if who.name == trained.name:
            for row in found.robust.get((trained.name, protocols.protocol_hash(protocol)), []):
                if row.chance is not None:
                    value = row.chance
                    yield Score(CHANCE, "", row.data, label, digest, row.metric, value, value, value, row.n, seed)


def write_per_class(path: Path, subjects: list[Subject], found: Found, data: LabelledSet, seed: int) -> None:
    """Top-1 of every class, of the measurements that are not points of a curve."""
    labels = np.array([item.label for item in data.test])
    with atomic_file(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["contract", "model", "stem", "class", "title", "n", "value", "low", "high"])
        for subject in subjects:
            for protocol, stem, measured in found.of(subject):
                if stem != protocol.metric:
                    continue
                hits = np.stack([m.guesses.right(1) for m in measured])
                for k, name in enumerate(data.classes):
                    rng = stream(seed, f"bootstrap: {stem}, class {name}", 0)
                    own = bootstrap_mean_over_draws(hits[:, labels == k], rng=rng, n_resamples=1999).percent()
                    title = data.titles[k] if data.titles else ""
                    writer.writerow(
                        [PER_CLASS, subject.name, stem, name, title, own.n, own.estimate, own.low, own.high]
                    )


def report_of(
    subjects: list[Subject],
    data: LabelledSet,
    readable: LabelledSet,
    found: Found,
    skipped: list[tuple[str, str]],
    settings: dict[str, Any],
    seed: int,
    device: Any,
) -> dict[str, Any]:
    """What probe.json holds.

    Args:
        subjects: the trained encoder first.
        data: the set as it was listed; readable: what of it can be decoded, and was used.
        found: all that was measured.
        skipped: name and reason of what was not used.
        settings: what all of OUT shares: weights, seed, layer, pictures.
    """
    trained, *baselines = subjects
    used = dict.fromkeys([p for _, p, _ in found.rows] + [protocols.Chance()])
    counts = np.bincount([item.label for item in readable.test], minlength=len(data.classes))
    card = trained.card
    return {
        "contract": "probe",
        "version": VERSION,
        "settings": settings,
        "asked": [protocols.settings(p) for s, p, _ in found.rows if s is trained],
        "model": {
            key: card.get(key)
            for key in ("name", "weights_hash", "layer", "img_size", "hours", "samples_seen", "parameters", "objective")
            if key != "layer" or key in card
        },
        "data": {
            "name": data.identity,
            "hash": data.hash,
            "layout": data.layout,
            "media": data.media,
            "classes": list(data.classes),
            "titles": list(data.titles),
            "train": len(readable.train),
            "of_which_set_aside_for_choices": int(
                selection_mask(labels_of(readable.train), groups_of(readable.train)).sum()
            ),
            "test": len(readable.test),
            "largest_class_percent_of_test": 100 * int(counts.max()) / len(readable.test),
            "test_pictures_also_in_train": sorted({test for test, _, _ in cross_duplicates(data)}),
            "same_bytes_other_label": [asdict(one) for one in contradictions(data)],
            "skipped": [{"picture": name, "reason": reason} for name, reason in skipped],
        },
        "seed": seed,
        "protocols": {protocols.protocol_hash(p): protocols.settings(p) | {"label": protocols.label(p)} for p in used},
        "outcomes": [
            {
                "model": subject.name,
                "stem": m.full_stem,
                "protocol": protocols.label(protocol),
                "protocol_hash": protocols.protocol_hash(protocol),
                "details": m.details,
            }
            for subject, protocol, measured in found.rows
            for m in measured
        ],
        "left_out": found.left_out,
        "robustness_notes": sorted(
            {f"{row.set}: {note}" for rows in found.robust.values() for row in rows for note in row.notes}
        ),
        "differences": [
            difference
            for baseline in baselines
            for difference in _differences(trained, baseline, found, len(data.classes), seed)
        ],
        "test_selection": [
            {
                "model": subject.name,
                "stem": m.full_stem,
                "what": "biased: chosen on the test pictures",
                **m.details[key],
            }
            for subject, _, measured in found.rows
            for m in measured
            for key in ("chosen_on_test",)
            if key in m.details
        ],
        "device": str(device),
        "environment": environment(),
    }


def _differences(
    trained: Subject, baseline: Subject, found: Found, num_classes: int, seed: int
) -> Iterable[dict[str, Any]]:
    """Trained minus baseline on the same test pictures and draws, in percentage points."""
    theirs = {stem: measured for _, stem, measured in found.of(baseline)}
    for _, stem, measured in found.of(trained):
        if stem not in theirs:
            continue
        for metric, of_draw in _hits(measured, None, num_classes).items():
            minus = _hits(theirs[stem], None, num_classes)[metric]
            name = f"{stem}/{metric}"
            rng = stream(seed, f"bootstrap: {name} minus {baseline.name}", 0)
            shared = [d for d in of_draw if d in minus]
            ours, other = (np.stack([hits[d] for d in shared]).astype(float) for hits in (of_draw, minus))
            if len(shared) == 1:
                interval = bootstrap_paired_difference(ours[0], other[0], rng=rng)
            else:
                interval = bootstrap_mean_over_draws(ours - other, rng=rng)
            yield {"metric": name, "minus": baseline.name, **asdict(interval.percent())}
