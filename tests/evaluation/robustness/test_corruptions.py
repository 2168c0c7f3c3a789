"""Corruptions: each against a plain statement of what it does, determinism, and order of severities."""

import colorsys
import io
from typing import ClassVar

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from headcam.evaluation.features.encoders import PixelExtractor
from headcam.evaluation.features.extraction import extract
from headcam.evaluation.labelled.sets import read_labelled
from headcam.evaluation.protocols import PixelFeatures
from headcam.evaluation.robustness.corruptions import KINDS, SEVERITIES, CorruptedExtractor, corrupt
from headcam.randomness import stream


def picture(side: int = 224, counter: int = 0) -> np.ndarray:
    """Smooth colours with some edges, (side, side, 3) uint8."""
    rng = stream(0, "corruption picture", counter)
    pixels = cv2.resize(rng.integers(20, 236, (7, 7, 3), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        top, left, height, width = rng.integers(1, side // 2, 4)
        pixels[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return pixels


def error(kind: str, severity: int) -> float:
    """Mean squared error over four pictures, in squared grey levels."""
    pairs = [(picture(counter=k), corrupt(picture(counter=k), kind, severity)) for k in range(4)]
    return float(np.mean([(after.astype(float) - before) ** 2 for before, after in pairs]))


@pytest.mark.parametrize("kind", KINDS)
def test_severities_are_ordered(kind):
    errors = [error(kind, severity) for severity in SEVERITIES]
    if kind == "saturate":  # takes colour away at 1 and 2, adds it at 3 to 5
        assert 0 < errors[0] < errors[1] and 0 < errors[2] < errors[3] < errors[4]
    else:
        assert errors[0] > 0 and errors == sorted(set(errors))


@pytest.mark.parametrize("kind", KINDS)
def test_follows_from_the_content_alone(kind):
    clean = picture(64)
    first = corrupt(clean, kind, 3)
    corrupt(picture(64, 1), kind, 3)
    assert first.dtype == np.uint8 and first.shape == clean.shape
    assert np.array_equal(first, corrupt(clean.copy(), kind, 3))
    assert np.array_equal(first, corrupt(np.asfortranarray(clean), kind, 3))


def test_other_pictures_get_other_noise():
    a = picture(64)
    b = a.copy()
    b[0, 0] ^= 1
    noise = [corrupt(x, "gaussian_noise", 1).astype(int) - x for x in (a, b)]
    assert not np.array_equal(noise[0][1:], noise[1][1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(224, 224), (17, 40), (16, 16)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_grey_black_white_and_small_pictures(kind, shape, level):
    found = corrupt(np.full((*shape, 3), level, dtype=np.uint8), kind, 5)
    assert found.shape == (*shape, 3) and found.dtype == np.uint8


def test_gaussian_noise_has_the_published_spread():
    grey = np.full((224, 224, 3), 128, dtype=np.uint8)
    for severity, sd in ((1, 0.08), (2, 0.12), (3, 0.18)):  # further ones are cut off at black and white
        assert corrupt(grey, "gaussian_noise", severity).std() / 255 == pytest.approx(sd, rel=0.01)


def test_shot_noise_has_the_variance_of_counts():
    grey = np.full((224, 224, 3), 102, dtype=np.uint8)  # 0.4: variance of Poisson(0.4 c) / c is 0.4 / c
    assert (corrupt(grey, "shot_noise", 1) / 255).var() == pytest.approx(0.4 / 60, rel=0.02)


def test_impulse_noise_hits_the_published_share():
    grey = np.full((224, 224, 3), 128, dtype=np.uint8)
    for severity, share in zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27)):
        found = corrupt(grey, "impulse_noise", severity)
        assert set(np.unique(found)) == {0, 128, 255}
        assert (found != 128).mean() == pytest.approx(share, rel=0.05)
        assert (found == 0).mean() == pytest.approx(share / 2, rel=0.07)


@pytest.mark.parametrize(("severity", "sigma"), list(zip(SEVERITIES, (1, 2, 3, 4, 6))))
def test_gaussian_blur_is_scipys(severity, sigma):
    clean = picture()
    plain = ndimage.gaussian_filter(clean.astype(float), (sigma, sigma, 0), mode="nearest", truncate=4)
    assert np.abs(corrupt(clean, "gaussian_blur", severity) - plain).max() <= 0.51  # rounding to whole grey levels


def test_defocus_blur_is_close_to_the_published_window():
    """The window of ImageNet-C: whole pixels within the radius on a grid of -8..8, softened by a Gaussian of 0.5."""
    clean = picture()
    y, x = np.mgrid[-8:9, -8:9]
    window = (x**2 + y**2 <= 6**2).astype(np.float32)
    window = cv2.GaussianBlur(window / window.sum(), (3, 3), 0.5)
    theirs = np.stack([cv2.filter2D(clean[..., c] / 255, -1, window) for c in range(3)], axis=2) * 255
    assert np.abs(corrupt(clean, "defocus_blur", 3) - theirs).mean() < 0.5
    assert np.abs(corrupt(clean, "defocus_blur", 3) - theirs).max() < 4


def test_blur_takes_the_same_share_of_a_small_picture():
    """Blurring and then shrinking is close to shrinking and then blurring."""
    large = picture(224)
    small = cv2.resize(large, (112, 112), interpolation=cv2.INTER_AREA)
    for kind in ("gaussian_blur", "defocus_blur"):
        first = cv2.resize(corrupt(large, kind, 4), (112, 112), interpolation=cv2.INTER_AREA)
        assert np.abs(first.astype(int) - corrupt(small, kind, 4)).mean() < 1


@pytest.mark.parametrize("kind", ["brightness", "saturate"])
def test_colour_is_that_of_colorsys(kind):
    clean = picture(12)
    amount = {"brightness": (0, 0.1), "saturate": (0.3, 0)}[kind]
    plain = np.empty(clean.shape)
    for place in np.ndindex(12, 12):
        h, s, v = colorsys.rgb_to_hsv(*clean[place] / 255)
        if kind == "brightness":
            v = min(v + amount[1], 1)
        else:
            s = min(s * amount[0] + amount[1], 1)
        plain[place] = colorsys.hsv_to_rgb(h, s, v)
    assert np.abs(corrupt(clean, kind, 1) - 255 * plain).max() <= 0.51


def test_contrast_moves_values_towards_the_mean_of_their_channel():
    clean = picture()
    for severity, factor in zip(SEVERITIES, (0.4, 0.3, 0.2, 0.1, 0.05)):
        plain = np.stack([(c - c.mean()) * factor + c.mean() for c in clean.transpose(2, 0, 1).astype(float)], axis=2)
        assert np.abs(corrupt(clean, "contrast", severity) - plain).max() <= 0.51


def test_pixelate_is_a_mean_over_blocks():
    clean = picture()
    blocks = clean.reshape(112, 2, 112, 2, 3).mean(axis=(1, 3))  # severity 2: half of the sides
    assert (
        np.abs(corrupt(clean, "pixelate", 2) - blocks.repeat(2, axis=0).repeat(2, axis=1)).max() <= 1
    )  # Pillow rounds after each axis


def test_jpeg_is_pillows():
    clean = picture()
    for severity, quality in zip(SEVERITIES, (25, 18, 15, 10, 7)):
        file = io.BytesIO()
        Image.fromarray(clean).save(file, "JPEG", quality=quality)
        assert np.array_equal(corrupt(clean, "jpeg_compression", severity), np.asarray(Image.open(file)))


def test_unknown_kinds_and_severities_are_refused():
    for kind, severity in (("frost", 1), ("contrast", 0), ("contrast", 6)):
        with pytest.raises(ValueError, match=f"corruption {kind} of severity {severity}"):
            corrupt(picture(16), kind, severity)


class Whole:
    """An extractor of 32 x 32 pictures as they are."""

    dim = 32 * 32 * 3
    batch_size = 7
    identity: ClassVar = {"protocol": "whole"}

    def prepare(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((32, 32)))

    def compute(self, batch: np.ndarray) -> np.ndarray:
        return batch.reshape(len(batch), -1).astype(np.float32)


def test_extractor_sees_the_corrupted_picture_under_an_identity_of_its_own():
    image = Image.fromarray(picture(48))
    inner, outer = Whole(), CorruptedExtractor(Whole(), "contrast", 2)
    assert np.array_equal(outer.prepare(image), corrupt(inner.prepare(image), "contrast", 2))
    assert (outer.dim, outer.batch_size) == (inner.dim, inner.batch_size)
    batch = outer.prepare(image)[None]
    assert np.array_equal(outer.compute(batch), inner.compute(batch))
    others = [CorruptedExtractor(Whole(), "contrast", 3), CorruptedExtractor(Whole(), "pixelate", 2), inner]
    assert all(outer.identity != other.identity for other in others)
    assert outer.identity["protocol"] == "whole"


def test_raw_pixels_are_averages_of_a_corrupted_picture():
    """Noise of single pixels averages out in the baseline, instead of being added to its few averages."""
    image = Image.fromarray(picture(224))
    inner = PixelExtractor(PixelFeatures())
    clean = inner.prepare(image).astype(float)
    found = CorruptedExtractor(inner, "gaussian_noise", 3).prepare(image)
    assert found.shape == clean.shape
    assert np.abs(found - clean).mean() < 10  # 0.18 of 255 on each pixel would be 37; the mean of 14 x 14 is below 3


def test_extract_caches_clean_and_corrupted_features_apart(tmp_path, write_pictures):
    data = read_labelled(write_pictures(tmp_path / "set", {"a": 5, "b": 5}))
    inner = PixelExtractor(PixelFeatures(side=4))
    clean = extract(inner, data.train, tmp_path / "cache", quiet=True)
    for severity in (1, 5):
        found = extract(CorruptedExtractor(inner, "contrast", severity), data.train, tmp_path / "cache", quiet=True)
        assert found.file != clean.file and not np.array_equal(found.values, clean.values)
    again = extract(CorruptedExtractor(inner, "contrast", 5), data.train, tmp_path / "cache", batch_size=3, quiet=True)
    assert again.file == found.file and len(list((tmp_path / "cache").glob("*.npy"))) == 3
