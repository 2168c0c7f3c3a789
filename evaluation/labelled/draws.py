"""Few-shot lists: which training pictures a protocol may use, fixed by a rule that anybody can repeat.

"1 % of ImageNet" is only comparable where it is the same 1 %. Here the list of a draw follows from the draw's number
and the names of class and file alone, by SHA-256, so it is the same in every process, on every machine and from every
copy of the set, whether folders or archives:

    key of a picture = SHA-256 of "<draw>/<class>/<file name>"        (UTF-8; file name without any folder)
    so many a class  = the pictures of each class with the smallest keys
    a fraction       = the int(fraction * n) pictures of all with the smallest keys, classes as they come

Smaller lists of a draw therefore lie inside its larger ones: 5 shots inside 10, 1 % inside 2 %. Pictures that cannot be
read are passed over and the next in order takes their place; n counts them, so that 0.010147 of ImageNet are 13,000
either way. A list is named by its hash, can be written out for others (`write_list`), and a list that others published
can be used in place of a draw (`read_list`).
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from headcam.errors import InputError
from headcam.evaluation.labelled.sets import LabelledSet, labels_of
from headcam.evaluation.protocols import Labels
from headcam.files import atomic_file


@dataclass(frozen=True)
class Draw:
    """One draw of training pictures.

    Attributes:
        number: of the draw, from 0.
        rows: (n,) int64, ascending: rows of `LabelledSet.train`.
        list_hash: SHA-256 of the list: a line `<class>/<file name>` for each picture, sorted as text, each with a
            newline. It names the pictures, not where they lie.
    """

    number: int
    rows: np.ndarray
    list_hash: str


def draw(data: LabelledSet, labels: Labels, number: int, allowed: np.ndarray | None = None) -> Draw:
    """The training pictures that draw `number` gives to a protocol.

    Args:
        data: the labelled set, of pictures or of videos.
        labels: how many, of each class or of all; `Labels()` for all, in every draw.
        number: of the draw, from 0.
        allowed: (m,) int64 rows of `data.train` that can be used (were read without error); None for all.
    Raises:
        InputError: a class has fewer pictures than are wanted of it, or `labels` wants less than one picture, more
            than there are, or both so many of each class and a fraction.
    """
    allowed = np.arange(len(data.train)) if allowed is None else np.unique(np.asarray(allowed, dtype=np.int64))
    if labels.per_class is not None and labels.fraction is not None:
        raise InputError(
            f"labels ask for {labels.per_class} of each class and for a fraction of {labels.fraction} of all",
            "give the protocol either per_class or fraction",
        )
    if labels.per_class is not None:
        rows = _first_of_each_class(data, labels.per_class, _in_order(data, number, allowed))
    elif labels.fraction is not None:
        count = _fraction_of(labels.fraction, len(data.train))
        if count > len(allowed):
            raise InputError(
                f"{count} labelled pictures are wanted, and {len(allowed)} of {data.name} can be used",
                "restore the files that cannot be read, or use a smaller fraction",
            )
        rows = _in_order(data, number, allowed)[:count]
    else:
        rows = allowed
    rows = np.sort(rows)
    return Draw(number, rows, _list_hash(data, rows))


def write_list(path: str | os.PathLike, data: LabelledSet, drawn: Draw, rule: str = Labels.rule) -> None:
    """Write a draw as text, so that others can use the very same pictures: one `<class>/<file name>` a line, sorted.

    The first line is a comment with rule, draw and hash; what is below it hashes to `drawn.list_hash`
    (`tail -n +2 FILE | sha256sum`).

    Raises:
        InputError: two training pictures of a class have one file name that the list needs to tell which.
        StorageError: `path` cannot be written.
    """
    lines = _lines(data, drawn.rows)
    _rows_of(data, [line.rstrip("\n") for line in lines], with_class=True)
    with atomic_file(path, "w") as file:
        file.write(f"# {rule}; draw {drawn.number}; {len(drawn.rows)} of {data.identity}; SHA-256 {drawn.list_hash}\n")
        file.writelines(lines)


def read_list(path: str | os.PathLike, data: LabelledSet) -> Draw:
    """A list of training pictures that somebody published, as draw 0 of a protocol of one's own.

    One picture a line: its file name (the lists of SimCLR, Chen et al. 2020, look so), or a path that ends in
    `<class>/<file name>`, as `write_list` writes it. Empty lines and those that begin with # are passed over.

    Raises:
        InputError: no such file, nothing in it, a picture twice, names that `data.train` does not have (their count
            and the first are told), or a name that several of its pictures have.
    """
    path = Path(path)
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except FileNotFoundError:
        raise InputError(f"list of pictures {path} does not exist", "give a text file with a picture a line") from None
    except UnicodeDecodeError as error:
        raise InputError(f"list of pictures {path} is no text", "give a text file with a picture a line") from error
    wanted = [line.replace("\\", "/") for line in lines if line and not line.startswith("#")]
    if not wanted:
        raise InputError(f"list of pictures {path} is empty", "give a text file with a picture a line")
    with_class = "/" in wanted[0]
    classes = frozenset(data.classes)
    names = [_class_and_file(line, classes) if with_class else line for line in wanted]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path} lists {name} {times} times", "list each picture once")
    rows = _rows_of(data, names, with_class)
    unknown = [names[i] for i in np.flatnonzero(rows < 0)]
    if unknown:
        raise InputError(
            f"{len(unknown)} of the {len(names)} pictures of {path} are not in the training part of {data.name}, "
            f"first {unknown[0]}",
            "use the list with the set that it was made for",
        )
    rows = np.sort(rows)
    return Draw(0, rows, _list_hash(data, rows))


def _first_of_each_class(data: LabelledSet, count: int, ordered: np.ndarray) -> np.ndarray:
    if count < 1:
        raise InputError(f"labels ask for {count} of each class", "ask for one or more")
    labels = labels_of(data.train)[ordered]
    have = np.bincount(labels, minlength=len(data.classes))
    short = np.flatnonzero(have < count)
    if len(short):
        others = f" (of {len(short)} classes that have too few, the first)" if len(short) > 1 else ""
        raise InputError(
            f"class {data.classes[short[0]]} of {data.name} has {have[short[0]]} training pictures that can be used, "
            f"and {count} are needed{others}",
            "add pictures, or use a protocol that needs fewer of each class",
        )
    by_class = np.argsort(labels, kind="stable")  # within a class the order of keys stays
    place = np.arange(len(ordered)) - np.repeat(np.cumsum(have) - have, have)
    return ordered[by_class[place < count]]


def _fraction_of(fraction: float, n: int) -> int:
    """`int(fraction * n)`, as the originals count: 13,000 and 25,623 of 1,281,167."""
    count = int(fraction * n)
    if not 0 < fraction <= 1 or count < 1:
        raise InputError(
            f"a fraction of {fraction} of {n} pictures is {'no share' if not 0 < fraction <= 1 else 'less than one'}",
            "use a fraction above 0 and up to 1 that leaves at least one picture",
        )
    return count


def _in_order(data: LabelledSet, number: int, rows: np.ndarray) -> np.ndarray:
    """`rows` by the key of their picture; namesakes within a class stay in their order, which is that of content."""
    prefixes = [hashlib.sha256(f"{number}/{name}/".encode()) for name in data.classes]
    digests = bytearray()
    for row in rows.tolist():
        picture = data.train[row]
        key = prefixes[picture.label].copy()
        key.update(_file_name(picture.name).encode())
        digests += key.digest()
    words = np.frombuffer(digests, dtype=">u8").reshape(len(rows), 4)
    return rows[np.lexsort(words.T[::-1])]  # the last key of lexsort counts most


def _file_name(name: str) -> str:
    return name.rpartition("/")[2]


def _class_and_file(path: str, classes: frozenset[str]) -> str:
    """The end of a path that is `<class>/<file name>`; names of classes may have slashes of their own."""
    parts = PurePosixPath(path).parts
    lengths = (n for n in range(2, len(parts) + 1) if "/".join(parts[-n:-1]) in classes)
    return "/".join(parts[-next(lengths, 2) :])


def _lines(data: LabelledSet, rows: np.ndarray) -> list[str]:
    pictures = (data.train[row] for row in rows.tolist())
    return sorted(f"{data.classes[p.label]}/{_file_name(p.name)}\n" for p in pictures)


def _list_hash(data: LabelledSet, rows: np.ndarray) -> str:
    return hashlib.sha256("".join(_lines(data, rows)).encode()).hexdigest()


def _rows_of(data: LabelledSet, names: list[str], with_class: bool) -> np.ndarray:
    """Rows of `data.train` that (class and) file names mean, (n,) int64; -1 where there is none."""
    rows = dict.fromkeys(names, -1)
    for row, picture in enumerate(data.train):
        name = _file_name(picture.name)
        name = f"{data.classes[picture.label]}/{name}" if with_class else name
        if rows.get(name, -1) >= 0:
            raise InputError(
                f"{data.name} has two training pictures called {name}: {data.train[rows[name]].name} and "
                f"{picture.name}",
                "give its files unique names" + ("" if with_class else ", or list pictures as class/file name"),
            )
        if name in rows:
            rows[name] = row
    return np.array([rows[name] for name in names], dtype=np.int64)
