"""Generated files with all that makes decoding a part of them hard: what planned decoding is tried on."""

from fractions import Fraction

import av
import numpy as np
import pytest


def textured(count, width=128, height=96):
    """Frames of a moving, noisy texture: every block has something to predict and something left over."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    for k in range(count):
        image = np.roll(ground, (3 * k, -2 * k), (0, 1))[:height, :width].astype(int)
        yield np.clip(image + rng.integers(-12, 13, image.shape), 0, 255).astype(np.uint8)


def write(path, codec="libx264", params="", count=70, rate=30, pts=None, time_base=None, pix_fmt="yuv420p"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pix_fmt
        time_base = time_base or Fraction(1, rate)
        stream.codec_context.time_base = time_base
        stream.options = {"preset": "fast", f"{codec[3:]}-params": params + (":log-level=none" * ("265" in codec))}
        for k, image in enumerate(textured(count)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (k if pts is None else pts[k]), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


X264 = "bframes=3:b-pyramid=normal:b-adapt=0:scenecut=0"
FILES = {
    "pyramid.mp4": {"params": f"{X264}:keyint=25"},
    "one_key.mkv": {"params": f"{X264}:keyint=1000"},
    "open_gop.mp4": {"params": f"{X264}:keyint=16:open-gop=1"},
    "intra_refresh.mp4": {"params": "bframes=0:intra-refresh=1:keyint=20"},
    "no_b.mp4": {"params": "bframes=0:keyint=25"},
    "interlaced.mp4": {"params": f"{X264}:keyint=25:interlaced=1"},
    "vfr.mp4": {
        "params": f"{X264}:keyint=25",
        "pts": np.cumsum([0, *(40 + 35 * (np.arange(69) % 3))]).tolist(),
        "time_base": Fraction(1, 1000),
        "rate": 1000,
    },
    "late.mkv": {
        "params": f"{X264}:keyint=25",
        "pts": [7000 + 33 * k for k in range(70)],
        "time_base": Fraction(1, 1000),
    },
    "annex_b.ts": {"params": f"{X264}:keyint=25"},
    "hevc.mp4": {"codec": "libx265", "params": "bframes=4:b-pyramid=1:keyint=25:open-gop=1:b-adapt=0"},
    "hevc_layers.mkv": {"codec": "libx265", "params": "bframes=3:b-pyramid=1:temporal-layers=3:keyint=25:b-adapt=0"},
    "hevc_10.mp4": {"codec": "libx265", "params": "bframes=3:keyint=25", "pix_fmt": "yuv420p10le"},
}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """{name: path}; those without an encoder in this PyAV are left out."""
    folder = tmp_path_factory.mktemp("streams")
    encoders = {"libx264", "libx265"} & av.codecs_available
    return {n: write(folder / n, **how) for n, how in FILES.items() if how.get("codec", "libx264") in encoders}
