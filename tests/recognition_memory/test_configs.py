"""Every shipped experiment is read, says what it re-does, and runs at a small size on generated pictures."""

from pathlib import Path

import pandas as pd
import pytest

from headcam.recognition_memory.experiment import build_learner, read_experiment
from headcam.recognition_memory.report import report
from headcam.recognition_memory.run import run
from headcam.recognition_memory.stimuli.generated import generate_stimuli

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "memory").glob("*.yaml"))
SMALL = {
    "GPTLearner": {"preset": None, "img_size": 8, "colours": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "MAELearner": {"img_size": 16, "embed_dim": 24, "depth": 1, "decoder_embed_dim": 24, "decoder_depth": 1},
    "EmbeddingStore": {"source": None},
    "PixelStore": {"img_size": 8},
    "RandomScore": {"img_size": 8},
}


def test_there_are_experiments():
    assert len(CONFIGS) >= 8


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Two sets of three pairs in each condition and six fillers."""
    return generate_stimuli(tmp_path_factory.mktemp("pairs"), num_pairs=3, num_fillers=6, size=(24, 24), quiet=True)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_experiment_states_its_source(path):
    header = path.read_text("utf-8").partition("\nmodel:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert "# paper: " in header and "# data: " in header


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_experiment_runs_at_a_small_size(path, manifest, tmp_path, write_source):
    experiment = read_experiment(path)
    assert experiment.study.exposures >= 1 and len(experiment.seeds) >= 2, "one run alone has no interval"
    kind = experiment.learner["class_path"].rsplit(".", 1)[1]
    arguments = experiment.learner["init_args"]
    if kind in ("EmbeddingChange", "EmbeddingStore"):
        arguments["source"] = str(write_source())
    else:
        arguments |= SMALL[kind]
    experiment.study.exposures, experiment.seeds = 1, [0]
    if experiment.retention:
        experiment.retention.data, experiment.retention.updates = str(write_pictures(tmp_path / "other")), 2
    if experiment.recall:
        experiment.recall.num = 2
    if experiment.sweep:
        experiment.sweep.lr, experiment.sweep.list_length = experiment.sweep.lr[:1], [12, 15]
        experiment.sweep.batch_size = []
    build_learner(experiment.learner)
    result = run(experiment, tmp_path / "out", manifest=manifest, quiet=True)
    table = pd.read_csv(result.table, keep_default_na=False)
    plain = table[table["test"] == ""] if "test" in table else table
    assert len(plain) == 2 * 2 * 9 and set(plain["exposures"]) == {0, 1}
    assert plain[["loss_seen", "loss_unseen"]].notna().all(axis=None)
    assert report([result.folder], tmp_path / "report", frames=False, quiet=True).stat().st_size > 20_000


def write_pictures(folder: Path) -> Path:
    """Pictures of another kind, to be learned afterwards."""
    import cv2
    import numpy as np

    folder.mkdir()
    for k in range(8):
        cv2.imwrite(str(folder / f"{k}.png"), np.random.default_rng(k).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    return folder


@pytest.fixture
def write_source(fit_config, tmp_path):
    """Function that trains a tiny encoder for one step and returns its run."""
    from headcam.cli import main

    def write() -> Path:
        config = fit_config(trainer={"max_steps": 1, "val_check_interval": 1, "enable_progress_bar": False})
        assert main(["fit", "--config", str(config), "--out", str(tmp_path / "encoder")]) == 0
        return tmp_path / "encoder"

    return write
