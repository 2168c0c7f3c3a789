"""Labelled sets that the experiments of this field use, each in its usual folder layout and with one fixed split.

| name | what it is | split |
| --- | --- | --- |
| `labeled-s` | 26 kinds of things in frames of SAYCam's child S | half of each class, by recording |
| `konkle-objects` | 240 kinds of objects, each alone on white | half of each class, by file name |
| `ecoset` | 565 kinds of things that people name | `train/` and `test/` |
| `places365` | 365 kinds of places | train and val |
| `core50`, `core50-categories` | 50 hand-held objects of 10 kinds in 11 places | sessions 3, 7 and 10 |
| `by-child` | pictures of several children, the same classes for each | from child to child, as asked |

Earlier evaluations split the first two at random, anew for each model, and frames of one recording fell on both sides.
Here a split follows from names alone. What a set should hold is noted (`notes`), not demanded: people use parts of it.
"""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from headcam.errors import InputError
from headcam.evaluation.labelled.groups import (
    GROUPS,
    between_groups,
    half_by_group,
    listed_group,
    read_groups,
    with_recordings,
)
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
from headcam.evaluation.labelled.sets import LabelledSet, assemble

_TEST_SESSIONS = (3, 7, 10)  # Lomonaco and Maltoni 2017
_CORE50_CATEGORIES = (  # objects o1 to o5 are of the first, o6 to o10 of the second, ...
    "plug adapters",
    "mobile phones",
    "scissors",
    "light bulbs",
    "cans",
    "glasses",
    "balls",
    "markers",
    "cups",
    "remote controls",
)
_PLACES_TRAIN = ("data_256", "data_256_standard", "data_large", "data_large_standard", "train")
_PLACES_VAL = ("val_256", "val_large", "val")


@dataclass(frozen=True)
class KnownSet:
    """A set that is known by name.

    Attributes:
        name: what it is called here.
        what: one line about it.
        layout: the folders that are expected.
        split: the rule by which pictures are for training or for the test.
        expected: how many there are in the complete set: "classes", "train", "test", "pictures" (both parts); only
            what its authors say.
        citation: whose it is.
        listing: lists and splits the pictures below a folder.
        titles: readable name of a class from its name, where the two differ.
    """

    name: str
    what: str
    layout: str
    split: str
    expected: Mapping[str, int]
    citation: str
    listing: Callable[..., Listing]
    titles: Callable[[str], str] | None = None


def read(
    name: str, folder: str | os.PathLike, *, hashes: Path | None = None, quiet: bool = True, **choice: Collection[str]
) -> LabelledSet:
    """Read a known set.

    Args:
        name: one of `KNOWN`.
        folder: where it lies, in the layout of `KNOWN[name]`.
        hashes: file that remembers the hashes of its pictures, see `headcam.evaluation.labelled.hashes`.
        quiet: show no progress.
        choice: of `by-child`: `train` and `test`, names of children.
    Raises:
        InputError: no such set or folder, another layout, or classes that are not in both parts.
    """
    if name not in KNOWN:
        raise InputError(f"labelled set {name!r} is not known", f"use one of {', '.join(KNOWN)}, or a folder alone")
    known, root = KNOWN[name], Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"folder {root} of {name} does not exist", f"give the folder that holds {known.layout}")
    if choice.keys() != ({"train", "test"} if name == "by-child" else set()):
        raise InputError(
            f"{name} was given {' and '.join(choice) or 'no children'}",
            "name the children to train on and those to test on" if name == "by-child" else "leave that out",
        )
    data = assemble(root, known.listing(root, **choice), hashes=hashes, quiet=quiet)
    if choice:
        name = f"{name}-{'-to-'.join('+'.join(sorted(choice[part])) for part in ('train', 'test'))}"
    titles = tuple(known.titles(each) for each in data.classes) if known.titles else data.titles
    return replace(data, name=name, titles=titles)


def notes(name: str, data: LabelledSet) -> tuple[str, ...]:
    """What differs from the complete set, a sentence each, without a full stop; () where nothing does."""
    found = {
        "classes": len(data.classes),
        "train": len(data.train),
        "test": len(data.test),
        "pictures": len(data.train) + len(data.test),
    }
    called = {"classes": "classes", "train": "training pictures", "test": "test pictures", "pictures": "pictures"}
    return tuple(
        f"{name} is complete with {count:,} {called[key]}, and {found[key]:,} are here"
        for key, count in KNOWN[name].expected.items()
        if found[key] != count
    )


# --- the sets --------------------------------------------------------------------------------------------------------


def _labeled_s(root: Path) -> Listing:
    by_class, skipped = _plain_classes(root, "labeled-s")
    train, test, left_out = half_by_group(with_recordings(root, by_class))
    if len(train) < 2:
        raise InputError(
            f"{len(train)} of the {len(by_class)} classes of {root} have pictures of two recordings that fall on two "
            "sides, and a score needs two classes",
            f"give frames of more recordings, or tell the recordings in {root / GROUPS}",
        )
    return Listing("half by recording", train, test, skipped + left_out)


