"""Retention: what is left of the studied pictures after the learner has gone on learning something else.

    last exposure ─▶ 1, 2, 4, ... N updates on other pictures ─▶ tested again after each of these
                     (same optimizer, same batch)                rows with test = "after N updates"

People were tested hours after study, with thousands of other objects between; a model that is tested straight after its
last update was not. Here it learns frames of video or other pictures in between, none of which is of the experiment
(`headcam.recognition_memory.running.other_pictures`), and its accuracy becomes a curve over updates.

Each re-test comes with the scores before study under its own `test`, so that every scoring rule that needs exposure 0
is defined for it as it stands. What is calibrated is thus what study and the learning after it did together: both
pictures of a pair went through the latter alike.

The order of the other pictures follows from the seed of the run alone: both study sets forget through the same batches.
A run that was stopped during retention starts it again from the saved state after the last exposure, to the same bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.progress import Progress
from headcam.randomness import permuted, stream
from headcam.recognition_memory.experiment import RetentionSettings
from headcam.recognition_memory.running.other_pictures import open_other_pictures
from headcam.recognition_memory.stimuli.manifest import MemoryManifest
from headcam.recognition_memory.study import Student
from headcam.video.items import Items


@dataclass(frozen=True)
class Retained:
    """Attributes:
    rows: of the memory table, with their `test`: for each number of updates the last exposure and exposure 0.
    log: one row a re-test: `updates` since study, `pictures` learned (repeats counted), `different` ones among them,
        `passes` through them begun, `other_loss` (mean study loss on them since the re-test before; None for a learner
        without a loss).
    notes: what was repeated or could not be decoded.
    """

    rows: list[dict]
    log: list[dict]
    notes: tuple[str, ...]


def name_of_test(updates: int) -> str:
    """The memory table's `test` of a re-test."""
    return f"after {updates} updates"


def updates_of_tests(settings: RetentionSettings) -> tuple[int, ...]:
    """Numbers of updates after which is tested, rising: as given, else 1, 2, 4, ... and the last."""
    if settings.tests is not None:
        return tuple(sorted(set(settings.tests)))
    return tuple(sorted({2**k for k in range(settings.updates.bit_length())} | {settings.updates}))


def retain(
    student: Student,
    settings: RetentionSettings,
    manifest: MemoryManifest,
    tests: Callable[[], list[dict]],
    before: list[dict],
    *,
    batch_size: int,
    seed: int,
    quiet: bool = False,
) -> Retained:
    """Learn on, and test again.

    Args:
        student: after its last exposure. It is changed: what else is asked of that state has to be asked before.
        manifest: of the experiment, whose pictures must not be learned again.
        tests: makes the rows of the memory table of the student as it is, without a `test`.
        before: such rows of exposure 0.
        batch_size: pictures of an update, all different; `settings.batch_size` goes before it.
        seed: of the run.
    Raises:
        InputError: the data cannot be had, hold fewer pictures than a batch, or hold one of the experiment.
    """
    batch_size = settings.batch_size or batch_size
    asked = updates_of_tests(settings)
    total = asked[-1]
    items = open_other_pictures(settings.data, manifest, student.learner.img_size, num=total * batch_size, seed=seed)
    batches = _Batches(items, batch_size, seed)
    rows, log, losses = [], [], []
    with Progress("retention", total=total, unit="updates", quiet=quiet) as progress:
        for update, pixels in zip(range(1, total + 1), batches):
            losses.append(student.update(pixels, stream(seed, "retention update", update)))
            if update in asked:
                rows += [row | {"test": name_of_test(update)} for row in (*before, *tests())]
                log.append(
                    {
                        "updates": update,
                        "pictures": update * batch_size,
                        "different": len(batches.shown),
                        "passes": batches.passes,
                        "other_loss": None if None in losses else float(np.mean(losses)),
                    }
                )
                losses = []
            progress.advance()
    return Retained(rows, log, _notes(items, batches, total))


def _notes(items: Items, batches: "_Batches", updates: int) -> tuple[str, ...]:
    notes = []
    if batches.passes > 1:
        notes.append(
            f"retention: {items.data} has fewer pictures than {updates} batches of {batches.batch_size}; "
            f"{len(batches.shown)} were learned in {batches.passes} passes"
        )
    if batches.skipped:
        item, reason = next(iter(batches.skipped.items()))
        notes.append(f"retention: {len(batches.skipped)} pictures could not be decoded, such as {item} ({reason})")
    return tuple(notes)


class _Batches:
    """Batches of different pictures without end: passes through all, each in an order of its own.

    A pass ends with its last whole batch; which pictures are left over differs from pass to pass.
    """

    def __init__(self, items: Items, batch_size: int, seed: int):
        if len(items) < batch_size:
            raise InputError(
                f"{items.data} has {len(items)} pictures, fewer than a batch of {batch_size}",
                "give more of them, or a smaller retention.batch_size",
            )
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self.passes = 0
        self.shown: set[int] = set()  # numbers of the items that were in a batch
        self.skipped: dict[str, str] = {}  # item -> reason

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            order = permuted(np.arange(len(self.items)), len(self.items), self.seed, f"retention pass {self.passes}")
            self.passes += 1
            whole, batch = False, {}
            for item in self.items.chosen[order].tolist():
                one = replace(self.items, chosen=np.array([item]), skipped=[])
                found = list(one)
                self.skipped.update(one.skipped)
                if not found:
                    continue
                batch[item] = found[0]
                if len(batch) == self.batch_size:
                    self.shown.update(batch)
                    yield torch.stack(list(batch.values()))
                    whole, batch = True, {}
            if not whole:
                raise InputError(
                    f"only {len(batch)} pictures of {self.items.data} could be decoded, fewer than a batch of "
                    f"{self.batch_size}",
                    "give more of them, or a smaller retention.batch_size",
                )
