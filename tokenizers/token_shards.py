"""What a token store is on the disk: its shards, their sidecars while it is being made, and the table that closes it.

    tokens-000000.npy     (rows, *grid) uint16, or uint32 above 65,536 codes: plain NumPy arrays
    .tokens-000000.parquet    sidecar of a shard that is complete: its rows of the table, and what could not be decoded
    tokens.parquet        all rows; where it stands, the store is complete and the sidecars are gone
    recordings.parquet    source, age and date of the recordings
    skipped.csv           frames or clips that could not be decoded, with the reason

Rows (`token_rows.py`) are dealt to shards by count, all crops of a frame to one shard.
"""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headcam.errors import InputError
from headcam.files import atomic_file
from headcam.tokenizers.token_rows import Rows, Skipped
from headcam.video.datasets import FrameSource, VideoSource
from headcam.video.recordings import SCHEMA as RECORDINGS
from headcam.video.recordings import check_contract, write_recordings
from headcam.video.stores.reading import FACTS, UNFINISHED

CONTRACT = "token store"
VERSION = 1
TABLE = "tokens.parquet"
SKIPPED = "skipped.csv"
SCHEMA = pa.schema(
    [
        ("recording", pa.dictionary(pa.int32(), pa.string())),
        ("time_s", pa.float64()),  # of the frame, or of the clip's first, from the recording's start
        ("seconds", pa.float64()),  # of video that the row stands for: those of its frame or clip over the crops
        ("span_s", pa.float64()),  # of a clip: its frames times the step between them; 0 for a frame
        ("sample", pa.int64()),  # unit * crops + crop: names the draw
        ("crop", pa.int16()),
        ("left", pa.float64()),  # of the crop, in pixels of the upright frame, as are the next three
        ("top", pa.float64()),
        ("width", pa.float64()),
        ("height", pa.float64()),
        ("flip", pa.bool_()),
        ("shard", pa.int32()),
        ("row", pa.int32()),  # in the shard
    ]
)

_MAKER = "headcam tokenize store"
_SHARDS = 64  # at least so many where there are rows enough, so that little is done again after a kill
_PER_SHARD = (256, 4096)  # fewest and most rows of a shard (but for the last one)


def shard_path(folder: Path, number: int) -> Path:
    """The file of shard number `number`."""
    return folder / f"tokens-{number:06d}.npy"