def _konkle(root: Path) -> Listing:
    by_class, skipped = _plain_classes(root, "konkle-objects")
    train, test = {}, {}
    for name, items in by_class.items():
        if len(items) < 2:
            raise InputError(f"class {name} of {root} has one picture, which cannot be split", "remove its folder")
        ordered = sorted(items, key=lambda item: hashlib.sha256(item.name.encode()).digest())
        test[name], train[name] = ordered[: len(items) // 2], ordered[len(items) // 2 :]
    return Listing("half by name", train, test, skipped)


def _ecoset(root: Path) -> Listing:
    skipped: Skipped = []
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise InputError(
                f"ecoset folder {root} has no {part}/", "give the folder that holds train/, val/ and test/"
            )
    train, test = (list_classes(root, part, skipped) for part in ("train", "test"))
    check_same_classes(train, test, root / "train", root / "test")
    return Listing("folders", train, test, skipped)


def _places365(root: Path) -> Listing:
    below = "places365_standard" if (root / "places365_standard").is_dir() else ""
    base = root / below
    train = next((name for name in _PLACES_TRAIN if (base / name).is_dir()), None)
    val = next((name for name in _PLACES_VAL if (base / name).is_dir()), None)
    if train is None or val is None:
        raise InputError(
            f"places365 folder {root} has no {'training' if train is None else 'validation'} pictures",
            f"give the folder that holds {KNOWN['places365'].layout}",
        )
    if (train, val) == ("train", "val") and any(path.is_dir() for path in (base / val).iterdir()):
        return class_folders(root, below)

    skipped: Skipped = []
    numbers = _table(_beside(base, "categories_places365.txt"))
    names = {category: category.split("/", 2)[2].replace("/", "-") for category in numbers}  # as in places365_standard/
    train_items = _by_category(walk(root, _joined(below, train), skipped), _joined(below, train), names)
    path = _beside(base, "places365_val.txt")
    labels = _table(path)
    category_of = {number: category for category, number in numbers.items()}
    test_items: ByClass = {}
    for item in walk(root, _joined(below, val), skipped):
        file = PurePosixPath(item.name).name
        if labels.get(file) not in category_of:
            raise InputError(f"{path} gives {item.name} no category", "use the lists and pictures of one release")
        test_items.setdefault(names[category_of[labels.pop(file)]], []).append(item)
    skipped += [(file, "not there") for file in labels]
    check_same_classes(train_items, test_items, base / train, base / val)
    return Listing("places365", train_items, test_items, skipped)


def _core50(root: Path) -> Listing:
    listing = _core50_by(root, lambda number: f"o{number}")
    listing.classes = tuple(sorted(listing.train, key=lambda name: int(name[1:])))
    return listing


def _core50_categories(root: Path) -> Listing:
    listing = _core50_by(root, lambda number: _CORE50_CATEGORIES[(number - 1) // 5])
    listing.classes = tuple(name for name in _CORE50_CATEGORIES if name in listing.train)
    return listing


def _core50_by(root: Path, class_of: Callable[[int], str]) -> Listing:
    skipped: Skipped = []
    train: ByClass = {}
    test: ByClass = {}
    for item in walk(root, "", skipped):
        match = re.search(r"(?:^|/)s(\d+)/o(\d+)/[^/]+$", item.name)
        if match is None or not 1 <= int(match[2]) <= 5 * len(_CORE50_CATEGORIES):
            skipped.append((item.name, "it is not in a folder s1/o1 to s11/o50"))
            continue
        part = test if int(match[1]) in _TEST_SESSIONS else train
        part.setdefault(class_of(int(match[2])), []).append(item._replace(group=f"s{match[1]}"))
    if not train or not test:
        raise InputError(
            f"core50 folder {root} has no pictures of {'training' if not train else 'test'} sessions",
            f"give the folder that holds {KNOWN['core50'].layout}; sessions 3, 7 and 10 are the test",
        )
    check_same_classes(train, test, "training sessions", "test sessions")
    return Listing("sessions", train, test, skipped)


def _by_child(root: Path, train: Collection[str], test: Collection[str]) -> Listing:
    skipped: Skipped = []
    groups = read_groups(root)
    by_class: ByClass = {}
    if groups is None:
        for child in sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
            for name, items in list_classes(root, child, skipped).items():
                by_class.setdefault(name, []).extend(item._replace(group=child) for item in items)
    else:
        for name, items in list_classes(root, "", skipped).items():
            by_class[name] = [item._replace(group=listed_group(groups, item.name)) for item in items]
            skipped += [(item.name, f"{GROUPS} does not name it") for item in by_class[name] if not item.group]
    if not by_class:
        raise InputError(
            f"by-child folder {root} holds no pictures in folders of children and classes",
            f"give the folder that holds {KNOWN['by-child'].layout}",
        )
    *parts, left_out = between_groups(by_class, train, test)
    return Listing("by child", *parts, skipped + left_out)


# --- what they share -------------------------------------------------------------------------------------------------


def _plain_classes(root: Path, name: str) -> tuple[ByClass, Skipped]:
    skipped: Skipped = []
    if (root / "train").is_dir():
        raise InputError(
            f"{name} folder {root} has train/, and this set is split by a rule of its own",
            f"give the folder that holds {KNOWN[name].layout}, or leave out the name of the set to use your split",
        )
    return list_classes(root, "", skipped), skipped


def _joined(below: str, name: str) -> str:
    return f"{below}/{name}" if below else name


def _beside(base: Path, name: str) -> Path:
    """A list of Places365, in the folder or in one of its folders."""
    found = [base / name, *sorted(base.glob(f"*/{name}"))]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise InputError(f"{base} has no {name}", "put the lists of Places365 beside its pictures")
    return path


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    table = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        name, _, value = line.strip().rpartition(" ")
        if line.strip() and not (name and value.isdecimal()):
            raise InputError(f"line {number} of {path} is not a name and a number: {line!r}", "use it as published")
        if name:
            table[name] = int(value)
    return table


def _by_category(items: Iterable[Item], below: str, names: dict[str, str]) -> ByClass:
    """Training pictures of Places365 by category: the longest category that their folders begin with.

    Folders are those of the categories (`a/apartment_building/outdoor`), or flat (`apartment_building-outdoor`).
    """
    class_of_folder = {category[1:]: name for category, name in names.items()}
    class_of_folder |= {name: name for name in names.values()}
    found: ByClass = {}
    for item in items:
        parents = PurePosixPath(item.name).relative_to(below).parents
        name = next((class_of_folder[str(folder)] for folder in parents if str(folder) in class_of_folder), None)
        if name is None:
            raise InputError(
                f"{item.name} is in no folder of a category of Places365", "move it out of the training pictures"
            )
        found.setdefault(name, []).append(item)
    return found


KNOWN: dict[str, KnownSet] = {
    known.name: known
    for known in (
        KnownSet(
            "labeled-s",
            "labelled frames of SAYCam's child S",
            "<class>/<recording>_<frame number>.jpg",
            "about half of each class, recordings whole, in the order of SHA-256 of their names",
            {"classes": 26},
            "Orhan, Gupta and Lake 2020, Self-supervised learning through the eyes of a child, NeurIPS",
            _labeled_s,
        ),
        KnownSet(
            "konkle-objects",
            "objects of 240 classes, each alone on white",
            "<class>/*.jpg",
            "the half of each class whose class/file name has the smallest SHA-256 is the test, rounded down",
            {"classes": 240},
            "Konkle, Brady, Alvarez and Oliva 2010, Conceptual distinctiveness supports detailed visual long-term "
            "memory for real-world objects, J. Exp. Psychol. General 139",
            _konkle,
        ),
        KnownSet(
            "ecoset",
            "things that people name often and picture easily",
            "train/<number>_<name>/*, val/ and test/ alike",
            "train/ and test/ as given; val/ is not used",
            {"classes": 565, "test": 28_250},
            "Mehrer, Spoerer, Jones, Kriegeskorte and Kietzmann 2021, An ecologically motivated image dataset for deep "
            "learning yields better models of human vision, PNAS 118",
            _ecoset,
            titles=lambda name: re.sub(r"^\d+_", "", name),
        ),
        KnownSet(
            "places365",
            "places",
            "places365_standard/{train,val}/<class>/*, or data_256/, val_256/, places365_val.txt and "
            "categories_places365.txt",
            "train and val as given; labels of val by file name",
            {"classes": 365, "train": 1_803_460, "test": 36_500},
            "Zhou, Lapedriza, Khosla, Oliva and Torralba 2018, Places: A 10 million image database for scene "
            "recognition, IEEE TPAMI 40",
            _places365,
        ),
        KnownSet(
            "core50",
            "50 objects held in the hand, 11 sessions",
            "s1/o1/*.png to s11/o50/*.png (core50_128x128)",
            "sessions 3, 7 and 10 are the test; a picture's group is its session",
            {"classes": 50, "pictures": 164_866},
            "Lomonaco and Maltoni 2017, CORe50: a new dataset and benchmark for continuous object recognition, CoRL",
            _core50,
            titles=lambda name: f"{_CORE50_CATEGORIES[(int(name[1:]) - 1) // 5]} {(int(name[1:]) - 1) % 5 + 1}",
        ),
        KnownSet(
            "core50-categories",
            "the same by category, 5 objects each",
            "s1/o1/*.png to s11/o50/*.png (core50_128x128)",
            "sessions 3, 7 and 10 are the test; a picture's group is its session",
            {"classes": 10, "pictures": 164_866},
            "Lomonaco and Maltoni 2017, CORe50: a new dataset and benchmark for continuous object recognition, CoRL",
            _core50_categories,
        ),
        KnownSet(
            "by-child",
            "one's own labelled pictures of several children",
            f"<child>/<class>/*, or <class>/* and {GROUPS} (name,group)",
            "pictures of some children for training, of others for the test; classes that both have",
            {},
            "",
            _by_child,
        ),
    )
}
