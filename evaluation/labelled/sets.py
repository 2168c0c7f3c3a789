"""Labelled pictures as users have them: which picture is of which class, which are for training, which for the test.

    DIR/train/<class>/*.jpg  DIR/val/<class>/*.jpg    the split is given (`test` in place of `val` is read as well)
    DIR/<class>/*.jpg                                 a fifth of each class, chosen by SHA-256 of its name, is the test
    ImageNet                                          folders, archives, Kaggle's and Tiny's layout: `.imagenet`
    WebDataset shards                                 DIR, or DIR/imagenet1k-train-{0000..1023}.tar: `.archives`
    labelled videos                                   folders, CSV lists, Kinetics, Something-Something: `.videos`
    a known set by its name                           Labeled-S, Konkle's objects, ecoset, Places365, ...: `.known`

    files ──▶ Listing (`.listing`: where the bytes lie) ──▶ hashes (`.hashes`) ──▶ LabelledSet

Folders below a class folder belong to the class. Files that are no pictures by their extension (README, CSV tables)
and hidden files are not looked at. Classes are numbered in the sorted order of their names, as every image-folder
loader does (shards: by their numbers). Rows are ordered by class and by content (SHA-256 of the bytes), never by the
file system, and the set is named by a hash of (part, class, content): the same pictures give the same hash under any
path, any file name and in any layout.
"""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from headcam.errors import InputError
from headcam.evaluation.labelled import archives, imagenet
from headcam.evaluation.labelled.classes import titles
from headcam.evaluation.labelled.hashes import hash_pictures, read_bytes
from headcam.evaluation.labelled.listing import ONE_IN, PICTURE_SUFFIXES, Item, Listing, class_folders
from headcam.evaluation.labelled.video_lists import holds_videos

_LIST_SUFFIXES = (".csv", ".txt", ".json")  # files that list videos and their classes


@dataclass(frozen=True, slots=True)
class Picture:
    """One labelled picture; 1.28 million of these fit into some 450 MiB.

    Attributes:
        root: of the set; one object that all its pictures share.
        name: posix path below the root; of a member of an archive "archive.tar/member/name.JPEG".
        label: class number.
        sha256: of its bytes.
        offset, length: where its bytes lie in the archive; -1 and 0 for a file of its own.
        archive: the file below the root that holds them, or "".
        group: recording, session or wearer that it is of, where the set knows it.
    """

    root: Path
    name: str
    label: int
    sha256: str
    offset: int = -1
    length: int = 0
    archive: str = ""
    group: str = ""

    @property
    def path(self) -> Path:
        """The file that holds its bytes: the picture itself, or the archive."""
        return self.root / (self.archive or self.name)

    def open(self) -> BinaryIO:
        """Its bytes as a file to read from. Raises OSError where they are gone."""
        if self.offset < 0:
            return open(self.path, "rb")
        return io.BytesIO(read_bytes(self.path, self.offset, self.length))


@dataclass(frozen=True)
class LabelledSet:
    """What `read_labelled` found.

    Attributes:
        name: the folder's own name.
        classes: class names; a label is an index into them.
        train, test: the pictures (or videos), ordered by (label, sha256, name).
        layout: how the set was recognised: "folders" where the split is given by folders, "hash" where it follows from
            the names, "shards", "imagenet ...".
        skipped: name and reason of each file that could not be listed or read from the disk.
        titles: readable names of the classes ("tench" for n01440764) where they are known, else ().
        media: what the rows are.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Picture, ...]
    test: tuple[Picture, ...]
    layout: str
    skipped: tuple[tuple[str, str], ...]
    titles: tuple[str, ...] = ()
    media: Literal["pictures", "videos"] = "pictures"

    @cached_property
    def hash(self) -> str:
        """SHA-256 over part, class and content of all pictures.

        That of the canonical JSON {"test": [[class, sha256], ...], "train": [...]}, fed piece by piece: the text is
        0.1 GB for ImageNet.
        """
        digest = hashlib.sha256(b'{"test":[')
        names = [json.dumps(name, ensure_ascii=False) for name in self.classes]
        for pictures, end in ((self.test, b'],"train":['), (self.train, b"]}")):
            for start in range(0, len(pictures), 4096):
                rows = (f'[{names[p.label]},"{p.sha256}"]' for p in pictures[start : start + 4096])
                digest.update(("," if start else "").encode() + ",".join(rows).encode())
            digest.update(end)
        return digest.hexdigest()

    @property
    def identity(self) -> str:
        """How scores name this set: the folder's name and the first 16 digits of `hash`."""
        return f"{self.name}@{self.hash[:16]}"

    @cached_property
    def leaked(self) -> tuple[str, ...]:
        """Names of the test pictures whose very bytes are also in the training set."""
        test = {p.sha256 for p in self.test}
        both = {p.sha256 for p in self.train if p.sha256 in test}
        return tuple(p.name for p in self.test if p.sha256 in both)


def labels_of(pictures: tuple[Picture, ...]) -> np.ndarray:
    """Class numbers, (n,) int64."""
    return np.fromiter((p.label for p in pictures), dtype=np.int64, count=len(pictures))


