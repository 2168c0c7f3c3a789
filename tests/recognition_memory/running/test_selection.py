"""The learning rate is chosen on other pictures, by the sharpness of the memory, and never by what is tested."""

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.recognition_memory.experiment import Experiment, SelectionSettings, StudySettings
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.running import selection
from headcam.recognition_memory.running.selection import COLUMNS, select_lr
from headcam.recognition_memory.stimuli.manifest import MemoryManifest, Stimulus
from headcam.recognition_memory.study import Diverged
from headcam.video.items import open_items


class Linear(Learner):
    """Familiarity is linear in the pixels: after one step of plain gradient descent all is known in closed form."""

    img_size, unit = (4, 4), "none"

    def begin(self, seed, pictures):
        self.weights = torch.nn.Parameter(torch.zeros(48, dtype=torch.float64))

    def study_loss(self, pixels, rng):
        return torch.nn.functional.softplus(-self._of(pixels)).mean()

    def scores(self, pixels):
        return -self._of(pixels).detach()

    def _of(self, pixels):
        return (pixels.flatten(1).double() - 128) @ self.weights


class Peaked(Learner):
    """Its trace is s exp(-s) where s is learning rate times updates: strongest at s = 1. Beyond 50, study diverges."""

    img_size, unit = (4, 4), "none"

    def begin(self, seed, pictures):
        self.strength = torch.nn.Parameter(torch.zeros(()))
        self.studied = set()

    def study_loss(self, pixels, rng):
        self.studied.update(picture.numpy().tobytes() for picture in pixels)
        return -self.strength if self.strength < 50 else self.strength * float("nan")

    def scores(self, pixels):
        contents = [picture.numpy().tobytes() for picture in pixels]
        when = b"after" if self.studied else b"before"
        return torch.tensor(
            [noise(c) + 0.3 * noise(c + when) - (self.trace() if c in self.studied else 0) for c in contents]
        )

    def trace(self) -> float:
        strength = float(self.strength)
        return strength * np.exp(-strength)


class Saturated(Peaked):
    """The same trace at every rate."""

    def trace(self) -> float:
        return 0.5


class Complex(Peaked):
    """The same traces in pictures whose scores differ a hundred times more."""

    def scores(self, pixels):
        return super().scores(pixels) + torch.tensor([100 * noise(b"complex" + p.numpy().tobytes()) for p in pixels])


def noise(content: bytes) -> float:
    """Uniform in [0, 1), and always the same for the same bytes."""
    return int.from_bytes(hashlib.sha256(content).digest()[:4]) / 2**32


class Store(Learner):
    """Keeps pictures without learning by gradients."""

    img_size, unit = (4, 4), "none"

    def study_loss(self, pixels, rng):
        return None

    def scores(self, pixels):
        return pixels.flatten(1).double().mean(1)


