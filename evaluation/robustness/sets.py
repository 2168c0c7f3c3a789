"""Pictures of known classes that look unlike the training set, and which answers of a classifier are right for them.

    folder ──read_robustness──▶ pictures, answers, members ──answer_scores──▶ (n, A) ──decisions──▶ right or wrong
    classifier's classes ──────────────┘                         ▲
    scores (n, K) of its K classes ──────────────────────────────┘

A classifier of K classes (of the labelled set that it was fitted on) is asked about pictures in class folders. What
its A possible answers are, and which of its classes stand for each, follows from the folders, recognised by names:

| folders | sets | answers |
| --- | --- | --- |
| `n01498041/*`: a class each | ImageNet-A, -R, -Sketch | the set's classes |
| `0/*` to `999/*` | ImageNet-V2 | ImageNet's classes by standard number (not by text: "10" before "2") |
| `airplane/*` ... `truck/*` | edges, silhouettes | the 16 categories of Geirhos et al. (2019), in `categories.csv` |
| `airplane/airplane5-bear2.jpg` | cue conflict | the same 16; the folder is the shape, the name ends with the texture |
| any, with `classes.csv` beside them | your own | the folders; columns `folder,class`, a row for each class |

An answer's score is the mean softmax probability of its classes: the mean and not the sum, as the authors of the 16
categories have it, so that a dog is not likelier for having 109 breeds. Where each answer is one class this is the same
as restricting the logits to the classes of the set before taking the best, as the authors of ImageNet-A and -R do.

Answers of which the classifier knows no class cannot be given: they and their pictures are left out, counted and named.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch

from headcam.errors import InputError
from headcam.evaluation.labelled.classes import imagenet_classes
from headcam.evaluation.labelled.hashes import hash_pictures
from headcam.evaluation.labelled.listing import ByClass, Item, Skipped, list_classes
from headcam.evaluation.labelled.sets import Picture
from headcam.files import sha256_json

MAPPING = "classes.csv"  # of a folder whose names are its own
_CUE_CONFLICT = re.compile(r"(?:.*_)?([a-z]+)\d+-([a-z]+)\d+")  # airplane5-bear2; trials have words before it
_PUBLISHED = {"imagenet-a": 200, "imagenet-r": 200, "imagenet-sketch": 1000, "imagenet-v2": 1000}  # classes
_NAMED = 5  # of what was left out

Kind = Literal["classes", "categories", "cue conflict"]


@dataclass(frozen=True)
class RobustnessSet:
    """A robustness set as one classifier can answer it.

    Attributes:
        name: such as "imagenet-a" or "cue-conflict".
        kind: "classes", "categories" of Geirhos et al., or "cue conflict".
        answers: names of the A answers; a picture's label is an index into them.
        members: for each answer the numbers of the classifier's classes that stand for it.
        pictures: ordered by (label, sha256, name); of cue conflict only those whose shape and texture differ.
        textures: of cue conflict, the label of each picture's texture; else empty.
        skipped: name and reason of each file that could not be read from the disk.
        notes: what was left out and why, a sentence each.
    """

    name: str
    kind: Kind
    answers: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    pictures: tuple[Picture, ...]
    textures: tuple[int, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """How scores name this set: its name and 16 digits of a hash over answers and pictures."""
        content = [[self.answers[p.label], p.sha256] for p in self.pictures]
        return f"{self.name}@{sha256_json([self.answers, content])[:16]}"

    def answer_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Logits or log-probabilities (n, K) of all classes to (n, A).

        Log of the mean softmax probability of each answer's classes, up to a constant of each picture.
        """
        scores = scores.double()
        return torch.stack([scores[:, list(own)].logsumexp(dim=1) - np.log(len(own)) for own in self.members], dim=1)

    def decisions(self, scores: torch.Tensor) -> np.ndarray:
        """The answer with the highest score, (n,) int64; -1 where several share it, or it is not a number."""
        found = self.answer_scores(scores)
        best, decision = found.max(dim=1)
        return torch.where((found == best[:, None]).sum(dim=1) == 1, decision, -1).numpy()


@lru_cache
def categories() -> dict[str, tuple[str, ...]]:
    """The 16 categories of Geirhos et al. (2019) and the wnids of their ImageNet classes, as in `categories.csv`."""
    text = files("headcam.evaluation.robustness").joinpath("categories.csv").read_text("utf-8")
    found: dict[str, tuple[str, ...]] = {}
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        found[row["category"]] = (*found.get(row["category"], ()), row["wnid"])
    return found