def read_labelled(
    folder: str | os.PathLike, *, known: str | None = None, hashes: Path | None = None, quiet: bool = True
) -> LabelledSet:
    """List, hash and split the labelled pictures of `folder`, whatever their layout (see the head of this module).

    Pictures are not decoded here: one that cannot be is found, counted and named when features are computed.

    Args:
        folder: of the set; or a pattern of shards; or a list of videos.
        known: name of a set of `headcam.evaluation.labelled.known`, whose layout and split are then used.
        hashes: file that remembers the hashes of the pictures (see `hash_pictures`), so that a second reading of
            1.28 million of them reads none.
        quiet: no progress bars.
    Raises:
        InputError: no such folder, no pictures, fewer than two classes, a part that is missing, classes that differ
            between the parts, labels that do not match the pictures, or a class of one picture that has to be split.
        StorageError: `hashes` cannot be written.
    """
    if known is not None:
        from headcam.evaluation.labelled.known import read

        return read(known, folder, hashes=hashes, quiet=quiet)

    root = Path(folder).expanduser()
    if root.suffix == ".tar" and not root.is_dir():
        return assemble(root.parent, archives.shards(root.parent, root.name, hashes, quiet), hashes, quiet)
    if root.is_file() and root.suffix.lower() in _LIST_SUFFIXES:
        return _videos(root, quiet)
    if not root.is_dir():
        raise InputError(f"labelled folder {root} does not exist", "give a folder with one subfolder for each class")

    listing = imagenet.find(root, hashes, quiet) or archives.shards(root, None, hashes, quiet)
    if listing is None:
        if holds_videos(root):
            return _videos(root, quiet)
        listing = class_folders(root)
    return assemble(root, listing, hashes, quiet)


def assemble(root: Path, listing: Listing, hashes: Path | None = None, quiet: bool = True) -> LabelledSet:
    """Hash what was listed, and put it in order: the way from every layout of pictures to a `LabelledSet`.

    Args:
        root: of the set.
        listing: is emptied: of 1.28 million pictures one form at a time has to fit into memory.
        hashes, quiet: as in `read_labelled`.
    Raises:
        InputError: fewer than two classes, or a class of which no picture can be read from the disk in a part.
        StorageError: `hashes` cannot be written.
    """
    classes = listing.classes or tuple(sorted(listing.train))
    _check_classes(root, classes)
    parts = (listing.train, listing.test)
    counts = [[len(part[name]) for name in classes] for part in parts]
    items = [item for part in parts for name in classes for item in sorted(part.pop(name))]
    digests, reasons = hash_pictures(root, items, hashes, quiet)
    skipped = [*listing.skipped, *((items[row].name, reason) for row, reason in reasons.items())]
    found: list[tuple[Picture, ...]] = []
    start = 0
    for counts_of_part in counts:
        pictures: list[Picture] = []
        for label, count in enumerate(counts_of_part):
            rows = slice(start, start := start + count)
            of_class = [_picture(root, i, label, sha256) for i, sha256 in zip(items[rows], digests[rows]) if sha256]
            if not of_class:
                raise InputError(
                    f"no picture of class {classes[label]} in {root} could be read from the disk",
                    "restore its files, or remove the class",
                )
            pictures += sorted(of_class, key=lambda picture: (picture.sha256, picture.name))
            items[rows] = [None] * count  # their memory becomes that of the next class's pictures
        found.append(tuple(pictures))
    return LabelledSet(root.resolve().name, classes, *found, listing.layout, tuple(skipped), titles(classes))


def _videos(source: Path, quiet: bool) -> LabelledSet:
    from headcam.evaluation.labelled.videos import read_videos  # it needs this module

    return read_videos(source, quiet=quiet)


def _picture(root: Path, item: Item, label: int, sha256: str) -> Picture:
    return Picture(root, item.name, label, sha256, item.offset, item.length, item.archive, item.group)


def _check_classes(root: Path, names: tuple[str, ...]) -> None:
    if not names:
        raise InputError(
            f"labelled folder {root} has no pictures in class folders",
            f"put pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) into one subfolder for each class",
        )
    if len(names) == 1:
        raise InputError(
            f"labelled folder {root} has one class only, {names[0]!r}, and a probe needs two or more",
            "give the folder that holds a subfolder for each class",
        )


def groups_of(items: Sequence[Picture]) -> list[str] | None:
    """Recording, session or wearer of each picture or video; None where not all of them are known."""
    groups = [item.group for item in items]
    return groups if all(groups) else None


def selection_mask(labels: np.ndarray, groups: Sequence[str] | None = None) -> np.ndarray:
    """Which training pictures are set aside to choose settings on: a fifth of each class, never from the test set.

    The first fifth of each class in the order of the rows, which is the order of the SHA-256 of their content: as good
    as random, the same everywhere, and copies of one picture mostly fall on the same side. A class of one picture
    sets none aside, a class of two to nine sets one.

    Frames of one recording are nearly copies of each other. Where groups are known, whole groups of a class are set
    aside, in the order of the SHA-256 of their names, until a fifth is reached or one group is left; where no class has
    two groups, pictures are, as without them.

    Args:
        labels: (n,) class numbers of the training pictures, in the order of `LabelledSet.train`.
        groups: of each picture, see `groups_of`.
    Returns:
        (n,) bool, True where the picture is set aside.
    Raises:
        InputError: no class has a second picture.
    """
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if groups is not None:
            mask[_whole_groups(rows, [groups[row] for row in rows])] = True
        elif len(rows) > 1:
            mask[rows[: max(1, len(rows) // ONE_IN)]] = True
    if groups is not None and not mask.any():
        return selection_mask(labels)
    if not mask.any():
        raise InputError(
            f"each of the {len(labels)} classes has one training picture, which leaves none to choose settings on",
            "give at least two training pictures of some classes",
        )
    return mask


def _whole_groups(rows: np.ndarray, groups: list[str]) -> np.ndarray:
    """Rows of the first groups by SHA-256 of their names, a fifth of all rows or more; one group is always left."""
    wanted = max(1, len(rows) // ONE_IN)
    order = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    taken: set[str] = set()
    for group in order[:-1]:
        if sum(g in taken for g in groups) >= wanted:
            break
        taken.add(group)
    return rows[[group in taken for group in groups]]
