"""Sources agree on the frame, whichever way it comes; items are pure functions of their number."""

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headcam.errors import DecodeError, InputError
from headcam.video import datasets, transforms
from headcam.video.colour import apply_colour
from headcam.video.datasets import HeldOutFrames, JoinedSource, PlannedFrames, StoreSource, VideoSource
from headcam.video.index import index
from headcam.video.quarantine import quarantine_path, write_quarantine
from headcam.video.recordings import read_recordings, recordings_hash
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.plan import FramePlan, mask_noise
from headcam.video.sampling.views import ColourLaw, ViewLaw
from headcam.video.stores.frame_store import store
from headcam.video.transforms import Box, Cut

WHOLE = Box(0, 0, 96, 64)
SIZE = (64, 96)
IMAGE = (ViewLaw("image", (32, 32), noise=16),)
MULTI = (
    ViewLaw("global", (32, 32), 2, (0.4, 1.0), colours=(ColourLaw(),), held_out="same"),
    ViewLaw("local", (16, 24), 3, (0.1, 0.4), noise=5, held_out="same"),
)


def whole(source, unit, time_s) -> np.ndarray:
    """The uncut frame."""
    return source.views(unit, time_s, [Cut(WHOLE, SIZE)])[0]


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
    a, b, every = stored.units, decoded.units, np.arange(7)
    assert a.recordings == b.recordings and len(a) == len(b) == 7
    for what in ("recording_of", "time_of", "seconds_of", "size_of"):
        assert np.allclose(getattr(a, what)(every), getattr(b, what)(every))
    assert a.hours == b.hours == pytest.approx(6.5 / 3600)
    assert a.sources == b.sources == ("videos", "videos")
    numbers = []
    for unit in range(len(a)):
        pictures = [whole(s, unit, float(a.time_of(unit))) for s in (stored, decoded)]
        assert pictures[0].shape == (64, 96, 3) and pictures[0].dtype == np.uint8
        assert number_shown(pictures[0]) == number_shown(pictures[1])
        assert np.abs(pictures[0].astype(int) - pictures[1]).mean() < 6  # JPEG at quality 95
        numbers.append(number_shown(pictures[1]))
    assert sorted(numbers) == [0, 10, 20, 30, 100, 110, 120]


def test_video_shows_the_frame_at_the_drawn_time(walk, number_shown):
    source = VideoSource(walk / "index.parquet")
    first = {int(number_shown(whole(source, u, source.units.time_of(u)))): u for u in range(7)}
    for number, unit in ((0, first[0]), (110, first[110])):
        for tenths in range(10):
            time_s = float(source.units.time_of(unit)) + tenths / 10 + 0.05
            assert number_shown(whole(source, unit, time_s)) == number + tenths


def test_a_flip_mirrors_and_a_crop_cuts(walk):
    source = StoreSource(walk / "store")
    plain = whole(source, 1, 0)
    mirrored, left = source.views(1, 0, [Cut(WHOLE, SIZE, True), Cut(Box(0, 0, 48, 64), (64, 48))])
    assert np.array_equal(mirrored, plain[:, ::-1]) and np.array_equal(left, plain[:, :48])


