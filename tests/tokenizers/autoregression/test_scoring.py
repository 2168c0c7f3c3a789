"""Scores are exact likelihoods, the same whatever else is in the list, and refuse what does not fit."""

import itertools
import math

import pytest
import torch

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.autoregression.scoring import Scorer, token_nats


def make(vocab_size=5, grid=(4, 6), start_token="learned", num_classes=0):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        gpt = GPT(vocab_size, grid, 24, 2, 2, start_token=start_token, num_classes=num_classes)
        for name, parameter in gpt.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5 if "head" in name else 0.3)
    return gpt.eval()


def palette(size=(4, 6), colours=5):
    tokenizer = PaletteTokenizer(size, colours)
    tokenizer.quantizer.codebook.copy_(torch.linspace(0, 255, colours)[:, None].expand(-1, 3))
    return tokenizer.eval()


def pixels(count, size=(4, 6)):
    return torch.from_numpy(stream(0, "test pixels", 0).integers(0, 256, (count, 3, *size), dtype="uint8"))


@pytest.mark.parametrize("start", ["learned", "class", "none"])
def test_exp_of_minus_scores_sums_to_one_over_all_grids(start):
    gpt = make(vocab_size=3, grid=(2, 2), start_token=start, num_classes=2 if start == "class" else 0)
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    labels = torch.ones(len(every), dtype=torch.int64) if start == "class" else None
    nats = token_nats(gpt, every, labels, batch_size=81)
    assert nats.shape == (81, 2, 2) and nats.dtype == torch.float64
    total = float(torch.exp(-nats.flatten(1).nansum(dim=1)).sum())
    if start == "none":  # given each of the three first tokens, the others are a distribution
        assert torch.isnan(nats[:, 0, 0]).all() and torch.isnan(nats).sum() == 81
        assert total == pytest.approx(3, abs=1e-5)
    else:
        assert not torch.isnan(nats).any() and total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("start", ["learned", "none"])
def test_each_token_against_its_own_softmax(start):
    """A loop over positions, each seeing only what lies before it."""
    gpt, grid = make(start_token=start), torch.from_numpy(stream(0, "test tokens", 0).integers(0, 5, (1, 4, 6)))
    flat, made = grid.flatten().tolist(), token_nats(gpt, grid).flatten().tolist()
    for i, token in enumerate(flat):
        if i == 0 and start == "none":
            assert math.isnan(made[0])
            continue
        with torch.no_grad():
            logits = gpt(torch.tensor([flat[:i]], dtype=torch.int64))[0, -1].double()
        assert made[i] == pytest.approx(float(logits.logsumexp(0) - logits[token]), abs=1e-4)


def test_a_score_is_the_float64_sum_of_its_map():
    scorer = Scorer(make(), palette())
    images = pixels(3)
    maps, scores = scorer.surprise(images), scorer.score(images)
    assert scores.dtype == torch.float64 and scores.shape == (3,) and scorer.omitted is None
    for one, score in zip(maps, scores):
        assert float(score) == pytest.approx(math.fsum(one.flatten().tolist()), rel=1e-14)


def test_scores_are_bit_for_bit_the_same_whatever_the_list(monkeypatch):
    scorer, images, passed = Scorer(make(), palette()), pixels(7), []
    for owner, name in ((PaletteTokenizer, "encode"), (GPT, "nats")):
        whole = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda self, x, *rest, whole=whole: passed.append(len(x)) or whole(self, x, *rest)
        )
    together = scorer.score(images)
    assert passed == [1] * 14  # a tokenizer's products round by the batch, too
    for order in ([3], [6, 3], [5, 1, 3, 0, 2, 4, 6, 3, 3]):
        assert torch.equal(scorer.score(images[order]), together[order])
    other = Scorer(make(), palette(), batch_size=4).score(images)
    torch.testing.assert_close(other, together, rtol=1e-5, atol=1e-5)
    assert together.unique().numel() == 7


def test_classes_change_the_score():
    scorer, images = Scorer(make(start_token="class", num_classes=2), palette()), pixels(2)
    first, second = (scorer.score(images, torch.full((2,), label)) for label in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(scorer.score(images, torch.tensor([1, 0])), torch.stack([second[0], first[1]]))


def test_what_a_model_without_a_start_token_leaves_out_is_said():
    scorer = Scorer(make(start_token="none"), palette())
    assert scorer.scored_tokens == 23 and "cover 23 of 24 tokens, not the first" in scorer.omitted
    images = pixels(2)
    maps = scorer.surprise(images)
    assert torch.isnan(maps[:, 0, 0]).all() and torch.isfinite(scorer.score(images)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Scorer(make(), palette((6, 4))), "grids of 6 x 4, where the model has 4 x 6"),
        (lambda: Scorer(make(), palette(colours=9)), "a vocabulary of 9, where the model has 5"),
        (lambda: Scorer(make(), palette()).score(pixels(1, (4, 7))), "pixels of 3 x 4 x 7 do not fit"),
        (lambda: Scorer(make(), palette()).score(pixels(2), torch.tensor([0, 0])), "not conditioned on a class"),
        (lambda: token_nats(make(), torch.zeros(1, 4, 5, dtype=torch.int64)), "tokens of 4 x 5 do not fit"),
        (lambda: token_nats(make(), torch.full((1, 4, 6), 5)), "token 5 is outside the vocabulary of 5"),
        (lambda: token_nats(make(start_token="class", num_classes=2), torch.zeros(1, 4, 6).long()), "no label given"),
        (
            lambda: token_nats(
                make(start_token="class", num_classes=2), torch.zeros(1, 4, 6).long(), torch.tensor([2])
            ),
            "label 2 is none of the 2 classes",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
