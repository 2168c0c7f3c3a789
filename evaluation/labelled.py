"""A folder of labelled pictures: which picture is of which class, and which are for training and which for the test.

Two layouts are read:

    DIR/train/<class>/*.jpg  DIR/val/<class>/*.jpg    the split is given (`test` in place of `val` is read as well)
    DIR/<class>/*.jpg                                 a fifth of each class, chosen by SHA-256 of its name, is the test

Folders below a class folder belong to the class. Files that are no pictures by their extension (README, CSV tables)
and hidden files are not looked at. Classes are numbered in the sorted order of their names, as every image-folder
loader does. Rows are ordered by class and by content (SHA-256 of the file), never by the file system, and the set
is named by a hash of (part, class, content): the same pictures give the same hash under any path and any file name.
"""

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from headcam.errors import InputError
from headcam.files import sha256_file, sha256_json

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
ONE_IN = 5  # one picture in five of a class is held out: for the test (flat layout), for choosing a learning rate
_READERS = 4  # threads that hash files; they wait for the disk, not for the processor


@dataclass(frozen=True)
class Picture:
    """One labelled picture: its file, its name below the folder, its class number and the SHA-256 of its bytes."""

    path: Path
    name: str
    label: int
    sha256: str


@dataclass(frozen=True)
class LabelledSet:
    """What `read_labelled` found.

    Attributes:
        name: the folder's own name.
        classes: class names; a label is an index into them.
        train, test: the pictures, ordered by (label, sha256, name).
        layout: "folders" where the split is given by folders, "hash" where it follows from the names.
        skipped: name and reason of each file that could not be read from the disk.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Picture, ...]
    test: tuple[Picture, ...]
    layout: str
    skipped: tuple[tuple[str, str], ...]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over part, class and content of all pictures."""
        return sha256_json(
            {
                part: [[self.classes[p.label], p.sha256] for p in pictures]
                for part, pictures in (("train", self.train), ("test", self.test))
            }
        )

    @property
    def identity(self) -> str:
        """How scores name this set: the folder's name and the first 16 digits of `hash`."""
        return f"{self.name}@{self.hash[:16]}"

    @cached_property
    def leaked(self) -> tuple[str, ...]:
        """Names of the test pictures whose very bytes are also in the training set."""
        train = {p.sha256 for p in self.train}
        return tuple(p.name for p in self.test if p.sha256 in train)


def labels_of(pictures: tuple[Picture, ...]) -> np.ndarray:
    """Class numbers, (n,) int64."""
    return np.array([p.label for p in pictures], dtype=np.int64)


