"""The linear probe: as good as scikit-learn's best, blind to the test set, reproducible."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from headcam.evaluation.labelled import selection_mask
from headcam.evaluation.linear_probe import Normalisation, in_top, linear_probe
from headcam.evaluation.protocols import EncoderFeatures, LinearProbe

PROTOCOL = LinearProbe(EncoderFeatures())
SHORT = dataclasses.replace(PROTOCOL, epochs=3, base_lr_per_256=(1e-3, 1e-2, 1e-1))


def power_law_classes(n, num_classes=20, dim=64, seed=0):
    """Gaussian classes whose directions scale as rank^-1 and are then mixed, as in features of real encoders.

    Returns (n, dim) float16 features and labels; the classes are the same for one seed, whatever n.
    """
    fixed = np.random.default_rng(seed)
    means, mixing = fixed.normal(size=(num_classes, dim)), np.linalg.qr(fixed.normal(size=(dim, dim)))[0]
    rng = np.random.default_rng([seed, n])
    labels = rng.permutation(np.arange(n) % num_classes)
    x = 0.28 * means[labels] + rng.normal(size=(n, dim))
    return ((x / np.arange(1, dim + 1)) @ mixing).astype(np.float16), labels.astype(np.int64)


def probe(train, labels, test, protocol=PROTOCOL, seed=0, num_classes=20):
    return linear_probe(train, labels, selection_mask(labels), test, num_classes, protocol, seed=seed, quiet=True)


def accuracy(result, labels):
    return in_top(result.logits, torch.from_numpy(labels), 1).float().mean().item()


def test_reaches_the_best_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    threadpoolctl = pytest.importorskip("threadpoolctl")
    (train, labels), (test, truth) = power_law_classes(2000), power_law_classes(3000)
    mean, scale = train.astype(np.float64).mean(0), train.astype(np.float64).std(0)
    with threadpoolctl.threadpool_limits(1):
        peer = max(  # the peer even gets to choose on the test set
            linear_model.LogisticRegression(C=C, max_iter=300)
            .fit((train - mean) / scale, labels)
            .score((test - mean) / scale, truth)
            for C in (0.01, 0.1)
        )
    ours = accuracy(probe(train, labels, test), truth)
    assert peer > 0.4  # chance is 0.05
    assert ours > peer - 0.015


def test_the_test_set_has_no_say():
    (train, labels), (test, truth) = power_law_classes(1500), power_law_classes(900)
    result = probe(train, labels, test)
    other = probe(train, labels, test[:5] * np.float16(100))
    assert other.base_lr_per_256 == result.base_lr_per_256
    assert other.selection_top1 == result.selection_top1
    assert accuracy(result, truth) > 0.3
    shuffled = np.random.default_rng(0).permutation(truth)
    assert accuracy(result, shuffled) < 0.09  # chance is 0.05, its standard deviation over 900 pictures 0.007


def test_labels_without_meaning_give_chance():
    (train, labels), (test, truth) = power_law_classes(1500), power_law_classes(900)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert accuracy(probe(train, shuffled, test, SHORT), truth) < 0.09


def test_pictures_set_aside_do_not_train_in_the_search():
    """Wrong labels on the pictures set aside spoil the choice's score, not the heads it is made between."""
    train, labels = power_law_classes(1500)
    aside = selection_mask(labels)
    spoiled = np.where(aside, (labels + 1) % 20, labels)
    result = linear_probe(train, spoiled, aside, train[:5], 20, PROTOCOL, seed=0, quiet=True)
    assert max(result.selection_top1.values()) < 0.1


def test_all_heads_in_one_pass_are_as_alone():
    train, labels = power_law_classes(600)
    together = probe(train, labels, train[:100], SHORT)
    for rate in SHORT.base_lr_per_256:
        alone = probe(train, labels, train[:100], dataclasses.replace(SHORT, base_lr_per_256=(rate,)))
        assert alone.selection_top1[rate] == pytest.approx(together.selection_top1[rate], abs=0.01)
        if rate == together.base_lr_per_256:
            assert torch.allclose(alone.logits, together.logits, atol=1e-5)


def test_the_steps_are_those_of_torch():
    """BatchNorm1d with the training set's statistics, Linear, SGD and the cosine schedule of torch, in float64."""
    train, labels = power_law_classes(500)
    protocol = dataclasses.replace(SHORT, base_lr_per_256=(0.05,), batch_size=128)
    ours = linear_probe(train, labels, selection_mask(labels), train[:50], 20, protocol, seed=3, quiet=True)

    from headcam.randomness import permuted

    x, y = torch.from_numpy(train).double(), torch.from_numpy(labels)
    norm = nn.BatchNorm1d(64, affine=False, eps=protocol.eps).double().eval()
    norm.running_mean.copy_(x.mean(dim=0))
    norm.running_var.copy_(x.var(dim=0, correction=0))
    linear = nn.Linear(64, 20).double()
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.05 * 128 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * 4)
    for epoch in range(3):
        order = torch.from_numpy(permuted(np.arange(500), 500, 3, f"linear probe, epoch {epoch}"))
        for batch in order.split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(linear(norm(x[batch])), y[batch]).backward()
            optimizer.step()
            schedule.step()
    assert torch.allclose(ours.logits.double(), linear(norm(x[:50])), atol=1e-4)


def test_one_seed_one_result():
    train, labels = power_law_classes(600)
    first, again, other = (probe(train, labels, train[:50], SHORT, seed=seed).logits for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_features_on_the_disk_give_the_same(tmp_path):
    train, labels = power_law_classes(600)
    np.save(tmp_path / "x.npy", train)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert torch.equal(probe(mapped, labels, mapped[:50], SHORT).logits, probe(train, labels, train[:50], SHORT).logits)


def test_scale_and_offset_of_features_do_not_matter():
    train, labels = power_law_classes(600)
    moved = train.astype(np.float32) * np.linspace(0.5, 50, 64, dtype=np.float32) + 3
    ours, theirs = (probe(x, labels, x[:100], SHORT).logits for x in (train, moved))
    assert torch.allclose(ours, theirs, atol=0.02)


def test_constant_features_do_no_harm():
    train, labels = power_law_classes(600)
    train[:, :10] = 7
    assert torch.isfinite(probe(train, labels, train[:50], SHORT).logits).all()


def test_normalisation_is_by_the_rows_named():
    x = np.random.default_rng(0).normal(5, 3, size=(9000, 4)).astype(np.float16)
    rows = np.arange(0, 9000, 2)
    norm = Normalisation.of(x, rows, 1e-6, "cpu")
    expected = x[rows].astype(np.float64)
    assert norm.mean.numpy() == pytest.approx(expected.mean(0), rel=1e-6)
    assert norm.scale.numpy() == pytest.approx(1 / np.sqrt(expected.var(0) + 1e-6), rel=1e-6)


def test_ties_and_nan_count_against_the_model():
    scores = torch.tensor([[0.0, 0, 0, 0], [3, 2, 1, 0], [3, 2, 2, 0], [float("nan")] * 4])
    labels = torch.tensor([0, 1, 1, 0])
    assert in_top(scores, labels, 1).tolist() == [False] * 4
    assert in_top(scores, labels, 2).tolist() == [False, True, False, False]
    assert in_top(scores, labels, 3).tolist() == [False, True, True, False]
