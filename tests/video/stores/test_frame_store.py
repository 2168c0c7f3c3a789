"""The frame store: which frames, whose seconds, which way up. What it shares with the clip store: test_shards.py."""

import csv
import json
import shutil
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from headcam.cli import main
from headcam.errors import DecodeError, InputError
from headcam.video.index import index
from headcam.video.quarantine import quarantine_path, write_quarantine
from headcam.video.readers import open_reader
from headcam.video.recordings import read_recordings, recordings_hash
from headcam.video.stores import cells, frame_store
from headcam.video.stores.frame_store import FrameStore, store
from headcam.video.stores.framing import Framing

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


def test_frames_are_those_on_screen_at_the_cells_and_their_seconds_sum_up(indexed, tmp_path, number_shown):
    result = store(indexed, tmp_path / "s", frames_per_second=3.0, short_side=48, processes=2, quiet=True)
    frames = FrameStore(tmp_path / "s")
    assert len(frames) == result.samples and result.skipped == ()
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
    monkeypatch.setattr(frame_store, "KIND", replace(frame_store.KIND, per_shard=(64, 64)))
    store(indexed, tmp_path / "s", frames_per_second=97, processes=2, quiet=True)
    frames = FrameStore(tmp_path / "s")
    assert frames.shard.max() > 20
    for row in read_recordings(indexed).to_pylist():
        mine = frames.recording == frames.recordings.index(row["recording"])
        assert len(set(frames.pts[mine])) == mine.sum() == row["frames"]
        assert (np.diff(frames.pts[mine]) > 0).all()
        assert frames.seconds[mine].sum() == pytest.approx(row["duration_s"], abs=1e-9)


def test_cells_start_anew_behind_a_hole_and_a_frame_across_it_is_stored_once(tmp_path, write_video, number_shown):
    """One frame a second, shown for a second; a hole of a quarter of a second inside the fourth."""
    (tmp_path / "media").mkdir()
    write_video(tmp_path / "media" / "slow.mp4", frames=8, rate=1)
    table = index(tmp_path / "media", tmp_path / "r.parquet", processes=1, quiet=True).table
    row = {"recording": table["recording"][0].as_py(), "start_s": 3.25, "end_s": 3.5}
    row |= {"reason": "black", "measure": 0.0, "detail": ""}
    write_quarantine([row], quarantine_path(tmp_path / "r.parquet"), recordings_hash(table), {})
    store(tmp_path / "r.parquet", tmp_path / "s", frames_per_second=1, processes=1, quiet=True)
    frames = FrameStore(tmp_path / "s")
    assert frames.time_s.tolist() == list(range(8))
    # Cells: 0, 1, 2, 3 to 3.25; 3.5 (still frame 3), 4.5 (frame 4), ..., 7.5 to 8 (frame 7).
    assert frames.seconds.tolist() == [1, 1, 1, 1.25, 1, 1, 1, 0.5]
    assert [number_shown(simplejpeg.decode_jpeg(frames.jpeg(i))) for i in range(8)] == list(range(8))


@pytest.mark.parametrize("name", ["plain", "bframes", "open_gop", "late", "turned"])
def test_key_frames_stand_for_the_time_to_the_next_one(name, videos, tmp_path, number_shown):
    (tmp_path / "media").mkdir()
    shutil.copy(videos[name], tmp_path / "media")
    (row,) = index(tmp_path / "media", tmp_path / "r.parquet", processes=1, quiet=True).table.to_pylist()
    store(tmp_path / "r.parquet", tmp_path / "s", keyframes=True, short_side=64, processes=1, quiet=True)
    frames = FrameStore(tmp_path / "s")
    assert frames.pts.tolist() == row["keyframes"] and len(frames) >= 4
    assert frames.seconds.sum() == pytest.approx(row["duration_s"])
    assert frames.seconds[:-1] == pytest.approx(np.diff(frames.time_s))
    with av.open(row["path"]) as container:
        shown = {frame.pts: k for k, frame in enumerate(container.decode(video=0))}
    numbers = [number_shown(simplejpeg.decode_jpeg(frames.jpeg(i))) for i in range(len(frames))]
    assert numbers == [shown[pts] for pts in frames.pts]


