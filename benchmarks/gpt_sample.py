"""Sampling 1,024 tokens from a GPT: with the cache of keys and values, beside the same loop without one.

6 blocks x 384 with 6 heads, vocabulary 1,024, grid 32 x 32, batch 1, top-k 100, one thread a side, float32. The peer is
the loop that image samplers without a cache run: the whole sequence so far goes through the network for every token.
Both draw by the same rule from the same random numbers, and the tokens have to be equal before anything is timed.

`sample`: a full run without a cache takes some minutes, so every 32nd of the 1,024 steps is timed, the middle one of
each 32, on both sides alike. The cost of a step changes smoothly with its position, so that the ratio of these sums is
that of the whole runs (the midpoint rule). With `--full` nothing is left out: whole samples by `sample` and by the
loop, which takes about a quarter of an hour, whatever `--seconds` says.
"""

import sys
from collections.abc import Iterable

import torch
from harness import Bench, Fidelity, Measured, main
from torch import Tensor

from headcam.randomness import stream
from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.autoregression.sampling import Sampling, draw, sample

_GRID = (32, 32)
_STRIDE = 32  # steps of which one is timed
_BAR = 15.0
_SETTINGS = Sampling(top_k=100)


def model(grid: tuple[int, int] = _GRID, vocab_size: int = 1024, embed_dim: int = 384, depth: int = 6) -> GPT:
    """The GPT of both sides, its predictions far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gpt = GPT(vocab_size, grid, embed_dim, depth, num_heads=6)
        torch.nn.init.normal_(gpt.head.weight, std=0.1)
    return gpt.eval()


def uniforms(gpt: GPT) -> Tensor:
    """The numbers that `sample` draws sample 0 of seed 0 by, (N,) float64."""
    return torch.from_numpy(stream(0, "sample token", 0).random(gpt.num_tokens))


@torch.inference_mode()
def uncached_step(gpt: GPT, before: Tensor, uniform: Tensor) -> Tensor:
    """The token after `before` (1, n), from a pass over all of it: (1,)."""
    return draw(gpt(before)[:, -1], uniform, _SETTINGS)


def uncached_loop(gpt: GPT) -> Tensor:
    """A whole sample without a cache, (1, N)."""
    tokens, numbers = torch.empty(1, 0, dtype=torch.int64), uniforms(gpt)
    for position in range(gpt.num_tokens):
        token = uncached_step(gpt, tokens, numbers[position : position + 1])
        tokens = torch.cat([tokens, token[:, None]], dim=1)
    return tokens


class Steps:
    """Single steps of one sample, cached and not, at positions of which all that comes before is known.

    Args:
        tokens: (1, N), the sample.
        positions: in [1, N).
    """

    def __init__(self, gpt: GPT, tokens: Tensor, positions: Iterable[int]):
        self.gpt, self.tokens, self.positions, self.numbers = gpt, tokens, list(positions), uniforms(gpt)
        with torch.inference_mode():
            self.cache = gpt.new_cache(1)
            gpt.advance(tokens[:, :-1], self.cache)

    @torch.inference_mode()
    def cached(self) -> list[int]:
        """The token at each position, from one pass over the token before it."""
        found = []
        for p in self.positions:
            self.cache.length = p  # the start token and the first p - 1 tokens
            logits = self.gpt.advance(self.tokens[:, p - 1 : p], self.cache)
            found.append(int(draw(logits, self.numbers[p : p + 1], _SETTINGS)))
        return found

    def uncached(self) -> list[int]:
        """The same from passes over all tokens before."""
        return [int(uncached_step(self.gpt, self.tokens[:, :p], self.numbers[p : p + 1])) for p in self.positions]


def sampling(bench: Bench) -> Measured:
    """A 1,024-token sample, all of its steps or one in 32."""
    gpt = model()
    tokens = sample(gpt, 1, settings=_SETTINGS).flatten(1)
    if "--full" in sys.argv:
        ours, peer, items = lambda: sample(gpt, 1, settings=_SETTINGS), lambda: uncached_loop(gpt), gpt.num_tokens
        equal = float((uncached_loop(gpt) == tokens).double().mean())
    else:
        steps = Steps(gpt, tokens, range(_STRIDE // 2, gpt.num_tokens, _STRIDE))
        ours, peer, items = steps.cached, steps.uncached, len(steps.positions)
        expected = tokens[0, steps.positions].tolist()
        both = [a == b == c for a, b, c in zip(steps.cached(), steps.uncached(), expected)]
        equal = sum(both) / len(both)
    return bench.compare(
        ours,
        peer,
        bar=_BAR,
        items=items,
        unit="token",
        fidelity={"share of equal tokens": Fidelity(equal, "", least=1)},
    )


if __name__ == "__main__":
    main("gpt_sample", {"sample": sampling}, threads=1)
