"""Where labelled videos lie and how they are labelled: the layouts that users have, each turned into one listing.

    DIR/train/<class>/*.mp4   DIR/val/<class>/*.mp4       folders (`test` in place of `val` is read as well)
    DIR/train.csv  DIR/val.csv                            lists: a line is `path label` or `path,label`, as those of
                                                          VideoMAE and MAE-ST; paths absolute or relative to the list;
                                                          all labels numbers, or names; `classes.txt` beside them (a
                                                          name a line, from number 0) gives numbers their names
    DIR/train.csv  DIR/validate.csv                       Kinetics (Kay et al. 2017): `label,youtube_id,time_start,
                                                          time_end,split`; files `<id>_<start:06d>_<end:06d>.mp4`, or
                                                          `<id>.mp4`, in any folder below DIR
    DIR/something-something-v2-{labels,train,validation}.json
                                                          Something-Something v2 (Goyal et al. 2017); also without
                                                          the prefix; files `<id>.webm` in any folder below DIR

Lists may lie in `DIR/annotations` or `DIR/labels`, or be given themselves. There is no rule that splits videos without
a list: several of them are often cut from one recording.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from headcam.errors import InputError
from headcam.evaluation.labelled.listing import PICTURE_SUFFIXES
from headcam.video.metadata import VIDEO_EXTENSIONS

NOT_THERE = "not there"
_TEST_WORDS = ("val", "validate", "validation", "test")  # in the order in which they are looked for
_LIST_SUFFIXES = (".csv", ".txt")
_LIST_FOLDERS = ("", "annotations", "labels")
_KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_SSV2 = re.compile(r"(?P<prefix>.*?)(?P<part>labels|train|validation)\.json")
_SUFFIXES = "|".join(sorted((re.escape(suffix) for suffix in VIDEO_EXTENSIONS), key=len, reverse=True))
_LINE = re.compile(rf'"?(?P<path>.+?(?:{_SUFFIXES}))"?[\s,;]\s*"?(?P<label>.+?)"?', re.IGNORECASE)


class VideoRow(NamedTuple):
    """A line of a list whose file has a name."""

    name: str
    label: str
    start: float = 0.0
    end: float | None = None
    group: str = ""


@dataclass
class VideoListing:
    """What the lists of a set say, before any file is opened."""

    root: Path
    layout: str
    train: list[VideoRow]
    test: list[VideoRow]
    classes: list[str] | None = None  # in their order, where the lists fix one
    skipped: list[tuple[str, str]] = field(default_factory=list)


def list_videos(source: Path) -> VideoListing:
    """List what a folder or a list says, by whichever of the layouts it has.

    Raises:
        InputError: none of the layouts, several training lists, no list of the test, a line or annotation that cannot
            be understood, a label that the list of classes does not have, or no video at all.
    """
    if source.is_file():
        if source.suffix.lower() == ".json":
            return _ssv2_listing(source, _ssv2_files(source.parent))
        if source.suffix.lower() in _LIST_SUFFIXES:
            return _csv_listing(source)
        raise InputError(f"{source} is no list of videos", "give a .csv, .txt or .json list, or a folder")
    ssv2 = _ssv2_files(source)
    if ssv2:
        return _ssv2_listing(source, ssv2)
    lists = [path for path in _train_lists(source) if _is_video_list(path)]
    if len(lists) > 1:
        raise InputError(
            f"{source} has several training lists: {', '.join(path.name for path in lists)}",
            "give the one that you mean in place of the folder",
        )
    if lists:
        return _csv_listing(lists[0])
    return _folder_listing(source)


def _train_lists(folder: Path) -> list[Path]:
    """CSV and text files of the training part; where one is called just so, only that."""
    found = [
        path
        for below in _LIST_FOLDERS
        if (folder / below).is_dir()
        for path in sorted((folder / below).iterdir())
        if path.suffix.lower() in _LIST_SUFFIXES and "train" in _name_parts(path) and not path.name.startswith(".")
    ]
    return [path for path in found if path.stem.lower() == "train"][:1] or found


def _name_parts(path: Path) -> list[str]:
    return re.split(r"[-_. ]", path.stem.lower())


def _test_list(train: Path) -> Path | None:
    """The list beside `train` that has its name with "val" or the like for "train"."""
    beside = {path.name.lower(): path for path in train.parent.iterdir()}
    for word in _TEST_WORDS:
        name = re.sub(r"(?<![a-z])train(?![a-z])", word, train.name.lower())
        if name != train.name.lower() and name in beside:
            return beside[name]
    return None


def _root_of(path: Path) -> Path:
    """The folder that the files of a list are below."""
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name in _LIST_FOLDERS else folder


def holds_videos(folder: Path) -> bool:
    """Whether a folder is one for `read_videos`: a list of videos in it, or a video before any picture below it."""
    if _ssv2_files(folder) or any(_is_video_list(path) for path in _train_lists(folder)):
        return True
    try:
        for path in _files_below(folder / "train" if (folder / "train").is_dir() else folder):
            suffix = os.path.splitext(path)[1].lower()
            if suffix in PICTURE_SUFFIXES | VIDEO_EXTENSIONS:
                return suffix not in PICTURE_SUFFIXES  # a GIF counts as a picture
    except InputError:  # a folder that cannot be listed: the reader of pictures counts it
        pass
    return False


# --- class folders ---------------------------------------------------------------------------------------------------


def _folder_listing(root: Path) -> VideoListing:
    test = next((name for name in _TEST_WORDS if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test is None:
        raise InputError(
            f"{root} has no train/ and val/ folders with videos in class folders, and no lists of them",
            "write train.csv and val.csv with a line `path label` for each video; videos that were cut from one "
            "recording belong into one of the two",
        )
    rows: dict[str, list[VideoRow]] = {}
    for part in ("train", test):
        files = _video_files(root / part)
        rows[part] = [VideoRow(f"{part}/{name}", name.split("/")[0]) for name in files if "/" in name]
        if not rows[part]:
            raise InputError(f"{root / part} has no videos in class folders", "put videos into one folder a class")
    return VideoListing(root, "folders", rows["train"], rows[test])


def _video_files(root: Path) -> list[str]:
    """All videos below a folder, sorted, as paths with forward slashes."""
    return sorted(
        Path(path).relative_to(root).as_posix()
        for path in _files_below(root)
        if os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS
    )


def _files_below(folder: str | os.PathLike, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Files in a folder and below it, but hidden ones; links are followed unless they lead back to where they lie."""
    try:
        found = os.stat(folder)
        here = (found.st_dev, found.st_ino)
        if here in above:
            return
        with os.scandir(folder) as scan:
            entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"folder {folder} cannot be listed: {os.strerror(error.errno)}", "make it readable, or take it away"
        ) from error
    for entry in entries:
        if entry.is_dir():
            yield from _files_below(entry.path, above | {here})
        else:
            yield entry.path


