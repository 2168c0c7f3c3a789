"""Keys and values of the positions that a GPT has seen: what lets it go on by one token at the cost of one token.

Memory is taken once, for the whole sequence, and written in place. Several samples that share a prompt are computed
from one: the prompt is advanced in a cache for a batch of one, and `expand` hands it to all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KVCache:
    """Filled by `GPT.advance`, made by `GPT.new_cache`.

    Attributes:
        keys_values: (depth, 2, B, heads, P, head_dim); the first `length` of the P positions are filled.
        length: positions seen so far, that of the start token included.
    """

    keys_values: Tensor
    length: int = 0

    @property
    def batch(self) -> int:
        """B."""
        return self.keys_values.shape[2]

    def layer(self, k: int) -> "LayerCache":
        """The part of block `k`."""
        return LayerCache(self.keys_values[k], self.length)

    def expand(self, num: int) -> "KVCache":
        """A cache for `num` samples that all have seen what the one sample of this cache has; this one stays as it is.

        Raises:
            ValueError: this cache holds more than one sample.
        """
        if self.batch != 1:
            raise ValueError(f"a prefix of one sample can be shared, this cache holds {self.batch}")
        depth, two, _, heads, P, head_dim = self.keys_values.shape
        out = self.keys_values.new_empty(depth, two, num, heads, P, head_dim)
        out[..., : self.length, :] = self.keys_values[..., : self.length, :]
        return KVCache(out, self.length)


@dataclass(frozen=True)
class LayerCache:
    """What one block has: `keys_values` (2, B, heads, P, head_dim), of which `length` positions are filled."""

    keys_values: Tensor
    length: int

    def append(self, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the next n positions, (2, B, heads, n, head_dim); returns all keys and all values up to them."""
        end = self.length + keys_values.shape[3]
        self.keys_values[:, :, :, self.length : end] = keys_values
        return self.keys_values[:, :, :, :end].unbind(0)


def empty_cache(
    depth: int, batch: int, heads: int, positions: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> KVCache:
    """A cache without a position, with memory for `positions`."""
    return KVCache(torch.empty(depth, 2, batch, heads, positions, head_dim, device=device, dtype=dtype))
