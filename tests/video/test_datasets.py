"""Sources agree on the frame, whichever way it comes; items are pure functions of their number."""

import os
import pickle

import numpy as np
import pytest
import torch

from headcam.errors import DecodeError, InputError
from headcam.video.datasets import HeldOutFrames, JoinedSource, PlannedFrames, StoreSource, VideoSource
from headcam.video.frame_store import store
from headcam.video.index import index
from headcam.video.plan import FramePlan
from headcam.video.transforms import Box

WHOLE = Box(0, 0, 96, 64)
SIZE = (64, 96)


@pytest.fixture(scope="module")
def walk(tmp_path_factory, write_video):
    """Two videos of 4 and 2.5 s whose frames show their number, with a store of one frame a second."""
    root = tmp_path_factory.mktemp("walk")
    (root / "videos").mkdir()
    write_video(root / "videos" / "a.mp4")
    write_video(root / "videos" / "b.mp4", frames=25, first_number=100)
    index(root / "videos", root / "index.parquet", processes=1)
    store(root / "index.parquet", root / "store", short_side=64, quality=95, processes=1)
    return root


def test_store_and_video_show_the_same_frame_of_a_unit(walk, number_shown):
    stored, decoded = StoreSource(walk / "store"), VideoSource(walk / "index.parquet")
    a, b = stored.units, decoded.units
    assert a.recordings == b.recordings
    assert np.array_equal(a.recording, b.recording) and np.allclose(a.time_s, b.time_s)
    assert np.allclose(a.seconds, b.seconds) and b.hours == pytest.approx(6.5 / 3600)
    numbers = []
    for unit in range(len(a)):
        pictures = [s.picture(unit, float(a.time_s[unit]), WHOLE, SIZE, False) for s in (stored, decoded)]
        assert pictures[0].shape == (64, 96, 3) and pictures[0].dtype == np.uint8
        assert number_shown(pictures[0]) == number_shown(pictures[1])
        assert np.abs(pictures[0].astype(int) - pictures[1]).mean() < 6  # JPEG at quality 95
        numbers.append(number_shown(pictures[1]))
    assert sorted(numbers) == [0, 10, 20, 30, 100, 110, 120]


def test_video_shows_the_frame_at_the_drawn_time(walk, number_shown):
    source = VideoSource(walk / "index.parquet")
    first = {int(number_shown(source.picture(u, source.units.time_s[u], WHOLE, SIZE, False))): u for u in range(7)}
    for number, unit in ((0, first[0]), (110, first[110])):
        for tenths in range(10):
            time_s = float(source.units.time_s[unit]) + tenths / 10 + 0.05
            assert number_shown(source.picture(unit, time_s, WHOLE, SIZE, False)) == number + tenths


def test_a_flip_mirrors_and_a_crop_cuts(walk):
    source = StoreSource(walk / "store")
    plain = source.picture(1, 0, WHOLE, SIZE, False)
    assert np.array_equal(source.picture(1, 0, WHOLE, SIZE, True), plain[:, ::-1])
    left = source.picture(1, 0, Box(0, 0, 48, 64), (64, 48), False)
    assert np.array_equal(left, plain[:, :48])


def test_joined_sources_answer_for_their_own_units(walk):
    stored, decoded = StoreSource(walk / "store"), VideoSource(walk / "index.parquet", unit_seconds=2.0)
    joined = JoinedSource([decoded, stored])
    assert len(decoded.units) == 4 and len(joined.units) == 11  # of 4 s and 2.5 s: 2 + 2; then 7 stored frames
    for unit in range(11):
        source, own = (decoded, unit) if unit < 4 else (stored, unit - 4)
        time_s = float(joined.units.time_s[unit])
        assert np.array_equal(
            joined.picture(unit, time_s, WHOLE, SIZE, False), source.picture(own, time_s, WHOLE, SIZE, False)
        )


def test_items_are_functions_of_their_number_also_after_pickling(walk):
    source = StoreSource(walk / "store")
    data = PlannedFrames(FramePlan(source.units, 0, 16), source, (32, 32))
    copy = pickle.loads(pickle.dumps(data))
    items = [data[i] for i in range(10)]
    for i in (9, 0, 5):
        assert torch.equal(copy[i]["image"], items[i]["image"]) and torch.equal(copy[i]["noise"], items[i]["noise"])
    assert items[0]["image"].shape == (3, 32, 32) and items[0]["image"].dtype == torch.uint8
    assert items[0]["noise"].shape == (16,) and items[0]["noise"].dtype == torch.float32


def test_held_out_frames_are_all_there_once_in_a_mixed_order_with_fixed_masks(walk, number_shown):
    source = StoreSource(walk / "store")
    data = HeldOutFrames(source, SIZE, 16)
    shown = [number_shown(data[i]["image"].permute(1, 2, 0).numpy()) for i in range(len(data))]
    assert sorted(shown) == [0, 10, 20, 30, 100, 110, 120] and shown != sorted(shown)
    again = HeldOutFrames(StoreSource(walk / "store"), SIZE, 16)
    assert all(torch.equal(data[i]["noise"], again[i]["noise"]) for i in range(7))
    assert len({tuple(data[i]["noise"].tolist()) for i in range(7)}) == 7


def test_an_index_without_a_readable_recording_is_refused(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"garbage")
    index(tmp_path / "videos", tmp_path / "index.parquet", processes=1)
    with pytest.raises(InputError, match=r"index\.parquet lists no readable recording"):
        VideoSource(tmp_path / "index.parquet")


def test_a_video_that_is_gone_and_a_damaged_picture_are_named(tmp_path, write_video):
    (tmp_path / "videos").mkdir()
    video = write_video(tmp_path / "videos" / "gone.mp4", frames=10)
    index(tmp_path / "videos", tmp_path / "index.parquet", processes=1)
    store(tmp_path / "index.parquet", tmp_path / "store", processes=1)
    os.remove(video)
    with pytest.raises(DecodeError, match=r"gone\.mp4"):
        VideoSource(tmp_path / "index.parquet").picture(0, 0.0, WHOLE, SIZE, False)
    shard = tmp_path / "store" / "frames-000000.tar"
    data = bytearray(shard.read_bytes())
    data[512:640] = bytes(128)
    shard.write_bytes(data)
    with pytest.raises(DecodeError, match=r"picture 0 of .*store .*could not be decoded"):
        StoreSource(tmp_path / "store").picture(0, 0.0, WHOLE, SIZE, False)
