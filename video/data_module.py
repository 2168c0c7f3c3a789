"""The Lightning data module: the views that the model wants of every sample, in batches.

It opens the sources, draws up the plan and the run's account of its data, and says in one line what a user should know
of them. It has no state: the loader starts at the sample that follows from the trainer's step, so nothing about the
order of data is saved or restored.
"""

import math
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader

from headcam.errors import InputError
from headcam.video.clip_sources import ClipStoreSource, ClipVideoSource
from headcam.video.datasets import (
    FrameSource,
    HeldOutFrames,
    JoinedSource,
    PlannedFrames,
    StoreSource,
    UnitEpisodes,
    VideoSource,
)
from headcam.video.episodes import Episodes
from headcam.video.loader import StepSampler, TimedLoader, one_thread
from headcam.video.sampling.accounting import Account
from headcam.video.sampling.hold_out import Stretches, hold_out
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.plan import FramePlan
from headcam.video.sampling.units import Units


class FrameDataModule(pl.LightningDataModule):
    """Frames, or clips, for an objective. The model says which views of a sample it wants, and how many frames.

    Args:
        train: Folders of stores (`headcam store`), or Parquet files of `headcam index` to decode from directly
            (verified seconds only, where `headcam scan` was run).
        val: The same for validation; null trains without, unless hold_out is set.
        batch_size: Samples per step and process.
        scale: Range of a crop's area as a fraction of the frame's, where the model leaves it open.
        flip: Probability of mirroring, where the model leaves it open.
        num_workers: Loader processes (0: in the training process). Changes speed only, never a sample.
        seed: Of the plan; other seeds draw other samples.
        backend: Decoder where frames come straight from recordings: pyav, decord, torchcodec or opencv.
        step_s: Seconds from one frame of a clip to the next, for models of clips (HVM-1: every 8th frame at 30 fps).
        manifest: File of `headcam subset`; training draws from its seconds alone.
        val_manifest: The same for validation, such as the held-out part of the same index.
        hold_out: Share of the training seconds that are held out for validation, in blocks inside the training
            recordings. For objectives whose labels exist only there, and only where val is null.
        hold_out_block_s: Seconds of such a block; null: 10, or a quarter of an episode where that is less, so that none
            is held out whole.
        order: shuffled, or lived: by the wearer's age (or the date), in windows.
        window_hours: Hours of video in a window of the order lived; samples are shuffled within a window.
        max_replaced: Share of samples whose picture may be replaced since it cannot be decoded; beyond it the run
            stops. Looked at in every step; a share of at least 1,000 samples, so that one bad picture stops no run.

    Attributes:
        plan: of training.
        manifest: the account of the data that training draws from.
        episodes: of the training recordings, where the model predicts them.
    """

    def __init__(
        self,
        train: list[str],
        val: list[str] | None = None,
        batch_size: int = 64,
        scale: tuple[float, float] = (0.2, 1.0),
        flip: float = 0.5,
        num_workers: int = 2,
        seed: int = 0,
        backend: str = "pyav",
        step_s: float = 8 / 30,
        manifest: str | None = None,
        val_manifest: str | None = None,
        hold_out: float = 0.0,
        hold_out_block_s: float | None = None,
        order: str = "shuffled",
        window_hours: float = 10.0,
        max_replaced: float = 0.01,
    ):
        super().__init__()
        if batch_size < 1:
            raise InputError(f"data.batch_size is {batch_size}", "give at least 1")
        if num_workers < 0:
            raise InputError(f"data.num_workers is {num_workers}", "give 0 or more")
        if not 0 <= max_replaced <= 1:
            raise InputError(
                f"data.max_replaced is {max_replaced}, no share", "give a number from 0 to 1, such as 0.01"
            )
        if not 0 < step_s < math.inf:
            raise InputError(f"data.step_s is {step_s}", "give seconds above 0, such as 0.2667")
        if not 0 <= hold_out < 1:
            raise InputError(f"data.hold_out is {hold_out}, no share below 1", "give for example 0.05")
        if hold_out_block_s is not None and not 0 < hold_out_block_s < math.inf:
            raise InputError(f"data.hold_out_block_s is {hold_out_block_s}", "give seconds above 0, such as 10")
        if hold_out and val:
            raise InputError(
                f"data.hold_out is {hold_out} and data.val names {val[0]}", "set one of them: validate on one thing"
            )
        self.train_paths, self.val_paths = list(train), list(val or [])
        self.batch_size, self.scale, self.flip = batch_size, tuple(scale), flip
        self.num_workers, self.seed, self.backend, self.step_s = num_workers, seed, backend, step_s
        self.manifest_path, self.val_manifest_path, self.hold_out = manifest, val_manifest, hold_out
        self.hold_out_block_s = hold_out_block_s
        self.order, self.window_hours, self.max_replaced = order, window_hours, max_replaced
        self.plan: FramePlan | None = None
        self.episodes: Episodes | None = None

    @property
    def validates(self) -> bool:
        """Whether anything is held out to validate on."""
        return bool(self.val_paths or self.hold_out)

    def setup(self, stage: str) -> None:
        if self.plan is not None:
            return
        model = self.trainer.lightning_module
        self.num_frames: int = model.num_frames
        parent = _read_manifest(self.manifest_path)
        self.train_source = whole = self._source(self.train_paths, parent, "train")
        _refuse_nothing(whole, parent, "train")
        if self.hold_out:
            self.train_source, val_source, held = self._split(whole, parent)
        elif self.val_paths:
            val_manifest = _read_manifest(self.val_manifest_path)
            val_source = self._source(self.val_paths, val_manifest, "val")
            _refuse_nothing(val_source, val_manifest, "val")
            _refuse_trained_on(self.train_source.units, val_source.units)
        (_, views), *later = model.view_stages
        per_step = self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        self.plan = FramePlan(
            self.train_source.units,
            self.seed,
            views,
            self.scale,
            self.flip,
            self.order,
            self.window_hours,
            stages=tuple((step * per_step, views) for step, views in later),
        )
        if getattr(model, "episode_seconds", None) is not None:
            if self.val_paths:
                raise InputError(
                    f"the model predicts episodes of the training recordings, which {self.val_paths[0]} has none of",
                    "set data.val to null and data.hold_out to a share, such as 0.05",
                )
            # Of all seconds: those that are held out need labels as well.
            self.episodes = Episodes(whole.units, model.episode_seconds)
        self.manifest = self._account_of_data(parent, whole)
        if self.hold_out:
            settings = self._held_out_facts(val_source, held)
            self.manifest = replace(self.manifest, settings=self.manifest.settings | {"hold_out": settings})
        if self.validates:
            self.val_data = HeldOutFrames(
                val_source, model.views, self.scale, self.flip, self._label_of(val_source.units, whole.units)
            )
        self.train_data = PlannedFrames(
            self.plan, self.train_source, self._label_of(self.train_source.units, whole.units)
        )
        if self.trainer.global_rank == 0:
            self._say_enlarged()
            if self.num_frames > 1:
                self._say_too_short()

    def _split(self, whole: FrameSource, parent: Manifest | None) -> tuple[FrameSource, FrameSource, Stretches]:
        """The source of training, that of validation, and the stretches that the latter draws from."""
        span = self.num_frames * self.step_s
        block = self._block_s()
        if self.num_frames > 1 and span > block:
            raise InputError(
                f"a clip of {span:g} s does not fit into the blocks of {block:g} s that data.hold_out keeps",
                "raise data.hold_out_block_s, or validate on other recordings (data.val)",
            )
        sides = hold_out(whole.units, self.hold_out, block)
        if parent is not None:
            sides = tuple(parent.restrict(side) for side in sides)
        sources = [self._source(self.train_paths, Manifest(seconds={}, stretches=side), "train") for side in sides]
        if not all(len(source.units) for source in sources):
            raise InputError(
                f"data.hold_out {self.hold_out:g} leaves one side without a frame: few lie within {block:g} s",
                "store frames at a higher rate, or validate on other recordings (data.val)",
            )
        return *sources, sides[1]

    def _block_s(self) -> float:
        """Seconds of a block that is held out."""
        episode = getattr(self.trainer.lightning_module, "episode_seconds", None)
        longest = math.inf if episode is None else episode / 4
        block = min(10.0, longest) if self.hold_out_block_s is None else self.hold_out_block_s
        if block > longest:
            raise InputError(
                f"blocks of {block:g} s would hold out most of an episode of {episode:g} s, if not all of it",
                f"set data.hold_out_block_s to {longest:g} or less, or make episodes longer",
            )
        return block

    def _held_out_facts(self, source: FrameSource, held: Stretches) -> dict[str, Any]:
        """What a run's account says of the seconds that it held out; the hash is of the stretches."""
        return {
            "share": self.hold_out,
            "block_seconds": self._block_s(),
            "recordings": len(source.units.recordings),
            "hours": source.units.hours,
            "units": len(source.units),
            "stretches_hash": Manifest(seconds={}, stretches=held).hash,
        }

    def _label_of(self, units: Units, whole: Units) -> UnitEpisodes | None:
        if self.episodes is None:
            return None
        order = np.argsort(whole.facts.ids)
        positions = order[np.searchsorted(whole.facts.ids, units.facts.ids, sorter=order)]
        return UnitEpisodes(units, self.episodes, positions)

    def _account_of_data(self, parent: Manifest | None, whole: FrameSource) -> Manifest:
        """The manifest of what this run draws from, for its run folder; `whole` is that before holding out."""
        source = self.train_source
        sources = _parts(source)
        origins = [one.origin() for one in sources]
        if (parent is None or parent.quarantine_hash is None) and self.trainer.global_rank == 0:
            hours = (0 if origin["quarantine_hash"] else one.units.hours for one, origin in zip(sources, origins))
            _say_unverified([path for path, unverified in zip(self.train_paths, hours) if unverified])
        # A source that was never scanned is said to be so: its quarantine_hash is null.
        settings: dict[str, Any] = {
            "data": origins,
            "sources": {
                name: {"hours": facts["hours_available"], "units": facts["units"]}
                for name, facts in Account(self.plan).by_source().items()
            },
        }
        if parent is not None:
            absent = sorted(set(parent.seconds) - set(whole.units.recordings))
            hours = sum(parent.seconds[name] for name in absent) / 3600
            settings["absent"] = {"recordings": len(absent), "hours": hours}
            if absent and self.trainer.global_rank == 0:
                problem = f"{len(absent)} recordings ({hours:.2f} h) of {self.manifest_path} are not in data.train"
                print(f"headcam: {problem}, first {absent[0]}", file=sys.stderr)
        manifest = replace(Manifest.of(source.units, parent), settings=settings)
        return replace(manifest, **origins[0]) if parent is None and len(origins) == 1 else manifest

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer

        def first_step() -> int:
            return trainer.global_step * trainer.accumulate_grad_batches

        sampler = StepSampler(self.batch_size, trainer.global_rank, trainer.world_size, first_step)
        self.train_loader = self._loader(self.train_data, batch_sampler=sampler)
        return self.train_loader

    def val_dataloader(self) -> DataLoader | list:
        if not self.validates:
            return []
        # Every process takes its own slice; the last batch may be short, none is padded.
        mine = list(range(self.trainer.global_rank, len(self.val_data), self.trainer.world_size))
        return self._loader(torch.utils.data.Subset(self.val_data, mine), batch_size=self.batch_size)

    def _source(self, paths: list[str], manifest: Manifest | None, side: str) -> FrameSource:
        """Everything that `paths` hold of `manifest`, as one source; `side` is the setting that asks for it."""
        sources = [self._open(path, manifest) for path in paths]
        if not sources:
            raise InputError("data.train names no source", "give one or more frame stores")
        _refuse_twice(sources, paths, side)
        return sources[0] if len(sources) == 1 else JoinedSource(sources)

    def _open(self, path: str, manifest: Manifest | None) -> FrameSource:
        folder, clips = Path(path).is_dir(), self.num_frames > 1
        if folder and clips:
            return ClipStoreSource(path, self.num_frames, self.step_s, manifest=manifest)
        if folder:
            return StoreSource(path, manifest)
        if Path(path).is_file() and clips:
            return ClipVideoSource(path, self.num_frames, self.step_s, backend=self.backend, manifest=manifest)
        if Path(path).is_file():
            return VideoSource(path, backend=self.backend, manifest=manifest)
        raise InputError(
            f"{path} does not exist", "make a frame store with headcam store, or give the file of headcam index"
        )

    def _say_too_short(self) -> None:
        """Say in one line how much video no clip fits into."""
        sources = _parts(self.train_source)
        recordings = sum(source.too_short[0] for source in sources)
        hours = sum(source.too_short[1] for source in sources)
        if recordings:
            span = self.num_frames * self.step_s
            print(
                f"headcam: left out: {hours:.2f} h in {recordings} recordings lie in stretches shorter than a clip of "
                f"{self.num_frames} frames ({span:.2f} s)",
                file=sys.stderr,
            )

    def _say_enlarged(self) -> None:
        """Say in one line that every frame is smaller than a view: it learns from pixels that nobody recorded."""
        units = self.plan.units
        counts = units.counts_by_recording()
        width, height = units.size_of(np.cumsum(counts) - counts)  # of each recording's first unit
        stages = [self.plan.views, *(views for _, views in self.plan.stages)]
        for law in {law.name: law for views in stages for law in views}.values():  # of the last stage that has it
            if not np.any((width >= law.size[1]) & (height >= law.size[0])):
                largest = np.argmax(width.astype(np.int64) * height)
                print(
                    f"headcam: view {law.name} of {law.size[1]} x {law.size[0]} pixels is larger than every frame of "
                    f"data.train (up to {width[largest]} x {height[largest]}): frames are enlarged (train on smaller "
                    "views, or store larger frames with headcam store --short_side)",
                    file=sys.stderr,
                )

    def _loader(self, data: torch.utils.data.Dataset, **how: Any) -> TimedLoader:
        return TimedLoader(
            data,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=one_thread,
            **how,
        )


