"""One protocol on one subject: what is said of every test picture.

| kind of protocol | what is done | stems |
| --- | --- | --- |
| `KNN` | cached features, votes of the nearest | `knn/k20_T0.07` |
| `LinearProbe` | cached features, one layer | `linear` |
| with `augmentation` | new crops each epoch through the frozen encoder | `linear-aug` |
| with `layers: all` | cached features of all blocks, a probe on each | `linear-layers/layer01`, ... |
| `LabelCurve` | cached features, a probe for each number of labels and draw | `label-curve/5`, ... |
| `Finetune` | all weights trained, for each draw | `fewshot-1pct`, ... |

Nothing here reads the labels of the test pictures before a classifier is finished, with one exception that is asked for
and labelled: `test_selection`, which says by how much choosing on the test set would have flattered the number.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headcam.evaluation import protocols
from headcam.evaluation.features.encoders import Extractor
from headcam.evaluation.features.extraction import extract
from headcam.evaluation.features.views import TableView, mean_of
from headcam.evaluation.finetuning.train import finetune
from headcam.evaluation.heads.augmented import augmented_linear_probe
from headcam.evaluation.heads.curve import label_curve
from headcam.evaluation.heads.knn import knn_scores
from headcam.evaluation.heads.layers import probe_layers
from headcam.evaluation.heads.linear import LinearResult, linear_probe
from headcam.evaluation.labelled.draws import Draw, draw
from headcam.evaluation.labelled.sets import LabelledSet, groups_of, labels_of, selection_mask
from headcam.evaluation.outcomes import Measured, outcome_key, read_outcome, write_outcome
from headcam.evaluation.scoring.guesses import guesses
from headcam.evaluation.subjects import Subject


@dataclass(frozen=True)
class Material:
    """What all measurements of a probe share.

    Attributes:
        data: the labelled pictures, all of which can be read.
        listed: all of them, those that cannot be read as well: what draws of labels are drawn from.
        out: folder of the probe; outcomes go to `out/outcomes`, heads to `out/heads`.
        cache: folder of features, which probes of several models may share.
        seed: of the order of pictures in training, and of random weights.
        draws: how many of a protocol's draws to make; None: all.
        test_selection: also say what choosing on the test set would have given.
        processes: that finetuning is spread over.
    """

    data: LabelledSet
    listed: LabelledSet
    out: Path
    cache: Path
    seed: int
    device: torch.device
    draws: int | None = None
    test_selection: bool = False
    processes: int = 1
    quiet: bool = False
    labels: dict[str, np.ndarray] = field(init=False)
    selection: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        parts = {"train": self.data.train, "test": self.data.test}
        object.__setattr__(self, "labels", {part: labels_of(pictures) for part, pictures in parts.items()})
        object.__setattr__(self, "selection", selection_mask(self.labels["train"], groups_of(self.data.train)))

    @property
    def num_classes(self) -> int:
        return len(self.data.classes)

    def drawn(self, labels: protocols.Labels, number: int) -> Draw:
        """A draw of labels, its rows as rows of `data.train`.

        It is drawn from all that is listed: a picture that cannot be read changes no count and no other choice.
        """
        if self.data.train is self.listed.train:
            return draw(self.listed, labels, number)
        read = set(self.data.train)
        allowed = np.array([row for row, item in enumerate(self.listed.train) if item in read])
        found = draw(self.listed, labels, number, allowed)
        return replace(found, rows=np.searchsorted(allowed, found.rows))

    def tables(self, subject: Subject, extractor: Extractor) -> tuple[TableView, TableView]:
        """Features of the training and of the test pictures, from the cache or computed; of pixels, centred."""
        found = [
            extract(
                extractor,
                pictures,
                self.cache,
                description=f"{subject.name}, {part} features",
                quiet=self.quiet,
            ).values
            for part, pictures in (("train", self.data.train), ("test", self.data.test))
        ]
        centre = mean_of(found[0]) if subject.kind == "pixels" else None
        return TableView(found[0], centre=centre), TableView(found[1], centre=centre)


def measure(protocol: protocols.Protocol, subject: Subject, material: Material) -> list[Measured]:
    """All measurements of `protocol` on `subject`: those that lie in `out` already, and the others made now."""
    if isinstance(protocol, protocols.Finetune):
        count = protocol.labels.draws if material.draws is None else min(material.draws, protocol.labels.draws)
        steps = [(number, lambda n=number: [_finetuned(protocol, subject, material, n)]) for number in range(count)]
    else:
        kinds = {protocols.KNN: _knn, protocols.LinearProbe: _linear, protocols.LabelCurve: _curve}
        steps = [(None, lambda: list(kinds[type(protocol)](protocol, subject, material)))]
    found = []
    for number, step in steps:
        path = material.out / "outcomes" / f"{_key(protocol, subject, material, number)}.npz"
        measured = read_outcome(path, protocol)
        if measured is None or (has_head(protocol) and not head_file(material.out, subject, protocol.metric).is_file()):
            measured = step()
            write_outcome(path, protocol, measured)
        found += measured
    return found


def _key(protocol: protocols.Protocol, subject: Subject, material: Material, number: int | None) -> str:
    draws = {"draws": material.draws} if isinstance(protocol, protocols.LabelCurve) else {}
    return outcome_key(
        {"kind": subject.kind, "weights": subject.weights_hash, "layer": subject.card.get("layer")},
        protocol,
        data=material.data.hash,
        seed=material.seed,
        draw=number,
        test_selection=material.test_selection,
        **draws,
    )


def has_head(protocol: protocols.Protocol) -> bool:
    """Whether a protocol leaves one linear head."""
    return isinstance(protocol, protocols.LinearProbe) and protocol.layers == "given"


def head_file(out: Path, subject: Subject, stem: str) -> Path:
    """Where the linear head that was fitted on a subject's features lies."""
    return out / "heads" / f"{stem.replace('/', '-')}-{subject.kind}.safetensors"


