"""Clips, single frames and whole videos out of 720p and 1080p files: our planned decoding beside decord.

| ratio | work | peer |
| --- | --- | --- |
| `one_clip` | 16 frames at stride 8, short side 256, the file opened for each clip | decord get_batch, scaling inside |
| `planned` | 8 such clips of one file, planned together | the same, a clip at a time |
| `one_fps` | one frame a second, exact | the same, every 30th frame |
| `sequential` | every frame decoded and scaled | libavcodec decoding alone, nothing scaled |
| `memory1080` | peak memory that 16 frames of 1080p, short side 256, add to a process | decord full-size get_batch |

Both sides run on one thread, read from the page cache and give uint8 RGB arrays. Ours has the key frames that an index
holds; decord scans the file when it opens it. Before they are timed, both must have given the same frames (their
indices are compared) and pictures at 36 dB or better to each other, to bound what speed could be bought with: swscale's
fast bilinear, at 26 dB, would fail.

The 720p file (`footage.py`) is one group of pictures of 250 frames, encoded once and joined seven times, since making
a minute of footage takes longer than the benchmark; so clips at different places may show the same scene, which
neither side gains by. Half of its frames are B-frames that no other refers to, as x264 makes them by default: the gain
of planning depends on it. Real headcam files come in many forms; where `../shared/data/egovideo` is beside the
repository, the same ratios on some of its files are printed above the table, without a bar.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import av
import decord
import numpy as np
from footage import write_footage
from harness import Bench, Fidelity, Measured, NotApplicable, Result, main

from headcam.randomness import stream
from headcam.video.clips import read_clips
from headcam.video.decoding.bitstreams import packet_rule
from headcam.video.metadata import read_metadata
from headcam.video.readers import open_reader, scaled_size

_FPS = 30
_GOP = 250
_GOPS = 7
_FRAMES, _STRIDE, _SHORT_SIDE = 16, 8, 256
_CLIPS = 8
_REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "egovideo"
_REAL_FILES = ("train/ego4d_bristol.mp4", "heldout/va_kitchen.mp4")
_CHILD = """
import sys, decord, numpy
sys.path[:0] = {path!r}
import clip_decode
peak = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
before = peak()
pictures = clip_decode.{function}({file!r})
print(peak() - before)
"""


class Footage:
    """A file, what an index knows of it, and both sides' ways to read it."""

    def __init__(self, path: Path):
        self.path = path
        self.facts = read_metadata(path)
        self.rate = self.facts.fps_num / self.facts.fps_den
        self.count = self.facts.frames
        self.size = scaled_size(self.facts.width, self.facts.height, min(_SHORT_SIDE, self.facts.height // 2))

    def open(self):
        return open_reader(self.path, short_side=min(self.size), keyframes=self.facts.keyframes)

    def indices(self, times_s: np.ndarray) -> np.ndarray:
        """Numbers of the frames with these times, in a file of constant rate that starts with frame 0."""
        return np.rint(np.asarray(times_s) * self.rate).astype(int)

    def clips(self, starts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Ours: (clips x frames, H, W, 3) and the frames' numbers, all clips in one pass."""
        with self.open() as reader:
            images, times = read_clips(reader, [s / self.rate for s in starts], _FRAMES, _STRIDE / self.rate)
        return images.reshape(-1, *images.shape[2:]), self.indices(times).reshape(-1)

    def every(self, step: int, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ours: every `step`-th frame."""
        wanted = np.arange(0, count or self.count, step) / self.rate + 1e-6
        with self.open() as reader:
            frames = list(reader.iter_frames(wanted.tolist()))
        return np.stack([f.image for f in frames]), self.indices([f.time_s for f in frames])

    def by_decord(self, indices: Sequence[int]) -> np.ndarray:
        width, height = self.size
        reader = decord.VideoReader(str(self.path), width=width, height=height, num_threads=1)
        return reader.get_batch(list(indices)).asnumpy()


def clip_indices(start: int) -> list[int]:
    return list(range(start, start + _FRAMES * _STRIDE, _STRIDE))


def draw_starts(count: int, frames: int) -> list[int]:
    """First frames of clips, a fixed draw."""
    rng = stream(0, "benchmark clips", 0)
    return rng.integers(0, frames - _FRAMES * _STRIDE, count).tolist()


def one_clip(bench: Bench, file: Footage | None = None, bar: float = 1.4) -> Measured:
    file = file or footage720()
    starts = draw_starts(6, file.count)

    def ours() -> list[tuple[np.ndarray, np.ndarray]]:
        return [file.clips([start]) for start in starts]

    def peer() -> list[np.ndarray]:
        return [file.by_decord(clip_indices(start)) for start in starts]

    mine = ours()
    fidelity = agreement(
        np.concatenate([images for images, _ in mine]),
        np.concatenate(peer()),
        np.concatenate([numbers for _, numbers in mine]),
        [i for start in starts for i in clip_indices(start)],
    )
    return bench.compare(ours, peer, bar=bar, items=len(starts), unit="clip", fidelity=fidelity)


def planned(bench: Bench, file: Footage | None = None, bar: float = 1.7) -> Measured:
    file = file or footage720()
    starts = draw_starts(_CLIPS, file.count)

    def peer() -> np.ndarray:
        return np.concatenate([file.by_decord(clip_indices(start)) for start in starts])

    images, numbers = file.clips(starts)
    fidelity = agreement(images, peer(), numbers, [i for start in starts for i in clip_indices(start)])
    return bench.compare(lambda: file.clips(starts), peer, bar=bar, items=_CLIPS, unit="clip", fidelity=fidelity)


def one_fps(bench: Bench, file: Footage | None = None, bar: float = 1.4) -> Measured:
    file = file or footage720()
    step = round(file.rate)
    indices = list(range(0, file.count, step))
    fidelity = agreement(file.every(step)[0], file.by_decord(indices), file.every(step)[1], indices)
    return bench.compare(
        lambda: file.every(step),
        lambda: file.by_decord(indices),
        bar=bar,
        items=len(indices),
        unit="frame",
        fidelity=fidelity,
    )


def sequential(bench: Bench, file: Footage | None = None, bar: float = 0.65) -> Measured:
    file = file or footage720()
    count = min(_GOP, file.count)

    def ours() -> None:
        with file.open() as reader:
            for _ in reader.iter_frames((np.arange(count) / file.rate + 1e-6).tolist()):
                pass

    def peer() -> None:
        with av.open(str(file.path)) as container:
            video = container.streams.video[0]
            video.thread_count = 1
            for given, _ in enumerate(container.decode(video), start=1):
                if given == count:
                    break

    some = list(range(0, count, 10))
    images, numbers = file.every(10, count)
    fidelity = agreement(images, file.by_decord(some), numbers, some)
    return bench.compare(ours, peer, bar=bar, items=count, unit="frame", fidelity=fidelity)


def memory1080(bench: Bench) -> Result:
    if not sys.platform.startswith("linux"):
        return NotApplicable(5, "peak memory of a process is read from Linux's /proc")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "footage.mp4"
        write_footage(path, 1920, 1080, seconds=1.6, fps=_FPS)
        return bench.compare_memory(
            lambda: added_memory("read_1080_small", path),
            lambda: added_memory("read_1080_decord", path),
            bar=5,
            unit="16 frames of 1080p",
        )


def read_1080_small(path: str) -> np.ndarray:
    with open_reader(path, short_side=_SHORT_SIDE) as reader:
        return read_clips(reader, [0.0], _FRAMES, 3 / _FPS)[0]


def read_1080_decord(path: str) -> np.ndarray:
    return decord.VideoReader(path, num_threads=1).get_batch(list(range(0, 3 * _FRAMES, 3))).asnumpy()


def added_memory(function: str, path: Path) -> float:
    """MiB that `function` of this module adds to the peak resident memory of a fresh process, imports made."""
    code = _CHILD.format(path=[p for p in sys.path if p], function=function, file=str(path))
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def agreement(
    ours: np.ndarray, peer: np.ndarray, our_frames: Sequence[int], peer_frames: Sequence[int]
) -> dict[str, Fidelity]:
    """Whether both sides read the same frames, and how close the pictures are: (N, H, W, 3) uint8 each."""
    same = float(np.mean(np.asarray(our_frames) == np.asarray(peer_frames)))
    errors = [np.square(a.astype(np.float32) - b).mean() for a, b in zip(ours, peer)]
    psnr = [10 * np.log10(255**2 / max(float(e), 1e-5)) for e in errors]
    return {
        "share of equal frame numbers": Fidelity(same, "", least=1),
        "mean PSNR to decord": Fidelity(float(np.mean(psnr)), "dB", least=36),
    }


@cache
def footage720() -> Footage:
    folder = kept_folder()
    write_footage(folder / "once.mp4", 1280, 720, seconds=_GOP / _FPS, fps=_FPS)
    join(folder / "once.mp4", folder / "footage.mp4", _GOPS)
    file = Footage(folder / "footage.mp4")
    share = disposable_share(file.path)
    assert share >= 0.45, f"only {share:.0%} of the frames are references of no other"
    return file


def join(once: Path, path: Path, times: int) -> None:
    """Write the video of `once`, `times` times one after the other, without encoding it again."""
    with av.open(str(path), "w") as out:
        video = None
        for k in range(times):
            with av.open(str(once)) as container:
                source = container.streams.video[0]
                video = video or out.add_stream_from_template(source)
                shift = k * source.duration
                for packet in container.demux(source):
                    if packet.dts is not None:
                        packet.dts, packet.pts, packet.stream = packet.dts + shift, packet.pts + shift, video
                        out.mux(packet)


def disposable_share(path: Path) -> float:
    """Share of the frames that no other refers to."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        rule = packet_rule(video.codec_context.name, video.codec_context.extradata)
        return float(np.mean([rule.disposable(bytes(packet)) for packet in container.demux(video) if packet.size]))


_folders: list[tempfile.TemporaryDirectory] = []  # they go when the process ends


def kept_folder() -> Path:
    _folders.append(tempfile.TemporaryDirectory())
    return Path(_folders[-1].name)


def with_real_files(ratio: Callable[..., Measured]) -> Callable[[Bench], Measured]:
    """`ratio`, which also prints what it is on some real recordings; that the two sides agree is checked there too."""

    def measured(bench: Bench) -> Measured:
        result = ratio(bench)
        for name in _REAL_FILES if _REAL.is_dir() else ():
            file = Footage(_REAL / name)
            real = ratio(Bench(bench.threads, deadline=time.monotonic()), file, bar=0)
            line = f"{real.median:.2f} [{min(real.ratios):.2f}, {max(real.ratios):.2f}]"
            form = f"{file.facts.width}x{file.facts.height}, {file.facts.codec}"
            print(f"{ratio.__name__} on {name} ({form}, {disposable_share(file.path):.0%} unreferenced): {line}")
            for what, fidelity in real.fidelity.items():
                if not fidelity.holds:
                    print(f"    {what}: {fidelity.value:.4g} {fidelity.unit}")
        return result

    return measured


if __name__ == "__main__":
    main(
        "clip_decode",
        {
            "one_clip": with_real_files(one_clip),
            "planned": with_real_files(planned),
            "one_fps": with_real_files(one_fps),
            "sequential": with_real_files(sequential),
            "memory1080": memory1080,
        },
        threads=1,
        packages=("av", "decord"),
    )
