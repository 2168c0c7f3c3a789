"""What an objective asks of every sample: its views, each a crop with a law of its own.

An objective declares a tuple of `ViewLaw`; the plan draws their parameters (`headcam.video.sampling.plan`), the data sets
carry them out (`headcam.video.datasets`), and a batch has one entry for each law. A masked autoencoder asks for one
crop of a frame; DINO for two large and eight small ones with changed colours; a spatiotemporal masked autoencoder for
one or several crops of the same clip.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ColourLaw:
    """Random changes of colour and sharpness, in the order of the fields (SimCLR, Chen et al. 2020, appendix A).

    Attributes:
        jitter: probability that brightness, contrast, saturation and hue are changed, in random order.
        brightness, contrast, saturation: strength x: a factor uniform in [max(0, 1 - x), 1 + x].
        hue: strength x: a shift uniform in [-x, x] of the whole circle, at most 0.5.
        grayscale: probability of a grey picture.
        blur: probability of a Gaussian blur.
        blur_sigma: range of the blur's standard deviation in pixels of the view, for views of 224 pixels.
        solarize: probability of inverting values above 128 (of 255).
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

    @property
    def noise_key(self) -> str:
        """Key of the noise in an item: `noise` for the views called image or clip, `<name>_noise` for others."""
        return "noise" if self.name in ("image", "clip") else f"{self.name}_noise"
