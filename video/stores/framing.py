"""Framing: which part of a recording's picture a store keeps, which way up, and how large.

A camera worn upside down, a frame with a time code burnt in, a fisheye with black corners: what is wrong with every
picture of a recording is put right once, when it is stored. Pictures come from the reader upright by the file's own
flag; on top of that they are turned, then cropped, and what is left has the wanted short side. Since the reader scales
inside the decoder's library, the scale is chosen so that the crop comes out right, and the crop is cut from that.
"""

import math
from dataclasses import dataclass

import numpy as np

from headcam.errors import InputError

Crop = tuple[float, float, float, float]


@dataclass(frozen=True)
class Framing:
    """Settings of a store's pictures.

    Attributes:
        short_side: pixels of the shorter side of what is stored; never enlarged.
        rotate: degrees clockwise (0, 90, 180, 270) on top of the file's own flag.
        crop: (left, top, right, bottom) as fractions of the picture as turned; None for all of it.
        even: cut the last column and row off where sides are odd, as 4:2:0 video needs it.
    """

    short_side: int
    rotate: int = 0
    crop: Crop | None = None
    even: bool = False

    def check(self) -> None:
        """Raise `InputError` for a setting out of range."""
        if self.short_side < 1:
            raise InputError(f"short_side is {self.short_side}", "use a number of pixels, such as 256")
        if self.rotate not in (0, 90, 180, 270):
            raise InputError(f"rotate is {self.rotate}", "use 0, 90, 180 or 270 degrees clockwise")
        if self.crop is not None:
            valid = len(self.crop) == 4 and all(0 <= edge <= 1 for edge in self.crop)
            if not (valid and self.crop[0] < self.crop[2] and self.crop[1] < self.crop[3]):
                raise InputError(
                    f"crop is {list(self.crop)}",
                    "use [left, top, right, bottom] as fractions of the picture, such as [0, 0, 1, 0.9]",
                )

    def of(self, width: int, height: int) -> "Cut":
        """The framing of recordings whose pictures are `width` x `height` pixels, upright by the file's own flag."""
        if self.crop is None:
            return Cut(self, self.short_side, None)
        if self.rotate % 180:
            width, height = height, width
        left, top, right, bottom = self.crop
        kept_width, kept_height = (right - left) * width, (bottom - top) * height
        scale = min(1.0, self.short_side / min(kept_width, kept_height))
        size = max(1, round(scale * kept_width)), max(1, round(scale * kept_height))
        # Rounded up, so that the cut never asks for a pixel more than the scaled picture has.
        return Cut(self, math.ceil(scale * min(width, height) - 1e-6), size)


@dataclass(frozen=True)
class Cut:
    """A framing at work on recordings of one size; made by `Framing.of`.

    Attributes:
        short_side: what the reader is to scale whole pictures to.
    """

    framing: Framing
    short_side: int
    _size: tuple[int, int] | None  # (width, height) of the crop

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The picture to store, from the reader's: both (H, W, 3) uint8, the result contiguous."""
        image = np.rot90(image, -self.framing.rotate // 90)
        if self._size is not None:
            height, width = image.shape[:2]
            columns, rows = min(self._size[0], width), min(self._size[1], height)
            left = min(round(self.framing.crop[0] * width), width - columns)
            top = min(round(self.framing.crop[1] * height), height - rows)
            image = image[top : top + rows, left : left + columns]
        if self.framing.even:
            image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        return np.ascontiguousarray(image)
