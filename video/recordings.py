"""The `recordings` table: one row a recording, the contract between the index and everything that reads video.

`index` writes it, `store`, `subset` and the data sets read it, and only this module knows how it lies on the disk: a
Parquet file with typed columns whose metadata carries the contract's name and version. A table is content: its hash
covers what was recorded and never where the files lie, so moved videos keep their hash.
"""

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headcam.errors import InputError
from headcam.files import atomic_file

CONTRACT = "recordings"
VERSION = 2
_OLDER = (1,)  # versions that are still read: 1 had neither session nor camera

OK = "ok"
UNREADABLE = "unreadable"
DUPLICATE = "duplicate"

SCHEMA = pa.schema(
    [
        ("recording", pa.string()),  # id of the content (headcam.files.recording_id); empty where it cannot be read
        ("path", pa.string()),  # absolute
        ("bytes", pa.int64()),
        ("codec", pa.string()),  # libavcodec's name: h264, hevc, vp9, ...; jpeg, png, ... for a still picture
        ("width", pa.int32()),  # pixels as stored, before the rotation
        ("height", pa.int32()),
        ("rotation", pa.int32()),  # degrees clockwise that the stored picture is turned by to be upright
        ("fps_num", pa.int64()),
        ("fps_den", pa.int64()),
        ("start_s", pa.float64()),  # first presentation time on the file's own clock; pts x time base
        ("duration_s", pa.float64()),  # 0 for a still picture
        ("frames", pa.int64()),  # claimed by the container, else packets counted
        ("keyframes", pa.list_(pa.int64())),  # presentation time stamps where decoding can start, ascending
        ("time_base_num", pa.int64()),
        ("time_base_den", pa.int64()),
        ("hash", pa.string()),  # SHA-256 of all bytes, where asked for
        ("source", pa.string()),  # this and the next five: headcam.video.provenance; null where unknown
        ("wearer", pa.string()),
        ("age_days", pa.float64()),  # of the wearer
        ("recorded_on", pa.date32()),
        ("session", pa.string()),  # recordings that belong together, such as those of one day of one child
        ("camera", pa.string()),
        ("status", pa.string()),  # ok, unreadable, duplicate, quarantined
        ("reason", pa.string()),  # one line, empty where all is well
    ]
)


def recordings_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A recordings table from rows; a column that a row lacks is null there."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)


def write_recordings(table: pa.Table, path: str | os.PathLike, extra: Mapping[str, str] | None = None) -> None:
    """Write a recordings table to `path` (Parquet), whole or not at all.

    Args:
        table: columns of `SCHEMA`.
        path: file to write.
        extra: further text for the file's metadata, for the writer's own use.
    """
    metadata = {"headcam.contract": CONTRACT, "headcam.version": str(VERSION), **(extra or {})}
    table = table.select(SCHEMA.names).cast(SCHEMA).replace_schema_metadata(metadata)
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_recordings(path: str | os.PathLike) -> pa.Table:
    """The recordings table in a file that `headcam index` wrote.

    A table of version 1 is read with nulls in the columns that came later.

    Raises:
        InputError: there is none, or it is of a version that this headcam does not know.
    """
    try:
        table = pq.read_table(os.fspath(path), partitioning=None)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", "make it with: headcam index DIR --out FILE.parquet") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path} is not a Parquet file that can be read: {error}", "give the file that headcam index wrote"
        ) from error
    metadata = table.schema.metadata
    check_contract(path, metadata, CONTRACT, VERSION, "headcam index", older=_OLDER)
    for name in SCHEMA.names:
        if name not in table.schema.names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
    return table.select(SCHEMA.names).cast(SCHEMA).replace_schema_metadata(metadata)


def check_contract(
    path: str | os.PathLike,
    metadata: Mapping[bytes, bytes] | None,
    contract: str,
    version: int,
    maker: str,
    older: Collection[int] = (),
) -> None:
    """Raise `InputError` unless Parquet `metadata` names `contract` as the command `maker` writes it.

    Its version must be `version` or one of the `older` ones that the caller can still read.
    """
    found = (metadata or {}).get(b"headcam.contract", b"").decode()
    if found != contract:
        kind = f"holds {found!r}" if found else "was not written by headcam"
        raise InputError(f"{path} is no {contract} table: it {kind}", f"give a file that {maker} wrote")
    found_version = (metadata or {}).get(b"headcam.version", b"?").decode()
    if found_version not in {str(v) for v in (version, *older)}:
        raise InputError(
            f"{path} is a {contract} table of version {found_version}, this headcam reads version {version}",
            f"make it again with {maker}, or use the headcam that wrote it",
        )


def usable(table: pa.Table) -> pa.Table:
    """The rows that pictures may be drawn from (status `ok`), in the order of their ids."""
    return table.filter(pc.equal(table["status"], OK)).sort_by("recording")


def recordings_hash(table: pa.Table) -> str:
    """SHA-256 that names what was recorded: (recording, bytes, duration, status) of all rows, sorted.

    Paths do not enter: moved or renamed videos keep the hash, changed or added ones change it.
    """
    columns = (table[name].to_pylist() for name in ("recording", "bytes", "duration_s", "status"))
    digest = hashlib.sha256()
    for recording, size, duration, status in sorted((r or "", b or 0, d or 0.0, s) for r, b, d, s in zip(*columns)):
        digest.update(f"{recording} {size} {float(duration).hex()} {status}\n".encode())
    return digest.hexdigest()
