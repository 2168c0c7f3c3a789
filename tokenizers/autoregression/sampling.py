"""Drawing token grids from a GPT: one token after the other, with a cache of keys and values.

    prompt (n tokens) ──once──▶ cache ─┬─▶ sample 0 ─▶ x_n, x_n+1, ... x_N-1
                                       ├─▶ sample 1
                                       └─▶ ...           all samples of a batch advance together

The prompt of many samples is one prefix: it goes through the network once. Each further token costs one pass over one
position, whatever its number in the sequence (without the cache the whole sequence goes through again for every token).

Position i of sample k is drawn by the i-th number of `stream(seed, "sample token", k)`, through the inverse of the
cumulative distribution in float64. So what a sample is follows from the seed and its number alone, not from how many
are drawn with it; only the rounding of the logits may depend on the size of the batch, and where it moves a boundary
across the number drawn (about once in a million tokens in float32) the sample goes another way from there on.

Shapes: B batch, K vocabulary, N tokens of a grid.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.progress import Progress
from headcam.randomness import stream
from headcam.tokenizers.autoregression.gpt import GPT


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from what the model predicts.

    The two ways to cut off unlikely tokens are independent: each looks at the whole distribution (after the
    temperature), may be given without the other, and with both a token has to be left by both. Tokens that are exactly
    as likely as the last one that is kept are kept too.

    Attributes:
        temperature: that logits are divided by; 0 takes the most likely token, whatever else is set.
        top_k: only the k most likely tokens.
        top_p: only the fewest tokens that together have a probability of at least p (Holtzman et al. 2020).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}", "give a number from 0 (most likely token) on")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}", "give at least 1, or leave it out to draw from all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}", "give a probability above 0 and up to 1, or leave it out")


def sample(
    gpt: GPT,
    num: int,
    *,
    prompt: Tensor | None = None,
    label: int | None = None,
    settings: Sampling = Sampling(),
    seed: int = 0,
    batch_size: int = 16,
    first: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Draw `num` grids of tokens that begin with `prompt`.

    The first token of a model without a start token was never trained: where no prompt gives it, it is drawn uniformly
    from the vocabulary.

    Args:
        gpt: in eval mode, on the device that is to be used.
        num: number of samples, at least 1.
        prompt: (n,) int64, the first n tokens in the order of the grid, n up to N; None: nothing is given.
        label: class of models with a class token, which need one.
        settings: see `Sampling`.
        seed: of all draws.
        batch_size: samples that advance together; changes speed and memory, not the draws.
        first: number of the first sample; samples of several prompts get numbers, and so draws, of their own by it.
        progress: advanced by one for each token drawn.
    Returns:
        (num, *grid) int64 on the CPU; the first n tokens are those of the prompt.
    Raises:
        InputError: a prompt that is longer than the context or holds a token outside the vocabulary, a label that is
            missing or that the model does not take, no samples.
    """
    given = torch.empty(0, dtype=torch.int64) if prompt is None else prompt.flatten().long()
    weight = gpt.tok_embed.weight
    labels = None if label is None else torch.tensor([label], device=weight.device)
    if num < 1 or batch_size < 1:
        raise InputError(f"{num} samples, {batch_size} at a time, cannot be drawn", "give at least 1 of both")
    gpt.check(given[None], labels)
    tokens = torch.empty(num, gpt.num_tokens, dtype=torch.int64)
    tokens[:, : len(given)] = given.cpu()
    if len(given) == gpt.num_tokens:
        return tokens.view(num, *gpt.grid)

    with torch.inference_mode():
        prefix = None
        if gpt.start != "none" or len(given):
            prefix = gpt.new_cache(1, weight.device, weight.dtype)
            ahead = gpt.advance(given.to(weight.device)[None], prefix, labels)  # (1, K), of position n
        for done in range(0, num, batch_size):
            batch = range(done, min(done + batch_size, num))
            uniforms = np.stack([stream(seed, "sample token", first + k).random(gpt.num_tokens) for k in batch])
            uniforms = torch.from_numpy(uniforms).to(weight.device, _wide(weight.device))  # (B, N)
            position = len(given)
            if prefix is None:
                cache = gpt.new_cache(len(batch), weight.device, weight.dtype)
                logits = torch.zeros(len(batch), gpt.vocab_size, device=weight.device)
                rule = Sampling()  # uniform, also where the most likely token is asked for: here none is
            else:
                cache, logits, rule = prefix.expand(len(batch)), ahead.expand(len(batch), -1), settings
            drawn = []
            while True:
                drawn.append(draw(logits, uniforms[:, position], rule))
                position, rule = position + 1, settings
                if progress is not None:
                    progress.advance(len(batch))
                if position == gpt.num_tokens:
                    break
                logits = gpt.advance(drawn[-1][:, None], cache)
            tokens[batch.start : batch.stop, len(given) :] = torch.stack(drawn, dim=1).cpu()
    return tokens.view(num, *gpt.grid)


def draw(logits: Tensor, uniform: Tensor, settings: Sampling) -> Tensor:
    """One token for each row: (B, K) logits and (B,) numbers in [0, 1) -> (B,) int64."""
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = probabilities(logits, settings).cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Below the total also where the product rounds up to it: beyond there is no token.
    point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True).squeeze(-1)  # the first whose sum lies above the point


def probabilities(logits: Tensor, settings: Sampling) -> Tensor:
    """What `settings` (of a temperature above 0) make of logits: (B, K) -> (B, K) float64 that add up to 1."""
    logits = logits.to(_wide(logits.device)) / settings.temperature
    whole = torch.softmax(logits, dim=-1)
    kept = torch.ones_like(whole, dtype=torch.bool)
    if settings.top_k is not None and settings.top_k < whole.shape[-1]:
        kept &= whole >= whole.topk(settings.top_k).values[:, -1:]
    if settings.top_p is not None and settings.top_p < 1:
        falling = whole.sort(dim=-1, descending=True).values
        before = falling.cumsum(dim=-1) - falling  # probability of all that are more likely
        last = (before < settings.top_p).sum(dim=-1, keepdim=True) - 1
        kept &= whole >= falling.gather(-1, last)
    left = torch.where(kept, whole, 0.0)
    return left / left.sum(dim=-1, keepdim=True)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
