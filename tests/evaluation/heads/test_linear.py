"""The linear probe: at the exact optimum, as good as scikit-learn's best, blind to the test set, reproducible."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from torch import nn

from headcam.errors import InputError
from headcam.evaluation.heads.linear import in_top, linear_probe
from headcam.evaluation.labelled.sets import selection_mask
from headcam.evaluation.protocols import LinearProbe, read_protocol
from headcam.randomness import permuted
from headcam.statistics import bootstrap_mean

PROTOCOL = LinearProbe()
WHITENED = read_protocol(Path(__file__).parents[3] / "configs" / "protocols" / "linear-whitened.yaml")
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


def probe(train, labels, test, protocol=PROTOCOL, seed=0, num_classes=20, all_rates=False):
    aside = selection_mask(labels)
    return linear_probe(train, labels, aside, test, num_classes, protocol, seed=seed, quiet=True, all_rates=all_rates)


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


def penalised_loss(weight, bias, x, labels, decay):
    logits = x @ weight + bias
    return (scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(x)), labels]).mean() + decay / 2 * (
        weight**2
    ).sum()


def optimum(x, labels, num_classes, decay):
    """Weights and bias of the least penalised cross-entropy, by scipy's L-BFGS in float64."""
    n, dim = x.shape

    def loss_and_gradient(flat):
        weight, bias = flat[: dim * num_classes].reshape(dim, num_classes), flat[dim * num_classes :]
        wrong = scipy.special.softmax(x @ weight + bias, axis=1)
        wrong[np.arange(n), labels] -= 1
        gradient = np.concatenate([(x.T @ wrong / n + decay * weight).ravel(), wrong.mean(axis=0)])
        return penalised_loss(weight, bias, x, labels, decay), gradient

    start = np.zeros((dim + 1) * num_classes)
    options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-15, "gtol": 1e-9}
    found = scipy.optimize.minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    return found[: dim * num_classes].reshape(dim, num_classes), found[dim * num_classes :]


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("normalisation", ["batchnorm", "whitening"])
def test_reaches_the_exact_optimum(normalisation, decay):
    """A convex problem with overlapping classes: loss, weights and accuracy are those of an independent solver."""
    train, labels = power_law_classes(600, num_classes=4, dim=8)
    test, truth = power_law_classes(2000, num_classes=4, dim=8)
    protocol = LinearProbe(
        base_lr_per_256=(0.5,), epochs=300, batch_size=600, weight_decay=decay, normalisation=normalisation, eps=1e-9
    )
    found = probe(train, labels, test, protocol, num_classes=4)

    x = train.astype(np.float64)
    centred = x - x.mean(axis=0)
    if normalisation == "batchnorm":
        transform = np.diag(1 / x.std(axis=0))
    else:
        transform = np.linalg.inv(scipy.linalg.sqrtm(centred.T @ centred / len(x)).real)
    if decay == 0:
        transform = np.eye(8)  # without decay the optimum does not depend on the coordinates, so take the raw ones
    weight, bias = optimum(centred @ transform, labels, 4, decay)
    least = penalised_loss(weight, bias, centred @ transform, labels, decay)

    ours = found.head.weight.double().numpy()
    normalised = found.head.normalisation(train)[:, :-1].double().numpy()
    reached = penalised_loss(ours, found.head.bias.double().numpy(), normalised, labels, decay)
    assert reached == pytest.approx(least, rel=1e-4)
    expected = (test - x.mean(axis=0)) @ transform @ weight + bias
    assert (found.logits.argmax(dim=1).numpy() == expected.argmax(axis=1)).mean() > 0.998
    assert accuracy(found, truth) == pytest.approx((expected.argmax(axis=1) == truth).mean(), abs=0.001)
    shift = found.logits.double().numpy() - expected
    assert np.ptp(shift - shift.mean(axis=1, keepdims=True)) < 0.02 * np.ptp(expected)


