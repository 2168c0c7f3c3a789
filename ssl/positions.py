"""Position embeddings of Vision Transformers.

The fixed two-dimensional sin-cos table is that of MAE (He et al. 2022, code of the paper): with D channels and
frequencies omega_k = 10000^(-k / (D/4)), k = 0..D/4-1, a patch in row y and column x gets
[sin(x omega), cos(x omega), sin(y omega), cos(y omega)]. The column comes first, an accident of the published code
that its checkpoints rely on. (MoCo v3 divides k by D/4 - 1 in other implementations: not interchangeable.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from headcam.errors import InputError


def sincos_2d(
    embed_dim: int, grid: tuple[int, int], cls_token: bool = True, field: tuple[int, int] | None = None
) -> Tensor:
    """The table for a grid of (rows, columns) patches.

    Args:
        embed_dim: D.
        grid: rows and columns.
        cls_token: whether the table starts with a row for the class token.
        field: rows and columns of the model's own grid, whose field of view `grid` covers at another resolution: the
            table is then evaluated at the centres of the new patches, in the old ones' units. None: `grid` itself.

    Returns:
        (1, 1 + rows * columns, embed_dim) float32 in row-major order; the class token's row is zero (absent where
        `cls_token` is false).
    Raises:
        InputError: `embed_dim` is no multiple of 4.
    """
    if embed_dim % 4:
        raise InputError(f"embed_dim {embed_dim} is no multiple of 4", "sin-cos positions need four equal parts")
    omega = 10000.0 ** (-torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim / 4))
    axes = [
        (torch.arange(n, dtype=torch.float64) + 0.5) * (old / n) - 0.5 for n, old in zip(grid, field or grid)
    ]  # exactly 0, 1, 2 ... where the grid is the field
    y, x = torch.meshgrid(*axes, indexing="ij")
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega  # (L, D/4)
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    if cls_token:
        table = torch.cat([torch.zeros(1, embed_dim, dtype=torch.float64), table])
    return table.float().unsqueeze(0)


def resample(table: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Learned positions (1, rows * columns, D) of `grid` at another grid, (1, L', D): bicubic, same field of view."""
    rows, columns = grid
    image = table.float().reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=wanted, mode="bicubic", align_corners=False, antialias=False)
    return image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
