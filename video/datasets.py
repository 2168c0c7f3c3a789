"""From a plan to pictures: the data sets that loaders read.

A source yields the picture of a unit, cut and resized: `StoreSource` from a frame store (JPEG bytes by offset),
`VideoSource` straight from the recordings. The data sets only join a plan and a source; item i is a pure function of
i, so neither workers nor restarts change it.

Items: `image` (3, H, W) uint8 and `noise` (L,) float32, ready for the loader's default collation.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from headcam.errors import InputError
from headcam.randomness import permuted
from headcam.video.frame_store import FrameStore
from headcam.video.plan import FramePlan, Units, mask_noise
from headcam.video.readers import open_reader
from headcam.video.recordings import read_recordings, usable
from headcam.video.transforms import Box, center_box, crop_array, decode_crop


class FrameSource(Protocol):
    """Pictures of units."""

    units: Units

    def picture(self, unit: int, time_s: float, crop: Box, size: tuple[int, int], flip: bool) -> np.ndarray:
        """The box `crop` of the unit's frame at `time_s`, resized to `size` (height, width): (H, W, 3) uint8."""


class StoreSource:
    """Pictures from a frame store; the time within a unit does not matter, since one frame stands for it."""

    def __init__(self, folder: str | Path):
        self.store = FrameStore(folder)
        self.units = Units(
            recording=self.store.recording,
            time_s=self.store.time_s,
            seconds=self.store.seconds,
            width=self.store.width,
            height=self.store.height,
            recordings=tuple(self.store.recordings),
        )

    def picture(self, unit: int, time_s: float, crop: Box, size: tuple[int, int], flip: bool) -> np.ndarray:
        return decode_crop(self.store.jpeg(unit), crop, size, flip, name=f"picture {unit} of {self.store.folder}")


class VideoSource:
    """Pictures decoded from the recordings of an index when they are drawn: no store needed, but more decoding.

    Args:
        index: the Parquet file of `headcam index`.
        unit_seconds: length of a unit; the last unit of a recording is shorter.
        backend: decoder, see `open_reader`.
    """

    def __init__(self, index: str | Path, unit_seconds: float = 1.0, backend: str = "pyav"):
        self.backend = backend
        rows = usable(read_recordings(index)).to_pylist()
        self.paths = [r["path"] for r in rows]
        self.keyframes = [r["keyframes"] or None for r in rows]
        codes, times, seconds, widths, heights = [], [], [], [], []
        for code, row in enumerate(rows):
            # Not a unit more for a duration that exceeds whole units by rounding only.
            starts = np.arange(max(1, int(np.ceil(row["duration_s"] / unit_seconds - 1e-9)))) * unit_seconds
            codes.append(np.full(len(starts), code))
            times.append(starts)
            seconds.append(np.minimum(unit_seconds, row["duration_s"] - starts))
            turned = row["rotation"] % 180 == 90
            widths.append(np.full(len(starts), row["height"] if turned else row["width"]))
            heights.append(np.full(len(starts), row["width"] if turned else row["height"]))
        if not rows:
            raise InputError(f"{index} lists no readable recording", "index a folder that holds video or pictures")
        self.units = Units(
            recording=np.concatenate(codes).astype(np.int32),
            time_s=np.concatenate(times).astype(np.float64),
            seconds=np.concatenate(seconds).astype(np.float64),
            width=np.concatenate(widths).astype(np.int32),
            height=np.concatenate(heights).astype(np.int32),
            recordings=tuple(r["recording"] for r in rows),
        )

    def picture(self, unit: int, time_s: float, crop: Box, size: tuple[int, int], flip: bool) -> np.ndarray:
        recording = self.units.recording[unit]
        with open_reader(self.paths[recording], self.backend, keyframes=self.keyframes[recording]) as reader:
            frame = reader.frames_at([time_s])[0]
        return crop_array(frame.image, crop, size, flip)


class JoinedSource:
    """Several sources as one, in the order given."""

    def __init__(self, sources: list[FrameSource]):
        self.sources = sources
        self.units = Units.concatenate([s.units for s in sources])
        self._first = np.cumsum([0] + [len(s.units) for s in sources])

    def picture(self, unit: int, time_s: float, crop: Box, size: tuple[int, int], flip: bool) -> np.ndarray:
        which = int(np.searchsorted(self._first, unit, side="right")) - 1
        return self.sources[which].picture(unit - int(self._first[which]), time_s, crop, size, flip)


class PlannedFrames(Dataset):
    """Training samples: item i is sample i of the plan, for any i >= 0."""

    def __init__(self, plan: FramePlan, source: FrameSource, size: tuple[int, int]):
        self.plan, self.source, self.size = plan, source, size

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        sample = self.plan.sample(int(i))
        image = self.source.picture(sample.unit, sample.time_s, sample.crop, self.size, sample.flip)
        return {"image": _to_tensor(image), "noise": torch.from_numpy(sample.noise)}


class HeldOutFrames(Dataset):
    """Validation samples: centre crops in a fixed mixed order, each with a mask that never changes.

    The order is mixed so that the first batches already show many recordings (`trainer.limit_val_batches`). Noise does
    not depend on the run's seed: losses of all runs are on the same masks.
    """

    def __init__(self, source: FrameSource, size: tuple[int, int], num_patches: int):
        self.source, self.size, self.num_patches = source, size, num_patches
        self.order = permuted(np.arange(len(source.units)), len(source.units), 0, "held out")

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        units, unit = self.source.units, int(self.order[i])
        box = center_box(int(units.width[unit]), int(units.height[unit]), self.size)
        image = self.source.picture(unit, float(units.time_s[unit]), box, self.size, False)
        return {"image": _to_tensor(image), "noise": torch.from_numpy(mask_noise(0, unit, self.num_patches))}


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
