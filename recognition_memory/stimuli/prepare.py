"""From folders of pictures to a manifest: what is studied, what is tested, and what is wrong with it.

    FOLDER/                                   or FOLDER is one set itself
      brady_1/                                a set: any name; the number at its end is the set's name
        study/**                              all pictures that are studied, in folders as you like (categories)
        test/<condition>_seen/**              pictures that are tested and studied,
        test/<condition>_unseen/**            their foils
      brady_2/ ...                            another set, role-swapped in the published stimuli of Brady et al. (2008)

    FOLDER/study/**, FOLDER/foils/**          the simplest: foil i belongs to studied picture i, both in sorted order;
                                              studied pictures that are left over are fillers; condition "novel". Two
                                              role-swapped sets are made of it: "1" studies study/, "2" studies the
                                              foils in place of their partners

This is the layout of the published stimuli of Brady et al. (2008) and Konkle et al. (2010). Pair i of a condition is
entry i of its seen pictures with entry i of its unseen ones, where the entries of a folder are in this order: by file
name where all pictures lie in one folder (Brady); by subfolder, then file name where there are several (Konkle: one
folder for each category). Names are compared as bytes: capitals before small letters. Where seen and unseen pictures
lie in the same categories, each category has to hold as many of one as of the other; so no pair runs across them.

Every file is read and decoded once, in threads. A picture of a test that cannot be decoded is an error; another one is
left out, counted and named. What is wrong with the experiment (a foil that is studied, pictures that are studied
twice) is no error but a flag of the row, see `manifest.FLAGS`: the published Konkle set 2 has 240 such rows. Equal
pictures are found by their bytes; near duplicates are not looked for.
"""

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from headcam.errors import InputError
from headcam.evaluation.labelled.sets import PICTURE_SUFFIXES
from headcam.progress import Progress
from headcam.recognition_memory.stimuli.manifest import (
    FILE_NAME,
    FLAGS,
    THREADS,
    MemoryManifest,
    Stimulus,
    check_stimuli,
    decode,
    with_flags,
)

