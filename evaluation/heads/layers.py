"""A linear probe on every block of an encoder: where in the network classes become readable."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from headcam.evaluation.heads.linear import LinearResult, linear_probe
from headcam.evaluation.protocols import LinearProbe


class _Columns:
    """Some columns of a table, read when they are asked for."""

    def __init__(self, values: Any, columns: slice):
        self._values, self._columns = values, columns
        self.shape = (len(values), columns.stop - columns.start)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return self._values[index][:, self._columns]


def probe_layers(
    train: np.ndarray,
    train_labels: np.ndarray,
    selection: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    protocol: LinearProbe,
    *,
    num_layers: int,
    seed: int,
    device: str | torch.device = "cpu",
    description: str = "linear probes of layers",
    quiet: bool = False,
) -> Iterator[tuple[int, LinearResult]]:
    """A probe of each layer, with a learning rate of its own.

    Args:
        train: (n, num_layers * D) features, those of the first block first (see
            `headcam.evaluation.features.layers`); train_labels: (n,) int64.
        selection: (n,) bool, as in `linear_probe`.
        test: (m, num_layers * D).
    Yields:
        The layer, 1 being the first, and its result, one at a time: a result holds logits of all test pictures.
    """
    dim = train.shape[1] // num_layers
    for layer in range(1, num_layers + 1):
        found = linear_probe(
            _Columns(train, slice((layer - 1) * dim, layer * dim)),
            train_labels,
            selection,
            _Columns(test, slice((layer - 1) * dim, layer * dim)),
            num_classes,
            protocol,
            seed=seed,
            device=device,
            description=f"{description}, layer {layer} of {num_layers}",
            quiet=quiet,
        )
        yield layer, found
