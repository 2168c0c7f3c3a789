"""The clip store: recordings re-encoded into short segments that clips are decoded from at a fraction of the cost.

Clips from original files are slow for three reasons: the pictures are large, the nearest key frame is far away, and a
seek costs a scan of the file. A clip store mends all three once: segments of constant length (`<recording>-<pts>.mp4`,
named by the time stamp at which they start, with all facts in a `.json`), small pictures, short closed GOPs whose
B-frames need not be decoded unless they are wanted. Shards are plain tar files that `webdataset` reads; how a store is
made whatever happens, and the same bytes always, is in `shards.py`, how a segment is encoded in `segments.py`.

No time is lost or made up: every segment lists the exact source time stamp of each of its frames, and its own clock
is the source's, shifted. A segment begins with the frame on screen at its start, so it can be read without its
neighbours; where a recording is damaged, a segment ends before the damage and the next begins behind it.

    store = ClipStore("clips")
    frames = store.frames_at(store.recordings[0], 12.0 + np.arange(16) * 8 / 30)
"""

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headcam.errors import DecodeError, InputError
from headcam.video.readers import Frame, open_reader
from headcam.video.stores.framing import Crop
from headcam.video.stores.reading import Kind, ShardFiles, open_table, read_facts
from headcam.video.stores.segments import Settings, cells_of, write_segments
from headcam.video.stores.shards import StoreResult, make_store
from headcam.video.stretches import Stretch

