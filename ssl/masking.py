"""Random masking by sorting noise (He et al. 2022, section 3) and cutting images into patches.

Shapes: B batch, L patches, K kept (visible) patches, M = L - K masked ones, p patch side, C channels.
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


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, L, p * p * C) in row-major order; within a patch row, column, channel (MAE's order)."""
    B, C, H, W = images.shape
    p = patch_size
    x = images.reshape(B, C, H // p, p, W // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // p) * (W // p), p * p * C)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of `patchify`: (B, L, p * p * C) -> (B, C, rows * p, columns * p)."""
    B, _, width = patches.shape
    p, (rows, columns) = patch_size, grid
    x = patches.reshape(B, rows, columns, p, p, width // (p * p))
    return x.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, rows * p, columns * p)


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """Rows `ids` (B, K) of `x` (B, L, D) -> (B, K, D)."""
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
