"""The table of stimuli of an experiment: which picture is studied, which is tested, and against which foil.

A row is one file in one role. A *study set* is what one learner studies and is tested on; two *role-swapped* sets hold
the same pairs with the studied picture and the foil exchanged, so that what makes one picture of a pair easier than
the other cancels in their mean. A *pair* is a studied picture (seen) and its foil (unseen) under a condition.

    contract, study_set, path, role, condition, pair, seen, category, sha256, flags       contract memory_manifest/1

    study rows   role "study"; condition, pair and seen are empty
    test rows    role "test"; each (study_set, condition, pair) has one row with seen "true" and one with "false"
    path         with forward slashes; relative to the folder of the manifest where the file lies below it
    category     the folder below study/, or below the folder of the condition; empty where there is none
    flags        what is wrong with a row (`FLAGS`), joined by a space. They follow from the other columns, so they are
                 computed again whenever a manifest is read: a table that was edited by hand cannot hide a leak

Pictures are known by the SHA-256 of their bytes. The same picture saved twice in two files of different bytes is not
noticed: near duplicates are not looked for.

`headcam.recognition_memory.stimuli.prepare` writes such a table from folders of pictures; `load_pictures` makes tensors
of it.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from headcam.errors import InputError
from headcam.evaluation.features.pictures import load_picture
from headcam.files import atomic_file, sha256_json

CONTRACT = "memory_manifest/1"
COLUMNS = ("contract", "study_set", "path", "role", "condition", "pair", "seen", "category", "sha256", "flags")
FILE_NAME = "manifest.csv"
FLAGS = {
    "study_duplicate": "the same picture is studied more than once in an exposure",
    "studied_foil": "a studied picture is also a foil of this set",
    "studied_twice": "the tested picture is studied more than once in an exposure",
    "leaked_foil": "the foil is studied, too",
    "repeated_foil": "the foil is that of more than one pair of this set",
}
THREADS = min(8, os.cpu_count() or 1)  # Pillow and hashlib release the interpreter's lock


@dataclass(frozen=True)
class Stimulus:
    """One file in one role; a row of the table.

    Attributes:
        study_set: name of the set, such as "1".
        path: of the file, with forward slashes; `manifest.root / path` opens it.
        role: "study" or "test".
        condition: such as "exemplar"; "" for study rows.
        pair: number of the pair within set and condition, from 0; None for study rows.
        seen: whether the picture is studied: False for foils only.
        category: the folder below study/, or below the condition's folder; "" where there is none.
        sha256: of the file's bytes.
        flags: names of `FLAGS`, in their order.
    """

    study_set: str
    path: str
    role: Literal["study", "test"]
    condition: str
    pair: int | None
    seen: bool
    category: str
    sha256: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A studied picture and its foil."""

    condition: str
    number: int
    seen: Stimulus
    unseen: Stimulus

    @property
    def flags(self) -> tuple[str, ...]:
        """What is wrong with either picture, in the order of `FLAGS`."""
        return tuple(name for name in FLAGS if name in self.seen.flags + self.unseen.flags)


