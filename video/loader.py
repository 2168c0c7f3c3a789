"""Loaders: batches of the sample numbers that follow from a step, errors that arrive whole, and the time waited.

A loader has no state of its own; `StepSampler` asks for the step when it starts, so that a resumed run goes on with the
sample that a run which never stopped would see next.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from headcam.errors import HeadcamError
from headcam.video.sampling.accounting import Undecoded
from headcam.video.sampling.plan import step_samples


class StepSampler:
    """Endless batches of sample numbers for one process, from the (micro-)step that `first_step()` gives when asked."""

    def __init__(self, batch_size: int, rank: int, world_size: int, first_step: Callable[[], int]):
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


def one_thread(worker: int) -> None:
    """Workers share the cores by being several; threads inside each would only fight.

    A worker leaves its parent's process group: a signal to the group (torchrun and schedulers send such) asks the run
    to stop in its own time, and it needs its loader until then. A worker ends by itself when its parent is gone.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    if cv2.getNumThreads() != 1:  # a process that was spawned, not forked; see TimedLoader
        cv2.setNumThreads(1)
    torch.set_num_threads(1)
