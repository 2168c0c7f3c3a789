"""The frame store: recordings decoded once, at a steady rate or at key frames, into shards of small upright JPEGs.

Shards are plain tar files that `webdataset` reads (`<recording>-<pts>.jpg` and `.json`); `frames.parquet` beside them
says where each picture lies, so that `FrameStore` reads any one with a single `pread`. How a store is made whatever
happens, and the same bytes always, is in `shards.py`.

The usable time of a recording is cut into cells (`cells.py`): 1/rate seconds each, or from key frame to key frame. A
cell's picture is the frame on screen at its start. A frame that fills several cells is stored once, with their seconds
added, so the seconds of all frames sum up to those that were verified and drawn, less what is listed as skipped.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import simplejpeg

from headcam.errors import InputError
from headcam.video.readers import BACKENDS, Frame
from headcam.video.stores.cells import (
    Cells,
    Piece,
    Skipped,
    frames_on_screen,
    keyframe_cells,
    merged_skips,
    steady_cells,
)
from headcam.video.stores.framing import Crop, Framing
from headcam.video.stores.reading import Kind, ShardFiles, open_table, read_facts
from headcam.video.stores.shards import Count, Row, StoreResult, TarShard, make_store

KIND = Kind(
    contract="frame store",
    version=2,
    older=(1,),  # had neither stretches nor facts
    prefix="frames",
    schema=pa.schema(
        [
            ("recording", pa.dictionary(pa.int32(), pa.string())),
            ("pts", pa.int64()),
            ("time_s", pa.float64()),  # of the frame, from the recording's start
            ("seconds", pa.float64()),  # of video that the frame stands for; 0 for a still picture
            ("shard", pa.int32()),
            ("offset", pa.int64()),  # of the JPEG in the shard
            ("length", pa.int32()),
            ("width", pa.int32()),
            ("height", pa.int32()),
        ]
    ),
    unit="cells",
    per_shard=(256, 4096),
)


@dataclass(frozen=True)
class Settings:
    """What the bytes of a store follow from, beside the seconds that are stored. Defaults are those of version 1."""

    frames_per_second: float = 1.0
    keyframes: bool = False
    short_side: int = 256
    quality: int = 90
    rotate: int = 0
    crop: Crop | None = None
    backend: str = "pyav"

    @property
    def framing(self) -> Framing:
        """Which part of a picture is stored."""
        return Framing(self.short_side, self.rotate, self.crop)

    def check(self) -> None:
        """Raise `InputError` for a setting out of range."""
        if not (math.isfinite(self.frames_per_second) and self.frames_per_second > 0):
            raise InputError(f"frames_per_second is {self.frames_per_second}", "use a number above 0, such as 1")
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality is {self.quality}", "use 1 to 100, such as 90")
        if self.backend not in BACKENDS:
            raise InputError(f"{self.backend!r} is not a reader backend", f"use one of {', '.join(BACKENDS)}")
        self.framing.check()


def store(
    recordings_file: str | os.PathLike,
    out: str | os.PathLike,
    *,
    frames_per_second: float = 1.0,
    keyframes: bool = False,
    short_side: int = 256,
    quality: int = 90,
    rotate: int = 0,
    crop: Crop | None = None,
    backend: str = "pyav",
    manifest: str | os.PathLike | None = None,
    quarantine: str | os.PathLike | None = "auto",
    processes: int | None = None,
    engine: str = "local",
    quiet: bool = False,
) -> StoreResult:
    """Decode the recordings of an index (status `ok`) into a frame store in folder `out`.

    Where a recording is damaged, storing goes on at the first key frame behind the damage; the seconds between are
    listed, with the reason, in the result and in `skipped.csv`. Never enlarges a picture.

    Args:
        recordings_file: table that `headcam index` wrote.
        out: folder; an unfinished store of the same settings there is completed, a finished one is left as it is.
        frames_per_second: pictures for a second of video.
        keyframes: store the recording's key frames instead, which costs least: no frame between is decoded.
        short_side: pixels of a picture's shorter side.
        quality: of the JPEGs, 1 to 100 (4:2:0).
        rotate: degrees clockwise (0, 90, 180, 270) on top of the file's own flag.
        crop: (left, top, right, bottom) as fractions of the picture as turned; `short_side` is that of what is left.
        backend: reader backend.
        manifest: file of `headcam subset`; only the seconds that it drew are stored.
        quarantine: which seconds must not be stored: `auto` (the table that `headcam scan` wrote beside the index, if
            it is there), a file, or None.
        processes: worker processes; None for one a processor. The output does not depend on it.
        engine: `local`, or `ray` for the machines of a cluster.
        quiet: show no progress.
    Raises:
        InputError: a setting out of range, an index without usable recordings, `out` holds a store of something else.
        StorageError: the disk is full or not writable.
    """
    crop = None if crop is None else tuple(float(edge) for edge in crop)
    settings = Settings(
        float(frames_per_second), bool(keyframes), int(short_side), int(quality), int(rotate), crop, backend
    )
    settings.check()
    return make_store(
        KIND,
        write_frames,
        cells_of,
        settings,
        recordings_file,
        out,
        manifest=manifest,
        quarantine=quarantine,
        processes=processes,
        engine=engine,
        quiet=quiet,
    )


def cells_of(piece: Piece, settings: Settings) -> Cells:
    """The cells that a recording is cut into."""
    if settings.keyframes:
        return keyframe_cells(piece.stretches, piece.time_s(piece.keyframes))
    return steady_cells(piece.stretches, settings.frames_per_second)


def write_frames(piece: Piece, settings: Settings, shard: TarShard, count: Count) -> Iterator[Row | Skipped]:
    """Write the pictures that the cells of a piece add; see `headcam.video.stores.shards.Write`.

    A frame belongs to the first cell that it fills. So one already on screen in the cell before the piece is left to
    the piece before, and the last one is followed into the cells behind the piece.
    """
    cells, cut = cells_of(piece, settings), settings.framing.of(piece.width, piece.height)
    before = cells.time_s[piece.first - 1] if piece.first else -math.inf
    held: Frame | None = None
    seconds = 0.0
    skips = []
    found = frames_on_screen(piece, cells.time_s, piece.first, piece.last, settings.backend, cut.short_side)
    with closing(found):
        for k, frame in found:
            inside = k < piece.last
            count(int(inside))
            if isinstance(frame, str):
                if not inside:
                    break
                skips.append(piece.skipped_cell(cells, k, frame))
            elif held is not None and frame.pts == held.pts:
                seconds += float(cells.end_s[k] - cells.start_s[k])
            elif not inside:
                break
            elif frame.time_s > before:
                if held is not None:
                    yield _add(shard, piece, cut(held.image), held, seconds, settings.quality)
                held, seconds = frame, float(cells.end_s[k] - cells.start_s[k])
    if held is not None:
        yield _add(shard, piece, cut(held.image), held, seconds, settings.quality)
    yield from merged_skips(skips)


def _add(shard: TarShard, piece: Piece, image: Any, frame: Frame, seconds: float, quality: int) -> Row:
    """Add a picture and its facts to a shard; returns the picture's row."""
    height, width = image.shape[:2]
    jpeg = simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling="420")
    facts = {
        "recording": piece.recording,
        "pts": frame.pts,
        "time_s": frame.time_s,
        "width": width,
        "height": height,
    }
    offset, _ = shard.add(f"{piece.recording}-{frame.pts}", {"jpg": jpeg, "json": json.dumps(facts).encode()})
    return facts | {"seconds": seconds, "offset": offset, "length": len(jpeg)}


