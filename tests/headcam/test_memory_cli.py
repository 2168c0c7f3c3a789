"""`headcam memory`: the words one after the other, as a user would, and what bad input gets."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from headcam.cli import main


def last_path(text: str) -> Path:
    return Path(text.strip().splitlines()[-1].split(": ")[-1])


@pytest.fixture(scope="module")
def stimuli(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "stimuli"
    size = ["--num_pairs=3", "--num_fillers=6", "--img_size=24"]
    assert main(["memory", "prepare", str(folder), "--synthetic=pairs", *size, "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def settings(stimuli) -> Path:
    """A config of some seconds."""
    config = {
        "model": "tiny",
        "learner": {
            "class_path": "headcam.recognition_memory.learners.gpt.GPTLearner",
            "init_args": {"img_size": 8, "colours": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
        },
        "manifest": str(stimuli),
        "study": {"exposures": 2, "batch_size": 8},
        "seeds": [0, 1],
    }
    path = stimuli.parent / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def finished(settings) -> Path:
    out = settings.parent / "run"
    assert main(["memory", "run", str(settings), "--out", str(out), "--quiet"]) == 0
    return out


def test_a_run_is_scored_and_reported_and_every_line_says_what_and_where(settings, finished, capsys):
    assert main(["memory", "run", str(settings), "--out", str(finished), "--quiet"]) == 0, "finished: nothing to do"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"page: {finished / 'report.html'}" and lines[-2] == f"table: {finished / 'losses.csv'}"
    table = pd.read_csv(finished / "accuracy.csv", keep_default_na=False)
    row = table.query("condition == 'pooled' and exposures == 1 and rule == 'calibrated'").iloc[0]
    told = next(line for line in lines if line.startswith("tiny (none)"))
    assert f"calibrated {100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]" in told
    assert told.endswith("9 pairs, 4 runs") and "after 1 exposure:" in told


def test_options_win_over_the_file_and_another_experiment_is_refused(settings, finished, capsys):
    assert main(["memory", "run", str(settings), "--study.lr=0.1", "--out", str(finished), "--quiet"]) == 2
    assert "study.lr is 0.0005 there and 0.1 here" in capsys.readouterr().err


def test_score_takes_the_table_of_a_run(finished, tmp_path, capsys):
    out = tmp_path / "scores"
    assert main(["memory", "score", str(finished / "losses.csv"), "--out", str(out), "--quiet"]) == 0
    assert last_path(capsys.readouterr().out) == out / "accuracy.csv"
    ours, theirs = (pd.read_csv(folder / "accuracy.csv") for folder in (out, finished))
    pd.testing.assert_frame_equal(ours, theirs)
    assert json.loads((out / "scores.json").read_text())["contract"] == "memory_scores/1"


def test_page_writes_one_file(stimuli, tmp_path, capsys):
    out = tmp_path / "experiment.html"
    assert main(["memory", "page", str(stimuli), "--out", str(out), "--num_pairs=2", "--repeats=0.3", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert last_path(text) == out and out.stat().st_size > 50_000
    assert "pairs: 2 novel, 2 exemplar, 2 state" in text


def test_report_puts_runs_side_by_side(settings, finished, tmp_path, capsys):
    other = tmp_path / "other"
    words = ["--model=other", "--study.exposures=1", "--seeds=[0,1]", "--out", str(other), "--no_frames", "--quiet"]
    assert main(["memory", "run", str(settings), *words]) == 0
    assert "<img" not in (other / "report.html").read_text("utf-8")
    capsys.readouterr()
    assert main(["memory", "report", str(finished), str(other), "--out", str(tmp_path / "both"), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines[:2]] == ["other", "tiny"], "as in the tables: sorted"
    assert lines[-1] == f"page: {tmp_path / 'both' / 'report.html'}"


@pytest.mark.parametrize(
    "words, telling",
    [
        ([], "the following arguments are required: word"),
        (["recall"], "'recall' is no word of headcam memory"),
        (["prepare", "nowhere"], "nowhere"),
        (["prepare", "x", "--synthetic=faces"], "--synthetic faces is unknown"),
        (["run", "nowhere.yaml"], "config nowhere.yaml was not found"),
        (["run", "configs/memory/micro.yaml", "--manifest=nowhere"], "nowhere"),
        (["run", "configs/memory/micro.yaml", "--study.lr=fast"], "study.lr"),
        (["run", "configs/memory/micro.yaml", "--study.exposures=0"], "study.exposures is 0"),
        (["score", "nowhere.csv", "--out=x"], "nowhere.csv"),
        (["page", "nowhere", "--out=x.html"], "nowhere"),
        (["report", "nowhere", "--out=x"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_and_leaves_nothing(words, telling, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["memory", *words]) == 2
    error = capsys.readouterr().err
    assert telling in error and error.startswith("headcam: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
