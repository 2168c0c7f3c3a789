"""The benchmark harness, on a clock that the test moves: no test asserts a real time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def harness(monkeypatch):
    """The module, which sets no threads here."""
    import harness as module

    monkeypatch.setattr(module, "_set_threads", lambda threads: threads or 2)
    return module


class Clock:
    """A machine on which time passes only where `spend` says so."""

    def __init__(self, harness, monkeypatch):
        self.wall = self.cpu = 0.0
        self.turns: list[str] = []
        monkeypatch.setattr(harness.time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(harness.time, "monotonic", lambda: self.wall)
        monkeypatch.setattr(harness, "_cpu_seconds", lambda: self.cpu)

    def work(self, name: str, wall: float, cpu: float):
        def run() -> None:
            self.turns.append(name)
            self.wall += wall
            self.cpu += cpu

        return run


@pytest.fixture
def clock(harness, monkeypatch) -> Clock:
    return Clock(harness, monkeypatch)


def run(harness, capsys, ratios, *arguments: str, threads: int = 1) -> tuple[list[str], dict]:
    harness.main("fake", ratios, threads=threads, packages=("numpy", "no-such-package"), arguments=list(arguments))
    lines = capsys.readouterr().out.splitlines()
    return lines, json.loads(lines[-1])


@pytest.mark.parametrize(("threads", "which", "ratio", "other"), [(1, "cpu", 3.0, 2.0), (2, "wall", 2.0, 3.0)])
def test_a_pair_of_known_ratio_gives_it(harness, clock, capsys, threads, which, ratio, other):
    """One thread is held against CPU time, several against wall time."""
    ours, peer = clock.work("ours", wall=1.0, cpu=0.5), clock.work("peer", wall=2.0, cpu=1.5)

    def pair(bench):
        return bench.compare(ours, peer, bar=2.5, items=10, unit="image")

    lines, report = run(harness, capsys, {"pair": pair}, threads=threads)
    result = report["ratios"]["pair"]
    assert (result["median"], result["min"], result["max"]) == (ratio, ratio, ratio)
    assert (result["bar"], result["clock"], result["holds"]) == (2.5, which, ratio >= 2.5)
    assert result["wall_median" if which == "cpu" else "cpu_median"] == other
    ours_ms, peer_ms = {"cpu": ("50", "150"), "wall": ("100", "200")}[which]
    assert lines[1].split()[:3] == ["pair", ours_ms, peer_ms]  # milliseconds an image


def test_the_sides_take_turns_and_swap(harness, clock, capsys):
    def pair(bench):
        return bench.compare(clock.work("A", 1, 1), clock.work("B", 2, 2), bar=1, items=1, unit="step")

    run(harness, capsys, {"pair": pair}, "--seconds", "1")
    assert "".join(clock.turns) == "AB" + "ABBAAB"  # the warm-up, then three rounds though the time is up


def test_short_work_is_repeated_within_a_turn(harness, clock, capsys):
    def pair(bench):
        return bench.compare(clock.work("A", 0.05, 0.05), clock.work("B", 0.1, 0.1), bar=1, items=1, unit="call")

    _, report = run(harness, capsys, {"pair": pair}, "--seconds", "1")
    assert "".join(clock.turns).startswith("AB" + "AABB" + "BBAA")
    assert report["ratios"]["pair"]["median"] == 2.0


def test_the_median_forgives_a_disturbed_round(harness, clock, capsys):
    lasting = iter([1.0, 1.0, 9.0, 1.0])

    def ours() -> None:
        clock.wall += next(lasting)
        clock.cpu += 1

    def pair(bench):
        return bench.compare(ours, clock.work("B", 2, 2), bar=1.5, items=1, unit="step")

    _, report = run(harness, capsys, {"pair": pair}, "--seconds", "1", "--threads", "2")
    result = report["ratios"]["pair"]
    assert (result["median"], result["min"], result["holds"]) == (2.0, 0.222, True)


def test_the_time_is_shared_and_only_measures_one(harness, clock, capsys):
    deadlines = {}

    def named(name):
        def ratio(bench):
            deadlines[name] = bench.deadline
            clock.wall += 10  # preparation counts
            return harness.NotApplicable(1.0, "a fake")

        return ratio

    ratios = {"first": named("first"), "second": named("second")}
    run(harness, capsys, ratios, "--seconds", "50")
    assert deadlines == {"first": 25.0, "second": 50.0}
    deadlines.clear()
    _, report = run(harness, capsys, ratios, "--only", "second")
    assert list(deadlines) == ["second"] and list(report["ratios"]) == ["second"]


def test_fidelity_out_of_bounds_means_the_bar_does_not_hold(harness, clock, capsys):
    def pair(value):
        def ratio(bench):
            fidelity = {"psnr": harness.Fidelity(value, "dB", least=38)}
            return bench.compare(
                clock.work("A", 1, 1), clock.work("B", 2, 2), bar=1, items=1, unit="i", fidelity=fidelity
            )

        return ratio

    lines, report = run(harness, capsys, {"good": pair(40.0), "bad": pair(30.0)}, "--seconds", "1")
    assert report["ratios"]["good"]["holds"] and not report["ratios"]["bad"]["holds"]
    assert report["ratios"]["bad"]["fidelity"] == {"psnr": {"value": 30.0, "unit": "dB", "least": 38, "holds": False}}
    assert any("bad: psnr 30 dB (wanted: at least 38) FALLS SHORT" in line for line in lines)


def test_the_last_line_has_the_documented_form(harness, clock, capsys):
    def missing(bench):
        return harness.NotApplicable(1.3, "no bf16 units")

    def pair(bench):
        return bench.compare(clock.work("A", 1, 1), clock.work("B", 2, 2), bar=1.0, items=1, unit="i")

    lines, report = run(harness, capsys, {"missing": missing, "pair": pair}, "--seconds", "1")
    assert set(report) == {"benchmark", "ratios", "machine"} and report["benchmark"] == "fake"
    assert report["ratios"]["missing"] == {"bar": 1.3, "not_applicable": "no bf16 units"}
    assert {"median", "min", "max", "bar", "holds", "clock"} <= set(report["ratios"]["pair"])
    assert report["machine"]["threads"] == 1 and report["machine"]["cpu"] and report["machine"]["torch"]
    assert report["machine"]["numpy"] and report["machine"]["no-such-package"] is None
    assert any("missing: no bf16 units" in line for line in lines)


def test_cpu_seconds_count_children(harness):
    before = harness._cpu_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert harness._cpu_seconds() > before + 0.01
