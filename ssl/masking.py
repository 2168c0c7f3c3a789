"""Random masking by sorting noise (He et al. 2022, section 3) and cutting images and clips into patches.

Shapes: B batch, L patches, K kept (visible) patches, M = L - K masked ones, p patch side, u
tubelet size, C channels, T frames.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from headcam.errors import InputError


class Mask(NamedTuple):
    """Which patches the encoder sees: `ids_keep` (B, K) and `ids_masked` (B, M), int64, in the order of the noise."""

    ids_keep: Tensor
    ids_masked: Tensor

    def as_binary(self) -> Tensor:
        """(B, L) float32 in image order, 1 where a patch is masked."""
        length = self.ids_keep.shape[1] + self.ids_masked.shape[1]
        mask = torch.ones(self.ids_keep.shape[0], length, device=self.ids_keep.device)
        return mask.scatter_(1, self.ids_keep, 0.0)


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """K = floor(L (1 - mask_ratio)) in exact arithmetic, at least 1: the published count, free of binary rounding.

    `int(100 * (1 - 0.9))` is 9 in floating point; this gives 10.

    Raises:
        InputError: `mask_ratio` outside [0, 1).
    """
    if not 0 <= mask_ratio < 1:
        hint = f"did you mean {mask_ratio / 100:g}" if 1 < mask_ratio < 100 else "give for example 0.75"
        raise InputError(f"mask_ratio must be in [0, 1), got {mask_ratio:g}", hint)
    return max(1, math.floor(num_patches * (1 - mask_ratio) + 1e-6))


def random_mask(noise: Tensor, keep: int) -> Mask:
    """Keep the `keep` patches with the smallest noise.

    Args:
        noise: (B, L) float; ties fall to the patch that comes first, so the result is the same everywhere.
    """
    ids = torch.argsort(noise, dim=1, stable=True)
    return Mask(ids[:, :keep], ids[:, keep:])


def patchify(images: Tensor, patch_size: int, tubelet_size: int = 1) -> Tensor:
    """Cut images (B, C, H, W) or clips (B, C, T, H, W) into patches (B, L, P), P = u * p * p * C.

    Patches are ordered time slot, row, column; the values of one frame in the tube, row, column, channel (the order of
    MAE and ST-MAE).
    """
    if images.ndim == 4:
        images = images.unsqueeze(2)
    B, C, T, H, W = images.shape
    p, u = patch_size, tubelet_size
    x = images.reshape(B, C, T // u, u, H // p, p, W // p, p)
    return x.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(B, (T // u) * (H // p) * (W // p), u * p * p * C)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int], tubelet_size: int = 1) -> Tensor:
    """Inverse of `patchify`: (B, L, P) -> (B, C, T, rows * p, columns * p), without T where L is that of an image.

    A single time slot of `tubelet_size` 1 is an image.
    """
    B, L, width = patches.shape
    p, u, (rows, columns) = patch_size, tubelet_size, grid
    x = patches.reshape(B, L // (rows * columns), rows, columns, u, p, p, width // (u * p * p))
    x = x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(B, -1, L // (rows * columns) * u, rows * p, columns * p)
    return x.squeeze(2) if x.shape[2] == 1 else x


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """Rows `ids` (B, K) of `x` (B, L, D) -> (B, K, D)."""
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
