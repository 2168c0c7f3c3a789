"""Study is exact passes: every picture once, each with the same weight, in an order that the seed alone decides."""

import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headcam.recognition_memory.experiment import StudySettings
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.stimuli.variants import Augmentation
from headcam.recognition_memory.study import Diverged, Student, study_order


class LinearAutoencoder(Learner):
    """Reconstructs pictures of 4 x 4 pixels; a score is the mean squared error. Keeps what it was shown."""

    img_size, unit = (4, 4), "squared error"

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(48, 48)
        self.shown: list[Tensor] = []
        self.draws: list[float] = []

    def begin(self, seed: int, pictures: Tensor) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))

    def _errors(self, pixels: Tensor) -> Tensor:
        flat = pixels.flatten(1).float() / 255
        return (self.map(flat) - flat).square().mean(1)

    def study_loss(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        self.shown.append(pixels)
        self.draws.append(rng.random())
        return self._errors(pixels).mean()

    def scores(self, pixels: Tensor) -> Tensor:
        return self._errors(pixels).double().cpu()


class Keeper(Learner):
    """Learns nothing by gradients."""

    img_size, unit = (4, 4), "none"

    def study_loss(self, pixels, rng):
        return None

    def scores(self, pixels):
        return torch.zeros(len(pixels), dtype=torch.float64)


def pictures(n: int) -> Tensor:
    """Picture k has k in its first pixel, so that it can be told."""
    pixels = torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.arange(n) // 256, torch.arange(n) % 256
    return pixels


def numbers(batch: Tensor) -> list[int]:
    return (256 * batch[:, 0, 0, 0].int() + batch[:, 0, 0, 1]).tolist()


def student(seed: int = 0, **settings) -> Student:
    learner = LinearAutoencoder()
    learner.begin(0, pictures(1))
    return Student(learner, StudySettings(**settings), seed)


def weights(of: Student) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in of.learner.parameters()]).numpy()


def test_2500_pictures_are_78_batches_and_one_of_4():
    one = student(batch_size=32)
    one.expose(pictures(2500), 1)
    assert [len(batch) for batch in one.learner.shown] == [32] * 78 + [4]
    assert one.updates == 79
    shown = [k for batch in one.learner.shown for k in numbers(batch)]
    assert sorted(shown) == list(range(2500))
    assert shown == study_order(2500, 0, 1).tolist()


