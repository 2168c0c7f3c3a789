"""The decord backend (the package `decord`, or its maintained fork `decord2`, where there is a wheel).

decord counts frames by index and keeps their times as float32. Here the exact time stamps come from the packets, and
decord is believed only where its own count and times agree with them. It is known to return other frames at random
positions of open GOPs and of containers without an index (MPEG-TS and -PS), and to count frames that an edit list
removes: such files are refused by name, as are those that it cannot open (AV1, streams without duration).
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import av
import cv2
import numpy as np

from headcam.errors import DecodeError, MissingPackage
from headcam.video.metadata import one_line, open_video, read_metadata
from headcam.video.readers import END_TOLERANCE_S, Frame, Reader, ReaderInfo, scaled_size

_INSTEAD = "read it with the backend pyav"


class DecordReader(Reader):
    """Reader by decord. See `headcam.video.readers.open_reader` for the arguments."""

    def __init__(self, path: str, *, threads: int, short_side: int | None, keyframes: Sequence[int] | None):
        try:
            import decord
        except ImportError as error:
            raise MissingPackage(
                "the reader backend decord needs the package decord, which is not installed",
                "pip install decord (or decord2), or use the backend pyav",
            ) from error
        facts = read_metadata(path)
        start_pts = _start_pts(path)
        self._pts = _presented(path)
        try:
            self._reader = decord.VideoReader(path, num_threads=threads)
            count = len(self._reader)
            height, width = self._reader[0].shape[:2] if count else (0, 0)
            decord_times = np.asarray(self._reader.get_frame_timestamp(range(count)))[:, 0] if count else np.zeros(0)
        except Exception as error:  # DECORDError, IndexError, RuntimeError: decord has no common base
            raise DecodeError(f"{path}: decord cannot read it: {one_line(error)}", _INSTEAD) from error
        upright = (facts.height, facts.width) if facts.rotation % 180 else (facts.width, facts.height)
        if (width, height) != upright:
            raise DecodeError(f"{path}: decord shows {width}x{height} pixels, not {upright[0]}x{upright[1]}", _INSTEAD)
        self.info = ReaderInfo(
            path=path,
            backend="decord",
            codec=facts.codec,
            width=width,
            height=height,
            rotation=facts.rotation,
            frame_rate=Fraction(facts.fps_num, facts.fps_den),
            time_base=Fraction(facts.time_base_num, facts.time_base_den),
            start_pts=start_pts if start_pts is not None else self._pts[0],
        )
        self._check_times(decord_times)
        self._size = scaled_size(width, height, short_side)

    def iter_frames(self, times_s: Iterable[float]) -> Iterator[Frame]:
        given: Frame | None = None
        last_s = self.time_s(self._pts[-1])
        frame_s = float(1 / self.info.frame_rate) if self.info.frame_rate else 0.0
        for time_s in times_s:
            if time_s >= last_s + frame_s + END_TOLERANCE_S:
                raise self.beyond_end(time_s, last_s + frame_s)
            k = max(bisect_right(self._pts, time_s, key=self.time_s) - 1, 0)
            if given is None or given.pts != self._pts[k]:
                given = Frame(self._image(k, time_s), self._pts[k], self.time_s(self._pts[k]))
            yield given

    def close(self) -> None:
        self._reader = None

    def _check_times(self, decord_times: np.ndarray) -> None:
        path = self.info.path
        if len(decord_times) != len(self._pts):
            raise DecodeError(f"{path}: decord counts {len(decord_times)} frames of {len(self._pts)} shown", _INSTEAD)
        exact = np.array([self.time_s(pts) for pts in self._pts])
        # decord counts from the stream's first time stamp as well; half a frame is far above float32 rounding.
        step = np.diff(exact).min() if len(exact) > 1 else 1.0
        if np.abs(exact - decord_times).max() > step / 2 + 1e-6 * exact.max():
            raise DecodeError(f"{path}: decord gives its frames other times than the file does", _INSTEAD)

    def _image(self, k: int, time_s: float) -> np.ndarray:
        try:
            image = self._reader[k].asnumpy()
        except Exception as error:  # as above
            raise DecodeError(f"{self.info.path}: damaged at {time_s:.6g} s ({one_line(error)})", _INSTEAD) from error
        if self._size != (self.info.width, self.info.height):
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        return image


def _start_pts(path: str) -> int | None:
    container, stream = open_video(path)
    with container:
        return stream.start_time


def _presented(path: str) -> list[int]:
    """Time stamps of the frames that a file shows, ascending; refuses what decord is known to lie about."""
    container, stream = open_video(path)
    shown, keyframe = [], None
    with container:
        if container.format.name.startswith("mpeg"):
            raise DecodeError(f"{path}: a container without index, in which decord returns other frames", _INSTEAD)
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.pts is None:
                    raise DecodeError(f"{path}: packets without time stamps, which decord guesses", _INSTEAD)
                if packet.is_keyframe:
                    keyframe = packet.pts
                elif keyframe is not None and packet.pts < keyframe:
                    raise DecodeError(f"{path}: open GOPs, in which decord returns other frames", _INSTEAD)
                if packet.is_discard:
                    raise DecodeError(f"{path}: an edit list, which decord ignores", _INSTEAD)
                shown.append(packet.pts)
        except av.error.FFmpegError as error:
            raise DecodeError(f"{path}: {one_line(error)}", _INSTEAD) from error
    return sorted(shown)
