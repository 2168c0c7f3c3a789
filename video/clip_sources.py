"""Clips of units: what `datasets.py` gives for single frames, for objectives that train on T frames at a time.

A clip is meant in time: T frames, `step_s` apart, the first at the clip's start; it lasts `span` = T * step_s. The plan
knows nothing of that. It draws seconds (`headcam.video.sampling.plan`), and here a drawn second becomes a clip:

    units    seconds of those stretches of verified video that last a span or longer; the rest is counted, `too_short`
    start    a time t drawn in a stretch [a, b] gives the clip that starts at a + (t - a) * (b - a - span) / (b - a)

So every clip lies inside its stretch and contains the time that it was drawn for, and its start is as likely in one
place of the stretch as in another. Orders, accounts and manifests work for clips as for frames, and the hours that a
run has lived are those of the seconds whose clips it has seen. (Drawing a whole file first, as the originals did, shows
a second of a short file more often than one of a long file.)

A recording is decoded once for all cuts of a clip, at the smallest size that serves the largest of them; all frames of
a cut get the same box.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headcam.errors import DecodeError, InputError
from headcam.video.clips import clip_times, read_clips
from headcam.video.datasets import VideoSource
from headcam.video.readers import open_reader
from headcam.video.recording_index import recording_facts
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.units import StretchUnits
from headcam.video.stores import frame_store
from headcam.video.stores.clip_store import KIND, ClipStore
from headcam.video.transforms import Box, Cut, crop_array

_HOUR = 3600.0


class ClipVideoSource(VideoSource):
    """Clips decoded from the recordings of an index when they are drawn: no store needed, but more decoding.

    Args:
        index_file, unit_seconds, backend, quarantine, manifest: see `VideoSource`.
        num_frames: T.
        step_s: seconds between two frames of a clip, above 0: the stride over the frame rate, such as 8 / 30.

    Attributes:
        units: seconds of the stretches that a clip fits into.
        too_short: (recordings, hours) of the stretches that were left out, still pictures included.

    Raises:
        InputError: a clip is longer than every stretch of verified video, or a setting is out of range.
    """

    def __init__(
        self,
        index_file: str | Path,
        num_frames: int,
        step_s: float,
        unit_seconds: float = 1.0,
        backend: str = "pyav",
        quarantine: str | Path | None = "auto",
        manifest: Manifest | None = None,
    ):
        clip_times(0.0, num_frames, step_s)  # checks both
        super().__init__(index_file, unit_seconds, backend, quarantine, manifest)
        self.num_frames, self.step_s = num_frames, step_s
        self.units, self.too_short = _fitting(self.units, num_frames, step_s, str(index_file))

    def views(self, unit: int, time_s: float, cuts: Sequence[Cut]) -> list[np.ndarray]:
        """The clip of a unit at a time within it, cut in several ways from one decode.

        Args:
            unit: number of the unit.
            time_s: within the unit, in seconds from the start of its recording.
            cuts: boxes in pixels of the upright picture (`units.size_of(unit)`).
        Returns:
            for each cut (T, H, W, 3) uint8, H and W those of its `size`.
        Raises:
            DecodeError: the clip is damaged.
            InputError: the recording is gone.
        """
        path, keyframes = self.locate(unit)
        size = tuple(int(side) for side in self.units.size_of(unit))
        try:
            with open_reader(path, self.backend, short_side=_short_side(size, cuts), keyframes=keyframes) as reader:
                images, _ = read_clips(reader, [clip_start(self, unit, time_s)], self.num_frames, self.step_s)
        except DecodeError as error:
            if os.path.exists(path):
                raise
            raise InputError(f"{path} is gone", "bring it back, or index the folder again") from error
        return cut_clip(images[0], size, cuts)


class ClipStoreSource:
    """Clips from a clip store, which costs a fraction of decoding the recordings.

    Args:
        folder: of `headcam store --kind clips`.
        num_frames, step_s, manifest, unit_seconds: see `ClipVideoSource`.

    Attributes:
        units, too_short: see `ClipVideoSource`.

    Raises:
        InputError: the folder holds no clip store, or one of fewer frames a second than clips have; a clip is longer
            than every stretch that is stored.
    """

    def __init__(
        self,
        folder: str | Path,
        num_frames: int,
        step_s: float,
        manifest: Manifest | None = None,
        unit_seconds: float = 1.0,
    ):
        clip_times(0.0, num_frames, step_s)  # checks both
        folder = Path(folder)
        if (folder / frame_store.KIND.table).exists() and not (folder / KIND.table).exists():
            raise InputError(
                f"{folder} stores single frames, and the model wants clips of {num_frames} frames",
                "make a clip store with headcam store FILE.parquet --kind clips, or give the file of headcam index",
            )
        self.store = ClipStore(folder)
        rate = self.store.metadata["settings"]["frames_per_second"]
        if rate is not None and rate * step_s < 1 - 1e-6:
            raise InputError(
                f"{folder} stores {rate:g} frames a second, and clips of a frame every {step_s:.4g} s want "
                f"{1 / step_s:.4g}, so that frames would repeat",
                "raise data.step_s, or store more frames a second",
            )
        self.num_frames, self.step_s = num_frames, step_s
        units = StretchUnits(
            recording=self.store.stretch_recording,
            start_s=self.store.stretch_start_s,
            end_s=self.store.stretch_end_s,
            unit_seconds=unit_seconds,
            width=self.store.width,
            height=self.store.height,
            row=np.arange(len(self.store.recordings)),
            facts=recording_facts(self.store.facts),
        )
        if manifest is not None:
            units = units.restricted(manifest.stretches)
        self.units, self.too_short = _fitting(units, num_frames, step_s, str(folder))

    def views(self, unit: int, time_s: float, cuts: Sequence[Cut]) -> list[np.ndarray]:
        """See `ClipVideoSource.views`; `InputError` where a shard is gone."""
        recording = self.store.recordings[int(self.units.row[self.units.recording_of(unit)])]
        times = clip_times(clip_start(self, unit, time_s), self.num_frames, self.step_s)
        images = [frame.image for frame in self.store.frames_at(recording, times)]
        return cut_clip(images, tuple(int(side) for side in self.units.size_of(unit)), cuts)

    def origin(self) -> dict[str, Any]:
        """Hashes of the recordings and of the quarantine table (None: not scanned) that the units come from."""
        return {name: self.store.metadata.get(name) for name in ("recordings_hash", "quarantine_hash")}


def clip_start(source: ClipVideoSource | ClipStoreSource, unit: int, time_s: float) -> float:
    """Where the clip of a drawn time starts, both in seconds from the start of the recording; see the module."""
    first, last = (float(edge) for edge in source.units.stretch_of(unit))
    room = max(0.0, last - first - source.num_frames * source.step_s)
    return first + (time_s - first) * room / (last - first)


def cut_clip(images: Sequence[np.ndarray], size: tuple[int, int], cuts: Sequence[Cut]) -> list[np.ndarray]:
    """Cut all frames of a clip in the same way, once for each of `cuts`.

    Args:
        images: T decoded frames (h, w, 3) uint8, of any one scale.
        size: (width, height) of the picture that the boxes are meant in.
    Returns:
        for each cut (T, H, W, 3) uint8.
    """
    height, width = images[0].shape[:2]
    x, y = width / size[0], height / size[1]  # boxes are carried over without rounding
    return [
        np.stack(
            [
                crop_array(image, Box(box.left * x, box.top * y, box.width * x, box.height * y), out, flip)
                for image in images
            ]
        )
        for box, out, flip in cuts
    ]


def _short_side(size: tuple[int, int], cuts: Sequence[Cut]) -> int:
    """The shorter side, in pixels, of the smallest picture in which no box has fewer pixels than its cut wants."""
    wanted = max(max(out[1] / box.width, out[0] / box.height) for box, out, _ in cuts)
    return max(1, math.ceil(min(1.0, wanted) * min(size) - 1e-6))


def _fitting(units: StretchUnits, num_frames: int, step_s: float, where: str) -> tuple[StretchUnits, tuple[int, float]]:
    """The units of stretches that a clip fits into; how many recordings, and hours of them, are left out."""
    span = num_frames * step_s
    fitting = units.at_least(span)
    lasting = units.end_s - units.start_s
    if len(units) and not len(fitting):
        raise InputError(
            f"the clip is longer than the recording: {num_frames} frames every {step_s:.4g} s last {span:.4g} s, and "
            f"the longest verified stretch in {where} lasts {lasting.max():.4g} s",
            "lower model.num_frames or data.step_s, or give longer recordings",
        )
    short = lasting < span - 1e-6
    return fitting, (len(np.unique(units.recording[short])), float(lasting[short].sum()) / _HOUR)
