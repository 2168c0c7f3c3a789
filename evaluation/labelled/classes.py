"""The 1,000 classes of ImageNet-1k in their standard order: number, WordNet id (wnid) and names.

`imagenet_classes.csv` beside this file is a list of facts about ILSVRC 2012 (Russakovsky et al. 2015, "ImageNet Large
Scale Visual Recognition Challenge"); there are no pictures in it. The standard order is the wnids sorted as text, which
is the order of every image-folder loader, of torchvision's and timm's heads and of the numbers in WebDataset shards.
It is not the order of `ILSVRC2012_ID` in the development kit, see `headcam.evaluation.labelled.imagenet`.

Names are for people: "crane" and "maillot" are each the first name of two classes, and a "Cardigan" is a dog, a
"cardigan" a garment. Key on the wnid.
"""

import csv
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple


class ImageNetClass(NamedTuple):
    """A class of ImageNet-1k: its number in the standard order, its WordNet id, its names from the kit."""

    index: int
    wnid: str
    names: tuple[str, ...]


@lru_cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """All 1,000, class `index` at place `index`."""
    with files(__package__).joinpath("imagenet_classes.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            ImageNetClass(int(row["index"]), row["wnid"], tuple(row["names"].split(", ")))
            for row in csv.DictReader(file)
        )


@lru_cache
def _title_of() -> dict[str, str]:
    return {known.wnid: known.names[0] for known in imagenet_classes()}


def titles(classes: Sequence[str]) -> tuple[str, ...]:
    """First names ("tench") of classes that are given by their wnids; () unless all of them are ImageNet's."""
    title_of = _title_of()
    return tuple(title_of[name] for name in classes) if all(name in title_of for name in classes) else ()
