"""The linear probe: how well classes can be read from frozen features by one linear layer.

The layer stands on a batch normalisation without affine parameters (He et al. 2022, appendix A.1; the form that makes
one learning rate serve features of any scale). The features are frozen, so the mean and variance that running averages
of batch statistics would drift toward are known before training: the normalisation is by the exact statistics of the
training set, in training and in the test alike. That is the classifier that BatchNorm has become when its momentum goes
to zero, without the noise of batches and without a gap between training and test; see `Normalisation`.

The learning rate is the one setting that matters, and it is chosen without the test set:

    1. search: all rates at once on the training set less the pictures set aside; every rate is a head, all heads read
       the same batches, and their weights lie side by side so that one matrix product serves them all;
    2. choice: the head that is right most often on the pictures set aside;
    3. fit: one head at that rate on the whole training set;
    4. the test pictures are scored, once.

The features stay as they lie on the disk (float16, memory-mapped); a batch is converted when it is used, so that a
million pictures fit into a small memory.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from headcam.evaluation.protocols import LinearProbe
from headcam.progress import Progress
from headcam.randomness import permuted

_ROWS = 4096  # features converted at a time, outside of training


@dataclass(frozen=True)
class LinearResult:
    """What a linear probe found.

    Attributes:
        base_lr_per_256: the learning rate that was chosen.
        selection_top1: rate -> fraction right of the pictures set aside.
        logits: (m, num_classes) float32 of the test pictures, on the CPU.
        train_top1: fraction right of the training pictures, after the final fit.
    """

    base_lr_per_256: float
    selection_top1: dict[float, float]
    logits: torch.Tensor
    train_top1: float


@dataclass(frozen=True)
class Normalisation:
    """`torch.nn.BatchNorm1d(D, affine=False)` in eval mode whose running statistics are those of a training set.

    Attributes:
        mean: (D,) float32.
        scale: (D,) float32, 1 / sqrt(variance + eps), the variance being that of the population (divided by n).
    """

    mean: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def of(cls, features: np.ndarray, rows: np.ndarray, eps: float, device: str | torch.device) -> "Normalisation":
        """The statistics of `features[rows]`, (n, D), summed in float64 in two passes."""
        blocks = [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
        mean = sum(features[block].astype(np.float64).sum(axis=0) for block in blocks) / len(rows)
        variance = sum(np.square(features[block].astype(np.float64) - mean).sum(axis=0) for block in blocks) / len(rows)
        return cls(
            torch.from_numpy(mean.astype(np.float32)).to(device),
            torch.from_numpy((1 / np.sqrt(variance + eps)).astype(np.float32)).to(device),
        )

    def __call__(self, features: np.ndarray) -> torch.Tensor:
        """Features (B, D) of any float type, normalised, float32."""
        x = torch.from_numpy(features.astype(np.float32)).to(self.mean.device)
        return x.sub_(self.mean).mul_(self.scale)


@dataclass(frozen=True)
class Heads:
    """K linear layers on the same normalised features, side by side.

    Attributes:
        weight: (D, K * num_classes) float32; head k owns columns k * num_classes and following.
        bias: (K * num_classes,) float32.
    """

    normalisation: Normalisation
    weight: torch.Tensor
    bias: torch.Tensor
    num_heads: int

    @torch.inference_mode()
    def logits(self, features: np.ndarray) -> torch.Tensor:
        """(B, D) to (B, K, num_classes)."""
        x = torch.addmm(self.bias, self.normalisation(features), self.weight)
        return x.view(len(features), self.num_heads, -1)

    def top1(self, features: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> list[float]:
        """Fraction of `rows` that each head gets right."""
        right = torch.zeros(self.num_heads, dtype=torch.int64)
        for start in range(0, len(rows), _ROWS):
            block = rows[start : start + _ROWS]
            logits = self.logits(features[block]).cpu()
            truth = torch.from_numpy(labels[block])
            for k in range(self.num_heads):
                right[k] += in_top(logits[:, k], truth, 1).sum()
        return (right.double() / len(rows)).tolist()


def in_top(scores: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Whether the true class is among the `k` best: (B,) bool.

    Ties count against the model, and so does NaN: a classifier that gives all classes the same score is never right.

    Args:
        scores: (B, num_classes); labels: (B,) int64.
    """
    truth = scores.gather(1, labels.view(-1, 1))
    return (~(scores < truth)).sum(dim=1) <= k


