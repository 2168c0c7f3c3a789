"""Colours against torchvision and Pillow with the same parameters, and the law of their draws against its words."""

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter
from scipy import stats

from headcam.randomness import stream
from headcam.video.colour import Colour, apply_colour, draw_colour
from headcam.video.sampling.views import ColourLaw

ONE = {"brightness": 1.3, "contrast": 0.6, "saturation": 1.7, "hue": -0.13}
FLOAT = {
    "brightness": TF.adjust_brightness,
    "contrast": TF.adjust_contrast,
    "saturation": TF.adjust_saturation,
    "hue": TF.adjust_hue,
}


def pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return {
        "smooth": cv2.resize(small, (112, 80), interpolation=cv2.INTER_CUBIC),
        "noise": rng.integers(0, 256, (80, 112, 3), dtype=np.uint8),
        "grey": np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2),
    }


PICTURES = pictures()


def difference(ours: np.ndarray, theirs) -> np.ndarray:
    return np.abs(ours.astype(int) - np.asarray(theirs).astype(int))


def on_floats(image: np.ndarray, operation, *arguments) -> np.ndarray:
    """A torchvision operation in float64 on 0..1, rounded once."""
    out = operation(torch.from_numpy(image).permute(2, 0, 1).double() / 255, *arguments)
    return (out * 255).round().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(
    ("operation", "value"),
    [(name, value) for name in ("brightness", "contrast", "saturation") for value in (0.0, 0.2, 0.7, 1.0, 1.4, 1.9)]
    + [("hue", value) for value in (-0.5, -0.3, -0.02, 0.0, 0.1, 0.25, 0.5)],
)
def test_a_change_of_jitter_is_torchvisions(name, operation, value):
    image = PICTURES[name]
    ours = apply_colour(image, Colour((operation,), **{operation: value}))
    assert ours.dtype == np.uint8 and ours.shape == image.shape
    assert difference(ours, on_floats(image, FLOAT[operation], value)).max() <= 1  # one rounding
    by_pillow = difference(ours, FLOAT[operation](Image.fromarray(image), value))
    if operation == "hue":  # Pillow keeps hue and saturation in bytes: up to 18 levels, below 2 on average
        assert by_pillow.max() <= 18 and by_pillow.mean() < 2
    else:  # Pillow cuts fractions off
        assert by_pillow.max() <= 1


@pytest.mark.parametrize("name", PICTURES)
def test_grey_and_solarised_pictures_are_pillows(name):
    image = PICTURES[name]
    pillow = Image.fromarray(image)
    grey = apply_colour(image, Colour(grayscale=True))
    assert difference(grey, TF.to_grayscale(pillow, 3)).max() <= 1 and grey.shape == image.shape
    assert np.array_equal(apply_colour(image, Colour(solarize=True)), np.asarray(TF.solarize(pillow, 128)))


@pytest.mark.parametrize("name", ["smooth", "noise"])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_is_a_gaussian_of_that_standard_deviation(name, sigma):
    image = PICTURES[name]
    ours = apply_colour(image, Colour(blur=sigma))
    side = 2 * int(np.ceil(4 * sigma)) + 1
    exact = TF.gaussian_blur(torch.from_numpy(image).permute(2, 0, 1), [side, side], [sigma, sigma])
    assert difference(ours, exact.permute(1, 2, 0)).max() <= 1
    # DINO's blur is Pillow's, whose radius is the standard deviation: three box filters, which treat the border apart.
    inside = slice(8, -8), slice(8, -8)
    by_pillow = difference(
        ours[inside], np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))[inside]
    )
    assert by_pillow.max() <= 6 and by_pillow.mean() < 1.3


