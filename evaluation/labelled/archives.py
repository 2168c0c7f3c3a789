"""Pictures inside of tar files, without unpacking them: plain tars, tars of tars, WebDataset shards.

A tar is a chain of headers; they are walked once, and from then on a picture is read by its offset. Where a file of
hashes is kept (`headcam.evaluation.labelled.hashes`), what was found is kept beside it, so that a second start reads
no header: HASHES-archives.parquet, a row a picture, and in its metadata the size and the time of each archive.

WebDataset shards (Hugging Face's `imagenet1k-train-{0000..1023}.tar` and `imagenet1k-validation-{00..63}.tar`, timm's
and any others whose names say `train` and `val`, `validation` or `test`) hold samples: members that share the name up
to its first dot, one of them a picture, one `.cls` (a number as text) or `.json` (with `label` or `cls`). A shard that
ends too early is used up to there, and named; so is every sample without a class.
"""

import json
import os
import re
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headcam.errors import InputError
from headcam.evaluation.labelled.classes import imagenet_classes
from headcam.evaluation.labelled.listing import (
    Item,
    Listing,
    Skipped,
    check_same_classes,
    held_out,
    is_picture,
)
from headcam.files import atomic_file
from headcam.progress import Progress

CONTRACT = "archive-index/1"
_PART = re.compile(r"(?:^|[-_.])(train|training|val|valid|validation|test)(?=[-_.])")
_SECONDS_BETWEEN_SAVES = 60.0
_BATCH = 1 << 15  # rows of the index that are in memory at a time
_SCHEMA = pa.schema(
    [
        ("archive", pa.string()),
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("label", pa.string()),
    ]
)


@dataclass
class Contents:
    """What an archive holds.

    Attributes:
        items: its pictures, in its order; one in a tar in there is called
            "ILSVRC2012_img_train.tar/n01440764.tar/n01440764_10026.JPEG".
        labels: what the `.cls` or `.json` of each picture's sample says, "" where there is none.
        fault: what is wrong with an archive that is not there, is no tar or ends too early; "": nothing. The pictures
            up to there are listed.
    """

    items: list[Item]
    labels: list[str]
    fault: str = ""


def read_archives(
    root: Path, archives: Sequence[Path], remember: str | os.PathLike | None = None, quiet: bool = True
) -> list[Contents]:
    """List the pictures of uncompressed tar files below `root`.

    Args:
        remember: file of hashes beside which the index is kept; None: headers are walked anew.
    Raises:
        InputError: the index is no such file.
        StorageError: it cannot be written.
    """
    index = Path(remember).with_name(f"{Path(remember).stem}-archives.parquet") if remember else None
    known = _load(index, root, archives) if index else {}
    found: dict[Path, Contents] = {}
    with Progress("reading archives", sum(path not in known for path in archives), "archives", quiet) as progress:
        saved, new = time.monotonic(), 0
        for path in archives:
            if path in known:
                found[path] = known[path]
                continue
            found[path] = _walk(root, path)
            new += not found[path].fault
            progress.advance(1, path.name)
            if index and new and time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                _save(index, found)
                saved, new = time.monotonic(), 0
    if index and new:
        _save(index, found)
    return [found[path] for path in archives]


