"""Run folders: `metrics.csv` through kills and restarts, and what a number came about with."""

import csv
import json
import subprocess

import pytest

from headcam.runs import MetricsFile, environment, git_commit


def log(path, first: int, last: int) -> MetricsFile:
    """Log steps first..last as a run would: a loss every step, a validation loss every third."""
    metrics = MetricsFile(path)
    metrics.resume(first - 1)
    for step in range(first, last + 1):
        metrics.log(step, {"train/loss": 1 / step})
        if step % 3 == 0:
            metrics.log(step, {"val/loss": 2 / step})
    return metrics


def test_columns_come_as_they_are_logged_and_values_of_a_step_share_a_row(tmp_path):
    log(tmp_path / "metrics.csv", 1, 4)
    assert (tmp_path / "metrics.csv").read_text() == (
        f"step,train/loss,val/loss\n1,{1 / 1},\n2,{1 / 2},\n3,{1 / 3},{2 / 3}\n4,{1 / 4},\n"
    )


@pytest.mark.parametrize("checkpoint, killed", [(4, 8), (3, 7), (6, 6), (0, 5)])
def test_resumed_from_an_older_checkpoint_the_file_reads_as_if_never_stopped(tmp_path, checkpoint, killed):
    log(tmp_path / "straight.csv", 1, 10)
    log(tmp_path / "stopped.csv", 1, killed)
    log(tmp_path / "stopped.csv", checkpoint + 1, 10)
    assert (tmp_path / "stopped.csv").read_text() == (tmp_path / "straight.csv").read_text()


def test_a_line_torn_by_a_kill_does_no_harm_wherever_it_was_torn(tmp_path):
    path = tmp_path / "metrics.csv"
    log(tmp_path / "straight.csv", 1, 8)
    log(path, 1, 6)
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n3,"), len(whole)):
        path.write_bytes(whole[:cut])
        step = len(MetricsFile(path).rows())
        assert all(len(row) >= 2 for row in MetricsFile(path).rows())
        log(path, step + 1, 8)
        resumed, straight = (
            [r["train/loss"] for r in MetricsFile(p).rows()] for p in (path, tmp_path / "straight.csv")
        )
        assert resumed == straight, cut


def test_the_tail_of_a_row_that_a_kill_left_behind_its_shorter_successor_is_passed_over(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,val/loss\n1,0.5,\n2,0.25,0.1\n25,\n")
    assert [row["step"] for row in MetricsFile(path).rows()] == ["1", "2"]


def test_resuming_between_logged_rows_keeps_those_before(tmp_path):
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    for step in (5, 10, 15):  # log_every_n_steps 5
        metrics.log(step, {"train/loss": step})
    metrics = MetricsFile(path)
    metrics.resume(12)
    metrics.log(15, {"train/loss": 0.5})
    assert [(r["step"], r["train/loss"]) for r in metrics.rows()] == [("5", "5"), ("10", "10"), ("15", "0.5")]


def test_a_finished_run_gets_its_validation_in_the_last_row(tmp_path):
    path = tmp_path / "metrics.csv"
    log(path, 1, 4)
    MetricsFile(path).log(4, {"val/loss": 0.5})  # a new process, as after a kill between fit and validate
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["step"] for r in rows] == ["1", "2", "3", "4"]
    assert rows[-1] == {"step": "4", "train/loss": "0.25", "val/loss": "0.5"}


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_git_commit_is_that_of_the_folder_s_own_checkout(tmp_path):
    assert git_commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text("1")
    (tmp_path / ".gitignore").write_text(".venv\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(tmp_path / "package") == commit
    # A wheel in a virtual environment inside somebody's project is not of that project's commit.
    (tmp_path / ".venv" / "headcam").mkdir(parents=True)
    (tmp_path / ".venv" / "headcam" / "a.py").write_text("1")
    assert git_commit(tmp_path / ".venv" / "headcam") is None
    (tmp_path / "package" / "a.py").write_text("2")
    assert git_commit(tmp_path / "package") == f"{commit}-dirty"


def test_environment_says_what_a_run_ran_on():
    found = environment()
    assert found["packages"]["torch"] and found["packages"]["av"] and found["cores"] >= 1 and found["cpu"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
