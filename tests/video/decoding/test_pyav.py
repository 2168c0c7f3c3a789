"""The reader by PyAV, planned decoding and walking: against plain full decodes of generated and real files."""

import io

import av
import numpy as np
import pytest

from headcam.errors import DecodeError
from headcam.video.decoding.planning import Plan
from headcam.video.decoding.pyav import PyAVReader
from headcam.video.metadata import open_video, read_metadata
from headcam.video.readers import open_reader

SAVES = {  # files with packets that can be left out
    "pyramid.mp4",
    "one_key.mkv",
    "open_gop.mp4",
    "vfr.mp4",
    "late.mkv",
    "hevc.mp4",
    "hevc_layers.mkv",
    "hevc_10.mp4",
}
NAMES = sorted(SAVES | {"intra_refresh.mp4", "no_b.mp4", "interlaced.mp4", "annex_b.ts"})


def full_decode(path):
    """{pts: full-size RGB picture} of all frames, without seeking or code of ours; and how many packets that took."""
    pictures, packets = {}, 0
    container, stream = open_video(path)
    stream.thread_count = 1
    with container:
        for packet in container.demux(stream):
            packets += packet.size > 0
            for frame in packet.decode():
                if not pictures or frame.pts > max(pictures):
                    small = frame.reformat(format="rgb24", interpolation="AREA")
                    pictures[frame.pts] = small.to_ndarray()
    return pictures, packets


