"""The same frame for the same time in every backend, or a refusal by name: real odd files, generated ones, known lies.

What is right is said by `FullDecode`: a plain decode of all frames by PyAV, from start to end, without code of ours
(but for the direction of upright, which test_readers.py proves).
"""

import sys
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from headcam.errors import DecodeError, InputError, MissingPackage
from headcam.video import readers
from headcam.video.metadata import clockwise_rotation, read_metadata
from headcam.video.readers import open_reader


def _why_missing(backend: str) -> str:
    """Why a backend cannot be loaded here; empty where it can."""
    try:
        open_reader("nowhere.mp4", backend)
    except MissingPackage as error:
        return error.problem
    except DecodeError:
        return ""


MISSING = {backend: _why_missing(backend) for backend in readers.BACKENDS}
HERE = {backend: not why for backend, why in MISSING.items()}
BACKENDS = [name for name, there in HERE.items() if there]
_SIDE = 64  # pixels of the thumbnails that neighbouring frames are told apart by


class FullDecode:
    """All frames of a file in order of time: pts, thumbnails, and in full those on screen at `times_s`."""

    def __init__(self, path: Path):
        with av.open(str(path)) as container:
            stream = self._stream(container)
            packets = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
            base, start = stream.time_base, stream.start_time
        known = sorted(p for p in packets if p is not None)
        if not known:
            raise ValueError("no presentation times")
        start = known[0] if start is None else start

        def seconds(pts):
            return (pts - start) * base.numerator / base.denominator

        end = seconds(known[-1])
        rng = np.random.default_rng(len(known))
        shares = [0.75, 0.25, 0.5, 0.0, 1.0, *rng.random(3)]
        self.times_s = [max(share * end, 0.0) + 1e-9 for share in shares]
        self.pts, self.thumbnails, self.full = [], [], {}
        waiting, current = sorted(self.times_s), None
        with av.open(str(path)) as container:
            stream = self._stream(container)
            for frame in container.decode(stream):
                if self.pts and frame.pts <= self.pts[-1]:
                    continue  # a time stamp that does not rise names no frame
                while waiting and current is not None and seconds(frame.pts) > waiting[0]:
                    self._keep(current)
                    waiting.pop(0)
                current = frame
                self.rotation = -clockwise_rotation(frame, path) // 90
                self.pts.append(frame.pts)
                self.thumbnails.append(self._upright(self._small(frame)).astype(np.int16))
            self._keep(current)
        self.seconds = [seconds(pts) for pts in self.pts]

    @staticmethod
    def _stream(container):
        return max(container.streams.video, key=lambda s: (s.width * s.height, -s.index))

    @staticmethod
    def _small(frame):
        if frame.interlaced_frame:  # whose lines swscale mixes otherwise when it scales
            return cv2.resize(frame.to_ndarray(format="rgb24"), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        return frame.reformat(_SIDE, _SIDE, "rgb24", interpolation="AREA").to_ndarray()

    def _keep(self, frame):
        self.full[frame.pts] = self._upright(frame.to_ndarray(format="rgb24")).astype(np.int16)

    def _upright(self, image):
        return np.rot90(image, self.rotation)

    def number_at(self, time_s: float) -> int:
        return max(bisect_right(self.seconds, time_s) - 1, 0)


def differences(reader, exact: FullDecode) -> list[float]:
    """Mean differences in levels between the frames that a reader gives and the right ones, asserted to be the right
    ones: same pts, same time, and nearer to the right picture than to its neighbours where these differ."""
    first = [reader.frames_at([t])[0] for t in exact.times_s[:3]]  # to and fro
    found, means = first + reader.frames_at(exact.times_s[3:]), []
    for time_s, frame in zip(exact.times_s, found):
        k = exact.number_at(time_s)
        assert (frame.pts, frame.time_s) == (exact.pts[k], exact.seconds[k]), f"at {time_s:.4f} s"
        assert frame.image.dtype == np.uint8 and frame.image.shape == exact.full[frame.pts].shape
        means.append(float(np.abs(frame.image - exact.full[frame.pts]).mean()))
        if means[-1] == 0:
            continue
        small = cv2.resize(frame.image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
        near = range(max(k - 3, 0), min(k + 4, len(exact.pts)))
        distance = {j: np.abs(small - exact.thumbnails[j]).mean() for j in near}
        for j in near:
            if np.abs(exact.thumbnails[j] - exact.thumbnails[k]).mean() > 2:
                assert distance[k] < distance[j], f"at {time_s:.4f} s the picture is rather that of frame {j - k:+}"
    return means


def outcome(path: Path, backend: str, exact: FullDecode | None) -> float | str:
    """Largest mean difference of a file's frames in levels, or the reason for which the backend refuses it."""
    try:
        with open_reader(path, backend, keyframes=read_metadata(path).keyframes) as reader:
            return max(differences(reader, exact))
    except DecodeError as error:
        assert error.problem.startswith(str(path))
        if backend != "pyav" and "no video stream" not in error.problem and "presentation times" not in error.problem:
            assert error.fix == "read it with the backend pyav"
        return error.problem.removeprefix(str(path)).lstrip(": ")


def check(path: Path, backend: str, exact: FullDecode | None, refusal: str | None) -> None:
    """A file is read rightly, or refused for the reason that the table below gives."""
    found = outcome(path, backend, exact)
    if refusal is not None:
        assert isinstance(found, str), f"{backend} reads {path.name}, which it used to refuse: {refusal}"
        assert refusal in found
        return
    assert isinstance(found, float), f"{backend} refuses {path.name}: {found}"
    assert found <= (1e-3 if backend == "pyav" else COLOURS.get(path.name, COLOURS_ELSEWHERE)), backend


NO_VIDEO = dict.fromkeys(HERE, "has no video stream")
NO_TIMES = dict.fromkeys(HERE, "has no presentation times")
NO_INDEX = {
    "decord": "a container without index, in which decord returns other frames",
    "torchcodec": "a container without index, in which torchcodec returns other frames or none",
}
EDITED = {"decord": "an edit list, which decord ignores"}
OPEN_GOPS = {"decord": "open GOPs, in which decord returns other frames"}
SEVERAL = {b: f"several video streams, of which {n}" for b, n in (("decord", "decord"), ("opencv", "OpenCV"))}
NO_DURATION = {"decord": "decord cannot read it: Failed to measure duration"}
BLACK = {"opencv": "interlaced, which OpenCV shows as black pictures"}
NO_AV1 = {"decord": "decord cannot read it: Check failed", "opencv": "OpenCV stops after 0 of"}
OTHER_COLOURS = {"opencv": "opencv shows the first frame otherwise (by 3"}
AVI_TIMES = dict.fromkeys(("decord", "torchcodec", "opencv"), "an AVI file with B-frames, which keeps no times")

# file of ../shared/data/formats -> backend -> why it refuses it. All else is read rightly by all four.
REFUSED = {
    "dimadamen__Bags2Ex2.mpg": NO_INDEX | {"opencv": "opencv gives a frame of 0 s for the one of 36.48 s"},
    "media__dolbyVision-hdr.MOV": EDITED | OTHER_COLOURS,
    "media__iibbibb_editlist_videoonly.mp4": EDITED
    | {"torchcodec": "torchcodec gives a frame of 2 s for the one of 0"},
    "media__long_edit_list_audioonly.mp4": NO_VIDEO,
    "media__roadtrip-vp92-10bit.webm": {
        b: f"{b} counts 80 frames, the file shows 72" for b in ("decord", "torchcodec")
    },
    "media__sample_audio_only.mp4": NO_VIDEO,
    "media__sample_edit_list_only_preroll_sync_sample.mp4": EDITED,
    "media__sample_h262_mpeg_audio.ts": NO_INDEX,
    "media__sample_h264.ts": NO_INDEX,
    "media__sample_h264_iframes_only.ts": NO_INDEX,
    "media__sample_h265.ts": NO_INDEX,
    "media__sample_sef_super_slow_motion.mp4": EDITED,
    "media__sample_vvc.mp4": OPEN_GOPS | {"torchcodec": "torchcodec cannot read it: No valid stream found"},
    "mmaction2__test.avi": AVI_TIMES,
    "moviepy__bitmap.mp4": {"decord": "decord gives pictures of shape (1, 1, 96), not (1, 1, 3)"},
    "moviepy__no_duration.webm": NO_DURATION,
    "mp4parse-rus__tiny_av1.mp4": NO_AV1,
    "mp4parser__count.h264": NO_TIMES,
    "mux.js__test-segment.ts": NO_INDEX,
    "torchcodec__av1_video.mkv": NO_AV1,
    "torchcodec__bt2020_10bit.mp4": OTHER_COLOURS,
    "torchcodec__discard_first_keyframe.mp4": EDITED,
    "torchcodec__gradient.gif": NO_DURATION,
    "torchcodec__h265_video.mp4": OPEN_GOPS,
    "torchcodec__nasa_13013.mp4": SEVERAL,
    "torchcodec__testsrc2_av1_10bit.mp4": NO_AV1,
    "interlaced_tff_h264.mp4": BLACK,
    "open_gop_b3_2997.mp4": OPEN_GOPS,
    "start_at_5s.ts": NO_INDEX,
}

# Mean differences of colour, in levels, where the libraries' conversions to RGB are known to differ
COLOURS_ELSEWHERE = 0.3
COLOURS = {
    "dimadamen__onlineEventLoggingAndConnection.avi": 2,  # 4:1:0 chroma
    "interlaced_tff_h264.mp4": 2,  # chroma of fields
    "media__bear-vp9-odd-dimensions.webm": 0.6,
    "media__roadtrip-vp92-10bit.webm": 2,
    "media__sample_vvc.mp4": 2,  # 10 bits
    "prores_proxy.mov": 1,
    "torchcodec__bt2020_10bit.mp4": 3,
    "torchcodec__h264_10bits.mp4": 4,
    "torchcodec__h265_10bits.mp4": 4,
    "torchcodec__testsrc2_av1_10bit.mp4": 1,
    "torchcodec__testsrc2_odd_height_and_width_mpeg2.mp4": 5,
    "torchcodec__testsrc2_odd_height_and_width_vp9_10bit.mp4": 1,
    "ten_bits.mp4": 4,
    "interlaced.mp4": 2,
}


@pytest.mark.shared
@pytest.mark.slow
def test_odd_real_files_agree_in_every_backend_or_are_refused(shared_data):
    paths = sorted([*(shared_data / "formats/good").iterdir(), *(shared_data / "formats/made").iterdir()])
    assert len(paths) == 79 and set(REFUSED) <= {p.name for p in paths}
    wrong = []
    for path in paths:
        refusals = REFUSED.get(path.name, {})
        exact = FullDecode(path) if "pyav" not in refusals else None
        for backend in BACKENDS:
            try:
                check(path, backend, exact, refusals.get(backend))
            except AssertionError as error:
                wrong.append(f"{path.name}, {backend}: {error}")
    assert not wrong, "\n".join(wrong)


def _write_two_streams(path: Path, write_video, picture_sizes) -> Path:
    """Two video streams in one file; the second counts from 100 and has the larger pictures."""
    parts = [
        write_video(path.with_name(f"part{k}.mp4"), size=size, first_number=100 * k, bframes=0)
        for k, size in enumerate(picture_sizes)
    ]
    with av.open(str(path), "w") as out:
        inputs = [av.open(str(part)) for part in parts]
        streams = [out.add_stream_from_template(i.streams.video[0]) for i in inputs]
        for source, stream in zip(inputs, streams):
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
            source.close()
    return path


def _made(name: str, folder: Path, write_video) -> Path:
    """A generated oddity: 40 frames (35 behind the edit list), each showing its number."""
    gop = ":keyint=12:min-keyint=12"
    recipes = {
        "edited.mp4": dict(pts=list(range(-5, 35)), muxer={"avoid_negative_ts": "disabled"}),
        "interlaced.mp4": dict(options={"x264-params": "tff=1:bframes=2:scenecut=0" + gop, "crf": "20"}),
        "odd_sizes.mp4": dict(size=(97, 65), pix_fmt="yuv444p"),
        "ten_bits.mp4": dict(
            codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=none:open-gop=0" + gop}
        ),
        "hevc.mp4": dict(codec="libx265", options={"x265-params": "log-level=none:open-gop=0" + gop}),
        "hevc_open_gop.mp4": dict(codec="libx265", options={"x265-params": "log-level=none:bframes=3" + gop}),
        "av1.mp4": dict(codec="libsvtav1", options={"preset": "10", "svtav1-params": "keyint=12"}),
        "vp9.webm": dict(codec="libvpx-vp9", options={"lag-in-frames": "16", "deadline": "realtime", "cpu-used": "8"}),
        "vp8.webm": dict(codec="libvpx", options={"lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "8"}),
        "program.mpg": dict(codec="mpeg2video", options={"b": "400k", "bf": "2"}, rate=25),
        "bframes.avi": dict(codec="mpeg4", options={"b": "400k", "bf": "2"}),
        "raw.h264": {},
        "flash.flv": {},
    }
    if name == "two_streams.mp4":
        if av.__version__.startswith("14."):
            pytest.skip("PyAV 14 writes the second stream of such a file wrongly")
        return _write_two_streams(folder / name, write_video, [(64, 48), (96, 64)])
    recipe = recipes[name]
    try:
        av.codec.Codec(recipe.get("codec", "libx264"), "w")
    except ValueError:
        pytest.skip(f"this PyAV has no encoder {recipe['codec']}")
    return write_video(folder / name, **recipe)


# generated file -> backend -> why it refuses it; the names without a dot are of the fixture `videos`
GENERATED = {
    **{name: {} for name in ("plain", "bframes", "vfr", "late", "ntsc", "turned", "upside_down", "turned_back")},
    "ts": NO_INDEX,
    "open_gop": OPEN_GOPS,
    "edited.mp4": EDITED,
    "interlaced.mp4": BLACK,
    "odd_sizes.mp4": {},
    "ten_bits.mp4": {},
    "hevc.mp4": {},
    "hevc_open_gop.mp4": OPEN_GOPS,
    "av1.mp4": NO_AV1,
    "vp9.webm": {},
    "vp8.webm": {},
    "program.mpg": NO_INDEX | {"opencv": "opencv gives a frame of 0 s for the one of 1.56 s"},  # the last one
    "bframes.avi": AVI_TIMES,
    "raw.h264": NO_TIMES,
    "flash.flv": {},
    "two_streams.mp4": SEVERAL,
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_oddities_agree_in_every_backend_or_are_refused(name, videos, tmp_path, write_video, number_shown):
    path = videos[name] if name in videos else _made(name, tmp_path, write_video)
    exact = FullDecode(path) if "pyav" not in GENERATED[name] else None
    for backend in BACKENDS:
        check(path, backend, exact, GENERATED[name].get(backend))
        if backend in GENERATED[name]:
            continue
        with open_reader(path, backend) as reader:  # the numbers in the pictures say it once more
            first = 100 if name == "two_streams.mp4" else 40 - len(exact.pts)
            numbers = [number_shown(frame.image) for frame in reader.iter_frames(s + 1e-9 for s in exact.seconds)]
            assert numbers == [first + k for k in range(len(exact.pts))], backend


@pytest.mark.parametrize("backend", readers.BACKENDS)
def test_times_in_any_order_ends_and_sizes_are_alike(videos, backend):
    if MISSING[backend]:
        pytest.skip(f"left out here and in all comparisons: {MISSING[backend]}")
    with open_reader(videos["turned"], backend, short_side=32) as reader, open_reader(videos["turned"]) as full:
        info = reader.info
        assert (info.width, info.height, info.rotation, info.backend) == (64, 96, 90, backend)
        assert (info.start_pts, info.time_base, info.codec) == (full.info.start_pts, full.info.time_base, "h264")
        there, back, again = reader.frames_at([3.05, 0.05, 3.05])
        assert there is again and there.image.shape == (48, 32, 3) and back.time_s == 0.0
        assert np.abs(back.image - cv2.resize(full.frames_at([0.0])[0].image, (32, 48), 0, 0, 0, cv2.INTER_AREA)).size
        with pytest.raises(DecodeError, match=r"turned.mp4: no frame at 9 s, frames can be had from 0 s to 4 s"):
            reader.frames_at([0.0, 9.0])
        for _ in range(2):  # the frame that is there already
            assert reader.frames_at([4.1])[0].time_s == 3.9


def test_only_pyav_reads_file_objects(videos):
    with open(videos["plain"], "rb") as file:
        for backend in ("decord", "torchcodec", "opencv"):
            with pytest.raises(InputError, match=f"{backend} reads a file by its path.*Fix: use the backend pyav"):
                open_reader(file, backend)


def test_a_library_that_cannot_be_loaded_is_named_with_the_fix(videos, monkeypatch):
    for backend, module, fix in (
        ("decord", "decord", "pip install decord"),
        ("torchcodec", "torchcodec.decoders", r"pip install 'headcam\[torchcodec\]' and install FFmpeg's shared lib"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingPackage, match=fix):
            open_reader(videos["plain"], backend)


@pytest.mark.skipif(not HERE["torchcodec"], reason=MISSING["torchcodec"])
def test_torchcodec_that_was_imported_without_ffmpeg_refuses_no_file(videos, monkeypatch):
    import torchcodec

    monkeypatch.setattr(torchcodec, "ffmpeg_major_version", None, raising=False)  # what 0.17 says then
    with pytest.raises(MissingPackage, match=r"FFmpeg's shared libraries are not there.*apt install"):
        open_reader(videos["plain"], "torchcodec")


# The lies that the guards are there for, shown on the bare libraries: a guard whose reason is gone can go as well.


def _read_all(path: Path) -> list[np.ndarray]:
    capture, images = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while True:
        success, image = capture.read()
        if not success:
            return images
        images.append(image)


def _gone(library) -> None:
    pytest.skip(f"{library.__name__} {library.__version__} no longer does so: its guard may be lifted")


def test_opencv_ends_early_without_a_word_where_a_file_is_truncated(tmp_path, write_video):
    path = write_video(tmp_path / "v.mp4", muxer={"movflags": "faststart"}, bframes=0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    claimed = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT)
    assert claimed == 40 and 0 < len(_read_all(path)) < 40
    for backend in set(BACKENDS) - {"pyav"}:
        with pytest.raises(
            DecodeError, match=f"v.mp4: the file is cut short or damaged.*of which {backend} says nothin"
        ):
            open_reader(path, backend)


def test_opencv_shows_interlaced_video_black_and_reports_success(tmp_path, write_video, number_shown):
    images = _read_all(_made("interlaced.mp4", tmp_path, write_video))
    assert len(images) == 40
    if [number_shown(image) for image in images] == list(range(40)):
        _gone(cv2)


def test_opencv_is_caught_where_interlaced_frames_begin_in_mid_file(tmp_path, write_video, number_shown):
    interlaced = {"x264-params": "tff=1:bframes=0:scenecut=0", "crf": "20"}
    write_video(tmp_path / "a.ts", bframes=0)
    write_video(tmp_path / "b.ts", pts=list(range(40, 80)), first_number=40, options=interlaced)
    path = tmp_path / "both.ts"
    with av.open(str(tmp_path / "a.ts")) as a, av.open(str(tmp_path / "b.ts")) as b, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(a.streams.video[0])
        for packet in [p for part in (a, b) for p in part.demux(video=0) if p.size]:
            packet.stream = stream
            out.mux(packet)
    if [number_shown(image) for image in _read_all(path)] == list(range(80)):
        _gone(cv2)
    with open_reader(path, "opencv") as reader, open_reader(path) as right:
        assert [number_shown(f.image) for f in right.frames_at([3.85, 4.25])] == [38, 42]
        assert number_shown(reader.frames_at([3.85])[0].image) == 38
        for time_s in (4.25, 6.05):
            with pytest.raises(DecodeError, match=f"OpenCV repeats a picture at {time_s - 0.05:.6g} s"):
                reader.frames_at([time_s])


def test_opencv_misses_the_time_in_variable_rate_video(videos, number_shown):
    path = videos["vfr"]
    with open_reader(path) as reader:
        times = [reader.time_s(pts) for pts in FullDecode(path).pts]
    capture, missed = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), 0
    for k in range(0, 40, 3):
        capture.set(cv2.CAP_PROP_POS_MSEC, times[k] * 1000 + 5)
        success, image = capture.read()
        missed += not success or number_shown(image) != k
    if not missed:
        _gone(cv2)
    assert missed > 3


@pytest.mark.skipif(not HERE["decord"], reason="no decord")
def test_decord_gives_other_frames_in_open_gops_and_counts_what_an_edit_list_removes(
    tmp_path, write_video, number_shown
):
    import decord

    reader = decord.VideoReader(str(_made("hevc_open_gop.mp4", tmp_path, write_video)), num_threads=1)
    order = np.random.default_rng(0).permutation(len(reader)).tolist()
    assert any(number_shown(reader[k].asnumpy()) != k for k in order)
    edited = decord.VideoReader(str(_made("edited.mp4", tmp_path, write_video)), num_threads=1)
    assert len(edited) == 40 > 35


@pytest.mark.skipif(not HERE["decord"], reason="no decord")
def test_decord_and_opencv_show_nothing_of_av1(tmp_path, write_video):
    import decord

    path = _made("av1.mp4", tmp_path, write_video)
    with pytest.raises(Exception, match="cannot find video stream"):
        decord.VideoReader(str(path), num_threads=1)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if capture.read()[0]:
        _gone(cv2)
    assert capture.isOpened() and capture.get(cv2.CAP_PROP_FRAME_COUNT) == 40


@pytest.mark.skipif(not HERE["torchcodec"], reason=MISSING["torchcodec"])
def test_torchcodec_errs_in_approximate_mode_and_where_packets_have_no_duration(videos, number_shown):
    from torchcodec.decoders import VideoDecoder

    def number(frame):
        return number_shown(frame.data.numpy().transpose(1, 2, 0))

    for name, start_s in (("vfr", 0), ("late", 7)):  # in both a packet lasts for one tick, as far as it says
        exact = FullDecode(videos[name])
        decoder = VideoDecoder(videos[name], seek_mode="exact")
        inside = [start_s + (one + next_one) / 2 for one, next_one in pairwise(exact.seconds)]
        by_time = [number(decoder.get_frame_played_at(time_s)) for time_s in inside]
        assert by_time != list(range(39)), "by time it is now right as well"
        assert [number(decoder.get_frame_at(k)) for k in range(40)] == list(range(40))
    decoder = VideoDecoder(videos["vfr"], seek_mode="approximate")
    order = np.random.default_rng(0).permutation(min(len(decoder), 40)).tolist()
    assert [number(decoder.get_frame_at(k)) for k in order] != order


def test_pyav_leaves_rotation_to_the_caller(videos):
    with av.open(str(videos["turned"])) as container:
        bare = next(container.decode(video=0))
    with open_reader(videos["turned"]) as reader:
        assert (bare.height, bare.width) == (64, 96) and reader.frames_at([0.0])[0].image.shape == (96, 64, 3)
