"""`online_probe.csv`: what an online probe has measured so far, one row a number.

The table is a learning curve against video: accuracy at so many optimizer steps, samples, hours seen (with repeats) and
hours lived (unique). It is written whole or not at all, all numbers of a measurement at once. A run that was killed may
have measured behind its last checkpoint; `resume` takes that out, so that the file reads as if it had never stopped.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from headcam.errors import InputError
from headcam.files import atomic_file

CONTRACT = "online/1"


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        step: optimizer steps taken; 0 is before training.
        samples: that all processes together have drawn.
        hours_seen: hours of video that these stand for, repeats included; hours_lived: unique ones.
        protocol, protocol_hash: label and hash of a `headcam.evaluation.protocols` value.
        data: name and content hash of the labelled pictures that were used.
        metric: such as `knn/k20_T0.07/top1`.
        value, low, high: in percent, with the ends of the 95 % interval over test pictures.
        n: number of test pictures.
        chance: what a guess that gives every class the same probability gets, in percent.
    """

    step: int
    samples: int
    hours_seen: float
    hours_lived: float
    protocol: str
    protocol_hash: str
    data: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    chance: float


COLUMNS = ("contract", *(f.name for f in fields(Row)))


class Record:
    """The table of a run, in memory and on the disk.

    Args:
        path: `online_probe.csv`; need not be there yet.

    Attributes:
        rows: all numbers, in the order of steps.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.rows: list[Row] = read_online(self.path) if self.path.is_file() else []

    @property
    def step(self) -> int | None:
        """That of the newest measurement."""
        return self.rows[-1].step if self.rows else None

    def resume(self, step: int, data: str, protocol_hashes: Sequence[str]) -> None:
        """Keep the rows up to `step`, and go on behind them.

        Raises:
            InputError: the rows are of other pictures or protocols than those that the run goes on with.
        """
        kept = [row for row in self.rows if row.step <= step]
        for row in kept:
            if row.data != data or row.protocol_hash not in protocol_hashes:
                what = f"pictures ({row.data}, now {data})" if row.data != data else f"settings of {row.protocol}"
                raise InputError(
                    f"{self.path} was measured with other {what}: one curve cannot hold both",
                    "restore the labelled folder and the protocols, or move that file away",
                )
        if len(kept) < len(self.rows):
            self.rows = kept
            self._write()

    def add(self, rows: Sequence[Row]) -> None:
        """Put the numbers of one measurement behind the others."""
        self.rows = [*self.rows, *rows]
        self._write()

    def _write(self) -> None:
        with atomic_file(self.path, "w") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({"contract": CONTRACT, **asdict(row)} for row in self.rows)


def read_online(path: str | os.PathLike) -> list[Row]:
    """Read an `online_probe.csv`.

    Raises:
        InputError: no such file, another contract version, missing columns, or a value that is no number.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist", "give the online_probe.csv of a run")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
        if missing:
            raise InputError(f"{path} has no column {missing[0]}", "give the online_probe.csv of a run")
        return [_row(path, number, row) for number, row in enumerate(reader, start=2)]


def _row(path: Path, line: int, row: dict[str, str]) -> Row:
    if row["contract"] != CONTRACT:
        raise InputError(
            f"{path} line {line} follows contract {row['contract']!r}, and this version reads {CONTRACT!r}",
            "go on with the version of headcam that wrote it, or move the file away",
        )
    try:
        return Row(**{f.name: f.type(row[f.name]) for f in fields(Row)})
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} line {line} cannot be read: {error}", "restore the file, or move it away") from error
