"""How the segments of a clip store are made: which frames of a recording go in, and their encoding.

`write_segments` is what `make_store` (`shards.py`) calls in its workers. The times of the frames come first, from the
packets' time stamps; the reader then gives the frame on screen at each, and a `Segment` encodes those of one cell. Its
bytes follow from the pictures, their time stamps and the settings alone, so that a store comes out the same each time.
"""

import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from headcam.errors import DecodeError, InputError, MissingPackage
from headcam.video.metadata import is_picture, open_video
from headcam.video.readers import BACKENDS
from headcam.video.stores.cells import Cells, Piece, Skipped, frames_on_screen, merged_skips, steady_cells
from headcam.video.stores.framing import Crop, Framing
from headcam.video.stores.shards import Count, Row, TarShard

_SMALLEST = 16  # pixels a side that x264 takes
_BEAT = 16  # frames between two signs of life
_SEEKABLE = ("mov,mp4", "matroska,webm")  # formats in which a seek by time stamp lands where it says


@dataclass(frozen=True)
class Settings:
    """What the bytes of a store follow from, beside the seconds that are stored."""

    segment_s: float = 30.0
    gop: int = 32
    crf: int = 20
    frames_per_second: float | None = None
    short_side: int = 256
    rotate: int = 0
    crop: Crop | None = None
    backend: str = "pyav"

    @property
    def framing(self) -> Framing:
        """Which part of a picture is stored."""
        return Framing(self.short_side, self.rotate, self.crop, even=True)

    def check(self) -> None:
        """Raise `InputError` for a setting out of range, `MissingPackage` where there is no encoder."""
        if not (math.isfinite(self.segment_s) and self.segment_s >= 1):
            raise InputError(f"segment_s is {self.segment_s}", "use at least 1 second, such as 30")
        if self.gop < 1:
            raise InputError(f"gop is {self.gop}", "use a number of frames from key frame to key frame, such as 32")
        if not 0 <= self.crf <= 51:
            raise InputError(f"crf is {self.crf}", "use 0 (lossless) to 51 (worst), such as 20")
        rate = self.frames_per_second
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise InputError(f"frames_per_second is {rate}", "use a number above 0, or leave it out for every frame")
        if self.backend not in BACKENDS:
            raise InputError(f"{self.backend!r} is not a reader backend", f"use one of {', '.join(BACKENDS)}")
        self.framing.check()
        if self.short_side < _SMALLEST or self.short_side % 2:
            raise InputError(f"short_side is {self.short_side}", f"use an even number from {_SMALLEST} on, such as 256")
        if "libx264" not in av.codec.codecs_available:
            raise MissingPackage("this PyAV has no libx264, which writes clip stores", "pip install --upgrade av")


def cells_of(piece: Piece, settings: Settings) -> Cells:
    """The cells that a recording is cut into, one a segment."""
    return steady_cells(piece.stretches, 1 / settings.segment_s)


def write_segments(piece: Piece, settings: Settings, shard: TarShard, count: Count) -> Iterator[Row | Skipped]:
    """Write the segments of a piece; see `headcam.video.stores.shards.Write`."""
    cells = cells_of(piece, settings)
    if is_picture(piece.path):
        count(1)
        yield piece.skipped_cell(cells, 0, "a still picture, of which there are no clips")
        return
    cut = settings.framing.of(piece.width, piece.height)
    times_s, owners = _wanted(piece, cells, settings.frames_per_second)
    segment: Segment | None = None
    skips = []
    found = frames_on_screen(piece, times_s, 0, len(times_s), settings.backend, cut.short_side)
    with closing(found):
        for k, frame in found:
            cell = owners[k]
            begins = k == 0 or owners[k - 1] != cell
            ends = k + 1 == len(owners) or owners[k + 1] != cell
            start_s = float(cells.start_s[cell] if begins else times_s[k])
            if isinstance(frame, str):
                if segment is not None:
                    yield segment.close(shard, start_s)
                    segment = None
                skips.append(piece.skipped(start_s, float(cells.end_s[cell] if ends else times_s[k + 1]), frame))
            else:
                segment = segment or Segment(piece, settings, start_s)
                segment.add(cut(frame.image), frame.pts)
                if ends:
                    yield segment.close(shard, float(cells.end_s[cell]))
                    segment = None
            if ends or k % _BEAT == 0:
                count(int(ends))
    yield from merged_skips(skips)


def _wanted(piece: Piece, cells: Cells, rate: float | None) -> tuple[np.ndarray, np.ndarray]:
    """The times at which frames of a piece are wanted, (N,) float64 ascending, and the cell that each belongs to.

    The first of a cell is its start. The others are the times of the frames themselves (`rate` None), or those of a
    steady grid that goes through the whole stretch, wherever segments and pieces are cut.
    """
    mine = range(piece.first, piece.last)
    if rate is None:
        candidates = _frame_times(piece, cells.start_s[mine[0]], cells.end_s[mine[-1]])
    else:
        candidates = steady_cells(piece.stretches, rate).time_s
    times, owners = [], []
    for cell in mine:
        start, end = cells.start_s[cell], cells.end_s[cell]
        inside = candidates[np.searchsorted(candidates, start + 1e-9) : np.searchsorted(candidates, end)]
        times.append(np.append(start, inside))
        owners.append(np.full(len(inside) + 1, cell))
    return np.concatenate(times), np.concatenate(owners)


