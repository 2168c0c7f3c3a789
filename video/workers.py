"""Worker processes for native code that may crash or spin: a bad file costs one answer, never the run.

`run_tasks` hands tasks to child processes one at a time. A child that crashes, or shows no sign of life within the
deadline, is replaced, and its task comes back as `Lost` with the reason. A child that somebody kills from outside (the
kernel when memory runs out, a batch system) is no fault of its task, which gets a second chance. Children end as soon
as their parent does, however that ends, so a killed command leaves nobody behind who still writes.

Engine `local` is here: children of this process. Engine `ray` (`workers_ray.py`) gives the same answers from the
machines of a Ray cluster; each of its workers runs a `_Worker` of its own, so bad files cost no more there.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from headcam.errors import InputError

ENGINES = ("local", "ray")

TICK_S = 1.0  # how often deadlines are looked at
NOTHING = object()  # what `_Worker.attend` returns while there is no answer yet

Function = Callable[[Any, Callable[[Any], None]], Any]


@dataclass(frozen=True)
class Lost:
    """A task without an answer: `reason` on one line, `at` what the worker last said that it was busy with."""

    reason: str
    at: Any


class Killed(Lost):
    """Lost because the child was killed from outside: another try may well succeed."""


def available_processes() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    function: Function,
    tasks: Iterable[Any],
    processes: int | None,
    deadline_s: Callable[[Any, Any], float],
    on_beat: Callable[[Any], None] = lambda _: None,
    engine: str = "local",
) -> Iterator[tuple[Any, Any]]:
    """Yield (task, answer) in the order in which tasks end; the answer is `function(task, beat)`, or `Lost`.

    Args:
        function: importable by name. Calls `beat(at)` before each step to say that it lives and what it is busy with.
        tasks: picklable values.
        processes: number of children; None for one a processor (of this machine, or of the whole Ray cluster).
        deadline_s: of (task, at): seconds that may pass after a beat, or after the task's start (`at` None).
        on_beat: called with each beat; a task that gets a second chance repeats its beats.
        engine: one of `ENGINES`.
    Raises:
        InputError: there is no such engine, or the Ray cluster cannot be used.
        MissingPackage: the engine's package is not installed.
        Whatever `function` raises: it is the caller's mistake or the disk's, not the file's.
    """
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}", f"use --engine {' or '.join(ENGINES)}")
    if engine == "ray":
        from headcam.video.workers_ray import run_on_ray

        return run_on_ray(function, tasks, processes, deadline_s, on_beat)
    return _run_locally(function, tasks, max(1, processes or available_processes()), deadline_s, on_beat)


def _run_locally(
    function: Function,
    tasks: Iterable[Any],
    processes: int,
    deadline_s: Callable[[Any, Any], float],
    on_beat: Callable[[Any], None],
) -> Iterator[tuple[Any, Any]]:
    waiting = deque((task, False) for task in tasks)  # and whether this is its second chance
    idle: list[_Worker] = []
    running: dict[_Worker, tuple[Any, bool]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                child = idle.pop() if idle else _Worker(function)
                running[child] = waiting.popleft()
                child.give(running[child][0])
            wait([child.pipe for child in running], timeout=TICK_S)
            for child, (task, again) in list(running.items()):
                answer = child.attend(on_beat, deadline_s)
                if answer is NOTHING:
                    continue
                del running[child]
                idle.append(child)
                if isinstance(answer, BaseException):
                    raise answer
                if isinstance(answer, Killed) and not again:
                    waiting.append((task, True))  # at the end: what took the memory may have gone by then
                else:
                    yield task, answer
    finally:
        for child in [*idle, *running]:
            child.stop()


class _Worker:
    """A child process that runs `function` on one task at a time; it is started anew where the last one ended.

    Whoever owns it calls `give`, then `attend` whenever `pipe` is ready and at least every `TICK_S`, until that
    returns an answer, and `stop` at the end.
    """

    pipe: Connection

    def __init__(self, function: Function):
        self._function = function
        self._process: multiprocessing.process.BaseProcess | None = None

    def give(self, task: Any) -> None:
        """Start on `task`."""
        if self._process is None or not self._process.is_alive():  # it may have been killed while it had nothing to do
            self.stop()
            self._start()
        self._task, self._at, self._since = task, None, time.monotonic()
        with suppress(ConnectionError):  # killed at this very moment: `attend` will see it
            self.pipe.send(task)

    def attend(self, on_beat: Callable[[Any], None], deadline_s: Callable[[Any, Any], float]) -> Any:
        """The answer, an exception that `function` raised, `Lost` or `Killed`; `NOTHING` while there is none."""
        while self.pipe.poll():
            try:
                kind, value = self.pipe.recv()
            except (EOFError, OSError):
                return self._ended()
            if kind == "alive":
                self._alive = True
                continue
            if kind == "answer":
                return value
            self._at, self._since = value, time.monotonic()
            on_beat(value)
        limit_s = deadline_s(self._task, self._at)
        if time.monotonic() <= self._since + limit_s:
            return NOTHING
        self.stop()
        return Lost(f"no answer within {limit_s:.0f} s", self._at)

    def stop(self) -> None:
        """End the process, if there is one, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self.pipe.close()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks of whoever calls us
        self.pipe, theirs = context.Pipe()
        self._alive = False
        self._process = context.Process(target=_serve, args=(self._function, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def _ended(self) -> Lost | InputError:
        self._process.join(5)
        code = self._process.exitcode
        self.stop()
        if not self._alive and code is not None and code > 0:  # it never came to the task: not the task's fault
            return InputError(
                f"worker processes cannot start (exit status {code}; their words are above)",
                "in a script, put the call under `if __name__ == '__main__':`, and save it as a file",
            )
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
        if how in ("SIGKILL", "SIGTERM"):
            return Killed(f"its process was killed from outside ({how}; was there enough memory?)", self._at)
        return Lost(f"the decoder crashed ({how})", self._at)


def _serve(function: Function, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    pipe.send(("alive", None))
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            answer = function(task, lambda at: pipe.send(("beat", at)))
        except Exception as error:
            error.add_note(f"In a worker process:\n{traceback.format_exc()}")  # a pickled exception has no traceback
            answer = error
        pipe.send(("answer", answer))