@dataclass(frozen=True)
class MemoryManifest:
    """All stimuli of an experiment, and the folder that their relative paths start from."""

    name: str
    root: Path
    stimuli: tuple[Stimulus, ...]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all rows without their paths: equal hashes mean the same pictures in the same order and roles.

        It does not change where files are moved, or renamed without changing their order.
        """
        rows = []
        for study_set in self.study_sets:
            rows += [[study_set, "study", s.category, s.sha256] for s in self.study(study_set)]
            for condition in self.conditions:
                for pair in self.pairs(study_set, condition):
                    rows += [
                        [study_set, "test", condition, pair.number, s.seen, s.category, s.sha256]
                        for s in (pair.seen, pair.unseen)
                    ]
        return sha256_json(rows)

    @cached_property
    def study_sets(self) -> tuple[str, ...]:
        """Names of the study sets, in order of appearance."""
        return tuple(dict.fromkeys(s.study_set for s in self.stimuli))

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions of all sets, in order of appearance."""
        return tuple(dict.fromkeys(s.condition for s in self.stimuli if s.role == "test"))

    @cached_property
    def role_swapped(self) -> bool:
        """Whether there are two sets, and each pair of one is in the other with studied picture and foil exchanged."""
        if len(self.study_sets) != 2:
            return False
        first, second = (
            {
                (condition, p.number): (p.seen.sha256, p.unseen.sha256)
                for condition in self.conditions
                for p in self.pairs(study_set, condition)
            }
            for study_set in self.study_sets
        )
        return first == {key: (unseen, seen) for key, (seen, unseen) in second.items()}

    def study(self, study_set: str) -> tuple[Stimulus, ...]:
        """The studied pictures of a set, sorted by the bytes of their paths."""
        self._check_set(study_set)
        return self._study[study_set]

    def pairs(self, study_set: str, condition: str) -> tuple[Pair, ...]:
        """The pairs of a set under a condition, by number; none where only other sets have that condition."""
        self._check_set(study_set)
        if condition not in self.conditions:
            raise InputError(
                f"manifest {self.name} has no condition {condition!r}", f"use one of {', '.join(self.conditions)}"
            )
        return self._pairs.get((study_set, condition), ())

    def _check_set(self, study_set: str) -> None:
        if study_set not in self.study_sets:
            raise InputError(
                f"manifest {self.name} has no study set {study_set!r}", f"use one of {', '.join(self.study_sets)}"
            )

    @cached_property
    def _study(self) -> dict[str, tuple[Stimulus, ...]]:
        rows: dict[str, list[Stimulus]] = {study_set: [] for study_set in self.study_sets}
        for s in self.stimuli:
            if s.role == "study":
                rows[s.study_set].append(s)
        return {name: tuple(sorted(listed, key=lambda s: os.fsencode(s.path))) for name, listed in rows.items()}

    @cached_property
    def _pairs(self) -> dict[tuple[str, str], tuple[Pair, ...]]:
        halves: dict[tuple[str, str], dict[int, dict[bool, Stimulus]]] = {}
        for s in self.stimuli:
            if s.role == "test":
                halves.setdefault((s.study_set, s.condition), {}).setdefault(s.pair, {})[s.seen] = s
        return {
            (study_set, condition): tuple(Pair(condition, n, by[n][True], by[n][False]) for n in sorted(by))
            for (study_set, condition), by in halves.items()
        }

    @classmethod
    def read(cls, path: str | os.PathLike) -> "MemoryManifest":
        """Read a manifest: the table itself, or a folder that holds `manifest.csv`.

        Its name is that of the file, or of the folder where the file is called manifest.csv.

        Raises:
            InputError: no such file, another contract, missing columns, values that mean nothing, a pair that is not
                one seen and one unseen picture, or a seen picture that is not studied.
        """
        path = Path(path).expanduser()
        path = path / FILE_NAME if path.is_dir() else path
        prepare = "make it with `headcam memory prepare DIR`"
        if not path.is_file():
            raise InputError(f"memory manifest {path} does not exist", prepare)
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                table = csv.DictReader(file)
                columns, rows = table.fieldnames or (), list(table)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"memory manifest {path} is no readable CSV table: {error}", prepare) from error
        missing = [name for name in COLUMNS if name not in columns]
        if missing:
            raise InputError(f"memory manifest {path} lacks the columns {', '.join(missing)}", prepare)
        if not rows:
            raise InputError(f"memory manifest {path} has no rows", prepare)
        stimuli = tuple(_stimulus(row, f"row {k} of memory manifest {path}") for k, row in enumerate(rows, start=2))
        check_stimuli(stimuli, f"memory manifest {path}")
        return cls(_name_of(path), path.parent, with_flags(stimuli))

    def write(self, path: str | os.PathLike) -> Path:
        """Write the table to `path` (or to manifest.csv in that folder), with paths that are right from there."""
        path = Path(path).expanduser()
        path = path / FILE_NAME if path.is_dir() else path
        home = Path(os.path.abspath(path.parent))
        with atomic_file(path, "w") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for s in self.stimuli:
                place = Path(os.path.abspath(self.root / s.path))
                shown = (place.relative_to(home) if place.is_relative_to(home) else place).as_posix()
                pair, seen = ("", "") if s.role == "study" else (s.pair, str(s.seen).lower())
                table.writerow(
                    (CONTRACT, s.study_set, shown, s.role, s.condition, pair, seen)
                    + (s.category, s.sha256, " ".join(s.flags))
                )
        return path


