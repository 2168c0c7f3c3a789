"""`headcam index`: from a folder to the recordings table, one row a video or still picture, good or bad.

The folder is walked in sorted order; each file is examined in a worker process with a deadline, so that a file which
crashes a decoder or makes it spin costs one row with a reason. Answers go to a journal beside the output as they
come: the same command, killed at any moment and started again, examines only what is left. What comes out does not
depend on the number of processes.
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headcam.errors import DecodeError, InputError
from headcam.files import recording_id, sha256_file, storage_errors
from headcam.progress import Progress
from headcam.video.metadata import is_media, one_line, read_metadata
from headcam.video.provenance import Matches, Provenance
from headcam.video.recording_index import write_companion
from headcam.video.recordings import (
    DUPLICATE,
    OK,
    UNREADABLE,
    VERSION,
    read_recordings,
    recordings_table,
    write_recordings,
)
from headcam.video.workers import Lost, run_tasks

_BYTES_PER_SECOND = 10e6  # the slowest disk that is waited for: a file's deadline grows by its size over this
_MODIFIED = "headcam.modified_ns"  # in the file's metadata: mtime a row, to know what need not be examined again


@dataclass(frozen=True)
class IndexResult:
    """What `index` found: the table as written, files of other kinds passed over, and what names and CSV matched."""

    table: pa.Table
    ignored: int
    matches: Matches

    @property
    def statuses(self) -> Counter:
        """How many rows there are of each status."""
        return Counter(self.table["status"].to_pylist())

    @property
    def hours(self) -> float:
        """Hours of video in the rows that are ok."""
        rows = zip(self.table["status"].to_pylist(), self.table["duration_s"].to_pylist())
        return sum(duration for status, duration in rows if status == OK) / 3600


def index(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    names: str = "folders",
    metadata: str | os.PathLike | None = None,
    engine: str = "local",
    processes: int | None = None,
    full_hash: bool = False,
    timeout_s: float = 60.0,
    quiet: bool = False,
) -> IndexResult:
    """Examine every video and picture under `folder` and write the recordings table to `out`.

    Hidden files and folders are passed over, symbolic links are followed (each folder once). Of files with the same
    content the first in sorted order of paths is `ok` and the others are `duplicate`, their reason naming the first:
    only one may be drawn from.

    Args:
        folder: where to look, recursively.
        out: Parquet file to write. An existing index there is brought up to date: unchanged files (path, size and
            time of change) keep what was found, unreadable ones are tried again. Who, when and where is filled in
            anew each time, from `names` and `metadata` as given now.
        names: convention that the files' names follow (`headcam.video.provenance.NAMES`).
        metadata: CSV with what the names do not tell (`headcam.video.provenance.Provenance`), or None.
        engine: what runs the worker processes (`headcam.video.workers.ENGINES`).
        processes: worker processes; None for one a processor. The output does not depend on it.
        full_hash: also hash all bytes of each file (column `hash`).
        timeout_s: seconds that one file may take; one more is granted for every 10 MB.
        quiet: show no progress.
    Raises:
        InputError: `folder` is no folder, or holds no video or picture; `names` or `metadata` cannot be used.
        StorageError: `out` cannot be written.
    """
    out = Path(out)
    paths, ignored = media_files(folder)
    if out.is_dir():
        raise InputError(f"--out {out} is a folder", "give the name of a file, such as recordings.parquet")
    above = next(p for p in out.absolute().parents if p.exists())
    if not above.is_dir():
        raise InputError(f"--out {out} would lie in {above}, which is no folder", "choose another place")
    if not timeout_s > 0:
        raise InputError(f"timeout_s is {timeout_s}", "use a number of seconds above 0")
    provenance = Provenance(paths, Path(folder), names, metadata)

    keys = [_key(path) for path in paths]
    with _Journal(out, full_hash) as journal:
        rows = {key: row for key, row in {**_rows_of(out, full_hash), **journal.rows}.items() if key in set(keys)}
        todo = [(key[0], key[1], full_hash) for key in keys if key not in rows]
        key_of = {key[0]: key for key in keys}
        with Progress("indexing", total=len(todo), unit="files", quiet=quiet) as progress:
            for (path, size, _), row in run_tasks(
                _examine,
                todo,
                _useful(processes, len(todo)),
                lambda task, _: timeout_s + task[1] / _BYTES_PER_SECOND,
                engine=engine,
            ):
                if isinstance(row, Lost):
                    row = _unreadable(path, size, row.reason)
                rows[key_of[path]] = row
                journal.append(key_of[path], row)
                progress.advance(current=Path(path).name)
        facts, matches = provenance.facts([rows[key]["recording"] for key in keys])
        table = recordings_table(_mark_duplicates([rows[key] | known for key, known in zip(keys, facts)]))
        write_recordings(table, out, {_MODIFIED: json.dumps([key[2] for key in keys])})
        journal.finish()
    write_companion(table, out)
    return IndexResult(table, ignored, matches)


def media_files(folder: str | os.PathLike) -> tuple[list[str], int]:
    """Paths of the videos and pictures under `folder`, in sorted order, and how many other files there are.

    Raises:
        InputError: `folder` is no folder, or holds no video or picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}", "give the folder that holds your videos")
    paths, ignored = [], 0
    for path in _walk(folder.resolve()):
        if is_media(path):
            paths.append(path)
        else:
            ignored += 1
    if not paths:
        others = f" among its {ignored} files" if ignored else ""
        raise InputError(f"{folder} holds no video or picture{others}", "give the folder that holds your videos")
    return paths, ignored


