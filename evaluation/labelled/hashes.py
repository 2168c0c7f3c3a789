"""SHA-256 of every picture of a set, read once and remembered.

1.28 million pictures are 140 GB, so their hashes are kept in a Parquet file with what tells that a file is still the
same: its name below the root of the set, its size and the time it was last written, in nanoseconds (of a picture in
an archive: the archive's). A second reading asks the file system for those two numbers and reads no picture. The file
may serve several sets: rows belong to the root of their set.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headcam.errors import InputError
from headcam.evaluation.labelled.listing import Item
from headcam.files import atomic_file
from headcam.progress import Progress

CONTRACT = "picture-hashes/1"
_READERS = 8  # threads; they wait for the disk, and hashlib releases the interpreter's lock
_CHUNK = 256  # pictures that a thread takes at a time
_SECONDS_BETWEEN_SAVES = 60.0
_BATCH = 1 << 15  # rows of the file that are in memory at a time
_SCHEMA = pa.schema(
    [
        ("root", pa.string()),
        ("name", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("sha256", pa.binary(32)),
    ]
)


def hash_pictures(
    root: Path, items: Sequence[Item], remember: str | os.PathLike | None = None, quiet: bool = True
) -> tuple[list[str], dict[int, str]]:
    """SHA-256 of the bytes of n pictures.

    Args:
        root: of the set.
        items: where the pictures lie; their names differ.
        remember: Parquet file of hashes of earlier calls, made where missing; it is written every minute, so that a
            call that was killed goes on where it was. None: all are read.
    Returns:
        (hashes, reasons): n lower-case hexadecimal hashes, "" where a picture cannot be read from the disk; and its
        number -> why.
    Raises:
        InputError: `remember` is no such file.
        StorageError: it cannot be written.
    """
    known = _Known(len(items))
    if remember is not None and Path(remember).exists():
        known.load(Path(remember), str(root.resolve()), items)
    hashes, reasons = [""] * len(items), {}
    with Progress("hashing pictures", len(items), "pictures", quiet) as progress:
        saved, new = time.monotonic(), 0
        for start, results in _chunks(root, items, known):
            for row, (sha256, reason, size, mtime_ns, fresh) in enumerate(results, start):
                hashes[row], known.facts[row] = sha256, (size, mtime_ns)
                new += fresh
                if reason:
                    reasons[row] = reason
            progress.advance(len(results), items[start].name)
            if remember and new and time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                _save(Path(remember), str(root.resolve()), items, hashes, known.facts)
                saved, new = time.monotonic(), 0
        if remember and new:
            _save(Path(remember), str(root.resolve()), items, hashes, known.facts)
    return hashes, reasons


class _Known:
    """What a file of hashes says about n items: `facts` (n, 2) int64, bytes and mtime_ns, -1 where it says nothing."""

    def __init__(self, n: int):
        self.facts = np.full((n, 2), -1, dtype=np.int64)
        self._digests = np.zeros((n, 32), dtype=np.uint8)

    def load(self, path: Path, root: str, items: Sequence[Item]) -> None:
        row_of = {item.name: row for row, item in enumerate(items)}
        for batch in _batches(path):
            own = batch.filter(pc.equal(batch["root"], root))
            found = np.array([row_of.get(name, -1) for name in own["name"].to_pylist()], dtype=np.int64)
            keep = found >= 0
            for column, key in enumerate(("bytes", "mtime_ns")):
                self.facts[found[keep], column] = own[key].to_numpy()[keep]
            digests = np.frombuffer(b"".join(own["sha256"].to_pylist()), np.uint8).reshape(-1, 32)
            self._digests[found[keep]] = digests[keep]
        pa.default_memory_pool().release_unused()  # else Arrow keeps some 70 MiB for a next file

    def sha256(self, row: int) -> str:
        return self._digests[row].tobytes().hex()


def _chunks(root: Path, items: Sequence[Item], known: _Known) -> Iterator[tuple[int, list[tuple]]]:
    """(first number, [(hash, reason, bytes, mtime_ns, whether it was read now)]) of one chunk after the other."""

    def work(start: int) -> list[tuple]:
        return [one(i) for i in range(start, min(start + _CHUNK, len(items)))]

    def one(i: int) -> tuple[str, str, int, int, bool]:
        item = items[i]
        path = f"{prefix}{item.archive or item.name}"
        try:
            found = os.stat(path)
            facts = (found.st_size, found.st_mtime_ns)
            if facts == (known.facts[i, 0], known.facts[i, 1]):
                return known.sha256(i), "", *facts, False
            return hashlib.sha256(read_bytes(path, item.offset, item.length)).hexdigest(), "", *facts, True
        except OSError as error:
            return "", os.strerror(error.errno) if error.errno else str(error), -1, -1, False

    prefix = f"{root}/"
    pool = ThreadPoolExecutor(_READERS)
    try:
        starts = range(0, len(items), _CHUNK)
        yield from zip(starts, pool.map(work, starts))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted call does not read the rest first


def read_bytes(path: str | os.PathLike, offset: int = -1, length: int = 0) -> bytes:
    """All bytes of a file or, with `offset` >= 0, the `length` bytes from there. Raises OSError where some are gone."""
    with open(path, "rb", buffering=0) as file:
        if offset < 0:
            return file.readall()
        file.seek(offset)
        parts, left = [], length
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
    if left:
        raise OSError(f"the archive ends {left} bytes before the picture does")
    return b"".join(parts)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """A file of hashes in pieces: in one, that of ImageNet takes half a GiB on its way."""
    try:
        with pq.ParquetFile(path) as file:
            if (file.schema_arrow.metadata or {}).get(b"contract") != CONTRACT.encode():
                raise ValueError(f"it is not of the contract {CONTRACT}")
            yield from file.iter_batches(_BATCH)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{path} cannot be used as a file of hashes: {error}", "remove it, or name another file"
        ) from error


def _save(path: Path, root: str, items: Sequence[Item], hashes: list[str], facts: np.ndarray) -> None:
    """Write what is known of these items; rows of other sets stay."""
    schema = _SCHEMA.with_metadata({"contract": CONTRACT})
    rows = np.array([row for row, sha256 in enumerate(hashes) if sha256], dtype=np.int64)
    with atomic_file(path) as file, pq.ParquetWriter(file, schema, use_dictionary=["root"]) as writer:
        for batch in _batches(path) if path.exists() else ():
            others = batch.filter(pc.not_equal(batch["root"], root))
            if others.num_rows:
                writer.write_batch(others.cast(schema))
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            columns = {
                "root": pa.array([root] * len(some), pa.string()),
                "name": [items[row].name for row in some],
                "bytes": facts[some, 0],
                "mtime_ns": facts[some, 1],
                "sha256": [bytes.fromhex(hashes[row]) for row in some],
            }
            writer.write_table(pa.table(columns, schema=schema))
