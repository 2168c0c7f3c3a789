"""Labelled videos in the layouts that users have: the same videos give the same set, and what is missing is counted."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from headcam.errors import InputError
from headcam.evaluation.labelled.sets import labels_of, read_labelled
from headcam.evaluation.labelled.video_lists import holds_videos
from headcam.evaluation.labelled.videos import direction_sensitive, read_videos
from headcam.files import recording_id


@pytest.fixture
def write_files() -> Callable[..., Path]:
    """Writes files whose content is their own name: their ids differ, and nobody decodes them here."""

    def write(folder: Path, *names: str) -> Path:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"video {Path(name).stem}")
        return folder

    return write


def write_video(path: Path, seconds: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for k in range(4 * seconds):
            picture = np.full((32, 32, 3), k % 250, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_csv(path: Path, header: str, rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def contents(data) -> dict[str, list[tuple[str, str]]]:
    """part -> (class, file name) of its videos, sorted."""
    return {
        part: sorted((data.classes[v.label], v.path.stem) for v in getattr(data, part)) for part in ("train", "test")
    }


# --- folders ---------------------------------------------------------------------------------------------------------


def test_class_folders(tmp_path, write_files):
    write_files(tmp_path, "train/wave/1.mp4", "train/wave/deep/2.MOV", "train/clap/3.webm", "train/clap/.4.mp4")
    write_files(tmp_path, "validation/wave/5.mp4", "validation/clap/6.avi", "train/wave/notes.txt", "train/7.mp4")
    (tmp_path / "train/wave/deep/back").symlink_to(tmp_path / "train")  # a loop
    data = read_videos(tmp_path)
    assert (data.layout, data.media, data.classes, data.skipped) == ("folders", "videos", ("clap", "wave"), ())
    assert contents(data) == {
        "train": [("clap", "3"), ("wave", "1"), ("wave", "2")],
        "test": [("clap", "6"), ("wave", "5")],
    }
    for video in data.train + data.test:
        assert video.path == tmp_path / video.name and video.sha256 == recording_id(video.path)
        assert (video.start_seconds, video.end_seconds, video.group) == (0.0, None, "")
    assert [(v.label, v.sha256) for v in data.train] == sorted((v.label, v.sha256) for v in data.train)
    assert labels_of(data.train).tolist() == [0, 1, 1]


def test_the_set_is_named_by_content_alone(tmp_path, write_files):
    names = [f"{part}/{c}/{i}{part}{c}.mp4" for part in ("train", "val") for c in ("clap", "wave") for i in range(3)]
    here = read_videos(write_files(tmp_path / "here", *names))
    there = tmp_path / "there"
    for i, name in enumerate(reversed(names)):
        (there / "files").mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "here" / name, there / "files" / f"video number {i}.mp4")
    for part in ("train", "val"):
        lines = [
            f"files/video number {i}.mp4,{name.split('/')[1]}\n"
            for i, name in enumerate(reversed(names))
            if name.startswith(part)
        ]
        (there / f"{part}.csv").write_text("".join(lines))
    listed = read_videos(there)
    assert (listed.layout, listed.hash) == ("list", here.hash)
    (there / "files/video number 3.mp4").write_text("another")
    assert read_videos(there).hash != here.hash


def test_read_labelled_finds_videos_by_itself(tmp_path, write_files, write_pictures):
    write_files(tmp_path / "v", "train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4", "val/b/4.mp4")
    assert read_labelled(tmp_path / "v").media == "videos"
    write_pictures(tmp_path / "p/train", {"a": 2, "b": 2})
    write_pictures(tmp_path / "p/val", {"a": 1, "b": 1}, first=9)
    (tmp_path / "p/train.csv").write_text("a/0.png,a\n")  # a list of pictures is none of videos
    assert read_labelled(tmp_path / "p").media == "pictures"
    write_files(tmp_path / "g", "train/a/1.gif", "train/b/2.mp4")  # as a picture, wherever pictures are
    assert not holds_videos(tmp_path / "g")


def test_class_folders_without_a_split_are_not_split(tmp_path, write_files):
    write_files(tmp_path, "a/1.mp4", "a/2.mp4", "b/3.mp4", "b/4.mp4")
    assert holds_videos(tmp_path)
    with pytest.raises(InputError, match=r"no train/ and val/ folders .* write train.csv and val.csv"):
        read_videos(tmp_path)


# --- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [" ", ",", ", ", "\t"])
def test_lists_with_spaces_and_commas(tmp_path, write_files, separator):
    write_files(tmp_path, "a/my video, 1.mp4", "a/2.mp4", "a/3.mp4", "a/4.mp4")
    (tmp_path / "train.csv").write_text(f"a/my video, 1.mp4{separator}pick up\n\na/2.mp4{separator}put down\n")
    (tmp_path / "val.csv").write_text(f"./a/3.mp4{separator}pick up\n{tmp_path}/a/4.mp4{separator}put down\n")
    data = read_videos(tmp_path)
    assert data.classes == ("pick up", "put down")
    assert contents(data) == {
        "train": [("pick up", "my video, 1"), ("put down", "2")],
        "test": [("pick up", "3"), ("put down", "4")],
    }
    assert {v.name for v in data.test} == {"a/3.mp4", "a/4.mp4"}


def test_numbers_are_classes_in_their_order_and_may_have_names(tmp_path, write_files):
    write_files(tmp_path, *(f"{i}.mp4" for i in range(6)))
    (tmp_path / "train.csv").write_text("path,label\n0.mp4 10\n1.mp4 9\n2.mp4 0\n")
    (tmp_path / "val.csv").write_text("3.mp4 9\n4.mp4 10\n5.mp4 0\n")
    data = read_videos(tmp_path)
    assert data.classes == ("0", "9", "10")
    assert [data.classes[v.label] for v in sorted(data.train, key=lambda v: v.name)] == ["10", "9", "0"]
    assert direction_sensitive(data.classes) == data.classes  # nobody knows what they are

    (tmp_path / "classes.txt").write_text("".join(f"class {chr(97 + i)}\n" for i in range(11)))
    named = read_videos(tmp_path)
    assert named.classes == ("class a", "class j", "class k") and direction_sensitive(named.classes) == ()
    assert [v.label for v in named.train] == [v.label for v in data.train]
    (tmp_path / "classes.txt").write_text("only\ntwo\n")
    with pytest.raises(InputError, match=r"label 10 has no name: .*classes.txt has 2 lines"):
        read_videos(tmp_path)
    (tmp_path / "classes.txt").write_text("same\n" * 11)
    with pytest.raises(InputError, match=r"names 3 classes 'same'"):
        read_videos(tmp_path)


def test_lists_elsewhere_and_lists_given_themselves(tmp_path, write_files):
    videos = write_files(tmp_path / "videos", *(f"{i}.mp4" for i in range(6)))
    lists = tmp_path / "annotations"
    lists.mkdir()
    for name, first in (("train", 0), ("train_10shot", 2)):
        (lists / f"{name}.txt").write_text(f"{videos}/{first}.mp4 a\n../videos/{first + 1}.mp4 b\n")
    for name in ("val", "val_10shot"):
        (lists / f"{name}.txt").write_text(f"{videos}/4.mp4 a\n{videos}/5.mp4 b\n")
    assert contents(read_videos(tmp_path))["train"] == [("a", "0"), ("b", "1")]  # `train` before `train_10shot`
    data = read_videos(lists / "train_10shot.txt")
    assert contents(data)["train"] == [("a", "2"), ("b", "3")] and data.train[0].root == videos
    for name in ("train.txt", "val.txt"):
        (lists / name).unlink()
    (lists / "train_50shot.txt").write_text("x.mp4 a\n")
    with pytest.raises(InputError, match=r"several training lists: train_10shot.txt, train_50shot.txt"):
        read_videos(tmp_path)
    with pytest.raises(InputError, match=r"no list of test videos beside .*train_50shot.txt"):
        read_videos(lists / "train_50shot.txt")


def test_what_is_not_there_is_skipped_and_a_class_without_videos_is_an_error(tmp_path, write_files):
    write_files(tmp_path, "1.mp4", "2.mp4", "3.mp4", "4.mp4")
    (tmp_path / "train.csv").write_text("1.mp4 a\n2.mp4 b\ngone/5.mp4 b\n")
    (tmp_path / "val.csv").write_text("3.mp4 a\n4.mp4 b\n")
    assert read_videos(tmp_path).skipped == (("gone/5.mp4", "not there"),)
    (tmp_path / "4.mp4").unlink()
    with pytest.raises(InputError, match=r"class b of .* has no test video that is there \(1 found by name"):
        read_videos(tmp_path)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("1.mp4 a\nframes/folder 30 a\n", "line 2 of .*train.csv is not a video and its label: 'frames/folder 30 a'"),
        ("1.mp4\n", "line 1 of .*train.csv is not a video and its label"),
        ("1.mp4 a\n2.mp4 a\n", "have 1 class, and"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, write_files, train, message):
    write_files(tmp_path, "1.mp4", "2.mp4", "3.mp4")
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "val.csv").write_text("3.mp4 a\n")
    with pytest.raises(InputError, match=message):
        read_videos(tmp_path / "train.csv")


def test_sources_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"nowhere do not exist"):
        read_videos(tmp_path / "nowhere")
    (tmp_path / "list.pdf").write_text("")
    with pytest.raises(InputError, match=r"list.pdf is no list of videos"):
        read_videos(tmp_path / "list.pdf")


# --- Kinetics --------------------------------------------------------------------------------------------------------

_KINETICS = "label,youtube_id,time_start,time_end,split"


def kinetics(folder: Path, one_file: bool = False) -> None:
    rows = [
        ("dancing, slowly", "-aaa", 5, 15, "train"),
        ("abseiling", "bbb", 0, 10, "train"),
        ("abseiling", "lost", 7, 17, "train"),
        ("abseiling", "ccc", 83, 93, "val"),
        ("dancing, slowly", "d_d", 3, 13, "val"),
    ]
    if one_file:
        write_csv(folder / "kinetics.csv", _KINETICS + ",is_cc", [(*row, 0) for row in rows])
    else:
        write_csv(folder / "train.csv", _KINETICS, [row for row in rows if row[4] == "train"])
        write_csv(folder / "validate.csv", _KINETICS, [row for row in rows if row[4] == "val"])


@pytest.mark.parametrize(("lists", "one_file"), [("", False), ("annotations", False), ("", True)])
def test_kinetics(tmp_path, write_files, lists, one_file):
    kinetics(tmp_path / lists, one_file)
    write_files(tmp_path, "train/dancing slowly/-aaa_000005_000015.mp4", "train/bbb_000000_000010.mkv")
    write_files(tmp_path, "val/abseiling/ccc_000083_000093.mp4", "d_d_000003_000013.mp4", "d_d_000099_000109.mp4")
    data = read_videos(tmp_path / lists / "kinetics.csv" if one_file else tmp_path)
    assert (data.layout, data.classes) == ("kinetics", ("abseiling", "dancing, slowly"))
    assert contents(data) == {
        "train": [("abseiling", "bbb_000000_000010"), ("dancing, slowly", "-aaa_000005_000015")],
        "test": [("abseiling", "ccc_000083_000093"), ("dancing, slowly", "d_d_000003_000013")],
    }
    assert data.skipped == (("lost_000007_000017", "not there"),)
    assert all(v.end_seconds is None and v.sha256 == recording_id(v.path) for v in data.train)
    assert {v.group for v in data.train} == {"-aaa", "bbb"}


def test_whole_recordings_of_kinetics_are_cut_and_clips_are_not(tmp_path):
    rows = [("clap", "long", 5, 8, "train"), ("wave", "long", 1, 4, "train"), ("wave", "clip", 20, 23, "train")]
    write_csv(tmp_path / "train.csv", _KINETICS, rows)
    write_csv(tmp_path / "val.csv", _KINETICS, [("clap", "long", 0, 3, "val"), ("wave", "long", 4, 8, "val")])
    write_video(tmp_path / "long.mp4", 8)
    write_video(tmp_path / "clip.mp4", 3)
    data = read_videos(tmp_path)
    found = {(data.classes[v.label], v.group): (v.start_seconds, v.end_seconds) for v in data.train}
    assert found == {("clap", "long"): (5.0, 8.0), ("wave", "long"): (1.0, 4.0), ("wave", "clip"): (0.0, None)}
    stretches = [v for v in data.train + data.test if v.group == "long"]
    assert len({v.sha256 for v in stretches}) == 4 and all(len(v.sha256) == 16 for v in stretches)
    assert data.leaked == ()


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("youtube_id,time_start,time_end,split", ("x", 0, 10, "test"), "has no column label"),
        (_KINETICS, ("clap", "x", 10, 10, "train"), "line 2 of .* has label 'clap', time_start '10' and time_end '10'"),
        (_KINETICS, ("", "x", 0, 10, "train"), "line 2 of .* has label ''"),
        (_KINETICS, ("clap", "x", "soon", 10, "train"), "time_start 'soon'"),
        (_KINETICS, ("clap", "x", 0, 10, "train"), "none of the 2 videos .* first x_000000_000010"),
    ],
)
def test_kinetics_that_cannot_be_used(tmp_path, header, row, message):
    write_csv(tmp_path / "train.csv", header, [row])
    write_csv(tmp_path / "val.csv", _KINETICS, [("clap", "y", 0, 10, "val")])
    with pytest.raises(InputError, match=message):
        read_videos(tmp_path)


# --- Something-Something ---------------------------------------------------------------------------------------------


def something(folder: Path, prefix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    labels = {"Turning something upside down": "1", "Moving something": "10", "Pushing something left": "2"}
    train = [("7", "Turning [something] upside down"), ("8", "Moving [something]"), ("9", "Pushing [something] left")]
    test = [("4", "Pushing [something] left"), ("5", "Turning [something] upside down"), ("6", "Moving [something]")]
    for part, value in (("labels", labels), ("train", train), ("validation", test), ("test", [("3", "")])):
        if part != "labels":
            value = [{"id": number, "label": "a thing", "template": template} for number, template in value]
        (folder / f"{prefix}{part}.json").write_text(json.dumps(value))


@pytest.mark.parametrize(("lists", "prefix"), [("", "something-something-v2-"), ("labels", "")])
def test_something_something(tmp_path, write_files, lists, prefix):
    something(tmp_path / lists, prefix)
    write_files(tmp_path / "20bn-something-something-v2", *(f"{i}.webm" for i in range(3, 10)))
    data = read_videos(tmp_path)
    assert data.layout == "something-something-v2"
    assert data.classes == ("Turning something upside down", "Pushing something left", "Moving something")  # 1, 2, 10
    assert contents(data) == {
        "train": [(data.classes[2], "8"), (data.classes[1], "9"), (data.classes[0], "7")],
        "test": [(data.classes[2], "6"), (data.classes[1], "4"), (data.classes[0], "5")],
    }
    assert direction_sensitive(data.classes) == ("Pushing something left",)
    assert read_videos(tmp_path / lists / f"{prefix}train.json").hash == data.hash
    (tmp_path / "20bn-something-something-v2/5.webm").unlink()
    with pytest.raises(InputError, match=r"class Turning something upside down .* no test video .* 1 of all classes"):
        read_videos(tmp_path)


def test_something_something_that_cannot_be_used(tmp_path, write_files):
    something(tmp_path, "something-something-v2-")
    with pytest.raises(InputError, match=r"none of the 6 videos .* first 7.webm"):
        read_videos(tmp_path)
    write_files(tmp_path, *(f"{i}.webm" for i in range(3, 10)))
    path = tmp_path / "something-something-v2-train.json"
    path.write_text(json.dumps([{"id": "7", "template": "Eating [something]"}]))
    with pytest.raises(
        InputError, match=r"video 7 of .* has template 'Eating something', which something-something-v2-"
    ):
        read_videos(tmp_path)
    path.write_text("{broken")
    with pytest.raises(InputError, match=r"cannot be understood: JSONDecodeError"):
        read_videos(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"annotations of Something-Something v2 in .* are not complete"):
        read_videos(tmp_path / "something-something-v2-labels.json")


# --- directions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sensitive"),
    [
        ("Pulling something from left to right", True),
        ("turning the camera Left while filming", True),
        ("swipe_left", True),
        ("SwipingRight", True),
        ("moving leftward", True),
        ("left-handed writing", True),
        ("rotating counterclockwise", True),
        ("turning clockwise", True),
        ("12", True),
        ("putting something upright", False),
        ("bright lights", False),
        ("eating leftovers", False),
        ("writing copyright", False),
        ("Moving something up", False),
        ("cleft", False),
        ("run 12", False),
    ],
)
def test_classes_that_a_mirror_would_make_wrong(name, sensitive):
    assert direction_sensitive((name,)) == ((name,) if sensitive else ())
