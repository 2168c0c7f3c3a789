"""From a compressed picture to a training crop: exact functions of parameters that were drawn elsewhere.

The plan draws a `Box` and a flip for every view of a sample (`crop_box` is the law); here they are carried out.

    bytes ──header──▶ smallest n/8 scale ──decode──▶ pixels ──one bicubic resample of each box──▶ (H, W, 3) uint8
    batch of them (B, 3, H, W) ──normalize, on the batch's device──▶ float32

A JPEG is decoded once for all views, at the smallest n/8 of its size at which every box still covers its wanted size:
the inverse cosine transform then yields the small picture at once, which saves most of the work on a large frame. Boxes
are carried over to the scaled picture without rounding; rounding it to whole pixels there costs 10 dB. What the scaled
decoder refuses (CMYK, PNG, WebP ...) goes through Pillow at full size, with the same result within rounding.

Conventions: pictures are RGB in the orientation in which they are stored (EXIF is not applied); sizes are (H, W);
positions are in pixels with the origin at the upper left corner of the upper left pixel. Nothing here starts threads.
"""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError

from headcam.errors import DecodeError, InputError

# Mean and standard deviation of ImageNet's training pictures, per channel (R, G, B) on a scale of 0 to 1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_TRIES = 10  # draws of a box before the central one is taken, as in torchvision
_EIGHTHS = 8  # libjpeg-turbo scales by n/8
_SLACK = 1e-3  # pixels that a box may leave the picture by, from rounding of fractions


class Box(NamedTuple):
    """A rectangle in pixels of a picture; fractions are allowed."""

    left: float
    top: float
    width: float
    height: float


class Cut(NamedTuple):
    """A view of a picture, or of every frame of a clip: `box` in pixels of it, resampled to `size`, mirrored or not."""

    box: Box
    size: tuple[int, int]  # (H, W)
    flip: bool = False