def assert_exact(path, pictures, times, keyframes, **options):
    """Read `times` in one go; hold every frame against the full decode, and return how many packets were sent."""
    with PyAVReader(str(path), threads=1, short_side=None, keyframes=keyframes, **options) as reader:
        opening = reader.packets_sent
        shown = {reader.time_s(p): p for p in pictures}
        starts = np.array(list(shown))
        frames = list(reader.iter_frames(times))
        for time_s, frame in zip(times, frames, strict=True):
            k = max(int(np.searchsorted(starts, time_s, side="right")) - 1, 0)
            expected = shown[starts[k]]
            assert frame.pts == expected, (path.name, time_s)
            upright = np.rot90(pictures[expected], -reader.info.rotation // 90)
            assert np.array_equal(frame.image, upright), (path.name, time_s)
        return reader.packets_sent - opening


def some_times(path, pictures, keyframes, seed):
    """A request of one of the kinds that there are: all frames, a few, one a second, overlapping clips."""
    with PyAVReader(str(path), threads=1, short_side=None, keyframes=keyframes) as reader:
        times = [max(reader.time_s(p), 0.0) for p in pictures]
    rng = np.random.default_rng(seed)
    end = times[-1]
    clips = rng.uniform(0, end, 3)[:, None] + np.arange(8) * 5 / 30
    kinds = [times, rng.uniform(0, end, 4), np.arange(0, end, 0.7), clips[clips <= end], rng.choice(times, 6)]
    return np.sort(kinds[seed % len(kinds)]).tolist()


def test_every_generated_file_is_tried(files):
    assert files.keys() <= set(NAMES) and "pyramid.mp4" in files


@pytest.mark.parametrize("name", NAMES)
def test_wanted_frames_are_those_of_a_full_decode_bit_for_bit(files, name):
    if name not in files:
        pytest.skip("this PyAV has no encoder for it")
    pictures, _ = full_decode(files[name])
    keyframes = read_metadata(files[name]).keyframes
    for seed in range(7):
        for table in (keyframes, None):
            assert_exact(files[name], pictures, some_times(files[name], pictures, table, seed), table)


@pytest.mark.parametrize("name", sorted(SAVES))
def test_packets_that_nobody_needs_are_not_sent(files, name):
    if name not in files:
        pytest.skip("this PyAV has no encoder for it")
    pictures, packets = full_decode(files[name])
    keyframes = read_metadata(files[name]).keyframes
    with PyAVReader(str(files[name]), threads=1, short_side=None, keyframes=keyframes) as reader:
        times = [reader.time_s(p) for p in pictures]
    assert assert_exact(files[name], pictures, times, keyframes) == packets
    assert assert_exact(files[name], pictures, times[::10], keyframes) <= 0.7 * packets
    first = sorted(pictures)[0]
    assert assert_exact(files[name], pictures, times[:1], keyframes) == 1, first


@pytest.mark.parametrize("name", ["pyramid.mp4", "hevc.mp4"])
def test_a_table_that_calls_every_frame_a_key_frame_does_no_harm(files, tmp_path, name):
    """MP4 without its table of key frames says just that."""
    if name not in files:
        pytest.skip("this PyAV has no encoder for it")
    path = tmp_path / name
    path.write_bytes(files[name].read_bytes().replace(b"stss", b"free"))
    pictures, _ = full_decode(files[name])
    everything = tuple(sorted(pictures))
    assert name != "hevc.mp4" or read_metadata(path).keyframes == everything
    for seed in range(5):
        for table in (everything, None):
            assert_exact(path, pictures, some_times(path, pictures, table, seed), table)


def test_a_seek_lands_on_the_key_frame_that_was_meant(files, monkeypatch):
    """By its decode time it would land one group of pictures early, in MP4 with B-frames."""
    keyframes = read_metadata(files["pyramid.mp4"]).keyframes
    assert len(keyframes) == 3
    seen = []
    add = Plan.add
    monkeypatch.setattr(Plan, "add", lambda plan, facts: (seen.append(facts.pts), add(plan, facts)))
    for keyframe in keyframes[1:]:
        with PyAVReader(str(files["pyramid.mp4"]), threads=1, short_side=None, keyframes=keyframes) as reader:
            seen.clear()
            reader.frames_at([reader.time_s(keyframe) + 0.1])
            assert seen[0] == keyframe


def test_a_decoder_that_gives_other_frames_is_found_out(files, monkeypatch):
    """The plan believes that a packet is disposable which is not: what comes out must be right all the same."""
    path = files["pyramid.mp4"]
    pictures, _ = full_decode(path)
    keyframes = read_metadata(path).keyframes
    times = some_times(path, pictures, keyframes, 2)
    decoded = PyAVReader._decoded
    monkeypatch.setattr(PyAVReader, "_decoded", lambda reader, packet: decoded(reader, packet)[1:])
    assert_exact(path, pictures, times, keyframes)


def test_requests_in_turn_and_half_used_ones(files):
    path = files["pyramid.mp4"]
    pictures, packets = full_decode(path)
    pts = sorted(pictures)
    with PyAVReader(str(path), threads=1, short_side=None, keyframes=read_metadata(path).keyframes) as reader:
        times = [reader.time_s(p) for p in pts]
        one, other = reader.iter_frames(times[::3]), reader.iter_frames(times[1::4])
        taken = [(next(one).pts, next(other).pts) for _ in range(10)]
        assert taken == list(zip(pts[::3], pts[1::4]))[:10]
        before = reader.packets_sent
        assert [reader.frames_at([t])[0].pts for t in times] == pts
        assert reader.packets_sent - before < 1.7 * packets, "neighbours asked for one by one are decoded once or so"
        assert [f.pts for f in reader.iter_frames([times[9], times[3], times[40]])] == [pts[9], pts[3], pts[40]]


def test_a_file_object_reads_like_its_file(files):
    path = files["pyramid.mp4"]
    pictures, _ = full_decode(path)
    file = io.BytesIO(path.read_bytes())
    for _ in range(2):  # the first reader leaves it open
        with open_reader(file) as reader:
            assert reader.info.path == "<memory>"
            frames = reader.frames_at([1.5, 0.2])
            assert all(np.array_equal(f.image, pictures[f.pts]) for f in frames)
    with pytest.raises(DecodeError, match="<memory> cannot be opened: Invalid data"):
        open_reader(io.BytesIO(b"not a video" * 50))


# ---------------------------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------------------------


def damaged(path, to, number, noise=b"\xff"):
    """A copy of `path` whose packet `number` is overwritten, and the pts of that packet and of the next key frame."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    packet = packets[number]
    data = bytearray(path.read_bytes())
    at = data.find(bytes(packet)[8:]) if packet.pos is None or packet.pos < 0 else packet.pos
    data[at + 8 : at + packet.size] = noise * (packet.size - 8)
    to.write_bytes(data)
    return packet.pts, min((p.pts for p in packets[number + 1 :] if p.is_keyframe), default=None)


@pytest.mark.parametrize("name", ["pyramid.mp4", "late.mkv"])
def test_after_damage_the_reader_goes_on_at_the_next_key_frame(files, tmp_path, name):
    pictures, _ = full_decode(files[name])
    pts = sorted(pictures)
    path = tmp_path / name
    lost, again = damaged(files[name], path, 30)
    for table in (read_metadata(files[name]).keyframes, None):
        with PyAVReader(str(path), threads=1, short_side=None, keyframes=table) as reader:
            times = [reader.time_s(p) for p in pts]
            good = []
            with pytest.raises(DecodeError, match=f"{name}: damaged after .* Fix: use other times"):
                good.extend(reader.iter_frames(times))
            assert len(good) >= 20 and good[-1].pts < lost
            behind = [reader.time_s(p) for p in pts if p >= again]
            good.extend(reader.iter_frames(behind))
            assert good[-1].pts == pts[-1]
            for frame in good:
                assert np.array_equal(frame.image, pictures[frame.pts])
            with pytest.raises(DecodeError, match="damaged"):
                reader.frames_at([reader.time_s(lost)])


def test_damage_in_a_transport_stream_is_passed_over_too(files, tmp_path):
    pictures, _ = full_decode(files["annex_b.ts"])
    pts = sorted(pictures)
    data = bytearray(files["annex_b.ts"].read_bytes())
    for start in range(len(data) // 3 // 188 * 188, len(data) // 3 + 188 * 12, 188):
        data[start + 24 : start + 188] = b"\xff" * 164  # payload, not the packet's header
    path = tmp_path / "damaged.ts"
    path.write_bytes(data)
    right = wrong = 0
    with open_reader(path) as reader:
        for p in pts:
            try:
                frame = reader.frames_at([reader.time_s(p)])[0]
            except DecodeError:
                wrong += 1
                continue
            right += frame.pts == p and np.array_equal(frame.image, pictures[p])
    assert wrong > 0 and right + wrong == len(pts) and right > 40


# ---------------------------------------------------------------------------------------------------------------------
# Files that others made
# ---------------------------------------------------------------------------------------------------------------------

ODD_FILES = [
    "good/media__bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4",
    "good/media__dolbyVision-hdr.MOV",
    "good/media__h265_bframes.mp4",
    "good/media__iibbibb_editlist_videoonly.mp4",
    "good/media__sample_edit_list_only_preroll_sync_sample.mp4",
    "good/media__sample_fragmented.mp4",
    "good/media__sample_h264.ts",
    "good/media__sample_h265.ts",
    "good/media__water_180_mvhevc_5frames.mov",
    "good/decord__unordered.mov",
    "good/torchcodec__bt2020_10bit.mp4",
    "good/torchcodec__discard_first_keyframe.mp4",
    "good/torchcodec__nasa_13013_rotated.mp4",
    "good/torchcodec__test_non_zero_start.mp4",
    "good/torchcodec__testsrc2_odd_height_and_width_mpeg2.mp4",
    "good/torchcodec__testsrc2_vp8.webm",
    "good/mmaction2__test.avi",
    "made/interlaced_tff_h264.mp4",
    "made/one_keyframe_2997.mp4",
    "made/open_gop_b3_2997.mp4",
    "made/start_at_5s.ts",
    "made/vfr_no_packet_duration.mp4",
]


@pytest.mark.shared
@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_files_are_read_as_a_full_decode_reads_them(shared_data, name):
    if "mvhevc" in name and not hasattr(av.VideoFrame, "rotation"):
        pytest.skip("PyAV 14.0 cannot tell the rotation of stereo HEVC, and refuses it")
    path = shared_data / "formats" / name
    pictures, _ = full_decode(path)
    keyframes = read_metadata(path).keyframes
    for seed in range(4):
        assert_exact(path, pictures, some_times(path, pictures, keyframes if seed else None, seed), keyframes)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["train/ego4d_bristol.mp4", "heldout/hand_asb1.mp4", "heldout/epics_48.mp4"])
def test_headcam_files_are_read_as_a_full_decode_reads_them(shared_data, name):
    path = shared_data / "egovideo" / name
    pictures, _ = full_decode(path)
    keyframes = read_metadata(path).keyframes
    for seed in (1, 2, 3):
        assert_exact(path, pictures, some_times(path, pictures, keyframes, seed), keyframes)


@pytest.mark.shared
def test_a_stream_that_appears_in_mid_file_is_no_crash(shared_data):
    path = shared_data / "formats" / "broken_derived" / "concat_two.ts"
    with open_reader(path) as reader, pytest.raises(DecodeError, match=r"concat_two\.ts: "):
        list(reader.iter_frames(np.arange(0, 1000, 0.5).tolist()))


def test_a_file_that_stops_before_a_known_key_frame_has_no_lenient_end(tmp_path, write_video):
    """Within the tolerance for the last frame's duration, but that frame is not the last of the recording."""
    path = write_video(tmp_path / "v.mkv", 200, gop=10, bframes=0)
    keyframes = read_metadata(path).keyframes
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    last_s = read_metadata(path).duration_s - 0.1  # start of the last whole frame
    with open_reader(path) as lenient:
        assert lenient.frames_at([last_s + 0.15])[0].time_s <= last_s + 0.01
    with open_reader(path, keyframes=keyframes) as reader:
        with pytest.raises(DecodeError, match=r"v.mkv: damaged after .* no frame at"):
            reader.frames_at([last_s + 0.15])
        assert reader.frames_at([1.0])[0].time_s == 1.0
