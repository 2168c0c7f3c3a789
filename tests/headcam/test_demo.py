"""The demo end to end, tiny: the report says what the files say, finished steps are skipped, bad input is named."""

import csv
import html
import json
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from headcam.cli import main
from headcam.demo import World, demo, recordings_to_hold_out, store_rate
from headcam.demo_results import caveats, load_demo
from headcam.errors import InputError
from headcam.video.quarantine import read_quarantine
from headcam.video.recordings import read_recordings
from headcam.video.sampling.manifest import Manifest
from headcam.video.stores.frame_store import FrameStore

WORLD = World(
    num_walks=3, seconds=3, fps=4, size=(48, 64), num_train=2, num_val=1, picture_size=(32, 32),
    num_pairs=2, num_fillers=6, pair_size=(24, 24), seed=5,
)  # fmt: skip
FOUR_STEPS = 4 / 200  # minutes


def text_of(report: Path) -> str:
    page = re.sub(r"<(style|svg).*?</\1>", " ", report.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_ino)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished demo in the synthetic world."""
    out = tmp_path_factory.mktemp("synthetic") / "demo"
    result = demo(out, minutes=FOUR_STEPS, processes=1, quiet=True, world=WORLD)
    assert result.report == out / "report.html" and not result.skipped
    return out


def test_the_numbers_of_the_report_are_those_of_the_files(finished):
    text = text_of(finished / "report.html")
    with open(finished / "probe" / "scores.csv", newline="") as file:
        scores = {(r["model"], r["metric"]): r for r in csv.DictReader(file)}
    names = {
        "mae": "encoder, pretrained",
        "mae (random weights)": "encoder, random weights",
        "raw pixels": "raw pixels",
    }
    for model, name in names.items():
        linear, knn = (scores[model, metric] for metric in ("linear/top1", "knn/k20_T0.07/top1"))
        cells = [f"{float(r['value']):.1f} [{float(r['low']):.1f}, {float(r['high']):.1f}]" for r in (linear, knn)]
        assert f"{name} {cells[0]} {cells[1]}" in text
    assert f"chance {100 / 12:.1f} {100 / 12:.1f}" in text

    with open(finished / "mae" / "metrics.csv", newline="") as file:
        metrics = list(csv.DictReader(file))
    last = f"{float(metrics[-1]['train/loss']):.3f}, that on held-out recordings {float(metrics[-1]['val/loss']):.3f}"
    assert f"The loss of the last training batch is {last}." in text
    card = json.loads((finished / "mae" / "card.json").read_text())
    assert card["step"] == 4 and card["samples_seen"] == 256 and "images seen, 11 passes 256" in text
    assert f"unique, in 2 recordings {60 * card['hours']:.1f} min" in text
    for value in (card["weights_hash"], card["manifest_hash"], card["config_hash"]):
        assert value in text
    for difference in json.loads((finished / "probe" / "probe.json").read_text())["differences"]:
        if difference["metric"].endswith("/top1"):
            cell = f"{difference['estimate']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"
            assert cell.replace("-", "\N{MINUS SIGN}") in text


def test_the_report_says_what_is_remembered_as_the_scores_of_the_memory_runs_do(finished):
    text = text_of(finished / "report.html")
    with open(finished / "memory" / "accuracy.csv", newline="") as file:
        rows = {
            (r["pretraining"], r["rule"], r["exposures"]): r for r in csv.DictReader(file) if r["condition"] == "pooled"
        }
    for name, words in (("video", "pretrained on the video"), ("none", "untrained")):
        for exposures, times in (("1", "1 exposure"), ("3", "3 exposures")):
            cells = []
            for rule in ("raw", "calibrated", "unstudied_reference"):
                value, low, high = (100 * float(rows[name, rule, exposures][c]) for c in ("accuracy", "low", "high"))
                cells.append(f"{value:.1f} [{low:.1f}, {high:.1f}]")
            assert f"{words}, {times} {' '.join(cells)}" in text
    assert "6 pairs, 4 runs" in text and "89.1 % right after one exposure (Brady 2008)" in text
    assert (finished / "memory" / "report.html").is_file()


def test_the_report_shows_frames_and_completions_and_says_what_it_does_not_show(finished):
    page = (finished / "report.html").read_text("utf-8")
    assert page.count("<img") == 12 + 4 * 6  # frames; true, given, completed at first and at the end
    assert page.count("<svg") == 2
    text = text_of(finished / "report.html")
    for telling in (
        "are rendered, and so is the video",
        "Nothing was chosen on test pictures",
        "one encoder was trained",
    ):
        assert telling in text
    assert "What was left out" not in text
    assert "recordings.scan.html beside this page" in text and (finished / "recordings.scan.html").exists()


def test_both_stores_come_from_one_index_by_manifests_that_share_no_recording(finished):
    index_hash = read_quarantine(finished / "recordings.quarantine.parquet").recordings_hash
    drawn = {}
    for name, file in (("train", "recordings-100pct-seed0.json"), ("held_out", "held_out.json")):
        manifest, store = Manifest.read(finished / "subsets" / file), FrameStore(finished / "frames" / name)
        assert store.metadata["manifest_hash"] == manifest.hash and manifest.recordings_hash == index_hash
        assert store.metadata["quarantine_hash"] == manifest.quarantine_hash is not None
        assert sorted(store.recordings) == sorted(manifest.seconds)
        drawn[name] = set(manifest.seconds)
    assert len(drawn["train"]) == 2 and len(drawn["held_out"]) == 1 and not drawn["train"] & drawn["held_out"]


def test_the_same_command_again_skips_what_is_finished(finished, capsys):
    before = files(finished)
    result = demo(finished, minutes=FOUR_STEPS, processes=1, quiet=True, world=WORLD)
    assert capsys.readouterr().out.count("(finished before)") == 2
    after = files(finished)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    # Lists and the page are made again from the same files; nothing that took time is.
    scores = ("accuracy", "accuracy_by_set", "human_level", "items", "memory", "signals")
    assert changed <= {
        *(f"memory/{name}.csv" for name in scores),
        "memory/scores.json",
        "memory/report.html",
        "recordings.parquet",
        ".recordings.parquet.arrow",
        "recordings.quarantine.findings.jsonl",
        "recordings.scan.html",
        "subsets/held_out.json",
        "subsets/recordings-100pct-seed0.json",
        "subsets/subsets.csv",
        "report.html",
    }
    assert result.headline == load_demo(finished).headline


def test_a_killed_run_goes_on_and_other_settings_are_refused(finished, tmp_path, capsys):
    out = tmp_path / "demo"
    shutil.copytree(finished, out)
    with pytest.raises(InputError, match=r"holds a demo of other settings: minutes is 0\.02 there, 3 here"):
        demo(out, minutes=3, processes=1, quiet=True, world=WORLD)
    # As if killed during the probe: its results are missing, its features are there.
    for name in ("scores.csv", "probe.json"):
        (out / "probe" / name).unlink()
    (out / "report.html").unlink()
    demo(out, minutes=FOUR_STEPS, processes=1, quiet=True, world=WORLD)
    assert capsys.readouterr().out.count("(finished before)") == 1
    assert (out / "probe" / "scores.csv").read_bytes() == (finished / "probe" / "scores.csv").read_bytes()


def test_own_videos_with_a_garbage_file_and_own_labels(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("headcam.demo.World", lambda: WORLD)  # what is rendered all the same: pairs to remember
    videos, labelled, out = tmp_path / "my <videos>", tmp_path / "labelled", tmp_path / "out"
    shutil.copytree(finished / "world" / "walks", videos)
    (videos / "broken & <gone>.mp4").write_bytes(b"no video at all" * 99)
    shutil.copy(videos / "walk-000.mp4", videos / "zz copy.mp4")
    for name in ("ball", "teddy"):
        for part in ("train", "val"):
            for k, picture in enumerate((finished / "world" / "close-ups" / part).rglob("*.jpg")):
                (labelled / name).mkdir(parents=True, exist_ok=True)
                if (k % 2 == 0) == (name == "ball"):
                    shutil.copy(picture, labelled / name / f"{part}{k}.jpg")
    command = [
        "demo",
        "--videos",
        videos,
        "--labelled",
        labelled,
        "--out",
        out,
        "--minutes",
        FOUR_STEPS,
        "--processes",
        1,
    ]
    assert main([*map(str, command), "--quiet", "--no-frames"]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert (
        lines[-1] == str(out / "report.html") and "skipped: unreadable files: 1; copies of other files: 1" in lines[-2]
    )
    assert f"scan: {out / 'recordings.scan.html'}" in lines
    (told,) = captured.err.splitlines()  # the world of this test is that small
    assert told.startswith("headcam: view image of 64 x 64 pixels is larger than every frame of data.train")

    page, text = (out / "report.html").read_text("utf-8"), text_of(out / "report.html")
    rows = read_recordings(out / "recordings.parquet").to_pylist()
    reason = next(row["reason"] for row in rows if row["status"] == "unreadable")
    assert "zz copy.mp4 index, copy same content as" in text
    assert f"broken & <gone>.mp4 index {reason}" in text and "<gone>" not in page
    assert "<img" not in page and "your own recordings" in text and "test pictures are rendered" not in text
    assert [path.name for path in (out / "world").iterdir()] == ["pairs"], "nothing else had to be rendered"


def write_walk(path: Path, seed: int, seconds: int, black_s: tuple[int, int] | None = None) -> None:
    """A window that moves over noise, 8 pictures a second; black for the seconds [first, last) of `black_s`."""
    wide = np.random.default_rng(seed).integers(0, 256, (48, 64 + 3 * 8 * seconds, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(8 * seconds):
            picture = np.ascontiguousarray(wide[:, 3 * k : 3 * k + 64])
            if black_s and black_s[0] <= k / 8 < black_s[1]:
                picture[:] = 0
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def test_quarantined_seconds_are_neither_stored_nor_counted_and_are_listed(finished, tmp_path):
    """One recording (so none is held out) with a covered lens in its middle, and one that is black throughout."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    write_walk(videos / "covered.mp4", 1, 8, black_s=(3, 6))
    write_walk(videos / "bag.mp4", 2, 4, black_s=(0, 4))
    labels = finished / "world" / "close-ups"
    settings = {"minutes": 1 / 200, "processes": 1, "quiet": True, "world": WORLD}
    result = demo(out, videos=videos, labelled=labels, frames=False, **settings)

    store = FrameStore(out / "frames" / "train")
    assert not (out / "frames" / "held_out").exists() and len(store.recordings) == 1
    assert not ((store.time_s >= 3) & (store.time_s < 6)).any() and 3600 * store.hours == pytest.approx(5.0)
    assert json.loads((out / "mae" / "card.json").read_text())["hours"] == pytest.approx(5 / 3600)
    found = load_demo(out)
    assert found.seconds == pytest.approx({"train": 5.0, "held_out": 0.0, "quarantine": 7.0, "store": 0.0})
    assert result.skipped == ("stretches of video in quarantine: 2",)
    text = text_of(out / "report.html")
    assert "covered.mp4 scan 3.0 to 6.0 s: black" in text and "bag.mp4 scan 0.0 to 4.0 s: black" in text
    assert "trained on 1 5.00 held out 0 0.00 in quarantine, not used 2 7.00 claimed by the files 2 12.00" in text
    assert "<img" not in result.scan_report.read_text("utf-8"), "no pictures on the scan's page either"


