"""Labelled pictures as finetuning sees them: other views of them in every epoch, always the same view in a test.

    train rows ──keyed crop and flip──▶ (heavy: RandAugment) ──▶ uint8 (B, 3, H, W)
    any items  ──resize, centre crop──▶ uint8 (V, 3, H, W), V = 1 view a picture

Every random choice is keyed by seed, epoch and row (a mix of pictures: by the step), never by the batch's make-up, so
that several processes, or a run that was stopped, see what one process sees. Videos have the same two methods in
`headcam.evaluation.finetuning.clips`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from headcam.evaluation.features.ahead import loaded_ahead
from headcam.evaluation.features.augmented import AugmentedPictures
from headcam.evaluation.features.pictures import load_picture, resize_and_crop
from headcam.evaluation.finetuning.augmentation import rand_augment
from headcam.evaluation.labelled.sets import Picture
from headcam.evaluation.protocols import Finetune
from headcam.randomness import permuted, stream

_KEPT_BYTES = 1 << 29  # of prepared test views that stay in memory instead of being decoded for every scoring


class Examples(Protocol):
    """What training and scoring need to know of pictures or videos."""

    def views(self, batches: Sequence[np.ndarray], epoch: int) -> Iterator[Tensor]:
        """Random views of training rows, a batch at a time: uint8 (B, 3, H, W) or (B, 3, T, H, W)."""

    def prepare(self, item: Picture) -> np.ndarray:
        """The V views that an item is scored on: uint8 (V, 3, H, W) or (V, 3, T, H, W)."""


class PictureExamples:
    """Pictures, see `Examples`.

    Args:
        train: the pictures that rows number, all of the set's.
        size: (H, W) in pixels.
        mean: of pixels in [0, 1] per channel; what RandAugment leaves empty gets this colour.
    """

    def __init__(
        self,
        train: Sequence[Picture],
        protocol: Finetune,
        size: tuple[int, int],
        mean: tuple[float, float, float],
        seed: int,
    ):
        self.protocol, self.size, self.seed, self._count = protocol, size, seed, len(train)
        self._fill = tuple(round(255 * value) for value in mean)
        self._augmented = AugmentedPictures(
            train, size, scale=protocol.crop_scale, seed=seed, interpolation=protocol.interpolation
        )

    def views(self, batches: Sequence[np.ndarray], epoch: int) -> Iterator[Tensor]:
        crops = self._augmented.iterate(batches, epoch)
        if self.protocol.augmentation == "minimal":
            yield from crops
            return

        def changed(item: tuple[Tensor, int]) -> Tensor:
            pixels, row = item
            rng = stream(self.seed, "finetune, RandAugment", epoch * self._count + int(row))
            out = rand_augment(pixels.permute(1, 2, 0).contiguous().numpy(), rng, self._fill)
            return torch.from_numpy(np.array(out)).permute(2, 0, 1)

        paired = (list(zip(views, rows)) for views, rows in zip(crops, batches))
        for views in loaded_ahead(paired, changed):
            yield torch.stack(views)

    def prepare(self, item: Picture) -> np.ndarray:
        with item.open() as file:
            image = load_picture(file)
        view = resize_and_crop(image, self.size, resize_ratio(self.protocol, self.size))
        return np.ascontiguousarray(view.transpose(2, 0, 1))[None]


def resize_ratio(protocol: Finetune, size: tuple[int, int]) -> float:
    """What `resize_and_crop` calls the ratio at which the short side of a test picture is `resize` pixels longer."""
    return 1 + protocol.resize / min(size)


class ScoredItems:
    """Items to be scored, perhaps many times; iterating gives the views of this process's part of them, in batches.

    Args:
        items: n pictures or videos.
        prepare: see `Examples`.
        rank, processes: which of so many parts.
    """

    def __init__(
        self,
        items: Sequence[Picture],
        prepare: Callable[[Picture], np.ndarray],
        batch_size: int,
        rank: int = 0,
        processes: int = 1,
    ):
        self.total, self._items, self._prepare = len(items), items, prepare
        rows = np.arange(len(items))[rank::processes]
        self._batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        self._kept: list[list[np.ndarray | str]] | None = None

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[np.ndarray | str]]]:
        """(b,) item numbers, and for each its views uint8 (V, ...), or the reason why it cannot be read."""
        if self._kept is not None:
            yield from zip(self._batches, self._kept)
            return
        kept, total = [], 0
        for views, rows in zip(loaded_ahead(self._batches, self._load), self._batches):
            total += sum(view.nbytes for view in views if isinstance(view, np.ndarray))
            if total <= _KEPT_BYTES:
                kept.append(views)
            else:
                kept.clear()
            yield rows, views
        if total <= _KEPT_BYTES:
            self._kept = kept

    def _load(self, row: int) -> np.ndarray | str:
        item = self._items[row]
        try:
            return self._prepare(item)
        except Exception as error:  # on garbage, decoders raise anything from OSError to struct.error
            return f"{type(error).__name__}: {error}".replace(str(item.path), "the file")


def epoch_batches(rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """`rows` in the keyed order of an epoch, in the fewest batches of at most `batch_size`, as equal as can be.

    All are used in every epoch, and no last batch is too small for batch normalisation.
    """
    order = rows[permuted(np.arange(len(rows)), len(rows), seed, f"finetune, epoch {epoch}")]
    return np.array_split(order, math.ceil(len(rows) / batch_size))


def part_of(batch: np.ndarray, rank: int, processes: int) -> np.ndarray:
    """The rows of a batch that process `rank` works on: whole pairs (i, B - 1 - i), which mixing keeps together."""
    place = np.arange(len(batch))
    return batch[np.minimum(place, place[::-1]) % processes == rank]
