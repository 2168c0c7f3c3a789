"""The frame on screen at a time: against a plain full decode, in every backend, forwards, backwards and at the ends."""

import importlib.util
import sys

import av
import numpy as np
import pytest
from PIL import Image

from headcam.errors import DecodeError, InputError, MissingPackage
from headcam.video.metadata import read_metadata
from headcam.video.readers import open_reader, scaled_size

BACKENDS = [
    "pyav",
    pytest.param("decord", marks=pytest.mark.skipif(not importlib.util.find_spec("decord"), reason="no decord")),
]
NAMES = ["plain", "bframes", "vfr", "late", "ts", "ntsc", "turned", "upside_down", "turned_back", "open_gop"]
DECORD_REFUSES = {"open_gop": "open GOPs", "ts": "a container without index"}


def full_decode(path):
    """(pts, seconds from the first frame) of all frames: no seeking, no code of ours."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        pts = [frame.pts for frame in container.decode(stream)]
        base = stream.time_base
    return pts, np.array([(p - pts[0]) * base.numerator / base.denominator for p in pts])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_gives_the_frame_on_screen(videos, name, backend, number_shown):
    path = videos[name]
    if backend == "decord" and name in DECORD_REFUSES:
        with pytest.raises(
            DecodeError, match=f"{path.name}: {DECORD_REFUSES[name]}.*Fix: read it with the backend pyav"
        ):
            open_reader(path, backend)
        return
    pts, times = full_decode(path)
    rng = np.random.default_rng(0)
    wanted = np.concatenate([times, times + 0.007, rng.uniform(0, times[-1], 30)])
    rng.shuffle(wanted)
    keyframes = read_metadata(path).keyframes
    for table in (None, keyframes):
        with open_reader(path, backend, keyframes=table) as reader:
            frames = reader.frames_at(wanted.tolist())
            again = [reader.frames_at([t])[0].pts for t in wanted[:12].tolist()]  # single, to and fro
        expected = [int(np.searchsorted(times, t, side="right")) - 1 for t in wanted]
        assert [number_shown(f.image) for f in frames] == expected
        assert [f.pts for f in frames] == [pts[k] for k in expected]
        assert [f.time_s for f in frames] == [times[k] for k in expected]
        assert again == [pts[k] for k in expected[:12]]


def test_rotated_frames_are_upright_and_info_says_so(videos):
    for name, degrees in (("plain", 0), ("turned", 90), ("upside_down", 180), ("turned_back", 270)):
        with open_reader(videos[name]) as reader:
            image = reader.frames_at([1.0])[0].image
            assert reader.info.rotation == degrees
            assert image.shape == (reader.info.height, reader.info.width, 3)
        assert image[-5:, :, 0].mean() > 150 > image[-5:, :, 2].mean()  # the coloured half lies below, and is red


def test_seeking_gives_the_very_pixels_of_a_full_decode(videos):
    for name in ("bframes", "open_gop", "vfr"):
        keyframes = read_metadata(videos[name]).keyframes
        with av.open(str(videos[name])) as container:
            exact = {f.pts: f.to_ndarray(format="rgb24") for f in container.decode(video=0)}
        with open_reader(videos[name], keyframes=keyframes) as reader:
            for pts in sorted(exact)[::-3]:
                frame = reader.frames_at([reader.time_s(pts)])[0]
                assert frame.pts == pts
                assert np.array_equal(frame.image, exact[pts])


def test_sorted_times_are_one_pass_without_a_seek(videos, monkeypatch):
    """Decoding forward inside a GOP: the reader must not go back for neighbours."""
    with open_reader(videos["bframes"], keyframes=[0]) as reader:
        monkeypatch.setattr(reader, "_seek", lambda *_: pytest.fail("sought although decoding forward sufficed"))
        assert len(reader.frames_at([k / 20 for k in range(78)])) == 78


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_ends(videos, backend, number_shown):
    with open_reader(videos["plain"], backend) as reader:
        assert number_shown(reader.frames_at([3.999])[0].image) == 39  # on screen for its own duration
        with pytest.raises(DecodeError, match=r"plain.mp4: no frame at 9 s.*from 0 s to 4 s"):
            reader.frames_at([0.0, 9.0])
        with pytest.raises(DecodeError, match="no frame at -1"):
            reader.frames_at([-1.0])
        with pytest.raises(DecodeError, match="no frame at nan"):
            reader.frames_at([float("nan")])
        assert reader.frames_at([]) == []
        assert number_shown(reader.frames_at([0.0])[0].image) == 0  # still usable after an error


def test_before_the_first_frame_it_is_the_first_frame(tmp_path, number_shown, write_video):
    with open_reader(write_video(tmp_path / "v.mkv", 20, pts=[500 + 100 * k for k in range(20)], rate=10)) as reader:
        assert reader.info.start_pts >= 0 and number_shown(reader.frames_at([0.0])[0].image) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_short_side_scales_by_area_and_never_enlarges(tmp_path, backend, number_shown, write_video):
    path = write_video(tmp_path / "v.mp4", 5, size=(322, 180))
    with open_reader(path, backend, short_side=64) as small, open_reader(path, short_side=999) as large:
        image = small.frames_at([0.2])[0].image
        assert image.shape == (64, 114, 3) and number_shown(image) == 2
        assert large.frames_at([0.2])[0].image.shape == (180, 322, 3)
    assert scaled_size(1080, 1920, 256) == (256, 455)
    assert scaled_size(5000, 2, 1) == (2500, 1)


def test_damage_is_said_and_frames_before_it_are_had(tmp_path, number_shown, write_video):
    path = write_video(tmp_path / "v.mp4", 200, gop=10, bframes=0)
    with av.open(str(path)) as container:
        position, size = next((p.pos, p.size) for p in container.demux(video=0) if p.pts and p.time_base * p.pts >= 10)
    data = bytearray(path.read_bytes())
    data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    with open_reader(path) as reader:
        frames = reader.iter_frames(k / 10 for k in range(200))
        seen = []
        with pytest.raises(DecodeError, match=r"v.mp4: damaged after 9.9 s"):
            seen.extend(number_shown(f.image) for f in frames)
        assert seen == list(range(100))


@pytest.mark.parametrize("suffix, orientation", [(".png", 1), (".jpg", 1), (".jpg", 6), (".jpg", 3), (".webp", 8)])
def test_still_pictures_are_upright_at_every_time(tmp_path, suffix, orientation):
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20] = 255  # upright: white above
    turns = {1: 0, 6: 1, 3: 2, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"p{suffix}"
    Image.fromarray(np.ascontiguousarray(np.rot90(picture, turns))).save(path, exif=exif)
    with open_reader(path, short_side=20) as reader:
        first, later = reader.frames_at([0.0, 123.0])
    assert (first.pts, first.time_s) == (0, 0.0) and first.image is later.image
    assert first.image.shape == (20, 30, 3) and first.image[2].mean() > 250 and first.image[-3].mean() < 5
    assert reader.info.rotation == 90 * turns


def test_errors_name_the_thing_and_the_fix(tmp_path, videos, monkeypatch):
    with pytest.raises(InputError, match=r"'ffmpeg' is not a reader backend. Fix: use one of pyav, decord"):
        open_reader(videos["plain"], "ffmpeg")
    with pytest.raises(DecodeError, match=r"nothing.mp4 cannot be opened: No such file"):
        open_reader(tmp_path / "nothing.mp4")
    (tmp_path / "text.mp4").write_text("not a video" * 100)
    with pytest.raises(DecodeError, match=r"text.mp4 cannot be opened: Invalid data"):
        open_reader(tmp_path / "text.mp4")
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(MissingPackage, match="pip install decord"):
        open_reader(videos["plain"], "decord")


@pytest.mark.shared
@pytest.mark.parametrize("backend", BACKENDS)
def test_real_recordings_agree_with_a_full_decode(shared_data, backend):
    for name in ("hand_garden.mp4", "ego4d_bristol.mp4", "vitra_0.mp4"):
        path = next((shared_data / "egovideo").rglob(name))
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            start = stream.start_time
            frames = [(f.pts, f.to_ndarray(format="rgb24")) for f in container.decode(stream) if f.pts is not None]
            base = stream.time_base
        with open_reader(path, backend) as reader:
            for pts, exact in frames[:: max(1, len(frames) // 9)]:
                frame = reader.frames_at([(pts - start) * base.numerator / base.denominator])[0]
                assert frame.pts == pts and np.abs(frame.image.astype(int) - exact).mean() < 1.5, (name, pts)
