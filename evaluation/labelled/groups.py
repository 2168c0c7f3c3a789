"""Pictures that belong together (frames of a recording, pictures of a child), and splits that never separate them.

Neighbouring frames of a recording are near-copies. A split by picture puts one of them into training and the next into
the test, and then measures memory (as splits of Labeled-S by frame did); so a group, once known, is kept whole:

- `half_by_group`: about half of the pictures of each class for the test, groups whole (recordings of one child);
- `between_groups`: trained on the pictures of some groups, tested on those of others (from one child to another).

A picture's group is told by `groups.csv` in the root of the set (columns `name,group`; a name is a path below the root,
or a file name), else by the folder between class and file, else by the part of the file name before the frame's number.
A class that cannot be on both sides is left out, and each of its pictures is named with that reason.
"""

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from headcam.errors import InputError
from headcam.evaluation.labelled.listing import ByClass, Item, Skipped
from headcam.evaluation.labelled.sets import LabelledSet, Picture

GROUPS = "groups.csv"
_FRAME = re.compile(r"(?P<recording>.+?)[-_. ](?:frames?|fr|f|image|img)?[-_. ]?\d+", re.IGNORECASE)
_Member = TypeVar("_Member", Item, Picture)


def read_groups(root: Path) -> dict[str, str] | None:
    """What `groups.csv` in `root` says: name -> group; None where there is no such file.

    Raises:
        InputError: it has other columns than name and group, or gives a name two groups.
    """
    path = root / GROUPS
    if not path.is_file():
        return None
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"name", "group"} <= rows[0].keys():
        raise InputError(f"{path} has no columns name and group", "begin it with the line name,group")
    groups: dict[str, str] = {}
    for row in rows:
        if not row["group"] or groups.setdefault(row["name"], row["group"]) != row["group"]:
            raise InputError(
                f"{path} gives {row['name']} the groups {groups.get(row['name'], '')!r} and {row['group']!r}",
                "give each picture one group",
            )
    return groups


def listed_group(groups: Mapping[str, str], name: str) -> str:
    """What `read_groups` found for the picture called `name` below the root, or for its file name; "" for neither."""
    return groups.get(name) or groups.get(PurePosixPath(name).name, "")


def with_recordings(root: Path, by_class: ByClass) -> ByClass:
    """The same pictures with the recording that each is a frame of as their group.

    Of names, these patterns are understood: `<class>/<recording>/<file>`, and files `<recording>_<number>.jpg` or
    `<recording>_frame_<number>.jpg` (also frames, fr, f, image, img; `-`, `.` or a space in place of `_`).

    Raises:
        InputError: a picture whose recording cannot be told, or names that cannot be of recordings: all of one, or
            more recordings than half of the pictures.
    """
    groups = read_groups(root)
    found: ByClass = {}
    unknown: list[str] = []
    for name, items in by_class.items():
        found[name] = []
        for item in items:
            group = _recording(item.name) if groups is None else listed_group(groups, item.name)
            if not group:
                unknown.append(item.name)
            found[name].append(item._replace(group=group))
    fix = f"write {root / GROUPS} with the columns name,group: the file name of each picture and its recording"
    if unknown:
        raise InputError(f"the recording of {len(unknown)} pictures cannot be told, first {unknown[0]}", fix)
    counts = Counter(item.group for items in found.values() for item in items)
    if groups is None and (len(counts) < 2 or len(counts) > counts.total() / 2):
        raise InputError(
            f"by their names the {counts.total()} pictures of {root} are of {len(counts)} recordings, such as "
            f"{min(counts)!r}, which cannot be",
            fix,
        )
    return found


def half_by_group(by_class: Mapping[str, list[Item]]) -> tuple[ByClass, ByClass, Skipped]:
    """Split each class into about two halves without separating a group.

    Classes take their turn, those of fewest groups first (equals by name). Each places its groups that have no side
    yet, in the order of the SHA-256 of their names: on the side that has fewer pictures of this class so far, and in
    training where both have as many. A group is then on that side for all classes.

    Returns:
        (train, test, skipped): a class all of whose groups are on one side is in neither part, and its pictures are in
        `skipped`.
    """
    side: dict[str, int] = {}
    sizes = {name: Counter(item.group for item in items) for name, items in by_class.items()}
    for name in sorted(sizes, key=lambda name: (len(sizes[name]), name)):
        have = [0, 0]
        for group, count in sizes[name].items():
            if group in side:
                have[side[group]] += count
        for group in sorted(sizes[name].keys() - side.keys(), key=lambda g: hashlib.sha256(g.encode()).digest()):
            side[group] = int(have[1] < have[0])
            have[side[group]] += sizes[name][group]
    return _on_both_sides(by_class, lambda item: side[item.group], "all its recordings fall on one side")


