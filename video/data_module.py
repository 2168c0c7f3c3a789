"""The Lightning data module for training on single frames.

It has no state: the loader starts at the sample that follows from the trainer's step, so nothing about the order of
data is saved or restored.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from headcam.errors import HeadcamError, InputError
from headcam.video.datasets import FrameSource, HeldOutFrames, JoinedSource, PlannedFrames, StoreSource, VideoSource
from headcam.video.sampling.accounting import Account, Undecoded
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.plan import FramePlan, step_samples


class StepSampler:
    """Endless batches of sample numbers for one process, from the (micro-)step that `first_step()` gives when asked."""

    def __init__(self, batch_size: int, rank: int, world_size: int, first_step: Any):
        self.batch_size, self.rank, self.world_size, self.first_step = batch_size, rank, world_size, first_step

    def __iter__(self) -> Iterator[list[int]]:
        step = self.first_step()
        while True:
            yield step_samples(step, self.batch_size, self.rank, self.world_size).tolist()
            step += 1


class _ErrorsAsItems(Dataset):
    """Items of `data`; an error of ours is handed over as the item.

    Torch would turn one that is raised in a worker into text with a traceback, and the user could not read the fix.
    """

    def __init__(self, data: Dataset):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        try:
            return self.data[i]
        except HeadcamError as error:
            return error


def _collate(items: list[Any]) -> Any:
    error = next((item for item in items if isinstance(item, HeadcamError)), None)
    if error is not None:
        return error
    undecoded = [found for item in items if isinstance(item, dict) for found in item.pop("undecoded", ())]
    batch = default_collate(items)
    return batch | {"undecoded": undecoded} if undecoded else batch


class TimedLoader(DataLoader):
    """A loader that counts the seconds its reader waited for it (`wait_seconds`).

    Errors of ours arrive as they were raised, also from workers. What items of `PlannedFrames` say of pictures that
    could not be decoded is taken out of the batches and collected in `undecoded`, ahead of training by the batches
    that are already loaded.
    """

    wait_seconds = 0.0

    def __init__(self, data: Dataset, **how: Any):
        super().__init__(_ErrorsAsItems(data), collate_fn=_collate, **how)
        self.undecoded: list[Undecoded] = []

    def __iter__(self) -> Iterator[Any]:
        if self.num_workers:
            # Here, and not in the workers: in a forked process OpenCV would wait for ever for the threads of its
            # parent's pool to end.
            cv2.setNumThreads(1)
        iterator = super().__iter__()
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.wait_seconds += time.perf_counter() - start
            if isinstance(batch, HeadcamError):
                raise batch
            if isinstance(batch, dict):
                self.undecoded += batch.pop("undecoded", ())
            yield batch


class FrameDataModule(pl.LightningDataModule):
    """Frames for image objectives. The model says which size it wants and how many patches its masks have.

    Args:
        train: Folders of frame stores (`headcam store`), or Parquet files of `headcam index` to decode from directly
            (verified seconds only, where `headcam scan` was run).
        val: The same for validation; null trains without.
        batch_size: Images per step and process.
        scale: Range of the crop's area as a fraction of the frame's.
        flip: Probability of mirroring a frame.
        num_workers: Loader processes (0: in the training process). Changes speed only, never a sample.
        seed: Of the plan; other seeds draw other samples.
        backend: Decoder where frames come straight from recordings: pyav, decord, torchcodec or opencv.
        manifest: File of `headcam subset`; training draws from its seconds alone.
        val_manifest: The same for validation, such as the held-out part of the same index.
        order: shuffled, or lived: by the wearer's age (or the date), in windows.
        window_hours: Hours of video in a window of the order lived; samples are shuffled within a window.
        max_replaced: Share of samples whose picture may be replaced since it cannot be decoded; beyond it the run
            stops. Looked at in every step; a share of at least 1,000 samples, so that one bad picture stops no run.
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
        manifest: str | None = None,
        val_manifest: str | None = None,
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
        self.train_paths, self.val_paths = list(train), list(val or [])
        self.batch_size, self.scale, self.flip = batch_size, tuple(scale), flip
        self.num_workers, self.seed, self.backend = num_workers, seed, backend
        self.manifest_path, self.val_manifest_path = manifest, val_manifest
        self.order, self.window_hours, self.max_replaced = order, window_hours, max_replaced
        self.plan: FramePlan | None = None

    def setup(self, stage: str) -> None:
        model = self.trainer.lightning_module
        if self.plan is None:
            parent = _read_manifest(self.manifest_path)
            self.train_source = self._source(self.train_paths, parent, "train")
            units = self.train_source.units
            self.plan = FramePlan(
                units,
                self.seed,
                model.views[0].noise,
                self.scale,
                flip=self.flip,
                order=self.order,
                window_hours=self.window_hours,
            )
            self.manifest = self._account_of_data(parent)
            self.size = model.img_size
            if self.val_paths:
                source = self._source(self.val_paths, _read_manifest(self.val_manifest_path), "val")
                self.val_data = HeldOutFrames(source, model.img_size, model.views[0].noise)
                seen = set(units.recordings) & set(source.units.recordings)
                if seen:
                    raise InputError(
                        f"{len(seen)} recordings stand in data.train and in data.val, first {min(seen)}",
                        "validate on recordings that are not trained on",
                    )

    def _account_of_data(self, parent: Manifest | None) -> Manifest:
        """The manifest of what this run draws from, for its run folder."""
        source = self.train_source
        sources = source.sources if isinstance(source, JoinedSource) else [source]
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
            absent = sorted(set(parent.seconds) - set(source.units.recordings))
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
        self.train_loader = self._loader(PlannedFrames(self.plan, self.train_source, self.size), batch_sampler=sampler)
        return self.train_loader

    def val_dataloader(self) -> DataLoader | list:
        if not self.val_paths:
            return []
        # Every process takes its own slice; the last batch may be short, none is padded.
        mine = list(range(self.trainer.global_rank, len(self.val_data), self.trainer.world_size))
        return self._loader(torch.utils.data.Subset(self.val_data, mine), batch_size=self.batch_size)

    def _source(self, paths: list[str], manifest: Manifest | None, side: str) -> FrameSource:
        sources: list[FrameSource] = []
        for path in paths:
            if Path(path).is_dir():
                sources.append(StoreSource(path, manifest))
            elif Path(path).is_file():
                sources.append(VideoSource(path, backend=self.backend, manifest=manifest))
            else:
                raise InputError(
                    f"{path} does not exist", "make a frame store with headcam store, or give the file of headcam index"
                )
        if not sources:
            raise InputError("data.train names no source", "give one or more frame stores")
        _refuse_twice(sources, paths, side)
        source = sources[0] if len(sources) == 1 else JoinedSource(sources)
        if manifest is not None and not len(source.units):
            raise InputError(
                f"data.{side} holds nothing of manifest {manifest.name!r}", "give the data it was drawn from"
            )
        return source

    def _loader(self, data: torch.utils.data.Dataset, **how: Any) -> TimedLoader:
        return TimedLoader(
            data,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_one_thread,
            **how,
        )


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


def _one_thread(worker: int) -> None:
    """Workers share the cores by being several; threads inside each would only fight."""
    if cv2.getNumThreads() != 1:  # a process that was spawned, not forked; see TimedLoader
        cv2.setNumThreads(1)
    torch.set_num_threads(1)
