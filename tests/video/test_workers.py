"""Worker processes: a task that crashes or spins costs its own answer; mistakes of the caller come through."""

import os
import signal
import time

import pytest

from headcam.errors import StorageError
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


def test_what_a_task_raises_is_raised(tmp_path):
    with pytest.raises(StorageError, match="x could not be written"):
        list(run_tasks(_fail, ["x"], 1, lambda *_: 30.0))


def test_a_worker_that_spins_or_crashes_costs_one_answer():
    tasks = ["a", "spin", "b", "crash", "c"]
    answers = dict(run_tasks(_spin_crash_or_answer, tasks, 2, lambda task, at: 20.0 if at is None else 0.5))
    assert [answers[k] for k in "abc"] == ["A", "B", "C"]
    assert isinstance(answers["spin"], Lost) and answers["spin"].reason.startswith("no answer within")
    assert isinstance(answers["crash"], Lost) and "SIGSEGV" in answers["crash"].reason
