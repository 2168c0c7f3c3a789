"""The frame store: which frames, whose seconds, the same bytes always, and nothing half-written."""

import csv
import errno
import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from headcam.cli import main
from headcam.errors import InputError, StorageError
from headcam.video import frame_store
from headcam.video.frame_store import FrameStore, store
from headcam.video.index import index
from headcam.video.readers import open_reader
from headcam.video.recordings import read_recordings

NAMES = ("plain", "bframes", "vfr", "turned", "late", "ts")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory, videos):
    folder = tmp_path_factory.mktemp("indexed")
    (folder / "media").mkdir()
    for name in NAMES:
        shutil.copy(videos[name], folder / "media")
    Image.fromarray(np.full((90, 60, 3), 90, np.uint8)).save(folder / "media" / "still.png")
    index(folder / "media", folder / "r.parquet", processes=2, quiet=True)
    return folder / "r.parquet"


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_frames_are_those_on_screen_at_the_cells_and_their_seconds_sum_up(indexed, tmp_path, number_shown):
    result = store(indexed, tmp_path / "s", frames_per_second=3.0, short_side=48, processes=2, quiet=True)
    frames = FrameStore(tmp_path / "s")
    assert len(frames) == result.frames and result.skipped == ()
    for row in read_recordings(indexed).to_pylist():
        mine = np.flatnonzero(frames.recording == frames.recordings.index(row["recording"]))
        cells = [k / 3 for k in range(max(1, int(np.ceil(row["duration_s"] * 3 - 1e-9))))]
        with open_reader(row["path"], short_side=48) as reader:
            wanted = reader.frames_at(cells)
        expected = {frame.pts: frame for frame in wanted}
        assert frames.pts[mine].tolist() == list(expected)
        assert frames.seconds[mine].sum() == pytest.approx(row["duration_s"], abs=1e-9)
        for i in mine:
            frame = expected[frames.pts[i]]
            image = simplejpeg.decode_jpeg(frames.jpeg(i))
            assert image.shape[:2] == (frames.height[i], frames.width[i]) == frame.image.shape[:2]
            assert min(image.shape[:2]) == 48
            assert frames.time_s[i] == frame.time_s
            if row["duration_s"]:
                assert number_shown(image) == number_shown(frame.image)
    assert frames.hours == pytest.approx(sum(frames.seconds) / 3600)


def test_a_frame_that_fills_many_cells_is_stored_once_across_shards(indexed, tmp_path, monkeypatch):
    """10 frames a second cut into 97 cells a second and shards of 64 cells: the stored frames are those of the file."""
    monkeypatch.setattr(frame_store, "_SHARD_CELLS", (64, 64))
    store(indexed, tmp_path / "s", frames_per_second=97, processes=2, quiet=True)
    frames = FrameStore(tmp_path / "s")
    assert frames.shard.max() > 20
    for row in read_recordings(indexed).to_pylist():
        mine = frames.recording == frames.recordings.index(row["recording"])
        assert len(set(frames.pts[mine])) == mine.sum() == row["frames"]
        assert (np.diff(frames.pts[mine]) > 0).all()
        assert frames.seconds[mine].sum() == pytest.approx(row["duration_s"], abs=1e-9)


def test_any_number_of_processes_makes_the_same_bytes(indexed, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_store, "_SHARD_CELLS", (16, 16))
    for processes in (1, 3):
        store(indexed, tmp_path / str(processes), frames_per_second=5, processes=processes, quiet=True)
    one, three = contents(tmp_path / "1"), contents(tmp_path / "3")
    assert one == three
    assert [name for name in one if not name.startswith("frames-")] == ["frames.parquet", "skipped.csv"]


