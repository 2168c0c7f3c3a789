"""Masks that ask a masked autoencoder a question: what is behind this, and what comes next?

A model is trained with random masks. Shown a picture whose centre is hidden, or a clip whose later frames are, it has
to complete what it was not trained for in this form; such pictures say more about what it knows than its loss. The
number of visible patches is that of the mask ratio in every kind, only their places differ.

    random     places by noise, as in training
    centre     the middle of every frame is hidden: a centred square (on a square grid) of the masked area
    temporal   the last frames are hidden (clips only)
"""

from typing import Literal

import torch
from torch import Tensor

from headcam.errors import InputError

MaskKind = Literal["random", "centre", "temporal"]
MASK_KINDS = ("random", "centre", "temporal")


def directed_noise(kind: MaskKind, noise: Tensor, grid: tuple[int, int]) -> Tensor:
    """Noise whose smallest values, which stay visible, lie where `kind` wants them.

    Args:
        kind: see the module.
        noise: (B, L) float in [0, 1), tokens ordered time, row, column; it decides between places that are equal.
        grid: rows and columns of a frame in patches.
    Returns:
        (B, L) float32.
    Raises:
        InputError: an unknown kind, or `temporal` for single pictures.
    """
    if kind not in MASK_KINDS:
        raise InputError(f"mask {kind!r} is unknown", f"use one of {', '.join(MASK_KINDS)}")
    rows, columns = grid
    slots = noise.shape[1] // (rows * columns)
    if kind == "random":
        return noise
    if kind == "temporal":
        if slots < 2:
            raise InputError("a temporal mask needs a model for clips", "use random or centre for pictures")
        place = torch.arange(slots, device=noise.device).repeat_interleave(rows * columns)  # early slots are visible
        return place + noise
    y = (torch.arange(rows, device=noise.device) + 0.5) / rows - 0.5
    x = (torch.arange(columns, device=noise.device) + 0.5) / columns - 0.5
    distance = torch.maximum(y.abs()[:, None], x.abs()[None, :]).flatten()  # 0 in the middle, 0.5 at the edge
    # Rings of equal distance, outer ones first; noise only within a ring, the same in every slot.
    ring = torch.unique(distance, return_inverse=True)[1].max() - torch.unique(distance, return_inverse=True)[1]
    within = noise[:, : rows * columns]
    return (ring + within).repeat(1, slots)
