"""The frame store: every recording decoded once, at a steady rate, into shards of small upright JPEGs.

Shards are plain tar files that `webdataset` reads (`<recording>-<pts>.jpg` and `.json`); `frames.parquet` beside them
says where each picture lies, so that `FrameStore` reads any one with a single `pread`.

The time of a recording is cut into cells of 1/rate seconds. A cell's picture is the frame on screen at its start; a
frame that fills several cells is stored once, with their seconds added, so the seconds of all frames sum up to the
duration. All cells of an index, in the order of recording ids, are dealt to shards by count. So what a shard holds
follows from the index and the settings alone: any number of processes, and any number of interruptions, make the
same bytes. A shard that is complete has a small sidecar; the same command again makes only those that have none.
"""

import csv
import io
import json
import math
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from headcam.errors import InputError, StorageError
from headcam.files import atomic_file, partial_path, write_json
from headcam.progress import Progress
from headcam.video.cells import Segment, Skipped, segment_frames
from headcam.video.readers import BACKENDS, Frame
from headcam.video.recordings import check_contract, read_recordings, recordings_hash, usable
from headcam.video.workers import Lost, run_tasks

CONTRACT = "frame store"
VERSION = 1
TABLE = "frames.parquet"
SKIPPED = "skipped.csv"

_SETTINGS = ".store.json"  # what an unfinished store is being made of
_SHARD_CELLS = (256, 4096)  # cells a shard: at least for small stores, so that processes share the work, and at most
_SILENCE_S = 120.0  # a worker may be silent for so long between two frames, plus a second for every 10 MB of the file
_BYTES_PER_SECOND = 10e6
_SCHEMA = pa.schema(
    [
        ("recording", pa.dictionary(pa.int32(), pa.string())),
        ("pts", pa.int64()),
        ("time_s", pa.float64()),  # of the frame, from the recording's start
        ("seconds", pa.float64()),  # the stretch of video that the frame stands for; 0 for a still picture
        ("shard", pa.int32()),
        ("offset", pa.int64()),  # of the JPEG in the shard
        ("length", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Settings:
    """What the bytes of a store follow from, beside the recordings."""

    frames_per_second: float
    short_side: int
    quality: int
    backend: str


@dataclass(frozen=True)
class StoreResult:
    """What `store` made: pictures, the hours of video that they stand for, and what had to be left out."""

    folder: Path
    frames: int
    recordings: int
    hours: float
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Shard:
    number: int
    folder: Path
    settings: Settings
    segments: tuple[Segment, ...]
    lost: tuple[tuple[int, str], ...] = ()  # segments that took a worker down, with the reason


def store(
    recordings_file: str | os.PathLike,
    out: str | os.PathLike,
    *,
    frames_per_second: float = 1.0,
    short_side: int = 256,
    quality: int = 90,
    backend: str = "pyav",
    processes: int | None = None,
    quiet: bool = False,
) -> StoreResult:
    """Decode the recordings of an index (status `ok`) into a frame store in folder `out`.

    A recording that cannot be decoded to its end gives the frames before the damage; the rest is listed, with
    the reason, in the result and in `skipped.csv`. Never enlarges a picture.

    Args:
        recordings_file: table that `headcam index` wrote.
        out: folder; an unfinished store of the same settings there is completed, a finished one is left as it is.
        frames_per_second: pictures for a second of video.
        short_side: pixels of a picture's shorter side.
        quality: of the JPEGs, 1 to 100 (4:2:0).
        backend: reader backend.
        processes: worker processes; None for one a processor. The output does not depend on it.
        quiet: show no progress.
    Raises:
        InputError: a setting out of range, an index without usable recordings, `out` holds a store of something else.
        StorageError: the disk is full or not writable.
    """
    settings = Settings(float(frames_per_second), int(short_side), int(quality), backend)
    _check_settings(settings)
    recordings, folder = read_recordings(recordings_file), Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file", "give a folder")
    table = usable(recordings)
    if not len(table):
        raise InputError(f"{recordings_file} lists no readable recording", "see its columns status and reason")
    source = {"version": VERSION, "settings": asdict(settings), "recordings_hash": recordings_hash(recordings)}
    if (folder / TABLE).exists():
        finished = FrameStore(folder)
        _check_same(folder, source, {k: finished.metadata[k] for k in source})
        return _result(folder)
    if (folder / _SETTINGS).exists():
        _check_same(folder, source, json.loads((folder / _SETTINGS).read_text("utf-8")))
    else:
        if folder.is_dir() and any(folder.glob("frames-*.tar")):
            raise InputError(f"{folder} holds shards of unknown origin", "give another folder, or empty this one")
        write_json(folder / _SETTINGS, source)
    shards = _deal(table, folder, settings)
    try:
        _make_shards(shards, processes, quiet)
    except StorageError:
        # The workers that were still writing were stopped with the one that failed; the full disk wants its space back.
        for shard in shards:
            partial_path(folder / shard_name(shard.number)).unlink(missing_ok=True)
        raise
    _finish(folder, source, shards)
    return _result(folder)


def _check_settings(settings: Settings) -> None:
    if not (math.isfinite(settings.frames_per_second) and settings.frames_per_second > 0):
        raise InputError(f"frames_per_second is {settings.frames_per_second}", "use a number above 0, such as 1")
    if settings.short_side < 1:
        raise InputError(f"short_side is {settings.short_side}", "use a number of pixels, such as 256")
    if not 1 <= settings.quality <= 100:
        raise InputError(f"quality is {settings.quality}", "use 1 to 100, such as 90")
    if settings.backend not in BACKENDS:
        raise InputError(f"{settings.backend!r} is not a reader backend", f"use one of {', '.join(BACKENDS)}")


def _check_same(folder: Path, wanted: dict, found: dict) -> None:
    if wanted["recordings_hash"] != found["recordings_hash"]:
        raise InputError(f"{folder} holds a store of another index", "give another folder, or remove this one")
    for name, value in wanted["settings"].items():
        if found["settings"].get(name) != value:
            raise InputError(
                f"{folder} holds a store with {name} {found['settings'].get(name)}, not {value}",
                "give another folder, remove this one, or use its settings",
            )


def _deal(table: pa.Table, folder: Path, settings: Settings) -> list[_Shard]:
    """Cut all cells, in the order of recordings, into shards; a recording across a border gives two segments."""
    columns = ("recording", "path", "bytes", "duration_s", "keyframes")
    recordings = []
    for row in table.select(columns).to_pylist():
        rate = settings.frames_per_second if row["duration_s"] > 0 else 0.0
        cells = max(1, math.ceil(row["duration_s"] * rate - 1e-9))
        keyframes = tuple(row.pop("keyframes"))
        recordings.append(Segment(**row, rate=rate, keyframes=keyframes, cells=cells, first=0, last=cells))
    total = sum(r.cells for r in recordings)
    size = min(max(math.ceil(total / 64), _SHARD_CELLS[0]), _SHARD_CELLS[1])
    shards: list[list[Segment]] = [[]]
    room = size
    for recording in recordings:
        first = 0
        while first < recording.cells:
            if not room:
                shards.append([])
                room = size
            last = min(recording.cells, first + room)
            shards[-1].append(replace(recording, first=first, last=last))
            room, first = room - (last - first), last
    return [_Shard(number, folder, settings, tuple(segments)) for number, segments in enumerate(shards)]


def shard_name(number: int) -> str:
    """Name of a store's shard."""
    return f"frames-{number:06d}.tar"


def _sidecar(shard: _Shard) -> Path:
    return shard.folder / f".{shard_name(shard.number)}.json"


def _is_complete(shard: _Shard) -> bool:
    return _sidecar(shard).exists() and (shard.folder / shard_name(shard.number)).exists()


def _make_shards(shards: Sequence[_Shard], processes: int | None, quiet: bool) -> None:
    todo = [shard for shard in shards if not _is_complete(shard)]
    cells = sum(s.last - s.first for shard in todo for s in shard.segments)
    with Progress("storing", total=cells, unit="cells", quiet=quiet) as progress:

        def show(beat: tuple[int, str, int]) -> None:
            progress.advance(beat[2], current=beat[1])

        def deadline_s(shard: _Shard, beat: tuple[int, str, int] | None) -> float:
            return _SILENCE_S + (shard.segments[beat[0]].bytes / _BYTES_PER_SECOND if beat else 0)

        while todo:
            again = []
            useful = processes if processes is None else max(1, min(processes, len(todo)))
            for shard, answer in run_tasks(write_shard, todo, useful, deadline_s, show):
                if isinstance(answer, Lost):  # once more, without the segment that took the worker down
                    k = answer.at[0] if answer.at else 0
                    again.append(replace(shard, lost=(*shard.lost, (k, answer.reason))))
            todo = again


def write_shard(shard: _Shard, beat: Callable[[tuple[int, str, int]], None]) -> None:
    """Write one shard and, once it is complete, its sidecar. Runs in a worker process; calls `beat` as it goes."""
    rows: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    lost = dict(shard.lost)
    backend, short_side = shard.settings.backend, shard.settings.short_side
    with atomic_file(shard.folder / shard_name(shard.number)) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for k, segment in enumerate(shard.segments):
                name = Path(segment.path).name
                beat((k, name, 0))
                if k in lost:
                    skipped.append(segment.skipped(segment.first, lost[k]))
                    continue
                for found in segment_frames(segment, backend, short_side, lambda n, k=k, name=name: beat((k, name, n))):
                    if isinstance(found, Skipped):
                        skipped.append(found)
                    else:
                        frame, seconds = found
                        rows.append(_add(tar, segment.recording, frame, shard.settings.quality) | {"seconds": seconds})
    write_json(_sidecar(shard), {"rows": rows, "skipped": [asdict(s) for s in skipped]})


def _add(tar: tarfile.TarFile, recording: str, frame: Frame, quality: int) -> dict[str, Any]:
    """Add a picture and its facts to a shard; returns the picture's row."""
    height, width = frame.image.shape[:2]
    jpeg = simplejpeg.encode_jpeg(
        np.ascontiguousarray(frame.image), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    facts = {"recording": recording, "pts": frame.pts, "time_s": frame.time_s, "width": width, "height": height}
    offset = tar.offset + tarfile.BLOCKSIZE  # of the data, behind a header of one block (short names, USTAR)
    for suffix, data in (("jpg", jpeg), ("json", json.dumps(facts).encode())):
        member = tarfile.TarInfo(f"{recording}-{frame.pts}.{suffix}")  # times, owners and modes keep their constants
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return facts | {"offset": offset, "length": len(jpeg)}


def _finish(folder: Path, source: dict[str, Any], shards: Sequence[_Shard]) -> None:
    """Join the sidecars into the table, which makes the store complete, and remove them."""
    rows, skipped = [], []
    for shard in shards:
        sidecar = json.loads(_sidecar(shard).read_text("utf-8"))
        rows += [row | {"shard": shard.number} for row in sidecar["rows"]]
        skipped += [Skipped(**row) for row in sidecar["skipped"]]
    if not rows:
        reasons = "; ".join(sorted({s.reason for s in skipped})[:3])
        raise InputError(f"none of the recordings gave a picture: {reasons}", "index the folder again")
    with atomic_file(folder / SKIPPED, "w") as file:
        writer = csv.DictWriter(file, ["recording", "path", "start_s", "end_s", "reason"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(s) for s in skipped)
    hours = sum(row["seconds"] for row in rows) / 3600
    metadata = {"contract": CONTRACT, "version": str(VERSION), "store": json.dumps(source | {"hours": hours})}
    columns = {name: [row[name] for row in rows] for name in _SCHEMA.names}
    columns["recording"] = pa.array(columns["recording"], pa.string()).dictionary_encode()
    table = pa.table(columns, schema=_SCHEMA.with_metadata({f"headcam.{k}": v for k, v in metadata.items()}))
    with atomic_file(folder / TABLE) as file:
        pq.write_table(table, file, compression="zstd")
    for shard in shards:
        _sidecar(shard).unlink(missing_ok=True)
    (folder / _SETTINGS).unlink(missing_ok=True)


def _result(folder: Path) -> StoreResult:
    frames = FrameStore(folder)
    with open(folder / SKIPPED, encoding="utf-8", newline="") as file:
        skipped = tuple(
            Skipped(r["recording"], r["path"], float(r["start_s"]), float(r["end_s"]), r["reason"])
            for r in csv.DictReader(file)
        )
    return StoreResult(folder, len(frames), len(np.unique(frames.recording)), frames.hours, skipped)


class FrameStore:
    """A finished frame store, for reading: one row a picture, in NumPy arrays, and the pictures by number.

    Attributes:
        recordings: ids of recordings, a tuple of str; `recording` holds positions in it.
        recording, pts, time_s, seconds, shard, offset, length, width, height: arrays of shape (N,); see `store`.
        hours: hours of video that the pictures stand for.
        metadata: settings of the store and hash of the recordings table that it was made from.

    It can be pickled and forked: every process opens the shards for itself, when it first reads from one.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        try:
            table = pq.read_table(self.folder / TABLE, partitioning=None).combine_chunks()
        except FileNotFoundError as error:
            unfinished = (self.folder / _SETTINGS).exists()
            raise InputError(
                f"{folder} holds no frame store" + (" that is finished" if unfinished else f" ({TABLE} is missing)"),
                "run headcam store" + (" with the same words again" if unfinished else " first"),
            ) from error
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{self.folder / TABLE} cannot be read: {error}", "make the store again") from error
        check_contract(self.folder / TABLE, table.schema.metadata, CONTRACT, VERSION, "headcam store")
        self.metadata: dict[str, Any] = json.loads(table.schema.metadata[b"headcam.store"])
        self.hours: float = self.metadata["hours"]
        recording = table["recording"].cast(_SCHEMA.field("recording").type).unify_dictionaries().chunk(0)
        self.recordings: tuple[str, ...] = tuple(recording.dictionary.to_pylist())
        self.recording = recording.indices.to_numpy()
        self.pts, self.time_s, self.seconds, self.shard, self.offset, self.length, self.width, self.height = (
            table[name].to_numpy() for name in _SCHEMA.names[1:]
        )
        self._files: dict[int, int] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.pts)

    def jpeg(self, i: int) -> bytes:
        """The JPEG file of picture `i`."""
        if self._process != os.getpid():  # after a fork; the handles of the parent stay the parent's
            self._files, self._process = {}, os.getpid()
        shard = int(self.shard[i])
        if shard not in self._files:
            try:
                self._files[shard] = os.open(self.folder / shard_name(shard), os.O_RDONLY)
            except FileNotFoundError as error:
                missing = self.folder / shard_name(shard)
                raise InputError(
                    f"{missing} is missing", "copy the whole folder of the store, or make it again"
                ) from error
        length = int(self.length[i])
        data = os.pread(self._files[shard], length, int(self.offset[i]))
        if len(data) != length:
            raise InputError(
                f"{self.folder / shard_name(shard)} is cut short", "copy it again, or make the store again"
            )
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
