"""Facts of one file, from its packets and one decoded frame: what the index writes into a recording's row.

A video is demuxed to its end with PyAV, which reads time stamps and key flags and decodes nothing; then its first
frame is decoded, to know that pictures can be had. Only the container's own claims that packets cannot tell (nominal
frame rate) are believed. A still picture is a recording of duration 0 with one frame.
"""

import math
import os
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
from PIL import Image

from headcam.errors import DecodeError

VIDEO_EXTENSIONS = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .m2v .vob .ts .mts .m2ts .wmv .asf .flv .3gp .3g2 .ogv .mxf .gif .insv "
    ".lrv .h264 .264 .hevc .h265".split()
)
PICTURE_EXTENSIONS = frozenset(".jpg .jpeg .png .webp .bmp .tif .tiff".split())

_STILL_CODECS = frozenset("mjpeg png bmp gif webp tiff".split())  # codecs of cover art
_UPRIGHT_BY_EXIF = {1: 0, 2: 0, 3: 180, 4: 180, 5: 270, 6: 90, 7: 90, 8: 270}  # Exif 2.3, tag 0x0112
_REMUX = "remux it to MP4 with time stamps, for example with ffmpeg"


@dataclass(frozen=True)
class Metadata:
    """What a recording's row says of its file; names and units are those of `headcam.video.recordings.SCHEMA`."""

    codec: str
    width: int
    height: int
    rotation: int
    fps_num: int
    fps_den: int
    time_base_num: int
    time_base_den: int
    start_s: float
    duration_s: float
    frames: int
    keyframes: tuple[int, ...]


def is_media(path: str | os.PathLike) -> bool:
    """Whether the name of `path` is that of a video or a still picture."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS | PICTURE_EXTENSIONS


def is_picture(path: str | os.PathLike) -> bool:
    """Whether the name of `path` is that of a still picture."""
    return Path(path).suffix.lower() in PICTURE_EXTENSIONS


def read_metadata(path: str | os.PathLike) -> Metadata:
    """Examine one file; `DecodeError` with a one-line reason where no picture can be had from it."""
    return _picture_metadata(path) if is_picture(path) else _video_metadata(path)


def source_name(source: str | os.PathLike | BinaryIO) -> str:
    """What messages call a source: its path, an open file's own name, or `<memory>`."""
    return os.fsdecode(source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "<memory>"))


def open_video(
    source: str | os.PathLike | BinaryIO,
) -> tuple["av.container.InputContainer", "av.video.stream.VideoStream"]:
    """Open a file for demuxing and choose its video stream: the largest picture, the first of equals, no cover art.

    Args:
        source: path of the file, or a binary file object that can seek; it is read from its start and stays open.
    Raises:
        DecodeError: the file cannot be opened or holds no video.
    """
    name = source_name(source)
    try:
        if isinstance(source, (str, os.PathLike)):
            source = os.fspath(source)
        else:
            source.seek(0)
        container = av.open(source, metadata_errors="ignore")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"{name} cannot be opened: {one_line(error)}", "repair or remove the file") from error
    # A stream whose codec FFmpeg does not know has no codec context, and PyAV then none of its attributes.
    known = [s for s in container.streams.video if s.codec_context is not None]
    streams = [s for s in known if not _is_cover(s, known)]
    if not streams:
        found = ", ".join(sorted({s.type for s in container.streams})) or "none"
        container.close()
        raise DecodeError(f"{name} has no video stream (streams: {found})", "give a file with pictures")
    return container, max(streams, key=lambda s: ((s.width or 0) * (s.height or 0), -s.index))


def _is_cover(stream: "av.video.stream.VideoStream", streams: "list[av.video.stream.VideoStream]") -> bool:
    disposition = getattr(stream, "disposition", None)  # PyAV 14.0 has none
    if disposition is not None:
        return bool(disposition & type(disposition).attached_pic)
    others = [s for s in streams if s.index != stream.index]
    return stream.codec_context.name in _STILL_CODECS and any(s.codec_context.name not in _STILL_CODECS for s in others)


def codec_name(stream: "av.video.stream.VideoStream") -> str:
    """Name of the format that a stream is coded in (`av1`), whichever library decodes it (`libdav1d`)."""
    codec = stream.codec_context.codec
    return getattr(codec, "canonical_name", None) or {"libdav1d": "av1", "libaom-av1": "av1"}.get(
        codec.name, codec.name
    )