def write_pictures(folder: Path, num: int, seed: int) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for k in range(num):
        cv2.imwrite(str(folder / f"{k:03d}.png"), rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return folder


@pytest.fixture
def manifest(tmp_path) -> MemoryManifest:
    """One pair: picture 0 is studied, picture 1 is its foil."""
    own = write_pictures(tmp_path / "own", 2, seed=0)
    hashes = [sha256_file(own / f"{k:03d}.png") for k in range(2)]
    rows = (("study", "", None, True, 0), ("test", "novel", 0, True, 0), ("test", "novel", 0, False, 1))
    return MemoryManifest(
        "own",
        tmp_path,
        tuple(
            Stimulus("1", f"own/{k:03d}.png", role, condition, pair, seen, "", hashes[k])
            for role, condition, pair, seen, k in rows
        ),
    )


@pytest.fixture
def begun(monkeypatch) -> list[torch.Tensor]:
    """Lets experiments name the learners of this file; fills with the pictures of every study that was begun."""
    kinds, begun = {kind.__name__: kind for kind in (Linear, Peaked, Complex, Saturated, Store)}, []

    def build(spec):
        learner = kinds[spec["class_path"]]()
        real = learner.begin
        learner.begin = lambda seed, pictures: (begun.append(pictures), real(seed, pictures))
        return learner

    monkeypatch.setattr(selection, "build_learner", build)
    return begun


def experiment(data: Path, kind: str = "Peaked", lrs=(0.1, 1.0, 5.0), **settings) -> Experiment:
    chosen = SelectionSettings(str(data), list(lrs), **settings)
    study = StudySettings(batch_size=256, optimizer="sgd")
    return Experiment("model", {"class_path": kind}, study=study, selection=chosen)


def rows_of(folder: Path) -> list[dict]:
    with open(folder / "selection.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_sharpest_memory_wins(tmp_path, manifest, begun):
    other = write_pictures(tmp_path / "other", 60, 1)
    found = select_lr(experiment(other), manifest, tmp_path / "out", quiet=True)
    assert found.lr == 1.0
    assert [row["lr"] for row in found.table] == [0.1, 1.0, 5.0]
    assert found.table[1]["d_prime"] > 1.3 * max(found.table[0]["d_prime"], found.table[2]["d_prime"])
    assert all(row["pairs"] == 60 and row["finite"] for row in found.table)  # both directions of 30 pairs
    assert found.table[1]["studied_before"] - found.table[1]["studied_after"] > 0.2
    assert "60 other pictures, half studied and half foils, both ways round" in found.notes[0]


def test_d_prime_is_that_of_the_calibrated_margins_of_both_directions(tmp_path, manifest, begun):
    other = write_pictures(tmp_path / "other", 24, 1)
    (row,) = select_lr(experiment(other, "Linear", [0.01]), manifest, tmp_path / "out", quiet=True).table
    pictures = (open_items(other, (4, 4), num=24).stacked().flatten(1).double() - 128).numpy()
    order = (begun[0].flatten(1).double() - 128).numpy()  # which half a picture is in is the seed's business
    assert sorted(map(tuple, order)) == sorted(map(tuple, pictures)) and not np.array_equal(order, pictures)
    margins = []
    for studied, foils in ((order[:12], order[12:]), (order[12:], order[:12])):
        weights = 0.01 * 0.5 * studied.mean(axis=0)  # one step from zero, where the sigmoid is a half
        margins += list((studied - foils) @ weights)
    assert row["d_prime"] == pytest.approx(np.mean(margins) / np.std(margins, ddof=1), rel=1e-9)
    assert row["accuracy"] == pytest.approx(np.mean(np.array(margins) > 0))
    assert row["studied_before"] == row["foils_before"] == 0.0


def test_how_much_pictures_differ_says_nothing(tmp_path, manifest, begun):
    other = write_pictures(tmp_path / "other", 40, 1)
    plain, complex_ones = (
        select_lr(experiment(other, kind), manifest, tmp_path / kind, quiet=True) for kind in ("Peaked", "Complex")
    )
    for ours, theirs in zip(complex_ones.table, plain.table, strict=True):
        assert ours["d_prime"] == pytest.approx(theirs["d_prime"], rel=1e-6) and ours["accuracy"] == theirs["accuracy"]


def test_where_rates_do_equally_well_the_smaller_one_is_taken(tmp_path, manifest, begun):
    other = write_pictures(tmp_path / "other", 20, 1)
    found = select_lr(experiment(other, "Saturated", [5.0, 1.0, 3.0]), manifest, tmp_path / "out", quiet=True)
    assert len({row["d_prime"] for row in found.table}) == 1 and found.lr == 1.0
    assert any("1 is at the edge of selection.lrs" in note for note in found.notes)


def test_a_diverging_rate_is_left_out_with_the_reason(tmp_path, manifest, begun):
    other = write_pictures(tmp_path / "other", 40, 1)
    tried = experiment(other, lrs=[0.5, 100.0], exposures=2)
    found = select_lr(tried, manifest, tmp_path / "out", quiet=True)
    assert found.lr == 0.5
    assert found.table[1]["finite"] is False and "nan at exposure 2" in found.table[1]["reason"]
    assert found.table[1]["d_prime"] is None
    assert any(note.startswith("learning rate 100 left out of the choice: the study loss") for note in found.notes)
    with pytest.raises(
        Diverged, match=r"diverges at every learning rate of selection.lrs \(100, 200\): the study loss"
    ):
        select_lr(experiment(other, lrs=[100.0, 200.0], exposures=2), manifest, tmp_path / "other out", quiet=True)


def test_goes_on_after_what_is_there_and_forgets_what_is_of_other_settings(tmp_path, manifest, begun):
    other, out = write_pictures(tmp_path / "other", 30, 1), tmp_path / "out"
    whole = select_lr(experiment(other), manifest, out, quiet=True)
    text = (out / "selection.csv").read_bytes()
    begun.clear()
    assert select_lr(experiment(other), manifest, out, quiet=True) == whole and not begun
    lines = text.decode().splitlines(keepends=True)
    (out / "selection.csv").write_text("".join(lines[:2]))  # as if it had been stopped after the first rate
    begun.clear()
    assert select_lr(experiment(other), manifest, out, quiet=True) == whole and len(begun) == 2 * 2
    assert (out / "selection.csv").read_bytes() == text
    for changed in (
        replace(experiment(other), study=StudySettings(batch_size=8, optimizer="sgd")),
        experiment(other, seed=1),
        experiment(other, num=20),
        experiment(other, exposures=2),
    ):
        begun.clear()
        select_lr(changed, manifest, out, quiet=True)
        assert len(begun) == 3 * 2
        assert {tuple(row) for row in rows_of(out)} == {COLUMNS} and len(rows_of(out)) == 3
    begun.clear()
    more = replace(experiment(other), study=StudySettings(batch_size=256, optimizer="sgd", lr=3.0, list_length=7))
    (out / "selection.csv").write_bytes(text)
    assert select_lr(more, manifest, out, quiet=True).lr == whole.lr and not begun  # neither says anything here


def test_pictures_of_the_experiment_are_refused(tmp_path, manifest, begun):
    other = write_pictures(tmp_path / "other", 30, 1)
    (other / "copy.png").write_bytes((tmp_path / "own" / "001.png").read_bytes())
    with pytest.raises(InputError, match=r"1 pictures of .*other belong to the experiment own, such as own/001\.png"):
        select_lr(experiment(other), manifest, tmp_path / "out", quiet=True)


def test_another_manifest_serves_unless_it_shares_pictures(tmp_path, manifest, begun):
    write_pictures(tmp_path / "other", 20, 1)
    hashes = [sha256_file(tmp_path / "other" / f"{k:03d}.png") for k in range(20)]
    stimuli = [Stimulus("1", f"other/{k:03d}.png", "study", "", None, True, "", hashes[k]) for k in range(19)]
    stimuli += [
        Stimulus("1", f"other/{k:03d}.png", "test", "novel", 0, seen, "", hashes[k])
        for seen, k in ((True, 0), (False, 19))
    ]
    table = MemoryManifest("other", tmp_path, tuple(stimuli)).write(tmp_path / "stimuli.csv")
    found = select_lr(experiment(table), manifest, tmp_path / "out", quiet=True)
    assert {row["pairs"] for row in found.table} == {20}  # each picture once, whatever its roles
    shared = replace(stimuli[3], path="own/000.png", sha256=manifest.stimuli[0].sha256)
    table = MemoryManifest("shared", tmp_path, (*stimuli, shared)).write(tmp_path / "shared.csv")
    with pytest.raises(InputError, match=r"1 pictures of .*shared\.csv belong to the experiment own, such as own/000"):
        select_lr(experiment(table), manifest, tmp_path / "out", quiet=True)


def test_a_picture_that_occurs_twice_is_one(tmp_path, manifest, begun):
    other = write_pictures(tmp_path / "other", 21, 1)
    for k in range(9):
        (other / f"copy {k}.png").write_bytes((other / f"{k:03d}.png").read_bytes())
    found = select_lr(experiment(other), manifest, tmp_path / "out", quiet=True)
    assert {row["pairs"] for row in found.table} == {20}


def test_too_few_pictures_and_learners_without_a_rate(tmp_path, manifest, begun):
    other = write_pictures(tmp_path / "other", 15, 1)
    with pytest.raises(InputError, match="has 15 different pictures, too few"):
        select_lr(experiment(other), manifest, tmp_path / "out", quiet=True)
    write_pictures(tmp_path / "more", 16, 1)
    with pytest.raises(InputError, match="Store learns nothing by gradients"):
        select_lr(experiment(tmp_path / "more", "Store"), manifest, tmp_path / "out", quiet=True)
