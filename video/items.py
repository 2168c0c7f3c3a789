"""Some pictures or clips of a data set, to look at or to measure on: the same ones for every model.

A data set is what a user has: a frame store, a clip store, a file of `headcam index`, or a folder of pictures (searched
with its subfolders). Which items are taken follows from the seed and the data alone; each is its largest central crop,
resampled once. What cannot be decoded is skipped and counted, with its reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from headcam.errors import DecodeError, InputError
from headcam.files import recording_id, sha256_json
from headcam.randomness import permuted
from headcam.video.clip_sources import ClipStoreSource, ClipVideoSource
from headcam.video.datasets import FrameSource, StoreSource, VideoSource
from headcam.video.metadata import is_picture
from headcam.video.transforms import Cut, center_box, crop_array

_TABLES = ("frames.parquet", "clips.parquet")  # what tells a store from a folder of pictures


@dataclass
class Items:
    """Items of a data set, to be gone through once; see `open_items`.

    Attributes:
        data: path of the data set.
        name: of the data set, as tables call it: its folder or file.
        size: (H, W) in pixels.
        num_frames: 1 for pictures.
        step_s: seconds between two frames of a clip.
        chosen: (n,) numbers of the units or files, rising.
        total: items that the data set has.
        skipped: (item, reason) of what could not be decoded, filled while iterating.
    """

    data: Path
    size: tuple[int, int]
    num_frames: int
    step_s: float
    chosen: np.ndarray
    total: int
    source: FrameSource | None = None
    files: list[Path] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.data.name or str(self.data)

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Tensor]:
        """uint8 (3, H, W) or (3, T, H, W) of each item that can be decoded, in the order of `chosen`."""
        for item in self.chosen.tolist():
            try:
                pixels = self._file(self.files[item]) if self.source is None else self._unit(item)
            except DecodeError as error:
                self.skipped.append((self._item_name(item), " ".join(error.problem.split())))
                continue
            yield torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)))

    def stacked(self) -> Tensor:
        """All in one: uint8 (n, 3, H, W) or (n, 3, T, H, W).

        Raises:
            InputError: none can be decoded.
        """
        found = list(self)
        if not found:
            raise self.none_decoded()
        return torch.stack(found)

    def none_decoded(self) -> InputError:
        reason = self.skipped[0][1]
        return InputError(f"none of {len(self)} items of {self.data} could be decoded ({reason})", "scan them")

    @cached_property
    def recordings(self) -> list[str]:
        """Id of the recording that each chosen item comes from; of a picture, its own."""
        if self.source is None:
            return [recording_id(self.files[item]) for item in self.chosen]
        units = self.source.units
        return [units.recordings[k] for k in units.recording_of(self.chosen)]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of which moments of which recordings these are; not of how they are cut."""
        times = [] if self.source is None else self.source.units.time_of(self.chosen).tolist()
        return sha256_json({"recordings": self.recordings, "times_s": times})

    def _unit(self, unit: int) -> np.ndarray:
        units = self.source.units
        width, height = units.size_of(unit)
        cut = Cut(center_box(int(width), int(height), self.size), self.size, False)
        return self.source.views(unit, float(units.time_of(unit)), [cut])[0]

    def _file(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as opened:
                image = np.asarray(opened.convert("RGB"))
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
            raise DecodeError(f"{path.name} cannot be decoded: {error}", "leave it out") from error
        return crop_array(image, center_box(image.shape[1], image.shape[0], self.size), self.size)

    def _item_name(self, item: int) -> str:
        if self.source is None:
            return str(self.files[item])
        units = self.source.units
        return f"{units.recordings[int(units.recording_of(np.int64(item)))]} at {float(units.time_of(item)):.2f} s"


def open_items(
    data: str | Path, size: tuple[int, int], num_frames: int = 1, *, num: int, step_s: float = 8 / 30, seed: int = 0
) -> Items:
    """Choose the items.

    Args:
        data: frame store, clip store, file of `headcam index`, or folder of pictures.
        size: (H, W) in pixels.
        num_frames: 1 for pictures, more for clips.
        num: most items; fewer where there are not as many.
        step_s: clips: seconds between two frames.
        seed: of the choice.
    Raises:
        InputError: nothing there, or clips asked of pictures.
    """
    data = Path(data)
    if num < 1:
        raise InputError(f"{num} items of {data} cannot be had", "give at least 1")
    if not data.exists():
        raise InputError(f"{data} does not exist", "give a frame or clip store, a file of headcam index, or pictures")
    source, files = None, []
    if data.is_file():
        source = VideoSource(data) if num_frames == 1 else ClipVideoSource(data, num_frames, step_s)
    elif any((data / table).is_file() for table in _TABLES):
        source = StoreSource(data) if num_frames == 1 else ClipStoreSource(data, num_frames, step_s)
    else:
        files = sorted(p for p in data.rglob("*") if is_picture(p))
        if not files:
            raise InputError(f"{data} holds no pictures and is no store", "give a store, an index, or pictures")
        if num_frames > 1:
            raise InputError(f"{data} holds pictures, and this model takes clips", "give video")
    total = len(files) if source is None else len(source.units)
    chosen = np.sort(permuted(np.arange(min(num, total)), total, seed, "items"))
    return Items(data, tuple(size), num_frames, step_s, chosen, total, source, files)
