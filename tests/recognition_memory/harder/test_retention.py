"""Retention: what the student goes on learning, when it is tested, and what the rows say."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.recognition_memory.experiment import RetentionSettings, StudySettings
from headcam.recognition_memory.harder.retention import retain, updates_of_tests
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.scoring.table import check_losses, groups
from headcam.recognition_memory.stimuli.manifest import MemoryManifest, Stimulus
from headcam.recognition_memory.study import Student


class Mean(Learner):
    """Knows the mean picture of what it has studied; keeps a list of the batches that it was given."""

    img_size, unit = (8, 8), "squared error"

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(3, 8, 8))
        self.batches = []

    def study_loss(self, pixels, rng):
        self.batches.append(pixels.clone())
        return (pixels / 255 - self.mean).square().mean() + 0 * float(rng.random())

    def scores(self, pixels):
        return (pixels / 255 - self.mean).square().flatten(1).mean(1).double().cpu()


def write_pictures(folder: Path, num: int, seed: int) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for k in range(num):
        cv2.imwrite(str(folder / f"{k:02d}.png"), rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return folder


@pytest.fixture
def manifest(tmp_path) -> MemoryManifest:
    """Four studied pictures, of which two are tested against two foils."""
    write_pictures(tmp_path / "own", 6, seed=0)
    files = [f"own/{k:02d}.png" for k in range(6)]
    hashes = [sha256_file(tmp_path / file) for file in files]
    study = [Stimulus("1", files[k], "study", "", None, True, "", hashes[k]) for k in range(4)]
    tests = [
        Stimulus("1", files[k + 4 * foil], "test", "novel", k, not foil, "", hashes[k + 4 * foil])
        for k in range(2)
        for foil in (0, 1)
    ]
    return MemoryManifest("six", tmp_path, (*study, *tests))


def row(pair: int, exposures: int, seen: float, unseen: float) -> dict:
    keys = {"model": "mean", "pretraining": "none", "study_set": "1", "seed": 0, "condition": "novel"}
    return keys | {"exposures": exposures, "pair": pair, "loss_seen": seen, "loss_unseen": unseen, "test": ""}


BEFORE = [row(0, 0, 1.0, 2.0), row(1, 0, 3.0, 4.0)]


def learn(data, manifest, *, seed: int = 0, batch_size: int = 4, **settings):
    """What came of it, the learner, and the state of its weights at each re-test."""
    learner, states = Mean(), []
    student = Student(learner, StudySettings(lr=0.01, batch_size=batch_size), seed)

    def tests() -> list[dict]:
        states.append((student.updates, learner.mean.detach().clone()))
        return [row(pair, 3, float(student.updates), -float(student.updates)) for pair in (0, 1)]

    how = {"batch_size": batch_size, "seed": seed, "quiet": True}
    return retain(student, RetentionSettings(str(data), **settings), manifest, tests, BEFORE, **how), learner, states


def test_updates_are_spaced_by_their_logarithm_and_end_with_the_last():
    assert updates_of_tests(RetentionSettings("x", updates=1000)) == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
    assert updates_of_tests(RetentionSettings("x", updates=8)) == (1, 2, 4, 8)
    assert updates_of_tests(RetentionSettings("x", updates=1)) == (1,)
    assert updates_of_tests(RetentionSettings("x", updates=9, tests=[7, 3])) == (3, 7)


def test_is_tested_after_the_very_updates_and_the_rows_can_be_scored(tmp_path, manifest):
    found, _, states = learn(write_pictures(tmp_path / "other", 20, 1), manifest, updates=5)
    assert [updates for updates, _ in states] == [1, 2, 4, 5]
    assert [entry["updates"] for entry in found.log] == [1, 2, 4, 5]
    after = [r for r in found.rows if r["exposures"] == 3]
    assert [(r["test"], r["pair"], r["loss_seen"]) for r in after] == [
        (f"after {n} updates", pair, float(n)) for n in (1, 2, 4, 5) for pair in (0, 1)
    ]
    arranged = groups(check_losses(pd.DataFrame(found.rows), "rows"))
    assert sorted(group.test for group in arranged) == [f"after {n} updates" for n in (1, 2, 4, 5)]
    for group in arranged:
        assert group.exposures == (0, 3)
        assert group.losses["novel"][0, 0, 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_each_picture_once_in_a_pass_and_batches_of_different_pictures(tmp_path, manifest):
    found, learner, _ = learn(write_pictures(tmp_path / "other", 10, 1), manifest, updates=5)
    contents = [[picture.numpy().tobytes() for picture in batch] for batch in learner.batches]
    assert [len(set(batch)) for batch in contents] == [4] * 5
    assert len({*contents[0], *contents[1]}) == len({*contents[2], *contents[3]}) == 8  # two batches of 4 of 10 a pass
    assert contents[0] != contents[2]  # another order
    shown = {picture for batch in contents for picture in batch}
    last = found.log[-1]
    assert (last["pictures"], last["different"], last["passes"]) == (20, len(shown), 3)
    assert [entry["passes"] for entry in found.log] == [1, 1, 2, 3]
    (note,) = found.notes
    assert note.endswith(f"has fewer pictures than 5 batches of 4; {len(shown)} were learned in 3 passes")


def test_the_batches_follow_from_the_seed(tmp_path, manifest):
    data = write_pictures(tmp_path / "other", 40, 1)
    runs = [learn(data, manifest, updates=3, seed=seed) for seed in (0, 0, 1)]
    assert not runs[0][0].notes
    first, again, other = ([batch for batch in learner.batches] for _, learner, _ in runs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(runs[0][2][-1][1], runs[1][2][-1][1])  # to the bit
    assert runs[0][0].log == runs[1][0].log


def test_the_loss_of_the_log_is_of_the_updates_since_the_last_re_test(tmp_path, manifest):
    found, learner, _ = learn(write_pictures(tmp_path / "other", 40, 1), manifest, updates=4)
    student = Student(Mean(), StudySettings(lr=0.01, batch_size=4), 0)
    losses = [student.update(batch, np.random.default_rng(0)) for batch in learner.batches]
    means = [entry["other_loss"] for entry in found.log]
    assert means == pytest.approx([losses[0], losses[1], (losses[2] + losses[3]) / 2], rel=1e-12)


def test_a_learner_without_a_loss_has_none_in_the_log(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr(Mean, "study_loss", lambda self, pixels, rng: None)
    found, _, _ = learn(write_pictures(tmp_path / "other", 8, 1), manifest, updates=2)
    assert [entry["other_loss"] for entry in found.log] == [None, None]


def test_frames_of_a_store_in_batches_of_their_own_size(stores, manifest):
    found, learner, _ = learn(stores[0], manifest, updates=2, batch_size=4)
    assert [len(batch) for batch in learner.batches] == [4, 4] and found.log[-1]["different"] == 8
    student = Student(Mean(), StudySettings(), 0)
    settings = RetentionSettings(str(stores[0]), updates=1, batch_size=9)
    retain(student, settings, manifest, list, [], batch_size=4, seed=0, quiet=True)
    assert [len(batch) for batch in student.learner.batches] == [9]


def test_a_picture_of_the_experiment_is_refused_from_a_folder_and_from_a_store(tmp_path, manifest):
    from headcam.video.index import index
    from headcam.video.stores.frame_store import store

    data = write_pictures(tmp_path / "other", 8, 1)
    (data / "copy.png").write_bytes((tmp_path / "own" / "05.png").read_bytes())  # a foil, under another name
    with pytest.raises(InputError, match=r"1 pictures of .*other belong to the experiment six, such as own/05\.png"):
        learn(data, manifest, updates=3)
    index(data, tmp_path / "index.parquet", processes=1)
    store(tmp_path / "index.parquet", tmp_path / "store", processes=1)
    for kind in ("index.parquet", "store"):
        with pytest.raises(InputError, match=r"1 pictures of .* belong to the experiment six, such as own/05\.png"):
            learn(tmp_path / kind, manifest, updates=3)


def test_too_few_pictures_and_damaged_ones(tmp_path, manifest):
    data = write_pictures(tmp_path / "other", 5, 1)
    with pytest.raises(InputError, match=r"has 5 pictures, fewer than a batch of 6"):
        learn(data, manifest, updates=1, batch_size=6)
    (data / "02.png").write_bytes(b"nothing")
    found, learner, _ = learn(data, manifest, updates=3)
    assert found.log[-1]["different"] == 4 and len(learner.batches) == 3
    assert any("1 pictures could not be decoded, such as" in note and "02.png" in note for note in found.notes)
    (data / "01.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"only 3 pictures of .* could be decoded, fewer than a batch of 4"):
        learn(data, manifest, updates=3)
