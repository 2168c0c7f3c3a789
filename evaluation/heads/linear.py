"""The linear probe: how well classes can be read from frozen features by one linear layer.

The layer stands on a normalisation without affine parameters by the exact statistics of the training set (see
`headcam.evaluation.heads.normalisation`). The learning rate is the one setting that matters, and it is chosen without
the test set:

    1. search: all rates at once on the training set less the pictures set aside, a head for each rate;
    2. choice: the head that is right most often on the pictures set aside;
    3. fit: one head at that rate on the whole training set;
    4. the test pictures are scored, once.

The features stay as they lie on the disk (float16, memory-mapped) and are read in rounds (`ShuffledRows`), so that 1.28
million pictures, 20 rates and 1,000 classes fit into 1.5 GiB of memory. The same steps serve features that are computed
anew for each epoch: see `headcam.evaluation.heads.augmented`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from headcam.errors import InputError
from headcam.evaluation.heads.linear_head import LinearHead
from headcam.evaluation.heads.normalisation import READ_ROWS, Moments, Normalisation
from headcam.evaluation.heads.peak import matmul_peak
from headcam.evaluation.heads.rows import ShuffledRows
from headcam.evaluation.heads.training import HeadTrainer
from headcam.evaluation.protocols import LinearProbe
from headcam.progress import Progress


@dataclass(frozen=True)
class LinearResult:
    """What a linear probe found.

    Attributes:
        base_lr_per_256: the learning rate that was chosen.
        selection_top1: rate -> fraction right of the pictures set aside.
        logits: (m, num_classes) float32 of the test pictures, on the CPU.
        train_top1: fraction right of the training pictures (as they are, not augmented), after the final fit.
        head: the final fit.
        flops: floating-point operations of the matrix products in search and fit.
        seconds: that search and fit took.
        device: where.
        test_scores_of_rates: rate -> logits of a fit on the whole training set at that rate, where asked for.
    """

    base_lr_per_256: float
    selection_top1: dict[float, float]
    logits: torch.Tensor
    train_top1: float
    head: LinearHead
    flops: float
    seconds: float
    device: str
    test_scores_of_rates: dict[float, torch.Tensor] = field(default_factory=dict)

    @property
    def peak_share(self) -> float:
        """Speed of search and fit, reading included, as a share of the machine's matrix products in float32."""
        return self.flops / self.seconds / matmul_peak(self.device)


