"""Files that are either complete or not there, and the hashes that name their content.

Everything that headcam writes appears under its final name only when it is whole: it is written beside it, flushed
to the disk and renamed. Hashes are lower-case hexadecimal SHA-256 of content, never of paths.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from headcam.errors import InputError, StorageError

_BLOCK = 1 << 16  # bytes; the sampled blocks of a recording's id
_BLOCKS = 64
_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_NAME_TROUBLE = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)  # a file where a folder should be, ...


@contextmanager
def storage_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn the operating system's 'disk full' and 'not writable' into a one-line `StorageError` that names `path`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in _DISK_TROUBLE + _NAME_TROUBLE:
            raise
        raise StorageError(
            f"{path} could not be written: {os.strerror(error.errno)}",
            ("free some space or " if error.errno in _DISK_TROUBLE else "")
            + "choose another place with --out, then run the same command again",
        ) from error


def partial_path(path: str | os.PathLike) -> Path:
    """The name under which `path` is written until it is complete; the same for every process, so none piles up."""
    path = Path(path)
    return path.with_name(f".{path.name}.part")


@contextmanager
def atomic_file(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a file beside `path` for writing; on success flush it to the disk and rename it to `path`, else remove it.

    Raises `StorageError` where the disk is full or not writable.
    """
    path = Path(path)
    part = partial_path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": ""})) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def fsync_folder(folder: str | os.PathLike) -> None:
    """Make a rename in `folder` survive a power cut (POSIX: the directory has to be flushed too)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with atomic_file(path, "w") as file:
        file.write(text)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as readable JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def claim(note: str | os.PathLike, settings: dict[str, Any], what: str) -> bool:
    """Write `settings` to `note`, which says what is made in its folder; refuse a folder of other settings.

    Args:
        note: a JSON file, such as OUT/demo.json.
        settings: JSON values that all of what is made there follows from.
        what: how errors call it, such as "a demo".
    Returns:
        Whether the note was there already: the folder is gone on with.
    Raises:
        InputError: the note is there with other settings; the first that differs is named.
    """
    note = Path(note)
    if not note.exists():
        write_json(note, settings)
        return False
    try:
        found = json.loads(note.read_text("utf-8"))
    except ValueError:
        found = {}
    settings = json.loads(json.dumps(settings))  # tuples as lists, as they were written
    for key in dict.fromkeys([*settings, *found]):
        if found.get(key, ...) != settings.get(key, ...):
            raise InputError(
                f"{note.parent} holds {what} of other settings: {key} is {found.get(key)} there, "
                f"{settings.get(key)} here",
                "use another folder, or repeat the words that began this one to go on with it",
            )
    return True


def sha256_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value` (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: str | os.PathLike) -> str:
    """SHA-256 of all bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recording_id(path: str | os.PathLike) -> str:
    """A recording's id: 16 hex digits that follow from its content alone, at the cost of reading 4 MiB.

    The first 16 digits of the SHA-256 over the size in bytes (decimal, newline) and 64 evenly spaced blocks of
    64 KiB, first and last included; a file that is not longer than those blocks is hashed whole.
    """
    size = os.path.getsize(path)
    digest = hashlib.sha256(f"{size}\n".encode())
    with open(path, "rb") as file:
        if size <= _BLOCK * _BLOCKS:
            digest.update(file.read())
        else:
            for k in range(_BLOCKS):
                file.seek(k * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]


def free_bytes(path: str | os.PathLike) -> int:
    """Free space in bytes on the disk that holds `path` or, where that does not exist yet, its nearest parent."""
    path = Path(path).resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
