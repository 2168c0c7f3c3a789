"""The clip store: the exact source frame for every time, and colours that stay. What it shares: test_shards.py."""

import json
import shutil
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from headcam.cli import main
from headcam.errors import DecodeError, InputError, MissingPackage
from headcam.video.index import index
from headcam.video.quarantine import quarantine_path, write_quarantine
from headcam.video.readers import open_reader
from headcam.video.recordings import read_recordings, recordings_hash
from headcam.video.stores import clip_store
from headcam.video.stores.clip_store import ClipStore, store_clips
from headcam.video.stores.reading import open_table

NAMES = ("plain", "bframes", "vfr", "turned", "late", "ts", "ntsc", "open_gop")


@pytest.fixture(scope="module")
def made(tmp_path_factory, videos):
    """An index of odd videos and a clip store of it, segments of 1.5 s in groups of 4."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "media").mkdir()
    for name in NAMES:
        shutil.copy(videos[name], folder / "media")
    index(folder / "media", folder / "r.parquet", processes=2, quiet=True)
    result = store_clips(folder / "r.parquet", folder / "s", segment_s=1.5, gop=4, crf=8, processes=2, quiet=True)
    assert not result.skipped and result.recordings == len(NAMES)
    return folder


def frames_of(path):
    """(pts, number of the frame) of a full decode by PyAV, in order."""
    with av.open(str(path)) as container:
        return [(frame.pts, k) for k, frame in enumerate(container.decode(video=0))]


def test_every_frame_of_the_source_is_there_with_its_time_stamp(made, number_shown):
    store = ClipStore(made / "s")
    for row in read_recordings(made / "r.parquet").to_pylist():
        source = frames_of(row["path"])
        with open_reader(row["path"]) as reader:
            times = [reader.time_s(pts) for pts, _ in source]
        assert store.stretches(row["recording"]) == ((0.0, row["duration_s"]),)
        frames = store.frames_at(row["recording"], times)
        assert [(f.pts, number_shown(f.image)) for f in frames] == source
        assert [f.time_s for f in frames] == times


def test_any_times_in_any_order_give_what_the_source_gives(made, number_shown):
    store = ClipStore(made / "s")
    rng = np.random.default_rng(0)
    for row in read_recordings(made / "r.parquet").to_pylist():
        border = min(1.5, row["duration_s"] / 2)
        times = [*rng.uniform(0, row["duration_s"], 12), border, 0.0, border]
        with open_reader(row["path"]) as reader:
            wanted = reader.frames_at(times)
        frames = store.frames_at(row["recording"], times)
        assert [(f.pts, f.time_s) for f in frames] == [(f.pts, f.time_s) for f in wanted]
        assert [number_shown(f.image) for f in frames] == [number_shown(f.image) for f in wanted]
        assert frames[-1] is not None and frames[-1].pts == frames[-3].pts


def test_segments_have_closed_groups_of_constant_length_and_say_what_they_hold(made):
    table = open_table(clip_store.KIND, made / "s").to_pylist()
    for row in table:
        with open(made / "s" / clip_store.KIND.shard_name(row["shard"]), "rb") as file:
            file.seek(row["offset"])
            (made / "one.mp4").write_bytes(file.read(row["length"]))
            file.seek(row["facts_offset"])
            facts = json.loads(file.read(row["facts_length"]))
        assert facts["pts"] == row["pts"] and len(row["pts"]) == row["frames"] == len(facts["times_s"])
        assert row["keyframes"] == row["pts"][::4]
        num, den = facts["time_base"]
        with av.open(str(made / "one.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height, stream.codec_context.name) == (row["width"], row["height"], "h264")
            packets = [p for p in container.demux(stream) if p.size]
            # The segment's own clock is the source's.
            ticks = sorted((p.pts - stream.start_time) * stream.time_base for p in packets)
            assert ticks == [Fraction((pts - row["pts"][0]) * num, den) for pts in row["pts"]]
            # Closed: in the order of decoding, nothing behind a key frame is shown before it.
            keys = [k for k, p in enumerate(packets) if p.is_keyframe]
            for start, end in zip(keys, [*keys[1:], len(packets)]):
                shown = [p.pts for p in packets[start:end]]
                assert min(shown) == shown[0]
                assert end == len(packets) or max(shown) < packets[end].pts
            # Each group is decoded alike alone: no frame of it needs one before.
    assert {row["frames"] for row in table} > {15} and len(table) > 16


def test_a_store_of_few_frames_a_second_holds_those_on_screen(made, number_shown):
    store_clips(made / "r.parquet", made / "slow", segment_s=1.5, frames_per_second=2.5, processes=2, quiet=True)
    store = ClipStore(made / "slow")
    for row in read_recordings(made / "r.parquet").to_pylist():
        grid = np.arange(0, row["duration_s"], 0.4)
        with open_reader(row["path"]) as reader:
            wanted = reader.frames_at(grid)
        frames = store.frames_at(row["recording"], grid)
        assert [(f.pts, number_shown(f.image)) for f in frames] == [(f.pts, number_shown(f.image)) for f in wanted]
    stored = open_table(clip_store.KIND, made / "slow")
    held = sum(map(len, map(set, stored["pts"].to_pylist())))
    assert held < 0.4 * len(NAMES) * 40


PATCHES = ((200, 40, 40), (40, 180, 60), (50, 60, 200), (230, 190, 160))  # what a wrong matrix or range would turn


def natural_video(path, size, count=24, **options):
    """A smooth colourful pan under a row of plain patches, each frame different; returns the pictures."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(60, 180, (24, 40, 1)) + rng.integers(-40, 40, (24, 40, 3))
    ground = cv2.resize(coarse.astype(np.uint8), (2 * size[0], 2 * size[1]), interpolation=cv2.INTER_CUBIC)
    pictures = [ground[k : k + size[1], 3 * k : 3 * k + size[0]].copy() for k in range(count)]
    for picture in pictures:
        for patch, colour in enumerate(PATCHES):
            picture[: size[1] // 4, patch * size[0] // 4 : (patch + 1) * size[0] // 4] = colour
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, options.pop("pix_fmt", "yuv420p")
        stream.options = {"crf": "4", **options}
        for picture in pictures:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return pictures


@pytest.mark.parametrize(
    "size, pix_fmt, x264",
    [
        ((320, 240), "yuv420p", ""),
        ((321, 241), "yuv444p", ""),
        ((320, 240), "yuv420p", "colormatrix=bt709:range=tv"),
        ((320, 240), "yuvj420p", ""),
    ],
    ids=["plain", "odd", "bt709", "full range"],
)
def test_colours_are_those_of_the_source(size, pix_fmt, x264, tmp_path):
    (tmp_path / "media").mkdir()
    natural_video(tmp_path / "media" / "v.mp4", size, pix_fmt=pix_fmt, **({"x264-params": x264} if x264 else {}))
    index(tmp_path / "media", tmp_path / "r.parquet", processes=1, quiet=True)
    store_clips(tmp_path / "r.parquet", tmp_path / "s", short_side=120, segment_s=1, processes=1, quiet=True)
    store = ClipStore(tmp_path / "s")
    times = np.arange(24) / 10
    with open_reader(tmp_path / "media" / "v.mp4", short_side=120) as reader:
        wanted = np.stack([f.image for f in reader.frames_at(times)])
    frames = np.stack([f.image for f in store.frames_at(store.recordings[0], times)])
    assert frames.shape[1:] == (120, 160, 3)
    difference = frames.astype(float) - wanted[:, :120, :160]
    assert 10 * np.log10(255**2 / np.square(difference).mean(axis=(1, 2, 3))).min() > 35
    assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 2  # no tint
    for patch in range(len(PATCHES)):
        shown = frames[:, 5:25, 40 * patch + 10 : 40 * patch + 30].mean(axis=(0, 1, 2))
        source = wanted[:, 5:25, 40 * patch + 10 : 40 * patch + 30].mean(axis=(0, 1, 2))
        assert shown == pytest.approx(source, abs=3)
    wrong = np.roll(frames, 1, axis=0).astype(float) - wanted[:, :120, :160]
    assert 10 * np.log10(255**2 / np.square(wrong).mean()) < 30  # a bound that a wrong frame would break


def test_rotation_crop_and_odd_sizes(tmp_path):
    (tmp_path / "media").mkdir()
    natural_video(tmp_path / "media" / "v.mp4", (320, 240))
    index(tmp_path / "media", tmp_path / "r.parquet", processes=1, quiet=True)
    options = {"rotate": 180, "crop": (0.0, 0.0, 0.71, 0.55), "short_side": 2000}
    store_clips(tmp_path / "r.parquet", tmp_path / "s", **options, crf=4, processes=1, quiet=True)
    store = ClipStore(tmp_path / "s")
    with open_reader(tmp_path / "media" / "v.mp4") as reader:
        (full,) = reader.frames_at([1.0])
    wanted = np.rot90(full.image, 2)[:132, :226]  # 227 columns, less one that 4:2:0 has no room for
    (frame,) = store.frames_at(store.recordings[0], [1.0])
    assert frame.image.shape == wanted.shape
    assert np.abs(frame.image.astype(int) - wanted).mean() < 3


def test_a_hole_is_not_bridged_and_times_outside_are_refused(made, tmp_path, number_shown):
    recordings = read_recordings(made / "r.parquet")
    shutil.copy(made / "r.parquet", tmp_path / "r.parquet")
    ids = {row["path"].rsplit("/", 1)[1]: row["recording"] for row in recordings.to_pylist()}
    name = ids["bframes.mp4"]
    row = {"recording": name, "start_s": 1.05, "end_s": 2.05, "reason": "frozen", "measure": 0.0, "detail": ""}
    write_quarantine([row], quarantine_path(tmp_path / "r.parquet"), recordings_hash(recordings), {})
    store_clips(tmp_path / "r.parquet", tmp_path / "s", segment_s=1.5, processes=2, quiet=True)
    store = ClipStore(tmp_path / "s")
    assert store.stretches(name) == ((0.0, 1.05), (2.05, 4.0))
    frames = store.frames_at(name, [0.0, 1.04, 2.05, 2.15, 3.6])
    assert [number_shown(f.image) for f in frames] == [0, 10, 20, 21, 36]
    for time_s in (-0.1, 1.05, 1.5, 2.0499, 4.0, 9.0, float("nan")):
        with pytest.raises(DecodeError, match=r"has no frame of .* it holds 0 to 1.05 s, 2.05 to 4 s"):
            store.frames_at(name, [0.5, time_s])
    with pytest.raises(InputError, match="holds no recording x"):
        store.frames_at("x", [0.0])
    assert store.frames_at(name, []) == []


def test_a_picture_frozen_for_many_segments_is_in_each_of_them(tmp_path, write_video, number_shown):
    (tmp_path / "media").mkdir()
    pts = [0, 100, 5600, 5700]  # ms: the second stays for 5.5 s
    write_video(tmp_path / "media" / "v.mp4", frames=4, pts=pts, time_base=Fraction(1, 1000), rate=1000)
    index(tmp_path / "media", tmp_path / "r.parquet", processes=1, quiet=True)
    store_clips(tmp_path / "r.parquet", tmp_path / "s", segment_s=2, processes=1, quiet=True)
    store = ClipStore(tmp_path / "s")
    rows = open_table(clip_store.KIND, tmp_path / "s").to_pylist()
    assert [row["frames"] for row in rows][:3] == [2, 1, 3]
    frames = store.frames_at(store.recordings[0], [0.05, 1.0, 3.0, 4.5, 5.65])
    assert [(f.time_s, number_shown(f.image)) for f in frames] == [(0, 0), (0.1, 1), (0.1, 1), (0.1, 1), (5.6, 2)]


def test_damage_ends_a_segment_and_is_listed(tmp_path, write_video, number_shown):
    (tmp_path / "media").mkdir()
    path = write_video(tmp_path / "media" / "hurt.mp4", frames=80, bframes=0, gop=12)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for start, size in packets[40:46]:
        data[start + 5 : start + size] = b"\xff" * (size - 5)
    path.write_bytes(data)
    Image.fromarray(np.full((90, 60, 3), 90, np.uint8)).save(tmp_path / "media" / "still.png")
    index(tmp_path / "media", tmp_path / "r.parquet", processes=1, quiet=True)
    result = store_clips(tmp_path / "r.parquet", tmp_path / "s", segment_s=3, processes=1, quiet=True)
    store = ClipStore(tmp_path / "s")
    still, hurt = sorted(result.skipped, key=lambda s: s.reason != "a still picture, of which there are no clips")
    assert still.path.endswith("still.png") and "damaged" in hurt.reason
    assert store.stretches(hurt.recording) == ((0.0, hurt.start_s), (4.8, 8.0))
    assert hurt.end_s == 4.8 and 3.6 < hurt.start_s <= 4.1
    assert result.hours * 3600 + hurt.end_s - hurt.start_s == pytest.approx(8.0)
    times = [3.0, 3.5, 4.8, 5.0, 7.9]
    assert [number_shown(f.image) for f in store.frames_at(hurt.recording, times)] == [30, 35, 48, 50, 79]
    words = ["store", str(tmp_path / "r.parquet"), "--out", str(tmp_path / "s"), "--kind", "clips", "--segment_s", "3"]
    assert main(words) == 1


def test_a_file_that_lost_its_end_after_it_was_indexed_is_not_made_up(tmp_path, write_video):
    (tmp_path / "media").mkdir()
    path = write_video(tmp_path / "media" / "v.mkv", frames=80, gop=12)
    index(tmp_path / "media", tmp_path / "r.parquet", processes=1, quiet=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = store_clips(tmp_path / "r.parquet", tmp_path / "s", segment_s=3, processes=1, quiet=True)
    store = ClipStore(tmp_path / "s")
    ((start, end),) = store.stretches(store.recordings[0])
    lost = sum(skip.end_s - skip.start_s for skip in result.skipped)
    assert start == 0 and 2 < end < 6 and end + lost == pytest.approx(8.0)
    path.unlink()
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(InputError, match=r"none of the recordings gave any segments: .*cannot be opened"):
        store_clips(tmp_path / "r.parquet", tmp_path / "s", processes=1, quiet=True)


def test_bad_settings_and_a_missing_encoder_are_one_line(made, tmp_path, monkeypatch):
    for option, message in (
        ({"segment_s": 0.5}, "segment_s is 0.5"),
        ({"gop": 0}, "gop is 0"),
        ({"crf": 52}, "crf is 52"),
        ({"short_side": 255}, "short_side is 255. Fix: use an even number"),
        ({"short_side": 14}, "short_side is 14"),
    ):
        with pytest.raises(InputError, match=message):
            store_clips(made / "r.parquet", tmp_path / "s", **option)
    monkeypatch.setattr(av.codec, "codecs_available", {"h264"})
    with pytest.raises(MissingPackage, match="has no libx264"):
        store_clips(made / "r.parquet", tmp_path / "s")


def test_a_damaged_shard_is_an_error_and_never_a_picture(made, tmp_path):
    shutil.copytree(made / "s", tmp_path / "s")
    row = open_table(clip_store.KIND, made / "s").to_pylist()[0]
    shard = tmp_path / "s" / clip_store.KIND.shard_name(row["shard"])
    data = bytearray(shard.read_bytes())
    data[row["offset"] : row["offset"] + row["length"]] = bytes(row["length"])
    shard.write_bytes(data)
    store = ClipStore(tmp_path / "s")
    with pytest.raises(DecodeError, match=rf"{shard.name} is damaged at byte {row['offset']}: "):
        store.frames_at(row["recording"], [0.0])
