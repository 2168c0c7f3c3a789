"""Pictures or videos to frozen features, once: decoding, preprocessing, batched extraction, and a cache on disk.

    items ──extractor.load──▶ decoded ──.prepare──▶ uint8 (B, ...) ──.compute──▶ float16 (n, D) in <hash>.npy

What is decoded how, and what makes features of it, is the extractor's matter (`headcam.evaluation.features.encoders`,
`.layers`, `.clips`). The cache is a plain .npy file of float16 that is memory-mapped, with a .json beside it that says
what it holds. Its name is a hash over the protocol, the weights themselves, the model's card and the content of the
items in their order; change any of them and other features are computed. Decoding runs in threads, one batch ahead of
the encoder, and the rows do not depend on their number.

An extraction that was killed goes on where it stopped, and the file is then the same to the byte; two processes that
want the same table take turns (`headcam.evaluation.features.growing`). What cannot be read is named and counted, up to
a share of the items; an encoder that gives every item the same features is refused.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headcam.errors import DecodeError, HeadcamError, InputError
from headcam.evaluation.features.ahead import loaded_ahead
from headcam.evaluation.features.encoders import Extractor
from headcam.evaluation.features.growing import GrowingTable, growing_table
from headcam.evaluation.labelled.faults import SHARE_UNREADABLE, too_many
from headcam.evaluation.labelled.sets import Picture
from headcam.evaluation.labelled.videos import Video
from headcam.files import sha256_json, write_json
from headcam.progress import Progress

VERSION = 2  # of the contract "features"
_SHOULD_DIFFER = 1024  # items after which features that are all equal are refused; at the end where there are fewer

Item = Picture | Video


class ConstantFeatures(InputError):
    """An encoder that gives the same features whatever it sees."""


@dataclass(frozen=True)
class FeatureTable:
    """Features of a list of pictures or videos.

    Attributes:
        values: (n, D) float16, memory-mapped, row i of item i; zeros where it could not be read.
        unreadable: row -> reason.
        file: the cache file.
    """

    values: np.ndarray
    unreadable: dict[int, str]
    file: Path

    @property
    def readable(self) -> np.ndarray:
        """(n,) bool."""
        mask = np.ones(len(self.values), dtype=bool)
        mask[list(self.unreadable)] = False
        return mask


def extract(
    extractor: Extractor,
    items: Sequence[Item],
    cache: str | os.PathLike,
    *,
    description: str = "features",
    batch_size: int | None = None,
    quiet: bool = False,
    share_unreadable: float = SHARE_UNREADABLE,
) -> FeatureTable:
    """Features of `items`, from the folder `cache` where they are there already, else computed and put there.

    Args:
        extractor: what turns items into features.
        items: n labelled pictures, or n labelled videos; row i of the result is that of item i.
        cache: folder of `<hash>.npy` and `<hash>.json`, made where missing.
        batch_size: items at a time; changes memory and speed, not results beyond rounding. None: the extractor's own.
        share_unreadable: more than this share of the items unreadable (and ten or more, or all) is an error.
    Raises:
        InputError: too much is unreadable; an item is gone; a feature is not finite in float16.
        ConstantFeatures: all items have the same features.
        StorageError: the cache cannot be written. What was computed is kept, and gone on with.
    """
    about = {"contract": "features", "version": VERSION, **extractor.identity, "items": _content(items)}
    key = sha256_json(about)
    values_file, about_file = Path(cache, f"{key}.npy"), Path(cache, f"{key}.json")
    if not (values_file.is_file() and about_file.is_file()):
        with growing_table(values_file, (len(items), extractor.dim), quiet) as table:
            if table is not None:
                _fill(table, extractor, items, description, batch_size or extractor.batch_size, quiet, share_unreadable)
                # First: where the .npy stands, it is complete, and the .json belongs to it.
                write_json(about_file, about | {"shape": list(table.shape), "unreadable": table.unreadable})
                table.finish()
    return _open(values_file, about_file)


def _content(items: Sequence[Item]) -> str:
    """SHA-256 over what the items are, in their order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.sha256}\n".encode())
    return digest.hexdigest()


