"""`headcam scan` on videos whose every flaw was put there: exact stretches, one line a bad file, nothing done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from headcam.cli.scan import main
from headcam.errors import InputError
from headcam.video.index import index
from headcam.video.quarantine import quarantine_of, quarantine_path, read_quarantine, verified_stretches
from headcam.video.recordings import read_recordings
from headcam.video.scanning.frames import Finding, Settings, Task
from headcam.video.scanning.scan import scan, without_slivers
from headcam.video.scanning.verdict import look
from headcam.video.stretches import total_s

RATE = 20  # frames/s of the videos below: 50 ms a frame
FRAME_S = 1 / RATE
DAMAGED = "Invalid data found when processing input"  # libavcodec's words


def world(seed):
    """A large picture of smooth blobs, to move a small window over."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (24, 24), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((480, 480), Image.Resampling.BICUBIC))


def walk(seed, seconds, start_s=0.0):
    """Luma pictures (72, 128) along a bent path through a world, with a sensor's noise."""
    big, noise = world(seed), np.random.default_rng(seed + 1)
    for k in range(round(seconds * RATE)):
        t = start_s + k / RATE
        y, x = int(200 + 200 * np.sin(0.11 * t + seed)), int(170 + 170 * np.cos(0.13 * t))
        yield np.clip(big[y : y + 72, x : x + 128].astype(int) + noise.integers(-6, 7, (72, 128)), 0, 255)


