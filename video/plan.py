"""The sampling law: what sample i of a run is follows from (units, settings, seed, i) alone.

A *unit* is a short stretch of one recording (a second of video, or a still picture) that is drawn whole or not at
all. An epoch visits every unit once, in the order of a keyed permutation; within its unit a sample gets a time, a
crop box, a flip and the noise that decides its mask, each from its own counter-based stream. Nothing is remembered
between samples, so a run resumes from its step number, on any number of workers or processes, and the unique hours
that it has seen follow from the number of samples that it has drawn.

Shapes: L is the number of patches of an image.
"""

from dataclasses import dataclass

import numpy as np

from headcam.errors import InputError
from headcam.randomness import permuted, stream
from headcam.video.transforms import Box, crop_box

_HOUR = 3600.0
_MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class Units:
    """What can be drawn: parallel arrays of length n, in the order of the index (recording, then time).

    Attributes:
        recording: (n,) int32, index into `recordings`.
        time_s: (n,) float64, start of the unit in seconds from the start of its recording.
        seconds: (n,) float64, the stretch of video that the unit stands for; 0 for still pictures.
        width, height: (n,) int32, pixels of the picture that a sample is cut from.
        recordings: ids of the recordings.
    """

    recording: np.ndarray
    time_s: np.ndarray
    seconds: np.ndarray
    width: np.ndarray
    height: np.ndarray
    recordings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def hours(self) -> float:
        """Hours of video that all units together stand for."""
        return float(self.seconds.sum() / _HOUR)

    @staticmethod
    def concatenate(parts: list["Units"]) -> "Units":
        """The units of several sources as one; ids of recordings are kept apart by their position."""
        offsets = np.cumsum([0] + [len(p.recordings) for p in parts])
        return Units(
            recording=np.concatenate([p.recording + o for p, o in zip(parts, offsets)]).astype(np.int32),
            time_s=np.concatenate([p.time_s for p in parts]),
            seconds=np.concatenate([p.seconds for p in parts]),
            width=np.concatenate([p.width for p in parts]),
            height=np.concatenate([p.height for p in parts]),
            recordings=tuple(r for p in parts for r in p.recordings),
        )


@dataclass(frozen=True)
class Sample:
    """Sample i of a run.

    Attributes:
        i: its number in the run, from 0.
        unit: index into the plan's units.
        time_s: the wanted time in seconds from the start of the recording (the frame on screen then is the picture).
        crop: box in pixels of the picture.
        flip: mirrored left to right.
        noise: (L,) float32 in [0, 1); the patches with the smallest values stay visible.
    """

    i: int
    unit: int
    time_s: float
    crop: Box
    flip: bool
    noise: np.ndarray


@dataclass(frozen=True)
class FramePlan:
    """The pure function i -> `Sample` for training on single frames.

    Args:
        units: what can be drawn; at least one.
        seed: of the run; other seeds are independent draws.
        num_patches: L, the length of the noise.
        scale: range of the crop's area as a fraction of the picture's (MAE: 0.2 to 1).
        ratio: range of the crop's aspect ratio.
        flip: probability of mirroring.
    Raises:
        InputError: no units, or a setting out of range.
    """

    units: Units
    seed: int
    num_patches: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if len(self.units) == 0:
            raise InputError("there is no frame to draw from", "index and store a folder with readable recordings")
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise InputError(f"crop scale {self.scale} is no range in (0, 1]", "give for example [0.2, 1.0]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"crop ratio {self.ratio} is no range above 0", "give for example [0.75, 1.333]")
        if not 0 <= self.flip <= 1:
            raise InputError(f"flip is {self.flip}, no probability", "give a number from 0 (never) to 1 (always)")

    def unit(self, i: np.ndarray) -> np.ndarray:
        """Units of the samples `i` (int64, any shape): epoch i // n visits every unit once in its own keyed order."""
        i = np.asarray(i, dtype=np.int64)
        n = len(self.units)
        out = np.empty(i.shape, dtype=np.int64)
        epochs = i // n
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            out[chosen] = permuted(i[chosen] % n, n, self.seed, f"epoch {epoch}")
        return out

    def sample(self, i: int) -> Sample:
        """Sample number i (0 <= i)."""
        unit = int(self.unit(np.array([i]))[0])
        units = self.units
        within = stream(self.seed, "time", i).random()
        return Sample(
            i=i,
            unit=unit,
            time_s=float(units.time_s[unit] + within * units.seconds[unit]),
            crop=crop_box(
                stream(self.seed, "crop", i), int(units.width[unit]), int(units.height[unit]), self.scale, self.ratio
            ),
            flip=bool(stream(self.seed, "flip", i).random() < self.flip),
            noise=mask_noise(self.seed, i, self.num_patches),
        )

    def hours_seen(self, samples: int) -> float:
        """Unique hours of video in samples 0..`samples` - 1; after one epoch all units are seen."""
        return self.microseconds_seen(samples) / (_HOUR * _MICROSECONDS)

    def microseconds_seen(self, samples: int, since: int = 0) -> int:
        """Unique video that samples `since`..`samples` - 1 add to those before them.

        In whole microseconds for each unit, so that a sum does not depend on where it was interrupted.
        """
        n = len(self.units)
        seen = self.unit(np.arange(min(since, n), min(samples, n)))
        return int(np.rint(self.units.seconds[seen] * _MICROSECONDS).astype(np.int64).sum())


def mask_noise(seed: int, i: int, num_patches: int) -> np.ndarray:
    """The (L,) float32 noise of sample i: uniform in [0, 1)."""
    return stream(seed, "mask", i).random(num_patches, dtype=np.float32)


def step_samples(step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
    """Numbers of the samples that process `rank` of `world_size` draws for (micro-)step `step`: (batch_size,) int64.

    The global batch of a step is a contiguous run of sample numbers, dealt out in equal parts, so that the set of
    samples after a step depends on the global batch size alone and not on how many processes share it.
    """
    first = (step * world_size + rank) * batch_size
    return np.arange(first, first + batch_size, dtype=np.int64)
