"""How fast this machine multiplies matrices: what the speed of a probe is a share of."""

import time
from functools import lru_cache

import torch

_SIDE = 1536  # of square matrices; larger ones are no faster on a CPU
_SECONDS = 0.3


@lru_cache
def matmul_peak(device: str = "cpu") -> float:
    """Floating-point operations a second of float32 matrix products, the best of some tries; measured once.

    Args:
        device: as torch names it; on the CPU with as many threads as torch has now.
    """
    side = 8192 if torch.device(device).type == "cuda" else _SIDE
    a = torch.ones(side, side, device=device)
    b, out = torch.ones_like(a), torch.empty_like(a)
    torch.mm(a, b, out=out)  # the first call sets the library up
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end or best == float("inf"):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