def _useful(processes: int | None, tasks: int) -> int | None:
    return processes if processes is None else max(1, min(processes, tasks))


def _walk(folder: Path) -> Iterator[str]:
    """Paths of all entries that are files or are named like media, in sorted order; hidden ones are passed over."""
    seen = set()

    def walk(folder: str) -> Iterator[str]:
        try:
            identity = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            return
        if (identity.st_dev, identity.st_ino) in seen:
            return
        seen.add((identity.st_dev, identity.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield entry.path
                continue
            if is_media(entry.path):
                yield entry.path
            yield from walk(entry.path)

    return walk(os.fspath(folder))


def _key(path: str) -> tuple[str, int, int]:
    """(path, bytes, time of change in ns): equal as long as the file is unchanged."""
    try:
        facts = os.stat(path)
    except OSError:
        return path, 0, 0
    return path, 0 if stat.S_ISDIR(facts.st_mode) else facts.st_size, facts.st_mtime_ns


def _examine(task: tuple[str, int, bool], beat: Callable[[Any], None]) -> dict[str, Any]:
    """The row of one file. Runs in a worker process."""
    path, size, full_hash = task
    recording = ""
    try:
        path.encode()
    except UnicodeEncodeError:
        return _unreadable(path, size, "its name is not valid UTF-8: rename it")
    try:
        if os.path.isdir(path):
            return _unreadable(path, size, "is a folder")
        recording = recording_id(path)
        if not size:
            return _unreadable(path, size, "is empty (0 bytes)", recording)
        facts = asdict(read_metadata(path))
        content = sha256_file(path) if full_hash else None
    except (DecodeError, OSError) as error:
        reason = error.problem if isinstance(error, DecodeError) else one_line(error)
        return _unreadable(path, size, reason.removeprefix(path).lstrip(": "), recording)
    except Exception as error:  # a library's own mistake on a broken file must not cost the run either
        return _unreadable(path, size, f"{type(error).__name__}: {one_line(error)}", recording)
    return {**facts, "recording": recording, "path": path, "bytes": size, "hash": content, "status": OK, "reason": ""}


def _unreadable(path: str, size: int, reason: str, recording: str = "") -> dict[str, Any]:
    shown = os.fsencode(path).decode("utf-8", "replace")
    return {"recording": recording, "path": shown, "bytes": size, "status": UNREADABLE, "reason": reason}


def _mark_duplicates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first: dict[str, str] = {}
    marked = []
    for row in rows:
        row = dict(row)
        if row["status"] in (OK, DUPLICATE):
            original = first.setdefault(row["recording"], row["path"])
            same = original == row["path"]
            row |= (
                {"status": OK, "reason": ""} if same else {"status": DUPLICATE, "reason": f"same content as {original}"}
            )
        marked.append(row)
    return marked


def _rows_of(out: Path, full_hash: bool) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Rows of a finished index by key, as far as they hold what is asked for now."""
    if not out.exists():
        return {}
    table = read_recordings(out)  # raises where `out` is something else, which must not be overwritten
    modified = json.loads((pq.read_schema(out).metadata or {}).get(_MODIFIED.encode(), b"[]"))
    rows = table.to_pylist()
    if len(modified) != len(rows):
        return {}
    return {
        (row["path"], row["bytes"], when): row
        for row, when in zip(rows, modified)
        if row["status"] != UNREADABLE and bool(row["hash"]) == full_hash
    }


class _Journal:
    """Answers so far, one JSON line each, beside the output; a last line that was torn by a kill is ignored."""

    def __init__(self, out: Path, full_hash: bool):
        self._path = out.with_name(f".{out.name}.journal")
        self._header = json.dumps({"headcam.journal": VERSION, "full_hash": full_hash})
        self.rows: dict[tuple[str, int, int], dict[str, Any]] = {}

    def __enter__(self) -> "_Journal":
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text("utf-8").splitlines() if self._path.exists() else []
            if lines[:1] != [self._header]:
                lines = []
            for line in lines[1:]:
                try:
                    key, row = json.loads(line)
                except ValueError:
                    continue
                self.rows[tuple(key)] = row
            self._file = open(self._path, "a" if lines else "w", encoding="utf-8")
            self._file.write("\n" if lines else self._header + "\n")
        return self

    def append(self, key: tuple[str, int, int], row: dict[str, Any]) -> None:
        with storage_errors(self._path):
            self._file.write(json.dumps([key, row]) + "\n")
            self._file.flush()

    def finish(self) -> None:
        self._path.unlink()

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if error[0] is not None and not self.rows and self._path.exists() and self._path.stat().st_size < 200:
            self._path.unlink()  # nothing was examined: leave nothing behind
