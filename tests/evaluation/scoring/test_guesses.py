"""What is kept of a classifier's scores, against plain statements of the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.evaluation.heads.linear import in_top
from headcam.evaluation.labelled.sets import Picture
from headcam.evaluation.scoring.guesses import guesses, multilabel_right, read_multilabels


def pictures(*names: str) -> list[Picture]:
    return [Picture(root=Path("set"), name=name, label=0, sha256=str(k)) for k, name in enumerate(names)]


def test_against_loops():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 8)).astype(np.float32), rng.integers(0, 8, 50)
    found = guesses(torch.from_numpy(scores), labels)
    for row, label in enumerate(labels):
        order = sorted(range(8), key=lambda c: -scores[row, c])
        assert found.rank[row] == order.index(label) + 1
        assert found.top[row].tolist() == order[:5]
        shares = np.exp(scores[row].astype(float)) / np.exp(scores[row].astype(float)).sum()
        assert found.p[row] == pytest.approx(shares[label], rel=1e-5)
    for k in (1, 5):
        assert (found.right(k) == in_top(torch.from_numpy(scores), torch.from_numpy(labels), k).numpy()).all()


def test_ties_and_nan_count_against():
    scores = torch.tensor([[1.0, 1.0, 1.0], [float("nan"), 0.0, 0.0], [2.0, 2.0, 0.0]])
    assert guesses(scores, np.array([0, 0, 0])).rank.tolist() == [3, 3, 2]


def test_votes_are_shares():
    found = guesses(torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), np.array([1, 0]), votes=True)
    assert found.p.tolist() == [0.25, 0.0]


def test_multilabel_accuracy(tmp_path):
    shown = pictures("val/ILSVRC2012_val_00000002.JPEG", "val/a/ILSVRC2012_val_00000001.JPEG")
    found = guesses(torch.eye(3)[[2, 0]], np.array([0, 0]))
    file = tmp_path / "real.json"
    file.write_text(json.dumps([[1, 2], [2, 0], []]))
    truths = read_multilabels(file, shown, ("x", "y", "z"))
    assert truths == [frozenset({0, 2}), frozenset({1, 2})]
    assert multilabel_right(found, truths).tolist() == [True, False]
    assert multilabel_right(found, [frozenset(), frozenset({0})]).tolist() == [True]  # no label: not counted

    file.write_text(json.dumps({"ILSVRC2012_val_00000001.JPEG": ["z"], "val/ILSVRC2012_val_00000002.JPEG": [0]}))
    assert read_multilabels(file, shown, ("x", "y", "z")) == [frozenset({0}), frozenset({2})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0]]", "no labels for 1 of 1 test pictures, such as val/ILSVRC2012_val_00000002"),
        ("[[0], [7]]", "are none of the 3 classes"),
        ("[[0], []]", "not one label"),
        ("7", "holds a int"),
        ("{", "cannot be read"),
    ],
)
def test_wrong_multilabels(tmp_path, content, message):
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_multilabels(tmp_path / "real.json", pictures("val/ILSVRC2012_val_00000002.JPEG"), ("x", "y", "z"))
