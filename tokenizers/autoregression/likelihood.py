"""From hidden states to -ln p of each token, without ever holding the scores of all tokens.

The last layer of a GPT gives K scores at every position. For 1,024 tokens and K = 16,384 those are 67 MB a sample in
float32, several times over (scores, their softmax, its gradient), more than all that the blocks keep. Here positions go
through it in chunks of about two million scores (8 MB) a sample. In training the gradient of a chunk is formed at once
beside its loss and its scores are let go: no product is done twice, and what is kept for backward is one gradient of
the hidden states and one of the last layer's weights (Hsu et al. 2024, "Liger Kernel", arXiv 2410.10989, section 3.2;
Wijmans et al. 2024, "Cut your losses in large-vocabulary language models", arXiv 2411.09009, go further by a kernel).

Chunks are cut over positions, not over the batch: their number depends on the model alone, memory is linear in the
batch, and so `headcam.ssl.planning` can tell it.

Shapes: B batch, P positions, D width, K tokens of the vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_SCORES = 1 << 21  # of a sample in a chunk


def nats_of(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-ln p of each token.

    Args:
        hidden: (B, P, D), after the final norm.
        weight: (K, D) of the last layer.
        targets: (B, P) integers in [0, K).
    Returns:
        (B, P), float32 or better; its gradient computes the scores again.
    """
    parts = []
    for chunk in _chunks(hidden, weight, targets):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_nats, *chunk, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_nats(*chunk))
    return torch.cat(parts, dim=1)


def mean_nats(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean of `nats_of` over all tokens, a scalar, for training; arguments as there.

    Gradients with respect to `hidden` and `weight` are formed in forward, so that there is one derivative only.
    """
    if torch.is_grad_enabled():
        return _MeanNats.apply(hidden, weight, targets)
    return nats_of(hidden, weight, targets).mean()


def _chunks(hidden: Tensor, weight: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    positions = max(1, _SCORES // weight.shape[0])
    pairs = zip(hidden.split(positions, dim=1), targets.long().split(positions, dim=1))
    return [(states, weight, tokens) for states, tokens in pairs]


def _log_softmax(states: Tensor, weight: Tensor) -> tuple[Tensor, torch.dtype]:
    """(B, c, K) log-probabilities in float32 or better, and the precision that the scores were computed in."""
    scores = F.linear(states, weight)
    return torch.log_softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)), scores.dtype


def _nats(states: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    return -_log_softmax(states, weight)[0].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


class _MeanNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        losses, hidden_gradients = [], []
        weight_gradient = torch.zeros_like(weight)
        for states, _, tokens in _chunks(hidden, weight, targets):
            log_p, precision = _log_softmax(states, weight)
            index = tokens.unsqueeze(-1)
            losses.append(-log_p.gather(-1, index).sum())
            # d loss / d scores = p - one-hot. Divided by the number of tokens last: 16 bits would lose small numbers.
            gradient = log_p.exp_().scatter_add_(-1, index, -torch.ones_like(index, dtype=log_p.dtype)).to(precision)
            hidden_gradients.append((gradient @ weight).to(hidden.dtype))
            weight_gradient += gradient.flatten(0, 1).T @ states.flatten(0, 1)
            del log_p, gradient
        ctx.save_for_backward(torch.cat(hidden_gradients, dim=1), weight_gradient)
        ctx.count = targets.numel()
        return torch.stack(losses).sum() / ctx.count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        gradient = gradient / ctx.count
        return hidden_gradient * gradient, weight_gradient * gradient, None
