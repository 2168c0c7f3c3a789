"""The index as loaders open it: memory-mapped, by position, without a Python object a recording.

`recordings.parquet` is for exchange: reading it takes seconds and half a gigabyte for 100,000 recordings, in every
worker. So beside it lies `.recordings.parquet.arrow`, the same table uncompressed as Arrow IPC, which a process maps
in a millisecond and shares with all others on the machine. It is made by `headcam index`, or on first use where it is
missing or older than the Parquet file (size and time of change are written in it); where the folder is not writable,
it goes to the system's temporary folder. It can be deleted at any time.
"""

import hashlib
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headcam.errors import InputError, StorageError
from headcam.files import atomic_file
from headcam.video.recordings import OK, SCHEMA, VERSION, read_recordings
from headcam.video.sampling.units import RecordingFacts

_IDENTITY = b"headcam.companion_of"
_EPOCH_ORDINAL = 719163  # date(1970, 1, 1).toordinal(), where Arrow's dates start


class RecordingIndex:
    """The rows of an index, mapped into memory. Pickles as its path; every process maps the file for itself.

    Args:
        recordings_file: Parquet file of `headcam index`.
    Attributes:
        table: the recordings table; its columns lie in the file until they are looked at.
    Raises:
        InputError: there is no such index, or it is of another version.
    """

    def __init__(self, recordings_file: str | os.PathLike):
        self.file = Path(recordings_file).absolute()
        self._identity = _identity(self.file)
        found = _companion(self.file, self._identity)
        if found is None:
            write_companion(read_recordings(self.file), self.file)
            found = _companion(self.file, self._identity)
        if found is None:
            raise InputError(f"{self.file} was written anew while it was opened", "start the command again")
        self._handle, mapped = found
        self.table: pa.Table = pa.ipc.open_file(mapped).read_all()
        self._first_keyframe, self._keyframes_at = _find_keyframes(self.table, mapped)

    @classmethod
    def open(cls, recordings_file: str | os.PathLike) -> "RecordingIndex":
        """Map the index; see the class."""
        return cls(recordings_file)

    def __len__(self) -> int:
        return len(self.table)

    def usable(self) -> np.ndarray:
        """Rows that pictures may be drawn from (status `ok`), in the order of their ids: int64."""
        rows = np.flatnonzero(pc.equal(self.table["status"], OK).to_numpy())
        return rows[np.argsort(self.table["recording"].take(rows).to_numpy().astype(str), kind="stable")]

    def path(self, row: int) -> str:
        """Where the recording lies."""
        return self.table["path"][int(row)].as_py()

    def keyframes(self, row: int) -> np.ndarray:
        """Presentation time stamps where decoding can start: int64, ascending; empty for a still picture."""
        # Read, not mapped: looked up at random, mapped key frames would pull the whole file into a worker's memory.
        start, end = self._first_keyframe[int(row)], self._first_keyframe[int(row) + 1]
        data = os.pread(self._handle, 8 * int(end - start), self._keyframes_at + 8 * int(start))
        return np.frombuffer(data, np.int64)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "_identity": self._identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["file"])
        if self._identity != state["_identity"]:
            raise InputError(f"{self.file} was written anew while it was in use", "start the command again")


def write_companion(table: pa.Table, recordings_file: str | os.PathLike) -> Path:
    """Write the memory-mapped companion of an index, whole or not at all, and return where it is.

    Args:
        table: what `recordings_file` holds (columns of `headcam.video.recordings.SCHEMA`).
        recordings_file: the Parquet file, already written.
    """
    file = Path(recordings_file).absolute()
    # Key frames of all recordings together may be more than 32-bit offsets reach.
    table = table.select(SCHEMA.names).cast(SCHEMA)
    k = SCHEMA.get_field_index("keyframes")
    table = table.set_column(k, "keyframes", table["keyframes"].cast(pa.large_list(pa.int64()))).combine_chunks()
    table = table.replace_schema_metadata({_IDENTITY: _identity(file)})
    for path in _places(file):
        own = path.with_name(f"{path.name}.{os.getpid()}")  # several processes of a run may find it missing at once
        try:
            with atomic_file(own) as out, pa.ipc.new_file(out, table.schema) as writer:
                writer.write_table(table)
            os.replace(own, path)
            return path
        except StorageError as error:
            trouble = error
    raise trouble


def recording_facts(table: pa.Table) -> RecordingFacts:
    """What rows of a recordings table say of source, age and date (null: unknown), as arrays."""
    source = pc.fill_null(table["source"], "").combine_chunks().dictionary_encode()
    names = source.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    code = np.empty(len(names), np.int32)
    code[order] = np.arange(len(names))
    days = pc.cast(pc.cast(table["recorded_on"], pa.int32()), pa.float64())
    return RecordingFacts(
        ids=table["recording"].to_numpy().astype(str),
        source=code[source.indices.to_numpy()],
        source_names=tuple(names[k] for k in order),
        age_days=_with_nan(table["age_days"]),
        recorded_on=_with_nan(days) + _EPOCH_ORDINAL,
    )


def _with_nan(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(column, np.nan).to_numpy().astype(np.float64)


def _identity(file: Path) -> bytes:
    """Names the content of a Parquet file by its size and time of change, and how the companion is laid out."""
    try:
        facts = file.stat()
    except OSError as error:
        raise InputError(f"{file} does not exist", "make it with: headcam index DIR --out FILE.parquet") from error
    return f"1 {VERSION} {facts.st_size} {facts.st_mtime_ns}".encode()


def _places(file: Path) -> tuple[Path, Path]:
    """Where a companion may lie: beside the index, else in the system's temporary folder."""
    name = hashlib.sha256(f"{file.resolve()} {os.getuid() if hasattr(os, 'getuid') else ''}".encode()).hexdigest()[:16]
    return file.with_name(f".{file.name}.arrow"), Path(tempfile.gettempdir()) / f"headcam-{name}.arrow"


def _find_keyframes(table: pa.Table, mapped: pa.Buffer) -> tuple[np.ndarray, int]:
    """Where the key frames of each row start, counted in key frames; and in the file, in bytes, all of them."""
    if not len(table):
        return np.zeros(1, np.int64), 0
    _, offsets, _, values = table["keyframes"].chunk(0).buffers()
    return np.frombuffer(offsets, np.int64), 0 if values is None else values.address - mapped.address


def _companion(file: Path, identity: bytes) -> tuple[int, pa.Buffer] | None:
    """The companion of `file` as it is now: a handle of it, and all of it mapped; None where there is none."""
    for path in _places(file):
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            mapped = pa.py_buffer(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
            metadata = pa.ipc.open_file(mapped).schema.metadata or {}
        except (OSError, ValueError):  # of no length; or no Arrow file (pa.ArrowInvalid)
            metadata = {}
        if metadata.get(_IDENTITY) == identity:
            return handle, mapped
        os.close(handle)
    return None
