"""Progress on long work: a bar with rate and time left on a terminal, a line now and then where output is no terminal.

Progress goes to standard error, so that standard output stays a command's result.
"""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as _RichProgress,
)

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Context manager that shows how far a loop of `total` steps has come.

    >>> with Progress("indexing", total=len(paths), unit="files") as progress:
    ...     for path in paths:
    ...         progress.advance(current=path.name)
    """

    def __init__(self, description: str, total: int | None, unit: str, quiet: bool = False, done: int = 0):
        self.description, self.total, self.unit, self.quiet = description, total, unit, quiet
        self.done = self._done_before = done  # steps that an earlier run did: they do not count for the rate
        self._terminal = not quiet and sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        self._start = self._last = time.monotonic()
        if self._terminal:
            self._bar = _RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[current]}", style="dim", markup=False),  # file names may hold brackets
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.__enter__()
            self._task = self._bar.add_task(
                self.description, total=self.total, completed=self.done, rate="", current=""
            )
        return self

    def advance(self, steps: int = 1, current: str = "") -> None:
        """Count `steps` more; `current` names what is being worked on."""
        self.done += steps
        if self._terminal:
            self._bar.update(self._task, advance=steps, rate=self._rate(), current=str(current)[-72:])
        elif not self.quiet and time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            of = f" of {self.total}" if self.total else ""
            left = ""
            if self.total and self.done > self._done_before:
                passed = time.monotonic() - self._start
                seconds = passed / (self.done - self._done_before) * (self.total - self.done)
                left = f", about {seconds:.0f} s left"
            what = f", {current}" if current else ""
            line = f"{self.description}: {self.done}{of} {self.unit}, {self._rate()}{left}{what}"
            print(line, file=sys.stderr, flush=True)

    def _rate(self) -> str:
        done = self.done - self._done_before
        return f"{done / max(time.monotonic() - self._start, 1e-9):.1f} {self.unit}/s"

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._terminal:
            self._bar.__exit__(kind, error, trace)