def read_robustness(
    folder: str | os.PathLike, classes: Sequence[str], *, hashes: Path | None = None, quiet: bool = True
) -> RobustnessSet:
    """List the pictures of a robustness set and find what a classifier of `classes` can answer of it.

    Args:
        folder: one subfolder for each class, see the table above.
        classes: names of the classifier's classes in the order of its scores; wnids for ImageNet.
        hashes: file of remembered hashes, see `headcam.evaluation.labelled.hashes`.
    Raises:
        InputError: no such folder, no pictures, fewer than two answers that the classifier knows, a file name of
            cue conflict that does not begin with its folder, or a `classes.csv` of another form.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"robustness set {root} does not exist", "give a folder with one subfolder for each class")
    skipped: list[tuple[str, str]] = []
    listed = list_classes(root, "", skipped)
    if not listed:
        raise InputError(f"robustness set {root} has no pictures in class folders", "give the folder of class folders")

    if (root / MAPPING).is_file():
        kind, wanted = "classes", _read_mapping(root / MAPPING)
    elif set(listed) <= set(categories()):
        kind = "cue conflict" if _are_cue_conflicts(root, listed) else "categories"
        # Textures are of any category, so all of them are answers, whichever have a folder.
        wanted = {name: (name,) if name in classes else wnids for name, wnids in categories().items()}
    elif all(name.isdecimal() for name in listed) and not set(listed) <= set(classes):
        kind, wanted = "classes", _by_standard_number(root, listed)
    else:
        kind, wanted = "classes", {name: (name,) for name in listed}
    known = _known(wanted, classes)
    answers, members = _answers(root, kind, listed, known, classes)
    label = {folder: members.index(own) for folder, own in known.items() if own in members}
    name = _name(root, kind, listed)
    notes = _notes(name, kind, listed, wanted, known)
    items = [(label[of], item) for of in sorted(listed) if of in label for item in listed[of]]
    pictures = _pictures(root, items, hashes, quiet, skipped)
    textures: list[int] = []
    if kind == "cue conflict":
        pictures, textures = _conflicts(pictures, label, notes)
    if not pictures:
        raise InputError(f"robustness set {root}: no picture is left", "; ".join(notes) or "check that it can be read")
    return RobustnessSet(name, kind, answers, members, tuple(pictures), tuple(textures), tuple(skipped), tuple(notes))


def _known(wanted: Mapping[str, tuple[str, ...]], classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Folder -> numbers of those of its classes that the classifier has."""
    number = {name: k for k, name in enumerate(classes)}
    return {folder: tuple(sorted({number[c] for c in names if c in number})) for folder, names in wanted.items()}