def shards(root: Path, pattern: str | None, remember: str | os.PathLike | None, quiet: bool) -> Listing | None:
    """A listing of WebDataset shards; None where there are none.

    Args:
        root: the folder of the shards.
        pattern: their names in brace notation, such as `imagenet1k-train-{0000..1023}.tar`. Where none is of the test
            part, the shards beside them whose names say val, validation or test are it, and where there are no such
            shards, a fifth of each class is held out. None: all shards whose names say a part.
    Raises:
        InputError: no sample can be used, or training shards that were not given by a pattern are alone.
    """
    if pattern is None and (root / "train").is_dir():  # unpacked; what it came in may lie beside it
        return None
    train, test = _parts(root, pattern)
    if pattern is None and not train:
        return None
    if not train or not (test or pattern):
        raise InputError(
            f"the shards in {root} are of one part only, of {(train or test)[0].name}, ...",
            "add shards of both, such as imagenet1k-train-*.tar and imagenet1k-validation-*.tar, or give the training "
            f"shards as a pattern to have a fifth of them held out: {root}/imagenet1k-train-{{0000..1023}}.tar",
        )
    contents = dict(zip((*train, *test), read_archives(root, [*train, *test], remember, quiet)))
    skipped: Skipped = [(path.name, found.fault) for path, found in contents.items() if found.fault]
    limit = len(imagenet_classes()) if all(path.name.startswith("imagenet1k") for path in train) else None
    by_number = [_by_number([contents[path] for path in paths], limit, skipped) for paths in (train, test)]
    if not by_number[0]:
        raise InputError(
            f"no sample of the shards in {root} has a picture and a class; {_first(skipped)}",
            "give shards whose samples have a picture and .cls or .json with label",
        )
    numbers = sorted(by_number[0].keys() | by_number[1].keys())
    imagenet = numbers == list(range(len(imagenet_classes())))
    name_of = {n: imagenet_classes()[n].wnid if imagenet else str(n) for n in numbers}
    parts = [{name_of[n]: found[n] for n in sorted(found)} for found in by_number]
    classes = tuple(name_of[n] for n in numbers)
    if test:
        check_same_classes(*parts, train[0], test[0], f" (and the other shards; {len(skipped)} skipped)")
        return Listing("shards", *parts, skipped, classes)
    listing = held_out("shards, hash", parts[0], root, skipped)
    listing.classes = classes
    return listing


def _parts(root: Path, pattern: str | None) -> tuple[list[Path], list[Path]]:
    """Training shards and test shards: those that are meant by `pattern`, or all that say a part."""
    paths = sorted(path for path in root.glob("*.tar") if _part(path.name) and not path.name.startswith("."))
    beside = {part: [path for path in paths if _part(path.name) == part] for part in ("train", "val", "test")}
    if pattern is None:
        return beside["train"], beside["val"] or beside["test"]
    from webdataset.shardlists import expand_urls  # takes a second to import

    given = sorted(root / Path(name).name for name in expand_urls(pattern))
    test = [path for path in given if _part(path.name) in ("val", "test")]
    return [path for path in given if path not in test], test or beside["val"] or beside["test"]


def _part(name: str) -> str:
    """Part that the name of a shard speaks of: "train", "val", "test" or ""."""
    found = _PART.findall(name)
    return {"training": "train", "valid": "val", "validation": "val"}.get(found[-1], found[-1]) if found else ""


def _first(skipped: Skipped) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in skipped[:1]) or "they hold no pictures"


def _by_number(contents: list[Contents], limit: int | None, skipped: Skipped) -> dict[int, list[Item]]:
    """Class number -> pictures; samples whose class is missing, no number or out of range are skipped by name."""
    found: dict[int, list[Item]] = {}
    for item, label in ((i, label) for c in contents for i, label in zip(c.items, c.labels)):
        number = int(label) if re.fullmatch(r"-?\d{1,9}", label) else None
        if not label:
            skipped.append((item.name, "its sample has no class (.cls, or .json with label or cls)"))
        elif number is None:
            skipped.append((item.name, f"its class {label[:40]!r} is no number"))
        elif number < 0 or (limit is not None and number >= limit):
            skipped.append((item.name, f"its class {number} is out of range"))
        else:
            found.setdefault(number, []).append(item)
    return found


def _walk(root: Path, path: Path) -> Contents:
    """What the headers of an archive say."""
    below = path.relative_to(root).as_posix()
    items: list[Item] = []
    label_of: dict[str, dict[str, str]] = {".json": {}, ".cls": {}}  # sample -> its class
    fault = ""
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for name, offset, length, label in _members(tar, "", 0):
                if label is not None:
                    label_of[os.path.splitext(name)[1].lower()][_sample(name)] = intern(label)
                elif offset + length <= size:
                    items.append(Item(f"{below}/{name}", below, offset, length))
    except tarfile.TarError as error:
        fault = f"it is compressed, damaged or ends too early ({error}); {len(items)} pictures were found in it"
    except OSError as error:
        fault = os.strerror(error.errno) if error.errno else str(error)
    labels = []
    for item in items:
        sample = _sample(item.name[len(below) + 1 :])
        labels.append(label_of[".cls"].get(sample) or label_of[".json"].get(sample, ""))
    return Contents(items, labels, fault)