def _guesses(scores: torch.Tensor, material: Material, votes: bool = False) -> Any:
    return guesses(scores, material.labels["test"], votes=votes)


def _knn(protocol: protocols.KNN, subject: Subject, material: Material) -> Iterator[Measured]:
    train, test = material.tables(subject, subject.extractor(protocol.features, material.device, material.data.media))
    found = knn_scores(
        train,
        material.labels["train"],
        test,
        material.num_classes,
        protocol,
        selection=material.selection,
        device=material.device,
    )
    tried = [{"k": k, "temperature": t, "top1": 100 * top1} for (k, t), top1 in found.selection_top1.items()]
    details = {"k": found.k, "temperature": found.temperature, "selection_top1_percent": tried}
    yield Measured(protocol.metric, _guesses(found.scores, material, votes=True), details)


def _linear(protocol: protocols.LinearProbe, subject: Subject, material: Material) -> Iterator[Measured]:
    if protocol.layers == "all":
        yield from _layers(protocol, subject, material)
        return
    extractor = subject.extractor(protocol.features, material.device, material.data.media)
    train, test = material.tables(subject, extractor)
    shared = {
        "seed": material.seed,
        "device": material.device,
        "description": f"{subject.name}, {protocol.name}",
        "quiet": material.quiet,
        "all_rates": material.test_selection,
    }
    labels, selection = material.labels["train"], material.selection
    if protocol.augmentation == "none":
        found = linear_probe(train, labels, selection, test, material.num_classes, protocol, **shared)
    else:
        found = augmented_linear_probe(
            extractor, material.data.train, train, labels, selection, test, material.num_classes, protocol, **shared
        )
    found.head.save(head_file(material.out, subject, protocol.metric), protocol, material.data.classes)
    details = _details(found)
    if material.test_selection:
        details["chosen_on_test"] = _best_rate_on_test(found, material)
    yield Measured(protocol.metric, _guesses(found.logits, material), details)


def _layers(protocol: protocols.LinearProbe, subject: Subject, material: Material) -> Iterator[Measured]:
    extractor = subject.layers_extractor(protocol.features, material.device)
    train, test = material.tables(subject, extractor)
    found = probe_layers(
        train,
        material.labels["train"],
        material.selection,
        test,
        material.num_classes,
        protocol,
        num_layers=extractor.depth,
        seed=material.seed,
        device=material.device,
        description=f"{subject.name}, {protocol.name}",
        quiet=material.quiet,
    )
    for layer, result in found:
        yield Measured(f"{protocol.metric}/layer{layer:02d}", _guesses(result.logits, material), _details(result))


