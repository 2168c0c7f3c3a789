"""Labelled pictures that are encoded again and again: decoded once, kept in memory where they fit.

The cache of `headcam.evaluation.features.extraction` keeps features on the disk by the hash of the weights; in a run
the weights are others each time, so that here the pictures are what is worth keeping.
"""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from headcam.errors import InputError
from headcam.evaluation.features.ahead import loaded_ahead
from headcam.evaluation.features.encoders import Extractor
from headcam.evaluation.features.pictures import load_picture
from headcam.evaluation.labelled.sets import Picture, labels_of

_BATCH = 64  # pictures
_KEPT_BYTES = 512 << 20  # of prepared pictures; more are decoded each time


def first_of_each_class(pictures: tuple[Picture, ...], count: int | None) -> tuple[Picture, ...]:
    """The first `count` pictures of each class in the order of the set, which is that of their content's SHA-256: as
    good as random, and the same everywhere. None: all."""
    seen: dict[int, int] = {}
    kept = []
    for picture in pictures:
        seen[picture.label] = seen.get(picture.label, 0) + 1
        if count is None or seen[picture.label] <= count:
            kept.append(picture)
    return tuple(kept)


class PreparedPictures:
    """Pictures as an extractor wants them.

    Args:
        pictures: all of them are decoded once, so that what cannot be read is known before anything is measured.
        prepare: of an extractor, RGB picture -> uint8 array.
        kept_bytes: how much memory they may take; above, they are decoded anew for every pass.
    Raises:
        InputError: not one picture of some class can be decoded.

    Attributes:
        pictures: those that can be decoded; labels: (n,) int64, their classes.
        unreadable: (name, reason) of the others.
    """

    def __init__(
        self,
        pictures: tuple[Picture, ...],
        prepare: Callable[[Image.Image], np.ndarray],
        kept_bytes: int = _KEPT_BYTES,
    ):
        self._prepare = prepare
        self.unreadable: list[tuple[str, str]] = []
        kept: list[np.ndarray] | None = []
        good = []
        for batch, loaded in self._loaded(pictures):
            for picture, found in zip(batch, loaded):
                if isinstance(found, str):
                    self.unreadable.append((picture.name, found))
                    continue
                good.append(picture)
                if kept is not None and found.nbytes * len(pictures) <= kept_bytes:
                    kept.append(found)
                else:
                    kept = None
        missing = {p.label for p in pictures} - {p.label for p in good}
        if missing:
            name, reason = self.unreadable[0]
            raise InputError(
                f"not one picture of {len(missing)} classes can be decoded; {name}: {reason}",
                "check that the files are pictures",
            )
        self.pictures, self.labels = tuple(good), labels_of(tuple(good))
        self._kept = None if kept is None else np.stack(kept)

    def features(self, extractor: Extractor) -> np.ndarray:
        """(n, D) float16, rounded as the feature cache of `headcam probe` rounds them."""
        rows = [extractor.compute(batch) for batch in self._batches()]
        with np.errstate(over="ignore"):  # the caller looks for what is not finite
            return np.concatenate(rows).astype("<f2")

    def _batches(self) -> Iterator[np.ndarray]:
        """Prepared pictures (B, ...) uint8, all of them in order."""
        if self._kept is not None:
            for start in range(0, len(self._kept), _BATCH):
                yield self._kept[start : start + _BATCH]
            return
        for batch, loaded in self._loaded(self.pictures):
            for picture, found in zip(batch, loaded):
                if isinstance(found, str):
                    raise InputError(
                        f"{picture.name} could be decoded when the run started and cannot any more: {found}",
                        "restore the file and start the same command again, which goes on with the run",
                    )
            yield np.stack(loaded)

    def _loaded(self, pictures: tuple[Picture, ...]) -> Iterator[tuple[tuple[Picture, ...], list[np.ndarray | str]]]:
        """Batches of pictures with what became of each: a prepared one, or why it cannot be decoded."""
        batches = [pictures[start : start + _BATCH] for start in range(0, len(pictures), _BATCH)]
        return zip(batches, loaded_ahead(batches, self._load))

    def _load(self, picture: Picture) -> np.ndarray | str:
        try:
            with picture.open() as file:
                image = load_picture(file)
        except Exception as error:  # on garbage, Pillow's decoders raise anything from OSError to struct.error
            return f"{type(error).__name__}: {error}".replace(str(picture.path), "the file")
        return self._prepare(image)
