"""Rows of a feature table that is too large to copy: some of them, or less a mean, made when they are asked for."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TableView:
    """An array-like (n, D) over a memory-mapped table.

    Attributes:
        values: (N, D).
        rows: (n,) of `values`; None: all.
        centre: (D,) float32 that is taken off; None: nothing, and the type is that of `values`.
    """

    values: np.ndarray
    rows: np.ndarray | None = None
    centre: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.values.shape[1]

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype if self.centre is None else np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.values) if self.rows is None else len(self.rows)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        found = self.values[index if self.rows is None else self.rows[index]]
        return found if self.centre is None else found.astype(np.float32) - self.centre


def mean_of(values: np.ndarray | TableView, block: int = 16_384) -> np.ndarray:
    """Mean of the rows, (D,) float32, summed in float64 block by block."""
    total = sum(values[start : start + block].sum(axis=0, dtype=np.float64) for start in range(0, len(values), block))
    return (total / len(values)).astype(np.float32)
