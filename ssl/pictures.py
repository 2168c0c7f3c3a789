"""Pictures of what a masked autoencoder sees and completes."""

import numpy as np
import torch
from torch import Tensor

from headcam.video.transforms import IMAGENET_MEAN, IMAGENET_STD


def to_uint8(images: Tensor) -> np.ndarray:
    """Normalised (B, 3, H, W) float -> (B, H, W, 3) uint8."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (images.float() * std + mean).clamp(0, 1) * 255
    return pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def triptych(images: Tensor, masked: Tensor, completed: Tensor, gap: int = 2) -> np.ndarray:
    """Rows of picture, masked picture and completion, one column a sample: (B, 3, H, W) each -> uint8 (3H, BW, 3)."""
    rows = []
    for batch in (images, masked, completed):
        tiles = np.pad(to_uint8(batch), ((0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=255)
        rows.append(np.concatenate(list(tiles), axis=1))
    return np.concatenate(rows)