def between_groups(
    by_class: Mapping[str, list[_Member]], train_groups: Collection[str], test_groups: Collection[str]
) -> tuple[dict[str, list[_Member]], dict[str, list[_Member]], Skipped]:
    """Pictures of some groups for training and of others for the test; of the rest of the groups none.

    Returns:
        (train, test, skipped): classes that one of the sides has no picture of are in neither, and their pictures on
        the other side are in `skipped`.
    Raises:
        InputError: no group on a side, a group on both, one that no picture is of, or fewer than two common classes.
    """
    train_groups, test_groups = set(train_groups), set(test_groups)
    there = {item.group for items in by_class.values() for item in items}
    known = f"groups are {', '.join(sorted(there))}"
    if not train_groups or not test_groups or train_groups & test_groups:
        raise InputError(
            f"training on {_listing(train_groups)} and testing on {_listing(test_groups)} is no split",
            f"name other groups for training than for the test, and at least one each; {known}",
        )
    unknown = sorted((train_groups | test_groups) - there)
    if unknown:
        raise InputError(f"no picture is of group {unknown[0]!r}", known)
    chosen = {
        name: [item for item in items if item.group in train_groups | test_groups] for name, items in by_class.items()
    }
    reason = f"{_listing(train_groups)} and {_listing(test_groups)} do not both have it"
    train, test, skipped = _on_both_sides(chosen, lambda item: int(item.group in test_groups), reason)
    if len(train) < 2:
        raise InputError(
            f"{_listing(train_groups)} and {_listing(test_groups)} have {len(train)} classes in common, and a score "
            "needs two",
            "use groups with more classes in common",
        )
    return train, test, skipped


def by_group(data: LabelledSet, train_groups: Collection[str], test_groups: Collection[str]) -> LabelledSet:
    """`data` split anew: trained on the pictures of some groups (children), tested on those of others.

    Args:
        data: its pictures have groups; both of its parts are drawn from.
        train_groups, test_groups: names of groups.
    Returns:
        The set of the classes that both sides have, named after data and groups; pictures of other classes are in its
        `skipped`, with the reason.
    Raises:
        InputError: see `between_groups`.
    """
    by_class: dict[str, list[Picture]] = defaultdict(list)
    for picture in (*data.train, *data.test):
        by_class[data.classes[picture.label]].append(picture)
    *parts, skipped = between_groups(by_class, train_groups, test_groups)
    classes = tuple(name for name in data.classes if name in parts[0])
    train, test = (
        tuple(
            sorted(
                (replace(picture, label=label) for label, name in enumerate(classes) for picture in part[name]),
                key=lambda p: (p.label, p.sha256, p.name),
            )
        )
        for part in parts
    )
    titles = dict(zip(data.classes, data.titles))
    return replace(
        data,
        name=f"{data.name}-{_listing(train_groups)}-to-{_listing(test_groups)}",
        classes=classes,
        train=train,
        test=test,
        layout=f"{data.layout}, by group",
        skipped=data.skipped + tuple(skipped),
        titles=tuple(titles[name] for name in classes) if titles else (),
    )


def _on_both_sides(by_class, side, reason: str) -> tuple[dict, dict, Skipped]:
    """(train, test, skipped): members of side 0 and of side 1 of the classes that have some on both."""
    train, test, skipped = {}, {}, []
    for name, items in by_class.items():
        parts = [[item for item in items if side(item) == part] for part in (0, 1)]
        if all(parts):
            train[name], test[name] = parts
        else:
            skipped += [(item.name, f"class {name} is left out: {reason}") for item in items]
    return train, test, skipped


def _recording(name: str) -> str:
    """The recording of `<class>/<recording>/<file>` or `<class>/<recording>_<number>.jpg`; "" where it has none."""
    path = PurePosixPath(name)
    if len(path.parts) > 2:
        return "/".join(path.parts[1:-1])
    match = _FRAME.fullmatch(path.stem)
    return match["recording"] if match else ""


def _listing(groups: Collection[str]) -> str:
    return "+".join(sorted(groups)) or "nothing"
