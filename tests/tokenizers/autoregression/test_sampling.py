"""Sampling against loops without a cache, exact distributions of tiny models, and the rules that cut tokens off."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from headcam.errors import InputError
from headcam.progress import Progress
from headcam.randomness import stream
from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.autoregression.sampling import Sampling, probabilities, sample


def make(vocab_size=7, grid=(3, 4), start_token="learned", num_classes=0, positions="learned"):
    """A small GPT whose predictions are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        gpt = GPT(vocab_size, grid, 16, 2, 2, start_token=start_token, num_classes=num_classes, positions=positions)
        for name, parameter in gpt.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5 if "head" in name else 0.3)
    return gpt.eval()


def kept_tokens(logits: list[float], settings: Sampling) -> list[float]:
    """Probabilities after the rules, as a loop in Python's floats: the independent statement."""
    top = max(logits)
    weights = [math.exp((value - top) / settings.temperature) for value in logits]
    shares = [w / sum(weights) for w in weights]
    order = sorted(range(len(shares)), key=lambda i: -shares[i])
    by_k = set(order if settings.top_k is None else order[: settings.top_k])
    by_p, mass = set(), 0.0
    for i in order:
        if settings.top_p is not None and mass >= settings.top_p:
            break
        by_p.add(i)
        mass += shares[i]
    left = [share if i in by_k & by_p else 0.0 for i, share in enumerate(shares)]
    return [share / sum(left) for share in left]


def without_cache(gpt, prompt, number, seed, settings, label=None):
    """The loop that a reader would write first: all tokens through the network for each new one."""
    tokens, u = list(prompt), stream(seed, "sample token", number).random(gpt.num_tokens)
    labels = None if label is None else torch.tensor([label])
    while len(tokens) < gpt.num_tokens:
        with torch.no_grad():
            logits = gpt(torch.tensor([tokens], dtype=torch.int64), labels)[0, -1].tolist()
        if settings.temperature == 0:
            tokens.append(int(np.argmax(logits)))
            continue
        cumulative = list(itertools.accumulate(kept_tokens(logits, settings)))
        tokens.append(next(i for i, value in enumerate(cumulative) if value > u[len(tokens)] * cumulative[-1]))
    return tokens


@pytest.mark.parametrize("settings", [Sampling(), Sampling(0.7, 3), Sampling(1.3, None, 0.6), Sampling(1, 4, 0.8)])
@pytest.mark.parametrize(
    ("grid", "start", "prompt", "positions"),
    [
        ((3, 4), "learned", (), "learned"),
        ((3, 4), "learned", (5, 0, 6), "learned"),
        ((2, 2, 2), "class", (1,), "learned"),
        ((3, 4), "none", (2, 2), "learned"),
        ((3, 4), "learned", (4,), "rotary"),
    ],
)
def test_the_cache_changes_no_token(grid, start, prompt, positions, settings):
    gpt = make(grid=grid, start_token=start, num_classes=3 if start == "class" else 0, positions=positions)
    label = 2 if start == "class" else None
    given = torch.tensor(prompt, dtype=torch.int64)
    made = sample(gpt, 5, prompt=given, label=label, settings=settings, seed=8, batch_size=2)
    assert made.shape == (5, *grid) and made.dtype == torch.int64
    for k, tokens in enumerate(made.flatten(1).tolist()):
        assert tokens == without_cache(gpt, prompt, k, 8, settings, label)
    assert len({tuple(tokens) for tokens in made.flatten(1).tolist()}) > 1


def test_samples_do_not_depend_on_their_company():
    gpt = make()
    many = sample(gpt, 9, seed=4, batch_size=16)
    assert torch.equal(many, sample(gpt, 9, seed=4, batch_size=4))
    assert torch.equal(many[:2], sample(gpt, 2, seed=4, batch_size=1))
    assert not torch.equal(many, sample(gpt, 9, seed=5))


