"""The torchcodec backend (extra `torchcodec`), which decodes by the FFmpeg libraries of the system.

torchcodec is asked for frames by number, in its exact seek mode, and each frame's own time stamp is held against the
packets'. So two of its known faults cannot bite: the approximate seek mode, and frames asked for by time, which it
finds by the packets' durations (where these are missing it returns the next frame). It loses its way in MPEG-TS and
-PS, which are refused by name, as is what its FFmpeg cannot decode.
"""

import re
from collections.abc import Sequence

import numpy as np

from headcam.errors import MissingPackage
from headcam.video.decoding.presented import CountingReader
from headcam.video.metadata import one_line


class TorchcodecReader(CountingReader):
    """Reader by torchcodec, on the CPU. See `headcam.video.readers.open_reader`; it finds key frames by itself."""

    def __init__(self, path: str, *, threads: int, short_side: int | None, keyframes: Sequence[int] | None):
        VideoDecoder = video_decoder()
        super().__init__(path, "torchcodec", short_side)
        if self._shown.container.startswith("mpeg"):
            self._refuse("a container without index, in which torchcodec returns other frames or none")
        try:
            self._decoder = VideoDecoder(
                path,
                stream_index=self._shown.stream,
                dimension_order="NHWC",
                num_ffmpeg_threads=threads,
                device="cpu",
                seek_mode="exact",
            )
        except (RuntimeError, ValueError) as error:
            self._refuse(f"torchcodec cannot read it: {_reason(error)}", error)
        self._check_count(len(self._decoder))
        self._check_first(self._picture(0))  # and before all other frames: see headcam.video.decoding.decord

    def close(self) -> None:
        self._decoder = None

    def _picture(self, k: int) -> np.ndarray:
        try:
            frame = self._decoder.get_frame_at(k)
        except (RuntimeError, IndexError) as error:
            self._refuse(f"damaged at {self.time_s(self._pts[k]):.6g} s ({_reason(error)})", error)
        start_s = self.info.start_pts * self.info.time_base
        self._check_time(k, frame.pts_seconds - float(start_s))
        return frame.data.numpy()


def video_decoder() -> type:
    """torchcodec's class `VideoDecoder`; `MissingPackage` where the package, or FFmpeg's libraries, are not there."""
    try:
        import torchcodec
        from torchcodec.decoders import VideoDecoder

        # From 0.17 on it can be imported without FFmpeg, and fails when it is first used.
        if getattr(torchcodec, "ffmpeg_major_version", "any") is None:
            raise ImportError("FFmpeg's shared libraries are not there, or of a version that it does not know")
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingPackage(
            f"the reader backend torchcodec cannot be loaded: {_reason(error)}",
            "pip install 'headcam[torchcodec]' and install FFmpeg's shared libraries (Debian, Ubuntu: apt install "
            "ffmpeg; or conda install ffmpeg), or use the backend pyav",
        ) from error
    return VideoDecoder


def _reason(error: BaseException) -> str:
    """The first sentence of torchcodec's words, without its function and source line."""
    return re.sub(r"^\S+, \S+:\d+, ", "", one_line(error)).partition(". ")[0].rstrip(".")
