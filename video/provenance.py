"""Who wore the camera, when and where from: columns of the index that no decoder can know.

They come from two places. File names follow a data set's convention (`NAMES`, each with its source below); a name that
does not follow it leaves everything unknown, it is never guessed at. A CSV that the user writes tells the rest, and
wins where both speak. Names and CSV rows are matched when an index is made or brought up to date; no file is opened.

Columns: `source` (data set or folder), `wearer` (child or adult), `age_days` (of the wearer), `recorded_on` (date),
`session` (recordings that belong together: hold out by session where files are cuts of one long recording), `camera`.
"""

import csv
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path, PurePath
from typing import Any

from headcam.errors import InputError

COLUMNS = ("source", "wearer", "age_days", "recorded_on", "session", "camera")

Facts = dict[str, Any]  # some of COLUMNS -> value


def _saycam(path: PurePath) -> Facts | None:
    """SAYCam: `S_20130417_0600_01.mp4`: child, date, age, number of the recording on that day; `_segment7` for a cut.

    Convention as in the lists of training files that eminorhan/mae_st publishes (`datafiles/say/train.csv`). The four
    digits are the child's age in months and days and no time of day: they reach 2519, and they count on from each
    child's birthday to the day (S 2013-04-17 is 0600, 2014-10-15 is 2328).
    """
    found = re.fullmatch(r"([SAY])_(\d{8})_(\d\d)(\d\d)_(\d\d)(_segment\d+)?", path.stem)
    if found is None:
        return None
    child, day, months, days = found.group(1), _day(found.group(2)), int(found.group(3)), int(found.group(4))
    if day is None or days > 31:
        return None
    birth = _months_before(day - timedelta(days), months)
    return {
        "source": "saycam",
        "wearer": child,
        "age_days": float((day - birth).days),
        "recorded_on": day,
        "session": f"{child}_{found.group(2)}",
    }


def _ego4d(path: PurePath) -> Facts | None:
    """Ego4D: `<video or clip uid>.mp4`, a UUID, as its command line names them; `<uid>-12` or `<uid>_12` for a cut.

    Who wore the camera stands in `ego4d.json` alone: bring it in by CSV.
    """
    found = re.fullmatch(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})([-_]\d+)?", path.stem)
    return None if found is None else {"source": "ego4d", "session": found.group(1)}


def _epic_kitchens(path: PurePath) -> Facts | None:
    """EPIC-KITCHENS: `P01_01.MP4`; `P01_101.MP4` in the extension of 2020: participant, number of the recording.

    Convention as in `recording_times.csv` of the data set, which also holds the dates: bring them in by CSV.
    """
    found = re.fullmatch(r"(P\d\d)_\d{2,3}", path.stem)
    return None if found is None else {"source": "epic-kitchens", "wearer": found.group(1), "session": path.stem}


def _babyview(path: PurePath) -> Facts | None:
    """BabyView: `00230001_2023-11-05_1_<id>.mp4`: subject, date, chapter of the GoPro file, id of the video.

    Convention as in `video.py` of babyview-project/babyview-pipeline. The first release carries the GoPro's own name,
    the week and the time, which may be missing: `00400001_GX010024_2_06.26.2023-07.02.2023_06.30.2023-8:00am.MP4`,
    `00400001_GX010087_10.02.2023-10.08.2023_NA-NA.MP4` (the same repository's `video_durations_local.csv`).
    """
    found = re.fullmatch(r"(\d{8})_(\d{4}-\d\d-\d\d)_[^_]+_\w+\.\w+", path.name)
    camera = None
    if found is not None:
        day = _day(found.group(2).replace("-", ""))
        if day is None:
            return None
    else:
        week = r"\d\d\.\d\d\.\d{4}"
        found = re.fullmatch(rf"(\d{{8}})_G[XH]\d{{6}}(?:_[\d.]+)?_{week}-{week}_(.*)", path.name)
        if found is None:
            return None
        camera = "GoPro"  # GX and GH are GoPro's names of HEVC and H.264 files
        american = re.match(r"(\d\d)\.(\d\d)\.(\d{4})-", found.group(2))
        iso = re.match(r"(\d{4})-(\d\d)-(\d\d)-", found.group(2))
        day = _day("".join(american.group(3, 1, 2) if american else iso.groups() if iso else ()))
    wearer = found.group(1)
    session = None if day is None else f"{wearer}_{day.isoformat()}"
    return {"source": "babyview", "wearer": wearer, "recorded_on": day, "session": session, "camera": camera}


