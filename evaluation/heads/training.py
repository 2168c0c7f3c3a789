"""Several linear layers trained at once on the same features, one for each learning rate.

All heads read the same batches, and their weights lie side by side so that one matrix product serves them all: reading
the features once is what a search over twenty rates costs. The gradient of the cross-entropy is written out, it is one
line. The bias is the weight of a last feature that is always 1 (`Normalisation` appends it).

What is minimised is the mean cross-entropy plus `weight_decay` / 2 times the sum of squared weights, biases left out.
The decay is decoupled from the gradient (Loshchilov and Hutter 2019) and taken at the rate that momentum makes of the
learning rate, lr / (1 - momentum): the weights at which decay and gradient cancel are then those of that minimum,
whatever the learning rate and the momentum.
"""

import math

import torch

from headcam.evaluation.protocols import LinearProbe

_SCORED = 1 << 24  # scores computed at a time, 64 MiB of float32


class HeadTrainer:
    """Weights of K linear layers, and stochastic gradient descent with momentum and a cosine schedule on them.

    Args:
        dim: features D, the column of ones not counted.
        base_rates: K learning rates for a batch of 256.
        batch_size: that the rates are scaled to: rate x batch_size / 256.
        steps: in all, after which the rate is 0.

    Attributes:
        weight: (D + 1, K * num_classes) float32; head k owns columns k * num_classes and following, the last row is
            the bias.
        flops: operations of the matrix products so far.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        base_rates: tuple[float, ...],
        protocol: LinearProbe,
        *,
        batch_size: int,
        steps: int,
        device: str | torch.device = "cpu",
    ):
        self.num_heads, self.num_classes = len(base_rates), num_classes
        self.weight = torch.zeros(dim + 1, self.num_heads * num_classes, device=device)
        self.flops = 0.0
        self._velocity = torch.zeros_like(self.weight)
        rates = torch.tensor(base_rates, dtype=torch.float32, device=device) * (batch_size / 256)
        self._rates = rates.repeat_interleave(num_classes)  # (K * num_classes,)
        self._momentum, self._decay = protocol.momentum, protocol.weight_decay
        self._step, self._steps = 0, steps

    @torch.inference_mode()
    def step(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """One step on a batch: features with their column of ones (B, D + 1), and labels (B,) int64."""
        # d(mean cross-entropy)/d(logits) = (softmax - one hot) / B, the same for every head
        gradient = (x @ self.weight).view(len(x), self.num_heads, self.num_classes).softmax(dim=2)
        gradient[torch.arange(len(x), device=x.device), :, labels] -= 1
        gradient = gradient.view(len(x), -1)
        rate = self._rates * (0.5 * (1 + math.cos(math.pi * self._step / self._steps)))
        self._velocity.addmm_(x.T, gradient, beta=self._momentum, alpha=1 / len(x))
        if self._decay:
            self.weight[:-1].mul_(1 - rate * (self._decay / (1 - self._momentum)))
        self.weight.addcmul_(self._velocity, rate, value=-1)
        self._step += 1
        self.flops += 4.0 * x.numel() * self.weight.shape[1]

    @property
    def rows_scored(self) -> int:
        """How many rows to hand to `logits` at a time, so that the scores take little memory."""
        return max(1, _SCORED // self.weight.shape[1])

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(B, D + 1) to (B, K, num_classes)."""
        return (x @ self.weight).view(len(x), self.num_heads, self.num_classes)
