"""Clips of units: the frames on screen at the law's times, whichever way they come; what does not fit is counted."""

import pickle
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from headcam.errors import DecodeError, InputError
from headcam.video.clip_sources import ClipStoreSource, ClipVideoSource, clip_start, cut_clip
from headcam.video.datasets import JoinedSource, PlannedFrames
from headcam.video.index import index
from headcam.video.quarantine import quarantine_path, write_quarantine
from headcam.video.readers import open_reader
from headcam.video.recordings import read_recordings, recordings_hash
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.plan import FramePlan
from headcam.video.sampling.views import ViewLaw
from headcam.video.stores.clip_store import store_clips
from headcam.video.stores.frame_store import store
from headcam.video.transforms import Box, Cut, center_box, crop_array

WHOLE = Cut(Box(0, 0, 96, 64), (64, 96))
T, STEP_S = 5, 0.4  # spans 2 s


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_video):
    """Videos of 12, 6 and 1.5 s at 10 frames a second that show their number, indexed, and a clip store of them."""
    root = tmp_path_factory.mktemp("made")
    (root / "media").mkdir()
    for name, frames, first in (("long", 120, 0), ("middle", 60, 120), ("short", 15, 200)):
        write_video(root / "media" / f"{name}.mp4", frames=frames, first_number=first)
    index(root / "media", root / "r.parquet", processes=1, quiet=True)
    store_clips(root / "r.parquet", root / "clips", segment_s=2.5, gop=4, crf=8, short_side=64, processes=1, quiet=True)
    return root


@pytest.fixture(scope="module")
def sources(made):
    return [ClipVideoSource(made / "r.parquet", T, STEP_S), ClipStoreSource(made / "clips", T, STEP_S)]


def first_number(source, unit):
    """The number that the recording of a unit begins with."""
    recordings = {r["recording"]: r["path"] for r in read_recordings(source.made / "r.parquet").to_pylist()}
    path = recordings[source.units.recordings[int(source.units.recording_of(unit))]]
    return {"long": 0, "middle": 120, "short": 200}[path.rpartition("/")[2].removesuffix(".mp4")]


def test_frames_are_those_on_screen_from_the_start_on(made, sources, number_shown):
    rng = np.random.default_rng(0)
    for source in sources:
        source.made = made
        for unit in range(len(source.units)):
            time_s = float(source.units.time_of(unit) + rng.random() * source.units.seconds_of(unit))
            (clip,) = source.views(unit, time_s, [WHOLE])
            assert clip.shape == (T, 64, 96, 3) and clip.dtype == np.uint8 and clip.flags.c_contiguous
            start_s = clip_start(source, unit, time_s)
            expected = [first_number(source, unit) + int(10 * (start_s + k * STEP_S) + 1e-4) for k in range(T)]
            assert [number_shown(frame) for frame in clip] == expected


def test_store_and_video_have_the_same_units_and_nearly_the_same_pixels(sources):
    video, stored = sources
    every = np.arange(len(video.units))
    assert len(video.units) == len(stored.units) == 18 and video.units.recordings == stored.units.recordings
    for what in ("recording_of", "time_of", "seconds_of", "size_of", "stretch_of"):
        assert np.allclose(getattr(video.units, what)(every), getattr(stored.units, what)(every))
    assert video.units.hours == pytest.approx(18 / 3600)
    for unit in (0, 7, 17):
        clips = [s.views(unit, float(s.units.time_of(unit)) + 0.55, [WHOLE])[0].astype(int) for s in sources]
        assert np.abs(clips[0] - clips[1]).mean() < 3
    recordings_hash_, quarantine_hash = stored.origin().values()
    assert video.origin() == {"recordings_hash": recordings_hash_, "quarantine_hash": quarantine_hash}


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30000, 1001), Fraction(25)])
def test_strides_are_exact_at_any_rate(tmp_path, write_video, number_shown, rate):
    """Every eighth frame from any frame on, at 30 and at 29.97 frames a second."""
    (tmp_path / "media").mkdir()
    write_video(tmp_path / "media" / "a.mp4", frames=200, rate=rate)
    index(tmp_path / "media", tmp_path / "r.parquet", processes=1, quiet=True)
    source = ClipVideoSource(tmp_path / "r.parquet", num_frames=16, step_s=float(8 / rate))
    start, end = source.units.stretch_of(0)
    room = float(end - start) - 16 * source.step_s
    for first in (0, 1, 5, 30, 59, 72):  # clips that start at a frame's own time
        time_s = float(first / rate) * float(end - start) / room if room > 1e-9 else 0.0
        unit = min(int(time_s), len(source.units) - 1)
        (clip,) = source.views(unit, time_s, [WHOLE])
        assert [number_shown(frame) for frame in clip] == [first + 8 * k for k in range(16)]