def with_flags(stimuli: Sequence[Stimulus]) -> tuple[Stimulus, ...]:
    """The same rows with the flags (`FLAGS`) that follow from their roles and hashes, in place of those they carry."""
    studied = Counter((s.study_set, s.sha256) for s in stimuli if s.role == "study")
    foils = Counter((s.study_set, s.sha256) for s in stimuli if s.role == "test" and not s.seen)

    def of(s: Stimulus) -> tuple[str, ...]:
        times, as_foil = studied[s.study_set, s.sha256], foils[s.study_set, s.sha256]
        if s.role == "study":
            holds = {"study_duplicate": times > 1, "studied_foil": as_foil > 0}
        elif s.seen:
            holds = {"studied_twice": times > 1}
        else:
            holds = {"leaked_foil": times > 0, "repeated_foil": as_foil > 1}
        return tuple(name for name, holding in holds.items() if holding)

    return tuple(replace(s, flags=of(s)) for s in stimuli)


def check_stimuli(stimuli: Iterable[Stimulus], what: str) -> None:
    """Raise `InputError` where `stimuli` are no experiment; `what` names them in the message."""
    studied: dict[str, set[str]] = {}
    sides: dict[tuple[str, str, int], Counter[bool]] = {}
    seen: list[Stimulus] = []
    for s in stimuli:
        studied.setdefault(s.study_set, set())
        if s.role == "study":
            studied[s.study_set].add(s.sha256)
            continue
        sides.setdefault((s.study_set, s.condition, s.pair), Counter())[s.seen] += 1
        if s.seen:
            seen.append(s)
    for study_set, pictures in studied.items():
        if not pictures:
            raise InputError(f"set {study_set!r} of {what} has no study pictures", "add them, or leave out the set")
        if not any(key[0] == study_set for key in sides):
            raise InputError(f"set {study_set!r} of {what} has no test pairs", "add them, or leave out the set")
    for (study_set, condition, pair), count in sides.items():
        if count[True] != 1 or count[False] != 1:
            raise InputError(
                f"pair {pair} of condition {condition!r} in set {study_set!r} of {what} has {count[True]} seen and "
                f"{count[False]} unseen pictures",
                "give each pair one of either",
            )
    for s in seen:
        if s.sha256 not in studied[s.study_set]:
            raise InputError(
                f"{s.path} is tested as seen in set {s.study_set!r} of {what}, but no study picture has its bytes",
                "copy it to study/ unchanged, or remove its pair",
            )


def is_manifest(path: str | os.PathLike) -> bool:
    """Whether a file, or the `manifest.csv` of a folder, is one of ours; other tables go by that name too."""
    path = Path(path).expanduser()
    path = path / FILE_NAME if path.is_dir() else path
    if path.suffix != ".csv" or not path.is_file():
        return False
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return file.readline().startswith(f"{COLUMNS[0]},")


def load_pictures(
    manifest: MemoryManifest,
    stimuli: Sequence[Stimulus],
    size: tuple[int, int],
    resample: Literal["bilinear", "bicubic"] = "bilinear",
) -> Tensor:
    """Decode pictures, cut out the largest central part of the wanted shape, and resize it once, antialiased.

    With square pictures and bilinear sampling these are the pixels of torchvision's `Resize` on a PIL picture, as the
    published experiments used them. A picture that was taken turned (EXIF) is turned upright, as a browser shows it.

    Args:
        manifest: says where the files are.
        stimuli: N rows of it, in any order; repeated ones are allowed.
        size: (H, W) in pixels.
    Returns:
        uint8 (N, 3, H, W) RGB.
    Raises:
        InputError: a file is missing, has other bytes than when the manifest was made, or cannot be decoded.
    """
    height, width = size
    if min(size) < 1:
        raise InputError(f"pictures of {height} x {width} pixels hold nothing", "use at least one pixel a side")
    result = np.empty((len(stimuli), height, width, 3), np.uint8)

    def load(k: int) -> None:
        picture = decode(_bytes_of(manifest, stimuli[k]), str(manifest.root / stimuli[k].path))
        result[k] = np.asarray(crop_and_resize(picture, size, Image.Resampling[resample.upper()]))

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(load, range(len(stimuli))):
            pass  # raises what `load` raised, for the first such picture
    return torch.from_numpy(result).permute(0, 3, 1, 2).contiguous()


