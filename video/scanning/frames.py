"""What `headcam scan` takes down of one recording while it decodes all of it; `verdict` judges it.

Every packet goes to the decoder (PyAV, one thread, told to refuse damage instead of painting it over); what is refused
is noted with the decoder's words, and the next packet follows. Of every frame stay its time, whether it is a key frame
or marked as corrupt, the mean and spread of its luma, and whether it is the picture before once more.

Pictures are taken at 64 x 36 by picking pixels, not by averaging: a sensor's noise, which tells a still scene from a
repeated frame, stays. Four times a second the picture is also hashed for `duplicates`.
"""

import base64
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from headcam.errors import InputError
from headcam.video.metadata import one_line, open_video
from headcam.video.stretches import Stretch

HASHES_PER_SECOND = 4
WIDTH, HEIGHT = 64, 36  # of the pictures that are measured
_PACKETS_PER_BEAT = 16
HASHED_S = 48 * 3600.0  # longer recordings are a broken clock: no table of their hashes is made
_FLAT = 6.0  # luma spread below which a picture is too plain for its hash to mean anything
_POP = 2.0  # mean luma difference of a standing picture across a key frame (0.4 to 0.8 for x264 at CRF 18 to 35) ...
_REPEATS = 4  # ... after so many exact repeats: where every frame is a key frame, repeats are exact anyway
_STRICT = "crccheck+bitstream+buffer+explode"  # AVOption err_detect: all that the default reader asks of any decoder
_HONEST_HEADER = ("matroska",)  # formats without a duration for each stream whose header is not an estimate


@dataclass(frozen=True)
class Settings:
    """What counts as bad. Luma runs from 0 (black) to 255; times are seconds.

    The defaults condemn nothing in 29 minutes of head-camera video at 5 to 60 frames/s and low bit rates: the darkest
    real frames there have a spread of 9.8, the longest real standstill lasts 0.4 s.
    """

    decode: str = "all"  # `all` frames, or `keyframes`: a quick look that verifies key frames only
    black_luma: float = 32.0  # black: mean luma of at most this ...
    black_spread: float = 8.0  # ... and a standard deviation over the picture of at most this ...
    black_s: float = 1.0  # ... for at least so long
    frozen_difference: float = 0.25  # frozen: mean absolute luma difference to the first picture of at most this ...
    frozen_s: float = 2.0  # ... for at least so long
    gap_s: float = 1.0  # a gap: a frame on screen for longer than this ...
    gap_steps: float = 10.0  # ... and longer than so many usual steps between frames
    duplicate_s: float = 2.0  # the same footage in another recording for at least so long ...
    duplicate_bits: int = 10  # ... with hashes (63 bits) that differ in at most so many

    def __post_init__(self):
        if self.decode not in ("all", "keyframes"):
            raise InputError(f"decode is {self.decode!r}", "use all or keyframes")
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name != "decode" and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}", "use a number that is not negative")
        for name in ("black_s", "frozen_s", "gap_s", "gap_steps", "duplicate_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}", "use a number above 0")


@dataclass(frozen=True)
class Task:
    """One recording to look at; names as in `headcam.video.recordings.SCHEMA`.

    `stop_after` is the number of packets to decode at most, where an earlier look was lost behind them, and `lost`
    why it was.
    """

    recording: str
    path: str
    bytes: int
    start_s: float
    duration_s: float
    rotation: int
    keyframes: tuple[int, ...] | None
    settings: Settings
    stop_after: int | None = None
    lost: str = ""


@dataclass
class Finding:
    """What is known of one recording: JSON-able, so that a journal can hold it.

    Attributes:
        stretches: [start_s, end_s, reason, measure, detail]; those of different reasons do not overlap.
        claimed_s: seconds that the file says it holds: the index's duration, or a longer one in its header.
        frames: frames that were decoded and are good.
        frame_s: the usual time between two frames; 0 where there is none.
        notes: what is odd without making any second unusable.
        hashes: base64 of little-endian uint64, one each quarter of a second; 0 where there is none.
        lost: the decoder crashed or did not answer, or its process was killed.
    """

    stretches: list[list[Any]] = field(default_factory=list)
    claimed_s: float = 0.0
    frames: int = 0
    frame_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    hashes: str = ""
    lost: bool = False

    def hash_array(self) -> np.ndarray:
        """uint64 (T,): the hash of the frame on screen at 0, 1/4, 2/4 ... s."""
        return np.frombuffer(base64.b64decode(self.hashes), "<u8")