def test_the_law_shows_every_place_alike_inside_the_stretch_and_holds_the_drawn_second(sources):
    rng = np.random.default_rng(1)
    for source in sources:
        units, span = source.units, T * STEP_S
        for recording in (0, 1):
            mine = np.flatnonzero(units.recording_of(np.arange(len(units))) == recording)
            drawn = rng.choice(mine, 4000)
            times = units.time_of(drawn) + rng.random(4000) * units.seconds_of(drawn)
            starts = np.array([clip_start(source, int(u), float(t)) for u, t in zip(drawn, times)])
            first, last = (float(edge) for edge in units.stretch_of(mine[0]))
            assert starts.min() >= first and starts.max() + span <= last + 1e-9
            assert np.all((starts <= times) & (times <= starts + span))
            # Uniform: the empirical distribution lies within 1.63 / sqrt(n) of the line (Kolmogorov, 1 %).
            place = np.sort((starts - first) / (last - first - span))
            assert np.abs(place - np.arange(4000) / 4000).max() < 1.63 / np.sqrt(4000)


def test_all_cuts_come_from_one_decode_and_scale_without_rounding(made, sources, monkeypatch):
    from headcam.video import clip_sources

    opened = []
    monkeypatch.setattr(
        clip_sources, "open_reader", lambda *a, **how: opened.append(how["short_side"]) or open_reader(*a, **how)
    )
    cuts = [Cut(Box(3, 5, 60, 50), (20, 24)), Cut(Box(10, 2, 48, 48), (16, 16), True), Cut(Box(0, 0, 96, 64), (8, 8))]
    video, _ = sources
    got = video.views(3, 3.2, cuts)
    # The first box asks for most: 24 of 60 pixels and 20 of 50, that is 0.4 of 64.
    assert opened == [26] and [clip.shape for clip in got] == [(T, 20, 24, 3), (T, 16, 16, 3), (T, 8, 8, 3)]
    path, keyframes = video.locate(3)
    with open_reader(path, keyframes=keyframes) as reader:
        frames = reader.frames_at(clip_start(video, 3, 3.2) + STEP_S * np.arange(T) + 1e-6)
    for cut, clip in zip(cuts, got):
        exact = np.stack([crop_array(frame.image, *cut) for frame in frames]).astype(int)
        # Blocks of black and white: a box that is off by a fraction of a pixel would err far more.
        assert np.abs(exact - clip).mean() < 6
        assert np.abs(exact[:, :, ::-1] - clip).mean() > 12
    full = [np.zeros((64, 96, 3), np.uint8), np.full((64, 96, 3), 255, np.uint8)]
    half = [image[::2, ::2] for image in full]
    for a, b in zip(cut_clip(full, (96, 64), cuts), cut_clip(half, (96, 64), cuts)):
        assert np.array_equal(a, b)


def test_what_a_clip_does_not_fit_into_is_counted(made, sources):
    for source in sources:
        recordings, hours = source.too_short
        assert recordings == 1 and hours == pytest.approx(1.5 / 3600)
    exact = ClipVideoSource(made / "r.parquet", 15, 0.1)  # as long as the short one, to a hair
    assert exact.too_short == (0, 0.0) and len(exact.units.recordings) == 3
    short = [u for u in range(len(exact.units)) if exact.units.stretch_of(u)[1] < 2]
    for unit in short:
        assert clip_start(exact, unit, 0.9) == pytest.approx(0, abs=1e-6)


def test_a_clip_that_fits_nowhere_is_an_error(made):
    telling = r"clip is longer than the recording: 16 frames every 1 s last 16 s, .* lasts 12 s\. Fix: .*data\.step_s"
    with pytest.raises(InputError, match=telling):
        ClipVideoSource(made / "r.parquet", 16, 1.0)
    with pytest.raises(InputError, match=telling):
        ClipStoreSource(made / "clips", 16, 1.0)
    for bad in ({"num_frames": 0, "step_s": 1.0}, {"num_frames": 4, "step_s": 0.0}):
        with pytest.raises(InputError, match="a clip's"):
            ClipVideoSource(made / "r.parquet", **bad)