class Batches(Protocol):
    """Training data that epochs are made of, such as `ShuffledRows`.

    Attributes:
        normalisation: of the features.
        batch_size: the most rows in a batch.
        steps: batches in an epoch.
    """

    normalisation: Normalisation
    batch_size: int
    steps: int

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Normalised features with a column of ones (B, D + 1) float32, and labels (B,)."""


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
    all_rates: bool = False,
) -> LinearResult:
    """Choose a learning rate on a part of the training set, fit on all of it, score the test pictures once.

    The labels of the test set are no argument: nothing here can depend on them.

    Args:
        train: (n, D) features, may be memory-mapped; train_labels: (n,) int64.
        selection: (n,) bool, True where a training picture is set aside for the choice; some, not all.
        test: (m, D) features.
        seed: of the order of the pictures in each epoch.
        all_rates: also keep the test pictures' scores at every rate. They are for saying what a choice on the test set
            would have got; the result itself is the same with and without. They take m x num_classes x 4 bytes a rate.
    Raises:
        InputError: features that are not finite or the same for all pictures, or training that diverged.
    """

    def batches_of(rows: np.ndarray, normalisation: Normalisation) -> ShuffledRows:
        return ShuffledRows(train, train_labels, rows, normalisation, batch_size=protocol.batch_size, seed=seed)

    return choose_and_fit(
        batches_of,
        train,
        train_labels,
        selection,
        test,
        num_classes,
        protocol,
        device=device,
        description=description,
        quiet=quiet,
        all_rates=all_rates,
    )


def choose_and_fit(
    batches_of: Callable[[np.ndarray, Normalisation], Batches],
    train: np.ndarray,
    train_labels: np.ndarray,
    selection: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    protocol: LinearProbe,
    *,
    device: str | torch.device,
    description: str,
    quiet: bool,
    all_rates: bool,
) -> LinearResult:
    """The steps of `linear_probe` on training batches from anywhere.

    Args:
        batches_of: (rows of the training set, normalisation) -> batches.
        train: features of the training pictures as they are, for statistics and for the choice.
    """
    rates, started = protocol.base_lr_per_256, time.perf_counter()
    everything, chosen_on, fitted_on = np.arange(len(train)), np.flatnonzero(selection), np.flatnonzero(~selection)
    whitening = protocol.normalisation == "whitening"
    moments, aside = (Moments.of(train, rows, products=whitening, device=device) for rows in (fitted_on, chosen_on))
    for_search = batches_of(fitted_on, Normalisation.of(moments, protocol))
    for_fit = batches_of(everything, Normalisation.of(moments.merged(aside), protocol))

    steps = protocol.epochs * (for_search.steps + for_fit.steps * (2 if all_rates else 1))
    with Progress(description, steps, "steps", quiet) as progress:
        search = _fit(for_search, rates, train.shape[1], num_classes, protocol, progress)
        found = _top1(search, for_search.normalisation, train, train_labels, chosen_on)
        best = max(range(len(rates)), key=lambda k: (found[k], -rates[k]))  # the smaller rate where two are equal
        flops = search.flops + (2.0 * len(train) * train.shape[1] ** 2 if whitening else 0)
        del search, for_search  # their memory
        final = _fit(for_fit, (rates[best],), train.shape[1], num_classes, protocol, progress)
        flops, seconds = flops + final.flops, time.perf_counter() - started
        if not torch.isfinite(final.weight).all():
            raise InputError(
                f"the linear probe diverged at learning rate {rates[best]:g} (for a batch of 256)",
                "put smaller values into base_lr_per_256 of the protocol",
            )
        of_rates = {}
        if all_rates:
            every = _fit(for_fit, rates, train.shape[1], num_classes, protocol, progress)
            of_rates = dict(zip(rates, _scores(every, for_fit.normalisation, test)))
    return LinearResult(
        base_lr_per_256=rates[best],
        selection_top1=dict(zip(rates, found)),
        logits=_scores(final, for_fit.normalisation, test)[0],
        train_top1=_top1(final, for_fit.normalisation, train, train_labels, everything)[0],
        head=LinearHead(for_fit.normalisation.to("cpu"), final.weight[:-1].cpu(), final.weight[-1].cpu()),
        flops=flops,
        seconds=seconds,
        device=str(device),
        test_scores_of_rates=of_rates,
    )


def _fit(
    data: Batches, rates: tuple[float, ...], dim: int, num_classes: int, protocol: LinearProbe, progress: Progress
) -> HeadTrainer:
    trainer = HeadTrainer(
        dim,
        num_classes,
        rates,
        protocol,
        batch_size=data.batch_size,
        steps=protocol.epochs * data.steps,
        device=data.normalisation.device,
    )
    for epoch in range(protocol.epochs):
        for x, labels in data.batches(epoch):
            trainer.step(x, labels)
            progress.advance()
    return trainer


def _blocks(
    heads: HeadTrainer, normalisation: Normalisation, features: np.ndarray, rows: np.ndarray
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Places among `rows` and the logits (b, K, num_classes) of their features, a bounded number at a time."""
    count = min(READ_ROWS, heads.rows_scored)
    for start in range(0, len(rows), count):
        places = slice(start, min(start + count, len(rows)))
        yield places, heads.logits(normalisation(features[rows[places]]))


def _top1(
    heads: HeadTrainer, normalisation: Normalisation, features: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> list[float]:
    """Fraction of `rows` that each head gets right."""
    right = torch.zeros(heads.num_heads, dtype=torch.int64)
    for places, logits in _blocks(heads, normalisation, features, rows):
        truth = torch.from_numpy(labels[rows[places]]).to(logits.device)
        right += torch.stack([in_top(logits[:, k], truth, 1).sum() for k in range(heads.num_heads)]).cpu()
    return (right.double() / len(rows)).tolist()


def _scores(heads: HeadTrainer, normalisation: Normalisation, features: np.ndarray) -> torch.Tensor:
    """(K, n, num_classes) float32 on the CPU."""
    scores = torch.empty(heads.num_heads, len(features), heads.num_classes)
    for places, logits in _blocks(heads, normalisation, features, np.arange(len(features))):
        scores[:, places] = logits.transpose(0, 1).cpu()
    return scores
