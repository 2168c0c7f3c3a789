"""Readers: the frame that is on screen at a time, whatever the file and whichever library decodes it.

    with open_reader("walk.mp4") as reader:
        first, later = reader.frames_at([0.0, 2.5])

One small protocol (`Reader`) and a table of backends. Every backend gives the same frame for the same time, upright,
or refuses the file by name. Times are seconds from the start of the recording; what a frame is identified by is its
integer presentation time stamp (pts) in the stream's time base. To read a file well, ask for many times at once, in
order: the frames between are then decoded once.
"""

import importlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import numpy as np

from headcam.errors import DecodeError, InputError
from headcam.video.metadata import is_picture

# backend -> (module, class); imported when asked for
BACKENDS: dict[str, tuple[str, str]] = {
    "pyav": ("headcam.video.decoding.pyav", "PyAVReader"),
    "decord": ("headcam.video.decoding.decord", "DecordReader"),
    "torchcodec": ("headcam.video.decoding.torchcodec", "TorchcodecReader"),
    "opencv": ("headcam.video.decoding.opencv", "OpenCVReader"),
}
END_TOLERANCE_S = 0.2  # containers round, and often err about how long the last frame lasts
_PICTURES = ("headcam.video.decoding.still", "ImageReader")


@dataclass(frozen=True)
class ReaderInfo:
    """Facts of an open recording.

    `width` and `height` are the pixels of an upright frame at full size; `rotation` the degrees clockwise that the
    stored picture is turned by; `start_pts` the time stamp of time 0; `frame_rate` the nominal one, 0 where unknown.
    """

    path: str
    backend: str
    codec: str
    width: int
    height: int
    rotation: int
    frame_rate: Fraction
    time_base: Fraction
    start_pts: int


@dataclass(frozen=True)
class Frame:
    """A decoded frame: `image` uint8 (H, W, 3) RGB, upright; `pts` on the file's clock; `time_s` from its start."""

    image: np.ndarray
    pts: int
    time_s: float


class Reader(ABC):
    """What every backend offers. A reader is a context manager; it is not shared between threads or processes."""

    info: ReaderInfo

    @abstractmethod
    def iter_frames(self, times_s: Iterable[float]) -> Iterator[Frame]:
        """Yield, for times in ascending order, the frame on screen at each: one pass forward through the file.

        The frame on screen at t is the last one whose time is <= t; before the first frame's time it is the first
        frame. Equal neighbours in what is yielded are the same object. The last frame stays on screen for its own
        duration, and for `END_TOLERANCE_S` more.

        Raises:
            DecodeError: a time lies beyond the end, or the file is damaged before it. Names the file, the time and
                what can be had. Frames yielded before stay valid.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file and the decoder."""

    def frames_at(self, times_s: Sequence[float]) -> list[Frame]:
        """The frame on screen at each of `times_s` (seconds from the start; any order, repeats allowed)."""
        wanted = sorted({_checked(self.info.path, t) for t in times_s})
        found = dict(zip(wanted, self.iter_frames(wanted)))
        return [found[float(t)] for t in times_s]

    def time_s(self, pts: int) -> float:
        """Seconds from the start of the frame with time stamp `pts`: the float64 nearest to the exact fraction."""
        base = self.info.time_base
        return (pts - self.info.start_pts) * base.numerator / base.denominator

    def beyond_end(self, time_s: float, end_s: float) -> DecodeError:
        """The error for a time after the end."""
        return DecodeError(
            f"{self.info.path}: no frame at {time_s:.6g} s, frames can be had from 0 s to {end_s:.6g} s",
            "ask for earlier times, or index the file again",
        )

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_reader(
    source: str | os.PathLike | BinaryIO,
    backend: str = "pyav",
    *,
    threads: int = 1,
    short_side: int | None = None,
    keyframes: Sequence[int] | None = None,
) -> Reader:
    """Open a video, or a still picture (which any time from 0 on shows), for reading.

    Args:
        source: path of the file; or, for the backend `pyav`, a binary file object that can seek.
        backend: `pyav`, `decord`, `torchcodec` or `opencv`; a still picture is read by Pillow whichever is named.
        threads: decoder threads; 1 is best where many readers run side by side.
        short_side: scale frames (area averaging, never enlarging) so that their shorter side has so many pixels.
        keyframes: pts where decoding can start, ascending (column `keyframes` of the index): lets the reader seek
            exactly when, and only when, it skips work. Used by `pyav`; the others find them by themselves.
    Raises:
        DecodeError: no picture can be had from this file by this backend.
        MissingPackage: the backend's package is not installed.
    """
    if backend not in BACKENDS:
        raise InputError(f"{backend!r} is not a reader backend", f"use one of {', '.join(BACKENDS)}")
    if short_side is not None and short_side < 1:
        raise InputError(f"short_side is {short_side}", "use at least 1 pixel")
    if not isinstance(source, (str, os.PathLike)):
        if backend != "pyav":
            raise InputError(
                f"the reader backend {backend} reads a file by its path, not an open file object",
                "use the backend pyav",
            )
        path, chosen = source, BACKENDS[backend]
    else:
        path, chosen = os.fspath(source), _PICTURES if is_picture(source) else BACKENDS[backend]
    module, name = chosen
    reader = getattr(importlib.import_module(module), name)
    return reader(path, threads=threads, short_side=short_side, keyframes=keyframes)


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """(width, height) after scaling to `short_side`, aspect kept to the nearest pixel, never enlarged."""
    if short_side is None or short_side >= min(width, height):
        return width, height
    scale = Fraction(short_side, min(width, height))
    return max(1, math.floor(width * scale + Fraction(1, 2))), max(1, math.floor(height * scale + Fraction(1, 2)))


def _checked(path: str, time_s: float) -> float:
    time_s = float(time_s)
    if not (math.isfinite(time_s) and time_s >= 0):
        raise DecodeError(f"{path}: no frame at {time_s} s", "ask for times from 0 on")
    return time_s
