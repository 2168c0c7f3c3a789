"""The order in which tables are read: every row once, every round a fair sample, one seed one order."""

import numpy as np
import pytest
import torch

from headcam.evaluation.heads.normalisation import Normalisation
from headcam.evaluation.heads.rows import ShuffledRows, evenly

N, CLASSES = 4000, 20


@pytest.fixture
def in_rounds(monkeypatch):
    monkeypatch.setattr("headcam.evaluation.heads.rows._ROUND", 2 * 900)  # five rounds
    monkeypatch.setattr("headcam.evaluation.heads.rows._CHUNK", 8)


def shuffled(rows, *, seed=0, batch_size=64, dtype=np.float32):
    """Batches whose first feature is the number of the row; rows lie class by class."""
    table = np.stack([np.arange(N), np.ones(N)], axis=1).astype(dtype)
    same = Normalisation(torch.zeros(2), torch.ones(2))
    return ShuffledRows(table, np.arange(N) * CLASSES // N, rows, same, batch_size=batch_size, seed=seed)


def order(batches, epoch=0):
    return np.concatenate([x[:, 0].numpy() for x, _ in batches.batches(epoch)]).astype(int)


@pytest.mark.parametrize("rows", [np.arange(N), np.flatnonzero(np.arange(N) % 5), np.array([3])], ids=len)
def test_every_row_comes_once_in_each_epoch(in_rounds, rows):
    data = shuffled(rows)
    first, second = order(data, 0), order(data, 1)
    assert np.array_equal(np.sort(first), rows) and np.array_equal(np.sort(second), rows)
    assert len(rows) == 1 or not np.array_equal(first, second)


def test_batches_are_alike_and_counted(in_rounds):
    data = shuffled(np.arange(N))
    sizes = [len(x) for x, _ in data.batches(3)]
    assert len(sizes) == data.steps and max(sizes) <= 64 and min(sizes) >= 60
    x, labels = next(data.batches(3))
    assert x.shape[1] == 3 and (x[:, 2] == 1).all()  # the column that the bias belongs to
    assert labels.tolist() == [int(row) * CLASSES // N for row in x[:, 0]]


def test_every_round_has_every_class_in_its_share(in_rounds):
    labels = order(shuffled(np.arange(N))) * CLASSES // N
    for part in np.split(labels, 5):
        counts = np.bincount(part, minlength=CLASSES)
        assert counts.min() >= 32 and counts.max() <= 48  # a fifth of 200, less or more a chunk


def test_batches_are_shuffled_within_a_round(in_rounds):
    _, labels = next(shuffled(np.arange(N)).batches(0))
    assert len(np.unique(labels)) > 15


def test_one_seed_one_order_whatever_the_type(in_rounds):
    first = order(shuffled(np.arange(N), seed=4))
    assert np.array_equal(order(shuffled(np.arange(N), seed=4, dtype=np.float64)), first)
    assert not np.array_equal(order(shuffled(np.arange(N), seed=5)), first)


def test_evenly():
    assert evenly(10, 4).tolist() == [0, 2, 5, 7, 10] and evenly(3, 3).tolist() == [0, 1, 2, 3]