def _parts(source: FrameSource) -> list[FrameSource]:
    return source.sources if isinstance(source, JoinedSource) else [source]


def _read_manifest(path: str | None) -> Manifest | None:
    manifest = None if path is None else Manifest.read(path)
    if manifest is not None and manifest.stretches is None:
        raise InputError(f"{path} is a run's account of its data", "give a file that headcam subset wrote")
    return manifest


def _say_unverified(paths: list[str]) -> None:
    """Say in one line that no `headcam scan` has looked at these sources of training."""
    if not paths:
        return
    others = f" and {len(paths) - 1} more of data.train" if len(paths) > 1 else ""
    index = Path(paths[0]).is_file()
    fix = f"headcam scan {paths[0]}" if index else "headcam scan recordings.parquet, then store in a new folder"
    print(f"headcam: not verified: no scan was used for {paths[0]}{others} ({fix})", file=sys.stderr)


def _refuse_nothing(source: FrameSource, manifest: Manifest | None, side: str) -> None:
    if manifest is not None and not len(source.units):
        raise InputError(f"data.{side} holds nothing of manifest {manifest.name!r}", "give the data it was drawn from")


def _refuse_trained_on(train: Units, val: Units) -> None:
    seen = set(train.recordings) & set(val.recordings)
    if seen:
        raise InputError(
            f"{len(seen)} recordings stand in data.train and in data.val, first {min(seen)}",
            "validate on recordings that are not trained on",
        )


def _refuse_twice(sources: list[FrameSource], paths: list[str], side: str) -> None:
    """A recording in two sources would be drawn twice an epoch, and each of its hours would count as two."""
    places = defaultdict(list)
    for path, source in zip(paths, sources):
        for recording in source.units.recordings:
            places[recording].append(path)
    twice = sorted(recording for recording, where in places.items() if len(where) > 1)
    if twice:
        where = " and in ".join(places[twice[0]])
        raise InputError(
            f"{len(twice)} recordings stand in several sources of data.{side}, first {twice[0]} in {where}",
            "give each recording once, so that its hours count once",
        )
