"""Robustness of the linear heads that a probe fitted: on other sets of pictures, and on its test pictures corrupted.

Each head is the classifier, on the frozen features that it was fitted on. Rows are kept under OUT/robustness, so that a
later call with other protocols or sets adds to them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from headcam.evaluation import protocols
from headcam.evaluation.features.encoders import Extractor
from headcam.evaluation.features.extraction import extract
from headcam.evaluation.features.views import TableView
from headcam.evaluation.heads.linear_head import LinearHead
from headcam.evaluation.labelled.sets import Picture
from headcam.evaluation.measuring import Material, head_file
from headcam.evaluation.outcomes import outcome_key
from headcam.evaluation.robustness.corruptions import CorruptedExtractor
from headcam.evaluation.robustness.measure import Robustness, measure, measure_corruptions
from headcam.evaluation.subjects import Subject
from headcam.files import write_json

CONTRACT = "robustness/1"


def measure_heads(
    protocol: protocols.LinearProbe, subject: Subject, material: Material, folders: Sequence[str], corruptions: bool
) -> None:
    """Score the head of `protocol` on `subject` on each folder, and on corrupted test pictures; keep the rows.

    Raises:
        InputError: a folder that is no robustness set, or of which nothing can be read.
    """
    if not folders and not corruptions:
        return
    extractor = subject.extractor(protocol.features, material.device, material.data.media)
    head, _ = LinearHead.load(head_file(material.out, subject, protocol.metric), protocol)
    train, test = material.tables(subject, extractor)

    def logits(pictures: Sequence[Picture], by: Extractor, what: str) -> torch.Tensor:
        table = extract(by, pictures, material.cache, description=f"{subject.name}, {what}", quiet=material.quiet)
        return _logits(head, TableView(table.values, centre=train.centre), table.unreadable)

    for folder in folders:
        rows = measure(
            folder,
            lambda pictures, folder=folder: logits(pictures, extractor, Path(folder).name),
            material.data.classes,
            stem=protocol.metric,
            seed=material.seed,
            hashes=material.cache / "robustness.parquet",
            quiet=material.quiet,
        )
        _keep(rows, protocol, subject, material)
    if corruptions:

        def score(kind: str, severity: int) -> torch.Tensor:
            return logits(material.data.test, CorruptedExtractor(extractor, kind, severity), f"{kind} {severity}")

        rows = measure_corruptions(
            score, _logits(head, test, {}), material.data, stem=protocol.metric, seed=material.seed
        )
        _keep(rows, protocol, subject, material)


def kept_rows(protocol: protocols.Protocol, subject: Subject, material: Material) -> list[Robustness]:
    """The rows of this call and of earlier ones on the same OUT."""
    folder = material.out / "robustness" / _key(protocol, subject, material)
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        if content["contract"] == CONTRACT:
            found += [Robustness(**{**row, "notes": tuple(row["notes"])}) for row in content["rows"]]
    return found


def _logits(head: LinearHead, features: TableView, unreadable: dict[int, str], block: int = 4096) -> torch.Tensor:
    """(n, K), NaN where the picture could not be read."""
    blocks = [head.logits(features[start : start + block]) for start in range(0, len(features), block)]
    found = torch.cat(blocks)
    found[list(unreadable)] = float("nan")
    return found


def _keep(rows: list[Robustness], protocol: protocols.Protocol, subject: Subject, material: Material) -> None:
    name = rows[0].data.replace("/", "-") + ("-corrupted" if rows[0].set == "corruption" else "")
    path = material.out / "robustness" / _key(protocol, subject, material) / f"{name}.json"
    write_json(path, {"contract": CONTRACT, "rows": [asdict(row) for row in rows]})


def _key(protocol: protocols.Protocol, subject: Subject, material: Material) -> str:
    who = {"kind": subject.kind, "weights": subject.weights_hash, "layer": subject.card.get("layer")}
    return outcome_key(who, protocol, data=material.data.hash, seed=material.seed)
