"""Known sets in their usual layouts, in miniature: classes, sides and labels are what each one's rule says."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from headcam.errors import InputError
from headcam.evaluation.labelled.known import KNOWN, notes, read
from headcam.evaluation.labelled.sets import read_labelled


@pytest.fixture
def write_files() -> Callable[..., Path]:
    """Writes files whose content is their own name; nobody decodes them here."""

    def write(folder: Path, *names: str) -> Path:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"picture {name}")
        return folder

    return write


def sides(data) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(class, file name) of train and of test, sorted."""
    return tuple(sorted((data.classes[p.label], p.path.name) for p in part) for part in (data.train, data.test))


def test_what_is_known_is_said():
    for name, known in KNOWN.items():
        assert known.name == name and known.what and known.layout and known.split
        assert known.expected.keys() <= {"classes", "train", "test", "pictures"}
    assert {name: known.expected.get("classes") for name, known in KNOWN.items()} == {
        "labeled-s": 26,
        "konkle-objects": 240,
        "ecoset": 565,
        "places365": 365,
        "core50": 50,
        "core50-categories": 10,
        "by-child": None,
    }


def test_labeled_s_keeps_recordings_whole(tmp_path, write_files):
    recordings = [f"S_2013{month:02d}11_0900_01" for month in range(1, 9)]
    write_files(
        tmp_path,
        *(f"{name}/{rec}_{i:05d}.jpeg" for name in ("ball", "car") for rec in recordings for i in range(4)),
        "door/S_20130111_0900_01_00001.jpeg",
    )
    data = read("labeled-s", tmp_path)
    assert (data.name, data.classes, data.layout) == ("labeled-s", ("ball", "car"), "half by recording")
    groups = [{p.group for p in part} for part in (data.train, data.test)]
    assert not groups[0] & groups[1] and groups[0] | groups[1] == set(recordings)
    assert Counter(p.label for p in data.test) == {0: 16, 1: 16}
    assert [name for name, _ in data.skipped] == ["door/S_20130111_0900_01_00001.jpeg"]
    assert notes("labeled-s", data) == ("labeled-s is complete with 26 classes, and 2 are here",)
    assert read_labelled(tmp_path, known="labeled-s").hash == data.hash

    moved = tmp_path.parent / "moved"
    shutil.copytree(tmp_path, moved)
    assert read("labeled-s", moved).hash == data.hash


def test_labeled_s_with_a_split_by_frame_is_refused(tmp_path, write_files):
    write_files(tmp_path, "train/ball/1.jpg", "val/ball/2.jpg")
    with pytest.raises(InputError, match="has train/, and this set is split by a rule of its own"):
        read("labeled-s", tmp_path)


def test_labeled_s_of_one_recording_a_class(tmp_path, write_files):
    write_files(tmp_path, *(f"{name}/{name}rec_{i}.jpg" for name in ("ball", "car") for i in range(4)))
    with pytest.raises(InputError, match=r"0 of the 2 classes .* have pictures of two recordings"):
        read("labeled-s", tmp_path)


def test_konkle_halves_each_class_by_name(tmp_path, write_files):
    write_files(tmp_path, *(f"{name}/{i}.jpg" for name, n in (("abacus", 16), ("axe", 17)) for i in range(n)))
    data = read("konkle-objects", tmp_path)
    for name, count in (("abacus", 8), ("axe", 8)):
        files = sorted(
            (path.name for path in (tmp_path / name).iterdir()),
            key=lambda file: hashlib.sha256(f"{name}/{file}".encode()).hexdigest(),
        )
        assert [f for c, f in sides(data)[1] if c == name] == sorted(files[:count])
    assert len(data.train) == 17 and len(data.test) == 16
    assert notes("konkle-objects", data) == ("konkle-objects is complete with 240 classes, and 2 are here",)
    (tmp_path / "lonely").mkdir()
    (tmp_path / "lonely/1.jpg").write_text("x")
    with pytest.raises(InputError, match=r"class lonely .* has one picture"):
        read("konkle-objects", tmp_path)