SUFFIXES = PICTURE_SUFFIXES | {".jpe", ".jfif"}  # some of the published JPEG files are named so
_LAYOUT = "a set holds study/, test/<condition>_seen/ and test/<condition>_unseen/; study/ with foils/ will do as well"


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found.

    Attributes:
        manifest: the table that was written.
        sets: names of the study sets.
        study, pairs: how many study pictures and how many pairs all sets have together.
        flagged: flag -> how many rows carry it, in the order of `manifest.FLAGS`, those of none left out.
        flagged_rows: how many rows carry at least one flag.
        skipped: (file, reason) of each study picture that could not be decoded.
        notes: sentences on what else a reader of the results has to know.
    """

    manifest: Path
    sets: tuple[str, ...]
    study: int
    pairs: int
    flagged: dict[str, int]
    flagged_rows: int
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """A row of the table before its file has been read."""

    study_set: str
    file: Path
    role: str
    condition: str
    pair: int | None
    seen: bool
    category: str


def prepare(
    folder: str | os.PathLike, out: str | os.PathLike | None = None, *, name: str | None = None, quiet: bool = False
) -> Prepared:
    """Write the manifest of the stimuli in `folder`; see the module for the layouts.

    Args:
        folder: one set, or a folder of sets: all its subfolders with study/ and test/.
        out: the table to write, or a folder for it; by default in `folder`, which must be writable then.
        name: the manifest's name, which is that of its file (NAME.csv); by default the file is manifest.csv, and the
            name that of the folder which it lies in.
        quiet: no progress is shown.
    Raises:
        InputError: there is no set, no study picture, no condition; a condition lacks one side or has unequal numbers
            of both; a tested picture cannot be decoded or, though called seen, is not studied.
        StorageError: `out` cannot be written.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"folder {root} of stimuli does not exist", f"give an existing one: {_LAYOUT}")
    target = _target(root, out, name)
    rows, notes = _rows(root)

    files = sorted({row.file for row in rows}, key=os.fsencode)
    found: dict[Path, tuple[str, str]] = {}  # file -> (hash, shape or reason)
    with Progress("reading pictures", len(files), "files", quiet) as progress, ThreadPoolExecutor(THREADS) as pool:
        for file, facts in zip(files, pool.map(_read, files)):
            found[file] = facts
            progress.advance(current=file.name)

    skipped = _skipped(rows, found, root)
    stimuli = with_flags(
        [
            Stimulus(
                r.study_set, _shown(r.file, root), r.role, r.condition, r.pair, r.seen, r.category, found[r.file][0]
            )
            for r in rows
            if found[r.file][0]
        ]
    )
    check_stimuli(stimuli, str(root))
    manifest = MemoryManifest(target.stem, root, stimuli)
    if oblong := [_shown(file, root) for file in files if found[file][0] and found[file][1]]:
        first = f"{oblong[0]} is {found[root / oblong[0]][1]} pixels"
        what = "file is" if len(oblong) == 1 else "files are"
        notes.append(f"{len(oblong)} {what} not square ({first}): the largest central part is shown")
    notes += _notes_on_sets(manifest) + _notes_on_conditions(manifest)
    counts = Counter(flag for s in stimuli for flag in s.flags)
    return Prepared(
        manifest=manifest.write(target),
        sets=manifest.study_sets,
        study=sum(s.role == "study" for s in stimuli),
        pairs=sum(s.role == "test" and s.seen for s in stimuli),
        flagged={flag: counts[flag] for flag in FLAGS if counts[flag]},
        flagged_rows=sum(bool(s.flags) for s in stimuli),
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


def _target(root: Path, out: str | os.PathLike | None, name: str | None) -> Path:
    if name is not None and (not name or "/" in name or name != Path(name).name):
        raise InputError(f"{name!r} cannot be the name of a manifest", "use a name that a file can have")
    target = root if out is None else Path(out).expanduser()
    if target.suffix != ".csv":
        return target / (FILE_NAME if name is None else f"{name}.csv")
    if name is not None and name != target.stem:
        raise InputError(f"the manifest {target} cannot be called {name!r}", f"give a folder, or {name}.csv, as --out")
    return target


def _rows(root: Path) -> tuple[list[_Row], list[str]]:
    """All rows in the order of the table, and notes on which folders were taken."""
    if (root / "study").is_dir() and (root / "foils").is_dir() and not (root / "test").exists():
        return _rows_of_two_folders(root), ["two role-swapped sets were made of study/ and foils/"]
    notes = []
    if (root / "study").is_dir() or (root / "test").is_dir():
        folders = [root]
    else:
        below = sorted((path for path in root.iterdir() if path.is_dir()), key=_name_bytes)
        folders = [path for path in below if (path / "study").is_dir() and (path / "test").is_dir()]
        if not folders:
            half = [path for path in below if (path / "study").is_dir() or (path / "test").is_dir()]
            at = half[0] if half else root
            lacks = "test/" if (at / "study").is_dir() else "study/" if half else "no set of stimuli"
            raise InputError(f"{at} has no {lacks}" if half else f"{at} holds {lacks}", _LAYOUT)
        taken, left = [path.name for path in folders], [path.name for path in below if path not in folders]
        notes.append(f"taken as study sets: {', '.join(taken)}" + (f"; not: {', '.join(left)}" if left else ""))
    names = [match[1] if (match := re.search(r"(\d+)$", path.name)) else path.name for path in folders]
    if len(set(names)) < len(names):
        names = [path.name for path in folders]
    rows = []
    for study_set, path in zip(names, folders):
        rows += _rows_of_set(study_set, path, notes)
    return rows, notes


def _rows_of_set(study_set: str, folder: Path, notes: list[str]) -> list[_Row]:
    for part in ("study", "test"):
        if not (folder / part).is_dir():
            raise InputError(f"set {folder} has no {part}/", _LAYOUT)
    studied = _pictures(folder / "study")
    if not studied:
        raise InputError(f"{folder / 'study'} holds no pictures", f"put pictures ({', '.join(sorted(SUFFIXES))}) there")
    rows = [_Row(study_set, file, "study", "", None, True, category) for category, file in studied]

    sides: dict[str, set[str]] = {}
    for path in sorted((folder / "test").iterdir(), key=_name_bytes):
        match = re.fullmatch(r"(.+)_(seen|unseen)", path.name)
        if path.is_dir() and match:
            sides.setdefault(match[1], set()).add(match[2])
        elif path.is_dir() or path.suffix.lower() in SUFFIXES:
            notes.append(f"{path} was not looked at: it is no folder called <condition>_seen or <condition>_unseen")
    if not sides:
        raise InputError(f"{folder / 'test'} holds no condition", _LAYOUT)
    for condition in sorted(sides, key=_condition_order):
        seen, unseen = (_pictures(folder / "test" / f"{condition}_{side}") for side in ("seen", "unseen"))
        _check_sides(folder / "test", condition, seen, unseen)
        for number, (one, other) in enumerate(zip(seen, unseen)):
            rows.append(_Row(study_set, one[1], "test", condition, number, True, one[0]))
            rows.append(_Row(study_set, other[1], "test", condition, number, False, other[0]))
    return rows


def _rows_of_two_folders(root: Path) -> list[_Row]:
    studied, foils = _pictures(root / "study"), _pictures(root / "foils")
    for part, pictures in (("study", studied), ("foils", foils)):
        if not pictures:
            raise InputError(f"{root / part} holds no pictures", f"put pictures ({', '.join(sorted(SUFFIXES))}) there")
    if len(foils) > len(studied):
        raise InputError(
            f"{root} has {len(foils)} foils for {len(studied)} study pictures",
            "remove foils, or add study pictures: each foil is tested against one",
        )
    rows = []
    for study_set in ("1", "2"):
        shown = studied if study_set == "1" else sorted(foils + studied[len(foils) :], key=lambda p: os.fsencode(p[1]))
        rows += [_Row(study_set, file, "study", "", None, True, category) for category, file in shown]
        for number, (one, other) in enumerate(zip(studied, foils)):
            for category, file in (one, other):
                seen = (file == one[1]) == (study_set == "1")
                rows.append(_Row(study_set, file, "test", "novel", number, seen, category))
    return rows


def _pictures(folder: Path) -> list[tuple[str, Path]]:
    """(subfolder, file) of the pictures below `folder`: by file name within one subfolder, by subfolder where several.

    A study folder is put in the order of its paths, which this is as well.
    """
    found = []
    for base, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            path = Path(base, file)
            if path.suffix.lower() in SUFFIXES and not file.startswith("."):
                found.append((path.parent.relative_to(folder).as_posix().removeprefix("."), path))
    for _, path in found:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise InputError(f"the name of file {str(path)!r} is no valid UTF-8", "rename the file") from None
    return sorted(found, key=lambda item: (os.fsencode(item[0]), _name_bytes(item[1])))


def _check_sides(test: Path, condition: str, seen: list[tuple[str, Path]], unseen: list[tuple[str, Path]]) -> None:
    for side, pictures in (("seen", seen), ("unseen", unseen)):
        if not pictures:
            raise InputError(
                f"condition {condition!r} has no pictures in {test / f'{condition}_{side}'}",
                "give each condition as many seen as unseen pictures",
            )
    if len(seen) != len(unseen):
        raise InputError(
            f"condition {condition!r} of {test} has {len(seen)} seen and {len(unseen)} unseen pictures",
            "give it as many of one as of the other: they are paired in sorted order",
        )
    # Foils of the novel condition may lie in one folder, or in categories of their own.
    ours, theirs = (Counter(category for category, _ in side) for side in (seen, unseen))
    if ours.keys() & theirs.keys() and ours != theirs:
        category = min(category for category in ours.keys() | theirs.keys() if ours[category] != theirs[category])
        raise InputError(
            f"condition {condition!r} of {test} has {ours[category]} seen and {theirs[category]} unseen pictures in "
            f"category {category or '(no folder)'!r}",
            "give each category as many of one as of the other, so that no pair runs across categories",
        )


def _read(file: Path) -> tuple[str, str]:
    """(hash, "" or "W x H" of a picture that is not square), or ("", reason)."""
    try:
        data = file.read_bytes()
        picture = decode(data, "it")
    except OSError as error:
        return "", error.strerror or type(error).__name__
    except InputError as error:
        return "", error.problem
    return sha256(data).hexdigest(), "" if picture.width == picture.height else f"{picture.width} x {picture.height}"


def _skipped(rows: list[_Row], found: dict[Path, tuple[str, str]], root: Path) -> list[tuple[str, str]]:
    """Study files that cannot be decoded; an error where a test needs such a file."""
    for row in rows:
        if row.role == "test" and not found[row.file][0]:
            raise InputError(
                f"test picture {row.file} cannot be used: {found[row.file][1]}",
                f"restore it, or remove pair {row.pair} of condition {row.condition!r}",
            )
    broken = dict.fromkeys(row.file for row in rows if not found[row.file][0])
    return [(_shown(file, root), found[file][1]) for file in broken]


def _notes_on_sets(manifest: MemoryManifest) -> list[str]:
    sets = manifest.study_sets
    notes = []
    for study_set in sets:
        absent = [c for c in manifest.conditions if not manifest.pairs(study_set, c)]
        if absent:
            notes.append(f"set {study_set} has no condition {', '.join(absent)}")
    if len(sets) == 1:
        notes.append("one study set: what makes pictures easier does not cancel in role-swapped sets")
    elif not manifest.role_swapped:
        notes.append("the study sets are not role-swapped: what makes pictures easier does not cancel in their mean")
        for condition in manifest.conditions:
            tested = [{(p.seen.sha256, p.unseen.sha256) for p in manifest.pairs(s, condition)} for s in sets]
            if tested[0] and all(pairs == tested[0] for pairs in tested):
                notes.append(f"condition {condition} is the same in all sets: the same pictures in the same roles")
    return notes


def _notes_on_conditions(manifest: MemoryManifest) -> list[str]:
    notes = []
    for study_set in manifest.study_sets:
        tested = {c: {p.seen.sha256 for p in manifest.pairs(study_set, c)} for c in manifest.conditions}
        foils = {c: {p.unseen.sha256 for p in manifest.pairs(study_set, c)} for c in manifest.conditions}
        for what, pictures in (("test the same", tested), ("share", foils)):
            for i, one in enumerate(manifest.conditions):
                for other in manifest.conditions[i + 1 :]:
                    if both := len(pictures[one] & pictures[other]):
                        kind = "foils" if pictures is foils else "studied pictures"
                        notes.append(f"{one} and {other} of set {study_set} {what} {both} {kind}")
    return notes


def _condition_order(condition: str) -> tuple:
    """Novel first, then by the number that a name starts with (1_exemplar before 16_exemplar), then by name."""
    match = re.match(r"\d+", condition)
    return condition != "novel", int(match[0]) if match else -1, condition.encode()


def _name_bytes(path: Path) -> bytes:
    return os.fsencode(path.name)


def _shown(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()
