"""The `quarantine` table: seconds of recordings that nothing may be trained on, each stretch with its reason.

`headcam scan` writes it beside the index (`recordings.parquet` has `recordings.quarantine.parquet`), and whatever
draws from the index afterwards finds it there: verified seconds are what is left. A table that was made for another
index is refused, since its stretches would cut the wrong recordings.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headcam.errors import InputError
from headcam.files import atomic_file, sha256_json
from headcam.video.recordings import check_contract, recordings_hash, usable
from headcam.video.stretches import Stretch, without

CONTRACT = "quarantine"
VERSION = 1
REASONS = ("undecodable", "timestamps", "black", "frozen", "duplicate")

SCHEMA = pa.schema(
    [
        ("recording", pa.string()),
        ("start_s", pa.float64()),  # of the stretch [start_s, end_s), from the recording's start
        ("end_s", pa.float64()),  # equal to start_s for a still picture, which is then out as a whole
        ("reason", pa.string()),  # one of REASONS
        ("measure", pa.float64()),  # what was measured, in the reason's own unit (see headcam.video.scanning.scan)
        ("detail", pa.string()),  # one line: the decoder's words, or the recording that has the same footage
    ]
)


@dataclass(frozen=True)
class Quarantine:
    """A quarantine table as read: `table` (columns of `SCHEMA`), whose index it belongs to, and how it was made."""

    table: pa.Table
    recordings_hash: str
    settings: dict[str, Any]

    @property
    def hash(self) -> str:
        """SHA-256 of the stretches and of the index that they belong to."""
        rows = sorted(zip(*(self.table[name].to_pylist() for name in ("recording", "start_s", "end_s", "reason"))))
        return sha256_json([self.recordings_hash, rows])


def quarantine_path(index_file: str | os.PathLike) -> Path:
    """Where the quarantine table of an index lies: `recordings.parquet` has `recordings.quarantine.parquet`."""
    path = Path(index_file)
    return path.with_name(f"{path.stem}.quarantine.parquet")


def write_quarantine(
    rows: Iterable[Mapping[str, Any]], path: str | os.PathLike, recordings_hash: str, settings: Mapping[str, Any]
) -> None:
    """Write a quarantine table, whole or not at all; rows are sorted, so that equal findings give equal bytes."""
    order = sorted((dict(row) for row in rows), key=lambda r: (r["recording"], r["start_s"], r["end_s"], r["reason"]))
    metadata = {
        "headcam.contract": CONTRACT,
        "headcam.version": str(VERSION),
        "headcam.recordings_hash": recordings_hash,
        "headcam.settings": json.dumps(dict(settings), sort_keys=True),
    }
    table = pa.Table.from_pylist(order, schema=SCHEMA).replace_schema_metadata(metadata)
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_quarantine(path: str | os.PathLike) -> Quarantine:
    """Read a table that `headcam scan` wrote; `InputError` where it is none, or of another version."""
    try:
        table = pq.read_table(os.fspath(path), partitioning=None)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", "make it with: headcam scan recordings.parquet") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a Parquet file that can be read: {error}", "run headcam scan again") from error
    metadata = table.schema.metadata
    check_contract(path, metadata, CONTRACT, VERSION, "headcam scan")
    settings = json.loads(metadata[b"headcam.settings"])
    return Quarantine(table.cast(SCHEMA), metadata[b"headcam.recordings_hash"].decode(), settings)


def quarantine_of(
    index_file: str | os.PathLike, recordings: pa.Table, quarantine: str | os.PathLike | None = "auto"
) -> Quarantine | None:
    """The quarantine table to use with an index.

    Args:
        index_file: Parquet file of the index.
        recordings: the table in it.
        quarantine: `auto` for the one beside the index, if there is one; None or `none` for none; else a file.
    Returns:
        None where the index was not scanned, or no table is wanted.
    Raises:
        InputError: the table was made for another index, or cannot be read.
    """
    if quarantine is None or quarantine == "none":
        return None
    path = quarantine_path(index_file) if quarantine == "auto" else Path(quarantine)
    if quarantine == "auto" and not path.exists():
        return None
    found = read_quarantine(path)
    if found.recordings_hash != recordings_hash(recordings):
        raise InputError(
            f"{path} was made for another state of {index_file}: recordings came, went or changed since",
            f"run headcam scan {index_file} again",
        )
    return found


def verified_stretches(recordings: pa.Table, quarantine: Quarantine | None) -> dict[str, tuple[Stretch, ...]]:
    """What may be used of each usable recording (status `ok`), in the order of ids.

    A still picture, which lasts no time, is `((0.0, 0.0),)`. A recording of which nothing is left is absent.
    """
    holes: dict[str, list[Stretch]] = {}
    if quarantine is not None:
        columns = (quarantine.table[name].to_pylist() for name in ("recording", "start_s", "end_s"))
        for recording, start, end in zip(*columns):
            holes.setdefault(recording, []).append((start, end))
    out = {}
    table = usable(recordings)
    for recording, duration in zip(table["recording"].to_pylist(), table["duration_s"].to_pylist()):
        bad = holes.get(recording)
        if not duration:
            left: tuple[Stretch, ...] = () if bad else ((0.0, 0.0),)
        else:
            left = without([(0.0, duration)], bad) if bad else ((0.0, duration),)
        if left:
            out[recording] = left
    return out