def test_ecoset_is_tested_on_test(tmp_path, write_files):
    names = ("0001_man", "0002_house")
    write_files(
        tmp_path, *(f"{part}/{name}/{part}{i}.JPEG" for part in ("train", "val") for name in names for i in (1, 2))
    )
    with pytest.raises(InputError, match="has no test/"):
        read("ecoset", tmp_path)
    write_files(tmp_path, *(f"test/{name}/t.JPEG" for name in names))
    data = read("ecoset", tmp_path)
    assert (data.classes, data.titles) == (names, ("man", "house"))
    assert {p.name.split("/")[0] for p in data.train} == {"train"} and {p.path.name for p in data.test} == {"t.JPEG"}
    assert "ecoset is complete with 28,250 test pictures, and 2 are here" in notes("ecoset", data)
    (tmp_path / "test/0002_house/t.JPEG").unlink()
    with pytest.raises(InputError, match=r"1 only in train/ \(0002_house\)"):
        read("ecoset", tmp_path)


def places(folder: Path, write_files) -> None:
    """Three categories as published: train in nested folders, val flat with a list whose order is not the folders'."""
    folder.mkdir()
    (folder / "categories_places365.txt").write_text("/z/zoo 0\n/a/arena/rodeo 1\n/a/attic 2\n")
    train = ("z/zoo/1.jpg", "z/zoo/2.jpg", "a/arena/rodeo/1.jpg", "a/attic/1.jpg")
    write_files(folder, *(f"data_256/{name}" for name in train))
    labels = {1: 2, 2: 0, 3: 1, 4: 0, 5: 2}
    write_files(folder, *(f"val_256/Places365_val_{n:08d}.jpg" for n in labels))
    (folder / "filelist").mkdir()
    lines = [f"Places365_val_{n:08d}.jpg {label}\n" for n, label in labels.items()]
    (folder / "filelist/places365_val.txt").write_text("".join(lines))


def test_places_labels_by_file_name(tmp_path, write_files):
    places(tmp_path / "p", write_files)
    data = read("places365", tmp_path / "p")
    assert data.classes == ("arena-rodeo", "attic", "zoo")
    train, test = sides(data)
    assert train == [("arena-rodeo", "1.jpg"), ("attic", "1.jpg"), ("zoo", "1.jpg"), ("zoo", "2.jpg")]
    numbers = [(name, int(file[14:22])) for name, file in test]
    assert numbers == [("arena-rodeo", 3), ("attic", 1), ("attic", 5), ("zoo", 2), ("zoo", 4)]

    flat = tmp_path / "flat/places365_standard"
    for part, pairs in (("train", data.train), ("val", data.test)):
        for picture in pairs:
            target = flat / part / data.classes[picture.label] / f"x{picture.path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture.path, target)
    again = read("places365", tmp_path / "flat")
    assert again.hash == data.hash and sides(again)[0] == [(c, f"x{f}") for c, f in train]


def test_places_that_do_not_match(tmp_path, write_files):
    root = tmp_path / "p"
    places(root, write_files)
    (root / "val_256/Places365_val_00000001.jpg").unlink()
    data = read("places365", root)
    assert data.skipped == (("Places365_val_00000001.jpg", "not there"),)
    assert [(name, int(file[14:22])) for name, file in sides(data)[1]] == [
        ("arena-rodeo", 3),
        ("attic", 5),
        ("zoo", 2),
        ("zoo", 4),
    ]
    write_files(root, "val_256/Places365_val_00000009.jpg")
    with pytest.raises(InputError, match=r"places365_val.txt gives val_256/Places365_val_00000009.jpg no category"):
        read("places365", root)
    (root / "val_256/Places365_val_00000009.jpg").unlink()
    write_files(root, "data_256/q/quay/1.jpg")
    with pytest.raises(InputError, match=r"data_256/q/quay/1.jpg is in no folder of a category"):
        read("places365", root)
    (root / "categories_places365.txt").write_text("/z/zoo\n")
    with pytest.raises(InputError, match=r"line 1 of .* is not a name and a number"):
        read("places365", root)
    (root / "categories_places365.txt").unlink()
    with pytest.raises(InputError, match=r"has no categories_places365.txt"):
        read("places365", root)
    shutil.rmtree(root / "val_256")
    with pytest.raises(InputError, match="has no validation pictures"):
        read("places365", root)


