"""What a set of continuations of one item has in common, and with the truth: over what was not given only.

Shapes: S samples, N tokens in raster order, `units` rows of a picture or slots of a clip that are given, of `total`.
Pixels are (S, 3, H, W) or (S, 3, T, H, W) uint8; differences of pixels are root mean squares in grey levels of 255.
"""

import itertools

import torch
from torch import Tensor, nn

from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.fidelity.pictures import frames_of, perceptual

_POSITIONS_AT_ONCE = 512  # rows of logits, each as wide as the vocabulary


@torch.inference_mode()
def predictions(gpt: GPT, tokens: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the model says of each token, given those before it.

    The mean entropy along sampled tokens is an unbiased estimate of the entropy of the model's continuation, with less
    noise than the mean of -ln p of the tokens themselves (which has the same expectation at temperature 1).

    Args:
        tokens: (S, N) int64, on the model's device.
        labels: (1,) of a model with classes.
    Returns:
        -ln p of each token that the model predicts, and the entropy of that prediction: (S, P) float64 each, in nats,
        on the CPU; P is N, or N - 1 for a model without a start token.
    """
    nats, entropy = [], []
    for sequence in tokens:  # one at a time: logits of all would be as large as S x N x vocabulary
        hidden = gpt.features(sequence[None], gpt.depth, labels)[0]  # (P, D)
        wanted = sequence[-len(hidden) :]
        of_sequence = [
            _scores(gpt, part, of)
            for part, of in zip(hidden.split(_POSITIONS_AT_ONCE), wanted.split(_POSITIONS_AT_ONCE))
        ]
        nats.append(torch.cat([pair[0] for pair in of_sequence]))
        entropy.append(torch.cat([pair[1] for pair in of_sequence]))
    return torch.stack(nats).double().cpu(), torch.stack(entropy).double().cpu()


def _scores(gpt: GPT, hidden: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    log_p = gpt.head(hidden).float().log_softmax(dim=-1)
    return -log_p.gather(1, wanted[:, None])[:, 0], -(log_p.exp() * log_p).sum(dim=-1)


def diversity(
    tokens: Tensor, pixels: Tensor, units: int, total: int, lpips: nn.Module | None = None, device: str = "cpu"
) -> dict[str, float]:
    """How much samples differ from each other, as means over pairs.

    Args:
        tokens: (S, N); S at least 2.
    Returns:
        `diversity_tokens`: share of the tokens that differ; `diversity_pixels`; with a network `diversity_lpips`, over
        pairs of neighbours in the list, whole pictures (of clips the frames that were not given).
    """
    left = tokens[:, tokens.shape[1] * units // total :]
    made = _made(pixels, units, total).flatten(1).float()
    pairs = torch.tensor(list(itertools.combinations(range(len(tokens)), 2)))
    a, b = pairs.unbind(dim=1)
    found = {
        "diversity_tokens": float((left[a] != left[b]).double().mean()),
        "diversity_pixels": sum(float(_distance(made[i], made[j])) for i, j in pairs.tolist()) / len(pairs),
    }
    if lpips is not None:
        shown = _shown(pixels, units, total)
        found["diversity_lpips"] = _perceptual(lpips, shown, shown.roll(1, dims=0), device)
    return found


def closeness(
    truth: Tensor,
    tokens: Tensor,
    pixels: Tensor,
    units: int,
    total: int,
    lpips: nn.Module | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """How close samples are to the true continuation, as means over samples.

    Args:
        truth: (N,).
        tokens: (S, N).
        pixels: (1 + S, 3, ...), the truth first.
    Returns:
        `accuracy`: share of the tokens that are the true ones; `error_pixels`; with a network `error_lpips`.
    """
    first = len(truth) * units // total
    made = _made(pixels, units, total).flatten(1).float()
    found = {
        "accuracy": float((tokens[:, first:] == truth[first:]).double().mean()),
        "error_pixels": float(torch.stack([_distance(one, made[0]) for one in made[1:]]).mean()),
    }
    if lpips is not None:
        shown = _shown(pixels, units, total)
        found["error_lpips"] = _perceptual(lpips, shown[1:], shown[:1].expand_as(shown[1:]), device)
    return found


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean().sqrt()


def _made(pixels: Tensor, units: int, total: int) -> Tensor:
    """The pixels that belong to tokens that were not given: lower rows of pictures, later frames of clips."""
    return pixels[:, :, pixels.shape[2] * units // total :]


def _shown(pixels: Tensor, units: int, total: int) -> Tensor:
    """What a perceptual distance is taken of: strips of pictures can be too low for its network."""
    return pixels if pixels.ndim == 4 else _made(pixels, units, total)


def _perceptual(network: nn.Module, a: Tensor, b: Tensor, device: str) -> float:
    return float(perceptual(network, frames_of(a).to(device), frames_of(b).to(device)).mean())
