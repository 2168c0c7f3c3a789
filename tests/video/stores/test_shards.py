"""What both stores promise: the same bytes always, nothing half-written, verified and drawn seconds only."""

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from headcam.cli import main
from headcam.errors import InputError, StorageError
from headcam.video.index import index
from headcam.video.quarantine import quarantine_of, quarantine_path, verified_stretches, write_quarantine
from headcam.video.recordings import read_recordings, recordings_hash, usable
from headcam.video.sampling.manifest import Manifest
from headcam.video.stores import clip_store, frame_store, reading, shards
from headcam.video.stretches import total_s
from headcam.video.workers import Lost

NAMES = ("plain", "bframes", "vfr", "turned", "late", "ts")


@dataclass(frozen=True)
class Case:
    """A kind of store, and small settings for it."""

    kind: str
    module: ModuleType
    options: dict

    def store(self, recordings, out, **options):
        make = frame_store.store if self.kind == "frames" else clip_store.store_clips
        return make(recordings, out, **self.options | {"processes": 2, "quiet": True} | options)

    def open(self, folder):
        return (frame_store.FrameStore if self.kind == "frames" else clip_store.ClipStore)(folder)

    def seconds(self, opened) -> dict[str, float]:
        """Seconds stored of each recording."""
        if self.kind == "clips":
            return {name: total_s(opened.stretches(name)) for name in opened.recordings}
        return {name: opened.seconds[opened.recording == code].sum() for code, name in enumerate(opened.recordings)}

    def words(self, recordings, out) -> list[str]:
        options = [word for name, value in self.options.items() for word in (f"--{name}", str(value))]
        return ["store", str(recordings), "--out", str(out), "--kind", self.kind, *options]

    def with_shards_of(self, cells, monkeypatch):
        monkeypatch.setattr(self.module, "KIND", replace(self.module.KIND, per_shard=(cells, cells)))


FRAMES = Case("frames", frame_store, {"frames_per_second": 5.0, "short_side": 48})
CLIPS = Case("clips", clip_store, {"segment_s": 1.0, "gop": 4, "short_side": 48})


@pytest.fixture(params=[FRAMES, CLIPS], ids=lambda case: case.kind)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def _media(tmp_path_factory, videos):
    folder = tmp_path_factory.mktemp("indexed")
    (folder / "media").mkdir()
    for name in NAMES:
        shutil.copy(videos[name], folder / "media")
    index(folder / "media", folder / "r.parquet", processes=2, quiet=True)
    return folder / "r.parquet"


@pytest.fixture
def indexed(_media, tmp_path):
    """An index of its own for every test, so that a quarantine table can be put beside it."""
    return Path(shutil.copy(_media, tmp_path / "r.parquet"))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_any_number_of_processes_makes_the_same_bytes(case, indexed, tmp_path, monkeypatch):
    case.with_shards_of(7, monkeypatch)
    for processes in (1, 3):
        case.store(indexed, tmp_path / str(processes), processes=processes)
    one, three = contents(tmp_path / "1"), contents(tmp_path / "3")
    assert one == three
    others = {name for name in one if not name.endswith(".tar")}
    assert others == {f"{case.kind}.parquet", "recordings.parquet", "skipped.csv"} and len(one) > 5


