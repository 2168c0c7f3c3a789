"""What every benchmark shares: fair turns, clocks, the table, and the last line of JSON.

A benchmark is a script that defines one function per ratio and ends with `main`:

    def jpeg720(bench: Bench) -> Result:
        ...                                      # build the inputs, check that both sides agree
        return bench.compare(ours, peer, bar=1.8, items=64, unit="image")

    if __name__ == "__main__":
        main("image_loader", {"jpeg720": jpeg720, "store": store}, threads=1)

A ratio is the peer's time over ours on the same work: above 1 we are faster. After one warm-up of each, the two sides
take turns, A B then B A, and the ratio of every round is kept: what disturbs a shared machine for longer than a round
then disturbs both. The bar is held against the median over rounds: of CPU time (user and system, finished child
processes included) where both sides run on one thread, of wall time otherwise. `bench.compare_memory` compares MiB
instead, which each side measures in a process of its own. How closely the two sides agree is
measured before they are timed; out of bounds, the bar does not hold whatever the speed. Exit status is 0 either way.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch

_SECONDS = 50.0  # of one script, all its ratios together
_FULL_SECONDS = 300.0
_LEAST_ROUNDS = 3  # below this a median says nothing, so they are run whatever the time
_LEAST_TURN = 0.2  # seconds; shorter work is repeated within a turn

Clock = Literal["cpu", "wall", "memory"]  # what is compared


@dataclass(frozen=True)
class Fidelity:
    """A figure that keeps speed from being bought with error: `value` must lie in [least, most]."""

    value: float
    unit: str
    least: float = -math.inf
    most: float = math.inf

    @property
    def holds(self) -> bool:
        return self.least <= self.value <= self.most

    def as_json(self) -> dict[str, Any]:
        bounds = {k: v for k, v in (("least", self.least), ("most", self.most)) if math.isfinite(v)}
        return {
            "value": float(f"{self.value:.4g}"),
            **({"unit": self.unit} if self.unit else {}),
            **bounds,
            "holds": self.holds,
        }


@dataclass(frozen=True)
class Measured:
    """A ratio that was run. `ours` and `peer` are medians, in seconds per item or in MiB; `ratios` are per round."""

    bar: float
    clock: Clock
    ours: float
    peer: float
    ratios: list[float]
    other: list[float]  # by the other clock; empty for memory
    unit: str
    fidelity: dict[str, Fidelity]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def holds(self) -> bool:
        return self.median >= self.bar and all(f.holds for f in self.fidelity.values())

    def as_json(self) -> dict[str, Any]:
        out = {
            "median": round(self.median, 3),
            "min": round(min(self.ratios), 3),
            "max": round(max(self.ratios), 3),
            "bar": self.bar,
            "holds": self.holds,
            "clock": self.clock,
            "rounds": len(self.ratios),
        }
        if self.other:
            out[f"{_other(self.clock)}_median"] = round(statistics.median(self.other), 3)
        if self.fidelity:
            out["fidelity"] = {name: f.as_json() for name, f in self.fidelity.items()}
        return out


@dataclass(frozen=True)
class NotApplicable:
    """A ratio that this machine cannot have, and why."""

    bar: float
    why: str

    def as_json(self) -> dict[str, Any]:
        return {"bar": self.bar, "not_applicable": self.why}


Result = Measured | NotApplicable


class Bench:
    """Handed to the function of each ratio: the time it may take, the threads it may use, and `compare`.

    Attributes:
        threads: of torch and OpenCV, set for both sides; scripts pass it to decoders.
        clock: `cpu` with one thread, where it repeats within a few per cent on a shared machine, else `wall`.
        deadline: by `time.monotonic`, when this ratio should be done, its preparation included.
    """

    def __init__(self, threads: int, deadline: float):
        self.threads, self.deadline = threads, deadline
        self.clock: Clock = "cpu" if threads == 1 else "wall"

    def compare(
        self,
        ours: Callable[[], object],
        peer: Callable[[], object],
        *,
        bar: float,
        items: int,
        unit: str,
        fidelity: dict[str, Fidelity] | None = None,
    ) -> Measured:
        """Time the two sides in turn until the deadline, at least three rounds.

        Args:
            ours, peer: one call does the whole work; both do the same work.
            bar: the least median ratio wanted.
            items: pieces of work in a call, and `unit` what one is called; for the table.
            fidelity: measured before, see `Fidelity`.
        """
        sides = {"ours": ours, "peer": peer}
        slowest = 0.0
        for work in sides.values():  # the warm-up
            slowest = max(slowest, _time(work, 1)["wall"])
        repeats = max(1, math.ceil(_LEAST_TURN / max(slowest, 1e-6)))
        rounds: list[dict[str, dict[str, float]]] = []
        while len(rounds) < _LEAST_ROUNDS or time.monotonic() + 2 * repeats * slowest < self.deadline:
            order = ("ours", "peer") if len(rounds) % 2 == 0 else ("peer", "ours")
            rounds.append({side: _time(sides[side], repeats) for side in order})
        ratios = {c: [r["peer"][c] / r["ours"][c] for r in rounds] for c in ("cpu", "wall")}
        times = {side: statistics.median(r[side][self.clock] for r in rounds) / (repeats * items) for side in sides}
        return Measured(
            bar=bar,
            clock=self.clock,
            ours=times["ours"],
            peer=times["peer"],
            ratios=ratios[self.clock],
            other=ratios[_other(self.clock)],
            unit=unit,
            fidelity=fidelity or {},
        )

    def compare_memory(
        self,
        ours: Callable[[], float],
        peer: Callable[[], float],
        *,
        bar: float,
        unit: str,
        fidelity: dict[str, Fidelity] | None = None,
    ) -> Measured:
        """Compare MiB: each call of a side does the work in a fresh process and returns what it took."""
        rounds = [(ours(), peer()) for _ in range(_LEAST_ROUNDS)]  # sizes repeat, so more would tell nothing
        return Measured(
            bar=bar,
            clock="memory",
            ours=statistics.median(mine for mine, _ in rounds),
            peer=statistics.median(theirs for _, theirs in rounds),
            ratios=[theirs / mine for mine, theirs in rounds],
            other=[],
            unit=unit,
            fidelity=fidelity or {},
        )


def main(
    benchmark: str,
    ratios: dict[str, Callable[[Bench], Result]],
    *,
    threads: int | None = None,
    packages: tuple[str, ...] = (),
    arguments: list[str] | None = None,
) -> None:
    """Run a benchmark's ratios as the command line asks; print the table and, as the last line, the JSON.

    Args:
        benchmark: name of the script.
        ratios: name -> function that builds its inputs, checks that both sides agree, and compares.
        threads: of both sides, unless `--threads` says otherwise; None: as many as torch takes on this machine.
        packages: distributions whose versions the figures depend on, beside torch.
        arguments: of the command line; default: those of the process.
    """
    parser = argparse.ArgumentParser(description=f"{benchmark}: ratios of the peer's time to ours (above 1: faster)")
    parser.add_argument("--only", choices=list(ratios), help="measure this ratio alone")
    parser.add_argument("--seconds", type=float, help=f"time for all ratios together (default: {_SECONDS:g})")
    parser.add_argument("--full", action="store_true", help=f"take {_FULL_SECONDS:g} s: what docs/results.md records")
    parser.add_argument("--threads", type=int, default=threads, help="threads of both sides (default: %(default)s)")
    options = parser.parse_args(arguments)

    threads = _set_threads(options.threads)
    end = time.monotonic() + (options.seconds or (_FULL_SECONDS if options.full else _SECONDS))
    names = [options.only] if options.only else list(ratios)
    results: dict[str, Result] = {}
    for k, name in enumerate(names):
        now = time.monotonic()
        results[name] = ratios[name](Bench(threads, deadline=now + (end - now) / (len(names) - k)))
    print(_table(results))
    report = {
        "benchmark": benchmark,
        "ratios": {name: result.as_json() for name, result in results.items()},
        "machine": _machine(threads, packages),
    }
    print(json.dumps(report, allow_nan=False))


def _time(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Seconds that `repeats` calls take, by both clocks."""
    cpu, wall = _cpu_seconds(), time.perf_counter()
    for _ in range(repeats):
        work()
    return {"wall": time.perf_counter() - wall, "cpu": _cpu_seconds() - cpu}


