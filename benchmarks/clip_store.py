"""Clips from a clip store beside decord on the original file: what making the store once buys in every epoch after.

`clip_store`: 16 frames at stride 8, anywhere in 720p footage (`footage.py`). Ours reads them from a clip store with
its defaults (short side 256, a key frame every 32 frames, CRF 20); the peer opens the original for each clip and lets
decord scale as it decodes. Both sides run on one thread, read from the page cache and give uint8 RGB arrays of the
same size.

Before they are timed, both must have given the same frames: their numbers are compared, and the pictures must be
closer to the peer's than to the peer's next frames by a margin, which a frame off by one would turn. Since the store
was encoded anew, how much it lost is printed beside, with a bound. Where `../shared/data/egovideo` is beside the
repository, the same ratio on one of its files is printed above the table, without a bar (its pictures
are small already, with 240 rows).
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import av
import decord
import numpy as np
from clip_decode import clip_indices, draw_starts, join, kept_folder
from footage import write_footage
from harness import Bench, Fidelity, Measured, main

from headcam.video.index import index
from headcam.video.readers import scaled_size
from headcam.video.stores.clip_store import ClipStore, store_clips

_FPS = 30
_GOP, _GOPS = 250, 3  # one group of pictures is encoded and joined so many times
_CLIPS = 6
_SHORT_SIDE = 256  # the store's default
_REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "egovideo" / "heldout" / "ego4d_losandes.mp4"
_REAL_SECONDS = 5.0


class Sides:
    """One recording, the clip store made of it, and both sides' ways to read clips of it by their first frames."""

    def __init__(self, media: Path):
        index(media, media.parent / "recordings.parquet", processes=1, quiet=True)
        store_clips(media.parent / "recordings.parquet", media.parent / "clips", processes=1, quiet=True)
        self.store = ClipStore(media.parent / "clips")
        (self.facts,) = self.store.facts.to_pylist()
        with av.open(self.facts["path"]) as container:
            stream = container.streams.video[0]
            self.pts = np.sort([p.pts for p in container.demux(stream) if p.pts is not None and not p.is_discard])
        base = self.facts["time_base_num"] / self.facts["time_base_den"]
        self.times_s = (self.pts - self.pts[0]) * base
        self.size = scaled_size(self.facts["width"], self.facts["height"], _SHORT_SIDE)

    def ours(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """(16, H, W, 3) and the frames' numbers."""
        frames = self.store.frames_at(self.store.recordings[0], self.times_s[clip_indices(start)] + 1e-6)
        return np.stack([f.image for f in frames]), np.searchsorted(self.pts, [f.pts for f in frames])

    def peer(self, indices: Sequence[int]) -> np.ndarray:
        """(N, H, W, 3)."""
        width, height = self.size
        reader = decord.VideoReader(self.facts["path"], width=width, height=height, num_threads=1)
        return reader.get_batch(list(indices)).asnumpy()[:, : height // 2 * 2, : width // 2 * 2]  # as 4:2:0 has it


def clip_store(bench: Bench) -> Measured:
    folder = kept_folder()
    (folder / "media").mkdir()
    write_footage(folder / "once.mp4", 1280, 720, seconds=_GOP / _FPS, fps=_FPS)
    join(folder / "once.mp4", folder / "media" / "footage.mp4", _GOPS)
    if _REAL.is_file():
        folder_of_real = kept_folder()
        (folder_of_real / "media").mkdir()
        shutil.copy(_REAL, folder_of_real / "media")
        real = compare(Bench(bench.threads, time.monotonic() + _REAL_SECONDS), Sides(folder_of_real / "media"))
        print(f"clip_store on {_REAL.name}: {real.median:.2f} [{min(real.ratios):.2f}, {max(real.ratios):.2f}]")
    return compare(bench, Sides(folder / "media"))


def compare(bench: Bench, sides: Sides) -> Measured:
    starts = draw_starts(_CLIPS, len(sides.pts))
    wanted = [clip_indices(start) for start in starts]
    images, numbers = map(np.concatenate, zip(*map(sides.ours, starts)))
    same = psnr(images, np.concatenate([sides.peer(indices) for indices in wanted]))
    after = psnr(images, np.concatenate([sides.peer([i + 1 for i in indices]) for indices in wanted]))
    fidelity = {
        "share of equal frame numbers": Fidelity(float(np.mean(numbers == np.concatenate(wanted))), "", least=1),
        "mean PSNR to decord on the original": Fidelity(float(same.mean()), "dB", least=32),
        "least margin over the next frame": Fidelity(float((same - after).min()), "dB", least=0.5),
    }
    return bench.compare(
        lambda: [sides.ours(start) for start in starts],
        lambda: [sides.peer(indices) for indices in wanted],
        bar=6,
        items=len(starts),
        unit="clip",
        fidelity=fidelity,
    )


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture in dB; (N, H, W, 3) uint8 each."""
    errors = [np.square(x.astype(np.float32) - y).mean() for x, y in zip(a, b)]
    return 10 * np.log10(255**2 / np.maximum(errors, 1e-5))


if __name__ == "__main__":
    main("clip_store", {"clip_store": clip_store}, threads=1, packages=("av", "decord"))