def _folders(path: PurePath) -> Facts | None:
    """Any folder: the source is the first folder below the one that is indexed, or that one's own name."""
    name = path.parts[1] if len(path.parts) > 2 else path.parts[0]
    return {"source": os.fsencode(name).decode("utf-8", "replace")}  # a name may be no valid UTF-8, a table must be


# convention -> function of a path that starts with the indexed folder's own name; None where the name does not follow
NAMES: dict[str, Callable[[PurePath], Facts | None]] = {
    "folders": _folders,
    "saycam": _saycam,
    "ego4d": _ego4d,
    "epic-kitchens": _epic_kitchens,
    "babyview": _babyview,
}


@dataclass(frozen=True)
class Matches:
    """How far names and CSV went: how many files follow the convention, which CSV rows and files have no match."""

    files: int
    named: int
    rows_without_file: tuple[str, ...]
    files_without_row: int


class Provenance:
    """What names and CSV say of the files of one index.

    Args:
        paths: of the files, all under `folder`.
        folder: the folder that is indexed.
        names: one of `NAMES`.
        metadata: CSV file, or None. Its first line names its columns: `path` or `recording` (or both) say which file a
            row is for, the others are any of `COLUMNS` and `birth_date`. A `path` is a file's name, or as many of its
            last folders as it takes to tell it from others. Dates are ISO (2013-05-09). An empty cell says nothing.
    Raises:
        InputError: an unknown convention; a CSV that cannot be read, with a column that is unknown or a value that is
            malformed (said with its line and column), with two rows for one file, or a row that fits several files.
    """

    def __init__(self, paths: Sequence[str], folder: Path, names: str = "folders", metadata: str | Path | None = None):
        if names not in NAMES:
            raise InputError(f"names {names!r} is no convention of file names", f"use one of {', '.join(NAMES)}")
        folder = folder.resolve()
        self._named = [NAMES[names](PurePath(folder.name, PurePath(path).relative_to(folder))) for path in paths]
        self._paths = list(paths)
        self._csv = metadata
        self._rows = [] if metadata is None else _read_csv(Path(metadata))
        self._row_of = self._by_path()

    def facts(self, recordings: Sequence[str]) -> tuple[list[Facts], Matches]:
        """All of `COLUMNS` for each file (None where unknown), given the files' recording ids ("" where unreadable)."""
        row_of = dict(self._row_of)
        matched = {id(row) for row in row_of.values()}
        positions = defaultdict(list)
        for k, recording in enumerate(recordings):
            if recording:
                positions[recording].append(k)
        for row in self._rows:
            for k in positions.get(row.recording, ()):
                if row_of.setdefault(k, row) is not row:
                    raise self._two_rows(row_of[k], row, k)
                matched.add(id(row))
        facts = [self._joined(self._named[k] or {}, row_of.get(k)) for k in range(len(self._paths))]
        left = tuple(row.path or row.recording for row in self._rows if id(row) not in matched)
        named = sum(f is not None for f in self._named)
        return facts, Matches(len(facts), named, left, len(facts) - len(row_of))

    def _by_path(self) -> dict[int, "_Row"]:
        """Position of a file -> the row whose path fits it."""
        of_name = defaultdict(list)
        for k, path in enumerate(self._paths):
            of_name[PurePath(path).name].append(k)
        row_of: dict[int, _Row] = {}
        for row in self._rows:
            wanted = PurePath(row.path).parts
            fits = (
                [k for k in of_name.get(wanted[-1], ()) if PurePath(self._paths[k]).parts[-len(wanted) :] == wanted]
                if wanted
                else []
            )
            if len(fits) > 1:
                raise InputError(
                    f"{self._csv} line {row.line}, column path: {row.path!r} fits {len(fits)} files, "
                    f"such as {self._paths[fits[0]]} and {self._paths[fits[1]]}",
                    "put their folders before the name until it fits one",
                )
            for k in fits:
                if k in row_of:
                    raise self._two_rows(row_of[k], row, k)
                row_of[k] = row
        return row_of

    def _two_rows(self, one: "_Row", other: "_Row", k: int) -> InputError:
        lines = " and ".join(str(n) for n in sorted((one.line, other.line)))
        return InputError(f"{self._csv} lines {lines} are both for {self._paths[k]}", "keep one of them")

    def _joined(self, named: Facts, row: "_Row | None") -> Facts:
        facts = dict.fromkeys(COLUMNS) | named
        if row is None:
            return facts
        facts |= row.facts
        if row.birth_date is not None and "age_days" not in row.facts:
            if facts["recorded_on"] is None:
                problem = f"{self._csv} line {row.line}, column birth_date: the day of the recording is unknown"
                raise InputError(problem, "fill the column recorded_on too, or give age_days")
            facts["age_days"] = float((facts["recorded_on"] - row.birth_date).days)
            if facts["age_days"] < 0:
                problem = f"{self._csv} line {row.line}, column birth_date: {row.birth_date} is after the recording"
                raise InputError(f"{problem} of {facts['recorded_on']}", "correct one of the two dates")
        return facts


