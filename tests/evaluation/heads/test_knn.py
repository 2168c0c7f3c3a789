"""The nearest-neighbour vote against a plain loop in float64, and what is chosen for it."""

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.evaluation.heads.knn import knn_scores, nearest
from headcam.evaluation.heads.linear import in_top
from headcam.evaluation.labelled.sets import selection_mask
from headcam.evaluation.protocols import KNN
from headcam.statistics import bootstrap_mean

PROTOCOL = KNN()
SWEEP = KNN(k=(1, 5, 20), temperature=(0.03, 0.2, 1.0))


def features(n, seed):
    return np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float16)


def clustered(n, seed, num_classes=7):
    labels = np.arange(n) % num_classes
    centres = np.random.default_rng(0).normal(size=(num_classes, 16))
    return (features(n, seed) + centres[labels]).astype(np.float16), labels


def votes(train, labels, test, num_classes, protocol=PROTOCOL):
    return knn_scores(train, labels, test, num_classes, protocol, selection=selection_mask(labels))


def votes_by_loops(train, labels, test, num_classes, k, temperature):
    """The nearest neighbour's vote is 1."""
    votes = np.zeros((len(test), num_classes))
    for i, x in enumerate(test.astype(np.float64)):
        similarity = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in train.astype(np.float64)]
        for j in sorted(range(len(train)), key=lambda j: -similarity[j])[:k]:
            votes[i, labels[j]] += np.exp((similarity[j] - max(similarity)) / temperature)
    return votes


@pytest.fixture(params=[(8192, 512, 2048, 64), (8, 3, 40, 4), (5, 7, 13, 32), (64, 64, 70, 1)], ids=str)
def blocks(request, monkeypatch):
    """Blocks of all proportions: the last ones smaller, groups that do not divide them, fewer rows than neighbours."""
    band, queries, base, group = request.param
    sizes = {"_BAND": band, "_QUERIES": queries, "_BASE": {"cpu": base}, "_GROUP": group}
    for name, value in sizes.items():
        monkeypatch.setattr(f"headcam.evaluation.heads.knn.{name}", value)


def test_votes_equal_those_of_plain_loops(blocks):
    (train, labels), test = clustered(150, 1), features(30, 2)
    for k, temperature in ((20, 0.07), (1, 0.5), (150, 0.3)):
        expected = votes_by_loops(train, labels, test, 7, k, temperature)
        found = votes(train, labels, test, 7, KNN(k=(k,), temperature=(temperature,)))
        assert found.scores.numpy() == pytest.approx(expected, rel=2e-4, abs=1e-6)
        assert (found.k, found.temperature, found.selection_top1) == (k, temperature, {})


def test_the_search_is_exact(blocks):
    base, queries = features(400, 1), features(50, 2)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries.astype(np.float64), base.astype(np.float64))]
    exact = unit[0] @ unit[1].T
    rows = np.flatnonzero(np.arange(400) % 3)
    for among in (np.arange(400), rows):
        similarity, found = nearest(base, queries, 12, base_rows=among)
        expected = among[np.argsort(-exact[:, among], axis=1)[:, :12]]
        assert np.array_equal(found.numpy(), expected)
        assert similarity.numpy() == pytest.approx(np.take_along_axis(exact, expected, axis=1), abs=1e-6)
    assert torch.equal(
        nearest(base, queries, 12, query_rows=np.array([7, 31]))[1], nearest(base, queries, 12)[1][[7, 31]]
    )


def test_bases_whose_nearest_come_last(blocks):
    """Every block holds nearer rows than all before it: what is found must be replaced each time."""
    angle = np.linspace(1.5, 0.01, 300)
    base = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    found = nearest(base, np.tile(np.array([[2.0, 0.0]], np.float32), (9, 1)), 15)[1]
    assert found.tolist() == [list(range(299, 284, -1))] * 9


