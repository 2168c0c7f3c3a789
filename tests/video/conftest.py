"""Generated videos whose every frame shows its own number, so that a test can read which frame it was given."""

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
_BITS = 8


def _numbered_picture(number: int, width: int, height: int) -> np.ndarray:
    """uint8 (H, W, 3): the upper half a row of 8 black or white blocks (the number, lowest bit left), colour below."""
    picture = np.zeros((height, width, 3), np.uint8)
    for bit in range(_BITS):
        left, right = bit * width // _BITS, (bit + 1) * width // _BITS
        picture[: height // 2, left:right] = 255 * (number >> bit & 1)
    picture[height // 2 :] = [200, 60, 40]
    return picture


def _number_shown(image: np.ndarray) -> int:
    """The number in an upright picture that `_numbered_picture` drew."""
    height, width = image.shape[:2]
    row = image[height // 4].mean(axis=-1)
    return sum(int(row[int((bit + 0.5) * width / _BITS)] > 127) << bit for bit in range(_BITS))


def _write_video(
    path: Path,
    frames: int = 40,
    rate: int | Fraction = 10,
    *,
    size: tuple[int, int] = (96, 64),
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    gop: int = 12,
    bframes: int = 2,
    options: dict[str, str] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    muxer: dict[str, str] | None = None,
    clockwise: int = 0,
    first_number: int = 0,
) -> Path:
    """Write `frames` numbered pictures; `pts` in `time_base` (default: 0, 1, 2 ... at `rate`). Stored rotated so that
    a display matrix of `clockwise` degrees makes them upright. `options` are the encoder's, `muxer` the container's."""
    width, height = size if clockwise % 180 == 0 else size[::-1]
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = time_base or 1 / Fraction(rate)
        x264 = {"x264-params": f"bframes={bframes}:scenecut=0:b-adapt=0", "crf": "20", "preset": "fast"}
        stream.options = options if options is not None else x264
        for k in range(frames):
            upright = _numbered_picture((first_number + k) % 256, *size)
            stored = np.ascontiguousarray(np.rot90(upright, clockwise // 90))
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
            frame.pts = pts[k] if pts is not None else k
            frame.time_base = time_base or 1 / Fraction(rate)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    if clockwise:
        _turn(path, clockwise)
    return path


def _turn(path: Path, clockwise: int) -> None:
    """Write a display matrix into the track header of an MP4 file (ISO/IEC 14496-12, 8.3.2)."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = matrix
    path.write_bytes(data)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the shared test material; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED.name} beside the repository is absent")
    return SHARED


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """`_write_video`, for tests that need a video of their own."""
    return _write_video


@pytest.fixture(scope="session")
def number_shown() -> Callable[[np.ndarray], int]:
    """`_number_shown`: which frame a picture is."""
    return _number_shown


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Generated videos by their oddity; each has 40 numbered frames, 4 s at 10 a second unless it varies."""
    folder = tmp_path_factory.mktemp("videos")
    uneven = np.cumsum([0, *(40 + 35 * (np.arange(39) % 3))]).tolist()  # steps of 40, 75 and 110 ms
    ms = Fraction(1, 1000)
    return {
        "plain": _write_video(folder / "plain.mp4", bframes=0),
        "bframes": _write_video(folder / "bframes.mp4", bframes=3),
        "vfr": _write_video(folder / "vfr.mp4", pts=uneven, time_base=ms, rate=1000),
        "late": _write_video(folder / "late.mkv", pts=[7000 + 100 * k for k in range(40)], time_base=ms, rate=1000),
        "ts": _write_video(
            folder / "late.ts", pts=[90000 * 3 + 9000 * k for k in range(40)], time_base=Fraction(1, 90000)
        ),
        "ntsc": _write_video(folder / "ntsc.mov", rate=Fraction(30000, 1001)),
        "turned": _write_video(folder / "turned.mp4", clockwise=90, size=(64, 96)),
        "upside_down": _write_video(folder / "upside_down.mp4", clockwise=180),
        "turned_back": _write_video(folder / "turned_back.mp4", clockwise=270, size=(64, 96)),
        "open_gop": _write_video(
            folder / "open_gop.mp4",
            options={"x264-params": "bframes=3:open-gop=1:scenecut=0:b-adapt=0:keyint=8:min-keyint=8", "crf": "20"},
        ),
    }