def _frame_times(piece: Piece, start_s: float, end_s: float) -> np.ndarray:
    """Times of the frames in [start_s, end_s) by the packets' time stamps, ascending; nothing is decoded.

    Where the packets end too early, times go on at the frame rate: the reader then says whether the last frame stays
    on screen, or from when on nothing can be had.
    """
    first, last = (piece.start_pts + t / piece.time_base for t in (start_s, end_s))
    keyframe = max((k for k in piece.keyframes if k <= first), default=None)
    found = _packet_pts(piece.path, keyframe, last + 1 / piece.time_base)
    if keyframe is not None and (not found or found[0] > first):
        found = _packet_pts(piece.path, None, last + 1 / piece.time_base)  # the seek went astray
    times_s = np.unique(piece.time_s(found))
    step_s = float(1 / piece.frame_rate) if piece.frame_rate else 0.1
    reached = max(times_s[-1], start_s) if len(times_s) else start_s
    return np.append(times_s, np.arange(reached + step_s, end_s, step_s))


def _packet_pts(path: str, keyframe: int | None, last: float) -> list[int]:
    """Time stamps of packets from `keyframe` (None: from the file's start) until none up to `last` can follow."""
    found: list[int] = []
    try:
        container, stream = open_video(path)
    except DecodeError:
        return found  # which the reader will say, with the reason
    with container:
        try:
            if keyframe is not None and container.format.name.startswith(_SEEKABLE):
                container.seek(keyframe, stream=stream, backward=True)
            for packet in container.demux(stream):
                pts = packet.dts if packet.pts is None else packet.pts
                if pts is not None and packet.size and not packet.is_discard:
                    found.append(pts)
                if packet.dts is not None and packet.dts > last:
                    break
        except (av.error.FFmpegError, IndexError):
            pass  # cut short: the reader will say so
    return found


class Segment:
    """A segment being encoded. Its clock is the source's, and starts at its first frame."""

    def __init__(self, piece: Piece, settings: Settings, start_s: float):
        self._piece, self._settings, self._start_s = piece, settings, start_s
        self._buffer = io.BytesIO()
        self._container = None
        self._scaler = VideoReformatter()
        self._pts: list[int] = []
        self._keyframes: list[int] = []

    def add(self, image: np.ndarray, pts: int) -> None:
        """Add a frame, (H, W, 3) uint8, unless it is the one added last."""
        if self._pts and pts <= self._pts[-1]:
            return
        if self._container is None:
            self._open(image.shape[1], image.shape[0])
        self._pts.append(pts)
        frame = self._scaler.reformat(
            av.VideoFrame.from_ndarray(image, format="rgb24"),
            format="yuv420p",
            dst_colorspace="ITU601",
            dst_color_range="MPEG",
        )
        frame.pts = (pts - self._pts[0]) * self._piece.time_base.numerator
        frame.time_base = Fraction(1, self._piece.time_base.denominator)
        self._mux(self._stream.encode(frame))

    def close(self, shard: TarShard, end_s: float) -> Row:
        """Finish the segment and add it to a shard; returns its row. It stands for the time until `end_s`."""
        self._mux(self._stream.encode(None))
        width, height = self._stream.width, self._stream.height
        self._container.close()
        piece, data = self._piece, self._buffer.getvalue()
        row = {
            "recording": piece.recording,
            "time_s": self._start_s,
            "seconds": end_s - self._start_s,
            "width": width,
            "height": height,
            "frames": len(self._pts),
            "pts": self._pts,
            "keyframes": self._keyframes,
        }
        clock = {
            "start_pts": piece.start_pts,
            "time_base": [piece.time_base.numerator, piece.time_base.denominator],
            "times_s": piece.time_s(self._pts).tolist(),
        }
        facts = json.dumps(row | clock).encode()
        # By its start, and not by its first frame, which a frozen picture makes the first of several segments.
        key = f"{piece.recording}-{piece.start_pts + round(self._start_s / piece.time_base)}"
        offset, facts_offset = shard.add(key, {"mp4": data, "json": facts})
        places = {"offset": offset, "length": len(data), "facts_offset": facts_offset, "facts_length": len(facts)}
        return row | places

    def _open(self, width: int, height: int) -> None:
        settings, base = self._settings, self._piece.time_base
        # The timescale keeps the source's clock exact; without bit-exactness the muxer would write its own version.
        options = {"video_track_timescale": str(base.denominator), "fflags": "+bitexact"}
        self._container = av.open(self._buffer, "w", format="mp4", options=options)
        stream = self._container.add_stream("libx264", rate=self._rate())
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, base.denominator)
        gop = settings.gop
        stream.options = {
            "preset": "fast",
            "crf": str(settings.crf),
            "threads": "1",  # the number of threads changes the bytes
            # Key frames at constant distance, nothing across them; without the macroblock tree, which on AVX-512 gives
            # other bytes from run to run; BT.601 in limited range, which is also what readers take untagged video for.
            "x264-params": f"bframes=3:keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0:mbtree=0"
            ":colormatrix=smpte170m:range=tv",
        }
        self._stream = stream

    def _rate(self) -> Fraction:
        """Frames a second, for the file's header and x264's rate control; the exact times are the frames' own."""
        if self._settings.frames_per_second is not None:
            return Fraction(self._settings.frames_per_second).limit_denominator(1001)
        return self._piece.frame_rate.limit_denominator(1001) or Fraction(25)

    def _mux(self, packets: Sequence[av.Packet]) -> None:
        for packet in packets:
            if packet.is_keyframe:
                self._keyframes.append(packet.pts // self._piece.time_base.numerator + self._pts[0])
            self._container.mux(packet)
