"""Runs: exact, the same after a kill, never of another experiment, and with everything said that limits them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from headcam.errors import InputError, StorageError
from headcam.recognition_memory import run as module
from headcam.recognition_memory.experiment import (
    Experiment,
    RecallSettings,
    RetentionSettings,
    StudySettings,
    SweepSettings,
    TestSettings,
    build_learner,
)
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.running import one_run
from headcam.recognition_memory.running.materials import gather
from headcam.recognition_memory.scoring.table import read_losses
from headcam.recognition_memory.stimuli.manifest import MemoryManifest, load_pictures
from headcam.recognition_memory.stimuli.prepare import prepare
from headcam.recognition_memory.study import Diverged, Student, study_order

GPT = {
    "class_path": "headcam.recognition_memory.learners.gpt.GPTLearner",
    "init_args": {"img_size": 6, "colours": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
}
PIXELS = {"class_path": "headcam.recognition_memory.learners.bounds.PixelStore", "init_args": {"img_size": 6}}


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(path)


def make_stimuli(folder: Path, *, sets=("1", "2"), pairs=4, fillers=5, leak=(), double=()) -> Path:
    """Role-swapped sets of two conditions. Of set 2, the foils `leak` are studied and the fillers `double` doubled."""
    for study_set in sets:
        home = folder / f"set_{study_set}"
        for k in range(fillers):
            picture(home / "study" / f"filler_{k}.png", k)
        for c, condition in enumerate(("novel", "state")):
            for pair in range(pairs):
                two = [1000 + 100 * c + 2 * pair, 1001 + 100 * c + 2 * pair]
                seen, foil = two if study_set == "1" else two[::-1]
                picture(home / "study" / f"{condition}_{pair}.png", seen)
                picture(home / "test" / f"{condition}_seen" / f"{pair}.png", seen)
                picture(home / "test" / f"{condition}_unseen" / f"{pair}.png", foil)
                if study_set == "2" and (condition, pair) in leak:
                    picture(home / "study" / f"leak_{condition}_{pair}.png", foil)
        for k in double if study_set == "2" else ():
            picture(home / "study" / f"twice_{k}.png", k)
    return prepare(folder, quiet=True).manifest


@pytest.fixture(scope="module")
def stimuli(tmp_path_factory) -> Path:
    return make_stimuli(tmp_path_factory.mktemp("stimuli"))


def an_experiment(learner=GPT, **settings) -> Experiment:
    settings = {"study": StudySettings(exposures=3, batch_size=4, lr=5e-3), "seeds": [0, 1]} | settings
    return Experiment("tiny", learner, **settings)


def run(experiment: Experiment, out: Path, manifest: Path):
    return module.run(experiment, out, manifest=manifest, quiet=True)


@pytest.fixture(scope="module")
def finished(stimuli, tmp_path_factory) -> Path:
    """An experiment that was never interrupted."""
    out = tmp_path_factory.mktemp("finished")
    run(an_experiment(), out, stimuli)
    return out


def tables(out: Path) -> dict[str, bytes]:
    study = pd.read_csv(out / "study.csv", dtype=str).drop(columns="seconds").to_csv().encode()
    return {"study": study} | {name: (out / name).read_bytes() for name in ("losses.csv", "positions.csv")}


def about(out: Path) -> dict:
    return json.loads((out / "experiment.json").read_text())


def test_the_table_has_every_pair_of_every_exposure(finished):
    table = read_losses(finished / "losses.csv")
    assert len(table) == 2 * 2 * 4 * 2 * 4  # sets, seeds, exposures 0 to 3, conditions, pairs
    assert sorted(table.exposures.unique()) == [0, 1, 2, 3]
    assert not (table.test != "").any()
    assert set(table.model) == {"tiny"} and set(table.pretraining) == {"none"} and set(table.study_set) == {"1", "2"}
    before = table[table.exposures == 0].set_index(["study_set", "seed", "condition", "pair"])
    # The same picture in both sets, before study: the same score, since the weights are those of the seed.
    assert (before.loc["1"].loss_seen == before.loc["2"].loss_unseen).all()
    assert (before.loc[("1", 0)].loss_seen != before.loc[("1", 1)].loss_seen).all()
    last = table[table.exposures == 3].set_index(before.index.names)
    assert (last.loss_seen < before.loss_seen).mean() > 0.9


def test_the_table_says_what_the_learner_says(finished, stimuli):
    """The scores of set 2, seed 1 against the learner driven by hand, from the files."""
    experiment, manifest = an_experiment(), MemoryManifest.read(stimuli)
    by_hash = {s.sha256: s for s in manifest.stimuli}
    everything = load_pictures(manifest, [by_hash[key] for key in sorted(by_hash)], (6, 6))
    learner = build_learner(experiment.learner)
    learner.begin(1, everything)
    student = Student(learner, experiment.study, 1)
    studied = load_pictures(manifest, manifest.study("2"), (6, 6))
    pairs = manifest.pairs("2", "state")
    table = read_losses(finished / "losses.csv").query("study_set == '2' and seed == 1 and condition == 'state'")
    for exposure in range(4):
        if exposure:
            student.expose(studied, exposure)
        rows = table[table.exposures == exposure]
        for column, side in (("loss_seen", "seen"), ("loss_unseen", "unseen")):
            pixels = load_pictures(manifest, [getattr(pair, side) for pair in pairs], (6, 6))
            np.testing.assert_allclose(rows[column], student.scores(pixels, 64), rtol=1e-6)


def test_study_and_positions(finished, stimuli):
    study = pd.read_csv(finished / "study.csv", dtype={"study_set": str})
    assert list(study.columns) == list(module.STUDY_COLUMNS)
    assert study[study.seed == 0].updates.tolist() == [0, 4, 8, 12] * 2  # 13 pictures in batches of 4, 4, 4, 1
    assert study[study.exposures == 0].study_loss.isna().all()
    assert study[study.exposures > 0].study_loss.notna().all()
    table = read_losses(finished / "losses.csv")
    means = table.groupby(["study_set", "seed", "exposures"])[["loss_seen", "loss_unseen"]].mean().reset_index()
    both = study.merge(means, on=["study_set", "seed", "exposures"], suffixes=("", "_table"))
    np.testing.assert_allclose(both.loss_seen, both.loss_seen_table)
    np.testing.assert_allclose(both.loss_unseen, both.loss_unseen_table)

    positions = pd.read_csv(finished / "positions.csv", dtype={"study_set": str})
    assert len(positions) == 2 * 2 * 3 * 8
    manifest = MemoryManifest.read(stimuli)
    listed = [s.sha256 for s in manifest.study("2")]
    row = positions.query("study_set == '2' and seed == 1 and exposures == 2 and condition == 'novel' and pair == 3")
    order = study_order(len(listed), 1, 2)
    assert listed[order[row.position.item()]] == manifest.pairs("2", "novel")[3].seen.sha256


def test_what_has_to_be_known_is_beside_the_numbers(finished, stimuli):
    facts = about(finished)
    assert facts["contract"] == "memory_experiment/1" and facts["complete"]
    assert facts["unit"] == "nats per token" and facts["predictions"] == 36
    assert facts["manifest"] == {
        "name": stimuli.parent.name,
        "path": str(stimuli),
        "hash": MemoryManifest.read(stimuli).hash,
        "role_swapped": True,
    }
    assert facts["study_pictures"] == {"1": 13, "2": 13} and facts["updates_per_exposure"] == {"1": 4, "2": 4}
    assert facts["lr"] == 5e-3 and facts["lr_chosen"] == "as given"
    assert facts["parameters"] > 1000 and facts["hours"] is None and facts["bound"] == ""
    assert facts["notes"] == []
    assert [path.name for path in (finished / "runs" / "1-0").iterdir()] == ["rows.json"]


class Stop(Exception):
    """What stands for a kill."""


@pytest.mark.parametrize("at", [0, 5, 9, 30])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(finished, stimuli, tmp_path, monkeypatch, at):
    """Stopped in the middle of an update: before the first exposure, within it, within the third, in another run."""
    update, done = Student.update, []

    def stopping(self, *arguments):
        done.append(1)
        if len(done) > at:
            raise Stop
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Student, "update", stopping)
        with pytest.raises(Stop):
            run(an_experiment(), tmp_path, stimuli)
    assert not (tmp_path / "losses.csv").exists() and not about(tmp_path)["complete"]
    counted = []
    monkeypatch.setattr(Student, "update", lambda self, *a: counted.append(1) or update(self, *a))
    run(an_experiment(), tmp_path, stimuli)
    assert tables(tmp_path) == tables(finished)
    assert len(counted) == 48 - at // 4 * 4  # only what was left, from the last whole exposure
    counted.clear()
    assert run(an_experiment(), tmp_path, stimuli).table == tmp_path / "losses.csv"
    assert not counted


def test_a_killed_process_leaves_nothing_that_hurts(finished, stimuli, tmp_path):
    program = (
        "import sys; from headcam.recognition_memory.run import run; "
        "from headcam.recognition_memory.experiment import Experiment, StudySettings; import torch; "
        f"torch.set_num_threads(1); study = StudySettings(exposures=3, batch_size=4, lr=5e-3); "
        f"run(Experiment('tiny', {GPT!r}, study=study), sys.argv[1], manifest=sys.argv[2], quiet=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(stimuli)])
    states = [tmp_path / "runs" / f"{study_set}-{seed}" / "state.pt" for study_set in "12" for seed in (0, 1)]
    while process.poll() is None and not any(path.exists() for path in states[1:]):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "losses.csv").exists()
    run(an_experiment(), tmp_path, stimuli)
    assert tables(tmp_path) == tables(finished)
    assert not any(path.exists() for path in states)


def test_a_full_disk_is_one_line(stimuli, tmp_path, monkeypatch):
    def full(state, file):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(one_run.torch, "save", full)
    with pytest.raises(StorageError, match=r"state.pt could not be written: No space left"):
        run(an_experiment(), tmp_path, stimuli)


def test_a_folder_of_another_experiment_is_refused(finished, stimuli, tmp_path):
    other = an_experiment(study=StudySettings(exposures=3, batch_size=4, lr=1e-2))
    with pytest.raises(InputError, match=r"another experiment: study.lr is 0.005 there and 0.01 here") as raised:
        run(other, finished, stimuli)
    assert str(finished) in str(raised.value)
    with pytest.raises(InputError, match=r"learner.init_args.depth is 1 there and 2 here"):
        run(an_experiment({**GPT, "init_args": {**GPT["init_args"], "depth": 2}}), finished, stimuli)
    with pytest.raises(InputError, match="the manifest differs"):
        run(an_experiment(), finished, make_stimuli(tmp_path, pairs=3))
    moved = stimuli.parent.rename(stimuli.parent.with_name("moved"))  # the same stimuli elsewhere
    try:
        assert run(an_experiment(), finished, moved / stimuli.name).folder == finished
    finally:
        moved.rename(stimuli.parent)


def test_a_changed_picture_is_named(tmp_path):
    manifest = make_stimuli(tmp_path / "stimuli")
    changed = tmp_path / "stimuli" / "set_1" / "study" / "filler_0.png"
    changed.write_bytes(changed.read_bytes() + b" ")
    for other in (tmp_path / "stimuli" / "set_2" / "study").glob("filler_0.png"):
        other.write_bytes(changed.read_bytes())
    with pytest.raises(InputError, match=r"filler_0.png has changed"):
        run(an_experiment(), tmp_path / "out", manifest)


def test_pairs_whose_foil_is_studied_are_left_out_and_said(tmp_path):
    manifest = make_stimuli(tmp_path / "stimuli", leak=[("novel", 2)], double=[0, 3])
    result = run(an_experiment(seeds=[0]), tmp_path / "out", manifest)
    table = read_losses(result.table)
    kept = table.groupby(["study_set", "condition"]).pair.unique().map(list).to_dict()
    assert kept == {(s, c): [0, 1, 3] if c == "novel" else [0, 1, 2, 3] for s in "12" for c in ("novel", "state")}
    facts = about(tmp_path / "out")
    assert facts["study_pictures"] == {"1": 13, "2": 14} and facts["pairs"]["2"] == {"novel": 3, "state": 4}
    notes = "\n".join(result.notes)
    assert (
        "1 pairs of condition novel are not tested, in no study set: their foil is studied in set 2 (pairs 2)" in notes
    )
    assert result.pairs_left_out == facts["pairs_left_out"] == 2, "in both sets, where one has the leak"
    assert "2 pictures lie in the study list of set 2 more than once; they are studied once" in notes
    assert "not role-swapped" not in notes
    assert "one seed" in notes
    assert facts["notes"] == list(result.notes)

    kept = run(an_experiment(seeds=[0], test=TestSettings(flagged="keep")), tmp_path / "kept", manifest)
    assert len(read_losses(kept.table).query("condition == 'novel' and study_set == '2' and exposures == 0")) == 4
    assert about(tmp_path / "kept")["study_pictures"] == {"1": 13, "2": 16}
    assert kept.pairs_left_out == 0
    assert "are tested in set 2 although their foil is studied (pairs 2)" in "\n".join(kept.notes)


def test_one_set_and_some_conditions(stimuli, tmp_path):
    experiment = an_experiment(study_sets=["2"], test=TestSettings(conditions=["state"]))
    result = run(experiment, tmp_path / "one", stimuli)
    table = read_losses(result.table)
    assert set(table.study_set) == {"2"} and set(table.condition) == {"state"}
    assert any(note.startswith("one study set") for note in result.notes)
    with pytest.raises(InputError, match=r"study_sets holds 3, which manifest .* does not. Fix: use 1, 2"):
        run(an_experiment(study_sets=["3"]), tmp_path / "two", stimuli)
    with pytest.raises(InputError, match=r"test.conditions holds exemplar.* use novel, state"):
        run(an_experiment(test=TestSettings(conditions=["exemplar"])), tmp_path / "three", stimuli)


def test_sets_that_are_not_role_swapped_are_noted(tmp_path):
    for study_set, first in (("1", 0), ("2", 50)):
        for k in range(3):
            home = tmp_path / "stimuli" / study_set
            picture(home / "study" / f"{k}.png", first + k)
            picture(home / "test" / "novel_seen" / f"{k}.png", first + k)
            picture(home / "test" / "novel_unseen" / f"{k}.png", first + 20 + k)
    result = run(an_experiment(PIXELS), tmp_path / "out", prepare(tmp_path / "stimuli", quiet=True).manifest)
    assert any("not role-swapped" in note for note in result.notes)


def test_variants_are_rows_with_a_test(stimuli, tmp_path):
    experiment = an_experiment(PIXELS, seeds=[0], test=TestSettings(variants=["noise:25", "foil:mirror"]))
    result = run(experiment, tmp_path, stimuli)
    table = read_losses(result.table)
    assert set(table.test) == {"", "noise 25", "foil mirror", "foil mirror, not studied"}
    assert table.test.value_counts().nunique() == 1
    after = table[table.exposures == 1].set_index("test")
    assert (after.loc[""].loss_seen == 0).all() and (after.loc["noise 25"].loss_seen > 0).all()
    assert (after.loc["foil mirror"].loss_seen == 0).all() and (after.loc["foil mirror"].loss_unseen > 0).all()
    # The control asks the same of the pictures that were not studied: the foils of the plain test, mirrored.
    control, plain = after.loc["foil mirror, not studied"], after.loc[""]
    np.testing.assert_array_equal(control.loss_seen, plain.loss_unseen)
    assert (control.loss_unseen != control.loss_seen).all()
    facts = about(tmp_path)
    assert facts["bound"] == "upper bound" == facts["bounds"][""] and facts["bounds"]["noise 25"] == ""
    assert any("plain test" in note and "upper bound" in note for note in result.notes)
    assert facts["parameters"] == 0
    study = pd.read_csv(tmp_path / "study.csv")
    assert study.updates.eq(0).all() and study.study_loss.isna().all()


def test_studied_and_tested_pixels_are_the_same_bytes(stimuli):
    experiment = an_experiment(test=TestSettings(variants=["noise:25"]))
    manifest = MemoryManifest.read(stimuli)
    materials = gather(manifest, experiment, (6, 6))
    studied = {materials.pixels[k].numpy().tobytes() for k in materials.study_list("1", 0)}
    plain, noisy = materials.tests["1"]
    assert all(plain.pixels[k].numpy().tobytes() in studied for k in plain.seen)
    assert not any(plain.pixels[k].numpy().tobytes() in studied for k in plain.unseen)
    assert not any(noisy.pixels[k].numpy().tobytes() in studied for k in noisy.seen)
    assert plain.pairs == noisy.pairs and len(plain.pixels) == 16


def test_a_picture_of_several_pairs_is_scored_once(tmp_path):
    home = tmp_path / "set_1"
    for k in range(3):
        picture(home / "study" / f"{k}.png", k)
        for condition in ("novel", "state"):  # the same pictures in both
            picture(home / "test" / f"{condition}_seen" / f"{k}.png", k)
            picture(home / "test" / f"{condition}_unseen" / f"{k}.png", 20 + k // 2)  # one foil twice
    experiment = an_experiment(seeds=[0])
    materials = gather(MemoryManifest.read(prepare(tmp_path, quiet=True).manifest), experiment, (6, 6))
    (plain,) = materials.tests["1"]
    assert len(plain.pixels) == 5
    assert plain.seen.tolist() == [0, 1, 2, 0, 1, 2] and plain.unseen.tolist() == [3, 3, 4, 3, 3, 4]
    assert any("foils of set 1 are those of several pairs" in note for note in materials.notes)


class Blind(Learner):
    """Scores nothing."""

    img_size, unit = (6, 6), "none"

    def study_loss(self, pixels, rng):
        return None

    def scores(self, pixels):
        return torch.full((len(pixels),), torch.nan, dtype=torch.float64)


def test_no_silent_numbers(stimuli, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "build_learner", lambda spec: Blind())
    with pytest.raises(Diverged, match=r"16 of 16 scores of Blind are not finite after exposure 0 .* of set_1/test"):
        run(an_experiment(), tmp_path, stimuli)


def test_labels_that_do_not_fit_the_weights_are_noted(stimuli, tmp_path, monkeypatch):
    result = run(an_experiment(PIXELS, pretraining="saycam"), tmp_path / "a", stimuli)
    assert any("called saycam, but the learner names no trained weights" in note for note in result.notes)

    class Carded(Blind):
        def __init__(self):
            super().__init__()
            self.card = {"name": "say-gpt", "hours": 12.5, "architecture": {"class": "GPT"}}

        def scores(self, pixels):
            return super().scores(pixels).nan_to_num()

    monkeypatch.setattr(module, "build_learner", lambda spec: Carded())
    notes = "\n".join(run(an_experiment(PIXELS), tmp_path / "b", stimuli).notes)
    assert "called untrained (pretraining none), but it starts from trained weights: say-gpt" in notes
    assert "the tokenizer is the one that was named" in notes
    assert about(tmp_path / "b")["hours"] == 12.5


def test_a_shorter_list_and_no_manifest(stimuli, tmp_path):
    study = StudySettings(exposures=1, batch_size=4, list_length=10)
    run(an_experiment(PIXELS, study=study), tmp_path / "out", stimuli)
    assert about(tmp_path / "out")["study_pictures"] == {"1": 10, "2": 10}
    with pytest.raises(InputError, match="list of 7 pictures"):
        run(an_experiment(PIXELS, study=replace(study, list_length=7)), tmp_path / "short", stimuli)
    with pytest.raises(InputError, match="the experiment names no manifest"):
        module.run(an_experiment(), tmp_path / "none")
    with pytest.raises(InputError, match="device"):
        module.run(an_experiment(), tmp_path / "none", manifest=stimuli, device="abacus")


@pytest.fixture(scope="module")
def other_pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    for k in range(20):
        picture(folder / f"{k}.png", 5000 + k)
    return folder


def test_retention_and_recall_go_with_the_run_and_survive_a_stop(stimuli, other_pictures, tmp_path, monkeypatch):
    experiment = an_experiment(
        study=StudySettings(exposures=1, batch_size=4, lr=5e-3),
        recall=RecallSettings(num=3, top_k=None),
        retention=RetentionSettings(str(other_pictures), updates=3),
    )
    run(experiment, tmp_path / "whole", stimuli)
    table = read_losses(tmp_path / "whole" / "losses.csv")
    assert set(table.test) == {"", "after 1 updates", "after 2 updates", "after 3 updates"}
    of_test = table.set_index(["test", "exposures"]).sort_index()
    assert (of_test.loc[("after 2 updates", 0)].loss_seen.values == of_test.loc[("", 0)].loss_seen.values).all()
    assert (of_test.loc[("after 2 updates", 1)].loss_seen.values != of_test.loc[("", 1)].loss_seen.values).all()
    log = pd.read_csv(tmp_path / "whole" / "retention.csv")
    assert log.updates.tolist() == [1, 2, 3] * 4 and list(log.columns[:2]) == ["study_set", "seed"]
    recalled = pd.read_csv(tmp_path / "whole" / "recall.csv", dtype={"study_set": str})
    assert set(recalled.role) == {"studied", "foil", "studied minus foil"}
    assert len(pd.read_csv(tmp_path / "whole" / "recall_items.csv")) == 4 * 3 * 2 * 3  # runs, pairs, roles, rules

    with monkeypatch.context() as patch:
        patch.setattr(one_run, "retain", lambda *a, **k: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            run(experiment, tmp_path / "stopped", stimuli)
    run(experiment, tmp_path / "stopped", stimuli)
    for name in ("losses.csv", "retention.csv", "recall.csv", "recall_items.csv"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_sweep_is_called_with_the_settings_as_given(stimuli, tmp_path, monkeypatch):
    from headcam.recognition_memory.harder import sweep

    called = []
    monkeypatch.setattr(sweep, "sweep", lambda *a, **k: called.append((a, k)))
    experiment = an_experiment(PIXELS, sweep=SweepSettings(batch_size=[2, 4]))
    run(experiment, tmp_path, stimuli)
    (((given, out), options),) = called
    assert given == replace(experiment, manifest=str(stimuli)) and out == tmp_path / "sweep"
    assert options["manifest"].hash == MemoryManifest.read(stimuli).hash


@pytest.mark.shared
def test_konkles_second_set_loses_its_leaked_pairs(tmp_path):
    folder = Path(__file__).parents[3] / "shared" / "data" / "recognition_memory" / "konkle_objects"
    if not folder.is_dir():
        pytest.skip("shared/data/recognition_memory is not here")
    manifest = MemoryManifest.read(prepare(folder, tmp_path / "manifest.csv", quiet=True).manifest)
    materials = gather(manifest, an_experiment(), (8, 8))
    assert len(materials.study_list("1", 0)) == 1240
    assert len(materials.study_list("2", 0)) == 1200  # 40 pictures lie there twice
    assert sum("not tested" in note for note in materials.notes) >= 1
    assert len({tuple(p.number for p in materials.pairs[s]["1_exemplar"]) for s in ("1", "2")}) == 1


def test_a_folder_whose_experiment_never_began_is_free(stimuli, tmp_path):
    with pytest.raises(InputError, match="too few for a palette of 4000"):
        run(an_experiment({**GPT, "init_args": {**GPT["init_args"], "colours": 4000}}), tmp_path, stimuli)
    assert run(an_experiment(PIXELS), tmp_path, stimuli).table.exists()


def test_what_comes_last_is_checked_first(stimuli, tmp_path, monkeypatch):
    monkeypatch.setattr(one_run.OneRun, "rows", lambda self: pytest.fail("studied"))
    with pytest.raises(InputError, match="absent"):
        run(an_experiment(retention=RetentionSettings(str(tmp_path / "absent"))), tmp_path / "a", stimuli)
    with pytest.raises(InputError, match="list of 99 pictures"):
        run(an_experiment(sweep=SweepSettings(list_length=[10, 99])), tmp_path / "b", stimuli)
