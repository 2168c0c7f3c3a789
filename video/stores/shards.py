"""Shards: how recordings become a folder of tar files, whatever is put into them. Shared by frame and clip store.

A store is a folder: shards that plain `webdataset` reads (`frames-000000.tar`, USTAR, constant headers), a table
beside them (`frames.parquet`) that says where each sample lies, so that any one is read with a single `pread`, the
recordings that it was made from (`recordings.parquet`) and what had to be left out (`skipped.csv`).

The cells (`cells.py`) of all recordings, in the order of ids, are dealt to shards by count. So what a shard holds
follows from the index, the scan, the manifest and the settings alone: any number of processes, and any number of
interruptions, make the same bytes. A shard that is complete has a small sidecar; the same command again makes only
those that have none. The table comes last: where it stands, the store is complete, and `reading.py` takes over.
"""

import csv
import io
import json
import math
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headcam.errors import InputError, StorageError
from headcam.files import atomic_file, partial_path, write_json
from headcam.progress import Progress
from headcam.video.quarantine import quarantine_of, verified_stretches
from headcam.video.recordings import read_recordings, recordings_hash, usable, write_recordings
from headcam.video.sampling.manifest import Manifest
from headcam.video.stores.cells import Cells, Piece, Skipped, merged_skips
from headcam.video.stores.reading import FACTS, UNFINISHED, Kind, open_table
from headcam.video.stretches import Stretch
from headcam.video.workers import Lost, run_tasks

SKIPPED = "skipped.csv"

_SHARDS = 64  # at least so many where there is enough to share out, so that processes share the work
_SILENCE_S = 120.0  # a worker may be silent for so long between two signs, plus a second for every 10 MB of the file
_BYTES_PER_SECOND = 10e6

Row = dict[str, Any]
Count = Callable[[int], None]


@dataclass(frozen=True)
class StoreResult:
    """What making a store came to.

    Attributes:
        folder: of the store.
        table: the file to open.
        samples: pictures or clips.
        recordings, hours: recordings that gave any, and the hours of video that the samples stand for.
        skipped: stretches that had to be left out, each with its reason.
        verified: whether only seconds that `headcam scan` verified were used.
    """

    folder: Path
    table: Path
    samples: int
    recordings: int
    hours: float
    skipped: tuple[Skipped, ...]
    verified: bool


class TarShard:
    """A shard being written: samples of some files each, at known offsets, with headers that never vary."""

    def __init__(self, tar: tarfile.TarFile):
        self._tar = tar

    def add(self, key: str, files: Mapping[str, bytes]) -> list[int]:
        """Add a sample, files by suffix; returns where the data of each begins in the shard."""
        offsets = []
        for suffix, data in files.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")  # times, owners and modes keep their constants
            member.size = len(data)
            offsets.append(self._tar.offset + tarfile.BLOCKSIZE)  # behind a header of one block (short names, USTAR)
            self._tar.addfile(member, io.BytesIO(data))
        return offsets


# Writes the cells of a piece: `write(piece, settings, shard, count)` yields a row of the table for each sample added
# to the shard, and what was skipped; calls `count(n)` as often as it can, to say that it lives and n cells are done.
Write = Callable[[Piece, Any, TarShard, Count], Iterator[Row | Skipped]]
CellsOf = Callable[[Piece, Any], Cells]  # the cells of a whole recording under some settings


@dataclass(frozen=True)
class _Shard:
    number: int
    folder: Path
    kind: Kind
    settings: Any
    write: Write
    cells_of: CellsOf
    pieces: tuple[Piece, ...]
    lost: tuple[tuple[int, str], ...] = ()  # pieces that took a worker down, with the reason

    @property
    def path(self) -> Path:
        return self.folder / self.kind.shard_name(self.number)

    @property
    def sidecar(self) -> Path:
        return self.folder / f".{self.path.name}.json"

    @property
    def is_complete(self) -> bool:
        return self.sidecar.exists() and self.path.exists()


