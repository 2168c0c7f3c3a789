"""Embeddings of pictures or of headcam frames, as a table that other tools read: Parquet or npz.

    folder of pictures  ─┐                                    ┌─ OUT.parquet: a row each, `embedding` a list of float32
    frame store, index  ─┴─▶ frozen encoder ─▶ pooled features ┴─ OUT.npz: `embedding` (n, D) and the other columns

Pictures keep their path; frames keep recording, time and the seconds that they stand for, so that embeddings can be
joined with anything else that is known of a recording. Long exports stop and go on: blocks of rows lie under
`OUT.parts/` until the table is whole. Its card, `OUT.json`, says which weights, which pooling and which data.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headcam.devices import usable_device
from headcam.errors import DecodeError, InputError
from headcam.evaluation.features.encoders import EncoderExtractor, load_frozen
from headcam.evaluation.features.pictures import load_picture
from headcam.evaluation.protocols import EncoderFeatures
from headcam.files import atomic_file, sha256_json, write_json
from headcam.progress import Progress
from headcam.video.datasets import StoreSource, VideoSource
from headcam.video.transforms import Cut, center_box

_BATCH = 64  # pictures at a time
_BLOCK = 64 * _BATCH  # rows of a part file
_DECODERS = min(8, os.cpu_count() or 1)
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = (".parquet", ".npz")
UNREADABLE = (OSError, ValueError, SyntaxError)  # what Pillow raises for damaged pictures


@dataclass(frozen=True)
class Export:
    """What `export` wrote.

    Attributes:
        out: the table.
        rows: its number of rows.
        dim: D, numbers of an embedding.
        skipped: name and reason of what could not be decoded.
    """

    out: Path
    rows: int
    dim: int
    skipped: list[tuple[str, str]]


@dataclass(frozen=True)
class _Data:
    """n pictures: what identifies row i, and how to get its pixels as (H, W, 3) uint8 of the encoder's size."""

    columns: dict[str, np.ndarray]
    load: Callable[[int], np.ndarray]
    identity: str

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def name(self, row: int) -> str:
        """What to call row `row` in messages."""
        return " ".join(str(column[row]) for column in list(self.columns.values())[:2])


def export(
    source: str | os.PathLike,
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    pool: str = "avg",
    layer: str | None = None,
    device: str = "cpu",
    quiet: bool = False,
) -> Export:
    """Write the embeddings of all pictures of `data`.

    Args:
        source: run folder, weights with their card, or checkpoint.
        data: a folder of pictures (any depth), a frame store, or a file of `headcam index` (a frame each second).
        out: a .parquet or .npz file.
        pool: "avg" (mean of patch tokens) or "cls" (class token).
        layer: of a GPT or tokenizer, see `load_frozen`.
        device: where the encoder runs.
        quiet: no progress on standard error.
    Raises:
        InputError: anything of these that cannot be used, or nothing that can be decoded.
    """
    out = Path(out)
    if out.suffix not in FORMATS:
        raise InputError(f"--out {out} is neither .parquet nor .npz", "give the file one of these endings")
    encoder, card = load_frozen(source, layer)
    extractor = EncoderExtractor(encoder, card, EncoderFeatures(pool=pool), usable_device(device))
    size = tuple(card["img_size"])
    found = _data(Path(data), extractor, size)
    about = {
        "contract": "embeddings",
        "version": 1,
        "model": card["name"],
        "weights": extractor.weights_hash,
        "pool": pool,
        "img_size": list(size),
        "data": found.identity,
    }
    parts = _Parts(out.with_name(out.name + ".parts"), about)
    _compute(extractor, found, parts, quiet)
    values, skipped = parts.read()
    kept = np.ones(len(found), bool)
    kept[list(skipped)] = False
    if not kept.any():
        raise InputError(f"nothing of {data} can be decoded: {next(iter(skipped.values()))}", "check the files")
    _write(out, {name: column[kept] for name, column in found.columns.items()}, values[kept], about)
    named = [(found.name(row), reason) for row, reason in sorted(skipped.items())]
    write_json(out.with_name(out.name + ".json"), {**about, "rows": int(kept.sum()), "skipped": named})
    parts.remove()
    return Export(out, int(kept.sum()), extractor.dim, named)


