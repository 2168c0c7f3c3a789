"""The decord backend (the package `decord`, or its maintained fork `decord2`, where there is a wheel).

decord counts frames by index and keeps their times as float32. Here the exact time stamps come from the packets, and
decord is believed only where its own count and times agree with them. It is known to return other frames at random
positions of open GOPs and of containers without an index (MPEG-TS and -PS), and to count frames that an edit list
removes: such files are refused by name, as are those that it cannot open (AV1, streams without duration). Its thread
decodes ahead, so damage may also cost some frames before it, now and then others.
"""

import re
from collections.abc import Sequence

import numpy as np

from headcam.errors import MissingPackage
from headcam.video.decoding.presented import CountingReader
from headcam.video.metadata import one_line


class DecordReader(CountingReader):
    """Reader by decord. See `headcam.video.readers.open_reader` for the arguments; it finds key frames by itself."""

    def __init__(self, path: str, *, threads: int, short_side: int | None, keyframes: Sequence[int] | None):
        try:
            import decord
        except ImportError as error:
            raise MissingPackage(
                "the reader backend decord needs the package decord, which is not installed",
                "pip install decord (or decord2), or use the backend pyav",
            ) from error
        super().__init__(path, "decord", short_side)
        shown = self._shown
        if shown.container.startswith("mpeg"):
            self._refuse("a container without index, in which decord returns other frames")
        if shown.edited:
            self._refuse("an edit list, which decord ignores")
        if shown.open_gops:
            self._refuse("open GOPs, in which decord returns other frames")
        if shown.several:
            self._refuse("several video streams, of which decord takes its own choice")
        try:
            self._reader = decord.VideoReader(path, num_threads=threads)
            count = len(self._reader)
            times_s = np.asarray(self._reader.get_frame_timestamp(range(count)))[:, 0] if count else np.zeros(0)
        except Exception as error:  # DECORDError, IndexError, RuntimeError: decord has no common base
            self._refuse(f"decord cannot read it: {_reason(error)}", error)
        self._check_count(count)
        self._check_times(times_s)
        # A decoder that begins elsewhere can go wrong for good: frame 0 carries what it needs to know of the encoder
        # (old x264 in 4:4:4, whose version FFmpeg must see). So this check also comes before all other frames.
        self._check_first(self._picture(0))

    def close(self) -> None:
        self._reader = None

    def _check_times(self, times_s: np.ndarray) -> None:
        exact = np.array([self.time_s(pts) for pts in self._pts])
        # decord counts from the stream's first time stamp as well; half a frame is far above float32 rounding.
        step = np.diff(exact).min() if len(exact) > 1 else 1.0
        if np.abs(exact - times_s).max() > step / 2 + 1e-6 * exact.max():
            self._refuse("decord gives its frames other times than the file does")

    def _picture(self, k: int) -> np.ndarray:
        try:
            return self._reader[k].asnumpy()
        except Exception as error:  # as above
            self._refuse(f"damaged at {self.time_s(self._pts[k]):.6g} s ({_reason(error)})", error)


def _reason(error: BaseException) -> str:
    """decord's words without its time, source line and the path."""
    return re.sub(r"^(\[[\d:]+\] \S+:\d+: )?(\[[^]]*\] ?)?", "", one_line(error)).rstrip(".")