def _curve(protocol: protocols.LabelCurve, subject: Subject, material: Material) -> Iterator[Measured]:
    train, test = material.tables(subject, subject.extractor(protocol.features, material.device, material.data.media))
    smallest = int(np.bincount(material.labels["train"], minlength=material.num_classes).min())
    points = tuple(n for n in protocol.labels_per_class if n <= smallest)
    draws = protocol.draws if material.draws is None else min(material.draws, protocol.draws)

    @cache
    def drawn(labels_per_class: int, number: int) -> Draw:
        return material.drawn(protocols.Labels(per_class=labels_per_class, draws=draws), number)

    found = label_curve(
        train,
        material.labels["train"],
        lambda labels_per_class, number: drawn(labels_per_class, number).rows,
        test,
        material.num_classes,
        protocol,
        points=points,
        draws=draws,
        groups=groups_of(material.data.train),
        seed=material.seed,
        device=material.device,
        description=f"{subject.name}, {protocol.name}",
        quiet=material.quiet,
    )
    left_out = [n for n in protocol.labels_per_class if n not in points]
    for (labels_per_class, number), result in found:
        list_hash = drawn(labels_per_class, number).list_hash
        details = {**_details(result), "labels_per_class": labels_per_class, "list_hash": list_hash}
        if left_out:
            details["points_left_out"] = left_out  # the smallest class has fewer pictures
        yield Measured(f"{protocol.metric}/{labels_per_class}", _guesses(result.logits, material), details, draw=number)


def _finetuned(protocol: protocols.Finetune, subject: Subject, material: Material, number: int) -> Measured:
    picked = material.drawn(protocol.labels, number)
    found = finetune(
        subject.open,
        material.data,
        picked.rows,
        protocol,
        num_classes=material.num_classes,
        seed=material.seed + number,
        device=material.device,
        out=material.out / "finetuning" / _key(protocol, subject, material, number),
        description=f"{subject.name}, {protocol.name}, draw {number}",
        score_test_by_epoch=material.test_selection,
        quiet=material.quiet,
        processes=material.processes,
    )
    tried = [{"lr": lr, "epoch": epoch, "top1": 100 * top1} for (lr, epoch), top1 in found.selection_top1.items()]
    guessed = _guesses(found.scores, material)
    details = {
        "lr": found.lr,
        "epochs": found.epochs,
        "labelled_pictures": len(picked.rows),
        "list_hash": picked.list_hash,
        "selection_top1_percent": tried,
        "seconds": round(found.seconds, 1),
    }
    if found.test_top1_by_epoch:
        honest = 100 * float(guessed.right(1).mean())
        epoch, best = max(found.test_top1_by_epoch.items(), key=lambda item: (item[1], -item[0]))
        details["chosen_on_test"] = {"epoch": epoch, "top1": 100 * best, "honest_top1": honest}
    return Measured(protocol.metric, guessed, details, draw=number if protocol.labels.draws > 1 else None)


def _details(found: LinearResult) -> dict[str, Any]:
    rates = found.selection_top1
    return {
        "base_lr_per_256": found.base_lr_per_256,
        "at_the_end_of_the_range": len(rates) > 1 and found.base_lr_per_256 in (min(rates), max(rates)),
        "selection_top1_percent": [{"base_lr_per_256": rate, "top1": 100 * top1} for rate, top1 in rates.items()],
        "train_top1_percent": 100 * found.train_top1,
        "percent_of_matmul_peak": None if found.peak_share is None else round(100 * found.peak_share, 1),
    }


def _best_rate_on_test(found: LinearResult, material: Material) -> dict[str, Any]:
    """What the learning rate that is best on the test pictures would have got."""
    top1 = {
        rate: float(_guesses(scores, material).right(1).mean()) for rate, scores in found.test_scores_of_rates.items()
    }
    best = max(top1, key=lambda rate: (top1[rate], -rate))
    return {
        "base_lr_per_256": best,
        "top1": 100 * top1[best],
        "honest_top1": 100 * float(_guesses(found.logits, material).right(1).mean()),
    }