@pytest.mark.parametrize("protocol", [dataclasses.replace(PROTOCOL, epochs=10), WHITENED], ids=["linear", "whitened"])
def test_reaches_the_best_that_can_be(protocol):
    """Gaussian classes around `apart` e_k: the best classifier is linear, and its accuracy is an integral."""
    num_classes, dim, apart = 6, 12, 1.8
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.normal(size=(dim, dim)))[0]

    def draw(n):
        labels = np.sort(rng.integers(0, num_classes, n))
        return ((rng.normal(size=(n, dim)) + apart * np.eye(dim)[labels]) @ mixing).astype(np.float16), labels

    (train, labels), (test, truth) = draw(12_000), draw(4000)
    normal = scipy.stats.norm
    bayes = scipy.integrate.quad(lambda t: normal.pdf(t - apart) * normal.cdf(t) ** (num_classes - 1), -9, 12)[0]
    logits = probe(train, labels, test, protocol, num_classes=num_classes).logits
    interval = bootstrap_mean(in_top(logits, torch.from_numpy(truth), 1).numpy(), rng=np.random.default_rng(1))
    assert 0.5 < bayes < 0.8 and interval.high - interval.low < 0.04
    assert interval.low < bayes < interval.high


@pytest.mark.parametrize("protocol", [SHORT, WHITENED], ids=["batchnorm", "whitening"])
def test_features_without_information_score_chance(protocol):
    """Several seeds, each of its own pictures: a leak of labels anywhere would show."""
    right = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        (train, test), labels = rng.normal(size=(2, 600, 16)).astype(np.float16), np.arange(600) % 10
        found = probe(train, np.sort(labels), test, protocol, seed=seed, num_classes=10)
        right.append(in_top(found.logits, torch.from_numpy(labels), 1).numpy())
    interval = bootstrap_mean(np.concatenate(right), rng=np.random.default_rng(7))
    assert interval.n == 3600 and interval.low < 0.1 < interval.high


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
    every = probe(train, labels, train[:100], SHORT, all_rates=True)
    assert torch.equal(every.logits, together.logits)  # the report of all rates does not change the number
    assert set(every.test_scores_of_rates) == set(SHORT.base_lr_per_256) and not together.test_scores_of_rates
    for rate in SHORT.base_lr_per_256:
        alone = probe(train, labels, train[:100], dataclasses.replace(SHORT, base_lr_per_256=(rate,)))
        assert alone.selection_top1[rate] == pytest.approx(together.selection_top1[rate], abs=0.01)
        assert torch.allclose(alone.logits, every.test_scores_of_rates[rate], atol=1e-5)


def test_the_steps_are_those_of_torch():
    """BatchNorm1d with the training set's statistics, Linear, SGD and the cosine schedule of torch, in float64."""
    train, labels = power_law_classes(500)
    protocol = dataclasses.replace(SHORT, base_lr_per_256=(0.05,), batch_size=128)
    ours = linear_probe(train, labels, selection_mask(labels), train[:50], 20, protocol, seed=3, quiet=True)

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
        order = torch.from_numpy(permuted(np.arange(500), 500, 3, f"linear probe, epoch {epoch}, round 0"))
        for batch in order.split(125):  # 500 pictures in batches of at most 128, all alike
            optimizer.zero_grad()
            nn.functional.cross_entropy(linear(norm(x[batch])), y[batch]).backward()
            optimizer.step()
            schedule.step()
    assert torch.allclose(ours.logits.double(), linear(norm(x[:50])), atol=1e-4)


