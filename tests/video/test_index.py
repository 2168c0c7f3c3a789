"""The index: whatever lies in the folder, any number of processes, killed at any moment."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from headcam.cli import main
from headcam.errors import InputError
from headcam.video.index import index
from headcam.video.recording_index import RecordingIndex
from headcam.video.recordings import read_recordings, recordings_hash
from headcam.video.workers import run_tasks


@pytest.fixture
def folder(tmp_path, videos):
    """Good, odd, broken and foreign things, some hidden, one loop of links."""
    folder = tmp_path / "media"
    (folder / "b" / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "a_folder.mp4").mkdir()
    shutil.copy(videos["plain"], folder / "walk.mp4")
    shutil.copy(videos["bframes"], folder / "b" / "deep" / "run.MP4")
    shutil.copy(videos["plain"], folder / "b" / "again.mp4")
    shutil.copy(videos["vfr"], folder / ".hidden" / "secret.mp4")
    shutil.copy(videos["vfr"], folder / ".hidden.mp4")
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(folder / "still.png")
    (folder / "notes.txt").write_text("ignored")
    (folder / "zero.mkv").touch()
    (folder / "text.mp4").write_text("no video" * 99)
    (folder / "cut.mp4").write_bytes(videos["plain"].read_bytes()[:900])
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "b" / "loop").symlink_to(folder)
    return folder


def rows_by_name(table, folder):
    return {os.path.relpath(row["path"], folder): row for row in table.to_pylist()}


def test_every_file_gets_a_row_and_bad_ones_a_reason(folder, tmp_path):
    result = index(folder, tmp_path / "out" / "r.parquet", processes=2, quiet=True)
    rows = rows_by_name(read_recordings(tmp_path / "out" / "r.parquet"), folder)
    assert list(rows) == sorted(rows, key=lambda name: name.split("/"))
    assert {name: row["status"] for name, row in rows.items()} == {
        "a_folder.mp4": "unreadable",
        "b/again.mp4": "ok",
        "b/deep/run.MP4": "ok",
        "cut.mp4": "unreadable",
        "gone.mp4": "unreadable",
        "still.png": "ok",
        "text.mp4": "unreadable",
        "walk.mp4": "duplicate",
        "zero.mkv": "unreadable",
    }
    assert rows["a_folder.mp4"]["reason"] == "is a folder"
    assert rows["zero.mkv"]["reason"] == "is empty (0 bytes)"
    assert "No such file" in rows["gone.mp4"]["reason"]
    assert rows["walk.mp4"]["reason"] == f"same content as {folder / 'b/again.mp4'}"
    assert rows["walk.mp4"]["recording"] == rows["b/again.mp4"]["recording"]
    assert all("\n" not in row["reason"] and bool(row["reason"]) == (row["status"] != "ok") for row in rows.values())
    assert result.ignored == 1 and result.hours == pytest.approx(8 / 3600, rel=1e-3)
    assert sorted(os.listdir(tmp_path / "out")) == [".r.parquet.arrow", "r.parquet"]


def test_processes_do_not_matter_and_a_second_run_is_the_same_without_work(folder, tmp_path, monkeypatch):
    for name in ("text.mp4", "cut.mp4", "gone.mp4", "zero.mkv"):
        (folder / name).unlink()
    (folder / "a_folder.mp4").rmdir()
    index(folder, tmp_path / "1.parquet", processes=1, quiet=True)
    index(folder, tmp_path / "3.parquet", processes=3, quiet=True)
    once = (tmp_path / "1.parquet").read_bytes()
    assert once == (tmp_path / "3.parquet").read_bytes()
    monkeypatch.setattr("headcam.video.workers._Worker", lambda *_: pytest.fail("examined a file again"))
    index(folder, tmp_path / "1.parquet", quiet=True)
    assert once == (tmp_path / "1.parquet").read_bytes()


def test_changed_files_are_examined_again(folder, tmp_path, videos):
    before = rows_by_name(index(folder, tmp_path / "r.parquet", processes=2, quiet=True).table, folder)
    shutil.copy(videos["vfr"], folder / "text.mp4")
    (folder / "b" / "again.mp4").unlink()
    after = rows_by_name(index(folder, tmp_path / "r.parquet", processes=2, full_hash=True, quiet=True).table, folder)
    assert before["text.mp4"]["status"] == "unreadable" and after["text.mp4"]["status"] == "ok"
    assert after["walk.mp4"]["status"] == "ok" and after["walk.mp4"]["reason"] == ""  # the first of two is gone
    assert len(after["walk.mp4"]["hash"]) == 64 and before["walk.mp4"]["hash"] is None


def test_killed_and_started_again_gives_the_same_bytes(tmp_path, videos):
    folder = tmp_path / "media"
    folder.mkdir()
    for k in range(60):
        (folder / f"{k:03d}.mp4").write_bytes(videos["bframes"].read_bytes() + b"\0" * 8 * (k + 1))
    index(folder, tmp_path / "whole.parquet", processes=2, quiet=True)
    journal, out = tmp_path / ".r.parquet.journal", tmp_path / "r.parquet"
    command = [sys.executable, "-m", "headcam", "index", str(folder), "--out", str(out), "--processes", "1", "--quiet"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (journal.read_text().count("\n") if journal.exists() else 0) < 8 and time.monotonic() < deadline:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = journal.read_text().count("\n") - 1
    assert 7 <= done < 60 and not out.exists()
    with open(journal, "a") as file:
        file.write('[["torn')
    seen = []
    real = run_tasks

    def counting(function, tasks, *rest, **options):
        seen.extend(tasks)
        return real(function, tasks, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headcam.video.index.run_tasks", counting)
        index(folder, out, processes=2, quiet=True)
    assert len(seen) == 60 - done  # only what was left
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not journal.exists()


def test_names_and_metadata_can_change_without_looking_at_files_again(tmp_path, videos, monkeypatch, capsys):
    folder, out = tmp_path / "media", tmp_path / "r.parquet"
    folder.mkdir()
    shutil.copy(videos["plain"], folder / "S_20130417_0600_01.mp4")
    shutil.copy(videos["bframes"], folder / "walk.mp4")
    told = ("source", "wearer", "age_days", "session", "camera")

    def facts():
        return {name: [row[k] for k in told] for name, row in rows_by_name(read_recordings(out), folder).items()}

    command = ["index", str(folder), "--out", str(out), "--processes", "1", "--quiet"]
    assert main(command) == 0
    assert facts() == {name: ["media", *[None] * 4] for name in ("S_20130417_0600_01.mp4", "walk.mp4")}
    before = recordings_hash(read_recordings(out))
    monkeypatch.setattr("headcam.video.workers._Worker", lambda *_: pytest.fail("examined a file again"))
    (tmp_path / "m.csv").write_text("path,wearer,age_days,camera\nwalk.mp4,A,12,GoPro\ngone.mp4,A,13,GoPro\n")
    capsys.readouterr()
    assert main([*command, "--names", "saycam", "--metadata", str(tmp_path / "m.csv")]) == 0
    said = capsys.readouterr().out
    assert "names: 1 of 2 files follow saycam, the others are unknown" in said
    assert "metadata: 1 of 2 files have a row; 1 rows have no file, such as gone.mp4" in said
    assert facts() == {
        "S_20130417_0600_01.mp4": ["saycam", "S", 182.0, "S_20130417", None],
        "walk.mp4": [None, "A", 12.0, None, "GoPro"],
    }
    assert recordings_hash(read_recordings(out)) == before
    assert RecordingIndex.open(out).table["wearer"].to_pylist() == ["S", "A"]  # the loaders' copy follows
    assert main([*command, "--names", "sycam"]) == 2
    assert "names 'sycam' is no convention of file names. Fix: use one of folders, saycam" in capsys.readouterr().err


def test_bad_input_is_one_line_that_names_it(tmp_path, folder, capsys):
    with pytest.raises(InputError, match="missing does not exist"):
        index(tmp_path / "missing", tmp_path / "r.parquet")
    with pytest.raises(InputError, match=r"notes.txt is not a folder"):
        index(folder / "notes.txt", tmp_path / "r.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no video or picture. Fix: give the folder"):
        index(tmp_path / "empty", tmp_path / "r.parquet")
    (tmp_path / "empty" / "a.txt").touch()
    with pytest.raises(InputError, match="no video or picture among its 1 files"):
        index(tmp_path / "empty", tmp_path / "r.parquet")
    other = tmp_path / "other.parquet"
    other.write_text("mine")
    with pytest.raises(InputError, match="not a Parquet file"):
        index(folder, other, quiet=True)
    assert other.read_text() == "mine" and not (tmp_path / ".other.parquet.journal").exists()
    with pytest.raises(InputError, match=r"r.parquet would lie in .*notes.txt, which is no folder"):
        index(folder, folder / "notes.txt" / "r.parquet", quiet=True)
    assert main(["index", str(tmp_path / "missing"), "--out", "r.parquet"]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_the_command_says_what_it_found(folder, tmp_path, capsys):
    status = main(["index", str(folder), "--out", str(tmp_path / "r.parquet"), "--processes", "2", "--quiet"])
    out = capsys.readouterr().out
    assert status == 1 and "3 recordings, 0.00 hours; 5 unreadable, 1 duplicates, 1 other files" in out
    assert out.strip().endswith(str(tmp_path / "r.parquet"))