def decode(data: bytes, name: str) -> Image.Image:
    """An upright 8-bit RGB picture from the bytes of a file; `InputError` naming it where they are none."""
    try:
        return ImageOps.exif_transpose(load_picture(BytesIO(data)))
    except Exception as error:  # on garbage, Pillow's decoders raise anything from OSError to struct.error
        # Pillow's text names the buffer by its address in memory, which changes from run to run.
        reason = type(error).__name__ if "BytesIO" in str(error) else f"{type(error).__name__}: {error}"
        raise InputError(
            f"{name} is no picture that can be decoded ({reason})", "replace or remove the file"
        ) from error


def crop_and_resize(picture: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """The largest central part with the shape of `size` (H, W), in whole pixels, resized once to `size`."""
    height, width = size
    # The side that is cut is rounded half up, and never below a pixel.
    wide = min(picture.width, max(1, (2 * picture.height * width + height) // (2 * height)))
    tall = min(picture.height, max(1, (2 * picture.width * height + width) // (2 * width)))
    left, top = (picture.width - wide) // 2, (picture.height - tall) // 2
    # Cropped first: with resize(box=...) the filter would reach over the edge.
    return picture.crop((left, top, left + wide, top + tall)).resize((width, height), resample)


def _bytes_of(manifest: MemoryManifest, stimulus: Stimulus) -> bytes:
    path = manifest.root / stimulus.path
    again = "restore it, or make the manifest again with `headcam memory prepare`"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"picture {path} of manifest {manifest.name} cannot be read: {error.strerror}", again
        ) from error
    if sha256(data).hexdigest() != stimulus.sha256:
        raise InputError(f"picture {path} has changed since manifest {manifest.name} was made", again)
    return data


def _name_of(path: Path) -> str:
    return Path(os.path.abspath(path.parent)).name if path.name == FILE_NAME else path.stem


def _stimulus(row: dict[str, Any], where: str) -> Stimulus:
    def refuse(column: str, allowed: str) -> InputError:
        return InputError(f"{where} has {column} {row[column]!r}", allowed)

    if None in row or None in row.values():  # too many cells, too few
        raise InputError(f"{where} has another number of cells than the header", "repair the row")
    if row["contract"] != CONTRACT:
        raise refuse("contract", f"make the manifest again with this headcam, which reads {CONTRACT}")
    if not row["study_set"]:
        raise refuse("study_set", "name the set, such as 1")
    if not row["path"]:
        raise refuse("path", "name the file")
    if len(row["sha256"]) != 64 or set(row["sha256"]) - set("0123456789abcdef"):
        raise refuse("sha256", "give 64 hexadecimal digits in lower case")
    shared = {key: row[key] for key in ("study_set", "path", "category", "sha256")}
    if row["role"] == "study":
        for column in ("condition", "pair", "seen"):
            if row[column]:
                raise refuse(column, "leave it empty in rows of role study")
        return Stimulus(role="study", condition="", pair=None, seen=True, **shared)
    if row["role"] != "test":
        raise refuse("role", "use study or test")
    if not row["condition"]:
        raise refuse("condition", "name it in rows of role test")
    if not (row["pair"].isascii() and row["pair"].isdigit()):
        raise refuse("pair", "number the pairs of a condition from 0")
    if row["seen"].lower() not in ("true", "false"):
        raise refuse("seen", "use true or false")
    seen = row["seen"].lower() == "true"
    return Stimulus(role="test", condition=row["condition"], pair=int(row["pair"]), seen=seen, **shared)