@pytest.mark.parametrize("start", ["learned", "class", "none"])
def test_frequencies_are_those_of_the_model(start):
    """Chi-square over all sequences of a tiny model whose exact distribution is known from its own nats."""
    gpt = make(vocab_size=3, grid=(1, 3), start_token=start, num_classes=2 if start == "class" else 0)
    label = 1 if start == "class" else None
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    with torch.no_grad():
        nats = gpt.nats(every, None if label is None else torch.full((27,), label)).double().sum(dim=1)
    exact = torch.exp(-nats) / (3 if start == "none" else 1)  # the first token of a model without a start: uniform
    assert float(exact.sum()) == pytest.approx(1, abs=1e-5)
    num = 4000
    made = sample(gpt, num, label=label, seed=1, batch_size=500).flatten(1)
    counts = torch.bincount(made @ torch.tensor([9, 3, 1]), minlength=27)
    expected = exact / exact.sum() * num
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3
    uniform = np.full(27, num / 27)
    assert stats.chisquare(counts.numpy(), uniform).pvalue < 1e-6  # the test can tell


@pytest.mark.parametrize("settings", [Sampling(0.5), Sampling(2.0, 4), Sampling(1, None, 0.5), Sampling(0.9, 6, 0.7)])
def test_rules_against_a_loop(settings):
    logits = torch.from_numpy(stream(0, "test logits", 0).normal(0, 2, (6, 11)))
    made = probabilities(logits, settings)
    expected = torch.tensor([kept_tokens(row, settings) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-15)
    assert (made == 0).any() or settings == Sampling(0.5)


def test_top_p_works_without_top_k_and_the_other_way_round():
    """In the original the one was nested in the other."""
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64))
    assert probabilities(logits, Sampling(top_p=0.6))[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert probabilities(logits, Sampling(top_k=3))[0].tolist() == pytest.approx(
        [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]
    )
    assert probabilities(logits, Sampling(top_p=1e-9))[0].tolist() == [1, 0, 0, 0]


def test_temperature_zero_is_greedy_whatever_the_seed():
    gpt = make()
    first, second = (sample(gpt, 2, settings=Sampling(0.0, 2), seed=seed) for seed in (1, 2))
    assert torch.equal(first, second) and torch.equal(first[0], first[1])
    assert first[0].flatten().tolist() == without_cache(gpt, (), 0, 0, Sampling(0.0))


def test_the_prompt_stays_and_goes_through_the_network_once(monkeypatch):
    gpt, prompt, passed = make(), torch.tensor([6, 5, 4, 3]), []
    advance = GPT.advance
    monkeypatch.setattr(GPT, "advance", lambda self, t, *rest: passed.append(tuple(t.shape)) or advance(self, t, *rest))
    with Progress("sampling", 7 * 8, "tokens", quiet=True) as progress:
        made = sample(gpt, 7, prompt=prompt, seed=2, batch_size=4, progress=progress)
    assert (made.flatten(1)[:, :4] == prompt).all()
    assert passed == [(1, 4)] + 7 * [(4, 1)] + 7 * [(3, 1)]
    assert progress.done == 7 * 8


def test_a_whole_prompt_leaves_nothing_to_draw():
    tokens = torch.arange(12) % 7
    assert torch.equal(sample(make(), 2, prompt=tokens).flatten(1), tokens.expand(2, -1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda gpt: sample(gpt, 1, prompt=torch.zeros(13)),
            "13 tokens are longer than the context of a model of 3 x 4, which takes 12",
        ),
        (lambda gpt: sample(gpt, 1, prompt=torch.tensor([7])), "token 7 is outside the vocabulary of 7"),
        (lambda gpt: sample(gpt, 1, prompt=torch.tensor([-1])), "token -1 is outside"),
        (lambda gpt: sample(gpt, 1, label=0), "labels given to a model that is not conditioned"),
        (
            lambda gpt: sample(make(start_token="class", num_classes=3), 1),
            "no label given to a model that is conditioned",
        ),
        (lambda gpt: sample(make(start_token="class", num_classes=3), 1, label=3), "label 3 is none of the 3"),
        (lambda gpt: sample(gpt, 0), "0 samples"),
        (lambda gpt: Sampling(temperature=-1), "temperature is -1"),
        (lambda gpt: Sampling(temperature=float("nan")), "temperature is nan"),
        (lambda gpt: Sampling(top_k=0), "top_k is 0"),
        (lambda gpt: Sampling(top_p=1.5), "top_p is 1.5"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call(make())
    assert "\n" not in str(caught.value)
