"""Measures of reconstructions against loops in plain NumPy."""

import numpy as np
import pytest
import torch

from headcam.tokenizers.fidelity.pictures import (
    EXACT_DB,
    cell_colours,
    cell_means,
    frames_of,
    motion,
    motion_error,
    psnr,
    ssim,
)


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, shape)
    second = np.clip(first + rng.integers(-30, 31, shape), 0, 255)
    return tuple(torch.from_numpy(x.astype(np.uint8)) for x in (first, second))


def test_psnr_is_that_of_each_picture():
    a, b = pair((3, 3, 8, 9))
    for k, value in enumerate(psnr(a, b)):
        error = np.mean([(int(x) - int(y)) ** 2 for x, y in zip(a[k].flatten(), b[k].flatten())])
        assert value == pytest.approx(10 * np.log10(255**2 / error), rel=1e-12)
    assert (psnr(a, a) == EXACT_DB).all()


def test_ssim_is_the_mean_over_windows_of_the_papers_formula():
    a, b = pair((2, 3, 13, 14))
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    for k, value in enumerate(ssim(a, b)):
        found = []
        for channel in range(3):
            for top in range(3):
                for left in range(4):
                    x, y = (p[k, channel, top : top + 11, left : left + 11].numpy().astype(float) for p in (a, b))
                    mx, my = (window * x).sum(), (window * y).sum()
                    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                    cov = (window * (x - mx) * (y - my)).sum()
                    c1, c2 = 2.55**2, 7.65**2
                    found.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
        assert value == pytest.approx(np.mean(found), rel=1e-9)
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="11 pixels a side"):
        ssim(a[..., :10], b[..., :10])


def test_motion_of_clips():
    a, b = pair((2, 3, 4, 5, 6))
    x, y = a.numpy().astype(int), b.numpy().astype(int)
    steps = [np.abs(x[0, :, t + 1] - x[0, :, t]).mean() for t in range(3)]
    assert motion(a)[0] == pytest.approx(np.mean(steps))
    errors = [np.abs((y[1, :, t + 1] - y[1, :, t]) - (x[1, :, t + 1] - x[1, :, t])).mean() for t in range(3)]
    assert motion_error(a, b)[1] == pytest.approx(np.mean(errors))
    brighter = (a // 2 + 100).byte(), (a // 2 + 110).byte()
    assert motion_error(*brighter).abs().max() == 0, "a constant error of brightness is none of motion"


def test_frames_of_a_clip_are_neighbours():
    clip = torch.arange(2 * 3 * 4 * 2 * 2).view(2, 3, 4, 2, 2)
    frames = frames_of(clip)
    assert frames.shape == (8, 3, 2, 2) and torch.equal(frames[5], clip[1, :, 1])
    assert frames_of(clip[:, :, 0]).shape == (2, 3, 2, 2)


@pytest.mark.parametrize("shape, grid", [((2, 3, 8, 12), (2, 3)), ((2, 3, 4, 8, 12), (2, 2, 3))])
def test_cells_have_the_mean_colour_of_their_pixels(shape, grid):
    pixels, _ = pair(shape)
    means, colours = cell_means(pixels, grid), cell_colours(pixels, grid)
    assert means.dtype == torch.uint8 and means.shape == pixels.shape and colours.shape == (2, np.prod(grid), 3)
    last = (1, 2, slice(4, 8), slice(8, 12)) if len(grid) == 2 else (1, 2, slice(2, 4), slice(4, 8), slice(8, 12))
    block = pixels[last]
    assert (means[last] == colours[1, -1, 2]).all(), "the last cell has one colour"
    assert abs(block.double().mean() - colours[1, -1, 2]) <= 0.5
