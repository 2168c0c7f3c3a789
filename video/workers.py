"""Worker processes for native code that may crash or spin: a bad file costs one answer, never the run.

`run_tasks` hands tasks to child processes one at a time. A child that dies, or shows no sign of life within the
deadline, is replaced, and its task comes back as `Lost` with the reason. Children end as soon as their parent does,
however that ends, so a killed command leaves nobody behind who still writes.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

_TICK_S = 1.0  # how often deadlines are looked at


@dataclass(frozen=True)
class Lost:
    """A task without an answer: `reason` on one line, `at` what the worker last said that it was busy with."""

    reason: str
    at: Any


def available_processes() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    function: Callable[[Any, Callable[[Any], None]], Any],
    tasks: Iterable[Any],
    processes: int | None,
    deadline_s: Callable[[Any, Any], float],
    on_beat: Callable[[Any], None] = lambda _: None,
) -> Iterator[tuple[Any, Any]]:
    """Yield (task, answer) in the order in which tasks end; the answer is `function(task, beat)`, or `Lost`.

    Args:
        function: importable by name. Calls `beat(at)` before each step to say that it lives and what it is busy with.
        tasks: picklable values.
        processes: number of children; None for one a processor.
        deadline_s: of (task, at): seconds that may pass after a beat, or after the task's start (`at` None).
        on_beat: called with each beat.
    Raises:
        Whatever `function` raises: it is the caller's mistake or the disk's, not the file's.
    """
    waiting = deque(tasks)
    workers: list[_Worker] = []
    try:
        while waiting or any(w.busy for w in workers):
            idle = [w for w in workers if not w.busy]
            while waiting and (idle or len(workers) < max(1, processes or available_processes())):
                if not idle:
                    workers.append(_Worker(function))
                    idle = workers[-1:]
                idle.pop().give(waiting.popleft())
            ready = wait([w.pipe for w in workers if w.busy], timeout=_TICK_S)
            for worker in [w for w in workers if w.busy]:
                answer = _NOTHING
                if worker.pipe in ready:
                    answer = worker.receive(on_beat)
                if answer is _NOTHING and time.monotonic() > worker.since + deadline_s(worker.task, worker.at):
                    answer = Lost(f"no answer within {deadline_s(worker.task, worker.at):.0f} s", worker.at)
                if answer is _NOTHING:
                    continue
                task, worker.busy = worker.task, False
                if isinstance(answer, Lost):
                    worker.stop()
                    workers.remove(worker)
                if isinstance(answer, BaseException):
                    raise answer
                yield task, answer
    finally:
        for worker in workers:
            worker.stop()


_NOTHING = object()


class _Worker:
    def __init__(self, function: Callable):
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks of whoever calls us
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.busy = False

    def give(self, task: Any) -> None:
        self.task, self.at, self.busy, self.since = task, None, True, time.monotonic()
        self.pipe.send(task)

    def receive(self, on_beat: Callable[[Any], None]) -> Any:
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            return Lost(f"the decoder crashed ({_exit(self.process.exitcode)})", self.at)
        if kind == "beat":
            self.at, self.since = value, time.monotonic()
            on_beat(value)
            return _NOTHING
        return value

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _exit(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"


def _serve(function: Callable, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            answer = function(task, lambda at: pipe.send(("beat", at)))
        except Exception as error:
            answer = error
        pipe.send(("answer", answer))
