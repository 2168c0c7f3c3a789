"""A store of what was studied: every different picture once, or a fair sample of bounded size.

Learners that remember by keeping put vectors in here, embeddings or pixels, and compare tested pictures to them. A
picture that is studied again is not stored again. A bounded store keeps, of all different pictures that it was ever
shown, those with the smallest keyed numbers (a bottom-k sample; Cohen and Kaplan 2007, "Summarizing data using bottom-k
sketches"): each is as likely to be kept as any other, whatever the order of study and however often it came, and
nothing needs to be remembered of those that were left out.

Shapes: B pictures of a batch, n stored ones, D numbers of a vector.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.randomness import hashed
from headcam.recognition_memory.learners.learner import Bound
from headcam.recognition_memory.stimuli.variants import is_degraded


def picture_keys(pixels: Tensor) -> np.ndarray:
    """What tells pictures apart: uint8 (B, 3, H, W) -> (B,) uint64, the first 64 bits of the SHA-256 of each one."""
    digests = [hashlib.sha256(picture.tobytes()).digest() for picture in pixels.cpu().numpy()]
    return np.array([int.from_bytes(digest[:8], "little") for digest in digests], dtype=np.uint64)


class PictureStore:
    """Vectors of studied pictures, on the CPU.

    Args:
        capacity: at most as many are kept; None: all.

    Attributes:
        vectors: (n, D) in the order of study; (0, 0) before any. Replaced when pictures come, never changed in place.

    Raises:
        InputError: a capacity below 1.
    """

    def __init__(self, capacity: int | None):
        if capacity is not None and capacity < 1:
            raise InputError(f"capacity is {capacity}", "give a number of pictures from 1 on, or null for all")
        self.capacity = capacity
        self.begin(0, None)

    def begin(self, seed: int, num_pictures: int | None) -> None:
        """Empty the store.

        Args:
            seed: of the draw of what is kept.
            num_pictures: different pictures there are; None: not known.
        Raises:
            InputError: a capacity that bounds nothing.
        """
        if self.capacity is not None and num_pictures is not None and self.capacity >= num_pictures:
            raise InputError(
                f"capacity {self.capacity} holds all of the {num_pictures} pictures, studied and foils",
                "give one well below the number of studied pictures, or null for a store without bound",
            )
        self._seed = seed
        self._keys = np.empty(0, dtype=np.uint64)
        self.vectors = torch.empty(0, 0)

    def add(self, keys: np.ndarray, vectors: Tensor) -> None:
        """Keep the vectors (B, D) of the pictures `keys` (B,) that are new, as far as the capacity allows."""
        new = np.sort(np.unique(keys, return_index=True)[1])
        new = new[~np.isin(keys[new], self._keys)]
        added = vectors[torch.from_numpy(new)].cpu()
        self._keys = np.concatenate([self._keys, keys[new]])
        self.vectors = torch.cat([self.vectors, added]) if len(self.vectors) else added
        if self.capacity is not None and len(self._keys) > self.capacity:
            kept = np.sort(np.argsort(hashed([self._keys], self._seed, "kept in store"))[: self.capacity])
            self._keys, self.vectors = self._keys[kept], self.vectors[torch.from_numpy(kept)]

    def state(self) -> dict[str, Tensor]:
        """What `load` takes."""
        return {"keys": torch.from_numpy(self._keys.view(np.int64)), "vectors": self.vectors}

    def load(self, state: dict[str, Tensor]) -> None:
        self._keys = state["keys"].cpu().numpy().view(np.uint64)
        self.vectors = state["vectors"].cpu()


def bound_of_store(store: PictureStore, test: str) -> Bound:
    """What a learner with this store has to be labelled as in a test: a store of all finds equal pixels whatever it
    compares, so it is an upper bound wherever the studied picture is shown as it was."""
    return "upper bound" if store.capacity is None and not is_degraded(test) else ""