class Shown:
    """What decoding leaves behind: columns with an entry a frame in order of presentation, and what went wrong."""

    def __init__(self) -> None:
        self.time: list[float] = []  # s from the recording's start
        self.own_end: list[float] = []  # when the frame leaves the screen as far as its own duration goes
        self.order: list[int] = []  # which packet the frame came in
        self.key: list[bool] = []
        self.corrupt: list[bool] = []
        self.mean: list[float] = []
        self.spread: list[float] = []
        self.same_as: list[int] = []  # the frame that this one repeats (itself where it is new)
        self.change: list[float] = []  # mean absolute difference to that frame
        self.refused: dict[int, str] = {}  # packet -> the decoder's words
        self.packet_times: list[float] = []  # of all packets, in the order of the file (NaN where untold)
        self.hashes: dict[int, int] = {}  # quarter of a second -> hash
        self.end = ""  # why reading ended before the file did
        self.back: list[Stretch] = []  # where the clock jumped back: seconds that the file has twice
        self.not_rising = 0  # frames dropped because their time is not later than the one before
        self.header_s = 0.0  # duration that the container's header claims
        self.rate = 0.0  # frames/s that the container's header claims

    @property
    def is_doubtful(self) -> bool:
        """Whether anything was wrong: decoding the file otherwise than from its start to its end may give less."""
        return bool(self.refused or any(self.corrupt) or self.end or self.back or self.not_rising)


def decode(task: Task, beat: Callable[[Any], None]) -> Shown:
    """Decode a video to its end, or as far as `task.stop_after` says; `DecodeError` where it cannot be opened."""
    shown, keyframes_only = Shown(), task.settings.decode == "keyframes"
    container, stream = open_video(task.path)
    with container:
        stream.thread_count = 1
        if keyframes_only:
            stream.codec_context.skip_frame = "NONKEY"  # strictness would take what is skipped for damage
        else:
            # Refuse what is damaged. On 79 odd but sound files of 12 codecs this changes no frame; on damaged ones it
            # refuses up to half of what libavcodec would conceal without a word.
            stream.codec_context.options = {"err_detect": _STRICT}
        base, pictures = stream.time_base, _Pictures(task, shown)
        frame_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
        start_pts = round(task.start_s / base)
        if stream.duration:
            shown.header_s = float(stream.duration * base)
        elif container.duration and container.format.name.startswith(_HONEST_HEADER):
            shown.header_s = container.duration / av.time_base
        shown.rate = float(stream.average_rate or 0)
        order_of: dict[int, int] = {}
        highest = -math.inf
        for packet in _packets(container, stream, shown):
            count = len(shown.packet_times)
            if count % _PACKETS_PER_BEAT == 0:
                beat(count)
            if task.stop_after is not None and count >= task.stop_after:
                shown.end = task.lost
                break
            pts = packet.dts if packet.pts is None else packet.pts
            if packet.size:
                time_s = math.nan if pts is None or packet.is_discard else float((pts - start_pts) * base)
                shown.packet_times.append(time_s)
                if pts is not None:
                    order_of[pts] = count
                if packet.dts is not None:
                    dts_s = float((packet.dts - start_pts) * base)
                    if dts_s < highest - task.settings.gap_s:
                        shown.back.append((max(dts_s, 0.0), highest))
                    highest = max(highest, dts_s) if not shown.back else dts_s
            if keyframes_only and packet.size and not packet.is_keyframe:
                continue
            if packet.is_corrupt:
                shown.refused[count] = "a packet is cut short"
                continue
            try:
                frames = packet.decode()
            except av.error.EOFError:
                break
            except (av.error.FFmpegError, ValueError) as error:
                shown.refused[count] = one_line(error)
                continue
            for frame in frames:
                if frame.pts is None:
                    shown.refused[count] = "a frame without a time"
                    shown.corrupt[-1:] = [True] * len(shown.corrupt[-1:])  # nobody knows when the one before it ends
                    continue
                own_s = float((getattr(frame, "duration", None) or 0) * base) or frame_s  # PyAV 14.0 does not tell
                pictures.add(frame, float((frame.pts - start_pts) * base), own_s, order_of.pop(frame.pts, count))
        pictures.finish()
    return shown


