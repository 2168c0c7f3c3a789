"""Facts of a file: exact on generated videos, and the reference values of the shared odd ones."""

import csv
import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from headcam.errors import DecodeError
from headcam.video.metadata import clockwise_rotation, is_media, is_picture, open_video, read_metadata

EXPECTED = {  # name: codec, stored size, rotation, rate, start, duration
    "plain": ("h264", 96, 64, 0, Fraction(10), 0.0, 4.0),
    "bframes": ("h264", 96, 64, 0, Fraction(10), 0.0, 4.0),
    "late": ("h264", 96, 64, 0, Fraction(10), 7.0, 4.0),
    "ts": ("h264", 96, 64, 0, Fraction(10), None, 4.0),
    "ntsc": ("h264", 96, 64, 0, Fraction(30000, 1001), 0.0, 40 * 1001 / 30000),
    "turned": ("h264", 96, 64, 90, Fraction(10), 0.0, 4.0),
    "upside_down": ("h264", 96, 64, 180, Fraction(10), 0.0, 4.0),
    "turned_back": ("h264", 96, 64, 270, Fraction(10), 0.0, 4.0),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_facts_of_generated_videos(videos, name):
    codec, width, height, rotation, rate, start_s, duration_s = EXPECTED[name]
    facts = read_metadata(videos[name])
    assert (facts.codec, facts.width, facts.height, facts.rotation) == (codec, width, height, rotation)
    assert float(Fraction(facts.fps_num, facts.fps_den)) == pytest.approx(float(rate), rel=0.03)
    assert facts.duration_s == pytest.approx(duration_s, abs=2e-3) and facts.frames == 40
    assert start_s is None or facts.start_s == pytest.approx(start_s)


@pytest.mark.parametrize("name", ["plain", "bframes", "vfr", "late", "ts", "open_gop"])
def test_keyframes_are_those_that_the_decoder_reports(videos, name):
    with av.open(str(videos[name])) as container:
        keys = [frame.pts for frame in container.decode(video=0) if frame.key_frame]
    found = read_metadata(videos[name]).keyframes
    assert len(found) > 1 and set(keys) <= set(found)


def test_still_pictures_have_one_frame_and_no_time(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "p.jpg")
    facts = read_metadata(tmp_path / "p.jpg")
    assert (facts.codec, facts.width, facts.height, facts.duration_s, facts.frames) == ("jpeg", 30, 20, 0.0, 1)
    assert (facts.fps_num, facts.fps_den) == (0, 1)
    data = (tmp_path / "p.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DecodeError, match=r"cut.jpg cannot be read as a picture"):
        read_metadata(tmp_path / "cut.jpg")


def test_the_largest_video_stream_is_chosen_and_sound_is_no_video(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=10) for _ in range(2)]
        for stream, (width, height) in zip(streams, [(64, 48), (128, 96)]):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(3):
            for stream in streams:
                frame = av.VideoFrame(stream.width, stream.height, "yuv420p")
                frame.pts = k
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    assert (read_metadata(path).width, read_metadata(path).height) == (128, 96)
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DecodeError, match=r"sound.mp4 has no video stream \(streams: audio\)"):
        read_metadata(sound)


def test_an_open_file_is_read_from_its_start_and_stays_open(videos):
    file = io.BytesIO(videos["plain"].read_bytes())
    for _ in range(2):
        file.seek(0, io.SEEK_END)
        container, stream = open_video(file)
        with container:
            assert len([p for p in container.demux(stream) if p.size]) == 40
        assert not file.closed
    with open(__file__, "rb") as file, pytest.raises(DecodeError, match=r"test_metadata.py cannot be opened: Invalid"):
        open_video(file)


def test_a_rotation_that_cannot_be_read_is_not_taken_for_none():
    class Stereo:  # as PyAV 14.0 gives it
        @property
        def side_data(self):
            raise ValueError("29 is not a valid Type")

    with pytest.raises(DecodeError, match=r"walk.mov: PyAV .* cannot tell which way up .* Fix: pip install"):
        clockwise_rotation(Stereo(), "walk.mov")


def test_media_go_by_their_ending():
    assert is_media("a/B.MP4") and is_media("x.JPEG") and not is_media("notes.txt") and not is_media("mp4")
    assert is_picture("x.PNG") and not is_picture("x.mkv")


@pytest.mark.shared
def test_real_recordings_have_the_facts_of_their_manifest(shared_data):
    with open(shared_data / "egovideo" / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))[::12]
    for row in rows:
        facts = read_metadata(shared_data / "egovideo" / row["path"])
        assert (facts.width, facts.height, facts.frames) == (int(row["width"]), int(row["height"]), int(row["frames"]))
        assert facts.duration_s == pytest.approx(float(row["duration_s"]), abs=0.15), row["path"]


@pytest.mark.shared
def test_odd_files_have_the_rotation_that_their_manifest_says(shared_data):
    with open(shared_data / "formats" / "manifest.csv", newline="") as file:
        rows = {
            row["path"]: int(row["rotation"] or 0) for row in csv.DictReader(file) if row["path"].startswith("good/")
        }
    turned = {path: degrees for path, degrees in rows.items() if degrees}
    assert len(turned) > 4
    for path, degrees in turned.items():  # the manifest counts counter-clockwise, as PyAV does
        assert read_metadata(shared_data / "formats" / path).rotation == -degrees % 360, path
