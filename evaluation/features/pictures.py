"""Pictures as evaluations see them: decoded to RGB, scaled, cropped in the middle."""

import os
from typing import BinaryIO

import numpy as np
from PIL import Image

from headcam.evaluation.labelled.sets import Picture


def load_picture(source: str | os.PathLike | BinaryIO) -> Image.Image:
    """Decode a picture, a file or an open one, to 8-bit RGB as `to_rgb` does.

    Raises whatever Pillow raises on a broken file.
    """
    with Image.open(source) as image:
        return to_rgb(image)


def read_picture(picture: Picture) -> Image.Image:
    """A labelled picture, wherever its bytes lie, as `load_picture` gives it."""
    with picture.open() as file:
        return load_picture(file)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an open picture; grey is repeated, transparency dropped, 16-bit grey scaled to 8 bits."""
    if image.mode.startswith("I;16"):  # Pillow would clip it at 255
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")


def resize_and_crop(image: Image.Image, img_size: tuple[int, int], resize_ratio: float) -> np.ndarray:
    """Scale a picture so that it just covers round(`resize_ratio` * `img_size`), keeping its shape; crop the middle.

    For a square `img_size` the short side becomes round(resize_ratio * img_size). Bicubic; Pillow widens the filter
    where it shrinks (antialiasing). Small pictures are scaled up.

    Args:
        image: RGB picture.
        img_size: (H, W) in pixels.
    Returns:
        (H, W, 3) uint8.
    """
    height, width = img_size
    scale = max(round(height * resize_ratio) / image.height, round(width * resize_ratio) / image.width)
    resized = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return np.asarray(resized.crop((left, top, left + width, top + height)))