# --- lists and Kinetics ----------------------------------------------------------------------------------------------


def _csv_listing(train: Path) -> VideoListing:
    test = _test_list(train)
    if _is_kinetics(train):
        return _kinetics_listing(train, test)
    if test is None:
        raise InputError(
            f"there is no list of test videos beside {train}",
            f"write one with the same name and val for train, such as {train.with_name('val' + train.suffix)}",
        )
    rows = [list(_rows_of_list(path)) for path in (train, test)]
    labels = {row.label for part in rows for row in part}
    classes = None
    if all(label.isdecimal() for label in labels):
        classes = _numbered_classes(train.parent, labels)
        names = dict(zip(sorted(labels, key=int), classes))
        rows = [[row._replace(label=names[row.label]) for row in part] for part in rows]
    root, (train_rows, test_rows) = _below_one_root(train.parent, rows)
    return VideoListing(root, "list", train_rows, test_rows, classes)


def _rows_of_list(path: Path) -> Iterator[VideoRow]:
    lines = _text(path).splitlines()
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line.strip())
        if match:
            yield VideoRow(match["path"].replace("\\", "/"), match["label"].strip())
        elif line.strip() and not (number == 1 and re.fullmatch(r"\W*path\W+label\W*", line.strip().lower())):
            raise InputError(
                f"line {number} of {path} is not a video and its label: {line.strip()[:80]!r}",
                "write `path label` or `path,label`; the path ends in a suffix such as .mp4",
            )


def _numbered_classes(folder: Path, labels: set[str]) -> list[str]:
    """Names of the classes that have these numbers: those of `classes.txt`, or the numbers themselves."""
    numbers = sorted(labels, key=int)
    path = folder / "classes.txt"
    if not path.is_file():
        return numbers
    names = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if int(numbers[-1]) >= len(names):
        raise InputError(
            f"label {numbers[-1]} has no name: {path} has {len(names)} lines, and the first is of label 0",
            "write one name a line for all labels",
        )
    found = [names[int(number)] for number in numbers]
    name, times = Counter(found).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path} names {times} classes {name!r}", "give each class its own name")
    return found


def _below_one_root(folder: Path, parts: list[list[VideoRow]]) -> tuple[Path, list[list[VideoRow]]]:
    """The same rows with names below one folder: that of the list, or one above all that are elsewhere."""
    paths = [[Path(os.path.abspath(folder / row.name)) for row in rows] for rows in parts]
    root = Path(os.path.abspath(folder))
    if not all(path.is_relative_to(root) for part in paths for path in part):
        root = Path(os.path.commonpath([path.parent for part in paths for path in part]))
    return root, [
        [row._replace(name=path.relative_to(root).as_posix()) for row, path in zip(rows, part)]
        for rows, part in zip(parts, paths)
    ]


def _is_video_list(path: Path) -> bool:
    """Whether a file's first lines are those of a list of videos or of Kinetics' annotations."""
    with open(path, encoding="utf-8", errors="replace") as file:
        head = [file.readline(4096).strip() for _ in range(2)]
    return _is_kinetics(path) or any(_LINE.fullmatch(line) for line in head)