@dataclass(frozen=True, eq=False)
class _Row:
    line: int
    path: str
    recording: str
    birth_date: date | None
    facts: Facts


def _read_csv(path: Path) -> list[_Row]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}", "give comma-separated UTF-8 text") from error
    if not lines:
        raise InputError(f"{path} is empty", "its first line names its columns, such as path,wearer,recorded_on")
    header = [name.strip() for name in lines[0][1]]
    known = ("path", "recording", *COLUMNS, "birth_date")
    for k, name in enumerate(header, 1):
        if name not in known or header.count(name) > 1:
            problem = f"{path} line 1, column {k}: {name!r} " + ("stands twice" if name in known else "is unknown")
            raise InputError(problem, f"use each of these at most once: {', '.join(known)}")
    if not {"path", "recording"} & set(header):
        raise InputError(f"{path} line 1: no column says which file a row is for", "add path, or recording")
    rows = []
    for line, cells in lines[1:]:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            problem = f"{path} line {line}: {len(cells)} values for {len(header)} columns"
            raise InputError(problem, 'put values that hold a comma in "quotes"')
        values = {name: cell.strip() for name, cell in zip(header, cells) if cell.strip()}
        if not {"path", "recording"} & set(values):
            raise InputError(f"{path} line {line}: neither path nor recording is filled", "say which file it is for")
        facts = {name: _value(path, line, name, text) for name, text in values.items() if name in known[2:]}
        birth = facts.pop("birth_date", None)
        rows.append(_Row(line, values.get("path", ""), values.get("recording", ""), birth, facts))
    return rows


def _value(path: Path, line: int, name: str, text: str) -> Any:
    where = f"{path} line {line}, column {name}: {text!r}"
    if name in ("recorded_on", "birth_date"):
        try:
            return date.fromisoformat(text)
        except ValueError:
            raise InputError(f"{where} is no date", "write year-month-day, such as 2013-05-09") from None
    if name == "age_days":
        try:
            days = float(text)
        except ValueError:
            days = math.nan
        if not 0 <= days < math.inf:
            raise InputError(f"{where} is no age in days", "write a number of at least 0, such as 183")
        return days
    return text


def _day(digits: str) -> date | None:
    """The date in eight digits, year first; None where there is no such day."""
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None


def _months_before(day: date, months: int) -> date:
    """The same day of the month `months` earlier, or the last day of that month where it is shorter."""
    count = 12 * day.year + day.month - 1 - months
    first = date(count // 12, count % 12 + 1, 1)
    following = date((count + 1) // 12, (count + 1) % 12 + 1, 1)
    return min(first + timedelta(day.day - 1), following - timedelta(1))
