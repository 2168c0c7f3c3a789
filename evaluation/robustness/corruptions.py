"""Corruptions at test time: noise, blur, light and compression, each at five strengths.

Ten of the kinds of ImageNet-C (Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common
corruptions and perturbations"): those that need no further files (frost) or libraries. A picture is corrupted after it
was resized and cropped, as theirs were, and before it is normalised.

| kind | what | constants at severity 1 to 5 |
| --- | --- | --- |
| `gaussian_noise` | normal noise is added to each channel of each pixel | sd .08 .12 .18 .26 .38 |
| `shot_noise` | each value is a Poisson count of so many photons at white | 60 25 12 5 3 |
| `impulse_noise` | so large a share of the values is black or white | .03 .06 .09 .17 .27 |
| `gaussian_blur` | Gaussian window | sd 1 2 3 4 6 pixels |
| `defocus_blur` | round window | radius 3 4 6 8 10 pixels |
| `brightness` | is added to V of HSV | .1 .2 .3 .4 .5 |
| `saturate` | S of HSV, times and plus | (.3, 0) (.1, 0) (2, 0) (5, .1) (20, .2) |
| `contrast` | differences to each channel's mean, times | .4 .3 .2 .1 .05 |
| `pixelate` | averaged over area to this share of the sides, and repeated | .6 .5 .4 .3 .25 |
| `jpeg_compression` | quality of JPEG | 25 18 15 10 7 |

The constants are theirs for 224 pixels and are used at any image size; only the lengths of the two blurs are taken as
shares of the short side (a radius of 10 pixels of 224 is one of 3 of 67), because what a blur takes away depends on
the size of things in the picture. Noise is per pixel, blocks of JPEG are 8 pixels: both hit small pictures harder.
Severities 1 and 2 of `saturate` take colour away and 3 to 5 add it.

Ours are not the published pictures, and accuracies are not exactly comparable: those are stored as JPEG of quality 85,
cut off fractions where we round, and make the round window from whole pixels where ours has soft edges. The random
numbers of a picture follow from its content alone, and are the same at all severities.
"""

import hashlib
import io
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image

from headcam.evaluation.features.encoders import Extractor, PixelExtractor
from headcam.evaluation.labelled.sets import Picture
from headcam.randomness import stream

SEVERITIES = (1, 2, 3, 4, 5)
VERSION = 1  # of what the corruptions do; part of the identity of features
_SIDE = 224  # pixels; what the published constants are for

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def corrupt(picture: np.ndarray, kind: str, severity: int) -> np.ndarray:
    """A corrupted copy of a prepared picture.

    Args:
        picture: (H, W, 3) uint8.
        kind: one of `KINDS`.
        severity: 1 to 5.
    Returns:
        (H, W, 3) uint8.
    """
    if kind not in KINDS or severity not in SEVERITIES:
        raise ValueError(f"corruption {kind} of severity {severity}: kinds are {', '.join(KINDS)}, severities 1 to 5")
    digest = hashlib.sha256(np.ascontiguousarray(picture)).digest()
    rng = stream(0, f"corruption {kind}", int.from_bytes(digest[:8], "little"))
    corrupted = KINDS[kind](picture.astype(np.float32) / 255, severity - 1, rng)
    return np.rint(np.clip(corrupted, 0, 1) * 255).astype(np.uint8)


class CorruptedExtractor:
    """An extractor of pictures that sees them corrupted; its features have a cache of their own.

    Pictures are corrupted as an encoder gets them. Raw pixels (`PixelExtractor`) are averages over so large an area
    that corrupting them would be another, far harder task: for those the whole picture is corrupted at 224 x 224.
    """

    def __init__(self, extractor: Extractor, kind: str, severity: int):
        self.extractor, self.kind, self.severity = extractor, kind, severity

    @property
    def dim(self) -> int:
        return self.extractor.dim

    @property
    def batch_size(self) -> int:
        return self.extractor.batch_size

    @property
    def identity(self) -> dict[str, Any]:
        corruption = {"kind": self.kind, "severity": self.severity, "version": VERSION}
        return {**self.extractor.identity, "corruption": corruption}

    def load(self, picture: Picture) -> Image.Image:
        return self.extractor.load(picture)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """As the wrapped extractor does, and corrupted."""
        if isinstance(self.extractor, PixelExtractor):
            whole = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
            return self.extractor.prepare(Image.fromarray(corrupt(whole, self.kind, self.severity)))
        return corrupt(self.extractor.prepare(image), self.kind, self.severity)

    def compute(self, batch: np.ndarray) -> np.ndarray:
        return self.extractor.compute(batch)


# What follows takes a picture (H, W, 3) float32 in [0, 1] and a severity from 0 on, and returns values that need not
# lie in [0, 1].


def _gaussian_noise(picture: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    return picture + (0.08, 0.12, 0.18, 0.26, 0.38)[severity] * rng.standard_normal(picture.shape, dtype=np.float32)


def _shot_noise(picture: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    photons = (60, 25, 12, 5, 3)[severity]
    return rng.poisson(picture * photons) / photons


def _impulse_noise(picture: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    hit = rng.random(picture.shape) < (0.03, 0.06, 0.09, 0.17, 0.27)[severity]
    return np.where(hit, rng.integers(0, 2, picture.shape), picture)


def _gaussian_blur(picture: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    sigma = _of_side((1, 2, 3, 4, 6)[severity], picture)
    size = 2 * int(4 * sigma + 0.5) + 1
    return cv2.GaussianBlur(picture, (size, size), sigma, borderType=cv2.BORDER_REPLICATE)


def _defocus_blur(picture: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    radius = _of_side((3, 4, 6, 8, 10)[severity], picture)
    reach = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
    window = np.clip(radius + 0.5 - np.hypot(reach[:, None], reach), 0, 1)  # pixels on the edge count in part
    return cv2.filter2D(picture, -1, (window / window.sum()).astype(np.float32))


def _brightness(picture: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + (0.1, 0.2, 0.3, 0.4, 0.5)[severity], 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _saturate(picture: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    factor, offset = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity]
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + offset, 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _contrast(picture: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    mean = picture.mean(axis=(0, 1), keepdims=True)
    return (picture - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity] + mean


def _pixelate(picture: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity]
    height, width = picture.shape[:2]
    image = _as_image(picture).resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX)) / 255


def _jpeg_compression(picture: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    with io.BytesIO() as file:
        _as_image(picture).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity])
        with Image.open(file) as image:
            return np.asarray(image) / 255


def _of_side(pixels: float, picture: np.ndarray) -> float:
    """A length in pixels of a 224-pixel picture as one of this picture."""
    return pixels * min(picture.shape[:2]) / _SIDE


def _as_image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(picture * 255).astype(np.uint8))


KINDS: dict[str, Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "defocus_blur": _defocus_blur,
    "brightness": _brightness,
    "saturate": _saturate,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
