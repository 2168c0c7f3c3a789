"""What a file really shows, from its packets: the measure that backends other than PyAV are held to.

decord, torchcodec and OpenCV name a frame by its number and are each known to count, order, time or paint frames
wrongly in some files. `presented` reads all packets of a file once (nothing is decoded but the first frame) and says
which frames it shows at which exact time stamps, and which oddities it has that somebody stumbles over.
`CountingReader` asks a library for frame number k only where the library's own word agrees with that; everything else
is refused by name, with PyAV as the way out.

What packets cannot tell is damage inside them. Where it is gross, the three fail or lose count, which is seen; where
it is slight, their decoders conceal it without a word and PyAV alone can be told not to (tests/video/test_broken.py
shows both). Where that matters, use PyAV, or let `headcam scan` find the damage first.
"""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np

from headcam.errors import DecodeError
from headcam.video.metadata import clockwise_rotation, codec_name, one_line, open_video
from headcam.video.readers import END_TOLERANCE_S, Frame, Reader, ReaderInfo, scaled_size

INSTEAD = "read it with the backend pyav"
_SAME_PICTURE = (
    8.0  # mean difference in levels: 10-bit sources differ by up to 4 between libraries, HDR done wrong by 30
)


@dataclass(frozen=True)
class Presented:
    """The frames that a file shows, and its oddities.

    Attributes:
        container: FFmpeg's name of the format (`mov,mp4,m4a,3gp,3g2,mj2`).
        stream: position of the video stream among all streams.
        pts: (T,) int64, ascending: time stamps of the frames shown.
        start_pts: the time stamp of time 0.
        first: uint8 (H, W, 3) RGB, upright: the first frame.
        several: whether there is more than one video stream (cover art included).
        edited: an edit list removes frames that are decoded all the same.
        open_gops: frames are shown before the key frame that they are stored behind.
        interlaced: the first frame is.
        guessed: times are made up by the demuxer (AVI keeps none, so those of B-frames are a guess).
        cut: how the file is visibly cut short; empty where it is not.
    """

    container: str
    stream: int
    codec: str
    pts: np.ndarray
    start_pts: int
    time_base: Fraction
    frame_rate: Fraction
    rotation: int
    first: np.ndarray
    several: bool
    edited: bool
    open_gops: bool
    interlaced: bool
    guessed: bool
    cut: str


