"""What an objective asks of every sample: its views, each a crop with a law of its own.

An objective declares a tuple of `ViewLaw`; the plan draws their parameters (`headcam.video.sampling.plan`), the data
sets carry them out (`headcam.video.datasets`), and a batch has one entry for each law. A masked autoencoder asks for
one crop of a frame; DINO for two large and eight small ones with changed colours; a spatiotemporal masked autoencoder
for one or several crops of the same clip.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from headcam.errors import InputError


@dataclass(frozen=True)
class ColourLaw:
    """Random changes of colour and sharpness, in the order of the fields (SimCLR, Chen et al. 2020, appendix A).

    They are drawn and carried out by `headcam.video.colour`.

    Attributes:
        jitter: probability that brightness, contrast, saturation and hue are changed, in random order.
        brightness, contrast, saturation: strength x: a factor uniform in [max(0, 1 - x), 1 + x].
        hue: strength x: a shift uniform in [-x, x] of the whole circle, at most 0.5.
        grayscale: probability of a grey picture.
        blur: probability of a Gaussian blur.
        blur_sigma: range of the blur's standard deviation in pixels of the view, whatever its size (DINO: 0.1 to 2).
        solarize: probability of inverting values from 128 on (of 255).
    Raises:
        InputError: a setting out of range.
    """

    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        for name in ("jitter", "grayscale", "blur", "solarize"):
            _check_probability(f"colour {name}", getattr(self, name))
        for name, most in (("brightness", math.inf), ("contrast", math.inf), ("saturation", math.inf), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                limit = "a number from 0 on" if most == math.inf else f"a number from 0 to {most}"
                raise InputError(f"colour {name} is {getattr(self, name)}", f"give {limit}")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1] < math.inf:
            raise InputError(f"colour blur_sigma {self.blur_sigma} is no range above 0", "give for example [0.1, 2.0]")


@dataclass(frozen=True)
class ViewLaw:
    """The law of `count` views of a sample.

    Attributes:
        name: key of the pixels in an item, uint8: (3, H, W) for a frame, (3, T, H, W) for a clip, with a first
            dimension V where `count` is given.
        size: (H, W) in pixels.
        count: V views, each drawn by itself; None: one, without the dimension V.
        scale: range of the crop's area as a fraction of the picture's; None: that of the data's config.
        ratio: range of the crop's aspect ratio (width / height).
        flip: probability of mirroring; None: that of the data's config.
        colours: law of each view in turn (the last one for those that are left); empty: colours stay.
        noise: numbers, uniform in [0, 1), that come with each view, float32 (noise,) or (V, noise) under `noise_key`;
            they decide masks and stochastic depth. 0: none.
        held_out: how validation cuts: `centre` gives one central crop without change of colour (and no dimension V),
            `same` draws by this very law; either way the same views in every validation of every run.
    Raises:
        InputError: a setting out of range.
    """

    name: str
    size: tuple[int, int]
    count: int | None = None
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float | None = None
    colours: tuple[ColourLaw, ...] = ()
    noise: int = 0
    held_out: Literal["centre", "same"] = "centre"

    def __post_init__(self) -> None:
        if min(self.size) < 1 or self.count == 0:
            raise InputError(f"view {self.name} has size {self.size} and count {self.count}", "give at least 1")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"crop scale {self.scale} is no range in (0, 1]", "give for example [0.2, 1.0]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"crop ratio {self.ratio} is no range above 0", "give for example [0.75, 1.333]")
        if self.flip is not None:
            _check_probability("flip", self.flip)

    @property
    def views(self) -> int:
        """V, or 1 where the item has no dimension for it."""
        return 1 if self.count is None else self.count

    def colour(self, view: int) -> ColourLaw | None:
        """The law of the colours of one view (0 <= view); None where they stay."""
        return self.colours[min(view, len(self.colours) - 1)] if self.colours else None

    def with_defaults(self, scale: tuple[float, float], flip: float) -> "ViewLaw":
        """This law with what it leaves to the data's config taken from there."""
        return replace(
            self, scale=scale if self.scale is None else self.scale, flip=flip if self.flip is None else self.flip
        )

    @property
    def noise_key(self) -> str:
        """Key of the noise in an item: `noise` for the views called image or clip, `<name>_noise` for others."""
        return "noise" if self.name in ("image", "clip") else f"{self.name}_noise"


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {value}, no probability", "give a number from 0 (never) to 1 (always)")
