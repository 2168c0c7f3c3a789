"""Codes that learn from latents: what an optimizer step's latents were, over all processes, and where codes start.

`forward` only keeps the step's latents (of all its micro-batches); codes move in `after_step`, from what all processes
saw, so that the codebooks of all stay the same, and that of a batch does not depend on how it was dealt out.

Shapes: M places of a batch, K codes, d their width.
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from headcam.randomness import stream
from headcam.ssl.training.distributed import many, sum_over_processes
from headcam.tokenizers.quantizers.kmeans import kmeans

_LATENTS_PER_CODE = 32  # that k-means looks at, at most


class StepLatents:
    """The latents of an optimizer step over all processes, in the order of their samples.

    Micro-batches follow each other, in each the processes, in each its rows: as `step_samples` deals out a batch. All
    micro-batches have the same number of rows.
    """

    def __init__(self, seen: list[tuple[Tensor, Tensor]]):
        self._rows, self._indices = (torch.cat(part) for part in zip(*seen))
        self._micro = len(seen[0][0])  # rows of a micro-batch of this process
        self._processes = dist.get_world_size() if many() else 1

    def __len__(self) -> int:
        return len(self._rows) * self._processes

    def rows(self, numbers: np.ndarray) -> Tensor:
        """Rows by their numbers in [0, len): (n,) int64 -> (n, d), the same in every process."""
        if self._processes == 1:
            return self._rows[torch.from_numpy(numbers).to(self._rows.device)]
        micro, within = np.divmod(numbers, self._processes * self._micro)
        owner, row = np.divmod(within, self._micro)
        mine = np.flatnonzero(owner == dist.get_rank())
        found = self._rows.new_zeros(len(numbers), self._rows.shape[1])
        at = torch.from_numpy(mine).to(found.device)
        found[at] = self._rows[torch.from_numpy((micro * self._micro + row)[mine]).to(found.device)]
        sum_over_processes(found)
        return found

    def counts(self, codebook_size: int) -> Tensor:
        """How many rows have each code: (K,) float32."""
        counts = self._rows.new_zeros(codebook_size)
        counts.index_add_(0, self._indices, counts.new_ones(()).expand(len(self._indices)))
        sum_over_processes(counts)
        return counts

    def sums(self, codebook_size: int) -> Tensor:
        """Sum of the rows of each code: (K, d)."""
        sums = self._rows.new_zeros(codebook_size, self._rows.shape[1]).index_add_(0, self._indices, self._rows)
        sum_over_processes(sums)
        return sums


def k_means_places(latents: StepLatents, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Places of the first codes: (n, d) centres of the latents, n = min(K, latents), and how many are nearest to each.

    The same in every process.
    """
    seen, most = len(latents), _LATENTS_PER_CODE * codebook_size
    chosen = np.arange(seen) if seen <= most else stream(0, "k-means latents", 0).permutation(seen)[:most]
    found = kmeans(latents.rows(chosen), min(codebook_size, seen), start="random")
    centres, counts = found.centres, found.counts * (seen / len(chosen))
    if many():  # all have computed the same, on hardware that may not be
        dist.broadcast(centres, 0)
        dist.broadcast(counts, 0)
    return centres, counts


class LearnsFromLatents:
    """Part of a quantizer whose codes start, and perhaps go on, from latents; the class stands before `Quantizer`.

    A subclass calls `_keep_latents` when it is made and `_note` in its forward pass, and implements `_place`, and
    `_follow` where it goes on to learn from them.
    """

    def _keep_latents(self, kmeans: bool) -> None:
        """Whether codes get their first places by k-means: after the first step that is taken."""
        if kmeans:
            self.register_buffer("initialized", torch.zeros((), dtype=torch.int64))
        self._is_initialized: bool | None = None if kmeans else True  # what the buffer says, not to wait for a GPU
        self._seen: list[tuple[Tensor, Tensor]] = []  # rows and indices of the step's micro-batches

    @torch.compiler.disable
    def _note(self, rows: Tensor, indices: Tensor) -> None:
        """Keep the rows (M, d) of a micro-batch of training, without gradient, and their codes (M,)."""
        if not rows.is_meta and self._learns_from_latents():
            self._seen.append((rows, indices))

    def _learns_from_latents(self) -> bool:
        return not self._is_initialized

    @torch.no_grad()
    def after_step(self, step: int, skip: Tensor | float = 0.0) -> None:
        seen, self._seen = self._seen, []
        if not seen:
            return
        if self._is_initialized is None:
            self._is_initialized = bool(self.initialized)
        if self._is_initialized and self._learns_from_latents():
            self._follow(StepLatents(seen), step, torch.as_tensor(skip, device=seen[0][0].device) > 0)
        elif not self._is_initialized and not float(skip):
            self._place(StepLatents(seen))
            self.initialized.fill_(1)
            self._is_initialized = True

    def _place(self, latents: StepLatents) -> None:
        """Give the codes their first places, by the latents of one step."""
        raise NotImplementedError

    def _follow(self, latents: StepLatents, step: int, skip: Tensor) -> None:
        """Learn from the latents of a step; nothing where `skip`, a scalar on the device, is true."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Weights that bring a codebook without our records, as published ones do, count as initialised."""
        codebook = state_dict.get(f"{prefix}codebook")
        if codebook is not None:
            for name, value in self._records_of(codebook).items():
                state_dict.setdefault(f"{prefix}{name}", value)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if "initialized" in self._buffers:
            self._is_initialized = None

    def _records_of(self, codebook: Tensor) -> dict[str, Tensor]:
        """Records that go with a codebook of unknown history, by name."""
        own = {"initialized": codebook.new_ones((), dtype=torch.int64)}
        return {name: value for name, value in own.items() if name in self._buffers}
