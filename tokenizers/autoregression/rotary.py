"""Rotary positions on a grid: queries and keys are turned by angles, so that their product sees distances alone.

Su et al. 2021 ("RoFormer", arXiv 2104.09864, equation 34) turn the k-th pair of channels of a token at place p by the
angle p * omega_k; the product of a query and a key then depends on the difference of their places and on nothing else.
On a grid every axis has its own share of the pairs (the axial form of Heo et al. 2024, "Rotary position embedding for
vision transformer", ECCV, with their omega_k = 100^(-k / K) for k = 0..K-1: grids are shorter than texts):

    head_dim = [ pairs of time | pairs of rows | pairs of columns | rest, not turned ]    K = head_dim // (2 * axes)

A model of raster order asks at every position for the token of the *next* place, which after the end of a row is far
from that of its input. So a key stands where its token is, and a query at the place that it asks for: what lies above
the place asked for is one row away everywhere. The start token, which no place has, stands at -1 on every axis.

Shapes: N places of the grid, P positions of the sequence, R = axes * K pairs that are turned.
"""

import torch
from torch import Tensor

from headcam.errors import InputError

_BASE = 100.0  # Heo et al. 2024; texts have 10,000


def rotary_table(grid: tuple[int, ...], head_dim: int, start: bool) -> Tensor:
    """Cosines and sines for a sequence in raster order.

    Args:
        grid: (h, w) or (t, h, w).
        head_dim: channels of a head.
        start: whether a start token comes before the tokens of the grid: P is N with it, N - 1 without.
    Returns:
        (2, 2, P, R) float32: of cosine, sine; of query, key. Position i of the sequence asks for token i with a start
        token, for token i + 1 without.
    Raises:
        InputError: heads too narrow for a pair of channels on every axis.
    """
    axes = len(grid)
    pairs = head_dim // (2 * axes)
    if not pairs:
        raise InputError(
            f"heads of {head_dim} channels are too narrow for rotary positions on {axes} axes",
            f"take {2 * axes} channels a head or more (embed_dim / num_heads), or positions learned",
        )
    omega = _BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid))  # (N, axes), raster order
    if start:
        places = torch.cat([torch.full((1, axes), -1.0, dtype=torch.float64), places])
    angles = (places.unsqueeze(-1) * omega).flatten(1)  # (N or 1 + N, R)
    angles = torch.stack([angles[1:], angles[:-1]])  # what position i asks for, and what it holds
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn queries and keys: (2, B, heads, n, head_dim) by (2, 2, n, R) -> (2, B, heads, n, head_dim), in its dtype.

    The pair of channel k is (k, R + k).
    """
    cosine, sine = table[:, :, None, None]  # (2, 1, 1, n, R) each
    R = table.shape[-1]
    a, b, rest = x.split([R, R, x.shape[-1] - 2 * R], dim=-1)
    turned = torch.addcmul(a * cosine, b, sine, value=-1), torch.addcmul(b * cosine, a, sine)
    return torch.cat([part.to(x.dtype) for part in (*turned, rest)], dim=-1)
