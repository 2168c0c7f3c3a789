"""From video to what a token store has a row for: which frames or clips, cut how, in which order.

A row is one crop of one frame, or of one clip. Its number, `sample`, is unit * crops + crop: so the rows of a frame
stand together, and the number names the draw, for crop and flip come from the same keyed streams of (seed, sample) as
those of a run's plan (`headcam.video.sampling.plan`). Nothing else has a say: row i is the same on any machine, with
any number of workers, and whether or not others were cut before.

    frames   a unit is a picture of a frame store, or a second of an index, whose frame is the one at its start
    clips    a unit is a clip of T frames, `step_s` apart, one every `stride_s` from the start of every verified stretch

With one crop a row is the largest central one; with several, or where a range of areas is given, they are random
resized crops as in training. No clip reaches beyond its stretch, so none contains a second that was not verified (or,
under a manifest, not drawn).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from headcam.errors import DecodeError, InputError
from headcam.video.clip_sources import ClipStoreSource, ClipVideoSource
from headcam.video.datasets import FrameSource, StoreSource, VideoSource
from headcam.video.sampling.accounting import Undecoded
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.plan import draw_views
from headcam.video.sampling.views import ViewLaw
from headcam.video.transforms import Box, Cut, center_box

RANDOM_SCALE = (0.2, 1.0)  # area of a crop as a fraction of the frame's, where there are several of a frame

_WHOLE_S = 1e9  # seconds: a unit so long is a whole stretch
_HAIR_S = 1e-6  # by which a clip may reach beyond a stretch, from rounding


@dataclass(frozen=True)
class Skipped:
    """A frame or clip that could not be decoded: where, the seconds that it stood for, and why."""

    recording: str
    time_s: float
    seconds: float
    reason: str


def open_source(
    data: str | Path, num_frames: int, step_s: float = 8 / 30, manifest: Manifest | None = None
) -> FrameSource:
    """The frames (`num_frames` 1) or clips of a store or index; a unit of clips is a whole verified stretch.

    Raises:
        InputError: nothing there that has any, or nothing of the manifest.
    """
    if manifest is not None and manifest.stretches is None:
        raise InputError(f"manifest {manifest.name!r} is a run's account", "give a file that headcam subset wrote")
    path, clips = Path(data), num_frames > 1
    if path.is_dir() and clips:
        source = ClipStoreSource(path, num_frames, step_s, manifest, unit_seconds=_WHOLE_S)
    elif path.is_dir():
        source = StoreSource(path, manifest)
    elif path.is_file() and clips:
        source = ClipVideoSource(path, num_frames, step_s, unit_seconds=_WHOLE_S, manifest=manifest)
    elif path.is_file():
        source = VideoSource(path, manifest=manifest)
    else:
        raise InputError(f"{path} does not exist", "make a store with headcam store, or give the file of headcam index")
    if not len(source.units):
        raise InputError(f"{path} holds nothing of manifest {manifest.name!r}", "give the data it was drawn from")
    return source


@dataclass(frozen=True)
class Moments:
    """What is encoded, M frames or clips in the order of recordings and times: arrays of length M.

    Attributes:
        unit: of the source, int64.
        asked_s: float64, what to ask the source for, which for a clip is another time than its start.
        time_s: float64, of the frame, or the clip's first; seconds from the start of the recording.
        seconds: float64, of video that it stands for.
        span_s: seconds that it lasts itself: of all frames of a clip; 0 for a frame.
    """

    unit: np.ndarray
    asked_s: np.ndarray
    time_s: np.ndarray
    seconds: np.ndarray
    span_s: float

    def __len__(self) -> int:
        return len(self.unit)


def frame_moments(source: FrameSource) -> Moments:
    """Every unit once, by the frame at its start."""
    unit = np.arange(len(source.units))
    time_s = source.units.time_of(unit)
    return Moments(unit, time_s, time_s, source.units.seconds_of(unit), 0.0)


def clip_moments(source: ClipStoreSource | ClipVideoSource, stride_s: float | None = None) -> Moments:
    """A clip every `stride_s` (default: its span) in every stretch, from the stretch's start.

    A clip stands for the seconds up to the next one; the last of a stretch for those up to its own end, or for a stride
    where that is longer, but not beyond the stretch. So seconds that several clips show count once, and none twice.

    Args:
        source: of `open_source`, whose units are whole stretches.
    """
    span = source.num_frames * source.step_s
    stride = span if stride_s is None else stride_s
    if not 0 < stride < math.inf:
        raise InputError(f"stride_s is {stride_s}", f"give seconds above 0, such as {span:.4g}, the span of a clip")
    units = source.units
    stretch = np.arange(len(units))
    first = units.time_of(stretch)
    lasting = units.seconds_of(stretch)
    counts = np.floor((lasting - span + _HAIR_S) / stride).astype(np.int64) + 1
    unit = np.repeat(stretch, counts)
    k = np.arange(len(unit)) - np.repeat(np.cumsum(counts) - counts, counts)
    into = k * stride  # seconds into the stretch
    last = k == counts[unit] - 1
    seconds = np.where(last, np.minimum(max(stride, span), lasting[unit] - into), stride)
    # The source lays clips over a stretch so that a time drawn anywhere in it gives a clip inside; here the clip's
    # start is known, and the time that gives it is looked for.
    room = np.maximum(lasting - span, 0.0)[unit]
    asked = first[unit] + np.where(room > _HAIR_S, into * lasting[unit] / np.maximum(room, _HAIR_S), 0.0)
    return Moments(unit, np.minimum(asked, first[unit] + lasting[unit]), first[unit] + into, seconds, span)


class Rows(Dataset):
    """The rows of a token store before they are tokens; item `sample` is what the tokenizer encodes.

    An item holds `pixels` uint8 (3, H, W) or (3, T, H, W), `box` float64 (4,) (left, top, width, height in pixels of
    the frame) and `flip` bool. What cannot be decoded is black, and `undecoded` says why, for the first crop of a unit.

    Args:
        source: of the pictures.
        moments: what is encoded.
        size: (H, W) of the tokenizer's pictures.
        crops: rows of each frame or clip.
        scale: range of a crop's area; None for the largest central crop.
        flip: probability of mirroring.
        seed: of the draws.
    """

    def __init__(
        self,
        source: FrameSource,
        moments: Moments,
        size: tuple[int, int],
        crops: int,
        scale: tuple[float, float] | None,
        flip: float,
        seed: int,
    ):
        self.source, self.moments, self.crops, self.scale, self.seed = source, moments, crops, scale, seed
        self.law = ViewLaw("image", size, scale=scale or RANDOM_SCALE, flip=flip)
        self.frames = (source.num_frames,) if hasattr(source, "num_frames") else ()
        self._newest: tuple[int, list[dict[str, Any]]] = (-1, [])  # rows of a unit come together: decoded once

    def __len__(self) -> int:
        return len(self.moments) * self.crops

    def __getitem__(self, sample: int) -> dict[str, Any]:
        moment, crop = divmod(int(sample), self.crops)
        if self._newest[0] != moment:
            self._newest = moment, self._items(moment)
        return dict(self._newest[1][crop])

    def _items(self, moment: int) -> list[dict[str, Any]]:
        unit = int(self.moments.unit[moment])
        cuts = [self._cut(unit, moment * self.crops + crop) for crop in range(self.crops)]
        failed: dict[str, Any] = {}
        try:
            pictures = self.source.views(unit, float(self.moments.asked_s[moment]), cuts)
        except DecodeError as error:
            pictures = [np.zeros((*self.frames, *self.law.size, 3), np.uint8)] * self.crops
            failed = {"undecoded": [self._undecoded(moment, error)]}
        items = [
            {
                "pixels": torch.from_numpy(np.ascontiguousarray(np.moveaxis(picture, -1, 0))),
                "box": torch.tensor(cut.box, dtype=torch.float64),
                "flip": torch.tensor(cut.flip),
            }
            for picture, cut in zip(pictures, cuts)
        ]
        items[0] |= failed
        return items

    def _cut(self, unit: int, sample: int) -> Cut:
        width, height = (int(side) for side in self.source.units.size_of(np.int64(unit)))
        ((view,),) = draw_views([self.law], width, height, self.seed, sample)
        box = Box(*map(float, view.crop)) if self.scale else center_box(width, height, self.law.size)
        return Cut(box, self.law.size, view.flip)

    def _undecoded(self, moment: int, error: DecodeError) -> Undecoded:
        units = self.source.units
        recording = int(units.recording_of(np.int64(self.moments.unit[moment])))
        return Undecoded(
            sample=moment * self.crops,
            attempt=0,
            recording=str(units.facts.ids[recording]),
            source=units.facts.source_names[units.facts.source[recording]],
            time_s=float(self.moments.time_s[moment]),
            reason=" ".join(error.problem.split()),
        )
