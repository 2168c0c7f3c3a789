"""A sweep is the same experiment in every cell, and its table says what the cells' own files say."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.recognition_memory import run as run_module
from headcam.recognition_memory.experiment import (
    Experiment,
    RecallSettings,
    SelectionSettings,
    StudySettings,
    SweepSettings,
)
from headcam.recognition_memory.harder import sweep as sweep_module
from headcam.recognition_memory.harder.sweep import COLUMNS, sweep, sweep_cells
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.running import selection as selection_module
from headcam.recognition_memory.stimuli.manifest import MemoryManifest, Stimulus

PAIRS, FILLERS = 8, 6
PREDICTIONS = 100


class Autoencoder(Learner):
    """A linear autoencoder with a bottleneck; diverges at learning rates that are far too high."""

    img_size, unit, predictions = (4, 4), "nats per pixel", PREDICTIONS

    def begin(self, seed, pictures):
        generator = torch.Generator().manual_seed(seed)
        self.down = torch.nn.Parameter(torch.randn(48, 12, generator=generator) / 7)
        self.up = torch.nn.Parameter(torch.randn(12, 48, generator=generator) / 4)

    def study_loss(self, pixels, rng):
        return self._errors(pixels).mean()

    def scores(self, pixels):
        return self._errors(pixels).detach().double()

    def _errors(self, pixels):
        x = pixels.flatten(1) / 255 - 0.5
        return (x @ self.down @ self.up - x).square().mean(1)


def write_manifest(folder: Path) -> Path:
    """Pairs of pictures a and b: set 1 studies the a, set 2 the b, both the fillers."""
    rng = np.random.default_rng(0)
    names = [f"{kind}{k}" for kind, num in (("a", PAIRS), ("b", PAIRS), ("f", FILLERS)) for k in range(num)]
    rows = {}
    for name in names:
        cv2.imwrite(str(folder / f"{name}.png"), rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        rows[name] = (f"{name}.png", sha256_file(folder / f"{name}.png"))
    stimuli = []
    for study_set, seen, unseen in (("1", "a", "b"), ("2", "b", "a")):
        studied = [f"{seen}{k}" for k in range(PAIRS)] + [f"f{k}" for k in range(FILLERS)]
        stimuli += [Stimulus(study_set, rows[n][0], "study", "", None, True, "", rows[n][1]) for n in studied]
        stimuli += [
            Stimulus(study_set, rows[n][0], "test", condition, k // 2, n[0] == seen, "", rows[n][1])
            for k in range(PAIRS)
            for condition in (("novel", "state")[k % 2],)
            for n in (f"{seen}{k}", f"{unseen}{k}")
        ]
    return MemoryManifest("pairs", folder, tuple(stimuli)).write(folder / "manifest.csv")


@pytest.fixture
def how(tmp_path) -> dict:
    return {"manifest": MemoryManifest.read(write_manifest(tmp_path)), "quiet": True}


@pytest.fixture
def experiment(monkeypatch) -> Experiment:
    monkeypatch.setattr(run_module, "build_learner", lambda spec: Autoencoder())
    return Experiment(
        "tiny",
        {"class_path": "Autoencoder"},
        study=StudySettings(exposures=2, batch_size=4, lr=0.01),
        recall=RecallSettings(),  # which this learner cannot: a sweep leaves it out
        sweep=SweepSettings(lr=[0.003, 0.03], list_length=[PAIRS, PAIRS + FILLERS]),
    )


def test_cells_are_all_combinations_and_what_has_no_list_keeps_its_setting(experiment):
    cells = sweep_cells(experiment)
    assert list(cells) == [
        "lr_0.003-list_length_8",
        "lr_0.003-list_length_14",
        "lr_0.03-list_length_8",
        "lr_0.03-list_length_14",
    ]
    assert cells["lr_0.03-list_length_8"] == StudySettings(exposures=2, batch_size=4, lr=0.03, list_length=8)
    experiment.sweep = SweepSettings(batch_size=[1, 2])
    assert list(sweep_cells(experiment)) == ["batch_size_1", "batch_size_2"]
    experiment.sweep = SweepSettings()
    with pytest.raises(InputError, match="sweep has no list of values"):
        sweep_cells(experiment)


def test_the_table_gathers_what_the_cells_say(tmp_path, how, experiment):
    table = pd.read_csv(sweep(experiment, tmp_path / "sweep", **how))
    assert tuple(table.columns) == COLUMNS
    assert set(table["condition"]) == {"novel", "state", "pooled"} and {"raw", "calibrated"} <= set(table["rule"])
    for name, rows in table.groupby("cell"):
        folder = tmp_path / "sweep" / name
        accuracy = pd.read_csv(folder / "accuracy.csv")
        keys = ["condition", "exposures", "rule"]
        merged = rows.merge(accuracy, on=keys, suffixes=("", "_of_cell"), validate="one_to_one")
        assert len(merged) == len(rows) == len(accuracy)
        for column in ("accuracy", "low", "high", "n_pairs", "n_runs"):
            assert (merged[column] == merged[f"{column}_of_cell"]).all()
        signals = pd.read_csv(folder / "signals.csv").merge(rows, on=keys, suffixes=("_of_cell", ""))
        assert len(signals) == len(rows)
        pictures = int(name.rsplit("_", 1)[1])
        for ours, theirs in (
            ("d_prime", "d_prime_2afc"),
            ("bits_2afc", "bits_2afc_of_cell"),
            ("bits_saved", "bits_saved_of_cell"),
        ):
            assert np.array_equal(signals[ours], signals[theirs], equal_nan=True)
        assert np.array_equal(rows["capacity_bits"], rows["bits_2afc"] * pictures, equal_nan=True)
        assert np.array_equal(rows["capacity_bits_saved"], rows["bits_saved"] * pictures, equal_nan=True)
        assert rows.loc[rows["rule"] == "calibrated", ["capacity_bits", "capacity_bits_saved"]].notna().all(axis=None)
        assert set(rows["study_pictures"]) == set(rows["list_length"]) == {pictures}
        assert set(rows["updates_per_exposure"]) == {-(-pictures // 4)}
    assert len(table.query("condition == 'pooled' and rule == 'calibrated' and exposures == 2")) == 4  # one a cell


def test_goes_on_after_the_cells_that_are_there(tmp_path, how, experiment, monkeypatch):
    experiment.study.exposures, experiment.sweep = 1, SweepSettings(lr=[0.003, 0.03])
    whole = sweep(experiment, tmp_path / "whole", **how).read_bytes()
    real, cells = sweep_module.run, []

    def stopping(one, folder, **settings):
        if len(cells) == 1:
            raise KeyboardInterrupt
        cells.append(folder)
        return real(one, folder, **settings)

    monkeypatch.setattr(sweep_module, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep(experiment, tmp_path / "stopped", **how)
    assert not (tmp_path / "stopped" / "sweep.csv").exists()
    monkeypatch.setattr(sweep_module, "run", real)
    before = (cells[0] / "losses.csv").stat().st_mtime_ns
    assert sweep(experiment, tmp_path / "stopped", **how).read_bytes() == whole
    assert (cells[0] / "losses.csv").stat().st_mtime_ns == before


def test_a_cell_that_diverges_is_a_row_with_its_reason(tmp_path, how, experiment):
    experiment.study.optimizer = "sgd"
    experiment.sweep = SweepSettings(lr=[0.01, 1e6])
    table = pd.read_csv(sweep(experiment, tmp_path / "sweep", **how))
    (bad,) = table[table["lr"] == 1e6].to_dict("records")
    assert "learning rate 1e+06" in bad["reason"] and np.isnan(bad["accuracy"]) and bad["batch_size"] == 4
    assert len(table) > 1 and table[table["lr"] == 0.01]["reason"].isna().all()


def test_each_cell_chooses_its_learning_rate_where_selection_is_asked_for_and_rates_are_not_swept(
    tmp_path, how, experiment, monkeypatch
):
    monkeypatch.setattr(selection_module, "build_learner", lambda spec: Autoencoder())
    (tmp_path / "other").mkdir()
    for k in range(16):
        picture = np.random.default_rng(100 + k).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "other" / f"{k}.png"), picture)
    experiment.seeds, experiment.sweep = [0], SweepSettings(batch_size=[2, 14])
    experiment.selection = SelectionSettings(str(tmp_path / "other"), [1e-6, 0.01])
    table = pd.read_csv(sweep(experiment, tmp_path / "sweep", **how))
    for cell, rows in table.groupby("cell"):
        tried = pd.read_csv(tmp_path / "sweep" / cell / "selection.csv").set_index("lr")
        assert set(rows["lr"]) == {tried["d_prime"].idxmax()}
        assert set(rows["batch_size"]) == {int(cell.removeprefix("batch_size_"))}
    experiment.sweep.lr = [0.02]
    table = pd.read_csv(sweep(experiment, tmp_path / "swept", **how))
    assert set(table["lr"]) == {0.02} and not list((tmp_path / "swept").rglob("selection.csv"))


def test_other_trouble_ends_the_sweep(tmp_path, how, experiment):
    experiment.sweep = SweepSettings(list_length=[PAIRS, PAIRS + FILLERS + 1])
    with pytest.raises(InputError, match="a study list of 15 pictures cannot be had"):
        sweep(experiment, tmp_path / "sweep", **how)
    assert not (tmp_path / "sweep").exists()  # said before any cell was run
    (tmp_path / "f0.png").unlink()
    experiment.sweep = SweepSettings(lr=[0.1])
    with pytest.raises(InputError, match=r"f0\.png"):
        sweep(experiment, tmp_path / "sweep", **how)
