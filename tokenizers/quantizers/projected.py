"""Quantizers that round vectors of few dimensions: the way down from the latents and back up.

Codes are compared, or counted off, in `code_dim` dimensions, while encoder and decoder work in `dim`; a linear layer
each leads from one to the other ("factorized codes", Yu et al. 2022, "Vector-quantized image modeling with improved
VQGAN", section 3.2: low-dimensional codes are used more evenly). They have no biases: a constant would take up most of
a direction on the unit sphere, and what stands before and behind has its own. Where both widths are the same there are
no layers.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from headcam.ssl.training.distributed import sum_over_processes
from headcam.tokenizers.quantizers.quantizer import Quantized, Quantizer, places_back, places_last


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """No autocast on the tensor's device (on the meta device, where nothing is computed, none on the CPU)."""
    return torch.autocast("cpu" if tensor.is_meta else tensor.device.type, enabled=False)


def mean_everywhere(mean: Tensor) -> Tensor:
    """The mean over all processes of a mean over one's own rows, all processes having as many.

    Its gradient is that of the own mean: once gradients are averaged over processes, that of the mean over all.
    """
    if mean.is_meta:
        return mean
    everywhere = mean.detach().clone()
    everywhere /= sum_over_processes(everywhere)
    return mean + (everywhere - mean.detach())


class ProjectedQuantizer(Quantizer):
    """Base of the quantizers that round rows of `code_dim`; a subclass implements `round` and `lookup`.

    Args:
        codebook_size, dim, options: see `Quantizer`.
        code_dim: width of what is rounded.
    """

    def __init__(self, codebook_size: int, dim: int, code_dim: int, **options: Any):
        super().__init__(codebook_size, dim, **options)
        self.code_dim = code_dim
        self.project_in = nn.Linear(dim, code_dim, bias=False) if code_dim != dim else nn.Identity()
        self.project_out = nn.Linear(code_dim, dim, bias=False) if code_dim != dim else nn.Identity()

    def round(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of (M, code_dim) float32 rows: exactly `lookup(indices)` with a gradient, (M,) indices, the loss."""
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        """(M,) int64 -> (M, code_dim) float32."""
        raise NotImplementedError

    def forward(self, latents: Tensor, noise: Tensor | None = None) -> Quantized:
        with full_precision(latents):
            codes, indices, loss = self.round(self.project_in(places_last(latents)))
            quantized = places_back(self.project_out(codes), latents)
        return Quantized(quantized, indices.view(latents.shape[0], *latents.shape[2:]), loss)

    def dequantize(self, indices: Tensor) -> Tensor:
        with full_precision(indices):
            rows = self.project_out(self.lookup(indices.flatten()))
        return rows.view(*indices.shape, self.dim).movedim(-1, 1)
