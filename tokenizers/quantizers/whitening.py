"""Decorrelated inputs for the quantizers that count off fixed levels.

FSQ and LFQ use all their codes only where latents spread over all levels of every dimension, and do so independently.
At the start they do not: a constant dominates, and dimensions say the same. So rows are brought to mean 0 and unit
covariance by running figures, as batch normalisation brings each channel to mean 0 and variance 1 (Ioffe and Szegedy
2015). The running figures serve in training too: what a token stands for depends on no other sample of the batch.
"""

import torch
from torch import Tensor, nn

from headcam.ssl.training.distributed import sum_over_processes

_DECAY = 0.99  # of the running figures
_RIDGE = 1e-5  # of the mean variance; keeps directions that hardly vary from being blown up without bound


class Whitening(nn.Module):
    """Rows (M, d) less their running mean, times the inverse Cholesky factor of their running covariance.

    Attributes:
        mean, covariance: (d,) and (d, d) float32 buffers; 0 and 1 until the first step.
        initialized: int64 buffer, whether there was one: it sets the figures, later ones move them.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("covariance", torch.eye(dim))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.int64))
        self._sums: list[Tensor] = []  # of each micro-batch: rows, their number, products; (d + 1, d + 1)

    def forward(self, rows: Tensor) -> Tensor:
        if self.training and not rows.is_meta:
            self._note(rows.detach())
        ridge = _RIDGE * self.covariance.diagonal().mean() + 1e-12
        factor = torch.linalg.cholesky_ex(self.covariance + ridge * torch.eye(len(self.mean), device=rows.device)).L
        return torch.linalg.solve_triangular(factor, (rows - self.mean).t(), upper=False).t()

    @torch.compiler.disable
    def _note(self, rows: Tensor) -> None:
        # About the running mean, since squares of large numbers leave no digits for small differences.
        one_more = torch.cat([rows - self.mean, rows.new_ones(len(rows), 1)], 1)
        self._sums.append(one_more.t() @ one_more)

    @torch.no_grad()
    def update(self, skip: Tensor | float) -> None:
        """Move the figures to those of the rows since the last call, over all processes; not where `skip` is 1."""
        if not self._sums:
            return
        sums, self._sums = torch.stack(self._sums).sum(0), []
        sum_over_processes(sums)
        sums = sums / sums[-1, -1]
        shift = sums[:-1, -1]
        mean, covariance = self.mean + shift, sums[:-1, :-1] - torch.outer(shift, shift)
        keep = _DECAY * (self.initialized > 0)
        skipped = torch.as_tensor(skip, device=mean.device) > 0
        self.mean.copy_(torch.where(skipped, self.mean, torch.lerp(mean, self.mean, keep)))
        self.covariance.copy_(torch.where(skipped, self.covariance, torch.lerp(covariance, self.covariance, keep)))
        self.initialized.copy_(torch.where(skipped, self.initialized, 1))