def _is_kinetics(path: Path) -> bool:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        return "youtube_id" in file.readline(4096)


def _kinetics_listing(train: Path, test: Path | None) -> VideoListing:
    parts = {"train": list(_kinetics_rows(train)), "test": list(_kinetics_rows(test)) if test else []}
    if test is None:  # one file for all parts
        rows = parts["train"]
        part = next((w for w in _TEST_WORDS if any(row.get("split") == w for row in rows)), None)
        if part is None:
            raise InputError(
                f"{train} has no rows of a validation split, and there is no list of them beside it",
                "put the list of that split (val.csv or validate.csv) beside it",
            )
        parts = {"train": [r for r in rows if r["split"] == "train"], "test": [r for r in rows if r["split"] == part]}
    root = _root_of(train)
    files = _by_stem(root)
    listing = VideoListing(root, "kinetics", [], [])
    for rows, out in ((parts["train"], listing.train), (parts["test"], listing.test)):
        for row in rows:
            start, end = float(row["time_start"]), float(row["time_end"])
            stem = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
            if stem in files:
                out.append(VideoRow(files[stem], row["label"], group=row["youtube_id"]))
            elif row["youtube_id"] in files:
                out.append(VideoRow(files[row["youtube_id"]], row["label"], start, end, row["youtube_id"]))
            else:
                listing.skipped.append((stem, NOT_THERE))
    _check_any_there(train, listing)
    return listing


def _kinetics_rows(path: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(_text(path).splitlines()))
    for column in _KINETICS_COLUMNS:
        if rows and column not in rows[0]:
            raise InputError(
                f"{path} has no column {column}", f"use a list with the columns {', '.join(_KINETICS_COLUMNS)}"
            )
    for number, row in enumerate(rows, 2):
        try:
            if not row["label"] or not 0 <= float(row["time_start"]) < float(row["time_end"]):
                raise ValueError
        except (TypeError, ValueError):
            raise InputError(
                f"line {number} of {path} has label {row['label']!r}, time_start {row['time_start']!r} and time_end "
                f"{row['time_end']!r}",
                "give each row a label and two times in seconds, the second later",
            ) from None
    return rows


# --- Something-Something v2 ------------------------------------------------------------------------------------------


def _ssv2_files(folder: Path) -> dict[str, Path] | None:
    """labels, train, validation -> file; None where a folder (or its labels/) does not have all three."""
    for below in _LIST_FOLDERS:
        if (folder / below).is_dir():
            found = {}
            for path in sorted((folder / below).iterdir()):
                match = _SSV2.fullmatch(path.name)
                if match and match["prefix"] in ("", "something-something-v2-"):
                    found[match["part"]] = path
            if len(found) == 3:
                return found
    return None


def _ssv2_listing(source: Path, files: dict[str, Path] | None) -> VideoListing:
    if files is None:
        raise InputError(
            f"the annotations of Something-Something v2 in {source} are not complete",
            "put labels, train and validation .json into one folder",
        )
    try:
        numbers = {_plain(name): int(number) for name, number in json.loads(_text(files["labels"])).items()}
        items = {
            part: [(str(item["id"]), _plain(item["template"])) for item in json.loads(_text(files[part]))]
            for part in ("train", "validation")
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the annotations {', '.join(path.name for path in files.values())} in {files['labels'].parent} cannot be "
            f"understood: {type(error).__name__}: {error}",
            "use the files as they were published",
        ) from error
    root = _root_of(files["labels"])
    by_stem = _by_stem(root)
    listing = VideoListing(root, "something-something-v2", [], [], sorted(numbers, key=numbers.__getitem__))
    for part, out in (("train", listing.train), ("validation", listing.test)):
        for number, template in items[part]:
            if template not in numbers:
                raise InputError(
                    f"video {number} of {files[part]} has template {template!r}, which {files['labels'].name} has not",
                    "use the files of one release",
                )
            if number in by_stem:
                out.append(VideoRow(by_stem[number], template))
            else:
                listing.skipped.append((f"{number}.webm", NOT_THERE))
    _check_any_there(files["train"], listing)
    return listing


def _plain(template: str) -> str:
    """A template without the brackets around its placeholders, as the list of labels has it."""
    return template.replace("[", "").replace("]", "")


# --- what all share --------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8", "save it as UTF-8") from error


def _by_stem(root: Path) -> dict[str, str]:
    """File name without suffix -> path below `root`, the first in sorted order."""
    found: dict[str, str] = {}
    for name in _video_files(root):
        found.setdefault(Path(name).stem, name)
    return found


def _check_any_there(path: Path, listing: VideoListing) -> None:
    if not listing.train and not listing.test:
        first = f", first {listing.skipped[0][0]}" if listing.skipped else ""
        raise InputError(
            f"none of the {len(listing.skipped)} videos that the lists beside {path} name is in {listing.root}{first}",
            "put the videos there, or the lists above them",
        )