def read_labelled(folder: str | os.PathLike) -> LabelledSet:
    """List, hash and split the labelled pictures below `folder`.

    Pictures are not decoded here: one that cannot be is found, counted and named when features are computed.

    Raises:
        InputError: no such folder, no pictures, fewer than two classes, `train` without `val` or `test`, classes that
            differ between the two, or (flat layout) a class of one picture, which cannot be split.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"labelled folder {root} does not exist", "give a folder with one subfolder for each class")

    if (root / "train").is_dir():
        layout = "folders"
        test_root = next((root / part for part in ("val", "test") if (root / part).is_dir()), None)
        if test_root is None:
            raise InputError(
                f"labelled folder {root} has train/ but neither val/ nor test/",
                f"add {root / 'val'}, or give {root / 'train'} itself to have a fifth of it held out",
            )
        listed = {"train": _list_classes(root / "train"), "test": _list_classes(test_root)}
        _check_same_classes(root, test_root.name, set(listed["train"]), set(listed["test"]))
        names = sorted(listed["train"])
    else:
        layout = "hash"
        both = _list_classes(root)
        names = sorted(both)
        listed = {"train": {}, "test": {}}
        for name, paths in both.items():
            listed["train"][name], listed["test"][name] = _split_by_name(root, name, paths)

    _check_classes(root, names)
    skipped: list[tuple[str, str]] = []
    train = _pictures(root, listed["train"], names, skipped)
    test = _pictures(root, listed["test"], names, skipped)
    return LabelledSet(root.resolve().name, tuple(names), train, test, layout, tuple(skipped))


def selection_mask(labels: np.ndarray) -> np.ndarray:
    """Which training pictures are set aside to choose settings on: a fifth of each class, never from the test set.

    The first fifth of each class in the order of the rows, which is the order of the SHA-256 of their content: as good
    as random, the same everywhere, and copies of one picture mostly fall on the same side. A class of one picture
    sets none aside, a class of two to nine sets one.

    Args:
        labels: (n,) class numbers of the training pictures, in the order of `LabelledSet.train`.
    Returns:
        (n,) bool, True where the picture is set aside.
    Raises:
        InputError: no class has a second picture.
    """
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 1:
            mask[rows[: max(1, len(rows) // ONE_IN)]] = True
    if not mask.any():
        raise InputError(
            f"each of the {len(labels)} classes has one training picture, which leaves none to choose settings on",
            "give at least two training pictures of some classes",
        )
    return mask


def _list_classes(root: Path) -> dict[str, list[Path]]:
    """Class name -> its picture files; folders without any picture are no classes."""
    found = {}
    for folder in root.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):
            paths = [
                Path(base, file)
                for base, _, files in os.walk(folder, followlinks=True)
                for file in files
                if Path(file).suffix.lower() in PICTURE_SUFFIXES and not file.startswith(".")
            ]
            if paths:
                found[folder.name] = paths
    return found


def _split_by_name(root: Path, name: str, paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Training and test files of one class: the test is the fifth whose `class/file` has the smallest SHA-256."""
    if len(paths) < 2:
        raise InputError(
            f"class {name} of {root} has one picture, which cannot be split into training and test",
            "add pictures of that class, or remove its folder",
        )
    ordered = sorted(paths, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())
    count = max(1, len(ordered) // ONE_IN)
    return ordered[count:], ordered[:count]


def _check_classes(root: Path, names: list[str]) -> None:
    suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
    if not names:
        raise InputError(
            f"labelled folder {root} has no pictures in class folders",
            f"put pictures ({suffixes}) into one subfolder for each class",
        )
    if len(names) == 1:
        raise InputError(
            f"labelled folder {root} has one class only, {names[0]!r}, and a probe needs two or more",
            "give the folder that holds a subfolder for each class",
        )


def _check_same_classes(root: Path, test_name: str, train: set[str], test: set[str]) -> None:
    if train == test:
        return
    only = [
        f"{len(names)} only in {part}/ ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for part, names in (("train", train - test), (test_name, test - train))
        if names
    ]
    raise InputError(
        f"the classes of {root / 'train'} and {root / test_name} differ: {'; '.join(only)}",
        "give both folders the same class folders with pictures in each",
    )


def _pictures(
    root: Path, listed: dict[str, list[Path]], names: list[str], skipped: list[tuple[str, str]]
) -> tuple[Picture, ...]:
    items = [(label, path) for label, name in enumerate(names) for path in sorted(listed[name])]
    with ThreadPoolExecutor(_READERS) as pool:
        hashes = list(pool.map(_hash_or_reason, [path for _, path in items]))
    pictures = []
    for (label, path), (sha256, reason) in zip(items, hashes):
        name = path.relative_to(root).as_posix()
        if reason:
            skipped.append((name, reason))
        else:
            pictures.append(Picture(path, name, label, sha256))
    missing = set(range(len(names))) - set(Counter(p.label for p in pictures))
    if missing:
        raise InputError(
            f"no picture of class {names[min(missing)]} in {root} could be read from the disk",
            "restore its files, or remove the class",
        )
    return tuple(sorted(pictures, key=lambda p: (p.label, p.sha256, p.name)))


def _hash_or_reason(path: Path) -> tuple[str, str]:
    try:
        return sha256_file(path), ""
    except OSError as error:
        return "", os.strerror(error.errno) if error.errno else str(error)
