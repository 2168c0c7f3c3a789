"""The nearest code of each latent: the step in which a codebook's quantizers spend their time.

The squared distance |x - e|^2 = |x|^2 - 2 x.e + |e|^2 is smallest where |e|^2 / 2 - x.e is, which is one matrix product
with a bias. Rows go through it in pieces whose distances stay in the processor's cache, and what comes out are indices:
no matrix of distances and no one-hot matrix of all rows is ever kept.
"""

import torch
from torch import Tensor

_CACHED = 1 << 19  # distances of a piece on a CPU: 2 MiB
_ON_DEVICE = 1 << 26  # the same elsewhere, where small pieces would leave the device idle: 256 MiB


@torch.no_grad()
def nearest_code(rows: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code with the smallest Euclidean distance to each row; the first one of equals.

    Args:
        rows: (M, D) float32.
        codebook: (K, D) float32, on the same device.
    Returns:
        (M,) int64. On unit vectors, this is also the code of the largest cosine.
    """
    half_norms = 0.5 * codebook.square().sum(1)
    transposed = codebook.t()
    piece = max(1, (_CACHED if rows.device.type == "cpu" else _ON_DEVICE) // len(codebook))
    found = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    distances = rows.new_empty(min(piece, len(rows)), len(codebook))  # one for all pieces: fresh memory costs as much
    for start in range(0, len(rows), piece):
        part = rows[start : start + piece]
        torch.addmm(half_norms, part, transposed, alpha=-1, out=distances[: len(part)])
        torch.argmin(distances[: len(part)], 1, out=found[start : start + piece])
    return found