def write(path, pictures, *, size=(128, 72), crf=20, pts=None):
    """Encode luma pictures; `pts` (in frames) makes gaps."""
    # The table in front: a file that is cut short then keeps it, and claims what is gone.
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = RATE  # a key frame each second
        stream.codec_context.time_base = Fraction(1, RATE)
        stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "scenecut=0:bframes=2"}
        for k, picture in enumerate(pictures):
            gray = Image.fromarray(picture.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
            frame = av.VideoFrame.from_ndarray(np.asarray(gray), format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = k if pts is None else pts[k], Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def black(seconds):
    rng = np.random.default_rng(9)
    return [rng.integers(0, 9, (72, 128)) for _ in range(round(seconds * RATE))]


def still(seconds, seed=5):
    return [next(walk(seed, 1))] * round(seconds * RATE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings by their flaw."""
    folder = tmp_path_factory.mktemp("media")
    write(folder / "clean.mp4", walk(1, 6))
    write(folder / "black.mp4", [*walk(2, 3), *black(2.5), *walk(2, 2, 3)])
    write(folder / "frozen.mp4", [*walk(3, 2), *still(3), *walk(3, 2, 2)])
    steps = [k if k < 60 else k + 100 for k in range(120)]  # 3 s, nothing for 5 s, 3 s
    write(folder / "gap.mp4", walk(4, 6), pts=steps)
    whole = list(walk(6, 16))
    write(folder / "original.mp4", whole)
    # Four seconds of something else, then eight of the original from 5.1 s on, smaller, at another quality.
    write(folder / "copy.mp4", [*walk(7, 4), *whole[102:262]], size=(96, 54), crf=30)
    data = (folder / "original.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: int(len(data) * 0.6)])
    write(folder / "damaged.mp4", walk(8, 8))
    damage(folder / "damaged.mp4", packet=70)
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(folder / "lens_cap.png")
    Image.fromarray(world(3)).save(folder / "view.png")
    (folder / "text.mp4").write_text("not a video" * 50)
    return folder


def damage(path, packet):
    """Overwrite the middle of one packet with ones."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        position, size = packets[packet].pos, packets[packet].size
        time_s = float(packets[packet].pts * packets[packet].time_base)
    data = bytearray(path.read_bytes())
    data[position + 12 : position + size] = b"\xff" * (size - 12)
    path.write_bytes(data)
    return time_s


@pytest.fixture(scope="module")
def indexed(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("index") / "recordings.parquet"
    index(folder, file, processes=1, quiet=True)
    return file


@pytest.fixture(scope="module")
def scanned(indexed):
    return scan(indexed, processes=2, quiet=True)


@pytest.fixture(scope="module")
def by_name(indexed, scanned):
    """File name -> rows of the quarantine table."""
    rows = {}
    names = {}
    for row in read_recordings(indexed).to_pylist():
        if row["status"] == "ok":
            rows[Path(row["path"]).name] = []
            names[row["recording"]] = Path(row["path"]).name
    for row in scanned.quarantine.table.to_pylist():
        rows[names[row["recording"]]].append(row)
    return rows


def edges(rows):
    return [(row["reason"], row["start_s"], row["end_s"]) for row in rows]


def test_a_clean_recording_and_the_keeper_of_shared_footage_lose_nothing(by_name):
    assert by_name["clean.mp4"] == by_name["original.mp4"] == by_name["view.png"] == []


@pytest.mark.parametrize(
    ("name", "reason", "start_s", "end_s", "tolerance_s"),
    [
        ("black.mp4", "black", 3.0, 5.5, FRAME_S),
        ("frozen.mp4", "frozen", 2.0, 5.0, FRAME_S),
        ("gap.mp4", "timestamps", 3.0, 8.0, FRAME_S),
        ("copy.mp4", "duplicate", 4.0, 12.0, 0.25),
    ],
)
def test_one_flaw_is_one_stretch(by_name, name, reason, start_s, end_s, tolerance_s):
    ((found, start, end),) = edges(by_name[name])
    assert found == reason
    assert start == pytest.approx(start_s, abs=tolerance_s + 1e-6)
    assert end == pytest.approx(end_s, abs=tolerance_s + 1e-6)


def test_damage_costs_the_seconds_up_to_the_next_key_frame(by_name, folder):
    with av.open(str(folder / "damaged.mp4")) as container:
        keys = [float(p.pts * p.time_base) for p in container.demux(video=0) if p.size and p.is_keyframe]
    ((reason, start, end),) = edges(by_name["damaged.mp4"])
    assert reason == "undecodable"
    assert 3.0 <= start <= 70 * FRAME_S + 3 * FRAME_S  # packet 70 is shown up to two frames earlier or later
    assert end == min(k for k in keys if k > 70 * FRAME_S)
    assert by_name["damaged.mp4"][0]["detail"] in ("the decoder marks it as corrupt", DAMAGED)


def test_what_a_header_claims_beyond_the_end_is_undecodable(by_name, scanned, folder):
    bad = [row for row in by_name["cut.mp4"] if row["reason"] == "undecodable"]
    assert bad[-1]["end_s"] == pytest.approx(16.0, abs=FRAME_S) and 4 < bad[-1]["start_s"] < 14
    rest = [row for row in by_name["cut.mp4"] if row["reason"] != "undecodable"]
    assert {row["reason"] for row in rest} == {"duplicate"}  # of the original, whose beginning it is
    assert scanned.verified_s == pytest.approx(
        scanned.claimed_s - sum(r["end_s"] - r["start_s"] for r in scanned.quarantine.table.to_pylist())
    )


def test_a_black_still_picture_is_out_as_a_whole(by_name, indexed, scanned):
    assert edges(by_name["lens_cap.png"]) == [("black", 0.0, 0.0)]
    table = read_recordings(indexed)
    left = verified_stretches(table, quarantine_of(indexed, table))
    ids = {Path(r["path"]).name: r["recording"] for r in table.to_pylist()}
    assert ids["lens_cap.png"] not in left and left[ids["view.png"]] == ((0.0, 0.0),)
    black_row = by_name["black.mp4"][0]
    duration = next(r["duration_s"] for r in table.to_pylist() if r["path"].endswith("black.mp4"))
    assert total_s(left[ids["black.mp4"]]) == pytest.approx(duration - black_row["end_s"] + black_row["start_s"])


def test_processes_and_a_second_call_change_nothing(indexed, scanned, tmp_path, monkeypatch):
    once = quarantine_path(indexed).read_bytes()
    alone = scan(indexed, tmp_path / "q.parquet", tmp_path / "q.html", processes=1, quiet=True)
    assert (tmp_path / "q.parquet").read_bytes() == once and alone.looked_at == len(alone.findings) == 10
    monkeypatch.setattr("headcam.video.scanning.scan.look", lambda *_: pytest.fail("looked again"))
    again = scan(indexed, tmp_path / "q.parquet", tmp_path / "q.html", frames=False, quiet=True)
    assert again.looked_at == 0 and (tmp_path / "q.parquet").read_bytes() == once
    page = (tmp_path / "q.html").read_text()
    assert "data:image/" not in page and "<img" not in page
    assert "data:image/" in indexed.with_name("recordings.scan.html").read_text()


def test_new_recordings_are_all_that_is_looked_at(folder, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("clean.mp4", "black.mp4"):
        (few / name).symlink_to(folder / name)
    index(few, tmp_path / "r.parquet", processes=1, quiet=True)
    assert scan(tmp_path / "r.parquet", processes=1, quiet=True).looked_at == 2
    (few / "frozen.mp4").symlink_to(folder / "frozen.mp4")
    index(few, tmp_path / "r.parquet", processes=1, quiet=True)
    with pytest.raises(InputError, match="made for another state"):
        quarantine_of(tmp_path / "r.parquet", read_recordings(tmp_path / "r.parquet"))
    grown = scan(tmp_path / "r.parquet", processes=1, quiet=True)
    assert grown.looked_at == 1 and set(grown.seconds) == {"black", "frozen"}
    other = scan(tmp_path / "r.parquet", settings=Settings(black_s=3.0), processes=1, quiet=True)
    assert other.looked_at == 3 and set(other.seconds) == {"frozen"}


def test_killed_and_started_again_gives_the_same_bytes(indexed, scanned, tmp_path):
    out, findings = tmp_path / "q.parquet", tmp_path / "q.findings.jsonl"
    command = [sys.executable, "-c", "import sys; from headcam.cli.scan import main; sys.exit(main(sys.argv[1:]))"]
    options = [str(indexed), "--out", str(out), "--report", str(tmp_path / "q.html"), "--processes", "1", "--quiet"]
    run = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (findings.read_text().count("\n") if findings.exists() else 0) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = findings.read_text().count("\n") - 1
    assert 2 <= done < 10 and not out.exists()
    with open(findings, "a") as file:
        file.write('["torn')
    rest = scan(indexed, out, tmp_path / "q.html", processes=2, quiet=True)
    assert rest.looked_at == 10 - done
    assert out.read_bytes() == quarantine_path(indexed).read_bytes()


def hanging(task: Task, beat) -> Finding:
    """`look`, but the decoder spins for ever at packet 64 of one file and kills its process in another."""

    def slow(at):
        beat(at)
        if at == 64 and task.stop_after is None and task.path.endswith("black.mp4"):
            time.sleep(600)
        if at == 64 and task.stop_after is None and task.path.endswith("frozen.mp4"):
            os.kill(os.getpid(), signal.SIGSEGV)

    return look(task, slow)


def test_a_decoder_that_hangs_or_crashes_costs_one_line(folder, tmp_path, monkeypatch, capsys):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("clean.mp4", "black.mp4", "frozen.mp4"):
        (few / name).symlink_to(folder / name)
    index(few, tmp_path / "r.parquet", processes=1, quiet=True)
    monkeypatch.setattr("headcam.video.scanning.scan.look", hanging)
    before = time.monotonic()
    status = main([str(tmp_path / "r.parquet"), "--processes", "1", "--timeout_s", "10", "--quiet"])
    assert status == 1 and time.monotonic() - before < 60
    said = capsys.readouterr().out
    assert "2 recordings made the decoder crash or hang" in said and said.strip().endswith("r.scan.html")
    rows = read_quarantine(quarantine_path(tmp_path / "r.parquet")).table.to_pylist()
    ids = {Path(r["path"]).name: r["recording"] for r in read_recordings(tmp_path / "r.parquet").to_pylist()}
    # 64 packets are 3.2 s; the decoder still held back up to three frames. Of 2.5 s of black it saw 0.2: too little.
    (spun,) = [r for r in rows if r["recording"] == ids["black.mp4"]]
    assert 2.9 <= spun["start_s"] <= 3.2 + 1e-6 and spun["end_s"] == pytest.approx(7.5, abs=FRAME_S)
    assert (spun["reason"], spun["detail"]) == ("undecodable", "no answer within 10 s")
    (crashed,) = [r for r in rows if r["recording"] == ids["frozen.mp4"]]
    assert "SIGSEGV" in crashed["detail"] and 2.9 <= crashed["start_s"] <= 3.2 + 1e-6
    monkeypatch.setattr("headcam.video.scanning.scan.look", look)
    patient = scan(tmp_path / "r.parquet", processes=1, timeout_s=30, quiet=True)
    assert patient.looked_at == 2 and patient.lost == 0 and set(patient.seconds) == {"black", "frozen"}


def killed(task: Task, beat) -> Finding:
    """`look`, but somebody kills the process at packet 64 of one file, each time."""

    def watched(at):
        beat(at)
        if at == 64 and task.path.endswith("black.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)

    return look(task, watched)


def test_a_process_killed_from_outside_is_no_finding_about_its_file(folder, tmp_path, monkeypatch):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("clean.mp4", "black.mp4"):
        (few / name).symlink_to(folder / name)
    index_file = tmp_path / "r.parquet"
    index(few, index_file, processes=1, quiet=True)
    monkeypatch.setattr("headcam.video.scanning.scan.look", killed)
    result = scan(index_file, processes=1, quiet=True)
    (row,) = result.quarantine.table.to_pylist()  # nothing of it is verified, as long as nobody looked
    assert (row["reason"], row["start_s"], row["end_s"]) == ("undecodable", 0.0, pytest.approx(7.5))
    assert "killed from outside" in row["detail"] and result.lost == 1
    monkeypatch.setattr("headcam.video.scanning.scan.look", look)
    again = scan(index_file, processes=1, quiet=True)
    assert again.looked_at == 1 and again.lost == 0 and set(again.seconds) == {"black"}


def test_a_sliver_of_verified_time_is_closed():
    rows = [[0.0, 1.0, "black", 0.0, ""], [1.02, 2.0, "duplicate", 0.0, ""], [2.5, 3.99, "frozen", 0.0, ""]]
    closed = [row[:2] for row in without_slivers(rows, 4.0, 0.05)]
    assert closed == [[0.0, 1.02], [1.02, 2.0], [2.5, 4.0]]
    assert [row[:2] for row in without_slivers([[0.02, 1.0, "black", 0.0, ""]], 4.0, 0.05)] == [[0.0, 1.0]]
    assert without_slivers([], 0.01, 0.05) == [] and rows[0][1] == 1.0
    assert without_slivers(rows, 4.0, 0.01) == rows


def test_key_frames_alone_give_a_quick_look_that_says_so(indexed, tmp_path):
    quick = scan(
        indexed, tmp_path / "q.parquet", tmp_path / "q.html", settings=Settings(decode="keyframes"), quiet=True
    )
    assert "key frames only" in (tmp_path / "q.html").read_text()
    assert "duplicate" not in quick.seconds and quick.seconds["timestamps"] == pytest.approx(5, abs=2 * FRAME_S)
    assert quick.seconds["black"] == pytest.approx(2.5, abs=1.0 + FRAME_S)  # a key frame each second


def test_bad_input_is_one_line_that_names_it(indexed, folder, tmp_path):
    with pytest.raises(InputError, match="timeout_s is 0"):
        scan(indexed, timeout_s=0)
    with pytest.raises(InputError, match=r"decode is 'some'\. Fix: use all or keyframes"):
        Settings(decode="some")
    with pytest.raises(InputError, match=r"black_s is 0.* above 0"):
        Settings(black_s=0)
    with pytest.raises(InputError, match="is the index itself"):
        scan(indexed, out=indexed)
    mine = tmp_path / "mine.parquet"
    mine.write_text("precious")
    with pytest.raises(InputError, match="not a Parquet file"):
        scan(indexed, out=mine)
    assert mine.read_text() == "precious"
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "a.mp4").write_bytes((folder / "clean.mp4").read_bytes())
    index(moved, tmp_path / "r.parquet", processes=1, quiet=True)
    (moved / "a.mp4").write_bytes((folder / "clean.mp4").read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"a.mp4 has \d+ bytes, the index knew \d+"):
        scan(tmp_path / "r.parquet", quiet=True)
    (moved / "a.mp4").unlink()
    with pytest.raises(InputError, match=r"a.mp4 cannot be read: No such file .*is the disk mounted"):
        scan(tmp_path / "r.parquet", quiet=True)
    assert not quarantine_path(tmp_path / "r.parquet").exists()


def test_the_findings_file_is_plain_json_lines(scanned, indexed):
    header, *lines = quarantine_path(indexed).with_suffix(".findings.jsonl").read_text().splitlines()
    assert json.loads(header)["settings"]["black_s"] == 1.0
    assert len([line for line in lines if line]) == len(scanned.findings)
    assert all(np.isfinite(finding.claimed_s) for finding in scanned.findings.values())


@pytest.mark.shared
def test_real_headcam_video_is_verified_as_it_is(shared_data, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    names = ("va_painting83", "va_painting85", "epics_49", "egoallo_feb13", "hand_asb1", "epicg_00", "ego4d_tokyo")
    for name in names:
        (few / f"{name}.mp4").symlink_to(shared_data / "egovideo" / "heldout" / f"{name}.mp4")
    index(few, tmp_path / "r.parquet", processes=2, quiet=True)
    result = scan(tmp_path / "r.parquet", processes=2, quiet=True)
    (row,) = result.quarantine.table.to_pylist()  # the two were cut from one recording: two seconds are in both
    assert row["reason"] == "duplicate" and row["end_s"] - row["start_s"] == pytest.approx(2.0, abs=0.25)
