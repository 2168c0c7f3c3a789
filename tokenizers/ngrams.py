"""Baselines of a model of tokens: how well counts alone predict the next one.

A unigram model knows how often each code occurs, an interpolated bigram model also which code follows which (Jelinek
and Mercer 1980):

    p(b) = (c(b) + 1) / (C + K)                                      additive smoothing: no code has probability 0
    p(b | a) = w c(a, b) / c(a) + (1 - w) p(b)                       p(b) alone where a was never seen

The weight w is the one that predicts the last tenth of the *training* samples best from the others, after which all of
them are counted; held-out tokens have no say in it. Successors are those in the flattened order of the grid, within a
sample; its first token is predicted by p(b). A model of tokens that does not beat both has learned little.
"""

from collections.abc import Iterable

import numpy as np
from scipy.optimize import minimize_scalar

from headcam.errors import InputError

MOST_TOKENS = 20_000_000  # that are counted, so that memory stays below 1 GB

_TUNING = 10  # the last tenth of the training samples chooses the weight


class InterpolatedBigram:
    """Counts of some samples, and the probabilities that follow from them.

    Args:
        tokens: (n, N) integers in 0 .. vocab_size - 1, the samples.
        vocab_size: K.

    Attributes:
        weight: w of the module's formula, 0 until it is set.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int):
        self.vocab_size, self.weight = vocab_size, 0.0
        tokens = tokens.astype(np.int64)
        self._counts = np.bincount(tokens.ravel(), minlength=vocab_size)
        self._pairs, self._pair_counts = np.unique(_pairs(tokens, vocab_size), return_counts=True)
        self._followed = np.bincount(tokens[:, :-1].ravel(), minlength=vocab_size)  # c(a) of those with a successor

    def unigram(self, b: np.ndarray) -> np.ndarray:
        """p(b) of codes of any shape: float64."""
        return (self._counts[b] + 1) / (self._counts.sum() + self.vocab_size)

    def bigram(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """p(b | a) of two arrays of one shape: float64."""
        alone, share = self.unigram(b), self._share(a, b)
        return np.where(self._followed[a] > 0, self.weight * share + (1 - self.weight) * alone, alone)

    def fit_weight(self, tokens: np.ndarray) -> None:
        """Set `weight` to what predicts the samples `tokens` (n, N) best."""
        pairs, counts = np.unique(_pairs(tokens.astype(np.int64), self.vocab_size), return_counts=True)
        a, b = np.divmod(pairs, self.vocab_size)
        seen = self._followed[a] > 0
        alone, share, counts = self.unigram(b)[seen], self._share(a, b)[seen], counts[seen]
        if not len(counts):
            return

        def nats(weight: float) -> float:
            return -float(counts @ np.log(weight * share + (1 - weight) * alone))

        # Convex in the weight; never 1, which would give what was not seen no probability.
        self.weight = float(minimize_scalar(nats, bounds=(0, 1 - 1e-6), method="bounded").x)

    def nats(self, tokens: np.ndarray) -> tuple[float, float]:
        """Sum over all tokens of samples (n, N) of -ln p, by the unigram and by the bigram model."""
        tokens = tokens.astype(np.int64)
        counts = np.bincount(tokens.ravel(), minlength=self.vocab_size)
        codes = np.flatnonzero(counts)
        unigram = -float(counts[codes] @ np.log(self.unigram(codes)))
        first = -float(np.log(self.unigram(tokens[:, 0])).sum())
        pairs, counts = np.unique(_pairs(tokens, self.vocab_size), return_counts=True)
        return unigram, first - float(counts @ np.log(self.bigram(*np.divmod(pairs, self.vocab_size))))

    def _share(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """c(a, b) / c(a); 0 where a was never followed by anything."""
        pair = a * self.vocab_size + b
        at = np.minimum(self._pairs.searchsorted(pair), max(len(self._pairs) - 1, 0))
        found = self._pairs[at] == pair if len(self._pairs) else np.zeros(pair.shape, bool)
        counts = np.where(found, self._pair_counts[at], 0) if len(self._pairs) else np.zeros(pair.shape)
        return counts / np.maximum(self._followed[a], 1)


def held_out_bits(
    train: Iterable[np.ndarray], held: Iterable[np.ndarray], vocab_size: int, *, most_tokens: int = MOST_TOKENS
) -> dict[str, float]:
    """How well counts of training tokens predict held-out ones.

    Args:
        train, held: arrays (n, N) of tokens, such as batches; the first `most_tokens` of each are used.
        vocab_size: K.
    Returns:
        `unigram` and `bigram`: nats for each held-out token, the first of a sample included.
    Raises:
        InputError: no tokens, or one outside the vocabulary.
    """
    trained, held = _first(train, vocab_size, most_tokens), _first(held, vocab_size, most_tokens)
    border = len(trained) - max(1, len(trained) // _TUNING) if len(trained) > 1 else 1
    weight = 0.0
    if border < len(trained):
        tuning = InterpolatedBigram(trained[:border], vocab_size)
        tuning.fit_weight(trained[border:])
        weight = tuning.weight
    model = InterpolatedBigram(trained, vocab_size)
    model.weight = weight
    unigram, bigram = model.nats(held)
    return {"unigram": unigram / held.size, "bigram": bigram / held.size}


def _pairs(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Every code and its successor as one number, a * K + b."""
    return (tokens[:, :-1] * vocab_size + tokens[:, 1:]).ravel()


def _first(batches: Iterable[np.ndarray], vocab_size: int, most_tokens: int) -> np.ndarray:
    """(n, N) int32: the samples of the first batches, at most `most_tokens` tokens, at least one sample."""
    kept, room = [], most_tokens
    for batch in batches:
        batch = np.asarray(batch)
        batch = batch.reshape(len(batch), -1)
        rows = min(len(batch), max(room // batch.shape[1], 0 if kept else 1))
        if not rows:
            break
        kept.append(batch[:rows].astype(np.int32))
        room -= rows * batch.shape[1]
    if not kept:
        raise InputError("there are no tokens to count", "give a token store that holds some")
    tokens = np.concatenate(kept)
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        worst = int(tokens.max() if tokens.max() >= vocab_size else tokens.min())
        raise InputError(f"token {worst} is outside the vocabulary of {vocab_size}", "use tokens of one tokenizer")
    return tokens
