"""Augmented pictures: torchvision's law and pixels, and views that follow from seed, epoch and row alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from headcam.errors import DecodeError
from headcam.evaluation.features.augmented import AugmentedPictures
from headcam.evaluation.labelled.sets import Picture, read_labelled

MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A colourful picture without fine detail, of which JPEG loses little at any scale."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def pictures(tmp_path, write_pictures):
    return read_labelled(write_pictures(tmp_path / "labelled", {"a": 9, "b": 6})).train


@pytest.mark.parametrize("interpolation", MODES)
def test_pixels_are_those_of_torchvision_for_the_same_box(pictures, interpolation):
    augmented = AugmentedPictures(pictures, (16, 20), seed=3, interpolation=interpolation)
    views = augmented.batch(np.arange(len(pictures)), epoch=5)
    assert views.dtype == torch.uint8 and views.shape == (len(pictures), 3, 16, 20)
    for row, picture in enumerate(pictures):
        image = Image.open(picture.path)
        box, flip = augmented.draw(row, 5, *image.size)
        top, left, height, width = (int(value) for value in (box.top, box.left, box.height, box.width))
        expected = np.asarray(resized_crop(image, top, left, height, width, [16, 20], MODES[interpolation]))
        assert np.array_equal(views[row].permute(1, 2, 0).numpy(), expected[:, ::-1] if flip else expected)


@pytest.mark.parametrize("size", [(500, 375), (60, 300)])
def test_boxes_follow_torchvisions_law(size):
    n, scale = 3000, (0.08, 1.0)
    augmented = AugmentedPictures([None] * n, 224, scale=scale, seed=0)
    ours = np.array([augmented.draw(row, 0, *size)[0] for row in range(n)])  # left, top, width, height
    image = torch.empty(3, size[1], size[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(n)]
    theirs = np.array(theirs)[:, [1, 0, 3, 2]]
    for a, b in [*zip(ours.T, theirs.T), (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])]:
        assert ks_2samp(a, b).pvalue > 1e-3


def test_a_view_depends_on_seed_epoch_and_row_only(pictures):
    n = len(pictures)
    augmented = AugmentedPictures(pictures, 16, seed=3)
    views = augmented.batch(np.arange(n), epoch=1)
    order = np.random.default_rng(0).permutation(n)
    halves = list(AugmentedPictures(pictures, 16, seed=3).iterate([order[:4], order[4:]], epoch=1))
    assert [len(half) for half in halves] == [4, n - 4]
    assert torch.equal(torch.cat(halves), views[order])
    assert not torch.equal(augmented.batch(np.arange(n), epoch=2), views)
    assert not torch.equal(AugmentedPictures(pictures, 16, seed=4).batch(np.arange(n), epoch=1), views)
    seen = {augmented.draw(row, epoch, 500, 500) for row in range(n) for epoch in range(3)}
    assert len(seen) == 3 * n  # no two rows or epochs share a stream


def test_half_of_the_views_are_mirror_images(pictures):
    n = len(pictures)
    with_flips, without = (AugmentedPictures(pictures, 16, seed=3, flip=flip) for flip in (True, False))
    a, b = (x.batch(np.arange(n), epoch=0) for x in (with_flips, without))
    mirrored = [not torch.equal(a[row], b[row]) for row in range(n)]
    assert 0 < sum(mirrored) < n
    assert all(torch.equal(a[row].flip(-1) if mirrored[row] else a[row], b[row]) for row in range(n))
    assert 450 < sum(with_flips.draw(0, epoch, 24, 24)[1] for epoch in range(1000)) < 550


@pytest.mark.parametrize("size", [(1201, 903), (517, 1003)])
def test_what_is_decoded_at_a_smaller_scale_looks_the_same(tmp_path, size):
    smooth(*size).save(tmp_path / "large.jpg", quality=95)
    picture = Picture(tmp_path, "large.jpg", 0, "")
    augmented = AugmentedPictures([picture] * 8, 48, seed=0, flip=False)
    views = augmented.batch(np.arange(8), epoch=0).permute(0, 2, 3, 1).numpy()
    whole = Image.open(picture.path).convert("RGB")
    for row, view in enumerate(views):
        box, _ = augmented.draw(row, 0, *size)
        left, top, width, height = (int(value) for value in box)
        expected = np.asarray(resized_crop(whole, top, left, height, width, [48, 48], MODES["bicubic"]))
        error = np.mean((view.astype(float) - expected) ** 2)
        assert 10 * np.log10(255**2 / error) > 40  # dB; a shift by a pixel of the scaled picture falls below 35


def test_all_kinds_of_pictures(tmp_path):
    image = smooth(80, 60)
    deep = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    kinds = {
        "grey.jpg": image.convert("L"),
        "cmyk.jpg": image.convert("CMYK"),
        "palette.gif": image.convert("P"),
        "alpha.png": image.convert("RGBA"),
        "deep.png": deep,
    }
    for name, kind in kinds.items():
        kind.save(tmp_path / name)
    listed = [Picture(tmp_path, name, 0, "") for name in kinds]
    views = AugmentedPictures(listed, 24, seed=0).batch(np.arange(len(listed)), 0).float()
    grey = np.asarray(image.convert("L"), float).mean()
    assert abs(views[0].mean() - grey) < 40 and abs(views[4].mean() - grey) < 40
    assert torch.equal(views[4][0], views[4][1])


def test_a_picture_that_cannot_be_read_is_named(pictures):
    pictures[2].path.write_bytes(b"garbage")
    augmented = AugmentedPictures(pictures, 16, seed=0)
    assert augmented.batch(np.array([1, 3]), 0).shape == (2, 3, 16, 16)
    with pytest.raises(DecodeError, match=f"{pictures[2].name} cannot be read: cannot identify"):
        augmented.batch(np.array([1, 2]), 0)