def presented(path: str) -> Presented:
    """Read the packets of the file's video stream, and its first frame.

    Raises:
        DecodeError: the file has no picture, or frames without time stamps or with equal ones.
    """
    container, stream = open_video(path)
    codec = codec_name(stream)
    shown, keyframe = [], None
    packets, edited, open_gops, reordered, cut = 0, False, False, False, ""
    with container:
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.pts is None:
                    raise DecodeError(
                        f"{path}: packets without time stamps", f"{INSTEAD}, or remux it to MP4 with them"
                    )
                packets += 1
                if packet.is_corrupt:
                    cut = f"packet {packets} is damaged or cut short"
                if packet.is_keyframe:
                    keyframe = packet.pts
                elif keyframe is not None and packet.pts < keyframe:
                    open_gops = True
                reordered |= packet.dts is not None and packet.pts != packet.dts
                edited |= packet.is_discard
                if not packet.is_discard and not _is_hidden(codec, packet):
                    shown.append(packet.pts)
        except (av.error.FFmpegError, IndexError) as error:
            cut = one_line(error)
        if container.format.name.startswith("mov") and packets < stream.frames:  # elsewhere the header estimates
            cut = f"{packets} of {stream.frames} packets are there"
        facts = {
            "container": container.format.name,
            "stream": stream.index,
            "codec": codec,
            "time_base": stream.time_base,
            "frame_rate": stream.average_rate or Fraction(0),
            "several": len(container.streams.video) > 1,
        }
        start_pts = stream.start_time
    first = _first_frame(path)
    pts = np.array(sorted(shown), dtype=np.int64)
    if len(np.unique(pts)) < len(pts):
        raise DecodeError(f"{path}: several frames with one time stamp", INSTEAD)
    if not len(pts) or first.pts != pts[0]:
        raise DecodeError(f"{path}: the first frame has another time stamp than the packets say", INSTEAD)
    rotation = clockwise_rotation(first, path)
    return Presented(
        pts=pts,
        start_pts=first.pts if start_pts is None else start_pts,
        rotation=rotation,
        first=np.ascontiguousarray(np.rot90(first.to_ndarray(format="rgb24"), -rotation // 90)),
        edited=edited,
        open_gops=open_gops,
        interlaced=first.interlaced_frame,
        guessed=facts["container"] == "avi" and reordered,
        cut=cut,
        **facts,
    )


class CountingReader(Reader):
    """A reader by a library that names frames by number; `_picture` is what a child adds.

    A child refuses by `_refuse` what its library is known to lie about, opens the file, and calls `_check_count` and
    `_check_first` with what the library says.
    """

    def __init__(self, path: str, backend: str, short_side: int | None):
        self._shown = shown = presented(path)
        height, width = shown.first.shape[:2]
        self.info = ReaderInfo(
            path=path,
            backend=backend,
            codec=shown.codec,
            width=width,
            height=height,
            rotation=shown.rotation,
            frame_rate=shown.frame_rate,
            time_base=shown.time_base,
            start_pts=shown.start_pts,
        )
        self._size = scaled_size(width, height, short_side)
        self._pts = shown.pts.tolist()
        if shown.cut:
            self._refuse(f"the file is cut short or damaged ({shown.cut}), of which {backend} says nothing")
        if shown.guessed:
            self._refuse("an AVI file with B-frames, which keeps no times")

    def iter_frames(self, times_s: Iterable[float]) -> Iterator[Frame]:
        given: Frame | None = None
        last_s = self.time_s(self._pts[-1])
        frame_s = float(1 / self.info.frame_rate) if self.info.frame_rate else 0.0
        for time_s in times_s:
            if time_s >= last_s + frame_s + END_TOLERANCE_S:
                raise self.beyond_end(time_s, last_s + frame_s)
            k = max(bisect_right(self._pts, time_s, key=self.time_s) - 1, 0)
            if given is None or given.pts != self._pts[k]:
                given = Frame(self._scaled(self._picture(k)), self._pts[k], self.time_s(self._pts[k]))
            yield given

    @abstractmethod
    def _picture(self, k: int) -> np.ndarray:
        """Frame number `k` of those shown: uint8 (H, W, 3) RGB, upright, full size."""

    def _refuse(self, why: str, cause: BaseException | None = None) -> None:
        raise DecodeError(f"{self.info.path}: {why}", INSTEAD) from cause

    def _check_count(self, count: int) -> None:
        if count != len(self._pts):
            self._refuse(f"{self.info.backend} counts {count} frames, the file shows {len(self._pts)}")

    def _check_time(self, k: int, time_s: float) -> None:
        """Whether frame `k` has the time that the library gives for it: to half a tick of the file's clock, or to the
        microsecond that FFmpeg itself counts in."""
        right = self.time_s(self._pts[k])
        if abs(time_s - right) > max(self.info.time_base / 2, 1e-6):
            self._refuse(f"{self.info.backend} gives a frame of {time_s:.6g} s for the one of {right:.6g} s")

    def _check_first(self, image: np.ndarray) -> None:
        """Whether the library's first frame is the file's: catches black, garbled and wrongly coloured pictures."""
        first = self._shown.first
        if image.shape != first.shape:
            self._refuse(f"{self.info.backend} gives pictures of shape {image.shape}, not {first.shape}")
        difference = np.abs(image.astype(np.int16) - first).mean()
        if difference > _SAME_PICTURE:
            self._refuse(
                f"{self.info.backend} shows the first frame otherwise (by {difference:.0f} levels in the mean)"
            )

    def _scaled(self, image: np.ndarray) -> np.ndarray:
        if self._size != (self.info.width, self.info.height):
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        return image


def _is_hidden(codec: str, packet: av.Packet) -> bool:
    """Whether a VP8 or VP9 packet only holds a frame that others refer to (an alternate reference).

    VP8: bit `show_frame` of the frame tag (RFC 6386, 9.1). VP9: of the uncompressed header (VP9 Bitstream
    Specification 0.6, 6.2), unless the packet is a superframe (Annex B), whose last frame is shown.
    """
    if codec == "vp8":
        return not bytes(packet)[0] >> 4 & 1
    if codec != "vp9":
        return False
    data = bytes(packet)
    if data[-1] >> 5 == 0b110:
        return False
    bits = f"{data[0]:08b}"
    profile = 2 * int(bits[3]) + int(bits[2])
    show_existing, _, show = bits[5:8] if profile == 3 else bits[4:7]
    return show_existing == "0" and show == "0"


def _first_frame(path: str) -> av.VideoFrame:
    container, stream = open_video(path)
    stream.thread_count = 1  # PyAV 14.0 hangs where one of several threads has something to log
    with container:
        try:
            return next(container.decode(stream))
        except (av.error.FFmpegError, IndexError, StopIteration) as error:
            raise DecodeError(f"{path}: the first frame cannot be decoded: {one_line(error)}", INSTEAD) from error
