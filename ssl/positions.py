"""Position embeddings of Vision Transformers, at the model's own grid of patches and at any other.

The fixed two-dimensional sin-cos table is that of MAE (He et al. 2022, code of the paper): with D channels and
frequencies omega_k = 10000^(-k / (D/4)), k = 0..D/4-1, a patch in row y and column x gets
[sin(x omega), cos(x omega), sin(y omega), cos(y omega)]. The column comes first, an accident of the published code
that its checkpoints rely on. (MoCo v3 divides k by D/4 - 1 in other implementations: not interchangeable.)

Another grid covers the same field of view: the centre of patch i of n lies at (i + 0.5) old / n - 0.5 in units of the
old patches. There the fixed table is evaluated anew, exactly, and a learned one is interpolated (`resample`): bicubic
(a = -0.75, edges repeated), as MAE does for finetuning. Others differ, so a model moved to another grid by them gives
slightly other features there; at the own grid all agree:

- DINO (Caron et al. 2021, code) asks for a factor of (n + 0.1) / old instead of a size, to be safe from rounding, and
  the factor enters the coordinates: places are (i + 0.5) old / (n + 0.1) - 0.5, at most 0.1 old / n old patches off.
- timm (`resample_abs_pos_embed`) and DINOv2 with registers smooth (`antialias`), which blurs before shrinking and takes
  a = -0.5 for the cubic either way.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from headcam.errors import InputError


def sincos_2d(
    embed_dim: int,
    grid: tuple[int, int],
    cls_token: bool = True,
    field: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """The table for a grid of (rows, columns) patches.

    Args:
        embed_dim: D.
        grid: rows and columns.
        cls_token: whether the table starts with a row for the class token.
        field: rows and columns of the model's own grid, whose field of view `grid` covers at another resolution: the
            table is then evaluated at the centres of the new patches, in the old ones' units. None: `grid` itself.
        device: where the table is put together; sines and cosines, one row and one column of them, come from the CPU.

    Returns:
        (1, 1 + rows * columns, embed_dim) float32 in row-major order; the class token's row is zero (absent where
        `cls_token` is false).
    Raises:
        InputError: `embed_dim` is no multiple of 4.
    """
    if embed_dim % 4:
        raise InputError(f"embed_dim {embed_dim} is no multiple of 4", "sin-cos positions need four equal parts")
    omega = 10000.0 ** (-torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim / 4))
    rows, columns = grid
    y, x = (
        ((torch.arange(n, dtype=torch.float64) + 0.5) * (old / n) - 0.5).unsqueeze(1) * omega
        for n, old in zip(grid, field or grid)
    )  # (rows, D/4), (columns, D/4); places are exactly 0, 1, 2 ... where the grid is the field
    y = torch.cat([y.sin(), y.cos()], dim=1).float().to(device)
    x = torch.cat([x.sin(), x.cos()], dim=1).float().to(device)
    shape = (rows, columns, embed_dim // 2)
    table = torch.cat([x.unsqueeze(0).expand(shape), y.unsqueeze(1).expand(shape)], dim=2).flatten(0, 1)
    return F.pad(table, (0, 0, int(cls_token), 0)).unsqueeze(0)


def resample(table: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Learned positions (1, rows * columns, D) of `grid` at another grid, (1, L', D): bicubic, same field of view."""
    image = table.unflatten(1, grid).permute(0, 3, 1, 2).to(torch.promote_types(table.dtype, torch.float32))
    image = F.interpolate(image, size=wanted, mode="bicubic", align_corners=False, antialias=False)
    return image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
