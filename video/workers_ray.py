"""Engine `ray`: the tasks of `run_tasks` on all machines of a Ray cluster (Moritz et al. 2018, "Ray: a distributed
framework for emerging AI applications"), with the same answers as the local engine.

The driver (the command that the user started) keeps the queue. It asks Ray for one actor a processor; each runs one
task at a time in a child process of its own, with the local engine's deadline and crash isolation, and streams beats
and the answer back. An actor is given a task only once it stands, so that one for which there is no room yet holds
nothing up. Where an actor's process or its machine dies, its task goes back to the queue and Ray is asked for another.

What a cluster needs is in docs/clusters.md: the same environment on every node (checked before a node's first task,
since other decoders may give other pixels) and the same files at the same paths. Ray is imported nowhere else.
"""

import os
import platform
import socket
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import wait
from types import ModuleType
from typing import Any

from headcam.errors import InputError, MissingPackage
from headcam.video.metadata import one_line
from headcam.video.workers import NOTHING, TICK_S, Function, Killed, Lost, _Worker, available_processes

_MOVES = 4  # a task whose actor died goes to so many others, one after another
_FAILED_STARTS = 3  # actors in a row that may die before they stand
_PATIENCE_S = 30.0  # without any actor, before the user is told what is being waited for
_OBJECT_STORE_BYTES = 100 << 20  # of a Ray that we start; answers are small, pictures go to files
_SAME_EVERYWHERE = ("headcam", "av", "decord", "torchcodec", "opencv-python-headless", "simplejpeg", "numpy", "pyarrow")
_SETUP = "give every node the same environment, and the same files at the same paths (docs/clusters.md)"


