"""The OpenCV backend: `cv2.VideoCapture`, read in order and never sought.

OpenCV's counts are the header's estimates, its seeks go by average rates, and it reports success where it has none:
what its buffer held before (black, or the picture before) for interlaced frames, a silent end where a packet is
damaged, nothing at all of AV1. What can be trusted is the order in which it reads, and the time stamp of each frame
read; this reader counts frames from the start and holds each one's time against the packets'. Going back means
starting over, so ask for times in order.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from headcam.video.decoding.presented import CountingReader
from headcam.video.readers import open_reader


class OpenCVReader(CountingReader):
    """Reader by OpenCV's FFmpeg. See `headcam.video.readers.open_reader` for the arguments; key frames go unused."""

    def __init__(self, path: str, *, threads: int, short_side: int | None, keyframes: Sequence[int] | None):
        super().__init__(path, "opencv", short_side)
        if self._shown.interlaced:
            self._refuse("interlaced, which OpenCV shows as black pictures")
        if self._shown.several:
            self._refuse("several video streams, of which OpenCV takes its own choice")
        self._threads = threads
        self._capture = cv2.VideoCapture()
        try:
            self._check_first(self._start())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._capture.release()

    def _start(self) -> np.ndarray:
        """Read frame 0, which is then the last one converted (see `_check_repeat`)."""
        self._capture.release()
        self._capture = cv2.VideoCapture(self.info.path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, self._threads])
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        self._reached = -1  # number of the frame that was read last
        self._last: tuple[int, np.ndarray] | None = None  # the frame that was converted last: number, picture
        if not self._capture.isOpened():
            self._refuse("OpenCV cannot open it")
        return self._picture(0)

    def _picture(self, k: int) -> np.ndarray:
        if k < self._reached:
            self._start()
        while self._reached < k:
            if not self._capture.grab():
                self._refuse(f"OpenCV stops after {self._reached + 1} of {len(self._pts)} frames")
            self._reached += 1
            self._check_time(self._reached, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        if self._last is not None and self._last[0] == k:
            return self._last[1]
        _, image = self._capture.retrieve()
        if image is None:
            self._refuse(f"OpenCV has no picture at {self.time_s(self._pts[k]):.6g} s")
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        if self._last is not None and np.array_equal(image, self._last[1]):
            self._check_repeat(self._last[0], k)
        self._last = k, image
        return image

    def _check_repeat(self, before: int, k: int) -> None:
        """Whether frames `before` and `k` really are alike: OpenCV leaves the last picture where it cannot convert one
        (interlaced frames amid others, say), and reports success."""
        times = [self.time_s(self._pts[before]), self.time_s(self._pts[k])]
        with open_reader(self.info.path) as reader:
            one, other = reader.frames_at(times)
        if not np.array_equal(one.image, other.image):
            self._refuse(f"OpenCV repeats a picture at {times[1]:.6g} s, where there is another")
