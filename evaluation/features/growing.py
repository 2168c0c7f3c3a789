"""A .npy file that grows row by row, and that a process which was killed leaves to the next one.

    .NAME.npy.part       the file as it will be: header, then the rows so far
    .NAME.npy.progress   how many of the rows are on the disk for certain, and what else is known of them (JSON)
    NAME.npy             takes the place of both when all rows are there

Progress is written every ten seconds after the rows have been flushed to the disk, so that neither a kill nor a power
cut costs more than these seconds. Processes that want to write the same file take turns: the first one holds a lock
on the partial file, which goes with the process, and the others wait for it and then find the work done.
"""

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from headcam.files import fsync_folder, partial_path, storage_errors, write_json

_SECONDS_BETWEEN_SAVES = 10.0
_DTYPE = "<f2"


class GrowingTable:
    """Rows of float16 on their way into a .npy file; made by `growing_table`.

    Attributes:
        rows: how many are written.
        unreadable: row -> reason of those among them that stand for something that could not be read.
    """

    def __init__(self, file: Path, shape: tuple[int, int], part: BinaryIO):
        self.file, self.shape, self._part = file, shape, part
        self.rows, self.unreadable = 0, {}
        part.seek(0)
        np.lib.format.write_array_header_1_0(part, {"descr": _DTYPE, "fortran_order": False, "shape": shape})
        self._header = part.tell()
        self._restore()
        self._saved = time.monotonic()

    def append(self, values: np.ndarray, unreadable: dict[int, str]) -> None:
        """Write the next rows, (b, D) float16, and what was unreadable among them."""
        self._part.seek(self._place(self.rows))
        self._part.write(values.astype(_DTYPE, copy=False).tobytes())
        self.rows += len(values)
        self.unreadable |= unreadable
        if time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Make what is written so far the place where the next process goes on."""
        self._flush()
        write_json(_progress_file(self.file), {"rows": self.rows, "unreadable": self.unreadable})
        self._saved = time.monotonic()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows that are written: (stop - start, D) float16."""
        self._part.seek(self._place(start))
        found = self._part.read(self._place(stop) - self._place(start))
        return np.frombuffer(found, _DTYPE).reshape(-1, self.shape[1])

    def finish(self) -> None:
        """Give the file its name; all rows have to be there."""
        self._flush()
        os.replace(partial_path(self.file), self.file)
        fsync_folder(self.file.parent)
        _progress_file(self.file).unlink(missing_ok=True)

    def discard(self) -> None:
        """Leave nothing of it."""
        _progress_file(self.file).unlink(missing_ok=True)
        partial_path(self.file).unlink(missing_ok=True)

    def _place(self, row: int) -> int:
        return self._header + row * self.shape[1] * np.dtype(_DTYPE).itemsize

    def _flush(self) -> None:
        self._part.flush()
        os.fsync(self._part.fileno())

    def _restore(self) -> None:
        try:
            found = json.loads(_progress_file(self.file).read_text("utf-8"))
            rows, unreadable = found["rows"], {int(row): reason for row, reason in found["unreadable"].items()}
        except (OSError, ValueError, KeyError):
            return  # nothing is known for certain
        if self._place(rows) <= os.fstat(self._part.fileno()).st_size:
            self.rows, self.unreadable = rows, unreadable


@contextmanager
def growing_table(file: Path, shape: tuple[int, int], quiet: bool) -> Iterator[GrowingTable | None]:
    """The table that is to become `file`, (n, D), with the rows that an earlier process wrote.

    None where `file` is there: another process finished it while this one waited for its turn. What is written when
    the block is left by an exception is kept for the next process, unless it was discarded.

    Raises:
        StorageError: the disk is full or not writable.
    """
    part_file = partial_path(file)
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part_file, quiet) as part:
            if file.is_file():
                part_file.unlink()
                yield None
                return
            table = GrowingTable(file, shape, part)
            try:
                yield table
            finally:
                if part_file.exists():  # neither finished nor discarded
                    table.save()


@contextmanager
def _locked(path: Path, quiet: bool) -> Iterator[BinaryIO]:
    """`path` open for reading and writing, made where missing, by one process at a time."""
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            _lock(file, path, quiet)
            # While this process waited, the one before may have renamed or removed what is open here.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


def _lock(file: BinaryIO, path: Path, quiet: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not quiet:
            print(f"waiting for another process that writes {path}", file=sys.stderr, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks; two processes then write the same bytes to the same places


def _progress_file(file: Path) -> Path:
    return file.with_name(f".{file.name}.progress")