def linear_probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    selection: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    protocol: LinearProbe,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    description: str = "linear probe",
    quiet: bool = False,
) -> LinearResult:
    """Choose a learning rate on a part of the training set, fit on all of it, score the test pictures once.

    The labels of the test set are no argument: nothing here can depend on them.

    Args:
        train: (n, D) features, may be memory-mapped; train_labels: (n,) int64.
        selection: (n,) bool, True where a training picture is set aside for the choice; some, not all.
        test: (m, D) features.
        seed: of the order of the pictures in each epoch.
    """
    rates = protocol.base_lr_per_256
    chosen_on, fitted_on = np.flatnonzero(selection), np.flatnonzero(~selection)
    everything = np.arange(len(train))

    with Progress(description, 2 * protocol.epochs, "epochs", quiet) as progress:
        search = _fit(train, train_labels, fitted_on, rates, num_classes, protocol, seed, device, progress)
        found = search.top1(train, train_labels, chosen_on)
        best = max(range(len(rates)), key=lambda k: (found[k], -rates[k]))  # the smaller rate where two are equal
        del search
        head = _fit(train, train_labels, everything, (rates[best],), num_classes, protocol, seed, device, progress)

    logits = [head.logits(test[start : start + _ROWS])[:, 0].cpu() for start in range(0, len(test), _ROWS)]
    return LinearResult(
        base_lr_per_256=rates[best],
        selection_top1=dict(zip(rates, found)),
        logits=torch.cat(logits),
        train_top1=head.top1(train, train_labels, everything)[0],
    )


@torch.inference_mode()
def _fit(
    features: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    base_rates: tuple[float, ...],
    num_classes: int,
    protocol: LinearProbe,
    seed: int,
    device: str | torch.device,
    progress: Progress,
) -> Heads:
    """Train one head a rate on `features[rows]` by SGD with momentum; the gradient is written out, it is one line."""
    num_heads, batch_size = len(base_rates), min(protocol.batch_size, len(rows))
    normalisation = Normalisation.of(features, rows, protocol.eps, device)
    weight = torch.zeros(features.shape[1], num_heads * num_classes, device=device)
    bias = torch.zeros(num_heads * num_classes, device=device)
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    rate = torch.tensor(base_rates, dtype=torch.float32, device=device) * (batch_size / 256)
    rate = rate.repeat_interleave(num_classes)  # (K * num_classes,)

    steps_per_epoch = math.ceil(len(rows) / batch_size)
    total = protocol.epochs * steps_per_epoch
    for epoch in range(protocol.epochs):
        order = rows[permuted(np.arange(len(rows)), len(rows), seed, f"linear probe, epoch {epoch}")]
        for i in range(steps_per_epoch):
            batch = order[i * batch_size : (i + 1) * batch_size]
            x = normalisation(features[batch])  # (B, D)
            truth = torch.from_numpy(labels[batch]).to(device)
            # d(mean cross-entropy)/d(logits) = (softmax - one hot) / B, the same for every head
            gradient = torch.addmm(bias, x, weight).view(len(batch), num_heads, num_classes).softmax(dim=2)
            gradient[torch.arange(len(batch), device=device), :, truth] -= 1
            gradient = gradient.view(len(batch), -1)
            step_rate = rate * (0.5 * (1 + math.cos(math.pi * (epoch * steps_per_epoch + i) / total)))
            weight_velocity.mul_(protocol.momentum).addmm_(x.T, gradient, alpha=1 / len(batch))
            bias_velocity.mul_(protocol.momentum).add_(gradient.mean(dim=0))
            weight.addcmul_(weight_velocity, step_rate, value=-1)
            bias.addcmul_(bias_velocity, step_rate, value=-1)
        progress.advance()
    return Heads(normalisation, weight, bias, num_heads)
