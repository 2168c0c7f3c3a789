"""Harder than saturation: degraded test pictures, foils made from the pictures themselves, changes at study.

Where a learner decides every plain pair rightly, a harder test tells learners apart again. `Variant` changes what is
tested, and its name stands in the column `test` of the memory table; `Augmentation` changes what is studied.

| in a config | column `test` | what is tested |
| --- | --- | --- |
| `noise:25` | `noise 25` | both pictures with Gaussian noise of 25 grey levels (standard deviation) |
| `blur:2` | `blur 2` | both blurred by a Gaussian of 2 pixels (standard deviation) |
| `occluded:0.25` | `occluded 0.25` | a grey square over a quarter of the area of both |
| `coarse:16` | `coarse 16` | both at 16 pixels on the short side, and back |
| `foil:mirror` | `foil mirror` | the studied picture against its mirror image |
| `foil:shift:4` | `foil shift 4` | against itself moved right by 4 pixels, its left edge repeated |
| `foil:hue:0.1` | `foil hue 0.1` | against itself with colours turned by a tenth of the circle |
| `foil:crop:0.9` | `foil crop 0.9` | against its middle, 0.9 of either side, at full size |

A picture is degraded in the same way wherever it is tested, studied or foil, in either study set and in every run: what
is random follows from its own content. A foil that is made from a studied picture exists in the study set of that
picture alone, so rules that look for the foil's score in the other set (`unstudied_reference`, `role_swapped`) say
nothing about it; and where the change leaves a picture as it is (a symmetrical one mirrored, a grey one with another
hue) the two are equal, a tie. Study of other pictures may favour the original or its change by itself, a picture with
a white margin after many such pictures, say. So a run asks the same of the unstudied picture of every pair and its
change (`foil mirror, not studied`): what lies above that is memory.

Shapes: N pictures, uint8 (N, 3, H, W) RGB on the CPU.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.video.colour import Colour, apply_colour
from headcam.video.transforms import Box, crop_array, crop_box

_GREY = 128  # of the square that occludes

Degrade = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
Foil = Callable[[np.ndarray, float], np.ndarray]


@dataclass(frozen=True)
class Variant:
    """Another test of the same pairs, see `parse_variant`.

    Attributes:
        kind: such as `noise` or `foil shift`.
        amount: of the change, in the unit of its kind; None of `foil mirror`.
    """

    kind: str
    amount: float | None = None

    @property
    def name(self) -> str:
        """As in the column `test` of the memory table."""
        return self.kind if self.amount is None else f"{self.kind} {self.amount:g}"

    @property
    def control(self) -> str | None:
        """Name of the same question about pictures that were not studied, where foils are made; else None."""
        return f"{self.name}, not studied" if self.kind in _FOILS else None

    def pictures(self, seen: Tensor, unseen: Tensor, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What is tested instead of studied pictures (N, 3, H, W) and their foils (N, 3, H, W).

        Args:
            keys: 2 N of them, the SHA-256 of the studied pictures' files, then those of the foils'; what is random in
                a picture's change follows from its own alone.
        Raises:
            InputError: pictures too small for the change.
        """
        if len(keys) != len(seen) + len(unseen):
            raise ValueError(f"{len(keys)} keys for {len(seen)} + {len(unseen)} pictures")
        self._check_fits(*seen.shape[-2:])
        if self.kind in _FOILS:
            return seen, _each(seen, lambda picture, _: _FOILS[self.kind](picture, self.amount), keys)
        purpose = f"degraded test {self.kind}"

        def degraded(picture: np.ndarray, key: str) -> np.ndarray:
            return _DEGRADATIONS[self.kind](picture, self.amount, stream(0, purpose, int(key[:16], 16)))

        return _each(seen, degraded, keys[: len(seen)]), _each(unseen, degraded, keys[len(seen) :])

    def _check_fits(self, height: int, width: int) -> None:
        short = min(height, width)
        most = {"coarse": short - 1, "foil shift": width - 1, "occluded": short**2 / (height * width)}.get(self.kind)
        if most is not None and self.amount > most:
            raise InputError(
                f"the test {self.name} does not fit pictures of {height} x {width} pixels", f"give {most:g} at most"
            )


def parse_variant(text: str) -> Variant:
    """The variant that a config names, such as `noise:25`, or the memory table, such as `noise 25`.

    Raises:
        InputError: there is no such variant, or its amount is out of range.
    """
    words = text.replace(":", " ").split()
    size = 2 if words[:1] == ["foil"] else 1
    kind, amount = " ".join(words[:size]), words[size:]
    if kind not in _AMOUNTS or len(amount) != (_AMOUNTS[kind] is not None):
        raise InputError(f"there is no test {text!r}", f"use one of {', '.join(_EXAMPLES)}")
    if _AMOUNTS[kind] is None:
        return Variant(kind)
    low, high, whole, unit = _AMOUNTS[kind]
    try:
        value = float(amount[0])
    except ValueError:
        value = math.nan
    if not low < value < high or (whole and value != int(value)):
        number = "a whole number" if whole else "a number"
        limit = f"above {low:g}" if high == math.inf else f"above {low:g} and below {high:g}"
        raise InputError(f"the test {text!r} has the amount {amount[0]}", f"give {number} of {unit} {limit}")
    return Variant(kind, value)


