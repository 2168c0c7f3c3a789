"""Recall: a model that keeps what it studied is told from one that does not, and from one that only looks so."""

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.recognition_memory.experiment import RecallSettings
from headcam.recognition_memory.harder.recall import (
    COLUMNS,
    ITEM_COLUMNS,
    Question,
    RecallTask,
    completion_distances,
    recall_items,
    recall_summary,
    recall_task,
)
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.stimuli.manifest import Pair, Stimulus

SETTINGS = RecallSettings(num=50, samples=2)


class Completer(Learner):
    """Completes noise, or the lower half that was stored with the nearest upper half."""

    img_size, unit = (6, 4), "none"

    def __init__(self, memory: torch.Tensor | None = None):
        super().__init__()
        self.memory, self.asked = memory, []

    def complete(self, pixels, rows, rng, temperature=1.0, top_k=128):
        self.asked.append((len(pixels), rows, temperature, top_k))
        made = pixels.clone()
        made[:, :, rows:] = torch.from_numpy(rng.integers(0, 256, tuple(made[:, :, rows:].shape), dtype=np.uint8))
        if self.memory is not None:
            upper = (pixels[:, None, :, :rows].float() - self.memory[None, :, :, :rows].float()).flatten(2)
            made[:, :, rows:] = self.memory[upper.square().sum(2).argmin(1), :, rows:]
        return made


def stimulus(name: str, condition: str, pair: int, seen: bool, study_set: str = "1") -> Stimulus:
    return Stimulus(study_set, f"{name}.png", "test", condition, pair, seen, "", name, ())


def some_pairs(condition: str, num: int, swapped: bool = False) -> list[Pair]:
    """Pictures a0, b0, a1, b1, ...; the b are studied in the second set."""
    names = ("b", "a") if swapped else ("a", "b")
    return [
        Pair(
            condition,
            k,
            *(stimulus(f"{name}{condition}{k}", condition, k, seen) for name, seen in zip(names, (True, False))),
        )
        for k in range(num)
    ]


def pictures_of(task: RecallTask, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (len(task.candidates), 3, 6, 4), dtype=np.uint8))


@pytest.fixture
def task() -> RecallTask:
    return recall_task({"novel": some_pairs("novel", 6), "state": some_pairs("state", 4)}, 50)


