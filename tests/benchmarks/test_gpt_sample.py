"""The two sides of the sampling benchmark draw the same tokens, step by step and as a whole; no test asserts a time."""

import pytest
import torch

from headcam.tokenizers.autoregression.sampling import sample


@pytest.fixture
def bench():
    import gpt_sample as module

    return module


def test_both_sides_do_the_same_work(bench):
    gpt = bench.model((3, 4), vocab_size=200, embed_dim=24, depth=2)
    tokens = sample(gpt, 1, settings=bench._SETTINGS).flatten(1)
    assert torch.equal(bench.uncached_loop(gpt), tokens) and tokens.unique().numel() > 3
    steps = bench.Steps(gpt, tokens, range(1, 12, 2))
    assert steps.cached() == steps.uncached() == steps.cached() == tokens[0, 1::2].tolist()