def is_degraded(test: str) -> bool:
    """Whether studied pictures are tested with other pixels than they were studied with; `test` as in the table."""
    return test.split(" ")[0] in _DEGRADATIONS


@dataclass(frozen=True)
class Augmentation:
    """What happens to pictures while they are studied, another time differently. They are tested as they are.

    Attributes:
        flip: Probability of mirroring.
        scale: Area of a random crop as a fraction of the picture, brought back to full size; null: no crop.
    Raises:
        InputError: a setting out of range.
    """

    flip: float = 0.0
    scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise InputError(f"augmentation.flip is {self.flip}", "give a probability from 0 (never) to 1 (always)")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"augmentation.scale is {self.scale}, no range in (0, 1]", "give for example [0.5, 1.0]")

    def apply(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """uint8 (B, 3, H, W) -> uint8 (B, 3, H, W); the very tensor where nothing changes by these settings."""
        if not self.flip and self.scale is None:
            return pixels
        height, width = pixels.shape[-2:]

        def changed(picture: np.ndarray, _: str) -> np.ndarray:
            flip = bool(rng.random() < self.flip)
            box = Box(0, 0, width, height) if self.scale is None else crop_box(rng, width, height, self.scale)
            return crop_array(picture, box, (height, width), flip)

        return _each(pixels, changed, [""] * len(pixels)).to(pixels.device)


def _each(pictures: Tensor, change: Callable[[np.ndarray, str], np.ndarray], keys: Sequence[str]) -> Tensor:
    """`change` (H, W, 3) uint8 pictures with their keys, one by one."""
    arrays = pictures.permute(0, 2, 3, 1).cpu().contiguous().numpy()
    changed = [torch.from_numpy(np.array(change(array, key))) for array, key in zip(arrays, keys)]
    return torch.stack(changed).permute(0, 3, 1, 2).contiguous() if changed else pictures


def _noise(picture: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    # The same numbers at every strength, so that a stronger noise is the weaker one grown.
    noisy = picture + sd * rng.standard_normal(picture.shape)
    return np.rint(noisy).clip(0, 255).astype(np.uint8)


def _blur(picture: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    return apply_colour(picture, Colour(blur=sd))


def _occluded(picture: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    side = min(max(1, round(math.sqrt(fraction * height * width))), height, width)
    top, left = (math.floor(rng.random() * (room - side + 1)) for room in (height, width))
    out = picture.copy()
    out[top : top + side, left : left + side] = _GREY
    return out


def _coarse(picture: np.ndarray, side: float, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = side / min(height, width)
    image = Image.fromarray(picture)
    small = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def _mirror(picture: np.ndarray, amount: None) -> np.ndarray:
    return picture[:, ::-1]


def _shift(picture: np.ndarray, amount: float) -> np.ndarray:
    pixels = int(amount)
    return np.pad(picture[:, :-pixels], ((0, 0), (pixels, 0), (0, 0)), mode="edge")


def _hue(picture: np.ndarray, turns: float) -> np.ndarray:
    return apply_colour(picture, Colour(order=("hue",), hue=turns))


def _crop(picture: np.ndarray, fraction: float) -> np.ndarray:
    height, width = picture.shape[:2]
    w, h = fraction * width, fraction * height
    return crop_array(picture, Box((width - w) / 2, (height - h) / 2, w, h), (height, width))


_DEGRADATIONS: dict[str, Degrade] = {"noise": _noise, "blur": _blur, "occluded": _occluded, "coarse": _coarse}
_FOILS: dict[str, Foil] = {"foil mirror": _mirror, "foil shift": _shift, "foil hue": _hue, "foil crop": _crop}
# Lowest and highest amount (both excluded), whether it is whole, and its unit.
_AMOUNTS: dict[str, tuple[float, float, bool, str] | None] = {
    "noise": (0, math.inf, False, "grey levels"),
    "blur": (0, math.inf, False, "pixels"),
    "occluded": (0, 1, False, "the area, a fraction"),
    "coarse": (0, math.inf, True, "pixels"),
    "foil mirror": None,
    "foil shift": (0, math.inf, True, "pixels"),
    "foil hue": (0, 1, False, "turns of the colour circle"),
    "foil crop": (0, 1, False, "either side, a fraction"),
}
_EXAMPLES = (
    "noise:25", "blur:2", "occluded:0.25", "coarse:16", "foil:mirror", "foil:shift:4", "foil:hue:0.1", "foil:crop:0.9"
)  # fmt: skip
