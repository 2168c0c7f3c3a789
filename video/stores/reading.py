"""Reading a finished store, of frames or of clips: its table, the facts of its recordings, and its shards by offset.

A store is a folder of shards with a table beside them that says where each sample lies (`shards.py` makes it); `Kind`
says what the two kinds of store are called on the disk.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headcam.errors import InputError
from headcam.video.recordings import check_contract, read_recordings

FACTS = "recordings.parquet"  # rows of the index that the store was made from
UNFINISHED = ".store.json"  # what an unfinished store is being made of


@dataclass(frozen=True)
class Kind:
    """What tells the stores apart on the disk.

    Attributes:
        contract, version, older: name and version of the table, and the older versions that can still be read.
        prefix: of the shards' names and the table's.
        schema: of the table; has `recording` first, and `seconds`, `shard`.
        unit: what a cell is called in progress and errors, in the plural.
        per_shard: fewest and most cells of a shard (but for the last one).
    """

    contract: str
    version: int
    older: tuple[int, ...]
    prefix: str
    schema: pa.Schema
    unit: str
    per_shard: tuple[int, int]

    @property
    def table(self) -> str:
        """Name of the table."""
        return f"{self.prefix}.parquet"

    def shard_name(self, number: int) -> str:
        """Name of a shard."""
        return f"{self.prefix}-{number:06d}.tar"


def open_table(kind: Kind, folder: str | os.PathLike, columns: Iterable[str] | None = None) -> pa.Table:
    """The table of a finished store, or some of its columns; `InputError` where there is none."""
    path = Path(folder) / kind.table
    try:
        table = pq.read_table(path, columns=columns and list(columns), partitioning=None).combine_chunks()
    except FileNotFoundError as error:
        unfinished = (Path(folder) / UNFINISHED).exists()
        state = "that is finished" if unfinished else f"({kind.table} is missing)"
        raise InputError(
            f"{folder} holds no {kind.contract} {state}",
            "run headcam store" + (" with the same words again" if unfinished else " first"),
        ) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}", "make the store again") from error
    check_contract(path, table.schema.metadata, kind.contract, kind.version, "headcam store", older=kind.older)
    return table


def read_facts(folder: Path, ids: Sequence[str]) -> pa.Table | None:
    """Rows of the index for the recordings `ids` of a store (key frames left empty); None for a store without them."""
    if not (folder / FACTS).exists():
        return None
    facts = read_recordings(folder / FACTS)
    if facts["recording"].to_pylist() != list(ids):
        raise InputError(f"{folder / FACTS} belongs to another store", "copy the whole folder of the store again")
    return facts


class ShardFiles:
    """The shards of a finished store, read by offset.

    Can be pickled and forked: every process opens the shards for itself, when it first reads from one.
    """

    def __init__(self, kind: Kind, folder: Path):
        self._kind, self._folder = kind, folder
        self._files: dict[int, int] = {}
        self._process = os.getpid()

    def path(self, shard: int) -> Path:
        """The file of shard number `shard`."""
        return self._folder / self._kind.shard_name(shard)

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` of a shard; `InputError` where the shard is missing or too short."""
        if self._process != os.getpid():  # after a fork; the handles of the parent stay the parent's
            self._files, self._process = {}, os.getpid()
        if shard not in self._files:
            try:
                self._files[shard] = os.open(self.path(shard), os.O_RDONLY)
            except FileNotFoundError as error:
                raise InputError(
                    f"{self.path(shard)} is missing", "copy the whole folder of the store, or make it again"
                ) from error
        data = os.pread(self._files[shard], length, offset)
        if len(data) != length:
            raise InputError(f"{self.path(shard)} is cut short", "copy it again, or make the store again")
        return data

    def close(self) -> None:
        """Close the shards that this process opened; they open again when read from."""
        if self._process == os.getpid():
            for handle in self._files.values():
                os.close(handle)
        self._files = {}

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}
