"""From a plan to pictures: the data sets that loaders read.

A source yields views of the picture of a unit, cut and resized: `StoreSource` from a frame store (JPEG bytes by
offset), `VideoSource` straight from the recordings; `headcam.video.clip_sources` has those whose units are clips. The
data sets only join a plan and a source; item i is a pure function of i, so neither workers nor restarts change it.

Only verified seconds are drawn from: what `headcam scan` put into quarantine is no unit of a `VideoSource`, and was no
frame when the store was made. A picture that cannot be decoded all the same is replaced by another draw from the same
law, and its item says so; what is not there at all (a file or shard that is gone or cut short) stops the run, since
copying it again mends it.

Items hold what the objective's `ViewLaw`s ask for, ready for the loader's default collation: under `law.name` uint8 (3,
H, W), for a clip (3, T, H, W), with a first dimension V where `law.count` is given; under `law.noise_key` float32
(noise,) or (V, noise). Training items add `sample`, their number; both add `label` where an objective predicts one;
and `undecoded`, a list of `Undecoded`, stands where pictures had to be replaced.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset

from headcam.errors import DecodeError, InputError
from headcam.randomness import permuted
from headcam.video.colour import apply_colour
from headcam.video.episodes import Episodes
from headcam.video.quarantine import Quarantine, quarantine_of, verified_stretches
from headcam.video.readers import open_reader
from headcam.video.recording_index import RecordingIndex, recording_facts
from headcam.video.recordings import recordings_hash
from headcam.video.sampling.accounting import Undecoded
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.plan import FramePlan, Sample, View, draw_views, mask_noise
from headcam.video.sampling.units import FrameUnits, JoinedUnits, RecordingFacts, StretchUnits, Units
from headcam.video.sampling.views import ViewLaw
from headcam.video.stores.frame_store import FrameStore
from headcam.video.transforms import Cut, center_box, crop_array, decode_cuts

_MOST_DRAWS = 8  # for one sample: its own and seven replacements, after which more than bad luck is at work


class FrameSource(Protocol):
    """Pictures, or clips, of units."""

    units: Units

    def views(self, unit: int, time_s: float, cuts: Sequence[Cut]) -> list[np.ndarray]:
        """All `cuts` of the unit's frame at `time_s`, decoded once: (H, W, 3) uint8 each; of a clip (T, H, W, 3).

        Args:
            cuts: at least one; their boxes are in pixels of the upright picture (`units.size_of`).
        Raises:
            DecodeError: the picture is damaged.
            InputError: it is not there.
        """

    def origin(self) -> dict[str, Any]:
        """Hashes of the recordings and of the quarantine table (None: not scanned) that the units come from."""


class StoreSource:
    """Pictures from a frame store; the time within a unit does not matter, since one frame stands for it.

    Args:
        folder: of `headcam store`.
        manifest: draw only from the frames within its stretches, see `FrameUnits.restricted`.
    """

    def __init__(self, folder: str | Path, manifest: Manifest | None = None):
        self.store = FrameStore(folder)
        facts = self.store.facts
        used, recording = np.unique(self.store.recording, return_inverse=True)
        units = FrameUnits(
            recording=recording.astype(np.int32),
            time_s=self.store.time_s,
            seconds=self.store.seconds,
            width=self.store.width,
            height=self.store.height,
            row=np.arange(len(self.store)),
            facts=(RecordingFacts.unknown(self.store.recordings) if facts is None else recording_facts(facts)).take(
                used
            ),
        )
        self.units = units if manifest is None else units.restricted(manifest.stretches)

    def views(self, unit: int, time_s: float, cuts: Sequence[Cut]) -> list[np.ndarray]:
        row = int(self.units.row[unit])
        return decode_cuts(self.store.jpeg(row), cuts, name=f"picture {row} of {self.store.folder}")

    def origin(self) -> dict[str, Any]:
        return {name: self.store.metadata.get(name) for name in ("recordings_hash", "quarantine_hash")}


class VideoSource:
    """Pictures decoded from the recordings of an index when they are drawn: no store needed, but more decoding.

    Args:
        index_file: the Parquet file of `headcam index`.
        unit_seconds: length of a unit; the last unit of a stretch of verified seconds is shorter.
        backend: decoder, see `open_reader`.
        quarantine: `auto` for the table of `headcam scan` beside the index, None for no table, else its file.
        manifest: draw only from its stretches.
    """

    def __init__(
        self,
        index_file: str | Path,
        unit_seconds: float = 1.0,
        backend: str = "pyav",
        quarantine: str | Path | None = "auto",
        manifest: Manifest | None = None,
    ):
        self.backend = backend
        self.index = RecordingIndex.open(index_file)
        rows = self.index.usable()
        if not len(rows):
            raise InputError(f"{index_file} lists no readable recording", "index a folder that holds video or pictures")
        found = quarantine_of(index_file, self.index.table, quarantine)
        self._quarantine_hash = None if found is None else found.hash
        units = _verified_units(self.index.table, rows, found, unit_seconds)
        self.units = units if manifest is None else units.restricted(manifest.stretches)

    def views(self, unit: int, time_s: float, cuts: Sequence[Cut]) -> list[np.ndarray]:
        path, keyframes = self.locate(unit)
        try:
            with open_reader(path, self.backend, keyframes=keyframes) as reader:
                frame = reader.frames_at([time_s])[0]
        except DecodeError as error:
            if os.path.exists(path):
                raise
            raise InputError(f"{path} is gone", "bring it back, or index the folder again") from error
        return [crop_array(frame.image, *cut) for cut in cuts]

    def locate(self, unit: int) -> tuple[str, list[int] | None]:
        """Path of the recording that a unit is part of, and its key frames (None for a still picture)."""
        row = self.units.row[self.units.recording_of(unit)]
        return self.index.path(row), self.index.keyframes(row).tolist() or None

    def origin(self) -> dict[str, Any]:
        return {"recordings_hash": recordings_hash(self.index.table), "quarantine_hash": self._quarantine_hash}


def _verified_units(table: pa.Table, rows: np.ndarray, found: Quarantine | None, unit_seconds: float) -> StretchUnits:
    """Units of the verified seconds of `rows`; only recordings with a hole are dealt with one by one."""
    columns = ["duration_s", "width", "height", "rotation", "recording", "source", "age_days", "recorded_on", "status"]
    table = table.select(columns).take(rows)
    duration, width, height, rotation = (table[name].to_numpy() for name in columns[:4])
    recording = np.arange(len(rows))
    start, end = np.zeros(len(rows)), duration
    if found is not None:
        holed = pc.is_in(table["recording"], found.table["recording"].combine_chunks()).to_numpy()
        left = verified_stretches(table.filter(holed), found)
        pieces = [left.get(name, ()) for name in table["recording"].filter(holed).to_pylist()]
        counts = np.ones(len(rows), np.int64)
        counts[holed] = [len(piece) for piece in pieces]
        recording = np.repeat(recording, counts)
        start, end, of_holed = start[recording], end[recording], holed[recording]
        edges = [edge for piece in pieces for edge in piece]
        start[of_holed], end[of_holed] = np.array(edges, np.float64).reshape(-1, 2).T
    kept, recording = np.unique(recording, return_inverse=True)
    turned = rotation[kept] % 180 == 90
    return StretchUnits(
        recording=recording.astype(np.int32),
        start_s=start,
        end_s=end,
        unit_seconds=unit_seconds,
        width=np.where(turned, height[kept], width[kept]),
        height=np.where(turned, width[kept], height[kept]),
        row=rows[kept],
        facts=recording_facts(table.take(kept)),
    )


class JoinedSource:
    """Several sources as one, in the order given."""

    def __init__(self, sources: list[FrameSource]):
        self.sources = sources
        self.units = JoinedUnits([s.units for s in sources])

    def views(self, unit: int, time_s: float, cuts: Sequence[Cut]) -> list[np.ndarray]:
        which = int(self.units.part_of(unit))
        return self.sources[which].views(unit - int(self.units.first[which]), time_s, cuts)


class PlannedFrames(Dataset):
    """Training samples: item i is sample i of the plan, for any i >= 0.

    Args:
        plan, source: what to draw, and where its pictures are; of the same units.
        label_of: number of a unit -> its label, where items say it.
    Raises:
        InputError: neither a sample's own picture nor any of several replacements can be decoded, or one is missing.
    """

    def __init__(self, plan: FramePlan, source: FrameSource, label_of: Callable[[int], int] | None = None):
        self.plan, self.source, self.label_of = plan, source, label_of

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = int(i)
        laws, sample, undecoded = self.plan.laws(i), self.plan.sample(i), []
        while True:
            try:
                item = _viewed(self.source, sample.unit, sample.time_s, laws, sample.views)
                break
            except DecodeError as error:
                undecoded.append(self._undecoded(sample, len(undecoded), error))
                if len(undecoded) == _MOST_DRAWS:
                    raise InputError(
                        f"sample {i} and {_MOST_DRAWS - 1} replacements of it could not be decoded; {error.problem}",
                        "find the damage with headcam scan, so that training uses verified seconds only",
                    ) from error
                sample = self.plan.replacement(i, len(undecoded))
        item["sample"] = torch.tensor(i)
        if self.label_of is not None:
            item["label"] = torch.tensor(self.label_of(sample.unit))
        return item | {"undecoded": undecoded} if undecoded else item

    def _undecoded(self, sample: Sample, attempt: int, error: DecodeError) -> Undecoded:
        facts = self.plan.units.facts
        recording = int(self.plan.units.recording_of(np.int64(sample.unit)))
        source = facts.source_names[facts.source[recording]]
        reason = " ".join(error.problem.split())
        return Undecoded(sample.i, attempt, str(facts.ids[recording]), source, sample.time_s, reason)


class HeldOutFrames(Dataset):
    """Validation samples: every unit once, in a fixed mixed order, each with views and noise that never change.

    A law whose `held_out` is `centre` gives the largest central crop (and no dimension V), `same` gives the law's own
    draws; the frame is that at the unit's start. The order is mixed so that the first batches already show many
    recordings (`trainer.limit_val_batches`). Nothing depends on the run's seed: losses of all runs are on the same
    views and masks. A picture that cannot be decoded is an error: losses of two runs must not be of different pictures.
    Items say their `unit`.

    Args:
        source: of the pictures.
        laws: of the views, see `ViewLaw`.
        scale, flip: for laws with `held_out` `same` that leave them open.
        label_of: number of a unit -> its label, where items say it.
    """

    def __init__(
        self,
        source: FrameSource,
        laws: Sequence[ViewLaw],
        scale: tuple[float, float] = (0.2, 1.0),
        flip: float = 0.5,
        label_of: Callable[[int], int] | None = None,
    ):
        self.source, self.label_of = source, label_of
        self.laws = tuple(
            replace(law, count=None) if law.held_out == "centre" else law.with_defaults(scale, flip) for law in laws
        )

    def __len__(self) -> int:
        return len(self.source.units)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        units = self.source.units
        unit = int(permuted(np.int64(i), len(units), 0, "held out"))
        item = _viewed(self.source, unit, float(units.time_of(unit)), self.laws, self._views(unit))
        item["unit"] = torch.tensor(unit)
        if self.label_of is not None:
            item["label"] = torch.tensor(self.label_of(unit))
        return item

    def _views(self, unit: int) -> list[tuple[View, ...]]:
        width, height = (int(side) for side in self.source.units.size_of(unit))
        views = []
        for law in self.laws:
            if law.held_out == "same":
                views += draw_views([law], width, height, 0, unit, before=f"held out {law.name} ")
            else:
                purpose = "mask" if law is self.laws[0] else f"mask {law.name} 0"
                noise = mask_noise(0, unit, law.noise, purpose)
                views.append((View(center_box(width, height, law.size), False, None, noise),))
        return views


@dataclass(frozen=True)
class UnitEpisodes:
    """Number of a unit -> the episode that it starts in.

    Args:
        units: the units.
        episodes: of the recordings that `recordings` point to.
        recordings: (R,) int64, for each recording of `units` its position among those of `episodes`.
    """

    units: Units
    episodes: Episodes
    recordings: np.ndarray

    def __call__(self, unit: int) -> int:
        recording = self.recordings[self.units.recording_of(np.int64(unit))]
        return int(self.episodes.episode_of(recording, self.units.time_of(np.int64(unit))))


def _viewed(
    source: FrameSource, unit: int, time_s: float, laws: Sequence[ViewLaw], views: Sequence[Sequence[View]]
) -> dict[str, Any]:
    """The item of these views of a unit."""
    cuts = [Cut(view.crop, law.size, view.flip) for law, group in zip(laws, views) for view in group]
    return item_of_views(source.views(unit, time_s, cuts), laws, views)


def item_of_views(
    cuts: Iterable[np.ndarray], laws: Sequence[ViewLaw], views: Sequence[Sequence[View]]
) -> dict[str, Tensor]:
    """What an objective asks for of one sample: pixels and noise of every law.

    Args:
        cuts: uint8 (H, W, 3), or (T, H, W, 3) of clips: all views of all laws in turn, as they were cut.
        laws: of the objective.
        views: those of each law, as drawn.
    Returns:
        `law.name`: uint8 (3, H, W) or (3, T, H, W), with a first dimension V where the law has a count; `law.noise_key`
        float32 beside it.
    """
    pictures = iter(cuts)
    item = {}
    for law, group in zip(laws, views):
        shown = [
            image if view.colour is None else apply_colour(image, view.colour) for view, image in zip(group, pictures)
        ]
        pixels = [_to_tensor(image) for image in shown]
        item[law.name] = pixels[0] if law.count is None else torch.stack(pixels)
        if law.noise:
            noise = [torch.from_numpy(view.noise) for view in group]
            item[law.noise_key] = noise[0] if law.count is None else torch.stack(noise)
    return item


def _to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) -> (3, H, W), (T, H, W, 3) -> (3, T, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))
