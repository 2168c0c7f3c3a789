"""How feature tables are read for training: rows in an order as good as shuffled, while the file is read forward.

A table of ImageNet's features is 2 GB on a disk, and its rows lie class by class. Reading it row by row in a random
order is slow, and reading it from the front gives batches of one class. So an epoch goes in rounds:

    file    |aaaaaaaaaabbbbbbbbbbcccccccccc...|     rows lie class by class
    chunks  |0..1..2..|0..1..2..|0..1..2..|...|     short runs of rows; each stretch gives one chunk to each round,
    round 0 |   1        2       0         ...|     drawn anew in every epoch
            └── read forward into memory, normalised, and shuffled there: batches

so that every round is a fair sample of the file. A table that fits into one round is read and normalised once and then
shuffled as a whole. Memory is that of one round (256 MiB), whatever the table's size.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from headcam.evaluation.heads.normalisation import READ_ROWS, Normalisation
from headcam.randomness import hashed, permuted

_ROUND = 1 << 26  # values in a round, 256 MiB of float32
_CHUNK = 64  # rows read in one go: 96 KiB of 768 features, and a stretch of 15 of them is less than a class of ImageNet


def evenly(n: int, parts: int) -> np.ndarray:
    """Bounds (parts + 1,) that cut n things into parts whose sizes differ by 1 at most."""
    return np.arange(parts + 1) * n // parts


class ShuffledRows:
    """Batches of some rows of a table, normalised.

    The order follows from `seed` and the epoch alone: not from the table's type, nor from where it lies.

    Args:
        features: (n, D), any float type; an array, a memory map, or what can be indexed by an array of rows.
        labels: (n,) int64.
        rows: (r,) row numbers, ascending.
        normalisation: what is done to the features; batches lie on its device.
        batch_size: the most rows in a batch; batches of an epoch have nearly the same size.

    Attributes:
        normalisation, batch_size: as given; no more than there are rows.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray,
        normalisation: Normalisation,
        *,
        batch_size: int,
        seed: int,
    ):
        self._features, self._labels, self._rows, self._seed = features, labels, rows, seed
        self.normalisation, self.batch_size = normalisation, min(batch_size, len(rows))
        self._rounds = -(-len(rows) * features.shape[1] // _ROUND)
        self._stretches = -(-len(rows) // (self._rounds * _CHUNK))
        chunks = self._rounds * self._stretches
        self._bounds = evenly(len(rows), chunks)
        self._largest = len(rows) if self._rounds == 1 else self._stretches * -(-len(rows) // chunks)
        self._steps_per_round = -(-self._largest // self.batch_size)
        self._memory: torch.Tensor | None = None
        self._held: np.ndarray | None = None  # rows that lie in memory

    @property
    def steps(self) -> int:
        """Batches in an epoch, the same in each."""
        return self._rounds * self._steps_per_round

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Normalised features with a last column of ones, (B, D + 1) float32, and labels (B,), once for each row."""
        if self._memory is None:
            width = self._features.shape[1] + 1
            self._memory = torch.empty(self._largest, width, device=self.normalisation.device)
        for number, rows in enumerate(self._rows_of_rounds(epoch)):
            self._fill(rows)
            labels = torch.from_numpy(self._labels[rows]).to(self._memory.device)
            order = permuted(
                np.arange(len(rows)), len(rows), self._seed, f"linear probe, epoch {epoch}, round {number}"
            )
            order = torch.from_numpy(order).to(self._memory.device)
            bounds = evenly(len(rows), self._steps_per_round)
            for start, stop in pairwise(bounds):
                batch = order[start:stop]
                yield self._memory.index_select(0, batch), labels[batch]

    def _rows_of_rounds(self, epoch: int) -> Iterator[np.ndarray]:
        """The rows of each round, ascending."""
        if self._rounds == 1:
            yield self._rows
            return
        chunk = np.arange(self._rounds * self._stretches)
        keys = hashed([chunk], self._seed, f"linear probe, rounds of epoch {epoch}")
        # Row s: the chunks of stretch s in the order of their keys; column g goes to round g.
        drawn = keys.reshape(self._stretches, self._rounds).argsort(axis=1, kind="stable")
        drawn += np.arange(self._stretches)[:, None] * self._rounds
        for round_ in range(self._rounds):
            yield np.concatenate([self._rows[self._bounds[c] : self._bounds[c + 1]] for c in drawn[:, round_]])

    def _fill(self, rows: np.ndarray) -> None:
        if self._held is rows:
            return
        for start in range(0, len(rows), READ_ROWS):
            block = self._features[rows[start : start + READ_ROWS]]
            self.normalisation(block, out=self._memory[start : start + len(block)])
        self._held = rows
