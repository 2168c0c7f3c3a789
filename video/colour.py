"""Colours of a view: a law's parameters are drawn (`draw_colour`), then carried out exactly (`apply_colour`).

The changes are those of SimCLR (Chen et al. 2020, appendix A) and DINO (Caron et al. 2021): jitter of brightness,
contrast, saturation and hue in random order, grey, Gaussian blur, solarisation, in this order. Drawing and carrying out
are apart so that the plan can name every number of a sample, and so that all frames of a clip change alike.

Each operation is torchvision's of the same name on bytes, rounded once (torchvision on Pillow pictures cuts fractions
off, and keeps hue and saturation in bytes): a grey level apart at most from torchvision on floats.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from headcam.video.sampling.views import ColourLaw

_GREY = np.array([[0.299, 0.587, 0.114]], np.float32)  # of red, green, blue (ITU-R BT.601)
_SOLARIZE_FROM = 128  # the first value that is inverted
_BLUR_REACH = 4.0  # standard deviations to either side; what lies beyond is below 1e-4 of the weight


class Colour(NamedTuple):
    """What one view's colours go through; the defaults change nothing.

    Attributes:
        order: of `brightness`, `contrast`, `saturation` and `hue`, those that are changed; empty without jitter.
        brightness, contrast, saturation: factors; 1 changes nothing.
        hue: shift in turns of the colour circle, -0.5 to 0.5.
        grayscale: all three channels become the luma.
        blur: standard deviation of a Gaussian in pixels of the view; 0: none.
        solarize: values of 128 and above are inverted.
    """

    order: tuple[str, ...] = ()
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grayscale: bool = False
    blur: float = 0.0
    solarize: bool = False


_JITTER = ("brightness", "contrast", "saturation", "hue")


def draw_colour(rng: np.random.Generator, law: ColourLaw) -> Colour:
    """Draw what `law` leaves open. Always as many numbers, so that one setting does not move the draws of another."""
    chances = rng.random(4)
    order = tuple(_JITTER[k] for k in rng.permutation(4) if getattr(law, _JITTER[k]))
    brightness, contrast, saturation = (
        rng.uniform(max(0.0, 1 - strength), 1 + strength) for strength in (law.brightness, law.contrast, law.saturation)
    )
    hue = rng.uniform(-law.hue, law.hue)
    sigma = rng.uniform(*law.blur_sigma)
    jitter = {
        "order": order, "brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue
    }  # fmt: skip
    return Colour(
        **(jitter if chances[0] < law.jitter else {}),
        grayscale=bool(chances[1] < law.grayscale),
        blur=sigma if chances[2] < law.blur else 0.0,
        solarize=bool(chances[3] < law.solarize),
    )


def apply_colour(image: np.ndarray, colour: Colour) -> np.ndarray:
    """Carry `colour` out.

    Args:
        image: (H, W, 3) uint8 RGB, or (T, H, W, 3) of which every frame is changed by itself; left as it is.
    Returns:
        uint8 of the same shape.
    """
    if image.ndim == 4:
        return np.stack([apply_colour(frame, colour) for frame in image])
    for name in colour.order:
        image = _CHANGES[name](image, getattr(colour, name))
    if colour.grayscale:
        image = np.repeat(_luma(image)[..., None], 3, axis=2)
    if colour.blur:
        image = _blurred(image, colour.blur)
    if colour.solarize:
        image = cv2.LUT(image, _SOLARIZED)
    return image


def _brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.LUT(image, _table(_VALUES * factor))


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from the picture's mean luma, or towards it."""
    mean = float(_GREY[0] @ cv2.mean(image)[:3])
    return cv2.LUT(image, _table(mean + factor * (_VALUES - mean)))


def _saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from each pixel's luma, or towards it: one 3 x 3 matrix, rounded at its end."""
    return cv2.transform(image, factor * np.eye(3, dtype=np.float32) + (1 - factor) * np.repeat(_GREY, 3, axis=0))


def _hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Turn the colour circle by `turns`, in floating point: bytes of hue and saturation would cost several levels."""
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)  # degrees, 0 to 1, 0 to 255
    hue = hsv[..., 0]
    hue += 360 * (turns % 1)
    hue[hue >= 360] -= 360
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).astype(np.uint8)


_CHANGES = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}


def _luma(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    side = 2 * math.ceil(_BLUR_REACH * sigma) + 1
    return cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)


def _table(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


_VALUES = np.arange(256, dtype=np.float64)
_SOLARIZED = _table(np.where(_VALUES < _SOLARIZE_FROM, _VALUES, 255 - _VALUES))