def test_one_seed_one_result():
    train, labels = power_law_classes(600)
    first, again, other = (probe(train, labels, train[:50], SHORT, seed=seed).logits for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("protocol", [SHORT, WHITENED], ids=["batchnorm", "whitening"])
def test_where_and_as_what_features_lie_makes_no_difference(tmp_path, monkeypatch, protocol):
    train, labels = power_law_classes(600)
    expected = probe(train, labels, train[:50], protocol).logits
    np.save(tmp_path / "x.npy", train)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert torch.equal(probe(mapped, labels, mapped[:50], protocol).logits, expected)
    for dtype in (np.float32, np.float64):
        assert torch.equal(probe(train.astype(dtype), labels, train[:50].astype(dtype), protocol).logits, expected)
    for module in ("normalisation", "rows", "linear"):
        monkeypatch.setattr(f"headcam.evaluation.heads.{module}.READ_ROWS", 37)
    assert torch.allclose(probe(mapped, labels, mapped[:50], protocol).logits, expected, atol=2e-5)


def test_tables_of_many_rounds_are_learned_as_well(monkeypatch):
    """A table in the order of its classes, read in rounds."""
    (train, labels), (test, truth) = power_law_classes(2000), power_law_classes(3000)
    order = np.argsort(labels, kind="stable")
    whole = accuracy(probe(train[order], labels[order], test, WHITENED), truth)
    monkeypatch.setattr("headcam.evaluation.heads.rows._ROUND", 300 * 64)
    monkeypatch.setattr("headcam.evaluation.heads.rows._CHUNK", 10)
    assert accuracy(probe(train[order], labels[order], test, WHITENED), truth) == pytest.approx(whole, abs=0.01)


def test_speed_is_stated():
    train, labels = power_law_classes(600)
    found = probe(train, labels, train[:5], SHORT)
    rows = SHORT.epochs * (480 * 3 + 600)  # of three heads in the search, and one in the fit
    assert found.flops == pytest.approx(4 * rows * 65 * 20) and found.seconds > 0 and 0 < found.peak_share < 1


def test_scale_and_offset_of_features_do_not_matter():
    train, labels = power_law_classes(600)
    moved = train.astype(np.float32) * np.linspace(0.5, 50, 64, dtype=np.float32) + 3
    ours, theirs = (probe(x, labels, x[:100], SHORT).logits for x in (train, moved))
    assert torch.allclose(ours, theirs, atol=0.02)


@pytest.mark.parametrize("protocol", [SHORT, WHITENED], ids=["batchnorm", "whitening"])
def test_features_that_never_change_do_no_harm(protocol):
    train, labels = power_law_classes(600)
    less = probe(train[:, 10:], labels, train[:50, 10:], protocol)
    train[:, :10] = 7
    elsewhere = train[:50].copy()
    elsewhere[:, :10] = -30  # on other pictures they are not constant
    assert torch.allclose(probe(train, labels, elsewhere, protocol).logits, less.logits, atol=0.02)


@pytest.mark.parametrize("protocol", [SHORT, WHITENED], ids=["batchnorm", "whitening"])
def test_features_that_say_nothing_are_refused(protocol):
    train, labels = power_law_classes(200)
    with pytest.raises(InputError, match="features do not differ between the 160 pictures"):
        probe(np.broadcast_to(train[0], train.shape), labels, train[:5], protocol)
    train[137, 5] = np.nan
    with pytest.raises(InputError, match="features of picture 137 are not finite"):
        probe(train, labels, train[:5], protocol)


def test_training_that_diverges_is_named():
    train, labels = power_law_classes(200)
    protocol = dataclasses.replace(SHORT, base_lr_per_256=(300.0,), weight_decay=1.0, epochs=50)
    with pytest.raises(InputError, match="diverged at learning rate 300"):
        probe(train, labels, train[:5], protocol)


def test_ties_and_nan_count_against_the_model():
    scores = torch.tensor([[0.0, 0, 0, 0], [3, 2, 1, 0], [3, 2, 2, 0], [float("nan")] * 4])
    labels = torch.tensor([0, 1, 1, 0])
    assert in_top(scores, labels, 1).tolist() == [False] * 4
    assert in_top(scores, labels, 2).tolist() == [False, True, False, False]
    assert in_top(scores, labels, 3).tolist() == [False, True, True, False]
