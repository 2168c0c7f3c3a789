"""What a labelled set consists of before any of its pictures was read: where the bytes of each lie, and of which class.

Every layout (`headcam.evaluation.labelled.imagenet`, `.archives`, class folders here) is turned into one `Listing`;
`headcam.evaluation.labelled.sets` hashes, orders and names what it lists. ImageNet has 1.28 million pictures, so an
`Item` is a tuple and a listing of all of them a matter of seconds.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from headcam.errors import InputError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
ONE_IN = 5  # one picture in five of a class is held out: for the test (no split given), for choosing a learning rate

ByClass = dict[str, list["Item"]]  # class name -> its pictures, in any order
Skipped = list[tuple[str, str]]  # (name, reason)


class Item(NamedTuple):
    """Where the bytes of one picture lie.

    Attributes:
        name: posix path below the root of the set; of a member of an archive the archive's, a slash, the member's.
        archive: the file below the root that holds it; "" where the picture is a file of its own.
        offset, length: of the bytes in the archive; -1 and 0 for a file of its own.
        group: recording, session or wearer, where known.
    """

    name: str
    archive: str = ""
    offset: int = -1
    length: int = 0
    group: str = ""


@dataclass
class Listing:
    """Items by class and part.

    Attributes:
        layout: how the set was recognised, for the record.
        train, test: class name -> items; both name the same classes.
        skipped: name and reason of what could not even be listed.
        classes: the order of the classes; empty: that of their sorted names, as every image-folder loader has it.
    """

    layout: str
    train: ByClass
    test: ByClass
    skipped: Skipped = field(default_factory=list)
    classes: tuple[str, ...] = ()


def is_picture(file: str) -> bool:
    """Whether a file is a picture by its extension; hidden files (macOS leaves `._x.jpg`) are none."""
    return os.path.splitext(file)[1].lower() in PICTURE_SUFFIXES and not file.startswith(".")


def walk(root: Path, below: str, skipped: Skipped, deep: bool = True) -> Iterator[Item]:
    """The pictures below `root / below`, links followed, hidden folders and files left out.

    A link that leads back to a folder that it lies in is not followed. A folder that cannot be opened and a name that
    is no UTF-8 (which no table could hold) are added to `skipped`. `deep`: folders below are entered.
    """
    yield from _walk(f"{root}/", below, skipped, deep, frozenset())


def _walk(prefix: str, below: str, skipped: Skipped, deep: bool, above: frozenset[tuple[int, int]]) -> Iterator[Item]:
    try:
        found = os.stat(prefix + below)
        with os.scandir(prefix + below) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        skipped.append((below, os.strerror(error.errno)))
        return
    here = (found.st_dev, found.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir():
            if deep:
                yield from _walk(prefix, name, skipped, deep, above | {here})
        elif is_picture(entry.name):
            if entry.name.isascii() or _encodable(entry.name):
                yield Item(name)
            else:
                skipped.append((os.fsencode(name).decode("utf-8", "backslashreplace"), "its name is not UTF-8"))


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_classes(root: Path, below: str, skipped: Skipped) -> ByClass:
    """The class folders of `root / below`: name -> pictures in it and below it. Folders without any are no classes."""
    found = {}
    with os.scandir(root / below) as scan:
        names = sorted(entry.name for entry in scan if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        items = list(walk(root, f"{below}/{name}" if below else name, skipped))
        if items:
            found[name] = items
    return found


def class_folders(root: Path, below: str = "") -> Listing:
    """The two plain layouts: `train/<class>/*` with `val/` (or `test/`) beside it, or `<class>/*` only.

    Args:
        root: of the set.
        below: the folder below it that holds them, "" for the root itself.
    Raises:
        InputError: `train` without `val` or `test`, classes that differ between the two, or a class that cannot be
            split.
    """
    base, skipped = root / below, []
    prefix = f"{below}/" if below else ""
    if not (base / "train").is_dir():
        return held_out("hash", list_classes(root, below, skipped), base, skipped)
    part = next((part for part in ("val", "test") if (base / part).is_dir()), None)
    if part is None:
        raise InputError(
            f"labelled folder {base} has train/ but neither val/ nor test/",
            f"add {base / 'val'}, or give {base / 'train'} itself to have a fifth of it held out",
        )
    train, test = list_classes(root, f"{prefix}train", skipped), list_classes(root, f"{prefix}{part}", skipped)
    check_same_classes(train, test, base / "train", base / part)
    return Listing("folders", train, test, skipped)


def held_out(layout: str, both: ByClass, where: str | os.PathLike, skipped: Skipped) -> Listing:
    """A listing whose test is the fifth of each class whose `name` has the smallest SHA-256 (at least one).

    Raises:
        InputError: a class of one picture; `where` is how the message calls the set.
    """
    train, test = {}, {}
    for name, items in both.items():
        if len(items) < 2:
            raise InputError(
                f"class {name} of {where} has one picture, which cannot be split into training and test",
                "add pictures of that class, or remove it",
            )
        ordered = sorted(items, key=lambda item: hashlib.sha256(item.name.encode()).digest())
        count = max(1, len(ordered) // ONE_IN)
        train[name], test[name] = ordered[count:], ordered[:count]
    return Listing(layout, train, test, skipped)


def check_same_classes(
    train: ByClass, test: ByClass, train_source: Path | str, test_source: Path | str, note: str = ""
) -> None:
    """Raise an `InputError` that names both sides where the parts have other classes; `note` follows their names."""
    only = [
        f"{len(names)} only in {_called(source)} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for source, names in ((train_source, train.keys() - test.keys()), (test_source, test.keys() - train.keys()))
        if names
    ]
    if only:
        raise InputError(
            f"the classes of {train_source} and {test_source}{note} differ: {'; '.join(only)}",
            "give both parts the same classes, with pictures in each",
        )


def _called(source: Path | str) -> str:
    if isinstance(source, Path):
        return f"{source.name}/" if source.is_dir() else source.name
    return source
