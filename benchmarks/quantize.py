"""The nearest of 1,024 codes for 4,096 vectors of 64 numbers, with the figures of use: ours beside the VQ-VAE form.

That form is what most code bases have kept since van den Oord et al. (2017): the whole matrix of squared distances, its
argmin, a one-hot matrix by scatter, the codes as one-hot times codebook, and use and perplexity from the one-hot
matrix's means. Ours goes through the rows in pieces that stay in cache, looks codes up and counts indices.

`quantize`: against that form. `quantize_cdist`: beside it, with no bar but to be no slower, against torch.cdist and
argmin, with the same lookup and the same counting as ours.
"""

from collections.abc import Callable

import torch
from harness import Bench, Fidelity, Measured, main
from torch import Tensor

from headcam.randomness import stream
from headcam.tokenizers.quantizers.nearest import nearest_code

_ROWS, _CODES, _DIM = 4096, 1024, 64
Outcome = tuple[Tensor, Tensor, Tensor]  # indices (M,), quantized (M, D), perplexity


def inputs() -> tuple[Tensor, Tensor]:
    """Vectors (M, D) and codebook (K, D), both standard normal."""
    rng = stream(0, "benchmark quantize", 0)
    return tuple(torch.from_numpy(rng.standard_normal((n, _DIM), dtype="float32")) for n in (_ROWS, _CODES))


def _by_index(indices: Tensor, codebook: Tensor) -> Outcome:
    share = torch.bincount(indices, minlength=len(codebook)) / len(indices)
    return indices, codebook[indices], torch.special.entr(share).sum().exp()


def ours(rows: Tensor, codebook: Tensor) -> Outcome:
    """The library's."""
    return _by_index(nearest_code(rows, codebook), codebook)


def by_cdist(rows: Tensor, codebook: Tensor) -> Outcome:
    """Distances by torch.cdist, the rest as ours."""
    return _by_index(torch.cdist(rows, codebook).argmin(1), codebook)


def one_hot(rows: Tensor, codebook: Tensor) -> Outcome:
    """The VQ-VAE form."""
    distances = rows.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * rows @ codebook.t()
    indices = distances.argmin(1)
    encodings = torch.zeros(len(rows), len(codebook)).scatter_(1, indices[:, None], 1)
    share = encodings.mean(0)
    return indices, encodings @ codebook, torch.exp(-torch.sum(share * torch.log(share + 1e-10)))


def compare(bench: Bench, peer: Callable[[Tensor, Tensor], Outcome], bar: float) -> Measured:
    """Time ours and a peer on the same vectors."""
    rows, codebook = inputs()
    with torch.no_grad():
        mine, theirs = ours(rows, codebook), peer(rows, codebook)
        return bench.compare(
            lambda: ours(rows, codebook),
            lambda: peer(rows, codebook),
            bar=bar,
            items=1,
            unit=f"{_ROWS} x {_DIM} to {_CODES} codes",
            fidelity={
                "equal indices": Fidelity(float((mine[0] == theirs[0]).double().mean()), "of all", least=0.9999),
                "difference of codes": Fidelity(
                    float((mine[1] - theirs[1])[mine[0] == theirs[0]].abs().max()), "", most=1e-5
                ),
                "difference of perplexity": Fidelity(abs(float(mine[2] / theirs[2]) - 1), "", most=1e-3),
            },
        )


def quantize(bench: Bench) -> Measured:
    """Against the one-hot form."""
    return compare(bench, one_hot, bar=3.0)


def quantize_cdist(bench: Bench) -> Measured:
    """Against torch.cdist; the bar says only that ours is no slower."""
    return compare(bench, by_cdist, bar=1.0)


if __name__ == "__main__":
    main("quantize", {"quantize": quantize, "quantize_cdist": quantize_cdist})
