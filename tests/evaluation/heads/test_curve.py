"""The curve over labels: each point is a probe of its own labels, and of no others."""

import dataclasses

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.evaluation.heads.curve import label_curve
from headcam.evaluation.heads.linear import in_top, linear_probe
from headcam.evaluation.labelled.sets import selection_mask
from headcam.evaluation.protocols import LabelCurve, LinearProbe

PROTOCOL = LabelCurve(LinearProbe(epochs=20, base_lr_per_256=(0.03, 0.3)), labels_per_class=(2, 8, 40), draws=2)


def clustered(n, seed):
    labels = np.arange(n) * 5 // n
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 6)) + 1.3 * np.eye(6)[labels]).astype(np.float16), labels


def curve(train, labels, draws_of, test, protocol=PROTOCOL, points=None):
    points = protocol.labels_per_class if points is None else points
    return dict(
        label_curve(train, labels, draws_of, test, 5, protocol, points=points, draws=protocol.draws, seed=0, quiet=True)
    )


def draws_of(labels):
    def draw(labels_per_class, number):
        order = np.random.default_rng(number).permutation(len(labels))
        chosen = [order[labels[order] == label][:labels_per_class] for label in range(5)]
        return np.sort(np.concatenate(chosen))

    return draw


def test_points_are_probes_of_their_draws():
    (train, labels), (test, truth) = clustered(250, 1), clustered(1000, 2)
    found = curve(train, labels, draws_of(labels), test)
    assert list(found) == [(n, draw) for n in (2, 8, 40) for draw in (0, 1)]
    for (n, draw), result in found.items():
        rows = draws_of(labels)(n, draw)
        alone = linear_probe(
            train[rows], labels[rows], selection_mask(labels[rows]), test, 5, PROTOCOL.probe, seed=0, quiet=True
        )
        assert torch.equal(result.logits, alone.logits)
    top1 = {n: in_top(found[n, 0].logits, torch.from_numpy(truth), 1).double().mean() for n in (2, 8, 40)}
    assert top1[2] < top1[8] < top1[40]


def test_pictures_outside_of_the_draw_have_no_say():
    (train, labels), (test, _) = clustered(250, 1), clustered(50, 2)
    rows = draws_of(labels)(8, 0)
    outside = ~np.isin(np.arange(250), rows)
    other, wrong = train.copy(), labels.copy()
    other[outside] = np.nan
    wrong[outside] = 0
    one = dataclasses.replace(PROTOCOL, draws=1)
    first = curve(train, labels, lambda n, draw: rows, test, one, points=(8,))
    second = curve(other, wrong, lambda n, draw: rows, test, one, points=(8,))
    assert torch.equal(first[8, 0].logits, second[8, 0].logits)


def test_curves_that_cannot_be_drawn():
    train, labels = clustered(50, 1)
    with pytest.raises(InputError, match="with 1 labels a class none is left to choose the learning rate on"):
        curve(train, labels, draws_of(labels), train, points=(1, 2))
    with pytest.raises(InputError, match=r"no class has .* first point of the curve asks for \(2\)"):
        curve(train, labels, draws_of(labels), train, points=())
