"""Which training items a sample looks like: nearest neighbours among all items of a token store, at low resolution.

Every training item is decoded once and kept as one mean colour for each token's cell (`Thumbnails`, bytes for each
item: three times its tokens). A sample is compared over the cells that it had to fill in, by the root mean square
difference of colours in grey levels of 255: crude, but the same for pixels of any kind, and quick over all items.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headcam.files import atomic_file, sha256_json
from headcam.progress import Progress
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer
from headcam.tokenizers.fidelity.pictures import cell_colours
from headcam.tokenizers.token_store import TokenStore

_DECODED_AT_ONCE = 16
_COMPARED_AT_ONCE = 4096  # training items


def thumbnails(store: TokenStore, tokenizer: Tokenizer, folder: Path, quiet: bool = False) -> np.ndarray:
    """Mean colours of every item of a store, decoded here or read from where they were written before.

    Args:
        store: n items.
        tokenizer: on the device that is to be used.
        folder: for the file, whose name says what it was made of.
    Returns:
        (n, N, 3) uint8, memory-mapped; N tokens in raster order.
    """
    key = sha256_json({"tokenizer": store.tokenizer_hash, "store": store.metadata})[:16]
    path = folder / f"{key}.npy"
    if not path.is_file():
        colours = np.empty((len(store), int(np.prod(store.grid)), 3), np.uint8)
        with Progress("training items", len(store), "items", quiet) as progress:
            for first in range(0, len(store), _DECODED_AT_ONCE):
                rows = range(first, min(first + _DECODED_AT_ONCE, len(store)))
                tokens = torch.from_numpy(np.stack([store.tokens(i) for i in rows])).long()
                colours[rows.start : rows.stop] = cell_colours(decoded(tokenizer, tokens), store.grid).byte().numpy()
                progress.advance(len(rows))
        with atomic_file(path) as file:
            np.save(file, colours)
    return np.load(path, mmap_mode="r")


def decoded(tokenizer: Tokenizer, tokens: Tensor) -> Tensor:
    """int64 (B, *grid) -> uint8 (B, 3, ...) on the CPU, some at a time."""
    device = next(tokenizer.buffers(), next(tokenizer.parameters(), tokens)).device
    parts = tokens.split(_DECODED_AT_ONCE)
    return torch.cat([tokenizer.decode(part.to(device)).cpu() for part in parts])


def nearest(colours: Tensor, among: np.ndarray, first: int, without: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """The nearest of many items, over cells `first` and up.

    Args:
        colours: (B, N, 3) of what is looked for.
        among: (n, N, 3) uint8.
        without: (n,) bool, items that are passed over.
    Returns:
        (B,) root mean square difference of colours, in grey levels, and (B,) int64 which item; the first of equals.
    """
    wanted = colours[:, first:].flatten(1).float()
    best = torch.full((len(wanted),), torch.inf)
    which = torch.zeros(len(wanted), dtype=torch.int64)
    for start in range(0, len(among), _COMPARED_AT_ONCE):
        part = torch.from_numpy(np.array(among[start : start + _COMPARED_AT_ONCE, first:])).flatten(1).float()
        distance = torch.cdist(wanted, part, compute_mode="donot_use_mm_for_euclid_dist")  # exact: equal items are at 0
        if without is not None:
            distance[:, torch.from_numpy(without[start : start + _COMPARED_AT_ONCE])] = torch.inf
        least, index = distance.min(dim=1)
        better = least < best
        best, which = torch.where(better, least, best), torch.where(better, index + start, which)
    return best / wanted.shape[1] ** 0.5, which
