"""n-gram baselines against plain loops over counts, their normalisation, and what they may look at."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from headcam.errors import InputError
from headcam.tokenizers.ngrams import InterpolatedBigram, held_out_bits


def chain(n: int, length: int, vocab_size: int, seed: int, stay: float = 0.8) -> np.ndarray:
    """Samples in which a code is followed by its successor more often than not."""
    rng = np.random.default_rng(seed)
    out = rng.integers(0, vocab_size, (n, length))
    for k in range(1, length):
        out[:, k] = np.where(rng.random(n) < stay, (out[:, k - 1] + 1) % vocab_size, out[:, k])
    return out


def loop_nats(train: np.ndarray, held: np.ndarray, vocab_size: int, weight: float) -> tuple[float, float]:
    """The two models, by dictionaries and one token at a time."""
    codes, pairs, followed = Counter(), Counter(), Counter()
    for row in train.tolist():
        codes.update(row)
        for a, b in pairwise(row):
            pairs[a, b] += 1
            followed[a] += 1
    total = sum(codes.values())
    unigram = bigram = 0.0
    for row in held.tolist():
        for k, b in enumerate(row):
            alone = (codes[b] + 1) / (total + vocab_size)
            unigram -= math.log(alone)
            p = alone
            if k and followed[row[k - 1]]:
                a = row[k - 1]
                p = weight * pairs[a, b] / followed[a] + (1 - weight) * alone
            bigram -= math.log(p)
    return unigram, bigram


@pytest.mark.parametrize("weight", [0.0, 0.4, 0.9])
def test_probabilities_are_those_of_loops_over_counts(weight):
    train, held = chain(30, 12, 9, 0), chain(7, 12, 11, 1)  # held-out codes 9 and 10 were never seen
    model = InterpolatedBigram(train, 11)
    model.weight = weight
    assert model.nats(held) == pytest.approx(loop_nats(train, held, 11, weight), rel=1e-12)


def test_probabilities_sum_to_one_after_any_code():
    model = InterpolatedBigram(chain(20, 9, 6, 0), 8)
    model.weight = 0.7
    codes = np.arange(8)
    assert model.unigram(codes).sum() == pytest.approx(1, abs=1e-12)
    for a in codes:
        p = model.bigram(np.full(8, a), codes)
        assert p.sum() == pytest.approx(1, abs=1e-12) and p.min() > 0


def test_the_weight_is_the_best_of_a_grid_and_known_where_nothing_follows():
    train, other = chain(400, 20, 16, 0), chain(60, 20, 16, 1)
    model = InterpolatedBigram(train, 16)
    model.fit_weight(other)
    found = loop_nats(train, other, 16, model.weight)[1]
    assert all(found <= loop_nats(train, other, 16, w)[1] + 1e-6 for w in np.linspace(0, 0.99, 34))
    noise = np.random.default_rng(0).integers(0, 200, (400, 40))
    model = InterpolatedBigram(noise[:300], 200)
    model.fit_weight(noise[300:])
    assert model.weight < 0.1, "what came before says nothing"


def test_held_out_figures_use_all_training_tokens_and_a_weight_from_their_last_tenth():
    train, held = chain(100, 15, 12, 0), chain(20, 15, 12, 1)
    figures = held_out_bits([train[:64], train[64:]], iter([held[:3], held[3:]]), 12)
    tuning = InterpolatedBigram(train[:90], 12)
    tuning.fit_weight(train[90:])
    unigram, bigram = loop_nats(train, held, 12, tuning.weight)
    assert figures["unigram"] == pytest.approx(unigram / held.size, rel=1e-12)
    assert figures["bigram"] == pytest.approx(bigram / held.size, rel=1e-12)
    assert figures["bigram"] < 0.7 * figures["unigram"] < math.log(12)


def test_grids_are_read_row_by_row_and_successors_stay_within_a_sample():
    train = np.stack([np.arange(12).reshape(2, 2, 3)] * 50)
    figures = held_out_bits([train], [train[:2]], 12)
    flat = held_out_bits([train.reshape(50, 12)], [train[:2].reshape(2, 12)], 12)
    assert figures == flat
    # After 11 comes nothing: 0 is a first token, which its frequency alone predicts.
    assert figures["bigram"] == pytest.approx(-math.log(51 / 612) / 12, abs=1e-3)


def test_only_so_many_tokens_are_counted():
    train = chain(100, 10, 8, 0)
    assert held_out_bits([train], [train], 8, most_tokens=205) == held_out_bits([train[:20]], [train[:20]], 8)


@pytest.mark.parametrize("bad, telling", [([[0, 8]], "token 8 is outside"), ([[-1, 2]], "token -1 is outside")])
def test_tokens_outside_the_vocabulary_are_refused(bad, telling):
    with pytest.raises(InputError, match=telling):
        held_out_bits([np.array([[0, 1]])], [np.array(bad)], 8)
    with pytest.raises(InputError, match="no tokens"):
        held_out_bits([], [np.array([[0, 1]])], 8)


def test_one_sample_and_one_token_are_enough():
    assert held_out_bits([np.array([[3]])], [np.array([[3]])], 4) == pytest.approx(
        {"unigram": -math.log(2 / 5), "bigram": -math.log(2 / 5)}
    )