def _members(tar: tarfile.TarFile, prefix: str, base: int) -> Iterator[tuple[str, int, int, str | None]]:
    """(name, offset, length, None) of each picture and (name, 0, 0, label) of each class, tars in the tar included."""
    while (info := tar.next()) is not None:
        tar.members.clear()  # it would keep all headers
        file = os.path.basename(info.name)
        if not info.isreg() or file.startswith("."):
            continue
        name, suffix = prefix + info.name.removeprefix("./"), os.path.splitext(file)[1].lower()
        if is_picture(file):
            yield name, base + info.offset_data, info.size, None
        elif suffix == ".tar":
            with tar.extractfile(info) as section, tarfile.open(fileobj=section, mode="r:") as inner:
                yield from _members(inner, f"{name}/", base + info.offset_data)
        elif suffix in (".cls", ".json"):
            yield name, 0, 0, _label(tar.extractfile(info).read(), suffix)
    # `next` takes a damaged header for the end, and so it does a file that was cut off between two members.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0") or tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no end mark at byte {base + tar.offset}")


def _sample(name: str) -> str:
    """What members of a sample have in common: folder, and name up to the first dot."""
    folder, file = os.path.split(name)
    return f"{folder}/{file.split('.', 1)[0]}"


def _label(data: bytes, suffix: str) -> str:
    text = data.decode("utf-8", "replace").strip()
    if suffix == ".cls":
        return text
    try:
        found = json.loads(text)
    except ValueError:
        return ""
    value = next((found[key] for key in ("label", "cls") if key in found), "") if isinstance(found, dict) else ""
    return str(value)


def _facts(path: Path) -> list[int]:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]


def _load(index: Path, root: Path, archives: Sequence[Path]) -> dict[Path, Contents]:
    """What the index says about those archives that are as they were when it was written."""
    if not index.exists():
        return {}
    try:
        with pq.ParquetFile(index) as file:
            metadata = file.schema_arrow.metadata or {}
            if metadata.get(b"contract") != CONTRACT.encode():
                raise ValueError(f"it is not of the contract {CONTRACT}")
            facts = json.loads(metadata[b"archives"])
            known = {str(p.resolve()): p for p in archives if p.is_file() and facts.get(str(p.resolve())) == _facts(p)}
            found = {path: Contents([], []) for path in known.values()}
            below_of = {archive: intern(path.relative_to(root).as_posix()) for archive, path in known.items()}
            for batch in file.iter_batches(_BATCH):
                for archive, name, offset, length, label in zip(*(column.to_pylist() for column in batch.columns)):
                    if archive in known:
                        below = below_of[archive]
                        found[known[archive]].items.append(Item(f"{below}/{name}", below, offset, length))
                        found[known[archive]].labels.append(intern(label))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise InputError(f"{index} cannot be used as an index of archives: {error}", "remove it") from error
    pa.default_memory_pool().release_unused()
    return found


def _save(index: Path, contents: dict[Path, Contents]) -> None:
    """Write what was found in archives without a fault; what the file says about others stays."""
    whole = {str(path.resolve()): found for path, found in contents.items() if not found.fault}
    facts, others = {path: _facts(Path(path)) for path in whole}, []
    if index.exists():
        others = pq.read_table(index).filter(~pc.field("archive").isin(list(whole))).to_batches()
        facts = json.loads(pq.read_schema(index).metadata[b"archives"]) | facts
    schema = _SCHEMA.with_metadata({"contract": CONTRACT, "archives": json.dumps(facts)})
    with atomic_file(index) as file, pq.ParquetWriter(file, schema) as writer:
        for batch in others:
            writer.write_batch(batch.cast(schema))
        for path, found in whole.items():
            columns = {
                "archive": pa.array([path] * len(found.items), pa.string()),
                "name": [item.name[len(item.archive) + 1 :] for item in found.items],
                "offset": [item.offset for item in found.items],
                "length": [item.length for item in found.items],
                "label": found.labels,
            }
            writer.write_table(pa.table(columns, schema=schema))
