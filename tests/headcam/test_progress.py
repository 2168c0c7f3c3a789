"""Progress: lines where there is no terminal, a bar where there is one, and silence where that is asked for."""

import pytest

import headcam.progress
from headcam.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(headcam.progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_now_and_then_with_rate_and_time_left(clock, capsys):
    with Progress("indexing", total=100, unit="files", done=20) as progress:
        for _ in range(40):
            clock[0] += 1.0
            progress.advance(current="walk.mp4")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""  # standard output is the command's result
    assert len(lines) == 2  # at 16 s and at 32 s
    # 16 files in 16 s: those of the earlier run (20) count as done but not for the rate.
    assert lines[0] == "indexing: 36 of 100 files, 1.0 files/s, about 64 s left, walk.mp4"
    assert lines[1] == "indexing: 52 of 100 files, 1.0 files/s, about 48 s left, walk.mp4"


def test_quiet_says_nothing(clock, capsys):
    with Progress("x", total=2, unit="files", quiet=True) as progress:
        clock[0] += 100
        progress.advance()
    assert capsys.readouterr() == ("", "")


def test_names_with_brackets_do_not_break_the_bar(monkeypatch, capsys):
    """rich would read `[/x]` in a file's name as markup."""
    monkeypatch.setattr(headcam.progress.sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("indexing", total=2, unit="files") as progress:
        progress.advance(current="[/bold] [red]walk.mp4")
        progress._bar.refresh()
    assert progress.done == 1