def both_states(task: RecallTask, after: Learner, pictures: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    how = {"seed": 3, "batch_size": 7}
    return (
        completion_distances(Completer(), pictures, task, SETTINGS, **how),
        completion_distances(after, pictures, task, SETTINGS, **how),
    )


def studied_of(task: RecallTask, pictures: torch.Tensor) -> torch.Tensor:
    return pictures[[question.candidate for question in task.questions if question.role == "studied"]]


def test_the_same_pairs_are_asked_of_both_role_swapped_sets_and_candidates_say_nothing_of_roles():
    one = recall_task({"novel": some_pairs("novel", 30), "state": some_pairs("state", 30)}, 10)
    two = recall_task({"novel": some_pairs("novel", 30, True), "state": some_pairs("state", 30, True)}, 10)
    assert (
        [s.sha256 for s in one.candidates]
        == [s.sha256 for s in two.candidates]
        == sorted(f"{name}{condition}{k}" for name in "ab" for condition in ("novel", "state") for k in range(30))
    )
    assert [(q.condition, q.pair, q.role) for q in one.questions] == [
        (q.condition, q.pair, q.role) for q in two.questions
    ]
    assert len(one.questions) == 20 and {q.condition for q in one.questions} == {"novel", "state"}
    for task, studied in ((one, "a"), (two, "b")):
        for question in task.questions:
            name = studied if question.role == "studied" else {"a": "b", "b": "a"}[studied]
            assert task.candidates[question.candidate].sha256 == f"{name}{question.condition}{question.pair}"


def test_a_picture_of_several_pairs_is_one_candidate():
    pairs = some_pairs("novel", 3)
    shared = Pair("state", 0, pairs[0].seen, stimulus("other", "state", 0, False))
    task = recall_task({"novel": pairs, "state": [shared]}, 50)
    assert len(task.candidates) == 7 and len(task.questions) == 8


def test_no_pairs_is_an_error():
    with pytest.raises(InputError, match="no pair to complete"):
        recall_task({"novel": []}, 5)


def test_distances_are_root_mean_squares_of_the_lower_half(task):
    pictures, learner = pictures_of(task), Completer()
    found = completion_distances(learner, pictures, task, SETTINGS, seed=3, batch_size=7)
    assert found.shape == (20, 20)
    assert learner.asked == [(7, 3, 1.0, 128)] * 4 + [(6, 3, 1.0, 128)] * 2  # batches of 7, 7 and 6, two samples each
    from headcam.randomness import stream

    shown = pictures[[question.candidate for question in task.questions]][7:14]
    drawn = [Completer().complete(shown, 3, stream(3, f"recall {sample}", 7)) for sample in range(2)]
    expected = np.mean(
        [(completed[2, :, 3:].double() - pictures[4, :, 3:].double()).square().mean() for completed in drawn]
    )
    assert found[9, 4] == pytest.approx(np.sqrt(expected), abs=1e-9)


def test_what_was_studied_is_recalled_and_foils_are_not(task):
    pictures = pictures_of(task)
    before, after = both_states(task, Completer(studied_of(task, pictures)), pictures)
    items = recall_items(task, before, after, study_set="1", seed=0, exposures=2)
    assert all(tuple(row) == ITEM_COLUMNS for row in items) and len(items) == 3 * 20
    for rule in ("raw", "calibrated"):
        of = {
            role: [row for row in items if row["rule"] == rule and row["role"] == role and row["exposures"]]
            for role in ("studied", "foil")
        }
        assert [(row["nearest"], row["rank"]) for row in of["studied"]] == [(1.0, 1.0)] * 10
        assert max(row["nearest"] for row in of["foil"]) == 0.0
    first = (
        recall_summary(items).query("study_set == '1' and exposures == 2 and rule == 'calibrated'").set_index("role")
    )
    assert (
        first.loc["studied", "recalled"] == 1.0 and first.loc["studied", "low"] < 1.0
    )  # ten pictures prove no certainty
    assert first.loc["studied minus foil", ["recalled", "low", "high", "chance"]].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert first.loc["studied", ["chance", "chance_rank", "n_pictures", "candidates"]].tolist() == [0.05, 10.5, 10, 20]


def test_a_learner_that_has_not_changed_is_at_chance_by_the_calibrated_rule(task):
    pictures = pictures_of(task)
    before, after = both_states(task, Completer(), pictures)
    rows = [
        row
        for row in recall_items(task, before, after, study_set="1", seed=0, exposures=1)
        if row["rule"] == "calibrated"
    ]
    assert {row["nearest"] for row in rows} == {1 / 20} and {row["rank"] for row in rows} == {10.5}


def test_a_model_that_completes_everything_well_shows_no_difference_between_studied_pictures_and_foils(task):
    pictures = pictures_of(task)
    before, after = both_states(task, Completer(pictures), pictures)
    summary = recall_summary(recall_items(task, before, after, study_set="1", seed=0, exposures=1))
    difference = summary.query("role == 'studied minus foil' and rule == 'raw' and exposures == 1 and study_set == '1'")
    assert difference["recalled"].tolist() == [0.0] and difference["mean_rank"].tolist() == [0.0]


def test_a_reproduction_to_the_pixel_cannot_be_outdone_however_the_model_completed_before():
    rng = np.random.default_rng(0)
    for _ in range(50):
        candidates = rng.integers(0, 256, (12, 9)).astype(float)
        start = rng.integers(-500, 700, 9).astype(float)  # completions before study, far outside of the candidates too
        before = np.linalg.norm(candidates - start, axis=1)[None]
        after = np.linalg.norm(candidates - candidates[4], axis=1)[None]
        task = RecallTask(tuple(range(12)), (Question("novel", 0, "studied", 4),))
        found = recall_items(task, before, after, study_set="1", seed=0, exposures=1)[2]
        assert found["rule"] == "calibrated" and (found["nearest"], found["rank"]) == (1.0, 1.0)


def test_ties_share_the_place():
    task = RecallTask(tuple(range(4)), (Question("novel", 0, "studied", 1), Question("novel", 0, "foil", 3)))
    after = np.array([[1.0, 1.0, 5.0, 5.0], [1.0, 5.0, 5.0, 5.0]])
    rows = recall_items(task, np.zeros((2, 4)), after, study_set="1", seed=0, exposures=1)[2:4]
    assert [(row["nearest"], row["rank"]) for row in rows] == [(0.5, 1.5), (0.0, 3.0)]


def test_runs_are_pooled_by_pair():
    base = {"exposures": 1, "condition": "novel", "rule": "raw", "rank": 1.0, "candidates": 4}
    items = [
        base
        | {
            "study_set": study_set,
            "seed": seed,
            "pair": pair,
            "role": role,
            "nearest": float(role == "studied" and pair == 0),
        }
        for study_set in "12"
        for seed in (0, 1)
        for pair in (0, 1)
        for role in ("studied", "foil")
    ]
    summary = recall_summary(items)
    assert tuple(summary) == COLUMNS
    runs = summary[["study_set", "seed"]].drop_duplicates()
    assert runs["study_set"].tolist() == ["1", "1", "2", "2", ""]
    assert runs["seed"].tolist()[:4] == [0, 1, 0, 1] and runs["seed"].isna().tolist()[4]
    pooled = summary[summary["study_set"] == ""].set_index("role")
    assert pooled.loc["studied", ["recalled", "low", "high"]].tolist() == [0.5, 0.0, 1.0]
    assert (pooled["n_pictures"] == 2).all()  # not eight: the runs share their pairs


def test_a_learner_that_completes_nothing_says_so(task):
    with pytest.raises(InputError, match="completes no pictures"):
        completion_distances(Learner(), pictures_of(task), task, SETTINGS, seed=0, batch_size=4)