class FrameStore:
    """A finished frame store, for reading: one row a picture, in NumPy arrays, and the pictures by number.

    Attributes:
        recordings: ids of recordings, a tuple of str; `recording` holds positions in it.
        recording, pts, time_s, seconds, shard, offset, length, width, height: arrays of shape (N,); see `KIND.schema`.
        hours: hours of video that the pictures stand for.
        facts: rows of the index, one for each of `recordings` (without key frames); None in a store of version 1.
        metadata: settings of the store and the hashes of the recordings table, the quarantine table and the manifest
            that it was made from (None: made without).

    It can be pickled and forked: every process opens the shards for itself, when it first reads from one.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        table = open_table(KIND, folder)
        self.metadata: dict[str, Any] = json.loads(table.schema.metadata[b"headcam.store"])
        self.hours: float = self.metadata["hours"]
        recording = table["recording"].cast(KIND.schema.field("recording").type).unify_dictionaries().chunk(0)
        self.recordings: tuple[str, ...] = tuple(recording.dictionary.to_pylist())
        self.recording = recording.indices.to_numpy()
        self.pts, self.time_s, self.seconds, self.shard, self.offset, self.length, self.width, self.height = (
            table[name].to_numpy() for name in KIND.schema.names[1:]
        )
        self.facts: pa.Table | None = read_facts(self.folder, self.recordings)
        self._files = ShardFiles(KIND, self.folder)

    def __len__(self) -> int:
        return len(self.pts)

    def jpeg(self, i: int) -> bytes:
        """The JPEG file of picture `i`."""
        return self._files.read(int(self.shard[i]), int(self.offset[i]), int(self.length[i]))

    def close(self) -> None:
        """Close the shards that this process opened; they open again when read from."""
        self._files.close()