def test_views_of_a_frame_are_decoded_once(walk, monkeypatch):
    cuts = [Cut(WHOLE, (16, 24)), Cut(Box(8, 8, 40, 40), (32, 32), True), Cut(Box(50, 0, 46, 64), (64, 46))]
    decoded, opened = [], []
    decode, open_reader = transforms.simplejpeg.decode_jpeg, datasets.open_reader
    monkeypatch.setattr(transforms.simplejpeg, "decode_jpeg", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    monkeypatch.setattr(datasets, "open_reader", lambda *a, **k: opened.append(1) or open_reader(*a, **k))
    for source, count in ((StoreSource(walk / "store"), decoded), (VideoSource(walk / "index.parquet"), opened)):
        pictures = source.views(2, 1.5, cuts)
        assert len(count) == 1 and [p.shape for p in pictures] == [(16, 24, 3), (32, 32, 3), (64, 46, 3)]


def test_joined_sources_answer_for_their_own_units(walk):
    stored, decoded = StoreSource(walk / "store"), VideoSource(walk / "index.parquet", unit_seconds=2.0)
    joined = JoinedSource([decoded, stored])
    assert len(decoded.units) == 4 and len(joined.units) == 11  # of 4 s and 2.5 s: 2 + 2; then 7 stored frames
    for unit in range(11):
        source, own = (decoded, unit) if unit < 4 else (stored, unit - 4)
        time_s = float(joined.units.time_of(unit))
        assert np.array_equal(whole(joined, unit, time_s), whole(source, own, time_s))


def test_items_are_functions_of_their_number_also_after_pickling(walk):
    source = StoreSource(walk / "store")
    data = PlannedFrames(FramePlan(source.units, 0, IMAGE), source)
    copy = pickle.loads(pickle.dumps(data))
    items = [data[i] for i in range(10)]
    for i in (9, 0, 5):
        assert torch.equal(copy[i]["image"], items[i]["image"]) and torch.equal(copy[i]["noise"], items[i]["noise"])
    assert items[0]["image"].shape == (3, 32, 32) and items[0]["image"].dtype == torch.uint8
    assert items[0]["noise"].shape == (16,) and items[0]["noise"].dtype == torch.float32
    assert [item["sample"].item() for item in items] == list(range(10)) and set(items[0]) == {
        "image",
        "noise",
        "sample",
    }


def test_items_hold_every_view_cut_mirrored_and_coloured_as_drawn(walk):
    source = StoreSource(walk / "store")
    plan = FramePlan(source.units, 0, MULTI)
    data = PlannedFrames(plan, source, label_of=lambda unit: unit + 100)
    for i in range(12):
        item, sample = data[i], plan.sample(i)
        assert set(item) == {"global", "local", "local_noise", "sample", "label"}
        assert item["global"].shape == (2, 3, 32, 32) and item["local"].shape == (3, 3, 16, 24)
        assert item["local_noise"].shape == (3, 5) and item["local_noise"].dtype == torch.float32
        assert item["sample"].dtype == torch.int64 and item["label"].item() == sample.unit + 100
        for law, views in zip(MULTI, sample.views):
            for v, view in enumerate(views):
                (image,) = source.views(sample.unit, sample.time_s, [Cut(view.crop, law.size, view.flip)])
                if view.colour is not None:
                    image = apply_colour(image, view.colour)
                # A cut alone may be decoded at a smaller n/8 than together with the others.
                found = item[law.name][v].permute(1, 2, 0).numpy().astype(int)
                assert np.abs(found - image).mean() < 6
                if law.noise:
                    assert np.array_equal(item[law.noise_key][v].numpy(), view.noise)
    assert len({item["global"].numpy().tobytes() for item in (data[i] for i in range(12))}) == 12


class Clips:
    """Units whose pictures are clips of four frames, which show their number in the blue channel."""

    def __init__(self, source):
        self.units = source.units

    def views(self, unit, time_s, cuts):
        clips = [np.full((4, *cut.size, 3), 10 * unit, np.uint8) for cut in cuts]
        for clip, cut in zip(clips, cuts):
            clip[..., 2] = np.arange(4)[:, None, None]
            clip[:, :, 0, 1] = 255 * cut.flip
        return clips


def test_clips_come_as_channels_and_time(walk):
    source = Clips(StoreSource(walk / "store"))
    views = (replace(MULTI[0], name="clip", colours=()), ViewLaw("image", (8, 8), held_out="centre"))
    plan = FramePlan(source.units, 0, views)
    for i in range(5):
        item, sample = PlannedFrames(plan, source)[i], plan.sample(i)
        assert item["clip"].shape == (2, 3, 4, 32, 32) and item["image"].shape == (3, 4, 8, 8)
        assert (item["clip"][0, 2] == torch.arange(4)[:, None, None]).all() and (
            item["clip"][:, 0] == 10 * sample.unit
        ).all()
        assert (item["clip"][1, 1, :, :, 0] == 255 * sample.views[0][1].flip).all()
    assert HeldOutFrames(source, views)[0]["clip"].shape == (2, 3, 4, 32, 32)
    coloured = replace(views[0], colours=(ColourLaw(jitter=1),), count=None)
    item = PlannedFrames(FramePlan(source.units, 0, (coloured,)), source)[0]
    assert item["clip"].shape == (3, 4, 32, 32)


def test_held_out_frames_are_all_there_once_in_a_mixed_order_with_fixed_masks(walk, number_shown):
    source = StoreSource(walk / "store")
    laws = (ViewLaw("image", SIZE, 3, colours=(ColourLaw(),), noise=16),)  # held out: one plain view at the centre
    data = HeldOutFrames(source, laws)
    shown = [number_shown(data[i]["image"].permute(1, 2, 0).numpy()) for i in range(len(data))]
    assert sorted(shown) == [0, 10, 20, 30, 100, 110, 120] and shown != sorted(shown)
    again = HeldOutFrames(StoreSource(walk / "store"), laws)
    assert all(torch.equal(data[i]["noise"], again[i]["noise"]) for i in range(7))
    assert len({tuple(data[i]["noise"].tolist()) for i in range(7)}) == 7
    assert set(data[0]) == {"image", "noise", "unit"} and data[0]["noise"].shape == (16,)
    assert [shown[i] for i in np.argsort([int(data[i]["unit"]) for i in range(7)])] == sorted(shown)  # in time
    masks = sorted(data[i]["noise"].tolist() for i in range(7))
    assert masks == sorted(mask_noise(0, unit, 16).tolist() for unit in range(7))  # as before there were several views


def test_views_that_are_held_out_by_their_law_are_its_draws_and_never_change(walk):
    source = StoreSource(walk / "store")
    data, again = HeldOutFrames(source, MULTI), HeldOutFrames(StoreSource(walk / "store"), MULTI)
    items = [data[i] for i in range(7)]
    for i, item in enumerate(items):
        assert item["global"].shape == (2, 3, 32, 32) and item["local_noise"].shape == (3, 5)
        assert torch.equal(item["global"], again[i]["global"])
        assert not torch.equal(item["global"][0], item["global"][1])
    assert len({tuple(noise.tolist()) for item in items for noise in item["local_noise"]}) == 21
    labelled = HeldOutFrames(source, MULTI[1:], label_of=lambda unit: unit)
    assert sorted(labelled[i]["label"].item() for i in range(7)) == list(range(7))


@pytest.fixture
def scanned(walk, tmp_path):
    """The index with a quarantine table: [1, 2) of the first recording and [0, 0.4) of the second are out."""
    shutil.copy(walk / "index.parquet", tmp_path / "index.parquet")
    table = read_recordings(tmp_path / "index.parquet")
    ids = dict(zip((Path(path).name for path in table["path"].to_pylist()), table["recording"].to_pylist()))
    rows = [
        {"recording": ids[name], "start_s": start, "end_s": end, "reason": "black", "measure": 1.0, "detail": ""}
        for name, start, end in (("a.mp4", 1.0, 2.0), ("b.mp4", 0.0, 0.4))
    ]
    write_quarantine(rows, quarantine_path(tmp_path / "index.parquet"), recordings_hash(table), {})
    return tmp_path / "index.parquet", ids


def numbers(source, number_shown) -> list[int]:
    """Frame numbers that the units of a source start with."""
    times = [float(source.units.time_of(u)) for u in range(len(source.units))]
    return sorted(number_shown(whole(source, u, t)) for u, t in enumerate(times))


def test_only_verified_seconds_are_drawn_without_being_asked(scanned, number_shown):
    file, _ = scanned
    source = VideoSource(file)
    assert numbers(source, number_shown) == [0, 20, 30, 104, 114, 124]
    assert source.units.hours * 3600 == pytest.approx(3 + 2.1)
    assert source.origin()["quarantine_hash"] is not None
    unverified = VideoSource(file, quarantine=None)
    assert unverified.units.hours * 3600 == pytest.approx(6.5) and unverified.origin()["quarantine_hash"] is None
    plan = FramePlan(source.units, 0, IMAGE)
    for i in range(60):
        s = plan.sample(i)
        shown = number_shown(whole(source, s.unit, s.time_s))
        assert not 10 <= shown < 20 and not 100 <= shown < 104


def test_a_manifest_narrows_videos_and_stores_to_its_stretches(walk, scanned, number_shown):
    file, ids = scanned
    manifest = Manifest(seconds={}, stretches={ids["a.mp4"]: ((0.0, 2.5),), ids["b.mp4"]: ((1.0, 2.0),)})
    video, store_ = VideoSource(file, manifest=manifest), StoreSource(walk / "store", manifest)
    assert numbers(video, number_shown) == [0, 20, 110]  # [1, 2) of the first is in quarantine
    assert numbers(store_, number_shown) == [0, 10, 110]  # the store was made before the scan; half of frame 20 is out
    assert video.units.hours * 3600 == pytest.approx(2.5) and store_.units.hours * 3600 == pytest.approx(3)
    one = StoreSource(walk / "store", Manifest(seconds={}, stretches={ids["b.mp4"]: ((0.0, 9.0),)}))
    assert numbers(one, number_shown) == [100, 110, 120] and one.units.recordings == (ids["b.mp4"],)


class Torn:
    """A source of which some units cannot be decoded."""

    def __init__(self, source, torn):
        self.source, self.units, self.torn = source, source.units, torn

    def views(self, unit, time_s, cuts):
        if unit in self.torn:
            raise DecodeError(f"unit {unit} is\ntorn", "mend it")
        return self.source.views(unit, time_s, cuts)


def test_what_cannot_be_decoded_is_replaced_by_the_plan_s_next_draw_and_said(walk):
    source = StoreSource(walk / "store")
    plan = FramePlan(source.units, 0, IMAGE)
    data, intact = PlannedFrames(plan, Torn(source, {0, 3})), PlannedFrames(plan, source)
    attempts = []
    for i in range(50):
        item, sample = data[i], plan.sample(i)
        attempt = 0
        while sample.unit in (0, 3):
            told = item["undecoded"][attempt]
            recording = source.units.recordings[source.units.recording_of(sample.unit)]
            assert (told.sample, told.attempt, told.recording, told.source) == (i, attempt, recording, "videos")
            assert told.time_s == sample.time_s and told.reason == f"unit {sample.unit} is torn"
            attempt += 1
            sample = plan.replacement(i, attempt)
        ((view,),) = sample.views
        (image,) = source.views(sample.unit, sample.time_s, [Cut(view.crop, (32, 32), view.flip)])
        assert np.array_equal(item["image"].numpy(), image.transpose(2, 0, 1))
        assert np.array_equal(item["noise"].numpy(), view.noise)
        assert ("undecoded" in item) == (attempt > 0)
        assert attempt or torch.equal(item["image"], intact[i]["image"])
        attempts.append(attempt)
    assert 8 < sum(a > 0 for a in attempts) < 25 and max(attempts) > 1


def test_where_nothing_can_be_decoded_the_run_stops(walk):
    source = StoreSource(walk / "store")
    data = PlannedFrames(FramePlan(source.units, 0, IMAGE), Torn(source, set(range(7))))
    with pytest.raises(
        InputError, match=r"sample 3 and 7 replacements of it could not be decoded; unit .*headcam scan"
    ):
        data[3]


def test_a_missing_file_is_not_replaced(walk):
    class Gone(Torn):
        def views(self, *arguments):
            raise InputError("the shard is missing", "copy it")

    source = StoreSource(walk / "store")
    with pytest.raises(InputError, match="the shard is missing"):
        PlannedFrames(FramePlan(source.units, 0, IMAGE), Gone(source, ()))[0]


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
    with pytest.raises(InputError, match=r"gone\.mp4 is gone") as error:
        whole(VideoSource(tmp_path / "index.parquet"), 0, 0.0)
    assert not isinstance(error.value, DecodeError)  # nothing that another draw should stand in for
    shard = tmp_path / "store" / "frames-000000.tar"
    data = bytearray(shard.read_bytes())
    data[512:640] = bytes(128)
    shard.write_bytes(data)
    with pytest.raises(DecodeError, match=r"picture 0 of .*store .*could not be decoded"):
        whole(StoreSource(tmp_path / "store"), 0, 0.0)
