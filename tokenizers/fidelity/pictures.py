"""How close reconstructions are to their originals, one number a picture or clip.

All functions take uint8 pixels and a fixed range of 0 to 255: nothing is stretched to its own extremes, which would
make dark pictures look better than they are. Frames of a clip are measured one by one and averaged, so that the number
of a clip is comparable with that of a picture; the clip, not the frame, is then what intervals resample.

Shapes: B batch, T frames, H and W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXACT_DB = 100.0  # what a reconstruction without any error counts as, so that means stay finite
SSIM_WINDOW = 11  # pixels
_SIGMA, _K1, _K2, _RANGE = 1.5, 0.01, 0.03, 255.0  # Wang et al. 2004, section III.C
_FRAMES_AT_ONCE = 64


def psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame, in dB: 10 log10(255^2 / mean squared error over pixels and channels).

    Args:
        originals, reconstructions: uint8 (B, 3, H, W).
    Returns:
        (B,) float64, at most `EXACT_DB`.
    """
    error = (originals.double() - reconstructions.double()).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(_RANGE**2 / error)).clamp(max=EXACT_DB)


def ssim(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity of each frame (Wang, Bovik, Sheikh and Simoncelli 2004, equation 13), in [-1, 1].

    An 11 x 11 Gaussian window of standard deviation 1.5 pixels at every place where it lies inside the picture, on each
    of the three channels; the mean over places and channels. (The authors' program turns pictures to grey first.)

    Args:
        originals, reconstructions: uint8 (B, 3, H, W), H and W at least `SSIM_WINDOW`.
    Returns:
        (B,) float64.
    Raises:
        ValueError: a side shorter than the window.
    """
    if min(originals.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs {SSIM_WINDOW} pixels a side, got {tuple(originals.shape[-2:])}")
    x, y = originals.double().flatten(0, 1)[:, None], reconstructions.double().flatten(0, 1)[:, None]
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=x.device) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    window = window / window.sum()

    def local_mean(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    index = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    index = index / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return index.mean(dim=(1, 2, 3)).view(len(originals), -1).mean(dim=1)


@torch.no_grad()
def perceptual(network: nn.Module, originals: Tensor, reconstructions: Tensor) -> Tensor:
    """LPIPS of each frame (Zhang et al. 2018): uint8 (B, 3, H, W) twice -> (B,) float64.

    Args:
        network: of `headcam.tokenizers.losses.lpips.load_perceptual`, which takes pixels in [-1, 1].
    """
    a, b = (pixels.float() / 127.5 - 1 for pixels in (originals, reconstructions))
    parts = zip(a.split(_FRAMES_AT_ONCE), b.split(_FRAMES_AT_ONCE))
    return torch.cat([network(x, y).double().view(-1) for x, y in parts])


def motion(clips: Tensor) -> Tensor:
    """Mean absolute difference of successive frames, in grey levels of 255: uint8 (B, 3, T, H, W) -> (B,) float64.

    Reconstructions that flicker have more of it than their originals, blurred ones less.
    """
    return clips.double().diff(dim=2).abs().mean(dim=(1, 2, 3, 4))


def motion_error(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean absolute error of the differences of successive frames, in grey levels: (B, 3, T, H, W) twice -> (B,).

    A constant error of colour costs nothing here, an error that comes and goes costs twice.
    """
    error = originals.double().diff(dim=2) - reconstructions.double().diff(dim=2)
    return error.abs().mean(dim=(1, 2, 3, 4))


def cell_colours(pixels: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Mean colour of the pixels of each token's cell, rounded.

    Args:
        pixels: uint8 (B, 3, H, W) or (B, 3, T, H, W).
        grid: (h, w) or (t, h, w), which divides the pixels.
    Returns:
        (B, N, 3) float32, N cells in raster order.
    """
    pool = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    return pool(pixels.float(), grid).round().flatten(2).transpose(1, 2)


def cell_means(pixels: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The pixels that one mean colour for each token gives, the baseline of a tokenizer of that grid: as `pixels`."""
    colours = cell_colours(pixels, grid).transpose(1, 2).unflatten(2, grid)
    return F.interpolate(colours, size=pixels.shape[2:], mode="nearest-exact").byte()


def frames_of(pixels: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) as their frames (B * T, 3, H, W), those of a clip side by side; pictures as they are."""
    return pixels if pixels.ndim == 4 else pixels.transpose(1, 2).flatten(0, 1)