def _open(values_file: Path, about_file: Path) -> FeatureTable:
    try:
        about = json.loads(about_file.read_text("utf-8"))
        values = np.load(values_file, mmap_mode="r", allow_pickle=False)
        if list(values.shape) != about["shape"]:
            raise ValueError(f"shape {values.shape} is not {about['shape']}")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"feature cache {values_file} is damaged: {error}", "remove it and run again") from error
    return FeatureTable(values, {int(row): reason for row, reason in about["unreadable"].items()}, values_file)


def _fill(
    table: GrowingTable,
    extractor: Extractor,
    items: Sequence[Item],
    description: str,
    batch_size: int,
    quiet: bool,
    share_unreadable: float,
) -> None:
    """Compute the rows that are missing."""

    def load(item: Item) -> np.ndarray | str:
        loaded = _load(extractor, item)
        return loaded if isinstance(loaded, str) else extractor.prepare(loaded)

    n, media = len(items), f"{type(items[0]).__name__.lower()}s"
    differing = False
    batches = (items[start : start + batch_size] for start in range(table.rows, n, batch_size))
    with Progress(description, n, media, quiet, done=table.rows) as progress:
        for loaded in loaded_ahead(batches, load):
            start = table.rows
            values = np.zeros((len(loaded), extractor.dim), dtype=np.float16)
            good = [i for i, item in enumerate(loaded) if isinstance(item, np.ndarray)]
            if good:
                with np.errstate(over="ignore"):  # found and named below
                    values[good] = extractor.compute(np.stack([loaded[i] for i in good]))
            _check_finite(values, items[start : start + len(loaded)], table)
            table.append(values, {start + i: item for i, item in enumerate(loaded) if isinstance(item, str)})
            _check_unreadable(table, items, media, share_unreadable)
            if not differing and table.rows >= min(n, _SHOULD_DIFFER):
                _check_differing(table, items, media)
                differing = True
            progress.advance(len(loaded), items[start].name)


def _load(extractor: Extractor, item: Item) -> object:
    """What the extractor loads, or the reason why it cannot."""
    try:
        return extractor.load(item)
    except DecodeError as error:
        reason = error.problem
    except (HeadcamError, MemoryError):
        raise
    except Exception as error:  # on garbage, Pillow's decoders raise anything from OSError to struct.error
        reason = f"{type(error).__name__}: {error}"
    if not item.path.exists():  # says nothing of its content: it may be on a disk that is not there now
        raise InputError(f"{item.path} is gone", "bring it back and run again, which goes on here")
    return " ".join(reason.replace(str(item.path), "the file").split())


def _check_unreadable(table: GrowingTable, items: Sequence[Item], media: str, share: float) -> None:
    n, bad = len(items), len(table.unreadable)
    if not too_many(bad, n, share):
        return
    first = "; ".join(f"{items[row].name}: {reason}" for row, reason in list(table.unreadable.items())[:3])
    count = f"none of the {n} {media}" if bad == n else f"{bad} of the first {table.rows} {media} (of {n})"
    can, allowed = ("can", "") if bad == n else ("cannot", f", where {share:.2%} of all may be so")
    table.discard()
    raise InputError(f"{count} {can} be decoded{allowed}; {first}", "restore the files, or take them out of the set")


def _check_finite(values: np.ndarray, items: Sequence[Item], table: GrowingTable) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        table.discard()
        raise InputError(
            f"features of {items[bad[0]].name} are not finite in float16",
            "check the weights for NaN and the training log for a loss that diverged",
        )


def _check_differing(table: GrowingTable, items: Sequence[Item], media: str) -> None:
    """An encoder that has collapsed, or weights of zeros, would go on unnoticed and score what chance does."""
    rows = np.array([row for row in range(min(table.rows, _SHOULD_DIFFER)) if row not in table.unreadable])
    if len({items[row].sha256 for row in rows}) < 2:
        return
    values = table.read(0, rows[-1] + 1)[rows]
    if (values == values[0]).all():
        table.discard()
        what = "zeros" if not values.any() else "the same for all of them"
        raise ConstantFeatures(
            f"features of the first {len(rows)} {media} are {what}",
            "check that the weights are the trained ones, and that training did not collapse",
        )
