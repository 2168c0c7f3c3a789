"""The nearest-neighbour vote against a plain loop in float64."""

import dataclasses

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.evaluation.knn import knn_votes, nearest
from headcam.evaluation.protocols import KNN, EncoderFeatures

PROTOCOL = KNN(EncoderFeatures())


def features(n, seed):
    return np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float16)


def votes_by_loops(train, labels, test, num_classes, k, temperature):
    votes = np.zeros((len(test), num_classes))
    for i, x in enumerate(test.astype(np.float64)):
        similarity = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in train.astype(np.float64)]
        for j in sorted(range(len(train)), key=lambda j: -similarity[j])[:k]:
            votes[i, labels[j]] += np.exp(similarity[j] / temperature)
    return votes


@pytest.mark.parametrize("blocks", [(512, 65_536), (7, 13)])
def test_votes_equal_those_of_plain_loops(monkeypatch, blocks):
    monkeypatch.setattr("headcam.evaluation.knn._QUERIES", blocks[0])
    monkeypatch.setattr("headcam.evaluation.knn._BASE", blocks[1])
    train, test = features(150, 1), features(30, 2)
    labels = np.random.default_rng(3).integers(0, 7, 150)
    for protocol in (PROTOCOL, dataclasses.replace(PROTOCOL, k=1, temperature=0.5)):
        expected = votes_by_loops(train, labels, test, 7, protocol.k, protocol.temperature)
        assert knn_votes(train, labels, test, 7, protocol).numpy() == pytest.approx(expected, rel=2e-5)


def test_neighbours_are_nearest_first_and_scale_does_not_matter():
    base, queries = features(200, 1), features(20, 2)
    similarity, rows = nearest(base, queries, 10)
    assert (similarity.diff(dim=1) <= 0).all()
    scaled = base.astype(np.float32) * np.linspace(0.1, 10, 200, dtype=np.float32)[:, None]
    assert torch.equal(nearest(scaled, queries, 10)[1], rows)
    assert nearest(base, base, 1)[1][:, 0].tolist() == list(range(200))


def test_fewer_pictures_than_neighbours():
    with pytest.raises(InputError, match="training set has 19 pictures, and the vote is of 20"):
        knn_votes(features(19, 1), np.zeros(19, dtype=np.int64), features(2, 2), 2, PROTOCOL)
