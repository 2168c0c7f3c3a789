"""Worker processes: a task that crashes or spins costs its own answer; mistakes of the caller come through."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headcam.errors import InputError, StorageError
from headcam.video.workers import Lost, run_tasks


def _fail(task, beat):
    raise StorageError(f"{task} could not be written", "free some space")


def _spin_crash_or_answer(task, beat):
    beat(task)
    if task == "spin":
        time.sleep(60)
    if task == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return task.upper()


def _be_killed(task, beat):
    """`SIGNAL:PATH`: killed from outside, as it seems, the first time, or (without a path) every time."""
    name, _, path = task.partition(":")
    beat(name)
    if name != "none" and not (path and os.path.exists(path)):
        if path:
            Path(path).touch()
        os.kill(os.getpid(), signal.Signals[name])
    return os.getpid()


def _say(task, beat):
    for k in range(task):
        beat(k)
        time.sleep(0.1)
    return os.getpid()


def test_what_a_task_raises_is_raised_and_says_where(tmp_path):
    with pytest.raises(StorageError, match="x could not be written") as caught:
        list(run_tasks(_fail, ["x"], 1, lambda *_: 30.0))
    assert "in _fail" in caught.value.__notes__[0]


def test_a_worker_that_spins_or_crashes_costs_one_answer():
    tasks = ["a", "spin", "b", "crash", "c"]
    answers = dict(run_tasks(_spin_crash_or_answer, tasks, 2, lambda task, at: 20.0 if at is None else 0.5))
    assert [answers[k] for k in "abc"] == ["A", "B", "C"]
    assert isinstance(answers["spin"], Lost) and answers["spin"].reason.startswith("no answer within")
    assert isinstance(answers["crash"], Lost) and "SIGSEGV" in answers["crash"].reason


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_who_is_killed_from_outside_gets_one_second_chance(tmp_path, name):
    once, always, beats = f"{name}:{tmp_path / 'once'}", name, []
    answers = list(run_tasks(_be_killed, [once, always, "none"], 1, lambda *_: 30.0, beats.append))
    assert [task for task, _ in answers] == ["none", once, always]  # second chances come last
    answers = dict(answers)
    assert isinstance(answers["none"], int) and isinstance(answers[once], int)
    assert isinstance(answers[always], Lost) and f"killed from outside ({name}" in answers[always].reason
    assert answers[always].at == name and beats.count(name) == 4


def test_a_child_that_is_killed_between_two_tasks_costs_nothing():
    pids = []
    for _, pid in run_tasks(_say, [1, 1], 1, lambda *_: 30.0):
        pids.append(pid)
        os.kill(pid, signal.SIGKILL)
    assert len(set(pids)) == 2


def test_a_caller_who_takes_long_loses_no_task():
    """While the caller is busy with one answer, beats of the other tasks wait unread; they count all the same."""
    answers = []
    for _, answer in run_tasks(_say, [1, 12], 2, lambda _, at: 20.0 if at is None else 0.5):
        answers.append(answer)
        time.sleep(1.0)
    assert all(isinstance(answer, int) for answer in answers) and len(answers) == 2


def test_an_engine_that_is_none_is_refused_at_once():
    with pytest.raises(InputError, match=r"there is no engine 'slurm'. Fix: use --engine local or ray"):
        run_tasks(_say, [1], 1, lambda *_: 30.0, engine="slurm")


@pytest.mark.parametrize("as_file", [True, False], ids=["without a guard", "from standard input"])
def test_a_script_that_children_cannot_import_is_told_so(tmp_path, as_file):
    """Children import the caller's script; without this check every file of an index would be called unreadable."""
    script = "from headcam.video.workers import run_tasks\nprint(list(run_tasks(max, [1, 2], 1, lambda *_: 60.0)))\n"
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "script.py" if as_file else "-"]
    done = subprocess.run(command, input=script, text=True, capture_output=True, cwd=tmp_path)
    assert done.returncode and "worker processes cannot start (exit status 1" in done.stderr
    assert "if __name__ == '__main__':" in done.stderr and "Lost" not in done.stdout
