"""The heavy augmentation of He et al. (2022), table 9: RandAugment, random erasing, mixup and cutmix, all keyed.

    crop and flip ─▶ `rand_augment` ─▶ normalised ─▶ `erase` ─▶ `mix` with the mirror-placed picture of the batch
    (uint8, see headcam.evaluation.features.augmented)            └─▶ targets (B, K)

The laws and their constants are timm's (`rand-m9-mstd0.5-inc1`, `RandomErasing(mode="pixel")`, `Mixup`), with which the
published numbers were made. timm draws from Python's and NumPy's global generators; here all choices come from a
generator that is passed in, so that they depend on nothing but seed, epoch and picture (or step, for a batch).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP
from torch import Tensor

OPERATIONS = (  # Cubuk et al. (2020), as timm's increasing set: a higher magnitude always changes more
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
_COUNT, _PROBABILITY = 2, 0.5  # operations that are drawn for a picture; of each being carried out
_MAGNITUDE, _MAGNITUDE_STD, _HIGHEST = 9.0, 0.5, 10.0
_ERASE_PROBABILITY = 0.25
_ERASE_AREA, _ERASE_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
_TRIES = 10  # draws of a rectangle before the picture is left alone
_MIXUP_ALPHA, _CUTMIX_ALPHA, _CUTMIX_SHARE = 0.8, 1.0, 0.5


def rand_augment(pixels: np.ndarray, rng: np.random.Generator, fill: tuple[int, ...]) -> np.ndarray:
    """Two random operations, each carried out with probability 0.5 at magnitude 9 +- 0.5 of 10.

    Args:
        pixels: (H, W, 3) uint8.
        fill: RGB of what a turn or shift leaves empty.
    Returns:
        (H, W, 3) uint8.
    """
    image = Image.fromarray(pixels)
    for _ in range(_COUNT):
        name = OPERATIONS[rng.integers(len(OPERATIONS))]
        carried_out, sign = rng.random() < _PROBABILITY, 1 if rng.random() < 0.5 else -1
        level = min(max(rng.normal(_MAGNITUDE, _MAGNITUDE_STD), 0.0), _HIGHEST) / _HIGHEST
        if carried_out:
            how = {"fillcolor": fill, "resample": Image.Resampling.BICUBIC}
            image = NAME_TO_OP[name](image, *arguments(name, level, sign), **how)
    return np.asarray(image)


def arguments(name: str, level: float, sign: int) -> tuple[float, ...]:
    """Of timm's function of that name at `level` in [0, 1]; `sign` is 1 or -1, where there are two directions."""
    if name.startswith(("Shear", "Translate", "Rotate")):
        highest = {"S": 0.3, "T": 0.45, "R": 30.0}[name[0]]  # slope, share of the side, degrees
        return (sign * level * highest,)
    if name == "PosterizeIncreasing":
        return (max(1, 4 - int(level * 4)),)  # bits that are kept; with none, which Pillow refuses, all is black
    if name == "SolarizeIncreasing":
        return (256 - min(256, int(level * 256)),)  # values from here on are inverted
    if name == "SolarizeAdd":
        return (min(128, int(level * 110)),)
    if name.endswith("Increasing"):
        return (max(0.1, 1 + sign * level * 0.9),)  # factor of colour, contrast, brightness, sharpness
    return ()


def erase(image: Tensor, rng: np.random.Generator) -> None:
    """With probability 0.25, put normal noise into a random rectangle, in place (Zhong et al. 2020).

    Args:
        image: (3, H, W) float32, normalised.
    """
    if rng.random() >= _ERASE_PROBABILITY:
        return
    channels, height, width = image.shape
    for _ in range(_TRIES):
        area = rng.uniform(*_ERASE_AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(_ERASE_ASPECT[0]), math.log(_ERASE_ASPECT[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            noise = rng.standard_normal((channels, h, w), dtype=np.float32)
            image[:, top : top + h, left : left + w] = torch.from_numpy(noise).to(image.device)
            return


def soft_targets(labels: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """(B,) int64 to (B, K) float32: 1 - s + s / K at the class, s / K elsewhere (Szegedy et al. 2016)."""
    return F.one_hot(labels, num_classes).float() * (1 - label_smoothing) + label_smoothing / num_classes


def mix(images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019), one of them with one share for the whole batch.

    Row i is mixed with row B - 1 - i. A part of a batch that holds both rows of each of its pairs, in order, is mixed
    as the whole batch is, given the same generator.

    Args:
        images: (B, 3, H, W) float; targets: (B, K) float.
    Returns:
        both, new.
    """
    if rng.random() < _CUTMIX_SHARE:
        height, width = images.shape[-2:]
        share = math.sqrt(1 - rng.beta(_CUTMIX_ALPHA, _CUTMIX_ALPHA))
        h, w = int(height * share), int(width * share)
        y, x = int(rng.integers(height)), int(rng.integers(width))  # the rectangle's centre; it may leave the picture
        rows = slice(max(0, y - h // 2), min(height, y + (h + 1) // 2))
        columns = slice(max(0, x - w // 2), min(width, x + (w + 1) // 2))
        mixed = images.clone()
        mixed[..., rows, columns] = images.flip(0)[..., rows, columns]
        kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        kept = rng.beta(_MIXUP_ALPHA, _MIXUP_ALPHA)
        mixed = torch.lerp(images.flip(0), images, kept)
    return mixed, torch.lerp(targets.flip(0), targets, kept)
