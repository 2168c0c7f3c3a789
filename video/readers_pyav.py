"""The default backend: PyAV, that is FFmpeg's own libraries, decoding forward and seeking only where it skips work.

Decoding forward is always right; what goes wrong is seeking. So a seek is made only in containers with an index
(MP4/MOV, Matroska/WebM), to the presentation time of a key frame, and its landing is checked: where the first frame
that comes out is later than the wanted time (open GOPs, tables that lie), the reader goes back further, at last to
the start of the file. Damage is never glossed over: a packet that the decoder refuses ends the reading there.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import av
import numpy as np

from headcam.errors import DecodeError
from headcam.video.metadata import clockwise_rotation, codec_name, one_line, open_video
from headcam.video.readers import END_TOLERANCE_S, Frame, Reader, ReaderInfo, scaled_size

_WITH_INDEX = ("mov,mp4", "matroska,webm")  # formats in which a seek by time stamp lands where it says
_BLIND_SEEK_S = 10.0  # a jump of at least so much is worth a seek where the key frames are not known


class PyAVReader(Reader):
    """Reader by PyAV (14 or newer). See `headcam.video.readers.open_reader` for the arguments."""

    def __init__(self, path: str, *, threads: int, short_side: int | None, keyframes: Sequence[int] | None):
        self._path, self._threads = path, threads
        self._keyframes = sorted(keyframes) if keyframes is not None else None
        self._container = None
        self._start()
        try:
            first = self._next_frame()
            if first is None:
                reason = f": {self._trouble}" if self._trouble else ""
                raise DecodeError(f"{path} has no frame that can be decoded{reason}", "repair or remove the file")
        except BaseException:
            self.close()
            raise
        stream = self._stream
        rotation = clockwise_rotation(first)
        width, height = scaled_size(first.width, first.height, short_side)
        self._size = width, height  # as stored, before the rotation
        upright = (first.height, first.width) if rotation % 180 else (first.width, first.height)
        self.info = ReaderInfo(
            path=path,
            backend="pyav",
            codec=codec_name(stream),
            width=upright[0],
            height=upright[1],
            rotation=rotation,
            frame_rate=stream.average_rate or Fraction(0),
            time_base=stream.time_base,
            start_pts=first.pts if stream.start_time is None else stream.start_time,
        )
        self._seekable = self._container.format.name.startswith(_WITH_INDEX)
        self._current, self._coming = first, None  # the frame reached, and the one after it once it was needed
        self._given: Frame | None = None

    def iter_frames(self, times_s: Iterable[float]) -> Iterator[Frame]:
        for time_s in times_s:
            self._advance_to(time_s)
            if self._given is None or self._given.pts != self._current.pts:
                self._given = Frame(self._image(self._current), self._current.pts, self.time_s(self._current.pts))
            yield self._given

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def _advance_to(self, time_s: float) -> None:
        """Make the frame on screen at `time_s` the current one."""
        if self._worth_seeking(time_s):
            self._seek(time_s)
        while True:
            if self._coming is None:
                self._coming = self._next_frame()
            if self._coming is None:
                return self._check_end(time_s)
            if self.time_s(self._coming.pts) > time_s:
                return None
            self._current, self._coming = self._coming, None

    def _worth_seeking(self, time_s: float) -> bool:
        if time_s < self.time_s(self._current.pts):
            return self._current.pts != self._first_pts  # backwards; nothing comes before the first frame
        if not self._seekable:
            return False
        if self._keyframes is None:
            return time_s - self.time_s(self._current.pts) > _BLIND_SEEK_S
        keyframe = self._keyframe_before(time_s)
        reached = self._current if self._coming is None else self._coming
        return keyframe is not None and keyframe > reached.pts

    def _keyframe_before(self, time_s: float) -> int | None:
        k = bisect_right(self._keyframes, time_s, key=self.time_s) if self._keyframes else 0
        return self._keyframes[k - 1] if k else None

    def _seek(self, time_s: float) -> None:
        target = self._keyframe_before(time_s) if self._keyframes is not None else None
        if target is None:
            base = self.info.time_base
            target = self.info.start_pts + int(time_s * base.denominator / base.numerator)
        back = round(1 / self.info.time_base)  # how much earlier to try, doubled each time: 1 s, 2 s, 4 s
        for _ in range(4 if self._seekable else 0):
            try:
                self._container.seek(target, stream=self._stream, backward=True, any_frame=False)
                self._open_decoding()
                frame = self._next_frame()
            except (av.error.FFmpegError, DecodeError):
                break
            if frame is not None and self.time_s(frame.pts) <= time_s:
                self._current, self._coming = frame, None
                return
            if target <= self.info.start_pts:
                break
            target, back = max(self.info.start_pts, target - back), 2 * back
        self.close()
        self._start()
        self._current, self._coming = self._next_frame(), None
        if self._current is None:
            raise DecodeError(f"{self._path} cannot be read a second time", "check the disk")

    def _start(self) -> None:
        self._container, self._stream = open_video(self._path)
        self._stream.thread_count = self._threads
        self._first_pts: int | None = None
        self._open_decoding()
        self._from_start = True

    def _open_decoding(self) -> None:
        self._frames = self._decode()
        self._trouble = ""
        self._last_pts: int | None = None
        self._from_start = False

    def _next_frame(self) -> av.VideoFrame | None:
        """The next frame in order of presentation; None at the end."""
        frame = next(self._frames, None)
        if frame is not None:
            if self._from_start and self._first_pts is None:
                self._first_pts = frame.pts
            self._last_pts = frame.pts
        return frame

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Frames whose time stamps rise; packets refused before the first frame (a cut GOP) are passed over."""
        last = None
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.error.EOFError:
                    return
                except av.error.FFmpegError as error:
                    self._trouble = one_line(error)
                    if last is None:
                        continue
                    return
                for frame in frames:
                    if frame.pts is None:
                        raise DecodeError(
                            f"{self._path} has no presentation times",
                            "remux it to MP4 with time stamps, e.g. by ffmpeg",
                        )
                    if last is None or frame.pts > last:
                        last = frame.pts
                        self._trouble = ""
                        yield frame
        except (av.error.FFmpegError, IndexError) as error:
            self._trouble = one_line(error)

    def _check_end(self, time_s: float) -> None:
        frame = self._current
        claimed = getattr(frame, "duration", None) or 0  # PyAV 14.0 does not tell
        duration = claimed * self.info.time_base or (self.info.frame_rate and 1 / self.info.frame_rate)
        end_s = self.time_s(frame.pts) + float(duration)
        if time_s < end_s or (time_s < end_s + END_TOLERANCE_S and not self._trouble):
            return
        if self._trouble:
            raise DecodeError(
                f"{self._path}: damaged after {self.time_s(frame.pts):.6g} s ({self._trouble}), no frame at "
                f"{time_s:.6g} s",
                "use the time before the damage, or repair the file",
            )
        raise self.beyond_end(time_s, end_s)

    def _image(self, frame: av.VideoFrame) -> np.ndarray:
        # A stream may change its size; every frame is brought to the size of the first.
        width, height = self._size
        image = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
        return np.ascontiguousarray(np.rot90(image, -self.info.rotation // 90))