def _packets(container: Any, stream: Any, shown: Shown) -> Iterator["av.Packet"]:
    """The stream's packets and the empty one that asks for what is left; damage to the container ends them."""
    try:
        yield from container.demux(stream)
    except IndexError:
        shown.end = "a new stream begins in mid-file"
    except av.error.FFmpegError as error:
        shown.end = one_line(error)


class _Pictures:
    """Measures frames as they come, at a small size."""

    def __init__(self, task: Task, shown: Shown):
        self._task, self._shown = task, shown
        # One scaler each: its tables are made once, not once a frame.
        self._small, self._square = VideoReformatter(), VideoReformatter()
        self._first: np.ndarray | None = None  # of the pictures that are the same
        self._repeats = 0  # since then
        self._last: av.VideoFrame | None = None

    def add(self, frame: av.VideoFrame, time_s: float, own_s: float, order: int) -> None:
        shown = self._shown
        if shown.time and time_s <= shown.time[-1]:
            shown.not_rising += 1  # the readers do not hand it out either
            return
        scaled = self._small.reformat(frame, WIDTH, HEIGHT, "gray", interpolation="POINT")
        luma = scaled.to_ndarray().astype(np.int16)
        change = math.inf if self._first is None else float(np.abs(luma - self._first).mean())
        same = change <= self._task.settings.frozen_difference
        self._repeats += same
        if not same and frame.key_frame and change <= _POP and self._repeats >= _REPEATS:
            # Coded afresh, a standing picture comes out a little different; from here on it is compared with this one.
            self._first, self._repeats, same = luma, 0, True
        if same:
            same_as = shown.same_as[-1]
        else:
            self._first, self._repeats, change, same_as = luma, 0, 0.0, len(shown.time)
        self._hash_until(time_s)
        shown.time.append(time_s)
        shown.own_end.append(time_s + own_s)
        shown.order.append(order)
        shown.key.append(bool(frame.key_frame))
        shown.corrupt.append(bool(frame.is_corrupt))
        shown.mean.append(float(luma.mean()))
        shown.spread.append(float(luma.std()))
        shown.same_as.append(same_as)
        shown.change.append(change)
        self._last = frame

    def finish(self) -> None:
        self._hash_until(self._task.duration_s)

    def _hash_until(self, time_s: float) -> None:
        """Hash the last frame for the quarters of a second in which it is on screen, if there are any."""
        settings = self._task.settings
        if self._last is None or settings.decode == "keyframes" or self._task.duration_s > HASHED_S:
            return  # key frames of two encodings of one scene show different moments: there is nothing to compare
        start_s = max(self._shown.time[-1], 0.0)
        first = math.ceil(start_s * HASHES_PER_SECOND)
        last = math.ceil(min(time_s, start_s + settings.gap_s) * HASHES_PER_SECOND)
        if first < last:
            square = self._square.reformat(self._last, 32, 32, "gray", interpolation="AREA").to_ndarray()
            value = picture_hash(np.rot90(square, -self._task.rotation // 90))
            self._shown.hashes.update(dict.fromkeys(range(first, last), value))


# The lowest eight vectors of the discrete cosine transform of 32 values (DCT-II, without its scale).
_COSINES = np.cos(np.pi / 32 * np.outer(np.arange(8), np.arange(32) + 0.5))


def picture_hash(luma: np.ndarray) -> int:
    """A hash of 63 bits, few of which change when a picture is encoded again or scaled; 0 for a plain picture.

    The signs of the lowest 8 x 8 coefficients of the discrete cosine transform without the mean (a variant of the
    perceptual hash of Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", 3.2.1). Bit 0
    is set in every hash that means something.

    Args:
        luma: (32, 32), upright.
    """
    if luma.std() < _FLAT:
        return 0
    signs = (_COSINES @ luma @ _COSINES.T).ravel() > 0
    signs[0] = True
    return int(np.packbits(signs, bitorder="little").view("<u8")[0])
