"""Usage, perplexity, dead codes, and the alarm's line."""

import math

import pytest
import torch

from headcam.tokenizers.quantizers.usage import CodeCounts, collapse_line


def test_figures_of_known_tokens():
    counts = CodeCounts(8)
    assert counts.figures() == {"usage": 0.0, "perplexity": 0.0, "dead": 8.0}
    counts.add(torch.tensor([[0, 0], [1, 2]]))
    counts.add(torch.tensor([0, 0]))
    figures = counts.figures()
    entropy = -(4 / 6 * math.log(4 / 6) + 2 * 1 / 6 * math.log(1 / 6))
    assert counts.tokens == 6 and counts.counts.tolist() == [4, 1, 1, 0, 0, 0, 0, 0]
    assert figures == {"usage": 3 / 8, "perplexity": pytest.approx(math.exp(entropy)), "dead": 5.0}


def test_even_use_has_the_perplexity_of_its_codes():
    counts = CodeCounts(1000)
    counts.add(torch.arange(1000).repeat(3))
    assert counts.figures() == {"usage": 1.0, "perplexity": pytest.approx(1000), "dead": 0.0}


def test_a_collapse_is_told_in_one_line_with_its_remedy():
    line = collapse_line({"usage": 12 / 1024, "perplexity": 7.31, "dead": 1012}, 1024, 50_000)
    assert line.startswith("12 of 1024 codes in use by 50000 tokens, perplexity 7.3") and "\n" not in line
    assert "model.quantizer=fsq" in line
    assert collapse_line({"usage": 0.9, "perplexity": 20.0, "dead": 102}, 1024, 50_000)  # many, but hardly
    assert collapse_line({"usage": 0.97, "perplexity": 500.0, "dead": 30}, 1024, 50_000) is None


def test_few_tokens_are_no_collapse():
    counts = CodeCounts(8192)
    counts.add(torch.randperm(8192)[:64])
    assert collapse_line(counts.figures(), 8192, 64) is None
    assert collapse_line(CodeCounts(8192).figures(), 8192, 0) is None
    assert collapse_line({"usage": 2 / 8192, "perplexity": 1.9, "dead": 8190}, 8192, 64)