def _cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _other(clock: Clock) -> Clock:
    return "wall" if clock == "cpu" else "cpu"


def _set_threads(threads: int | None) -> int:
    """Give torch and OpenCV the same number of threads, and return it."""
    import cv2

    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    return threads


def _table(results: dict[str, Result]) -> str:
    rows = [("name", "ours", "peer", "unit", "ratio: median [min, max]", "clock", "bar", "holds")]
    notes = []
    for name, result in results.items():
        if isinstance(result, NotApplicable):
            rows.append((name, "-", "-", "-", "not applicable", "-", f"{result.bar:g}", "-"))
            notes.append(f"{name}: {result.why}")
            continue
        ratio = f"{result.median:.2f} [{min(result.ratios):.2f}, {max(result.ratios):.2f}]"
        scale, unit = (1, "MiB, ") if result.clock == "memory" else (1e3, f"ms of {result.clock} a ")
        holds = "yes" if result.holds else "NO"
        rows.append(
            (
                name,
                f"{scale * result.ours:.3g}",
                f"{scale * result.peer:.3g}",
                unit + result.unit,
                ratio,
                result.clock,
                f"{result.bar:g}",
                holds,
            )
        )
        if result.other:
            notes.append(
                f"{name}: {_other(result.clock)} ratio {statistics.median(result.other):.2f} "
                f"[{min(result.other):.2f}, {max(result.other):.2f}], {len(result.ratios)} rounds"
            )
        for what, f in result.fidelity.items():
            bounds = " and ".join(
                f"{word} {bound:g}"
                for word, bound in (("at least", f.least), ("at most", f.most))
                if math.isfinite(bound)
            )
            figure = f"{f.value:.4g} {f.unit}".strip()
            notes.append(f"{name}: {what} {figure} (wanted: {bounds}){'' if f.holds else ' FALLS SHORT'}")
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", *notes])


def _machine(threads: int, packages: tuple[str, ...]) -> dict[str, Any]:
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            facts = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()
