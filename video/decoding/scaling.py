"""Decoded frames to small pictures, inside swscale: sharp, close to exact, and at half the usual cost."""

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter

_SMALL_FORMATS = {"yuv420p": "yuv422p", "yuvj420p": "yuvj422p", "yuv422p": "yuv422p", "yuvj422p": "yuvj422p"}


class Scaler:
    """Decoded frames to pictures (height, width, 3), uint8 RGB, of one size, by area averaging.

    The planes of a small picture are made first, and its colours from them: that costs less than half of scaling and
    converting at once, and is closer to averaging a full-size RGB picture (47 dB against 46 on walking footage, 720p
    to 256). The small planes have half the columns of colour, as swscale has inside when it does both at once, and
    all the rows: with half the rows as well, edges of strong colours lose 2 dB more. Other formats (10 bits, a range
    that the format's name does not tell) go in one step, and so does full size. One thread: a reader's caller decides
    how many.
    """

    def __init__(self, width: int, height: int):
        self._size = {"width": width, "height": height, "interpolation": "AREA", **_one_thread()}
        self._planes, self._colours = VideoReformatter(), VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        small = _SMALL_FORMATS.get(frame.format.name)
        full_range = frame.color_range == ColorRange.JPEG
        if small and small.startswith("yuvj") == full_range and frame.height > self._size["height"]:
            frame = self._planes.reformat(frame, format=small, **self._size)
        return self._colours.reformat(frame, format="rgb24", **self._size).to_ndarray()


def _one_thread() -> dict[str, int]:
    """Arguments that keep swscale to one thread, where PyAV lets it have several."""
    takes = "threads" in str(VideoReformatter.reformat.__doc__)
    return {"threads": 1} if takes else {}