def test_still_pictures_alone_have_no_time_to_account_for(finished, tmp_path):
    videos, out = tmp_path / "pictures", tmp_path / "out"
    videos.mkdir()
    labels = finished / "world" / "close-ups"
    for k, picture in enumerate(sorted((labels / "train").rglob("*.jpg"))[:12]):
        shutil.copy(picture, videos / f"{k}.jpg")
    result = demo(out, videos=videos, labelled=labels, minutes=1 / 200, processes=1, quiet=True, world=WORLD)
    assert not result.skipped and "still pictures" in result.headline
    assert load_demo(out).num_recordings == {"claimed": 12, "quarantine": 0, "store": 0, "train": 11, "held_out": 1}
    assert "claimed by the files" not in text_of(out / "report.html")


def test_caveats_follow_the_numbers(finished):
    def said(low: float, high: float, **changes) -> str:
        demo = load_demo(finished)
        for difference in demo.probe["differences"]:
            difference.update(estimate=(low + high) / 2, low=low, high=high)
        demo.settings.update(changes)
        return " ".join(caveats(demo)) + demo.headline

    gain, none, loss = said(1, 3), said(-1, 3), said(-3, -1)
    assert "did teach the encoder" in gain and "2.0 points more than raw pixels" in gain
    assert "cannot be told from its own untrained state" in none and "did teach" not in none
    assert "not to be told from raw pixels (+1.0 points, 95 % interval [\N{MINUS SIGN}1.0, +3.0])" in none
    assert "worse for this test" in loss and "2.0 points fewer than raw pixels" in loss
    assert "while the video is real" in said(1, 3, videos="my_videos")
    assert "rendered" not in said(1, 3, videos="my_videos", labelled="my_pictures")