KIND = Kind(
    contract="clip store",
    version=1,
    older=(),
    prefix="clips",
    schema=pa.schema(
        [
            ("recording", pa.dictionary(pa.int32(), pa.string())),
            ("time_s", pa.float64()),  # where the segment starts, from the recording's start
            ("seconds", pa.float64()),  # of video that it holds: [time_s, time_s + seconds)
            ("shard", pa.int32()),
            ("offset", pa.int64()),  # of the MP4 in the shard
            ("length", pa.int32()),
            ("facts_offset", pa.int64()),  # of the JSON in the shard
            ("facts_length", pa.int32()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("frames", pa.int32()),
            ("pts", pa.list_(pa.int64())),  # of every frame, in the recording's time base, ascending
            ("keyframes", pa.list_(pa.int64())),  # those of `pts` where decoding can start
        ]
    ),
    unit="segments",
    per_shard=(4, 64),
)


def store_clips(
    recordings_file: str | os.PathLike,
    out: str | os.PathLike,
    *,
    segment_s: float = 30.0,
    gop: int = 32,
    crf: int = 20,
    frames_per_second: float | None = None,
    short_side: int = 256,
    rotate: int = 0,
    crop: Crop | None = None,
    backend: str = "pyav",
    manifest: str | os.PathLike | None = None,
    quarantine: str | os.PathLike | None = "auto",
    processes: int | None = None,
    engine: str = "local",
    quiet: bool = False,
) -> StoreResult:
    """Re-encode the recordings of an index (status `ok`) into a clip store in folder `out`.

    H.264, 4:2:0 (BT.601, limited range), x264 preset fast with three B-frames. Still pictures are left out and listed.

    Args:
        recordings_file, out, manifest, quarantine, processes, engine, quiet: see `frame_store.store`.
        segment_s: seconds a segment. A clip that lies in one segment costs one open; of clips of d seconds that is
            the share 1 - d / segment_s.
        gop: frames from key frame to key frame.
        crf: x264's constant rate factor: 0 is lossless, 18 hard to tell from the source, 51 worst.
        frames_per_second: None for every frame of the source, else the frames on screen at this rate.
        short_side: pixels of the shorter side, even; a side that comes out odd loses its last column or row.
        rotate, crop, backend: see `headcam.video.stores.frame_store.store`.
    Raises:
        InputError: a setting out of range, an index without usable recordings, `out` holds a store of something else.
        MissingPackage: PyAV was built without x264.
        StorageError: the disk is full or not writable.
    """
    settings = Settings(
        segment_s=float(segment_s),
        gop=int(gop),
        crf=int(crf),
        frames_per_second=None if frames_per_second is None else float(frames_per_second),
        short_side=int(short_side),
        rotate=int(rotate),
        crop=None if crop is None else tuple(float(edge) for edge in crop),
        backend=backend,
    )
    settings.check()
    return make_store(
        KIND,
        write_segments,
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


class ClipStore:
    """A finished clip store, for reading: the frame on screen at any stored time of a recording.

    Attributes:
        recordings: ids of recordings, a tuple of str.
        hours: hours of video that the store holds.
        facts: rows of the index, one for each of `recordings` (without key frames).
        width, height: int32, pixels of the pictures of each of `recordings`.
        stretch_recording, stretch_start_s, stretch_end_s: the seconds that the store holds, an entry a stretch: the
            position of its recording in `recordings` (int32, ascending), and its start and end (float64, ascending
            within a recording).
        metadata: settings of the store and the hashes of what it was made from, see `FrameStore`.

    It can be pickled and forked: every process opens the shards for itself, when it first reads from one.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        lists = ("pts", "keyframes")  # a segment's own facts have them too; here they would fill the memory
        table = open_table(KIND, folder, [name for name in KIND.schema.names if name not in lists])
        self.metadata: dict[str, Any] = json.loads(table.schema.metadata[b"headcam.store"])
        self.hours: float = self.metadata["hours"]
        recording = table["recording"].cast(KIND.schema.field("recording").type).unify_dictionaries().chunk(0)
        self.recordings: tuple[str, ...] = tuple(recording.dictionary.to_pylist())
        self.facts: pa.Table = read_facts(self.folder, self.recordings)
        self._columns = {name: table[name].to_numpy() for name in table.schema.names[1:]}
        # Rows stand in the order of recordings and times: those of recording r are [first[r], first[r + 1]).
        owner = recording.indices.to_numpy().astype(np.int32)
        self._first = np.searchsorted(owner, np.arange(len(self.recordings) + 1))
        self._code = {name: code for code, name in enumerate(self.recordings)}
        self.width, self.height = (self._columns[side][self._first[:-1]] for side in ("width", "height"))
        starts = self._columns["time_s"]
        self._end_s = starts + self._columns["seconds"]
        # Segments that touch do so exactly, which their lengths give but nearly.
        touches = (owner[1:] == owner[:-1]) & (np.abs(self._end_s[:-1] - starts[1:]) < 1e-6)
        self._end_s[:-1][touches] = starts[1:][touches]
        begins, ends = (np.append(*parts)[: len(owner)] for parts in ((True, ~touches), (~touches, True)))
        self.stretch_recording, self.stretch_start_s = owner[begins], starts[begins]
        self.stretch_end_s = self._end_s[ends]
        self._files = ShardFiles(KIND, self.folder)

    def __len__(self) -> int:
        """Number of segments."""
        return len(self._columns["time_s"])

    def stretches(self, recording: str) -> tuple[Stretch, ...]:
        """The seconds of a recording that the store holds."""
        self._rows(recording)
        first, last = np.searchsorted(self.stretch_recording, self._code[recording] + np.arange(2))
        return tuple(zip(self.stretch_start_s[first:last].tolist(), self.stretch_end_s[first:last].tolist()))

    def frames_at(self, recording: str, times_s: Sequence[float]) -> list[Frame]:
        """The frame on screen at each of `times_s` (seconds from the recording's start; any order, repeats allowed).

        Each segment that they lie in is opened once, and decoded as far as they need it. A store of fewer frames a
        second than the source's gives the last stored frame whose time is not later.

        Returns:
            Frames with the *source's* `pts` and `time_s`; images uint8 (H, W, 3) RGB.
        Raises:
            InputError: no such recording, or a shard is missing or cut short.
            DecodeError: a time lies outside of `stretches(recording)`, or a shard is damaged.
        """
        rows = self._rows(recording)
        times = np.asarray(times_s, dtype=np.float64)
        starts, ends = self._columns["time_s"][rows], self._end_s[rows]
        at = np.searchsorted(starts, times, side="right") - 1
        outside = ~((at >= 0) & (times < ends[at]))
        if outside.any():
            held = ", ".join(f"{a:.6g} to {b:.6g} s" for a, b in self.stretches(recording)[:4])
            raise DecodeError(
                f"{self.folder} has no frame of {recording} at {times[outside][0]:.6g} s; it holds {held}",
                "ask for stored times, see ClipStore.stretches",
            )
        out: dict[int, Frame] = {}
        for segment in np.unique(at):
            wanted = np.flatnonzero(at == segment)
            out.update(zip(wanted.tolist(), self._decode(rows.start + int(segment), times[wanted])))
        return [out[k] for k in range(len(times))]

    def close(self) -> None:
        """Close the shards that this process opened; they open again when read from."""
        self._files.close()

    def _rows(self, recording: str) -> slice:
        if recording not in self._code:
            raise InputError(f"{self.folder} holds no recording {recording}", "see ClipStore.recordings")
        code = self._code[recording]
        return slice(int(self._first[code]), int(self._first[code + 1]))

    def _decode(self, row: int, times_s: np.ndarray) -> Iterator[Frame]:
        shard, offset, length, facts_offset, facts_length = (
            int(self._columns[name][row]) for name in ("shard", "offset", "length", "facts_offset", "facts_length")
        )
        facts = json.loads(self._files.read(shard, facts_offset, facts_length))
        stored_s, pts = np.asarray(facts["times_s"]), facts["pts"]
        scale = facts["time_base"][0]  # the segment counts in 1 / denominator, from 0
        chosen = np.maximum(np.searchsorted(stored_s, times_s, side="right") - 1, 0).tolist()
        file = _Slice(lambda start, n: self._files.read(shard, offset + start, n), length, self._files.path(shard).name)
        keyframes = [(k - pts[0]) * scale for k in facts["keyframes"]]
        ticks = [(pts[i] - pts[0]) * scale for i in chosen]
        try:
            with file, open_reader(file, keyframes=keyframes) as reader:
                start_pts = reader.info.start_pts
                frames = reader.frames_at([reader.time_s(start_pts + tick) for tick in ticks])
            if [frame.pts - start_pts for frame in frames] != ticks:
                raise DecodeError("other frames than were stored", "")
        except DecodeError as error:
            where = f"{self._files.path(shard)} is damaged at byte {offset}"
            raise DecodeError(f"{where}: {error.problem}", "copy it again, or make the store again") from error
        for i, frame in zip(chosen, frames):
            yield Frame(frame.image, pts[i], float(stored_s[i]))


class _Slice(io.RawIOBase):
    """A part of a shard as a file, of which only what is asked for is read."""

    def __init__(self, read: Callable[[int, int], bytes], length: int, name: str):
        self._read, self._length, self.name = read, length, name
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        count = max(0, min(len(buffer), self._length - self._position))
        buffer[:count] = self._read(self._position, count)
        self._position += count
        return count