@pytest.mark.parametrize("order", [("brightness", "hue", "contrast", "saturation"), ("saturation", "contrast", "hue")])
def test_changes_follow_their_order_and_then_the_rest(order):
    image = PICTURES["smooth"]
    colour = Colour(order, **ONE, grayscale=False, blur=0.8, solarize=True)
    step = image
    for name in order:
        step = apply_colour(step, Colour((name,), **{name: ONE[name]}))
    step = apply_colour(apply_colour(step, Colour(blur=0.8)), Colour(solarize=True))
    assert np.array_equal(apply_colour(image, colour), step)
    reverse = apply_colour(image, colour._replace(order=order[::-1]))
    assert not np.array_equal(step, reverse)
    grey = apply_colour(image, colour._replace(grayscale=True))
    assert np.array_equal(grey[..., 0], grey[..., 1]) and not np.array_equal(grey, step)


def test_nothing_is_changed_in_place_and_nothing_by_default():
    image = PICTURES["smooth"].copy()
    assert np.array_equal(apply_colour(image, Colour()), image)
    apply_colour(image, Colour(tuple(ONE), **ONE, grayscale=True, blur=1.0, solarize=True))
    assert np.array_equal(image, PICTURES["smooth"])


def test_frames_of_a_clip_change_alike_each_by_itself():
    clip = np.stack([PICTURES["smooth"], PICTURES["noise"], PICTURES["smooth"][::-1]])
    colour = Colour(tuple(ONE), **ONE, blur=1.0, solarize=True)
    out = apply_colour(clip, colour)
    assert out.shape == clip.shape and out.dtype == np.uint8
    for frame, changed in zip(clip, out):
        assert np.array_equal(apply_colour(np.ascontiguousarray(frame), colour), changed)


def test_a_mirrored_picture_that_is_no_block_of_memory_changes_too():
    image = PICTURES["smooth"]
    colour = Colour(tuple(ONE), **ONE, blur=1.0)
    mirrored = apply_colour(image[:, ::-1], colour)
    assert difference(mirrored, apply_colour(image, colour)[:, ::-1]).max() <= 1


def draws(law: ColourLaw, count: int = 4000) -> list[Colour]:
    return [draw_colour(stream(1, "colour", i), law) for i in range(count)]


def test_draws_follow_the_law():
    law = ColourLaw(brightness=0.4, contrast=0.3, saturation=1.5, hue=0.1, solarize=0.3, blur_sigma=(0.5, 1.5))
    drawn = draws(law)
    changed = [c for c in drawn if c.order]
    for share, wanted in (
        (len(changed) / 4000, law.jitter),
        (np.mean([c.grayscale for c in drawn]), law.grayscale),
        (np.mean([c.blur > 0 for c in drawn]), law.blur),
        (np.mean([c.solarize for c in drawn]), law.solarize),
    ):
        assert abs(share - wanted) < 4 * 0.5 / 4000**0.5
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.7, 1.3),
        ("saturation", 0.0, 2.5),
        ("hue", -0.1, 0.1),
    ):
        values = [getattr(c, name) for c in changed]
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3, name
    sigmas = [c.blur for c in drawn if c.blur]
    assert stats.kstest(sigmas, stats.uniform(0.5, 1.0).cdf).pvalue > 1e-3
    orders = np.unique([c.order for c in changed], axis=0, return_counts=True)[1]
    assert len(orders) == 24 and stats.chisquare(orders).pvalue > 1e-3
    still = [c for c in drawn if not c.order]
    assert all(c[:5] == ((), 1.0, 1.0, 1.0, 0.0) for c in still)


def test_settings_do_not_move_the_draws_of_others():
    plain = draws(ColourLaw(), 200)
    for other in (ColourLaw(solarize=0.5), ColourLaw(blur=0.0), ColourLaw(grayscale=1.0)):
        assert [c[:5] for c in draws(other, 200)] == [c[:5] for c in plain]
    unhued = draws(ColourLaw(hue=0.0), 200)
    assert [c.brightness for c in unhued] == [c.brightness for c in plain] and not any("hue" in c.order for c in unhued)