def test_killed_and_started_again_gives_the_same_bytes(case, indexed, tmp_path):
    case = replace(case, options=case.options | ({"frames_per_second": 120.0} if case.kind == "frames" else {}))
    whole, out = tmp_path / "whole", tmp_path / "out"
    case.store(indexed, whole)
    command = [sys.executable, "-m", "headcam", *case.words(indexed, out), "--processes", "1", "--quiet"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob(".*.tar.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    made = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert made and not (out / f"{case.kind}.parquet").exists()
    with pytest.raises(InputError, match=r"store that is finished. Fix: run headcam store with the same words"):
        case.open(out)
    with pytest.raises(InputError, match="holds a store with short_side 48, not 32"):
        case.store(indexed, out, short_side=32)
    complete = {out / path.name[1:].removesuffix(".json") for path in out.glob(".*.tar.json")}
    case.store(indexed, out)
    assert contents(out) == contents(whole)
    assert all(path.stat().st_mtime_ns == made[path] for path in complete)  # only what was left was made


def test_scan_and_manifest_decide_which_seconds_are_stored(case, indexed, tmp_path):
    recordings = read_recordings(indexed)
    ids = {Path(row["path"]).stem: row["recording"] for row in recordings.to_pylist()}
    hole = {"reason": "black", "measure": 0.0, "detail": ""}
    rows = [
        {"recording": ids["plain"], "start_s": 1.25, "end_s": 2.5} | hole,
        {"recording": ids["plain"], "start_s": 3.75, "end_s": 4.0} | hole,
        {"recording": ids["vfr"], "start_s": 0.0, "end_s": 100.0} | hole,
    ]
    write_quarantine(rows, quarantine_path(indexed), recordings_hash(recordings), {})
    stretches = {ids["plain"]: ((0.5, 3.0),), ids["bframes"]: ((1.0, 2.0), (3.1, 3.3)), ids["vfr"]: ((0.0, 1.0),)}
    manifest = Manifest(
        seconds={k: total_s(s) for k, s in stretches.items()},
        stretches=stretches,
        recordings_hash=recordings_hash(recordings),
    )
    manifest.write(tmp_path / "m.json")

    result = case.store(indexed, tmp_path / "scanned")
    assert result.verified and not result.skipped
    scan = quarantine_of(indexed, recordings)
    wanted = {name: total_s(s) for name, s in verified_stretches(recordings, scan).items()}
    assert case.seconds(case.open(tmp_path / "scanned")) == pytest.approx(wanted, abs=1e-9)
    assert ids["vfr"] not in wanted and result.hours == pytest.approx(sum(wanted.values()) / 3600)

    case.store(indexed, tmp_path / "drawn", manifest=tmp_path / "m.json")
    opened = case.open(tmp_path / "drawn")
    drawn = {ids["plain"]: 0.75 + 0.5, ids["bframes"]: 1.0 + 0.2}
    assert case.seconds(opened) == pytest.approx(drawn, abs=1e-9)
    assert opened.metadata["manifest_hash"] == manifest.hash and opened.metadata["quarantine_hash"] == scan.hash

    result = case.store(indexed, tmp_path / "all", quarantine=None)
    assert not result.verified and result.recordings == len(NAMES)
    for folder, options, message in (
        ("all", {}, "holds a store made without a scan"),
        ("scanned", {"quarantine": "none"}, "holds a store made with a scan"),
        ("scanned", {"manifest": tmp_path / "m.json"}, "holds a store made without a manifest"),
    ):
        with pytest.raises(InputError, match=message):
            case.store(indexed, tmp_path / folder, **options)
    replace(manifest, recordings_hash="0" * 64).write(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"other.json was not drawn from .*r.parquet"):
        case.store(indexed, tmp_path / "x", manifest=tmp_path / "other.json")


def test_facts_are_the_rows_of_the_index(case, indexed, tmp_path):
    case.store(indexed, tmp_path / "s")
    opened = case.open(tmp_path / "s")
    table = usable(read_recordings(indexed))
    assert opened.facts.drop_columns("keyframes").equals(table.drop_columns("keyframes"))
    assert tuple(opened.facts["recording"].to_pylist()) == opened.recordings
    assert not any(opened.facts["keyframes"].to_pylist())
    shutil.copy(indexed, tmp_path / "s" / "recordings.parquet")
    other = table.slice(1)
    shards.write_recordings(other, tmp_path / "s" / "recordings.parquet")
    with pytest.raises(InputError, match=r"recordings.parquet belongs to another store"):
        case.open(tmp_path / "s")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
def test_plain_webdataset_reads_the_shards(case, indexed, tmp_path, monkeypatch):
    webdataset = pytest.importorskip("webdataset")
    case.with_shards_of(7, monkeypatch)
    case.store(indexed, tmp_path / "s")
    names = sorted(map(str, (tmp_path / "s").glob("*.tar")))
    samples = list(webdataset.WebDataset(names, shardshuffle=False))
    table = reading.open_table(case.module.KIND, tmp_path / "s").to_pylist()
    assert len(names) > 2 and len(samples) == len(table)
    data = {"frames": "jpg", "clips": "mp4"}[case.kind]
    for sample, row in zip(samples, table):
        assert sample["__key__"].startswith(f"{row['recording']}-") and len(sample[data]) == row["length"]
        with open(sample["__url__"], "rb") as file:
            assert file.read()[row["offset"] :][: row["length"]] == sample[data]
        facts = json.loads(sample["json"])
        assert {name: row[name] for name in facts if name in row} == {k: v for k, v in facts.items() if k in row}
    assert len({sample["__key__"] for sample in samples}) == len(samples)


def _pixels(case, folder_or_store, queue=None):
    opened = case.open(folder_or_store) if isinstance(folder_or_store, Path) else folder_or_store
    if case.kind == "frames":
        answer = opened.jpeg(3)
    else:
        answer = opened.frames_at(opened.recordings[0], [1.5])[0].image.tobytes()
    if queue is None:
        return answer
    return queue.put((answer, os.getpid()))


def test_a_store_can_be_pickled_and_forked(case, indexed, tmp_path):
    case.store(indexed, tmp_path / "s")
    opened = case.open(tmp_path / "s")
    expected = _pixels(case, opened)
    assert _pixels(case, pickle.loads(pickle.dumps(opened))) == expected
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_pixels, args=(replace(case, module=None), opened, queue))
    child.start()
    assert queue.get() == (expected, child.pid)
    child.join()
    opened.close()
    assert _pixels(case, opened) == expected


def _in_this_process(function, tasks, *_):
    return ((task, function(task, lambda _: None)) for task in tasks)


def test_a_full_disk_is_one_line_and_leaves_no_half_shard(case, indexed, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "run_tasks", _in_this_process)
    shard = case.module.KIND.shard_name(0)
    with monkeypatch.context() as patch:
        patch.setattr(shards.tarfile.TarFile, "addfile", full)
        with pytest.raises(StorageError, match=rf"{shard} could not be written: No space left"):
            (tmp_path / "s").mkdir()
            (tmp_path / "s" / f".{shard}.part").write_bytes(b"of a worker that was stopped")
            case.store(indexed, tmp_path / "s")
    assert [path.name for path in (tmp_path / "s").iterdir()] == [".store.json"]
    case.store(indexed, tmp_path / "s")
    assert case.open(tmp_path / "s").recordings


def test_a_recording_that_takes_its_worker_down_is_listed_and_the_rest_is_stored(case, indexed, tmp_path, monkeypatch):
    calls = []

    def crashing_once(function, tasks, *_):
        calls.append(len(tasks))
        for task in tasks:
            if len(calls) == 1 and task.number == 0:
                yield task, Lost("the decoder crashed (SIGSEGV)", (0, "name", 0))
            else:
                yield task, function(task, lambda _: None)

    monkeypatch.setattr(shards, "run_tasks", crashing_once)
    case.with_shards_of(12 if case.kind == "frames" else 3, monkeypatch)
    result = case.store(indexed, tmp_path / "s")
    (skip,) = result.skipped
    first = usable(read_recordings(indexed)).to_pylist()[0]
    assert calls[1:] == [1] and skip.recording == first["recording"] and skip.reason == "the decoder crashed (SIGSEGV)"
    cells_s = 12 / 5 if case.kind == "frames" else 3.0  # of the first shard
    assert skip.start_s == 0 and skip.end_s == pytest.approx(min(cells_s, first["duration_s"]))
    stored = case.seconds(case.open(tmp_path / "s")).get(first["recording"], 0.0)
    if case.kind == "clips":  # a frame store's next frame may be left to the piece before, which is not there
        assert stored + skip.end_s == pytest.approx(first["duration_s"])


def test_bad_input_is_one_line_that_names_it(case, indexed, tmp_path, capsys):
    for option, message in (
        ({"frames_per_second": 0}, "frames_per_second is 0.0"),
        ({"short_side": 0}, "short_side is 0"),
        ({"rotate": 45}, "rotate is 45"),
        ({"crop": (0.5, 0, 0.5, 1)}, r"crop is \[0.5, 0.0, 0.5, 1.0\]"),
        ({"crop": (0, 0, 1, 1.5)}, "crop is"),
        ({"backend": "x"}, "'x' is not a reader backend"),
        ({"engine": "x"}, "no engine 'x'"),
    ):
        with pytest.raises(InputError, match=message):
            case.store(indexed, tmp_path / "s", **option)
    with pytest.raises(InputError, match=rf"holds no {case.module.KIND.contract} \({case.kind}.parquet is missing\)"):
        case.open(tmp_path)
    shutil.rmtree(tmp_path / "s")
    case.store(indexed, tmp_path / "s")
    before = contents(tmp_path / "s")
    with pytest.raises(InputError, match="holds a store with rotate 0, not 90"):
        case.store(indexed, tmp_path / "s", rotate=90)
    (tmp_path / "one").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "one" / "p.png")
    index(tmp_path / "one", tmp_path / "other.parquet", quiet=True)
    with pytest.raises(InputError, match="holds a store of another index"):
        case.store(tmp_path / "other.parquet", tmp_path / "s")
    assert contents(tmp_path / "s") == before
    assert main([*case.words(indexed, tmp_path / "s"), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "not verified: no scan was used" in out
    assert out.strip().endswith(os.path.join("s", f"{case.kind}.parquet"))
    (tmp_path / "s" / case.module.KIND.shard_name(0)).write_bytes(b"")
    with pytest.raises(InputError, match="is cut short"):
        _pixels(case, tmp_path / "s")
    (tmp_path / "s" / case.module.KIND.shard_name(0)).unlink()
    with pytest.raises(InputError, match=r"000000.tar is missing"):
        _pixels(case, tmp_path / "s")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--kind", "tapes"], "there is no store of kind 'tapes'. Fix: use --kind frames or clips"),
        (["--gop", "8"], "--gop is an option of --kind clips. Fix: leave it out"),
        (["--kind", "clips", "--keyframes"], "--keyframes is an option of --kind frames"),
        (["--keyframes", "--frames_per_second", "2"], "--keyframes and --frames_per_second exclude each other"),
    ],
)
def test_options_of_the_other_kind_are_refused(words, message, tmp_path, capsys):
    assert main(["store", str(tmp_path / "r.parquet"), "--out", str(tmp_path / "s"), *words]) == 2
    assert message in capsys.readouterr().err


def test_disc_layout_of_clip_segments_and_frames_is_named_in_the_table(case, indexed, tmp_path):
    """Rows stand in the order of recordings and times, shard numbers rise, and offsets lie on tar's blocks."""
    case.store(indexed, tmp_path / "s")
    table = reading.open_table(case.module.KIND, tmp_path / "s")
    keys = list(zip(table["recording"].to_pylist(), table["time_s"].to_pylist()))
    assert keys == sorted(keys) and (np.diff(table["shard"].to_numpy()) >= 0).all()
    assert not (table["offset"].to_numpy() % 512).any()