def crop_box(
    rng: np.random.Generator,
    width: int,
    height: int,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw a random box by the law of torchvision's `RandomResizedCrop` (Szegedy et al. 2015, section 6).

    The area is uniform in `scale` (as a fraction of the picture's), the aspect ratio (width / height) log-uniform in
    `ratio`, both rounded to whole pixels; a box that does not fit is drawn again, and after ten tries the largest
    central box with a ratio inside the range is taken. The position is uniform.

    Args:
        rng: generator that all numbers come from.
        width, height: size of the picture in pixels, at least 1.
    Returns:
        a box of whole pixels inside the picture.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def center_box(width: int, height: int, size: tuple[int, int]) -> Box:
    """The largest central box with the aspect ratio of `size`: 'resize the short side, then crop the centre' at once.

    Args:
        width, height: size of the picture in pixels.
        size: (H, W) that the box will be resized to.
    Returns:
        a box that touches two sides of the picture; fractions where the aspect ratio asks for them.
    """
    pixels = min(width / size[1], height / size[0])  # of the picture, for one of the result
    w, h = size[1] * pixels, size[0] * pixels
    return Box((width - w) / 2, (height - h) / 2, w, h)


def crop_array(image: np.ndarray, box: Box, size: tuple[int, int], flip: bool = False) -> np.ndarray:
    """Cut `box` out of decoded pixels and resample it to `size` (bicubic, antialiased), then mirror it if wanted.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: in pixels of `image`.
        size: (H, W) of the result.
        flip: mirror left to right.
    Returns:
        (H, W, 3) uint8 of its own.
    Raises:
        InputError: the box is empty or leaves the picture.
    """
    height, width = image.shape[:2]
    _check_inside(box, width, height)
    left, top = max(box.left, 0.0), max(box.top, 0.0)
    right, bottom = min(box.left + box.width, width), min(box.top + box.height, height)
    # Only the whole pixels that the box touches: as in 'crop, then resize', what lies outside has no say.
    x, y = math.floor(left), math.floor(top)
    pixels = Image.fromarray(image[y : math.ceil(bottom), x : math.ceil(right)])
    out = np.asarray(
        pixels.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(left - x, top - y, right - x, bottom - y))
    )
    return np.array(out[:, ::-1] if flip else out, order="C")


def decode_crop(
    data: bytes, box: Box, size: tuple[int, int], flip: bool = False, name: str = "a picture"
) -> np.ndarray:
    """One view by `decode_cuts`: (H, W, 3) uint8 RGB of its own."""
    return decode_cuts(data, [Cut(box, size, flip)], name)[0]


def decode_cuts(data: bytes, cuts: Sequence[Cut], name: str = "a picture") -> list[np.ndarray]:
    """Decode no more of a compressed picture than `crop_array` needs for all `cuts`, once, and cut them.

    Args:
        data: a JPEG (fast path), or anything that Pillow reads.
        cuts: at least one, their boxes in pixels of the full-size picture.
        name: what to call the picture in errors.
    Returns:
        for each cut (H, W, 3) uint8 RGB of its own.
    Raises:
        DecodeError: the bytes are truncated, damaged or no picture.
        InputError: a box is empty or leaves the picture.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        image, n = _decode_by_pillow(data, name), _EIGHTHS
    else:
        for cut in cuts:
            _check_inside(cut.box, width, height)
        n = max(_eighths(cut.box, cut.size) for cut in cuts)
        try:
            # "RGB" is refused for CMYK; the least size asked for is the scaled one exactly, so that it is n/8.
            image = simplejpeg.decode_jpeg(
                data, "RGB", min_height=-(-height * n // _EIGHTHS), min_width=-(-width * n // _EIGHTHS)
            )
        except ValueError:
            image, n = _decode_by_pillow(data, name), _EIGHTHS
    return [crop_array(image, Box(*(n / _EIGHTHS * value for value in box)), size, flip) for box, size, flip in cuts]


def normalize(
    batch: torch.Tensor,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> torch.Tensor:
    """Scale uint8 pictures to 0..1, subtract `mean` and divide by `std` per channel, on the batch's own device.

    A batch crosses from the workers and to the GPU as bytes, a quarter of its size in float32; this is the one place
    where it becomes float.

    Args:
        batch: (B, 3, H, W), or clips (B, 3, T, H, W), uint8; left as it is.
    Returns:
        float32 of the same shape.
    """
    # (x / 255 - mean) / std with the constants folded. Converting first and going on in place is the quickest form:
    # arithmetic that mixes bytes and floats leaves torch's vectorised path (twice the time on a CPU).
    shape = (3, *[1] * (batch.ndim - 2))
    offset = torch.tensor(mean, dtype=torch.float32, device=batch.device).mul_(255).view(shape)
    factor = torch.tensor(std, dtype=torch.float32, device=batch.device).mul_(255).reciprocal_().view(shape)
    return batch.to(torch.float32, copy=True).sub_(offset).mul_(factor)


def _eighths(box: Box, size: tuple[int, int]) -> int:
    """The smallest n at which the box, scaled by n/8, still has at least `size` in both directions; 8 if none."""
    wanted = max(size[1] / box.width, size[0] / box.height)
    return min(_EIGHTHS, max(1, math.ceil(_EIGHTHS * wanted)))


def _decode_by_pillow(data: bytes, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB at full size."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    # Pillow's readers raise SyntaxError for damaged headers of PNG and others.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow would name the place in memory, which is another one in every run.
        reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DecodeError(
            f"{name} ({len(data)} bytes) could not be decoded: {reason}", "replace the file, or leave it out"
        ) from error


def _check_inside(box: Box, width: int, height: int) -> None:
    left, top, w, h = box
    shown = f"({left:g}, {top:g}, {w:g}, {h:g})"
    if w <= 0 or h <= 0:
        raise InputError(f"the box {shown} is empty", "give a box with a positive width and height")
    if min(left, top) < -_SLACK or left + w > width + _SLACK or top + h > height + _SLACK:
        raise InputError(
            f"the box {shown} (left, top, width, height) leaves the picture of {width} x {height} pixels",
            "draw it from the size of the very picture that is cropped",
        )
