"""The scores table: one row a number, with all that says what the number is of.

A CSV file with the columns of `COLUMNS`. The first, `contract`, holds the version of this layout in every row, so that
any spreadsheet or `pandas.read_csv` reads the file without options. Accuracies are in percent (0 to 100).
`weights_hash` is empty where no weights are involved (raw pixels, chance); `low` and `high` equal `value` where it is
exact.
"""

import csv
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from headcam.errors import InputError
from headcam.files import atomic_file

CONTRACT = "scores/1"


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        model: name of what was measured.
        weights_hash: SHA-256 that identifies its weights, or empty.
        data: name and content hash of the labelled set.
        protocol, protocol_hash: label and hash of a `headcam.evaluation.protocols` value.
        metric: such as `knn/k20_T0.07/top1`.
        value, low, high: the number and the ends of its 95 % interval; accuracies in percent.
        n: number of test images.
        seed: of the probe (order of pictures, random initialisation, resampling).
    """

    model: str
    weights_hash: str
    data: str
    protocol: str
    protocol_hash: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    seed: int


COLUMNS = ("contract", *(f.name for f in fields(Score)))


def write_scores(path: str | os.PathLike, scores: Iterable[Score]) -> None:
    """Write a scores table, whole or not at all; floats so that they read back exactly."""
    with atomic_file(path, "w") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({"contract": CONTRACT, **asdict(score)} for score in scores)


def read_scores(path: str | os.PathLike) -> list[Score]:
    """Read a scores table.

    Raises:
        InputError: no such file, another contract version, missing columns, or a value that is no number.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"scores table {path} does not exist", "give the scores.csv that `headcam probe` wrote")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        found = reader.fieldnames or []
        missing = [column for column in COLUMNS if column not in found]
        if missing:
            raise InputError(
                f"{path} is no scores table: it has no column {missing[0]}", "give a scores.csv of headcam"
            )
        return [_score(path, number, row) for number, row in enumerate(reader, start=2)]


def _score(path: Path, line: int, row: dict[str, str]) -> Score:
    if row["contract"] != CONTRACT:
        raise InputError(
            f"{path} line {line} follows contract {row['contract']!r}, and this version reads {CONTRACT!r}",
            "write the table again with this version of headcam, or read it with the version that wrote it",
        )
    try:
        return Score(**{f.name: f.type(row[f.name]) for f in fields(Score)})
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} line {line} cannot be read: {error}", "restore the file or write it again") from error