def make_store(
    kind: Kind,
    write: Write,
    cells_of: CellsOf,
    settings: Any,
    recordings_file: str | os.PathLike,
    out: str | os.PathLike,
    *,
    manifest: str | os.PathLike | None,
    quarantine: str | os.PathLike | None,
    processes: int | None,
    engine: str,
    quiet: bool,
) -> StoreResult:
    """Make a store in folder `out`, complete an unfinished one, or leave a finished one as it is.

    Args:
        kind: of store.
        write: writes a piece, see `Write`; importable by name.
        cells_of: cuts a recording into cells; importable by name.
        settings: dataclass that the bytes follow from, beside what is stored; its defaults are those of older versions.
        recordings_file, manifest, quarantine: what is stored, see `headcam.video.stores.frame_store.store`.
        processes, engine: see `run_tasks`.
        quiet: show no progress.
    Raises:
        InputError: nothing to store, or `out` holds something else.
        StorageError: the disk is full or not writable.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file", "give a folder")
    recordings, stretches, source = _source(recordings_file, manifest, quarantine)
    source |= {"version": kind.version, "settings": json.loads(json.dumps(asdict(settings)))}
    if (folder / kind.table).exists():
        finished = json.loads(open_table(kind, folder, ["shard"]).schema.metadata[b"headcam.store"])
        _check_same(folder, source, finished, asdict(type(settings)()))
        return _result(kind, folder)
    if (folder / UNFINISHED).exists():
        _check_same(folder, source, json.loads((folder / UNFINISHED).read_text("utf-8")), asdict(type(settings)()))
    else:
        if folder.is_dir() and any(folder.glob("*-*.tar")):
            raise InputError(f"{folder} holds shards of unknown origin", "give another folder, or empty this one")
        write_json(folder / UNFINISHED, source)
    dealt = _deal([_counted(p, cells_of(p, settings)) for p in _whole(recordings, stretches)], kind.per_shard)
    place = folder.absolute()  # workers of a cluster have a working directory of their own
    shards = [_Shard(number, place, kind, settings, write, cells_of, pieces) for number, pieces in enumerate(dealt)]
    try:
        _make_shards(shards, processes, engine, quiet)
    except StorageError:
        # The workers that were still writing were stopped with the one that failed; the full disk wants its space back.
        for shard in shards:
            partial_path(shard.path).unlink(missing_ok=True)
        raise
    _finish(kind, folder, source, shards, recordings)
    return _result(kind, folder)


def _source(
    recordings_file: str | os.PathLike, manifest_file: str | os.PathLike | None, quarantine: str | os.PathLike | None
) -> tuple[pa.Table, dict[str, tuple[Stretch, ...]], dict[str, Any]]:
    """The index, the stretches of its recordings to store, and the hashes of what says so."""
    recordings = read_recordings(recordings_file)
    if not len(usable(recordings)):
        raise InputError(f"{recordings_file} lists no readable recording", "see its columns status and reason")
    scan = quarantine_of(recordings_file, recordings, quarantine)
    stretches = verified_stretches(recordings, scan)
    source = {
        "recordings_hash": recordings_hash(recordings),
        "quarantine_hash": scan.hash if scan else None,
        "manifest_hash": None,
    }
    if not stretches:
        raise InputError(f"nothing of {recordings_file} was verified", "see the page that headcam scan wrote")
    if manifest_file is not None:
        manifest = Manifest.read(manifest_file)
        if manifest.recordings_hash != source["recordings_hash"]:
            raise InputError(f"{manifest_file} was not drawn from {recordings_file}", "draw it again: headcam subset")
        stretches = manifest.restrict(stretches)
        if not stretches:
            raise InputError(f"nothing that {manifest_file} drew is verified", "draw it again: headcam subset")
        source["manifest_hash"] = manifest.hash
    return recordings, stretches, source


def _check_same(folder: Path, wanted: dict, found: dict, defaults: dict) -> None:
    """Raise `InputError` unless the store in `folder`, made of `found`, is the one that is wanted."""
    for key, what in (("recordings", "index"), ("quarantine", "scan"), ("manifest", "manifest")):
        ours, theirs = wanted[f"{key}_hash"], found.get(f"{key}_hash")
        if ours != theirs:
            of = f"of another {what}" if ours and theirs else f"made {'with' if theirs else 'without'} a {what}"
            raise InputError(f"{folder} holds a store {of}", "give another folder, or remove this one")
    for name, value in wanted["settings"].items():
        had = found["settings"].get(name, defaults[name])
        if had != value:
            raise InputError(
                f"{folder} holds a store with {name} {had}, not {value}",
                "give another folder, remove this one, or use its settings",
            )


def _whole(recordings: pa.Table, stretches: Mapping[str, tuple[Stretch, ...]]) -> Iterator[Piece]:
    """The recordings that have stretches to store, in the order of ids, not cut into cells yet."""
    columns = (
        *("recording", "path", "bytes", "width", "height", "rotation", "fps_num", "fps_den"),
        *("start_s", "keyframes", "time_base_num", "time_base_den"),
    )
    table = usable(recordings)
    table = table.filter(pc.is_in(table["recording"], pa.array(list(stretches), pa.string())))
    for batch in table.select(columns).to_batches():
        for row in batch.to_pylist():
            time_base = Fraction(row["time_base_num"], row["time_base_den"])
            turned = row["rotation"] % 180 == 90
            yield Piece(
                recording=row["recording"],
                path=row["path"],
                bytes=row["bytes"],
                width=row["height" if turned else "width"],
                height=row["width" if turned else "height"],
                frame_rate=Fraction(row["fps_num"], row["fps_den"] or 1),
                time_base=time_base,
                start_pts=round(row["start_s"] / time_base),
                keyframes=tuple(row["keyframes"]),
                stretches=stretches[row["recording"]],
                cells=0,
                first=0,
                last=0,
            )


def _counted(piece: Piece, cells: Cells) -> Piece:
    count = len(cells.time_s)
    return replace(piece, cells=count, last=count)


def _deal(recordings: Sequence[Piece], per_shard: tuple[int, int]) -> list[tuple[Piece, ...]]:
    """Cut all cells, in the order of recordings, into shards; a recording across a border gives two pieces."""
    least, most = per_shard
    size = min(max(math.ceil(sum(r.cells for r in recordings) / _SHARDS), least), most)
    shards: list[list[Piece]] = [[]]
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
    return [tuple(pieces) for pieces in shards]


def _make_shards(shards: Sequence[_Shard], processes: int | None, engine: str, quiet: bool) -> None:
    todo = [shard for shard in shards if not shard.is_complete]
    cells = sum(p.last - p.first for shard in shards for p in shard.pieces)
    left = sum(p.last - p.first for shard in todo for p in shard.pieces)
    unit = shards[0].kind.unit if shards else ""
    with Progress("storing", total=cells, unit=unit, quiet=quiet, done=cells - left) as progress:

        def show(beat: tuple[int, str, int]) -> None:
            progress.advance(beat[2], current=beat[1])

        def deadline_s(shard: _Shard, beat: tuple[int, str, int] | None) -> float:
            return _SILENCE_S + (shard.pieces[beat[0]].bytes / _BYTES_PER_SECOND if beat else 0)

        while todo:
            again = []
            useful = processes if processes is None else max(1, min(processes, len(todo)))
            for shard, answer in run_tasks(write_shard, todo, useful, deadline_s, show, engine):
                if isinstance(answer, Lost):  # once more, without the piece that took the worker down
                    k = answer.at[0] if answer.at else 0
                    again.append(replace(shard, lost=(*shard.lost, (k, answer.reason))))
            todo = again


def write_shard(shard: _Shard, beat: Callable[[tuple[int, str, int]], None]) -> None:
    """Write one shard and, once it is complete, its sidecar. Runs in a worker process; calls `beat` as it goes."""
    rows: list[Row] = []
    skipped: list[Skipped] = []
    lost = dict(shard.lost)
    with atomic_file(shard.path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for k, piece in enumerate(shard.pieces):
            beat((k, piece.name, 0))
            if k in lost:
                cells = shard.cells_of(piece, shard.settings)
                skipped += merged_skips(piece.skipped_cell(cells, n, lost[k]) for n in range(piece.first, piece.last))
                continue
            count = partial(_count, beat, k, piece.name)
            for found in shard.write(piece, shard.settings, TarShard(tar), count):
                if isinstance(found, Skipped):
                    skipped.append(found)
                else:
                    rows.append(found)
    write_json(shard.sidecar, {"rows": rows, "skipped": [asdict(s) for s in skipped]})


def _count(beat: Callable[[tuple[int, str, int]], None], k: int, name: str, cells: int) -> None:
    beat((k, name, cells))


def _finish(kind: Kind, folder: Path, source: dict[str, Any], shards: Sequence[_Shard], recordings: pa.Table) -> None:
    """Join the sidecars into the table, which makes the store complete, and remove them."""
    parts, skipped = [], []
    for shard in shards:
        sidecar = json.loads(shard.sidecar.read_text("utf-8"))
        rows = [row | {"shard": shard.number} for row in sidecar["rows"]]
        parts.append(pa.Table.from_pylist(rows, schema=kind.schema))
        skipped += [Skipped(**row) for row in sidecar["skipped"]]
    table = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    if not len(table):
        reasons = "; ".join(sorted({s.reason for s in skipped})[:3])
        raise InputError(f"none of the recordings gave any {kind.unit}: {reasons}", "index the folder again")
    with atomic_file(folder / SKIPPED, "w") as file:
        writer = csv.DictWriter(file, ["recording", "path", "start_s", "end_s", "reason"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(s) for s in skipped)
    used = usable(recordings)
    used = used.filter(pc.is_in(used["recording"], table["recording"].chunk(0).dictionary))
    no_keyframes = pa.array([[]] * len(used), used.schema.field("keyframes").type)
    write_recordings(used.set_column(used.schema.names.index("keyframes"), "keyframes", no_keyframes), folder / FACTS)
    hours = sum(table["seconds"].to_pylist()) / 3600
    metadata = {"contract": kind.contract, "version": str(kind.version), "store": json.dumps(source | {"hours": hours})}
    with atomic_file(folder / kind.table) as file:
        pq.write_table(
            table.replace_schema_metadata({f"headcam.{k}": v for k, v in metadata.items()}), file, compression="zstd"
        )
    for shard in shards:
        shard.sidecar.unlink(missing_ok=True)
    (folder / UNFINISHED).unlink(missing_ok=True)


def _result(kind: Kind, folder: Path) -> StoreResult:
    table = open_table(kind, folder, ["recording"])
    metadata = json.loads(table.schema.metadata[b"headcam.store"])
    with open(folder / SKIPPED, encoding="utf-8", newline="") as file:
        skipped = tuple(
            Skipped(r["recording"], r["path"], float(r["start_s"]), float(r["end_s"]), r["reason"])
            for r in csv.DictReader(file)
        )
    return StoreResult(
        folder=folder,
        table=folder / kind.table,
        samples=len(table),
        recordings=len(pc.unique(table["recording"])),
        hours=metadata["hours"],
        skipped=skipped,
        verified=metadata.get("quarantine_hash") is not None,
    )