def run_on_ray(
    function: Function,
    tasks: Iterable[Any],
    processes: int | None,
    deadline_s: Callable[[Any, Any], float],
    on_beat: Callable[[Any], None],
) -> Iterator[tuple[Any, Any]]:
    """`run_tasks` on the Ray that this process is connected to or that RAY_ADDRESS names, else on one of this machine
    that is started for it and ends with it.

    Args:
        function, tasks, on_beat: as for `headcam.video.workers.run_tasks`.
        processes: actors at a time, a processor each; None for all processors of the cluster.
        deadline_s: as there, and such that cloudpickle can pickle it: it is asked where the task runs.
    Raises:
        InputError: the cluster cannot be reached, or a node of it is not set up for the work.
        MissingPackage: Ray is not installed.
        Whatever `function` raises.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingPackage(
            "the engine ray needs the package ray, which is not installed",
            "pip install 'headcam[ray]', or use --engine local",
        ) from error
    return _run(ray, [_Job(task) for task in tasks], function, processes, deadline_s, on_beat)


@dataclass
class _Job:
    task: Any
    at: Any = None  # its last beat
    killed: bool = False  # its child was, from outside: the next time it is lost, as with the local engine
    moves: int = 0  # actors that died while they had it


@dataclass
class _Gone:
    """In place of an answer: Ray has lost the actor, with this error."""

    error: Exception


def _run(
    ray: ModuleType,
    jobs: list[_Job],
    function: Function,
    processes: int | None,
    deadline_s: Callable[[Any, Any], float],
    on_beat: Callable[[Any], None],
) -> Iterator[tuple[Any, Any]]:
    if not jobs:
        return
    waiting = deque(jobs)
    running: dict[Any, tuple[Any, _Job]] = {}  # the stream that an actor answers with -> (actor, job)
    with _cluster(ray, processes) as slots, _Actors(ray, function, deadline_s) as actors:
        while waiting or running:
            while waiting and actors.idle:
                actor, job = actors.idle.pop(), waiting.popleft()
                running[actor.run.remote(job.task)] = actor, job
            actors.ask_for(min(slots - len(running), len(waiting)))
            for pending in _ready(ray, [*actors.starting, *running]):
                if pending in actors.starting:
                    actors.stands(pending)
                    continue
                actor, job = running[pending]
                found = _received(ray, next(pending))
                if isinstance(found, _Gone):
                    del running[pending]
                    actors.end(actor)
                    job.moves += 1
                    if job.moves <= _MOVES:
                        waiting.append(job)
                    else:
                        why = type(found.error).__name__  # its text names processes, and reasons are kept in tables
                        yield job.task, Lost(f"{job.moves} Ray workers died while they had it ({why})", job.at)
                    continue
                beats, answers = found
                for beat in beats:
                    job.at = beat
                    on_beat(beat)
                for answer in answers:
                    del running[pending]
                    actors.idle.append(actor)
                    if isinstance(answer, BaseException):
                        raise answer
                    if isinstance(answer, Killed) and not job.killed:
                        job.killed = True
                        waiting.append(job)
                    else:
                        yield job.task, answer


@contextmanager
def _cluster(ray: ModuleType, processes: int | None) -> Iterator[int]:
    """Be connected to Ray; gives the number of actors to ask for. Ends what it began, and nothing else."""
    address = os.environ.get("RAY_ADDRESS")
    ours = not ray.is_initialized()
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if ours and address:
        try:
            _knock(address)
            ray.init(address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"the Ray cluster at RAY_ADDRESS={address} cannot be used: {one_line(error)}",
                "start it and share its token (docs/clusters.md), or unset RAY_ADDRESS to use this machine alone",
            ) from error
    elif ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is uploaded anywhere
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming behaviour, without its warning
        ray.init(
            "local",
            num_cpus=max(1, processes or available_processes()),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
    try:
        slots = processes or int(ray.cluster_resources().get("CPU", 0))
        if slots < 1:
            raise InputError("the Ray cluster has no processors", "add nodes to it, or say how many with --processes")
        yield slots
    finally:
        if ours:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself tries for minutes, and then ends the process."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():  # and not "auto"
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


class _Actors:
    """The actors of a run: those that Ray has not given yet, and those that have nothing to do."""

    def __init__(self, ray: ModuleType, function: Function, deadline_s: Callable[[Any, Any], float]):
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        self._ray, self._class, self._arguments = ray, ray.remote(**options)(_Actor), (function, deadline_s)
        self._all: set[Any] = set()
        self._failed, self._warn_at = 0, float("inf")
        self._here = environment()
        self.starting: dict[Any, Any] = {}  # the environment that an actor will tell -> the actor
        self.idle: list[Any] = []

    def __enter__(self) -> "_Actors":
        return self

    def __exit__(self, *error: object) -> None:
        for actor in list(self._all):
            self.end(actor)

    def ask_for(self, count: int) -> None:
        """See to it that `count` actors are idle or on their way."""
        while len(self.idle) + len(self.starting) < count:
            actor = self._class.remote(*self._arguments)
            self._all.add(actor)
            self.starting[actor.prepare.remote(os.getcwd())] = actor
            self._warn_at = time.monotonic() + _PATIENCE_S
        if self.starting and time.monotonic() > self._warn_at:
            standing = len(self._all) - len(self.starting)
            warnings.warn(f"Ray has found no room for more than {standing} workers yet", stacklevel=2)
            self._warn_at = float("inf")

    def stands(self, pending: Any) -> None:
        """Take note of an actor that has started, or has failed to.

        Raises:
            InputError: the actor's node is not set up for the work, or several actors in a row died at the start.
        """
        actor = self.starting.pop(pending)
        try:
            found = _received(self._ray, pending)
        except OSError as error:
            raise InputError(f"a node of the Ray cluster has no folder {os.getcwd()}", _SETUP) from error
        if isinstance(found, _Gone):
            self.end(actor)
            self._failed += 1
            if self._failed == _FAILED_STARTS:
                why = str(found.error).splitlines()[-1]
                raise InputError(f"no worker starts on the Ray cluster: {why[:200]}", _SETUP)
            return
        self._failed = 0
        for name in sorted({*self._here, *found}):
            here, there = self._here.get(name, "missing"), found.get(name, "missing")
            if here != there:
                raise InputError(f"a node of the Ray cluster has {name} {there}, this machine {here}", _SETUP)
        self.idle.append(actor)

    def end(self, actor: Any) -> None:
        """Kill an actor, and with it its child."""
        self._all.discard(actor)
        self._ray.kill(actor)


class _Actor:
    """What runs on a node, in a process of Ray: one child process, and one task at a time for it."""

    def __init__(self, function: Function, deadline_s: Callable[[Any, Any], float]):
        vars(sys.modules["__main__"]).pop("__file__", None)  # Ray's start script: children need not import it too
        self._child, self._deadline_s = _Worker(function), deadline_s

    def prepare(self, folder: str) -> dict[str, str]:
        """Change to the driver's folder, for names that are relative to it; returns `environment()`."""
        os.chdir(folder)
        return environment()

    def run(self, task: Any) -> Iterator[tuple[list[Any], list[Any]]]:
        """Yield the beats of the last second or so and, in the end, the answer: none or one."""
        self._child.give(task)
        answer = NOTHING
        while answer is NOTHING:
            beats: list[Any] = []
            until = time.monotonic() + TICK_S
            while answer is NOTHING and time.monotonic() < until:
                wait([self._child.pipe], timeout=TICK_S)
                answer = self._child.attend(beats.append, self._deadline_s)
            if beats or answer is not NOTHING:
                yield beats, [] if answer is NOTHING else [answer]


def environment() -> dict[str, str]:
    """Versions of what the bytes of an index or a store may depend on: they have to be the same on every node."""
    versions = {"processor": platform.machine(), "python": platform.python_version()}
    for package in _SAME_EVERYWHERE:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _ready(ray: ModuleType, pending: list[Any]) -> list[Any]:
    """Those of `pending` that can be received now; waits up to `TICK_S` for a first one."""
    first, _ = ray.wait(pending, timeout=TICK_S)
    return ray.wait(pending, num_returns=len(pending), timeout=0)[0] if first else []


def _received(ray: ModuleType, reference: Any) -> Any:
    """What Ray has for us, `_Gone` where the actor died before it gave it; raises what the actor's code raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        return _Gone(error)