class _Parts:
    """Finished blocks of an export under `OUT.parts/`: `000000.npz` with `values` (n, D) float32 and what failed."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.folder = folder
        started = folder / "about.json"
        if folder.exists():
            theirs = json.loads(started.read_text("utf-8")) if started.exists() else {}
            if theirs != about:
                raise InputError(f"{folder} holds an export of something else", "remove it, or choose another --out")
        write_json(started, about)

    def file(self, block: int) -> Path:
        return self.folder / f"{block:06d}.npz"

    def write(self, block: int, values: np.ndarray, failed: dict[int, str]) -> None:
        rows, reasons = np.array(list(failed), np.int64), np.array(list(failed.values()), str)
        with atomic_file(self.file(block)) as file:
            np.savez(file, values=values, rows=rows, reasons=reasons)

    def read(self) -> tuple[np.ndarray, dict[int, str]]:
        values, failed = [], {}
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path) as part:
                values.append(part["values"])
                failed |= dict(zip(part["rows"].tolist(), part["reasons"].tolist()))
        return np.concatenate(values), failed

    def remove(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()


def _compute(extractor: EncoderExtractor, data: _Data, parts: _Parts, quiet: bool) -> None:
    """Fill in the blocks that are not there yet."""
    blocks = [b for b in range(-(-len(data) // _BLOCK)) if not parts.file(b).exists()]
    done = len(data) - sum(min(_BLOCK, len(data) - b * _BLOCK) for b in blocks)

    def load(row: int) -> np.ndarray | str:
        try:
            return data.load(row)
        except (DecodeError, *UNREADABLE) as error:
            return " ".join(str(error).split())

    with (
        Progress("embedding", len(data), "pictures", quiet, done=done) as progress,
        ThreadPoolExecutor(_DECODERS) as pool,
    ):
        for block in blocks:
            rows = range(block * _BLOCK, min((block + 1) * _BLOCK, len(data)))
            values, failed = np.zeros((len(rows), extractor.dim), np.float32), {}
            for start in range(0, len(rows), _BATCH):
                batch = rows[start : start + _BATCH]
                loaded = list(pool.map(load, batch))
                failed |= {row: item for row, item in zip(batch, loaded) if isinstance(item, str)}
                good = [k for k, item in enumerate(loaded) if not isinstance(item, str)]
                if good:
                    values[[start + k for k in good]] = extractor.compute(np.stack([loaded[k] for k in good]))
                progress.advance(len(batch), data.name(batch[-1]))
            parts.write(block, values, failed)


def _data(path: Path, extractor: EncoderExtractor, size: tuple[int, int]) -> _Data:
    """What `path` is: a frame store, an index, or a folder of pictures."""
    if path.is_file() and path.suffix == ".parquet":
        return _frames(VideoSource(path), size)
    if (path / "frames.parquet").is_file():
        return _frames(StoreSource(path), size)
    if not path.is_dir():
        raise InputError(
            f"{path} does not exist", "give a folder of pictures, a frame store or a file of headcam index"
        )
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in _PICTURES and p.is_file())
    if not files:
        raise InputError(f"{path} holds no pictures", f"give a folder with files of {', '.join(_PICTURES)}")
    names = [p.relative_to(path).as_posix() for p in files]
    identity = sha256_json([[name, p.stat().st_size] for name, p in zip(names, files)])
    return _Data({"path": np.array(names)}, lambda row: extractor.prepare(load_picture(files[row])), identity)


def _frames(source: StoreSource | VideoSource, size: tuple[int, int]) -> _Data:
    """A frame of each unit, its largest central crop: the frame that a store holds, or the one in the unit's middle."""
    units, n = source.units, len(source.units)
    rows = np.arange(n)
    ids = units.facts.ids[units.recording_of(rows)]
    seconds = units.seconds_of(rows)
    times = units.time_of(rows) + (seconds / 2 if isinstance(source, VideoSource) else 0)

    def load(row: int) -> np.ndarray:
        width, height = units.size_of(row)
        return source.views(row, float(times[row]), [Cut(center_box(int(width), int(height), size), size, False)])[0]

    identity = sha256_json({**source.origin(), "units": n})
    return _Data({"recording": ids, "time_s": times, "seconds": seconds}, load, identity)


def _write(out: Path, columns: dict[str, np.ndarray], values: np.ndarray, about: dict[str, Any]) -> None:
    with atomic_file(out) as file:
        if out.suffix == ".npz":
            np.savez(file, **columns, embedding=values)
            return
        flat = pa.array(values.reshape(-1))
        table = pa.table({**columns, "embedding": pa.FixedSizeListArray.from_arrays(flat, values.shape[1])})
        table = table.replace_schema_metadata({"headcam": json.dumps(about)})
        pq.write_table(table, file, compression="zstd")