def test_key_frames_follow_the_scan(videos, tmp_path):
    """Key frames at 0, 1.2, 2.4 and 3.6 s. What comes before the first one of a stretch counts to it."""
    (tmp_path / "media").mkdir()
    shutil.copy(videos["plain"], tmp_path / "media")
    table = index(tmp_path / "media", tmp_path / "r.parquet", processes=1, quiet=True).table
    row = {"recording": table["recording"][0].as_py(), "reason": "black", "measure": 0.0, "detail": ""}
    holes = [row | {"start_s": a, "end_s": b} for a, b in ((0.5, 1.5), (1.75, 2.0))]
    write_quarantine(holes, quarantine_path(tmp_path / "r.parquet"), recordings_hash(table), {})
    store(tmp_path / "r.parquet", tmp_path / "s", keyframes=True, processes=1, quiet=True)
    frames = FrameStore(tmp_path / "s")
    # Stretches: 0 to 0.5, 1.5 to 1.75 (no key frame: the frame at its start), 2 to 4 (key frames at 2.4 and 3.6).
    assert frames.time_s.tolist() == pytest.approx([0, 1.5, 2.4, 3.6])
    assert frames.seconds.tolist() == pytest.approx([0.5, 0.25, 1.6, 0.4])


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_pictures_are_turned_then_cropped_then_have_the_short_side(rotate, videos, tmp_path):
    """Against a slow statement of the same: the full picture turned and cropped, then shrunk by Pillow."""
    (tmp_path / "media").mkdir()
    shutil.copy(videos["turned"], tmp_path / "media")  # has a flag of its own: 64 x 96 as stored, 96 x 64 upright
    index(tmp_path / "media", tmp_path / "r.parquet", processes=1, quiet=True)
    crop, kept = (0.25, 0.0, 1.0, 0.75), 24
    store(tmp_path / "r.parquet", tmp_path / "s", rotate=rotate, crop=crop, short_side=kept, quality=95, quiet=True)
    frames = FrameStore(tmp_path / "s")
    with open_reader(videos["turned"]) as reader:
        (full,) = reader.frames_at([3.0])
    turned = np.rot90(full.image, -rotate // 90)
    height, width = turned.shape[:2]
    part = Image.fromarray(turned[: height * 3 // 4, width // 4 :])
    scale = kept / min(part.size)
    wanted = part.resize((round(part.width * scale), round(part.height * scale)), Image.Resampling.BOX)
    image = simplejpeg.decode_jpeg(frames.jpeg(3))
    assert image.shape[:2] == wanted.size[::-1] == (frames.height[3], frames.width[3])
    assert min(image.shape[:2]) == kept
    error = np.abs(image.astype(int) - np.asarray(wanted)).mean()
    unturned = np.abs(np.rot90(image, 2).astype(int) - np.asarray(wanted)).mean()
    assert error < 8 < unturned


@pytest.mark.parametrize("width, height", [(1280, 720), (96, 64), (641, 479), (50, 70)])
@pytest.mark.parametrize("crop", [(0, 0, 1, 1), (0.1, 0.2, 0.75, 0.9), (0.33, 0.33, 0.34, 1), (0, 0.999, 1, 1)])
def test_a_crop_has_the_short_side_or_is_not_enlarged(width, height, crop):
    cut = Framing(48, rotate=90, crop=crop).of(width, height)
    scale = cut.short_side / min(width, height)
    assert scale <= 1
    kept = cut(np.zeros((round(height * scale), round(width * scale), 3), np.uint8))
    part = max(1, round((crop[2] - crop[0]) * height)), max(1, round((crop[3] - crop[1]) * width))
    assert min(kept.shape[:2]) == min(48, *part) or scale == 1


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


def test_storing_goes_on_behind_damage(tmp_path, write_video, number_shown, monkeypatch):
    """Two of ten groups of pictures are overwritten; all other frames are stored, and the seconds add up."""
    (tmp_path / "media").mkdir()
    path = write_video(tmp_path / "media" / "hurt.mp4", frames=120, bframes=0, gop=12)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for k in (*range(40, 46), *range(75, 80)):
        start, size = packets[k]
        data[start + 5 : start + size] = b"\xff" * (size - 5)
    path.write_bytes(data)
    index(tmp_path / "media", tmp_path / "r.parquet", processes=1, quiet=True)
    for per_shard in (256, 17):
        monkeypatch.setattr(frame_store, "KIND", replace(frame_store.KIND, per_shard=(per_shard, per_shard)))
        result = store(tmp_path / "r.parquet", tmp_path / str(per_shard), frames_per_second=10, processes=1, quiet=True)
        frames = FrameStore(tmp_path / str(per_shard))
        first, second = result.skipped
        assert (first.end_s, second.end_s) == pytest.approx((4.8, 8.4)) and "damaged" in first.reason
        assert 3.6 < first.start_s <= 4.1 and 7.2 < second.start_s <= 7.6
        assert frames.seconds.sum() + sum(s.end_s - s.start_s for s in result.skipped) == pytest.approx(12.0)
        numbers = [number_shown(simplejpeg.decode_jpeg(frames.jpeg(i))) for i in range(len(frames))]
        assert numbers == [round(10 * t) for t in frames.time_s] and set(numbers) >= {*range(37), *range(48, 73)}
        assert set(numbers) >= set(range(84, 120))


def test_a_file_that_is_cut_short_costs_some_attempts_and_not_one_a_key_frame(monkeypatch):
    attempts = []

    class Broken:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def iter_frames(self, times_s):
            attempts.append(times_s[0])
            raise DecodeError("cut.mp4: gone", "get it back")

    monkeypatch.setattr(cells, "open_reader", Broken)
    piece = cells.Piece(
        *("id", "cut.mp4", 100, 32, 32, Fraction(10), Fraction(1), 0),
        keyframes=tuple(range(1000)),
        stretches=((0.0, 1000.0),),
        cells=10_000,
        first=0,
        last=10_000,
    )
    found = list(cells.frames_on_screen(piece, np.arange(10_000) / 10, 0, 10_000, "pyav", 32))
    assert [k for k, _ in found] == list(range(10_000)) and {why for _, why in found} == {"cut.mp4: gone"}
    assert attempts[:5] == [0, 1, 2, 3, 4] and len(attempts) < 16


def test_a_store_of_version_1_is_read_and_left_as_it_is(indexed, tmp_path):
    store(indexed, tmp_path / "s", quarantine=None, processes=2, quiet=True)
    path = tmp_path / "s" / "frames.parquet"
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"headcam.store"])
    old = {name: metadata["settings"][name] for name in ("frames_per_second", "short_side", "quality", "backend")}
    metadata = {"version": 1, "settings": old, "recordings_hash": metadata["recordings_hash"], "hours": 0.5}
    keys = {"headcam.contract": "frame store", "headcam.version": "1", "headcam.store": json.dumps(metadata)}
    pq.write_table(table.replace_schema_metadata(keys), path)
    (tmp_path / "s" / "recordings.parquet").unlink()
    frames = FrameStore(tmp_path / "s")
    assert frames.facts is None and frames.hours == 0.5 and simplejpeg.decode_jpeg(frames.jpeg(0)).size
    assert store(indexed, tmp_path / "s", quiet=True).samples == len(frames)
    with pytest.raises(InputError, match="holds a store with keyframes False, not True"):
        store(indexed, tmp_path / "s", keyframes=True, quiet=True)
    keys["headcam.version"] = "3"
    pq.write_table(table.replace_schema_metadata(keys), path)
    with pytest.raises(InputError, match="frame store table of version 3, this headcam reads version 2"):
        FrameStore(tmp_path / "s")


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
