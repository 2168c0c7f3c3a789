"""Bounds of what learners can do: raw pixels, no memory, and functions from outside."""

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.recognition_memory.learners import bounds
from headcam.recognition_memory.learners.bounds import FunctionLearner, PixelStore, RandomScore
from headcam.recognition_memory.learners.learner import Learner

HERE = "headcam.recognition_memory.learners.bounds"


def pictures(count: int, seed: int = 0, size: int = 8) -> torch.Tensor:
    return torch.from_numpy(stream(seed, "test", 0).integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def study(learner: Learner, pixels: torch.Tensor, batch_size: int = 5) -> None:
    for k, batch in enumerate(pixels.split(batch_size)):
        assert learner.study_loss(batch, stream(0, "study", k)) is None


def reloaded(learner: Learner, fresh: Learner, path) -> Learner:
    torch.save(learner.state_dict(), path)
    fresh.load_state_dict(torch.load(path, weights_only=True))
    return fresh


def test_the_pixel_store_is_the_nearest_picture_exactly():
    studied, tested = pictures(12), pictures(6, seed=1)
    learner = PixelStore(8)
    learner.begin(0, torch.cat([studied, tested]))
    assert learner.scores(tested).tolist() == [65025.0] * 6
    study(learner, studied)
    scores = learner.scores(tested)
    apart = (tested.double()[:, None] - studied.double()).square().mean(dim=(2, 3, 4))
    assert scores.dtype == torch.float64 and torch.allclose(scores, apart.amin(dim=1), rtol=1e-12)
    assert learner.scores(studied).tolist() == [0.0] * 12
    study(learner, studied)
    assert torch.equal(learner.scores(tested), scores)  # a second exposure adds nothing
    assert learner.bound("") == "upper bound" and learner.bound("blur 2") == ""


def test_a_bounded_pixel_store_finds_what_it_kept():
    studied = pictures(20)
    learner = PixelStore(8, capacity=7)
    learner.begin(3, torch.cat([studied, pictures(4, seed=1)]))
    study(learner, studied)
    assert (learner.scores(studied) == 0).sum() == 7
    assert learner.bound("") == ""
    learner.begin(3, studied)
    assert (learner.scores(studied) == 65025).all()  # begin forgets


def test_random_scores_are_uniform_and_new_after_every_study(tmp_path):
    tested = pictures(2000)
    learner = RandomScore(8)
    learner.begin(0, tested)
    before = learner.scores(tested)
    assert torch.equal(before, torch.cat([learner.scores(part) for part in tested.split(300)]))
    assert (
        0 <= before.min() and before.max() < 1 and abs(before.mean() - 0.5) < 0.03 and abs(before.std() - 0.289) < 0.01
    )
    study(learner, tested[:10])
    after = learner.scores(tested)
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.1
    fresh = RandomScore(8)
    fresh.begin(0, tested)
    assert torch.equal(reloaded(learner, fresh, tmp_path / "state.pt").scores(tested), after)
    learner.begin(0, tested)
    study(learner, tested[:10].flip(0), batch_size=3)
    assert torch.equal(learner.scores(tested), after)  # the order of study has no say
    learner.begin(0, tested)
    study(learner, tested[10:20])
    assert abs(np.corrcoef(learner.scores(tested), after)[0, 1]) < 0.1  # another study set: what was right stays open
    learner.begin(1, tested)
    assert not torch.equal(learner.scores(tested), before)
    learner.begin(0, tested)
    assert torch.equal(learner.scores(tested), before)
    assert learner.bound("") == learner.bound("noise 5") == "lower bound"


def nearest(studied: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Of the tests, as a user would write it."""
    assert studied.dtype == tested.dtype == np.uint8 and studied.shape[1:] == tested.shape[1:] == (8, 8, 3)
    if not len(studied):
        return np.zeros(len(tested))
    return ((tested[:, None].astype(float) - studied) ** 2).mean(axis=(2, 3, 4)).min(axis=1)


def test_a_function_gets_what_was_studied_in_order_and_again_for_every_exposure(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(bounds, "observe", lambda s, t: (shown.append(s.copy()), np.zeros(len(t)))[1], raising=False)
    studied = pictures(11)
    learner = FunctionLearner(f"{HERE}.observe", 8)
    learner.begin(0, studied)
    learner.scores(studied)
    assert shown.pop().shape == (0, 8, 8, 3)
    study(learner, studied)
    study(learner, studied.flip(0))
    learner.scores(studied[:3])
    expected = torch.cat([studied, studied.flip(0)]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(shown.pop(), expected)
    assert len(learner.state_dict()["_extra_state"]["pictures"]) == 11  # each kept once
    fresh = reloaded(learner, FunctionLearner(f"{HERE}.observe", 8), tmp_path / "state.pt")
    study(fresh, studied[4:6])
    fresh.scores(studied)
    assert np.array_equal(shown.pop(), np.concatenate([expected, expected[4:6]]))


def test_a_function_that_stores_pixels_is_the_pixel_store(monkeypatch):
    monkeypatch.setattr(bounds, "nearest", nearest, raising=False)
    studied, tested = pictures(9), pictures(5, seed=2)
    learners = PixelStore(8), FunctionLearner(f"{HERE}.nearest", 8)
    for learner in learners:
        learner.begin(0, torch.cat([studied, tested]))
        study(learner, studied)
    ours, theirs = (learner.scores(torch.cat([studied, tested])) for learner in learners)
    assert torch.allclose(ours, theirs, rtol=1e-12) and theirs.dtype == torch.float64


@pytest.mark.parametrize(
    ("returned", "telling"),
    [
        (lambda n: np.zeros(n + 1), r"returned the shape \(5,\) for 4 pictures"),
        (lambda n: np.zeros((n, 1)), r"returned the shape \(4, 1\)"),
        (lambda n: np.array([0.0, np.nan, 0.0, 0.0]), "returned nan for tested picture 1"),
        (lambda n: ["familiar"] * n, "returned a list"),
        (lambda n: None, "returned"),
    ],
)
def test_functions_that_return_something_else_are_named(returned, telling, monkeypatch):
    monkeypatch.setattr(bounds, "mine", lambda s, t: returned(len(t)), raising=False)
    learner = FunctionLearner(f"{HERE}.mine", 8)
    with pytest.raises(InputError, match=telling):
        learner.scores(pictures(4))


@pytest.mark.parametrize(
    ("path", "telling"),
    [
        ("no_such_module_of_ours.f", "No module named"),
        ("numpy.no_such_function", "no attribute"),
        ("numpy.pi", "is a float, no function"),
        ("len", "cannot be imported"),
        ("", "cannot be imported"),
    ],
)
def test_paths_of_no_function_are_refused(path, telling):
    with pytest.raises(InputError, match=telling):
        FunctionLearner(path)


def test_sizes_are_checked():
    for make in (PixelStore, RandomScore):
        assert make((4, 6)).img_size == (4, 6)
        with pytest.raises(InputError, match="img_size is 0"):
            make(0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("PixelStore", {"img_size": 12, "capacity": 5}),
        ("PixelStore", {"img_size": [12, 16]}),
        ("RandomScore", {"img_size": 12}),
        ("FunctionLearner", {"function": "numpy.zeros", "img_size": 12}),
    ],
)
def test_bounds_are_built_from_a_config(name, arguments):
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Learner, "learner")
    instantiate = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    spec = {"class_path": f"{HERE}.{name}", "init_args": arguments}
    learner = instantiate(parser.parse_object({"learner": spec})).learner
    assert type(learner).__name__ == name and learner.img_size[0] == 12
