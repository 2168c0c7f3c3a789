"""`headcam scan`: which seconds of an index can be trained on, found out by decoding them.

 recordings.parquet ──look (frames, verdict, read_back)──▶ findings ──find_duplicates (duplicates)──┐
                                                              │                                    │
                                                              ▼                                    ▼
                        recordings.scan.html ◀──write_report (report)──────── recordings.quarantine.parquet

What `scan` verifies, the default reader delivers: its decoder is at least as strict as the reader's, and where it
finds any damage, the reader itself is asked for the rest of that recording.

A file that makes a decoder spin or crash costs one timeout: what was decoded until then is looked at once more and
kept, the rest is `undecodable`. A process that was killed from outside (out of memory) says nothing of its file, which
is out until the next scan looks again. Findings are appended to `recordings.quarantine.findings.jsonl` as they come and
stay there: the same command, killed at any moment and started again, decodes only what is left, and after an index has
grown only what is new. What comes out does not depend on the number of processes.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headcam.errors import InputError
from headcam.files import storage_errors
from headcam.progress import Progress
from headcam.video.quarantine import (
    REASONS,
    SCHEMA,
    Quarantine,
    quarantine_path,
    read_quarantine,
    write_quarantine,
)
from headcam.video.recordings import read_recordings, recordings_hash, usable
from headcam.video.scanning.duplicates import find_duplicates
from headcam.video.scanning.frames import Finding, Settings, Task
from headcam.video.scanning.verdict import look, unanswered
from headcam.video.stretches import Stretch, merged, without
from headcam.video.workers import Killed, Lost, run_tasks

_VERSION = 2  # of what `look` measures: findings of another version are made anew


@dataclass(frozen=True)
class ScanResult:
    """What a scan found.

    Attributes:
        quarantine: the table as written.
        findings: recording -> what was seen in it, in the order of ids.
        claimed_s: seconds that the files say they hold.
        looked_at: recordings that this call decoded; 0 where all was known.
    """

    quarantine: Quarantine
    findings: Mapping[str, Finding]
    claimed_s: float
    looked_at: int

    @property
    def verified_s(self) -> float:
        """Seconds of which nothing bad is known."""
        return self.claimed_s - sum(self.seconds.values())

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that are out, by reason; none is counted twice."""
        return {reason: sum(r["end_s"] - r["start_s"] for r in rows) for reason, rows in self.by_reason.items()}

    @property
    def by_reason(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of the table by reason, in the order of `REASONS`; reasons without rows are absent."""
        rows = self.quarantine.table.to_pylist()
        grouped = {reason: [row for row in rows if row["reason"] == reason] for reason in REASONS}
        return {reason: rows for reason, rows in grouped.items() if rows}

    @property
    def lost(self) -> int:
        """Recordings whose decoder crashed, did not answer, or was killed from outside."""
        return sum(finding.lost for finding in self.findings.values())


def scan(
    recordings_file: str | os.PathLike,
    out: str | os.PathLike | None = None,
    report: str | os.PathLike | None = None,
    *,
    settings: Settings = Settings(),
    frames: bool = True,
    processes: int | None = None,
    engine: str = "local",
    timeout_s: float = 60.0,
    quiet: bool = False,
) -> ScanResult:
    """Decode the usable recordings of an index and write what must not be trained on, and a page about it.

    Args:
        recordings_file: Parquet file of the index.
        out: quarantine table to write; None for the one beside the index, which training then uses.
        report: HTML page to write; None for `recordings.scan.html` beside the index.
        settings: what counts as bad.
        frames: whether the page may show pictures.
        processes: worker processes; None for one a processor. The output does not depend on it.
        engine: where they run (see `headcam.video.workers.run_tasks`).
        timeout_s: seconds that a decoder may stay silent.
        quiet: show no progress.
    Raises:
        InputError: the index or an earlier table cannot be read, a recording is gone or was changed since it was
            indexed, or no recording is usable.
        StorageError: `out` or `report` cannot be written.
    """
    recordings_file = Path(recordings_file)
    out = quarantine_path(recordings_file) if out is None else Path(out)
    report = recordings_file.with_name(f"{recordings_file.stem}.scan.html") if report is None else Path(report)
    if not timeout_s > 0:
        raise InputError(f"timeout_s is {timeout_s}", "use a number of seconds above 0")
    if out.resolve() == recordings_file.resolve():
        raise InputError(f"--out {out} is the index itself", "give another name, or leave --out away")
    recordings = read_recordings(recordings_file)
    rows = usable(recordings).to_pylist()
    if not rows:
        raise InputError(f"{recordings_file} has no usable recording", "look at the columns status and reason")
    if out.exists():
        read_quarantine(out)  # raises where `out` is something else, which must not be overwritten
    tasks = {row["recording"]: _task(row, settings) for row in rows}

    with _Journal(out, settings) as journal:
        findings = journal.findings(timeout_s)
        todo = [task for recording, task in tasks.items() if recording not in findings]
        _check_unchanged(todo)
        done = len(tasks) - len(todo)
        with Progress("scanning", total=len(tasks), unit="recordings", quiet=quiet, done=done) as progress:
            for task, finding, is_final in _look_at_all(todo, processes, engine, timeout_s):
                findings[task.recording] = finding
                if is_final:
                    journal.append(task.recording, finding, timeout_s)
                progress.advance(current=Path(task.path).name)
    findings = {recording: findings[recording] for recording in tasks}
    said, index_hash = asdict(settings) | {"timeout_s": timeout_s}, recordings_hash(recordings)
    before = read_quarantine(out) if out.exists() and not todo else None
    if before is None or (before.recordings_hash, before.settings) != (index_hash, said):
        write_quarantine(_rows(findings, tasks, settings), out, index_hash, said)
    result = ScanResult(read_quarantine(out), findings, sum(f.claimed_s for f in findings.values()), len(todo))

    from headcam.video.scanning.report import write_report  # matplotlib takes a second

    write_report(report, result, recordings, {"index": recordings_file, "quarantine table": out}, frames, timeout_s)
    return result


def _task(row: Mapping[str, Any], settings: Settings) -> Task:
    names = ("recording", "path", "bytes", "start_s", "duration_s", "rotation")
    keyframes = None if row["keyframes"] is None else tuple(row["keyframes"])
    return Task(*(row[name] for name in names), keyframes, settings)


def _check_unchanged(tasks: list[Task]) -> None:
    """A disk that is not mounted must not put hours into quarantine."""
    for task in tasks:
        try:
            size = os.path.getsize(task.path)
        except OSError as error:
            raise InputError(
                f"{task.path} cannot be read: {os.strerror(error.errno)}",
                "bring it back (is the disk mounted?), or run headcam index again",
            ) from error
        if size != task.bytes:
            raise InputError(
                f"{task.path} has {size} bytes, the index knew {task.bytes}", "run headcam index again, then scan"
            )


def _look_at_all(
    tasks: list[Task], processes: int | None, engine: str, timeout_s: float
) -> Iterator[tuple[Task, Finding, bool]]:
    """Each task with its finding, in the order in which they come, and whether that is the last word on the file.

    Where the decoder got lost it tries once more, up to the place; what was killed from outside waits for another run.
    """
    again: list[Task] = []

    def run(some: list[Task]) -> Iterator[tuple[Task, Finding | Lost]]:
        useful = None if processes is None else max(1, min(processes, len(some)))
        return run_tasks(look, some, useful, lambda task, at: timeout_s, engine=engine)

    for task, finding in run(tasks):
        if isinstance(finding, Killed):
            yield task, unanswered(task, finding.reason), False
        elif isinstance(finding, Lost):
            again.append(replace(task, stop_after=finding.at or 0, lost=finding.reason))
        else:
            yield task, finding, True
    for task, finding in run(again):
        if isinstance(finding, Lost):
            yield task, unanswered(task, finding.reason), not isinstance(finding, Killed)
        else:
            yield task, finding, True


def _rows(findings: Mapping[str, Finding], tasks: Mapping[str, Task], settings: Settings) -> Iterator[dict[str, Any]]:
    """Rows of the quarantine table: what was found in each recording, and what it shares with another."""
    hashes = {recording: finding.hash_array() for recording, finding in findings.items() if finding.hashes}
    shared = find_duplicates(hashes, {r: task.duration_s for r, task in tasks.items()}, settings)
    for recording, finding in findings.items():
        bad: tuple[Stretch, ...] = merged((row[0], row[1]) for row in finding.stretches)
        found = list(finding.stretches)
        for start, end, *rest in shared.get(recording, ()):
            found += [[*left, *rest] for left in without([(start, end)], bad)]
        for values in without_slivers(found, tasks[recording].duration_s, finding.frame_s):
            yield dict(zip(SCHEMA.names, (recording, *values)))


def without_slivers(found: list[list[Any]], duration_s: float, frame_s: float) -> list[list[Any]]:
    """The rows [start_s, end_s, ...] of a recording, stretched over verified time of less than half a frame beside
    them: nobody could use it."""
    rows = [list(row) for row in found]
    for start, end in without([(0.0, duration_s)], [(row[0], row[1]) for row in rows]):
        if end - start < frame_s / 2:
            for row in rows:
                if row[1] == start:
                    row[1] = end
                    break
            else:
                for row in rows:
                    if row[0] == end:
                        row[0] = start
    return rows


class _Journal:
    """Findings so far, one JSON line each, beside the output; a last line that was torn by a kill is ignored.

    Findings that were measured by other thresholds are thrown away; how duplicates are told does not enter them.
    """

    def __init__(self, out: Path, settings: Settings):
        self._path = out.with_name(f"{out.stem}.findings.jsonl")
        measured = {name: value for name, value in asdict(settings).items() if not name.startswith("duplicate")}
        self._header = json.dumps({"headcam.findings": _VERSION, "settings": measured})
        self._rows: dict[str, tuple[Finding, float]] = {}

    def __enter__(self) -> "_Journal":
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text("utf-8").splitlines() if self._path.exists() else []
            if lines[:1] != [self._header]:
                lines = []
            for line in lines[1:]:
                try:
                    recording, finding, timeout_s = json.loads(line)
                except ValueError:
                    continue
                self._rows[recording] = Finding(**finding), timeout_s
            self._file = open(self._path, "a" if lines else "w", encoding="utf-8")
            self._file.write("\n" if lines else self._header + "\n")
        return self

    def findings(self, timeout_s: float) -> dict[str, Finding]:
        """What is known; a recording whose decoder did not answer is tried again with another timeout."""
        return {
            r: finding for r, (finding, waited_s) in self._rows.items() if not finding.lost or waited_s == timeout_s
        }

    def append(self, recording: str, finding: Finding, timeout_s: float) -> None:
        with storage_errors(self._path):
            self._file.write(json.dumps([recording, asdict(finding), timeout_s]) + "\n")
            self._file.flush()

    def __exit__(self, *error: object) -> None:
        self._file.close()