@dataclass(frozen=True)
class Shard:
    """A shard to be made: its number, and the `samples` that it is for."""

    number: int
    folder: Path
    samples: range

    @property
    def path(self) -> Path:
        """Where its tokens lie."""
        return shard_path(self.folder, self.number)

    @property
    def sidecar(self) -> Path:
        """Where its rows lie until the store is complete."""
        return self.folder / f".{self.path.stem}.parquet"

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to do."""
        return self.sidecar.exists() and self.path.exists()

    def batches(self, batch_size: int) -> list[range]:
        """Its samples in batches, the last of which may be short."""
        return [self.samples[k : k + batch_size] for k in range(0, len(self.samples), batch_size)]

    def write(
        self, rows: Rows, tokens: np.ndarray, boxes: np.ndarray, flips: np.ndarray, reasons: dict[int, str]
    ) -> None:
        """Write the shard and its sidecar.

        Args:
            rows: that the samples are of.
            tokens: (len(samples), *grid), of the type that they are stored in.
            boxes, flips: (len(samples), 4) and (len(samples),), how each was cut.
            reasons: moment -> why it could not be decoded; its rows are left out.
        """
        sample = np.array(self.samples)
        kept = ~np.isin(sample // rows.crops, list(reasons))
        moment = sample[kept] // rows.crops
        values = {
            "recording": pa.array(_names(rows, moment), pa.string()),
            "time_s": rows.moments.time_s[moment],
            "seconds": rows.moments.seconds[moment] / rows.crops,
            "span_s": np.full(len(moment), rows.moments.span_s),
            "sample": sample[kept],
            "crop": sample[kept] % rows.crops,
            **dict(zip(("left", "top", "width", "height"), boxes[kept].T)),
            "flip": flips[kept],
            "shard": np.full(len(moment), self.number),
            "row": np.arange(len(moment)),
        }
        table = pa.table({name: pa.array(values[name]).cast(SCHEMA.field(name).type) for name in SCHEMA.names})
        lost = np.array(sorted(reasons), np.int64)
        columns = (rows.moments.time_s[lost].tolist(), rows.moments.seconds[lost].tolist())
        skipped = [(*facts, reasons[k]) for k, *facts in zip(lost.tolist(), _names(rows, lost), *columns, strict=True)]
        with atomic_file(self.path) as file:
            np.save(file, tokens[kept])
        with atomic_file(self.sidecar) as file:
            pq.write_table(table.replace_schema_metadata({"skipped": json.dumps(skipped)}), file)


def _names(rows: Rows, moment: np.ndarray) -> list[str]:
    """Ids of the recordings of some moments."""
    units = rows.source.units
    return units.facts.ids[units.recording_of(rows.moments.unit[moment])].tolist()


def dealt(folder: Path, rows: Rows) -> list[Shard]:
    """All rows in shards."""
    least, most = _PER_SHARD
    wanted = min(max(math.ceil(len(rows) / _SHARDS), least), most)
    size = max(1, wanted // rows.crops) * rows.crops
    starts = range(0, len(rows), size)
    return [Shard(number, folder, range(start, min(start + size, len(rows)))) for number, start in enumerate(starts)]


def finish(folder: Path, metadata: dict[str, Any], shards: list[Shard], source: FrameSource) -> None:
    """Join the sidecars into the table, which makes the store complete, and remove them.

    Args:
        metadata: JSON values that the table carries, what the store was made of; the hours are added here.
        source: of the pictures, for the facts of the recordings.
    """
    parts = [pq.read_table(shard.sidecar, partitioning=None) for shard in shards]
    skipped = [row for part in parts for row in json.loads(part.schema.metadata[b"skipped"])]
    table = pa.concat_tables([part.cast(SCHEMA) for part in parts]).unify_dictionaries().combine_chunks()
    if not len(table):
        reasons = "; ".join(sorted({row[-1] for row in skipped})[:3])
        raise InputError(f"none of the data could be decoded: {reasons}", "find the damage with headcam scan")
    with atomic_file(folder / SKIPPED, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([tuple(Skipped.__dataclass_fields__), *skipped])
    facts = source.index.table if isinstance(source, VideoSource) else source.store.facts
    if facts is not None:  # a frame store of version 1 has none
        facts = facts.take(pc.index_in(table["recording"].chunk(0).dictionary, facts["recording"].combine_chunks()))
        field = RECORDINGS.field("keyframes")
        empty = pa.array([[]] * len(facts), field.type)
        write_recordings(facts.set_column(facts.schema.names.index(field.name), field, empty), folder / FACTS)
    metadata = metadata | {"hours": math.fsum(table["seconds"].to_pylist()) / 3600}
    labels = {"contract": CONTRACT, "version": str(VERSION), "store": json.dumps(metadata)}
    table = table.replace_schema_metadata({f"headcam.{key}": value for key, value in labels.items()})
    with atomic_file(folder / TABLE) as file:
        pq.write_table(table, file, compression="zstd")
    for shard in shards:
        shard.sidecar.unlink(missing_ok=True)
    (folder / UNFINISHED).unlink(missing_ok=True)


def read_skipped(folder: Path) -> tuple[Skipped, ...]:
    """What a finished store had to leave out."""
    with open(folder / SKIPPED, encoding="utf-8", newline="") as file:
        return tuple(
            Skipped(row["recording"], float(row["time_s"]), float(row["seconds"]), row["reason"])
            for row in csv.DictReader(file)
        )


def open_table(folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The table of a finished store, and its metadata; `InputError` where there is none."""
    path = folder / TABLE
    try:
        table = pq.read_table(path, partitioning=None).combine_chunks()
    except FileNotFoundError as error:
        unfinished = (folder / UNFINISHED).exists()
        raise InputError(
            f"{folder} holds no {CONTRACT} {'that is finished' if unfinished else f'({TABLE} is missing)'}",
            f"run {_MAKER}" + (" with the same words again" if unfinished else " first"),
        ) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}", "make the store again") from error
    check_contract(path, table.schema.metadata, CONTRACT, VERSION, _MAKER)
    return table, json.loads(table.schema.metadata[b"headcam.store"])
