"""Clips: times that never fall one frame early, strides that are exact, several clips in one pass."""

from fractions import Fraction

import numpy as np
import pytest

from headcam.errors import DecodeError, InputError
from headcam.video.clips import clip_times, read_clips
from headcam.video.decoding.planning import pts_at
from headcam.video.metadata import read_metadata
from headcam.video.readers import open_reader

RATES = [Fraction(25), Fraction(30), Fraction(60), Fraction(30000, 1001), Fraction(24000, 1001)]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("ticks", [1, 512, 1000])
def test_strides_are_exact_from_any_frame_on(rate, ticks):
    """Frames whose pts is a multiple of `ticks`, in a time base that makes that the rate."""
    base = 1 / rate / ticks
    early = 0
    for stride in range(1, 17):
        for first in (0, 1, 2, 7, 1001, 12345, 431999):
            start_s = float(first / rate)  # the time of a frame, as a reader tells it
            times = clip_times(start_s, 16, stride / float(rate))
            assert [pts_at(t, 0, base) // ticks for t in times] == [first + stride * k for k in range(16)]
            plain = [pts_at(start_s + k * (stride / float(rate)), 0, base) // ticks - first for k in range(16)]
            early += plain != [stride * k for k in range(16)]
    assert early or rate in (25, 30, 60), "without the microsecond some clips would fall one frame early"


def test_a_start_between_two_frames_has_exact_strides_too():
    rng = np.random.default_rng(0)
    for rate in RATES:
        for start_s in rng.uniform(0, 3600, 50):
            first = pts_at(start_s + 1e-6, 0, 1 / rate)
            for stride in (1, 4, 5, 8):
                times = clip_times(start_s, 16, stride / float(rate))
                got = np.array([pts_at(t, 0, 1 / rate) for t in times]) - first
                near_a_frame = abs(start_s * rate - round(start_s * rate)) < 1e-3
                assert near_a_frame or got.tolist() == [stride * k for k in range(16)]


def test_linear_spacing_to_the_last_frame_of_the_span_is_not_a_stride():
    """The error that the module warns of: 16 frames at stride 8 come 8.47 frames apart."""
    wrong = np.linspace(0, 16 * 8 - 1, 16)
    assert round(float(wrong[1] - wrong[0]), 2) == 8.47
    assert np.allclose(np.diff(clip_times(0, 16, 8 / 30)), 8 / 30)


def test_clips_of_a_file_come_in_the_order_asked_for(videos, number_shown):
    path = videos["bframes"]  # 40 frames at 10 a second, each showing its number
    starts = [2.0, 0.3, 2.1, 0.3, 0.0]
    with open_reader(path, keyframes=read_metadata(path).keyframes) as reader:
        images, times = read_clips(reader, starts, num_frames=4, step_s=3 / 10)
        height, width = reader.info.height, reader.info.width
    assert images.shape == (5, 4, height, width, 3) and images.dtype == np.uint8 and times.dtype == np.float64
    expected = [[round(10 * s) + 3 * k for k in range(4)] for s in starts]
    assert [[number_shown(image) for image in clip] for clip in images] == expected
    assert np.array_equal(times, np.array(expected) / 10)


@pytest.mark.parametrize("name", ["vfr", "late", "ts", "turned", "open_gop"])
def test_every_frame_is_the_one_on_screen(videos, name):
    path = videos[name]
    with open_reader(path) as reader:
        _, times = read_clips(reader, [0.0, 1.07, 0.5], num_frames=9, step_s=0.17)
        for start, clip in zip([0.0, 1.07, 0.5], times):
            single = [reader.frames_at([t])[0].time_s for t in clip_times(start, 9, 0.17)]
            assert clip.tolist() == single


def test_several_clips_are_one_pass(videos):
    path = videos["plain"]
    keyframes = read_metadata(path).keyframes
    starts = [0.0, 0.1, 0.2, 2.0, 2.1]
    sent = 0
    for start in starts:
        with open_reader(path, keyframes=keyframes) as reader:
            opened = reader.packets_sent
            read_clips(reader, [start], 4, 0.2)
            sent += reader.packets_sent - opened
    with open_reader(path, keyframes=keyframes) as reader:
        opened = reader.packets_sent
        read_clips(reader, starts, 4, 0.2)
        assert reader.packets_sent - opened < 0.6 * sent


def test_bad_requests_are_named(videos):
    with open_reader(videos["plain"]) as reader:
        with pytest.raises(DecodeError, match=r"plain.mp4: no frame at 4.4"):
            read_clips(reader, [0.0, 3.5], num_frames=4, step_s=0.3)
        with pytest.raises(InputError, match="no clip is asked for"):
            read_clips(reader, [], num_frames=4, step_s=0.3)
        for start, count, step, problem in [
            (-0.1, 4, 0.3, "start is -0.1 s"),
            (float("nan"), 4, 0.3, "start is nan s"),
            (0.0, 0, 0.3, "num_frames is 0"),
            (0.0, 4, 0.0, "step is 0.0 s.*stride over the frame rate"),
            (0.0, 4, float("inf"), "step is inf s"),
        ]:
            with pytest.raises(InputError, match=problem):
                read_clips(reader, [start], count, step)
