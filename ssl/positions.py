"""Position embeddings of Vision Transformers.

The fixed two-dimensional sin-cos table is that of MAE (He et al. 2022, code of the paper): with D channels and
frequencies omega_k = 10000^(-k / (D/4)), k = 0..D/4-1, a patch in row y and column x gets
[sin(x omega), cos(x omega), sin(y omega), cos(y omega)]. The column comes first, an accident of the published code
that its checkpoints rely on. (MoCo v3 divides k by D/4 - 1 in other implementations: not interchangeable.)
"""

import torch
from torch import Tensor

from headcam.errors import InputError


def sincos_2d(embed_dim: int, grid: tuple[int, int], cls_token: bool = True) -> Tensor:
    """The table for a grid of (rows, columns) patches.

    Returns:
        (1, 1 + rows * columns, embed_dim) float32 in row-major order; the class token's row is zero (absent where
        `cls_token` is false).
    Raises:
        InputError: `embed_dim` is no multiple of 4.
    """
    if embed_dim % 4:
        raise InputError(f"embed_dim {embed_dim} is no multiple of 4", "sin-cos positions need four equal parts")
    omega = 10000.0 ** (-torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim / 4))
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega  # (L, D/4)
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    if cls_token:
        table = torch.cat([torch.zeros(1, embed_dim, dtype=torch.float64), table])
    return table.float().unsqueeze(0)