def test_killed_and_started_again_gives_the_same_bytes(indexed, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    store(indexed, whole, frames_per_second=120, processes=2, quiet=True)
    command = [sys.executable, "-m", "headcam", "store", str(indexed), "--out", str(out), "--frames_per_second", "120"]
    run = subprocess.Popen([*command, "--processes", "1", "--quiet"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob(".frames-*.tar.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    made = {path: path.stat().st_mtime_ns for path in out.glob("frames-*.tar")}
    assert made and not (out / "frames.parquet").exists()
    with pytest.raises(
        InputError, match=r"no frame store that is finished. Fix: run headcam store with the same words"
    ):
        FrameStore(out)
    with pytest.raises(InputError, match="holds a store with short_side 256, not 64"):
        store(indexed, out, frames_per_second=120, short_side=64, quiet=True)
    complete = {out / path.name[1:].removesuffix(".json") for path in out.glob(".frames-*.json")}
    store(indexed, out, frames_per_second=120, processes=2, quiet=True)
    assert contents(out) == contents(whole)
    assert all(path.stat().st_mtime_ns == made[path] for path in complete)  # only what was left was made


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
def test_plain_webdataset_reads_the_shards(indexed, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    store(indexed, tmp_path / "s", processes=2, quiet=True)
    frames = FrameStore(tmp_path / "s")
    shards = [str(tmp_path / "s" / frame_store.shard_name(k)) for k in range(frames.shard.max() + 1)]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == len(frames)
    for i, sample in enumerate(samples):
        facts = json.loads(sample["json"])
        assert sample["__key__"] == f"{facts['recording']}-{facts['pts']}"
        assert sample["jpg"] == frames.jpeg(i) and facts["pts"] == frames.pts[i]
        assert Image.open(io.BytesIO(sample["jpg"])).size == (facts["width"], facts["height"])


def _jpeg(frames, i, queue):
    queue.put(frames.jpeg(i))


def test_a_store_can_be_pickled_and_forked(indexed, tmp_path):
    store(indexed, tmp_path / "s", processes=2, quiet=True)
    frames = FrameStore(tmp_path / "s")
    expected = frames.jpeg(3)
    assert pickle.loads(pickle.dumps(frames)).jpeg(3) == expected
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_jpeg, args=(frames, 3, queue))
    child.start()
    assert queue.get() == expected
    child.join()
    frames.close()
    assert frames.jpeg(3) == expected


def test_damage_is_listed_and_the_frames_before_it_are_kept(tmp_path, videos):
    media = tmp_path / "media"
    media.mkdir()
    shutil.copy(videos["bframes"], media / "good.mp4")
    broken = bytearray(videos["plain"].read_bytes())
    start = broken.index(b"mdat")
    middle = start + (broken.index(b"moov") - start) * 3 // 4
    broken[middle : broken.index(b"moov") - 4] = b"\xff" * (broken.index(b"moov") - 4 - middle)
    (media / "broken.mp4").write_bytes(broken)
    index(media, tmp_path / "r.parquet", processes=2, quiet=True)
    result = store(tmp_path / "r.parquet", tmp_path / "s", frames_per_second=10, processes=2, quiet=True)
    (skip,) = result.skipped
    assert skip.path.endswith("broken.mp4") and skip.reason.startswith("damaged after")
    frames = FrameStore(tmp_path / "s")
    kept = frames.seconds[[frames.recordings[r] == skip.recording for r in frames.recording]]
    assert len(kept) > 5 and kept.sum() + skip.end_s - skip.start_s == pytest.approx(4.0)
    with open(tmp_path / "s" / "skipped.csv", newline="") as file:
        assert [row["reason"] for row in csv.DictReader(file)] == [skip.reason]
    assert main(["store", str(tmp_path / "r.parquet"), "--out", str(tmp_path / "s"), "--frames_per_second", "10"]) == 1


def test_a_full_disk_is_one_line_and_leaves_no_half_shard(indexed, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def in_this_process(function, tasks, *_):
        return ((task, function(task, lambda _: None)) for task in tasks)

    monkeypatch.setattr(frame_store, "run_tasks", in_this_process)
    with monkeypatch.context() as patch:
        patch.setattr(frame_store.tarfile.TarFile, "addfile", full)
        with pytest.raises(StorageError, match=r"frames-000000.tar could not be written: No space left"):
            (tmp_path / "s").mkdir()
            (tmp_path / "s" / ".frames-000000.tar.part").write_bytes(b"of a worker that was stopped")
            store(indexed, tmp_path / "s", quiet=True)
    assert [path.name for path in (tmp_path / "s").iterdir()] == [".store.json"]
    store(indexed, tmp_path / "s", quiet=True)
    assert len(FrameStore(tmp_path / "s")) > 0


def test_bad_input_is_one_line_that_names_it(indexed, tmp_path, capsys):
    for option, message in (
        ({"frames_per_second": 0}, "frames_per_second is 0.0"),
        ({"short_side": 0}, "short_side is 0"),
        ({"quality": 101}, "quality is 101"),
        ({"backend": "x"}, "'x' is not a reader backend"),
    ):
        with pytest.raises(InputError, match=message):
            store(indexed, tmp_path / "s", **option)
    with pytest.raises(InputError, match="is missing"):
        FrameStore(tmp_path)
    store(indexed, tmp_path / "s", processes=2, quiet=True)
    before = contents(tmp_path / "s")
    with pytest.raises(InputError, match="holds a store with quality 90, not 50"):
        store(indexed, tmp_path / "s", quality=50)
    (tmp_path / "one").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "one" / "p.png")
    index(tmp_path / "one", tmp_path / "other.parquet", quiet=True)
    with pytest.raises(InputError, match="holds a store of another index"):
        store(tmp_path / "other.parquet", tmp_path / "s")
    assert contents(tmp_path / "s") == before
    assert main(["store", str(indexed), "--out", str(tmp_path / "s"), "--quiet"]) == 0
    assert capsys.readouterr().out.strip().endswith(os.path.join("s", "frames.parquet"))


@pytest.mark.shared
def test_odd_and_broken_files_neither_stop_nor_hang_the_store(shared_data, tmp_path):
    files = (
        sorted((shared_data / "formats").glob("broken_*/*"))[::3]
        + sorted((shared_data / "formats").glob("good/*"))[::9]
    )
    (tmp_path / "media").mkdir()
    for file in files:
        (tmp_path / "media" / file.name).symlink_to(file)
    found = index(tmp_path / "media", tmp_path / "r.parquet", processes=2, timeout_s=30, quiet=True)
    assert found.table.num_rows == len(files) and found.statuses["unreadable"] > 3
    result = store(tmp_path / "r.parquet", tmp_path / "s", short_side=64, processes=2, quiet=True)
    recorded = sum(d for d, s in zip(*(found.table[c].to_pylist() for c in ("duration_s", "status"))) if s == "ok")
    skipped = sum(s.end_s - s.start_s for s in result.skipped)
    assert result.hours * 3600 + skipped == pytest.approx(recorded, abs=1e-6)