def test_the_order_follows_from_seed_and_exposure_alone():
    orders = {(seed, exposure): study_order(100, seed, exposure).tolist() for seed in (0, 1) for exposure in (1, 2, 3)}
    assert all(sorted(order) == list(range(100)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 6
    # A student that comes in at exposure 2 sees what one sees that was there before.
    late, early = student(batch_size=8), student(batch_size=8)
    early.expose(pictures(20), 1)
    early.learner.shown.clear(), early.learner.draws.clear()
    for one in (late, early):
        one.expose(pictures(20), 2)
    assert [numbers(batch) for batch in late.learner.shown] == [numbers(batch) for batch in early.learner.shown]
    assert late.learner.draws == early.learner.draws
    assert len(set(late.learner.draws)) == 3


def test_without_augmentation_the_studied_bytes_are_the_tested_ones():
    one, given = student(batch_size=8), pictures(20)
    one.expose(given, 1)
    for batch in one.learner.shown:
        assert torch.equal(batch, given[numbers(batch)])
    other = student(batch_size=8, augmentation=Augmentation(flip=1.0))
    other.expose(given, 1)
    mirrored = torch.cat(other.learner.shown)
    assert torch.equal(mirrored.flip(3), given[study_order(20, 0, 1)])


@pytest.mark.parametrize("micro_batch_size", [1, 3, 7, 8, 50])
def test_micro_batches_make_the_same_step(micro_batch_size):
    whole, parts = student(batch_size=7), student(batch_size=7, micro_batch_size=micro_batch_size)
    for exposure in (1, 2):
        losses = [one.expose(pictures(17), exposure) for one in (whole, parts)]  # batches of 7, 7 and 3
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert whole.updates == parts.updates == 6
    np.testing.assert_allclose(weights(parts), weights(whole), atol=1e-6)
    assert np.abs(weights(whole) - weights(student())).max() > 1e-3


def test_a_step_is_adams_as_published():
    """Against Kingma and Ba (2015), algorithm 1, in loops and double precision."""
    one, batch = student(batch_size=5, lr=5e-4), pictures(5)
    theta = weights(one).astype(np.float64)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    x = batch.flatten(1).double().numpy() / 255
    for t in range(1, 4):
        loss = one.update(batch, np.random.default_rng(0))
        W, b = theta[:2304].reshape(48, 48), theta[2304:]
        error = x @ W.T + b - x
        assert loss == pytest.approx((error**2).mean(), rel=1e-5)
        gradient = np.concatenate([(2 * error.T @ x / error.size).ravel(), 2 * error.sum(0) / error.size])
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        theta = theta - 5e-4 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(weights(one), theta, atol=2e-6)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_other_optimizers_learn(kind):
    one = student(optimizer=kind, lr=1e-2 if kind == "sgd" else 1e-3, weight_decay=0.01, momentum=0.5)
    losses = [one.expose(pictures(20), exposure) for exposure in range(1, 5)]
    assert losses[-1] < losses[0]


def test_the_study_loss_is_the_mean_over_pictures():
    one, batches = student(batch_size=8), []
    one.learner.after_update = lambda: batches.append(one.updates)
    frozen = student(batch_size=8, lr=1e-30)
    mean = frozen.expose(pictures(20), 1)  # 8 + 8 + 4: the short batch counts half
    assert mean == pytest.approx(frozen.scores(pictures(20), 20).mean(), rel=1e-6)
    one.expose(pictures(20), 1)
    assert batches == [1, 2, 3]


def test_progress_is_told_of_every_picture():
    told = []
    student(batch_size=8).expose(pictures(20), 1, told.append)
    assert told == [8, 8, 4]


def test_studying_makes_familiar_and_state_goes_on_exactly():
    one, given = student(lr=2e-3), pictures(24)
    before = one.scores(given, 7)
    assert before.dtype == np.float64 and before.shape == (24,)
    np.testing.assert_allclose(before, one.scores(given, 24), rtol=1e-6)
    for exposure in (1, 2):
        one.expose(given, exposure)
    state = {**one.state_dict()}
    again = student(lr=2e-3)
    again.load_state_dict(torch.load(_saved(state), weights_only=True))
    for who in (one, again):
        who.expose(given, 3)
    assert (again.updates, again.exposure) == (one.updates, one.exposure) == (3, 3)
    assert again.scores(given, 7).tobytes() == one.scores(given, 7).tobytes()
    assert (one.scores(given, 7) < before).all()


def _saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_a_learner_without_a_loss():
    one = Student(Keeper(), StudySettings(), 0)
    assert one.expose(pictures(5), 1) is None
    assert one.updates == 0 and one.state_dict()["optimizer"] is None
    one.load_state_dict(one.state_dict())


def test_a_loss_that_is_not_finite_stops():
    one = student(lr=1e30, batch_size=8)
    with pytest.raises(
        Diverged, match=r"study loss of LinearAutoencoder is (inf|nan) at exposure 1, update \d.*1e\+30"
    ):
        one.expose(pictures(20), 1)


def test_a_score_that_is_not_finite_stops():
    one = student()
    with torch.no_grad():
        one.learner.map.bias[3] = torch.nan
    with pytest.raises(Diverged, match=r"5 of 5 scores of LinearAutoencoder .* exposure 0 .* nan of a.png"):
        one.scores(pictures(5), 2, ["a.png", "b", "c", "d", "e"])


def test_bf16_where_the_processor_lacks_it_runs_as_32(monkeypatch):
    monkeypatch.setattr("headcam.ssl.training.precision.cpu_bf16", lambda: None)
    one = student(precision="bf16")
    assert one.precision == "32" and "neither AVX512-BF16 nor AMX" in one.note
    monkeypatch.setattr("headcam.ssl.training.precision.cpu_bf16", lambda: "AMX-BF16")
    two = student(precision="bf16")
    assert two.precision == "bf16" and not two.note
    loss = two.update(pictures(5), np.random.default_rng(0))
    assert loss == pytest.approx(one.update(pictures(5), np.random.default_rng(0)), rel=0.05)
    assert student().precision == "32" and not student().note
