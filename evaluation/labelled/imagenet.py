"""ImageNet (ILSVRC 2012) and Tiny ImageNet as users have them, recognised from the folder.

    DIR/train/<wnid>/*   DIR/val/<wnid>/*                  plain class folders, see `.listing`
    DIR/train/<wnid>/*   DIR/val/ILSVRC2012_val_*.JPEG     flat, labels from the development kit or from Kaggle's table
    DIR/ILSVRC/Data/CLS-LOC/{train,val}                    Kaggle's download, with DIR/LOC_val_solution.csv
    DIR/ILSVRC2012_img_train.tar  ..._img_val.tar          the original archives, not unpacked; with the kit
    DIR/train/<wnid>/images/*  DIR/val/images/*            Tiny ImageNet, with DIR/val/val_annotations.txt

Training pictures in a folder go with test pictures in an archive, and the other way around. The development kit is
`ILSVRC2012_devkit_t12.tar.gz`, or the folder of that name. Line i of its `ILSVRC2012_validation_ground_truth.txt` is
the `ILSVRC2012_ID` (1 to 1000) of picture `ILSVRC2012_val_<i>`. That number is not the place of a class in the sorted
wnids, which is what models count by; `meta.mat` tells which wnid it is of, and only the wnid is used further on.

Kaggle's `LOC_synset_mapping.txt` and Tiny's `wnids.txt` and `words.txt` are not needed: classes are the folders.
"""

import csv
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headcam.errors import InputError
from headcam.evaluation.labelled.archives import read_archives
from headcam.evaluation.labelled.listing import (
    ByClass,
    Item,
    Listing,
    Skipped,
    check_same_classes,
    class_folders,
    list_classes,
    walk,
)

_TRAIN_TAR, _VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_KIT = "ILSVRC2012_devkit_t12"
_KIT_FILES = ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
_KAGGLE = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # where its train/ is, below the folder that is given
_KAGGLE_TABLE = "LOC_val_solution.csv"
_TINY_TABLE = "val_annotations.txt"


@dataclass(frozen=True)
class _Labels:
    """Which class each test picture is of: its file name without suffix -> wnid, and the file that says so."""

    wnid_of: dict[str, str]
    source: Path
    layout: str


def find(root: Path, remember: str | os.PathLike | None, quiet: bool) -> Listing | None:
    """A listing of ImageNet or Tiny ImageNet below `root`; None where it is neither, or plain class folders.

    Args:
        root: folder of the set.
        remember: file of hashes, beside which the index of archives is kept.
        quiet: no progress bar.
    Raises:
        InputError: archives without their other half; test pictures without labels; labels and pictures that do not
            match: their numbers, a picture that the labels do not name, classes of one part only.
    """
    below = next((b for b in _KAGGLE if (root / b / "train").is_dir() or (root / b / _TRAIN_TAR).is_file()), None)
    if below is None:
        if (root / _VAL_TAR).is_file():
            raise InputError(f"{root} has {_VAL_TAR} but no training pictures", f"add {_TRAIN_TAR} or train/ beside it")
        return None
    base = root / below
    skipped: Skipped = []
    test, test_source = _test_pictures(root, below, skipped, remember, quiet)
    if not test and (base / "train").is_dir():
        return class_folders(root, below) if below else None
    train, train_source = _training_pictures(root, below, skipped, remember, quiet)
    if not test:
        by_class = list_classes(root, test_source.relative_to(root).as_posix(), skipped) if test_source.is_dir() else {}
        if not by_class:
            raise InputError(
                f"{base} has {_TRAIN_TAR} but neither {_VAL_TAR} nor pictures in val/", f"add {_VAL_TAR} beside it"
            )
        check_same_classes(train, by_class, train_source, test_source)
        return Listing("imagenet, class folders", train, by_class, skipped)
    labels = _labels(root, base, test_source, len(test))
    by_class = _by_class(test, test_source, labels)
    check_same_classes(train, by_class, train_source, test_source, f" (labels of {labels.source})")
    missing = labels.wnid_of.keys() - {_stem(item) for item in test}
    skipped += [(name, f"listed in {labels.source.name}, not there") for name in sorted(missing)]
    return Listing(labels.layout, train, by_class, skipped)


def _stem(item: Item) -> str:
    return item.name.rsplit("/", 1)[-1].split(".", 1)[0]


def _training_pictures(
    root: Path, below: str, skipped: Skipped, remember: str | os.PathLike | None, quiet: bool
) -> tuple[ByClass, Path]:
    """Class -> pictures, from `train/<wnid>/` or from the archive of one archive a class; and which of them it is."""
    if (root / below / "train").is_dir():
        return list_classes(root, f"{below}/train" if below else "train", skipped), root / below / "train"
    archive = root / below / _TRAIN_TAR
    found: ByClass = {}
    for item in _in_archive(root, archive, remember, quiet):
        found.setdefault(item.name.rsplit("/", 2)[-2].removesuffix(".tar"), []).append(item)
    return found, archive


