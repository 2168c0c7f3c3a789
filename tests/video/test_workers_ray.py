"""Engine `ray`, on a real Ray of two nodes in this machine: the local engine's answers, whoever dies on the way."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from headcam.errors import InputError, MissingPackage, StorageError
from headcam.video import workers_ray
from headcam.video.index import index
from headcam.video.scanning.scan import scan
from headcam.video.stores.clip_store import store_clips
from headcam.video.stores.frame_store import store
from headcam.video.workers import Lost, run_tasks
from headcam.video.workers_ray import environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),  # one cluster at a time: two on one machine get in each other's way
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
    # Ray's own start-up code leaves log files and the processes of its nodes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
PARENT = re.compile(r"PPid:\s*(\d+)")
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


@pytest.fixture(scope="module", autouse=True)
def of_our_own(tmp_path_factory):
    """No other Ray is used, nothing is uploaded, and the token that Ray asks for is not the one in the user's home."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        yield


@pytest.fixture(scope="module")
def cluster(of_our_own):
    """Two nodes of one processor each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        cluster = Cluster(initialize_head=True, head_node_args=NODE)
        cluster.add_node(**NODE)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()


def _deadline_s(task, at):
    return 60.0 if at is None else 3.0


def _do(task, beat):
    """What the task's name says. `wait:PATH` waits to be killed if it is the first of its name.

    Beats are process ids of its node (the raylet), actor and child, and whether it waits.
    """
    name, _, path = task.partition(":")
    waits = bool(path) and not os.path.exists(path)
    if waits:
        Path(path).touch()
    actor = os.getppid()
    raylet = int(PARENT.search(Path(f"/proc/{actor}/status").read_text())[1])
    beat((raylet, actor, os.getpid(), waits))
    if waits or name == "spin":
        time.sleep(60)
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "disk":
        raise StorageError("x could not be written", "free some space")
    time.sleep(0.2)
    return name.upper()


def test_answers_are_those_of_the_local_engine_and_both_nodes_work(cluster):
    tasks = ["a", "spin", "b", "crash", *"cdefgh"]
    places, nodes = {}, set()
    for task, answer in run_tasks(_do, tasks, None, _deadline_s, lambda at: nodes.add(at[0]), engine="ray"):
        places[task] = answer
    assert sorted(places) == sorted(tasks)
    assert [places[k] for k in "abcdefgh"] == list("ABCDEFGH")
    assert isinstance(places["spin"], Lost) and places["spin"].reason == "no answer within 3 s"
    assert isinstance(places["crash"], Lost) and places["crash"].reason == "the decoder crashed (SIGSEGV)"
    assert len(nodes) == 2


def test_what_a_task_raises_is_raised_as_itself(cluster):
    with pytest.raises(StorageError) as caught:
        list(run_tasks(_do, ["a", "disk"], 1, _deadline_s, engine="ray"))
    assert type(caught.value) is StorageError and str(caught.value) == "x could not be written. Fix: free some space"


def test_a_killed_actor_and_a_killed_child_lose_nothing(cluster, tmp_path):
    def kill(at):
        if at[3]:
            os.kill(at[2] if killed else at[1], signal.SIGKILL)
            killed.append(at)

    killed, tasks = [], ["a", *(f"wait:{tmp_path / str(k)}" for k in range(2)), "b"]
    answers = list(run_tasks(_do, tasks, 2, lambda *_: 30.0, kill, engine="ray"))
    assert len(killed) == 2 and sorted(answers) == sorted((task, task.partition(":")[0].upper()) for task in tasks)


def test_a_lost_node_loses_nothing(cluster, tmp_path):
    third = cluster.add_node(**NODE)
    raylet = third.all_processes["raylet"][0].process.pid

    def remove(at):
        if at[0] == raylet and not removed:
            removed.append(at)
            cluster.remove_node(third, allow_graceful=False)

    removed, tasks = [], [f"wait:{tmp_path / str(k)}" for k in range(3)]
    answers = dict(run_tasks(_do, [*tasks, "a", "b"], 3, _deadline_s, remove, engine="ray"))
    assert len(removed) == 1 and sorted(answers) == sorted([*tasks, "a", "b"])
    moved = [task for task, answer in answers.items() if answer == "WAIT"]  # the others have missed the deadline
    assert len(moved) == 1 and sum(isinstance(answer, Lost) for answer in answers.values()) == 2


@pytest.fixture
def one_actor_is_killed(cluster, monkeypatch):
    """Context manager: the process of the first actor that has a task is killed; fails where there was none."""
    import ray

    ask_for = workers_ray._Actors.ask_for

    @contextmanager
    def killing():
        killed = []

        def ask_and_kill(self, count):  # called right behind the giving out of tasks
            busy = self._all - {*self.idle, *self.starting.values()}
            if busy and not killed:
                killed.append(busy.pop())
                ray.kill(killed[0])
            ask_for(self, count)

        monkeypatch.setattr(workers_ray._Actors, "ask_for", ask_and_kill)
        yield
        monkeypatch.setattr(workers_ray._Actors, "ask_for", ask_for)
        assert killed

    return killing


def test_index_scan_and_stores_are_the_local_engine_s_bit_for_bit(tmp_path, videos, one_actor_is_killed, monkeypatch):
    (tmp_path / "media").mkdir()
    for name in ("plain", "vfr", "ts", "turned"):
        shutil.copy(videos[name], tmp_path / "media")
    (tmp_path / "media" / "cut.mp4").write_bytes(videos["bframes"].read_bytes()[:3000])

    def made(engine):
        (tmp_path / engine).mkdir()
        monkeypatch.chdir(tmp_path / engine)  # and all names are relative
        for verb, arguments in (
            (index, ("../media", "r.parquet")),
            (scan, ("r.parquet",)),
            (partial(store, frames_per_second=2, short_side=32), ("r.parquet", "frames")),
            (partial(store_clips, segment_s=2, short_side=32), ("r.parquet", "clips")),
        ):
            with one_actor_is_killed() if engine == "ray" else nullcontext():
                verb(*arguments, engine=engine, processes=2, quiet=True)
        results = [path for path in Path().rglob("*") if path.suffix in (".parquet", ".tar", ".csv")]
        return {str(path): path.read_bytes() for path in results}

    local, ray = made("local"), made("ray")
    assert {"r.parquet", "r.quarantine.parquet", "frames/frames.parquet", "clips/clips-000000.tar"} <= local.keys()
    assert ray.keys() == local.keys()
    assert [name for name, content in local.items() if ray[name] != content] == []


def test_a_task_whose_workers_always_die_is_lost(cluster, monkeypatch):
    monkeypatch.setattr(workers_ray, "_MOVES", 1)
    ((_, answer),) = run_tasks(
        _do, ["spin"], 1, lambda *_: 30.0, lambda at: os.kill(at[1], signal.SIGKILL), engine="ray"
    )
    assert isinstance(answer, Lost) and answer.reason == "2 Ray workers died while they had it (ActorDiedError)"


def test_a_node_with_another_environment_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(workers_ray, "environment", lambda: {**environment(), "av": "0.1"})
    with pytest.raises(InputError, match=r"a node of the Ray cluster has av \d+.*, this machine 0.1. Fix: give every"):
        list(run_tasks(_do, ["a"], 1, _deadline_s, engine="ray"))


def test_a_function_that_the_nodes_cannot_import_is_one_line(cluster, monkeypatch):
    phantom = types.ModuleType("phantom")
    exec("def do(task, beat): pass", vars(phantom))
    monkeypatch.setitem(sys.modules, "phantom", phantom)
    with pytest.raises(InputError, match=r"no worker starts on the Ray cluster: .*No module named 'phantom'"):
        list(run_tasks(phantom.do, ["a"], 1, _deadline_s, engine="ray"))


def test_the_cluster_of_the_caller_is_left_running(cluster):
    import ray

    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        assert list(run_tasks(_do, ["a"], None, _deadline_s, engine="ray")) == [("a", "A")]
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_no_ray_and_no_cluster_are_one_line_each(monkeypatch):
    with socket.socket() as nobody:  # bound but not listening: connections are refused
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(InputError, match=r"RAY_ADDRESS=127.* cannot be used: Connection refused. Fix: start it"):
            list(run_tasks(_do, ["a"], 1, _deadline_s, engine="ray"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackage, match=r"needs the package ray.* pip install 'headcam\[ray\]'"):
        run_tasks(_do, ["a"], 1, _deadline_s, engine="ray")


INTERRUPTED = """
import os, time
from headcam.video.workers import run_tasks

def do(task, beat):
    beat((os.getppid(), os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    import interrupted
    tasks = run_tasks(interrupted.do, "ab", 2, lambda *_: 60.0, lambda at: print(*at, flush=True), engine="ray")
    list(tasks)
"""


def test_ctrl_c_ends_the_ray_that_was_started_and_all_its_children(tmp_path):
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    variables = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with subprocess.Popen(
        [sys.executable, "interrupted.py"], cwd=tmp_path, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as driver:
        pids = [int(pid) for _ in "ab" for pid in driver.stdout.readline().split()]
        assert len(pids) == 4
        driver.send_signal(signal.SIGINT)
        _, errors = driver.communicate(timeout=30)
    assert driver.returncode and errors.decode().rstrip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 10
    while any(map(_lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_lives, pids))


def _lives(pid: int) -> bool:
    """Whether there is such a process, and it is not one that only waits to be reaped."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