def clockwise_rotation(frame: av.VideoFrame, path: str | os.PathLike) -> int:
    """Degrees (0, 90, 180 or 270) that a decoded frame is to be turned clockwise by to be upright.

    From the display matrix (libavutil/display.h). Mirroring is not undone (no decoder compared does it), other angles
    go to the nearest right angle.

    Raises:
        DecodeError: PyAV 14.0 cannot tell: frames of stereo HEVC have side data that it does not know. Names `path`.
    """
    counter_clockwise = getattr(frame, "rotation", None)
    if counter_clockwise is None:  # PyAV 14.0 hands out the matrix only
        try:
            matrix = next((d for d in frame.side_data if d.type.name == "DISPLAYMATRIX"), None)
        except ValueError as error:
            problem = f"{path}: PyAV {av.__version__} cannot tell which way up its pictures are ({one_line(error)})"
            raise DecodeError(problem, "pip install --upgrade av") from error
        a, b = struct.unpack_from("=2i", bytes(matrix)) if matrix is not None else (1, 0)
        counter_clockwise = -math.degrees(math.atan2(b, a))
    return round(-counter_clockwise / 90) % 4 * 90


def one_line(error: BaseException) -> str:
    """The reason in an error of a library, on one line and without the path (which our messages name already)."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]


def _video_metadata(path: str | os.PathLike) -> Metadata:
    container, stream = open_video(path)
    with container:
        time_base = stream.time_base
        shown, keyframes = [], []  # (pts, duration) of packets that show a frame; pts of packets to start at
        try:
            for packet in container.demux(stream):
                pts = packet.dts if packet.pts is None else packet.pts
                if pts is None or not packet.size:
                    continue
                if packet.is_keyframe:
                    keyframes.append(pts)
                if not packet.is_discard:  # cut away by an edit list: decoded, not shown
                    shown.append((pts, packet.duration or 0))
        except (av.error.FFmpegError, IndexError):
            pass  # cut short: what was read until here is what there is
        frame_rate = _frame_rate(stream, shown)
        claimed, codec, start_pts = stream.frames, codec_name(stream), stream.start_time
    first = _first_frame(path)
    if not shown:
        raise DecodeError(f"{path} has no presentation times", _REMUX)
    if start_pts is None:
        start_pts = first.pts
    last_pts, last_duration = max(shown)
    if frame_rate and last_duration * time_base * frame_rate < 0.5:  # missing, or a tick of the clock
        last_duration = 1 / frame_rate / time_base
    duration = float((last_pts - start_pts + Fraction(last_duration)) * time_base)
    return Metadata(
        codec=codec,
        width=first.width,
        height=first.height,
        rotation=clockwise_rotation(first, path),
        fps_num=frame_rate.numerator,
        fps_den=frame_rate.denominator,
        time_base_num=time_base.numerator,
        time_base_den=time_base.denominator,
        start_s=start_pts * time_base.numerator / time_base.denominator,
        duration_s=max(duration, 0.0),
        frames=claimed or len(shown),
        keyframes=tuple(sorted(keyframes)),
    )


def _first_frame(path: str | os.PathLike) -> av.VideoFrame:
    container, stream = open_video(path)
    stream.thread_count = 1  # PyAV 14.0 hangs where one of several threads has something to log
    trouble = None
    with container:
        try:
            for packet in container.demux(stream):
                try:
                    for frame in packet.decode():
                        if frame.pts is None:
                            raise DecodeError(f"{path} has no presentation times", _REMUX)
                        return frame
                except av.error.FFmpegError as error:
                    trouble = trouble or error
        except (av.error.FFmpegError, IndexError) as error:
            trouble = trouble or error
    reason = f": {one_line(trouble)}" if trouble else ""
    raise DecodeError(f"{path} has no frame that can be decoded{reason}", "repair or remove the file")


def _frame_rate(stream: "av.video.stream.VideoStream", shown: list[tuple[int, int]]) -> Fraction:
    """The nominal rate where packets bear it out within a tenth, else their mean rate (a claim of 1000 is common)."""
    nominal = stream.average_rate or stream.guessed_rate
    if len(shown) > 1 and (span := max(shown)[0] - min(shown)[0]) > 0:
        mean = (len(shown) - 1) / (span * stream.time_base)
        if not nominal or abs(nominal / mean - 1) > 0.1:
            return mean.limit_denominator(1001)
    return nominal or Fraction(0)


def _picture_metadata(path: str | os.PathLike) -> Metadata:
    try:
        with Image.open(path) as picture:
            codec = (picture.format or "picture").lower()
            width, height = picture.size
            rotation = _UPRIGHT_BY_EXIF.get(picture.getexif().get(0x0112, 1), 0)
            picture.load()  # a picture that is cut short opens all the same
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(f"{path} cannot be read as a picture: {one_line(error)}", "repair or remove it") from error
    return Metadata(codec, width, height, rotation, 0, 1, 1, 1, 0.0, 0.0, 1, (0,))