def test_neighbours_are_nearest_first_and_scale_does_not_matter():
    base, queries = features(200, 1), features(20, 2)
    similarity, rows = nearest(base, queries, 10)
    assert (similarity.diff(dim=1) <= 0).all()
    scaled = base.astype(np.float32) * np.linspace(0.1, 10, 200, dtype=np.float32)[:, None]
    assert torch.equal(nearest(scaled, queries, 10)[1], rows)
    assert nearest(base, base, 1)[1][:, 0].tolist() == list(range(200))


def test_k_and_temperature_are_chosen_on_pictures_set_aside():
    (train, labels), test = clustered(350, 1), features(40, 2)
    found = votes(train, labels, test, 7, SWEEP)
    aside = selection_mask(labels)
    expected = {}
    for k in SWEEP.k:
        for temperature in SWEEP.temperature:
            scores = votes_by_loops(train[~aside], labels[~aside], train[aside], 7, k, temperature)
            expected[k, temperature] = (scores.argmax(axis=1) == labels[aside]).mean()
    assert found.selection_top1 == pytest.approx(expected)
    assert len(set(expected.values())) > 1
    best = max(expected.values())
    assert (found.k, found.temperature) == min(pair for pair, top1 in expected.items() if top1 == best)
    alone = KNN(k=(found.k,), temperature=(found.temperature,))
    assert torch.allclose(found.scores, votes(train, labels, test, 7, alone).scores)


def test_the_test_pictures_have_no_say():
    train, labels = clustered(350, 1)
    first, second = (votes(train, labels, features(40, seed), 7, SWEEP) for seed in (2, 3))
    assert (first.k, first.temperature, first.selection_top1) == (second.k, second.temperature, second.selection_top1)


def test_low_temperatures_do_not_overflow():
    train, labels = clustered(150, 1)
    found = votes(train, labels, train, 7, KNN(k=(5,), temperature=(1e-4,)))
    assert torch.isfinite(found.scores).all() and in_top(found.scores, torch.from_numpy(labels), 1).all()


@pytest.mark.parametrize("protocol", [PROTOCOL, SWEEP], ids=["one k", "sweep"])
def test_features_without_information_score_chance(protocol):
    right = []
    for seed in range(6):
        labels = np.sort(np.arange(1000) % 10)
        found = votes(features(1000, 2 * seed), labels, features(1000, 2 * seed + 1), 10, protocol)
        right.append(in_top(found.scores, torch.from_numpy(labels), 1).numpy())
    interval = bootstrap_mean(np.concatenate(right), rng=np.random.default_rng(0))
    assert interval.n == 6000 and interval.low < 0.1 < interval.high


def test_types_and_files_make_no_difference(tmp_path):
    (train, labels), test = clustered(350, 1), features(40, 2)
    expected = votes(train, labels, test, 7, SWEEP).scores
    np.save(tmp_path / "x.npy", train)
    for table in (np.load(tmp_path / "x.npy", mmap_mode="r"), train.astype(np.float32), train.astype(np.float64)):
        assert torch.equal(votes(table, labels, test, 7, SWEEP).scores, expected)


def test_fewer_pictures_than_neighbours():
    train, labels = clustered(24, 1, num_classes=2)
    with pytest.raises(InputError, match="training set has 24 pictures, and the vote is of 25 neighbours"):
        votes(train, labels, train, 2, KNN(k=(25,)))
    with pytest.raises(InputError, match=r"training set less those set aside has 20 pictures, .* 24 neighbours"):
        votes(train, labels, train, 2, KNN(k=(1, 24)))


def test_features_that_say_nothing_are_refused():
    train, labels = clustered(60, 1)
    with pytest.raises(InputError, match="features do not differ between the 60 pictures"):
        votes(np.broadcast_to(train[0], train.shape), labels, train, 7)
    for bad in (np.nan, np.inf):
        broken = train.copy()
        broken[33, 2] = bad
        with pytest.raises(InputError, match="not all finite"):
            votes(broken, labels, train, 7)
