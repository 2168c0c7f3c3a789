"""Outcomes are found again, and refused where they are of something else."""

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.evaluation.outcomes import Measured, outcome_key, read_outcome, write_outcome
from headcam.evaluation.protocols import KNN, LinearProbe
from headcam.evaluation.scoring.guesses import guesses


def test_round_trip(tmp_path):
    labels = np.array([0, 1, 2])
    measured = [
        Measured("a", guesses(torch.eye(3), labels), {"lr": 0.1}),
        Measured("b", guesses(-torch.eye(3), labels), {}, draw=4),
    ]
    path = tmp_path / "deep" / "one.npz"
    assert read_outcome(path, KNN()) is None
    write_outcome(path, KNN(), measured)
    found = read_outcome(path, KNN())
    assert [(m.full_stem, m.details, m.draw) for m in found] == [("a", {"lr": 0.1}, None), ("b/draw4", {}, 4)]
    assert [m.guesses.rank.tolist() for m in found] == [[1, 1, 1], [3, 3, 3]]
    with pytest.raises(InputError, match=r"protocol knn-v2, where .* linear-v2 are wanted"):
        read_outcome(path, LinearProbe())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="is damaged"):
        read_outcome(path, KNN())


def test_a_key_follows_from_everything():
    subject = {"kind": "trained", "weights": "w"}
    keys = {
        outcome_key(subject, KNN(), data="d", seed=0),
        outcome_key({**subject, "weights": "v"}, KNN(), data="d", seed=0),
        outcome_key(subject, KNN(k=(10,)), data="d", seed=0),
        outcome_key(subject, KNN(), data="e", seed=0),
        outcome_key(subject, KNN(), data="d", seed=1),
    }
    assert len(keys) == 5
