"""Keyed, counter-based random numbers: draw number i costs the same whether or not draws 0..i-1 were made.

Every random choice of headcam comes from a stream that is named by a seed and a purpose ("crop", "mask", ...) and
stepped to by a counter (the index of the sample). So a choice depends on nothing else: not on the number of workers
or processes, not on the order of calls, not on other choices. The generator is Philox 4x64 (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3").
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

_MASK = (1 << 64) - 1
_ROUNDS = 6  # of the Feistel network; four suffice for pseudo-randomness (Luby and Rackoff 1988), two more for margin


@lru_cache(maxsize=256)
def _key(seed: int, purpose: str) -> tuple[int, int]:
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def stream(seed: int, purpose: str, counter: int) -> np.random.Generator:
    """The random generator of draw number `counter` (0 <= counter < 2**64) for `purpose` under `seed`."""
    # The lowest word of Philox's counter moves as numbers are drawn; ours sits above it, so streams never overlap.
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=[0, counter & _MASK, 0, 0]))


def permuted(positions: np.ndarray, n: int, seed: int, purpose: str) -> np.ndarray:
    """Entries `positions` of a keyed permutation of 0..n-1, without building the permutation.

    A balanced Feistel network over the smallest even number of bits that holds n, walked in cycles until the value
    falls below n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 3). Exact 64-bit integer
    arithmetic: the same on every machine.

    Args:
        positions: integers in [0, n), any shape.
        n: size of the permuted set, at least 1, below 2**62.
    Returns:
        int64 array of the shape of `positions`; over all positions each of 0..n-1 occurs once.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if n < 1 or (positions.size and (positions.min() < 0 or positions.max() >= n)):
        raise ValueError(f"positions must lie in [0, {n}), got {positions.min()}..{positions.max()}")
    half = max(1, (int(n - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    round_keys = stream(seed, f"permutation:{purpose}", 0).integers(0, 1 << 64, size=_ROUNDS, dtype=np.uint64)

    value = positions.astype(np.uint64).ravel()
    pending = np.arange(value.size)
    while pending.size:
        left, right = value[pending] >> shift, value[pending] & low
        for key in round_keys:
            left, right = right, left ^ (_mix(right ^ key) & low)
        value[pending] = (left << shift) | right
        pending = pending[value[pending] >= n]
    return value.astype(np.int64).reshape(positions.shape)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(columns: Sequence[np.ndarray], seed: int, purpose: str) -> np.ndarray:
    """A keyed pseudo-random number for each row of some integer columns: equal rows get equal numbers, wherever.

    Args:
        columns: at least one array (n,) of integers of at most 64 bits.
    Returns:
        (n,) uint64, uniform over all 64-bit numbers.
    """
    start, end = (np.uint64(word) for word in _key(seed, f"hash:{purpose}"))
    value = np.full(len(columns[0]), start)
    for column in columns:
        value = _mix(value ^ column.astype(np.uint64)) ^ start
    return _mix(value ^ end)
