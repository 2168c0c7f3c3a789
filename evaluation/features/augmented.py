"""Training pictures with the augmentation that probes and finetuning share: a random resized crop, and a mirror image.

    (seed, epoch, row) ──▶ box by torchvision's law, flip ──▶ decode no more than needed ──▶ resample ──▶ uint8 batch

The view of a picture is a function of (seed, epoch, row) and of nothing else: neither of the batch that it is in, nor
of the order, nor of the number of threads or processes. So a run that was stopped goes on with the same views, and
processes that share the rows of a batch see what one process would see.

A JPEG of which a crop needs less than half the resolution is decoded at a half, a quarter or an eighth of its size.
All else is decoded whole, and then the result is that of torchvision's `RandomResizedCrop` with the same box, exactly.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headcam.errors import DecodeError
from headcam.evaluation.features.ahead import loaded_ahead
from headcam.evaluation.features.pictures import to_rgb
from headcam.evaluation.labelled.sets import Picture
from headcam.randomness import stream
from headcam.video.transforms import Box, crop_box

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_PURPOSE = "augmentation"


class AugmentedPictures:
    """Random views of a list of pictures.

    Args:
        pictures: n pictures; a row is a place in this list.
        size: of the views, (H, W) in pixels, or one side.
        scale: share of the picture's area that a crop takes, from and to; its shape is 3/4 to 4/3 (see
            `headcam.video.transforms.crop_box`).
        flip: mirror every second view, by chance.
        seed: of all draws.
        interpolation: antialiased where it shrinks.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        size: int | tuple[int, int],
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: bool = True,
        seed: int,
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
    ):
        self.pictures, self.scale, self.flip, self.seed = pictures, scale, flip, seed
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self._resampling = _RESAMPLING[interpolation]

    def batch(self, rows: np.ndarray, epoch: int) -> Tensor:
        """The views that the pictures `rows` (B,) have in an epoch: uint8 (B, 3, H, W).

        Raises:
            DecodeError: a picture cannot be read (those that cannot are to be left out before, see `extract`).
        """
        return next(self.iterate([rows], epoch))

    def iterate(self, batches: Iterable[np.ndarray], epoch: int) -> Iterator[Tensor]:
        """`batch(rows, epoch)` for each of `batches`, decoded in threads while the one before is worked on."""
        for views in loaded_ahead(batches, lambda row: self._view(int(row), epoch)):
            yield torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()

    def draw(self, row: int, epoch: int, width: int, height: int) -> tuple[Box, bool]:
        """The box in pixels of a picture of `width` x `height`, and whether the view is mirrored."""
        rng = stream(self.seed, _PURPOSE, epoch * len(self.pictures) + row)
        box = crop_box(rng, width, height, self.scale)
        return box, self.flip and bool(rng.random() < 0.5)

    def _view(self, row: int, epoch: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        picture = self.pictures[row]
        try:
            with picture.open() as file, Image.open(file) as image:
                box, flip = self.draw(row, epoch, *image.size)
                view = _cut(image, box, self.size, self._resampling)
        except Exception as error:  # on garbage, Pillow's decoders raise anything from OSError to struct.error
            raise DecodeError(f"{picture.name} cannot be read: {error}", "restore the file, and run again") from error
        return view[:, ::-1] if flip else view


def _cut(image: Image.Image, box: Box, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    """`box` of an open picture that is not decoded yet, resampled to `size`: (H, W, 3) uint8."""
    wanted = (math.ceil(size[1] * image.width / box.width), math.ceil(size[0] * image.height / box.height))
    full_width = image.width
    drafted = image.draft(None, wanted)  # does something for JPEGs, where the box still has `size` pixels or more
    shrunk = drafted[1][2] / full_width if drafted else 1.0  # 1, 1/2, 1/4 or 1/8
    left, top, width, height = (value * shrunk for value in box)
    # Whole pixels first, as in 'crop, then resize': what lies outside of the box has no say in what is inside.
    x, y = math.floor(left), math.floor(top)
    part = to_rgb(image).crop((x, y, math.ceil(left + width), math.ceil(top + height)))
    inside = (left - x, top - y, left - x + width, top - y + height)
    return np.asarray(part.resize((size[1], size[0]), resampling, box=inside))