def test_quarantine_and_manifest_leave_stretches_that_clips_stay_in(tmp_path, made):
    table = read_recordings(made / "r.parquet")
    by_name = {row["path"].rpartition("/")[2]: row["recording"] for row in table.to_pylist()}
    long, middle = by_name["long.mp4"], by_name["middle.mp4"]
    (tmp_path / "r.parquet").write_bytes((made / "r.parquet").read_bytes())
    hole = {"recording": long, "start_s": 5.0, "end_s": 6.0, "reason": "black", "measure": 1.0, "detail": ""}
    write_quarantine([hole], quarantine_path(tmp_path / "r.parquet"), recordings_hash(table), {})
    source = ClipVideoSource(tmp_path / "r.parquet", T, STEP_S)
    stretches = {source.units.stretch_of(u) for u in range(len(source.units))}
    assert stretches == {(0.0, 5.0), (6.0, 12.0), (0.0, 6.0)}
    # Restricted later (a manifest, seconds held out), pieces that are too short are left out as well.
    left = source.units.restricted({long: ((0.0, 1.9), (3.0, 8.1)), middle: ((1.0, 3.0),)})
    pieces = {left.stretch_of(u) for u in range(len(left))}
    assert pieces == {(3.0, 5.0), (6.0, 8.1), (1.0, 3.0)} and len(left) == 2 + 3 + 2
    manifest = replace(Manifest.of(source.units), stretches={middle: ((0.0, 4.0), (4.5, 6.0)), long: ((7.0, 8.0),)})
    drawn = ClipVideoSource(tmp_path / "r.parquet", T, STEP_S, manifest=manifest)
    assert drawn.units.seconds_by_recording().tolist() == [4.0] and drawn.units.recordings == (middle,)
    assert drawn.too_short == (2, pytest.approx(2.5 / 3600))


def test_damage_is_a_decode_error_and_absence_an_input_error(tmp_path, write_video):
    (tmp_path / "media").mkdir()
    path = write_video(tmp_path / "media" / "a.mp4", frames=60)
    index(tmp_path / "media", tmp_path / "r.parquet", processes=1, quiet=True)
    source = ClipVideoSource(tmp_path / "r.parquet", T, STEP_S)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DecodeError, match=r"a\.mp4"):
        source.views(5, 5.9, [WHOLE])
    path.unlink()
    with pytest.raises(InputError, match=r"a\.mp4 is gone") as gone:
        source.views(0, 0.0, [WHOLE])
    assert not isinstance(gone.value, DecodeError)


def test_stores_that_cannot_give_clips_say_so(tmp_path, made):
    store(made / "r.parquet", tmp_path / "frames", short_side=64, processes=1, quiet=True)
    with pytest.raises(InputError, match=r"stores single frames.*headcam store FILE\.parquet --kind clips"):
        ClipStoreSource(tmp_path / "frames", T, STEP_S)
    with pytest.raises(InputError, match="holds no clip store"):
        ClipStoreSource(tmp_path, T, STEP_S)
    store_clips(made / "r.parquet", tmp_path / "slow", frames_per_second=2, short_side=64, processes=1, quiet=True)
    with pytest.raises(InputError, match=r"stores 2 frames a second, .* every 0\.4 s want 2\.5"):
        ClipStoreSource(tmp_path / "slow", T, STEP_S)
    ClipStoreSource(tmp_path / "slow", 3, 0.5)


def test_joined_and_pickled_sources_give_the_same_clips(sources):
    video, stored = sources
    joined = JoinedSource([stored, video])
    cut = Cut(center_box(96, 64, (32, 32)), (32, 32))
    for unit, source, own in ((4, stored, 4), (18 + 4, video, 4)):
        time_s = float(joined.units.time_of(unit)) + 0.3
        again = pickle.loads(pickle.dumps(source))
        for other in (joined.views(unit, time_s, [cut])[0], again.views(own, time_s, [cut])[0]):
            assert np.array_equal(other, source.views(own, time_s, [cut])[0])


def test_a_plan_of_seconds_gives_clips(sources, number_shown):
    """Items of training: the clip of the drawn second, several crops of it where the objective wants them."""
    laws = (ViewLaw("clip", (32, 48), count=2, scale=(1.0, 1.0), ratio=(1.5, 1.5), flip=0.0, noise=7),)
    for source in sources:
        data = PlannedFrames(FramePlan(source.units, 0, laws), source)
        item = data[5]
        assert item["clip"].shape == (2, 3, T, 32, 48) and item["clip"].dtype == torch.uint8
        assert item["noise"].shape == (2, 7) and not torch.equal(item["noise"][0], item["noise"][1])
        sample = data.plan.sample(5)
        assert torch.equal(item["clip"][0], item["clip"][1])  # the whole picture twice, from one decode
        (clip,) = source.views(sample.unit, sample.time_s, [Cut(Box(0, 0, 96, 64), (32, 48))])
        assert np.array_equal(item["clip"][0].permute(1, 2, 3, 0), clip)
        numbers = [number_shown(frame) for frame in clip]
        assert np.diff(numbers).tolist() == [4] * (T - 1)
