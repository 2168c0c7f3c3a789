"""The Lightning data module for training on single frames.

It has no state: the loader starts at the sample that follows from the trainer's step, so nothing about the order of
data is saved or restored.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from headcam.errors import HeadcamError, InputError
from headcam.video.datasets import FrameSource, HeldOutFrames, JoinedSource, PlannedFrames, StoreSource, VideoSource
from headcam.video.plan import FramePlan, step_samples
from headcam.video.subset import Manifest


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
    return next((item for item in items if isinstance(item, HeadcamError)), None) or default_collate(items)


class TimedLoader(DataLoader):
    """A loader that counts the seconds its reader waited for it (`wait_seconds`).

    Errors of ours arrive as they were raised, also from workers.
    """

    wait_seconds = 0.0

    def __init__(self, data: Dataset, **how: Any):
        super().__init__(_ErrorsAsItems(data), collate_fn=_collate, **how)

    def __iter__(self) -> Iterator[Any]:
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
            yield batch


class FrameDataModule(pl.LightningDataModule):
    """Frames for image objectives. The model says which size it wants and how many patches its masks have.

    Args:
        train: Folders of frame stores (`headcam store`), or Parquet files of `headcam index` to decode from directly.
        val: The same for validation; null trains without.
        batch_size: Images per step and process.
        scale: Range of the crop's area as a fraction of the frame's.
        flip: Probability of mirroring a frame.
        num_workers: Loader processes (0: in the training process). Changes speed only, never a sample.
        seed: Of the plan; other seeds draw other samples.
        backend: Decoder where frames come straight from recordings: pyav or decord.
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
    ):
        super().__init__()
        if batch_size < 1:
            raise InputError(f"data.batch_size is {batch_size}", "give at least 1")
        if num_workers < 0:
            raise InputError(f"data.num_workers is {num_workers}", "give 0 or more")
        self.train_paths, self.val_paths = list(train), list(val or [])
        self.batch_size, self.scale, self.flip = batch_size, tuple(scale), flip
        self.num_workers, self.seed, self.backend = num_workers, seed, backend
        self.plan: FramePlan | None = None

    def setup(self, stage: str) -> None:
        model = self.trainer.lightning_module
        if self.plan is None:
            self.train_source = self._source(self.train_paths)
            self.plan = FramePlan(self.train_source.units, self.seed, model.num_patches, self.scale, flip=self.flip)
            self.manifest = Manifest.of(self.plan.units)
            self.size = model.img_size
            if self.val_paths:
                self.val_data = HeldOutFrames(self._source(self.val_paths), model.img_size, model.num_patches)
                seen = set(self.plan.units.recordings) & set(self.val_data.source.units.recordings)
                if seen:
                    raise InputError(
                        f"{len(seen)} recordings stand in data.train and in data.val, first {min(seen)}",
                        "validate on recordings that are not trained on",
                    )

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

    def _source(self, paths: list[str]) -> FrameSource:
        sources: list[FrameSource] = []
        for path in paths:
            if Path(path).is_dir():
                sources.append(StoreSource(path))
            elif Path(path).is_file():
                sources.append(VideoSource(path, backend=self.backend))
            else:
                raise InputError(
                    f"{path} does not exist", "make a frame store with headcam store, or give the file of headcam index"
                )
        if not sources:
            raise InputError("data.train names no source", "give one or more frame stores")
        return sources[0] if len(sources) == 1 else JoinedSource(sources)

    def _loader(self, data: torch.utils.data.Dataset, **how: Any) -> TimedLoader:
        return TimedLoader(
            data,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_one_thread,
            **how,
        )


def _one_thread(worker: int) -> None:
    """Workers share the cores by being several; threads inside each would only fight."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