def test_core50_by_session_as_objects_and_as_categories(tmp_path, write_files):
    names = [
        f"s{s}/o{o}/C_{s:02d}_{o:02d}_{f:03d}.png" for s in range(1, 12) for o in (2, 5, 6, 10, 50) for f in (0, 1)
    ]
    write_files(tmp_path / "core50_128x128", *names, "bbox/extra.png")
    data = read("core50", tmp_path)
    assert data.classes == ("o2", "o5", "o6", "o10", "o50")
    assert data.titles == (
        "plug adapters 2",
        "plug adapters 5",
        "mobile phones 1",
        "mobile phones 5",
        "remote controls 5",
    )
    assert {p.group for p in data.test} == {"s3", "s7", "s10"} and len(data.test) == 30
    assert {p.group for p in data.train} == {f"s{s}" for s in (1, 2, 4, 5, 6, 8, 9, 11)} and len(data.train) == 80
    assert all(f"/{data.classes[p.label]}/" in p.name for p in data.train + data.test)
    assert data.skipped == (("core50_128x128/bbox/extra.png", "it is not in a folder s1/o1 to s11/o50"),)

    kinds = read("core50-categories", tmp_path)
    assert kinds.classes == ("plug adapters", "mobile phones", "remote controls")
    assert Counter(p.label for p in kinds.test) == {0: 12, 1: 12, 2: 6}
    shutil.rmtree(tmp_path / "core50_128x128/s3")
    shutil.rmtree(tmp_path / "core50_128x128/s7")
    shutil.rmtree(tmp_path / "core50_128x128/s10")
    with pytest.raises(InputError, match="has no pictures of test sessions"):
        read("core50", tmp_path)


def test_from_child_to_child(tmp_path, write_files):
    names = [f"{child}/{name}/{i}.jpg" for child in "SAY" for name in ("ball", "car") for i in range(3)]
    write_files(tmp_path / "kids", *names, "S/door/1.jpg")
    data = read("by-child", tmp_path / "kids", train=("S", "Y"), test=("A",))
    assert (data.name, data.classes, data.layout) == ("by-child-S+Y-to-A", ("ball", "car"), "by child")
    assert Counter(p.group for p in data.train) == {"S": 6, "Y": 6} and {p.group for p in data.test} == {"A"}
    assert data.skipped == (("S/door/1.jpg", "class door is left out: S+Y and A do not both have it"),)

    flat = tmp_path / "flat"
    lines = ["name,group\n"]
    for name in names:
        child, kind, file = name.split("/")
        (flat / kind).mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "kids" / name, flat / kind / f"{child}{file}")
        lines.append(f"{kind}/{child}{file},{child}\n")
    (flat / "groups.csv").write_text("".join(lines))
    write_files(flat, "ball/stray.jpg")
    listed = read("by-child", flat, train=("Y", "S"), test=("A",))
    assert listed.hash == data.hash and listed.skipped == (("ball/stray.jpg", "groups.csv does not name it"),)


@pytest.mark.parametrize(
    ("name", "choice", "message"),
    [
        ("cifar", {}, "labelled set 'cifar' is not known. Fix: use one of labeled-s, konkle-objects"),
        ("by-child", {}, "by-child was given no children. Fix: name the children"),
        ("by-child", {"train": ("S",), "test": ("A",)}, "holds no pictures in folders of children and classes"),
        ("ecoset", {"train": ("S",)}, "ecoset was given train. Fix: leave that out"),
        ("core50", {}, "no pictures of training sessions"),
        ("konkle-objects", {}, "no pictures in class folders"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, choice, message):
    with pytest.raises(InputError, match=message):
        read(name, tmp_path, **choice)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        InputError, match=r"folder .*nowhere of ecoset does not exist. Fix: give the folder that holds train"
    ):
        read("ecoset", tmp_path / "nowhere")