def _answers(
    root: Path, kind: Kind, listed: ByClass, known: Mapping[str, tuple[int, ...]], classes: Sequence[str]
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Names and members of all answers that can be given."""
    folders: dict[tuple[int, ...], list[str]] = {}
    for folder in sorted(listed) if kind == "classes" else known:
        if known.get(folder):
            # Folders of the same classes are one answer: between two equal ones no classifier could decide.
            folders.setdefault(known[folder], []).append(folder)
    if len(folders) < 2:
        raise InputError(
            f"robustness set {root}: the classifier knows {len(folders)} of the classes of its {len(listed)} folders "
            f"({', '.join(sorted(listed)[:_NAMED])}, ...)",
            f"give a set of classes that it was trained on ({', '.join(classes[:3])}, ...), or write a {MAPPING} with "
            "columns folder,class into the set's folder",
        )
    return tuple("+".join(same) for same in folders.values()), tuple(folders)


def _conflicts(pictures: list[Picture], label: Mapping[str, int], notes: list[str]) -> tuple[list[Picture], list[int]]:
    """Pictures whose shape and texture differ and can both be answered, and the labels of the textures."""
    textures = [label.get(_cues(picture.name)[1]) for picture in pictures]
    kept = [(p, texture) for p, texture in zip(pictures, textures) if texture not in (None, p.label)]
    same = sum(texture == p.label for p, texture in zip(pictures, textures))
    if same:
        notes.append(f"{same} pictures whose shape and texture agree are left out")
    if textures.count(None):
        notes.append(f"{textures.count(None)} more pictures are left out: the classifier does not know their texture")
    return [p for p, _ in kept], [texture for _, texture in kept]


def _notes(
    name: str,
    kind: Kind,
    listed: ByClass,
    wanted: Mapping[str, tuple[str, ...]],
    known: Mapping[str, tuple[int, ...]],
) -> list[str]:
    """What of the set the classifier cannot answer, and what the set lacks."""
    notes = []
    asked = sorted(listed) if kind == "classes" else list(wanted)
    missing = [folder for folder in asked if not known.get(folder)]
    if missing:
        lost = sum(len(listed.get(folder, ())) for folder in missing)
        what = "classes" if kind == "classes" else "categories"
        notes.append(
            f"{len(missing)} of {len(asked)} {what} ({lost} pictures) are unknown to the classifier and left out: "
            + ", ".join(missing[:_NAMED] if kind == "classes" else missing)
            + (", ..." if kind == "classes" and len(missing) > _NAMED else "")
        )
    if kind != "classes":
        partly = [
            f"{folder} by {len(own)} of {len(wanted[folder])}"
            for folder, own in known.items()
            if 0 < len(own) < len(wanted[folder])
        ]
        if partly:
            notes.append(f"categories of which the classifier knows some classes only: {', '.join(partly)}")
    whole = next((count for of, count in _PUBLISHED.items() if name.startswith(of)), len(listed))
    if len(listed) != whole:
        notes.append(f"{len(listed)} of the {whole} classes of the published set are here")
    return notes


def _pictures(
    root: Path, items: list[tuple[int, Item]], hashes: Path | None, quiet: bool, skipped: Skipped
) -> list[Picture]:
    """(label, item) as pictures in their order; those that the disk does not give are added to `skipped`."""
    digests, reasons = hash_pictures(root, [item for _, item in items], hashes, quiet)
    skipped += [(items[row][1].name, reason) for row, reason in reasons.items()]
    found = [Picture(root, item.name, label, sha256) for (label, item), sha256 in zip(items, digests) if sha256]
    return sorted(found, key=lambda p: (p.label, p.sha256, p.name))


def _name(root: Path, kind: Kind, listed: ByClass) -> str:
    """How metrics call the set."""
    name = root.resolve().name.lower().replace("_", "-")
    if kind == "cue conflict":
        return "cue-conflict"
    name = re.sub(r"^imagenetv2-(.+?)(-format-val)?$", r"imagenet-v2-\1", name)
    return "imagenet-sketch" if name == "sketch" and next(iter(listed)).startswith("n") else name


def _are_cue_conflicts(root: Path, listed: ByClass) -> bool:
    """Whether file names say shape and texture: all of them or none."""
    named = [(of, item.name, _cues(item.name)) for of in sorted(listed) for item in listed[of]]
    if not any(cues for *_, cues in named):
        return False
    for folder, name, cues in named:
        if cues is None or cues[0] != folder or cues[1] not in categories():
            raise InputError(
                f"cue conflict set {root}: {name} does not name the shape {folder} and a texture",
                f"name it like {folder}1-bear2.png, with a texture of {', '.join(categories())}",
            )
    return True


def _cues(name: str) -> tuple[str, str] | None:
    """Shape and texture in a file name."""
    match = _CUE_CONFLICT.fullmatch(PurePosixPath(name).stem)
    return match and (match[1], match[2])


def _by_standard_number(root: Path, listed: ByClass) -> dict[str, tuple[str, ...]]:
    """Folders "0" to "999" as ImageNet classes in the standard order."""
    wnids = [found.wnid for found in imagenet_classes()]
    beyond = sorted((name for name in listed if int(name) >= len(wnids)), key=int)
    if beyond:
        raise InputError(
            f"robustness set {root} has a folder {beyond[0]}, and ImageNet's classes are 0 to {len(wnids) - 1}",
            f"give folders of class numbers from 0 on, or write a {MAPPING} with columns folder,class",
        )
    return {name: (wnids[int(name)],) for name in listed}


def _read_mapping(file: Path) -> dict[str, tuple[str, ...]]:
    """Folder -> its classes."""
    with open(file, newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if rows.fieldnames is None or not {"folder", "class"} <= set(rows.fieldnames):
            raise InputError(f"{file} has the columns {rows.fieldnames}", "make them folder,class")
        found: dict[str, tuple[str, ...]] = {}
        for row in rows:
            found[row["folder"]] = (*found.get(row["folder"], ()), row["class"])
    twice = [folder for folder, names in found.items() if max(Counter(names).values()) > 1]
    if twice:
        raise InputError(f"{file} names a class of folder {twice[0]} twice", "remove the second row")
    return found