def one_class(tmp_path: Path) -> list[Path | str]:
    (tmp_path / "labels" / "cat").mkdir(parents=True)
    for k in range(2):
        (tmp_path / "labels" / "cat" / f"{k}.jpg").write_bytes(b"x")
    return ["--labelled", tmp_path / "labels"]


def no_video(tmp_path: Path) -> list[Path | str]:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no video")
    return ["--videos", tmp_path / "notes"]


def two_classes(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for k in range(20):
            (tmp_path / "two" / name / f"{k}.jpg").write_bytes(f"{name}{k}".encode())
    return tmp_path / "two"


def few(tmp_path: Path) -> list[Path | str]:
    labels = two_classes(tmp_path)
    for k in range(10, 20):
        (labels / "cat" / f"{k}.jpg").unlink()
        (labels / "dog" / f"{k}.jpg").unlink()
    return ["--labelled", labels]


def out_in_videos(tmp_path: Path) -> list[Path | str]:
    return ["--videos", tmp_path, "--labelled", two_classes(tmp_path)]


def out_under_a_file(tmp_path: Path) -> list[Path | str]:
    (tmp_path / "file").write_text("x")
    return ["--out", tmp_path / "file" / "demo"]


def out_of_something_else(tmp_path: Path) -> list[Path | str]:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    return ["--out", tmp_path / "thesis"]


@pytest.mark.parametrize(
    "given, telling",
    [
        (one_class, "has one class only, 'cat'"),
        (few, "has 16 training pictures, and the kNN vote is of 20"),
        (no_video, "holds no video or picture among its 1 files"),
        (out_in_videos, "lies in --videos"),
        (out_under_a_file, "which is no folder"),
        (out_of_something_else, "is there and holds no demo"),
        (lambda _: ["--videos", "nowhere"], "nowhere does not exist"),
        (lambda _: ["--minutes", "0"], "minutes is 0"),
        (lambda _: ["--minutes", "1e99"], "minutes is 1e+99"),
    ],
)
def test_bad_input_gets_one_line_before_anything_long_begins(tmp_path, capsys, given, telling):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--quiet", *map(str, given(tmp_path))]) == 2
    error = capsys.readouterr().err
    assert telling in error and error.startswith("headcam: ") and error.count("\n") == 1
    assert not out.exists()


def ids(*seconds: float) -> dict[str, float]:
    return {f"{k:016x}": float(s) for k, s in enumerate(seconds)}


def test_a_tenth_of_the_recordings_is_held_out_by_their_ids_alone():
    forty = ids(*[60] * 40)
    chosen = recordings_to_hold_out(forty)
    assert len(chosen) == 4 and set(chosen) < set(forty)
    assert recordings_to_hold_out(dict(reversed(forty.items()))) == chosen, "in any order"
    assert recordings_to_hold_out(ids(60)) == [], "the only recording is trained on"
    assert len(recordings_to_hold_out(ids(60, 60))) == 1
    assert len(recordings_to_hold_out(ids(0, 0, 0))) == 1, "still pictures have no seconds"


@pytest.mark.parametrize("k", range(6))
def test_a_recording_that_is_most_of_the_video_is_never_held_out(k):
    seconds = [10.0] * 6
    seconds[k] = 10_000.0
    assert f"{k:016x}" not in recordings_to_hold_out(ids(*seconds))
    assert recordings_to_hold_out(ids(10_000, 50)) == [f"{1:016x}"]


def test_no_more_frames_are_stored_than_will_be_drawn():
    assert store_rate(480, 41_000) == 5
    for hours in (0.1, 1, 5, 10, 100, 900):
        rate = store_rate(3600 * hours, 41_000)
        assert rate == 0.01 or rate * 3600 * hours <= 41_000
    assert store_rate(0, 1) == 5, "still pictures"