def _test_pictures(
    root: Path, below: str, skipped: Skipped, remember: str | os.PathLike | None, quiet: bool
) -> tuple[list[Item], Path]:
    """Test pictures that lie in no class folders (else an empty list), and the folder or archive that they are in."""
    val = root / below / "val"
    if val.is_dir():
        flat = val / "images" if (val / _TINY_TABLE).is_file() and (val / "images").is_dir() else val
        items = list(walk(root, flat.relative_to(root).as_posix(), skipped, deep=False))
        folders = [p for p in val.iterdir() if p.is_dir() and p != flat and not p.name.startswith(".")]
        in_folders = any(next(walk(root, p.relative_to(root).as_posix(), []), None) for p in folders)
        return ([], val) if in_folders else (items, flat)  # a picture beside class folders is of no class
    archive = root / below / _VAL_TAR
    return (_in_archive(root, archive, remember, quiet), archive) if archive.is_file() else ([], val)


def _in_archive(root: Path, archive: Path, remember: str | os.PathLike | None, quiet: bool) -> list[Item]:
    (found,) = read_archives(root, [archive], remember, quiet)
    if found.fault or not found.items:  # half an archive is some classes only
        raise InputError(f"{archive} cannot be used: {found.fault or 'it is empty'}", "download it once more")
    return found.items


def _by_class(test: list[Item], source: Path, labels: _Labels) -> ByClass:
    found: ByClass = {}
    for item in test:
        wnid = labels.wnid_of.get(_stem(item))
        if wnid is None:
            raise InputError(
                f"{labels.source} does not say which class {item.name} is of",
                f"give the labels that belong to {source}, or remove the picture",
            )
        found.setdefault(wnid, []).append(item)
    return found


def _labels(root: Path, base: Path, test_source: Path, count: int) -> _Labels:
    """The labels of flat test pictures: Tiny's table, Kaggle's, or the development kit's, whichever is there."""
    tiny = base / "val" / _TINY_TABLE
    if tiny.is_file():
        return _tiny_labels(tiny)
    for place in (root, *base.resolve().parents[:3]):  # CLS-LOC, Data and ILSVRC lie below Kaggle's tables
        if (place / _KAGGLE_TABLE).is_file():
            return _kaggle_labels(place / _KAGGLE_TABLE)
    for kit in (place / name for place in (base, root, root.parent) for name in (_KIT, f"{_KIT}.tar.gz", "")):
        if kit.is_file() or all((kit / "data" / name).is_file() for name in _KIT_FILES):
            return _kit_labels(kit, count, test_source)
    raise InputError(
        f"the {count} pictures of {test_source} lie in no class folders, and nothing says which classes they are of",
        f"sort them into val/<class>/, or put {_KIT}.tar.gz or Kaggle's {_KAGGLE_TABLE} into {root}",
    )


def _tiny_labels(table: Path) -> _Labels:
    rows = [line.split("\t") for line in table.read_text("utf-8").splitlines() if line.strip()]
    return _Labels(_pairs(table, rows), table, "tiny imagenet")


def _kaggle_labels(table: Path) -> _Labels:
    """`ImageId,PredictionString`: the string is a wnid and a box, once or several times, of one class."""
    with open(table, newline="", encoding="utf-8") as file:
        rows = [[cell.split(" ", 1)[0] for cell in row] for row in csv.reader(file) if row][1:]
    return _Labels(_pairs(table, rows), table, "imagenet, Kaggle's labels")


def _pairs(table: Path, rows: list[list[str]]) -> dict[str, str]:
    """File name without suffix -> wnid."""
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or not row[1]:
            raise InputError(f"row {number} of {table} is {row}", "give a table of file names and classes")
    return {row[0].split(".", 1)[0]: row[1] for row in rows}


def _kit_labels(kit: Path, count: int, test_source: Path) -> _Labels:
    from scipy.io import loadmat  # takes a moment to import

    meta, truth = (_kit_file(kit, name) for name in _KIT_FILES)
    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        # Inner nodes of WordNet's tree have numbers above those of the 1,000 classes, and children.
        wnid_of_id = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
        numbers = [int(line) for line in truth.decode().split()]
    except (ValueError, KeyError, TypeError, IndexError, NotImplementedError) as error:
        raise InputError(f"{kit} cannot be used as the development kit: {error}", "download it once more") from error
    unknown = next((number for number in numbers if number not in wnid_of_id), None)
    if unknown is not None:
        raise InputError(
            f"{_KIT_FILES[1]} of {kit} names class {unknown}, which {_KIT_FILES[0]} does not have",
            "give both files of one development kit",
        )
    if len(numbers) != count:
        raise InputError(
            f"{_KIT_FILES[1]} of {kit} has {len(numbers)} lines, and {test_source} has {count} pictures",
            "restore the pictures that are missing, or sort those that are there into class folders val/<wnid>/",
        )
    wnid_of = {f"ILSVRC2012_val_{i:08d}": wnid_of_id[number] for i, number in enumerate(numbers, 1)}
    return _Labels(wnid_of, kit, "imagenet, development kit")


def _kit_file(kit: Path, name: str) -> bytes:
    try:
        if kit.is_dir():
            return (kit / "data" / name).read_bytes()
        with tarfile.open(kit) as tar:
            info = next((info for info in tar if info.isreg() and info.name.endswith(f"data/{name}")), None)
            if info is None:
                raise InputError(f"{kit} holds no data/{name}", f"give the development kit, {_KIT}.tar.gz")
            return tar.extractfile(info).read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(f"{kit} cannot be read: {error}", "download it once more") from error
