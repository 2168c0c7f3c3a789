"""Labelled folders: both layouts, splits that follow from content and names alone, and errors that say what to do."""

import hashlib
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from headcam.errors import InputError
from headcam.evaluation.labelled.sets import Picture, groups_of, labels_of, read_labelled, selection_mask
from headcam.files import sha256_json


def test_given_split(tmp_path, write_pictures):
    write_pictures(tmp_path / "train", {"b": 4, "a": 3})
    write_pictures(tmp_path / "val", {"b": 2, "a": 1}, first=50)
    data = read_labelled(tmp_path)
    assert (data.layout, data.classes) == ("folders", ("a", "b"))
    assert np.bincount(labels_of(data.train)).tolist() == [3, 4]
    assert np.bincount(labels_of(data.test)).tolist() == [1, 2]
    assert all(p.name.startswith(f"train/{data.classes[p.label]}/") for p in data.train)
    assert all(p.sha256 == hashlib.sha256(p.path.read_bytes()).hexdigest() for p in data.train + data.test)


def test_split_by_name(tmp_path, write_pictures):
    write_pictures(tmp_path, {"a": 20, "b": 3})
    data = read_labelled(tmp_path)
    assert data.layout == "hash"
    for name, count in (("a", 4), ("b", 1)):  # a fifth, at least one
        files = [f"{name}/{p.name}" for p in (tmp_path / name).iterdir()]
        smallest = sorted(files, key=lambda file: hashlib.sha256(file.encode()).hexdigest())[:count]
        assert {p.name for p in data.test if p.name.startswith(f"{name}/")} == set(smallest)
    assert len(data.train) + len(data.test) == 23
    assert not {p.name for p in data.train} & {p.name for p in data.test}


def test_hash_is_of_content_and_split_only(tmp_path, write_pictures):
    one = tmp_path / "one"
    write_pictures(one / "train", {"a": 4, "b": 4})
    write_pictures(one / "val", {"a": 2, "b": 2}, first=50)
    other = tmp_path / "elsewhere"
    shutil.copytree(one, other)
    for path in list(other.rglob("*.png")):  # other names, other order, another layout below the class
        renamed = path.parent / "deeper" / f"{99 - int(path.stem)}.PNG"
        renamed.parent.mkdir(exist_ok=True)
        path.rename(renamed)
    (other / "val").rename(other / "test")
    first, second = read_labelled(one), read_labelled(other)
    assert first.hash == second.hash
    assert [p.sha256 for p in first.train] == [p.sha256 for p in second.train]
    assert second.identity == f"elsewhere@{first.hash[:16]}"

    (other / "train/a/deeper/99.PNG").unlink()
    assert read_labelled(other).hash != first.hash


def test_files_that_are_no_pictures_are_not_looked_at(tmp_path, write_pictures):
    write_pictures(tmp_path, {"a": 5, "b": 5})
    before = read_labelled(tmp_path).hash
    for name in ("README.md", "a/words.csv", "a/._0.png", ".hidden/x.png", "empty/readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no picture")
    assert read_labelled(tmp_path).hash == before


def test_copies_between_train_and_test_are_found(tmp_path, write_pictures):
    write_pictures(tmp_path / "train", {"a": 3, "b": 3})
    write_pictures(tmp_path / "val", {"a": 2, "b": 2}, first=50)
    assert read_labelled(tmp_path).leaked == ()
    shutil.copy(tmp_path / "train/a/0.png", tmp_path / "val/b/copy.png")
    assert read_labelled(tmp_path).leaked == ("val/b/copy.png",)


def test_a_file_that_is_gone_is_skipped_by_name(tmp_path, write_pictures):
    write_pictures(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert read_labelled(tmp_path).skipped == (("a/gone.jpg", "No such file or directory"),)


def test_selection_is_a_fifth_of_each_class_and_fixed():
    labels = np.repeat([0, 1, 2, 3], [20, 5, 3, 1])
    mask = selection_mask(labels)
    assert np.bincount(labels[mask], minlength=4).tolist() == [4, 1, 1, 0]
    with pytest.raises(InputError, match="one training picture"):
        selection_mask(np.arange(3))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "no pictures in class folders"),
        ({"only": 5}, "one class only, 'only'"),
        ({"a": 5, "lonely": 1}, "class lonely of .* has one picture"),
        ({"train/a": 2, "train/b": 2}, "neither val/ nor test/"),
        ({"train/a": 2, "val/a": 2}, "one class only, 'a'"),
        (
            {"train/a": 2, "train/b": 2, "train/c": 2, "val/b": 2, "val/d": 1},
            r"differ: 2 only in train/ \(a, c\); 1 only in val/ \(d\)",
        ),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, write_pictures, classes, message):
    write_pictures(tmp_path, classes)
    with pytest.raises(InputError, match=message) as caught:
        read_labelled(tmp_path)
    assert str(tmp_path) in str(caught.value) and "Fix: " in str(caught.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        read_labelled(tmp_path / "nowhere")


def test_hash_is_of_the_canonical_json(tmp_path, write_pictures):
    write_pictures(tmp_path / "train", {'quo"te': 3, "ü": 3})
    write_pictures(tmp_path / "val", {'quo"te': 2, "ü": 1}, first=50)
    data = read_labelled(tmp_path)
    parts = {"train": data.train, "test": data.test}
    expected = {part: [[data.classes[p.label], p.sha256] for p in pictures] for part, pictures in parts.items()}
    assert data.hash == sha256_json(expected)


def test_odd_files_and_folders(tmp_path, write_pictures):
    write_pictures(tmp_path, {"a": 5, "it's a class": 5})
    first = read_labelled(tmp_path)
    (tmp_path / "a/0.png").rename(tmp_path / "a/it's (1) [x] 0.PNG")
    (tmp_path / "a/zero.jpg").touch()
    (tmp_path / "a/.ipynb_checkpoints").mkdir()
    (tmp_path / "a/.ipynb_checkpoints/1.png").touch()
    (tmp_path / "a/loop").symlink_to(tmp_path / "a", target_is_directory=True)
    elsewhere = tmp_path.parent / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "it's a class/0.png").rename(elsewhere / "0.png")
    (tmp_path / "it's a class/linked").symlink_to(elsewhere, target_is_directory=True)
    (tmp_path / "a/latin").mkdir()
    (tmp_path / os.fsdecode(b"a/latin/\xe9.png")).write_bytes(b"?")
    data = read_labelled(tmp_path)
    assert data.skipped == (("a/latin/\\xe9.png", "its name is not UTF-8"),)
    contents = {p.sha256 for p in data.train + data.test}
    assert contents == {p.sha256 for p in first.train + first.test} | {hashlib.sha256().hexdigest()}
    assert len(data.train + data.test) == 11


def test_remembered_hashes_change_nothing(tmp_path, write_pictures):
    write_pictures(tmp_path / "set", {"a": 5, "b": 5})
    plain = read_labelled(tmp_path / "set")
    assert read_labelled(tmp_path / "set", hashes=tmp_path / "h.parquet") == plain
    assert read_labelled(tmp_path / "set", hashes=tmp_path / "h.parquet") == plain


def test_a_picture_is_small_and_travels(tmp_path, write_pictures):
    write_pictures(tmp_path, {"a": 5, "b": 5})
    picture = read_labelled(tmp_path).train[0]
    assert not hasattr(picture, "__dict__") and pickle.loads(pickle.dumps(picture)) == picture
    with picture.open() as file:
        assert hashlib.sha256(file.read()).hexdigest() == picture.sha256


def test_whole_recordings_are_set_aside_where_they_are_known():
    labels = np.repeat([0, 1], 12)
    groups = [f"recording {k % 4}" for k in range(24)]
    mask = selection_mask(labels, groups)
    for label in (0, 1):
        inside = {g for g, m, own in zip(groups, mask, labels) if m and own == label}
        outside = {g for g, m, own in zip(groups, mask, labels) if not m and own == label}
        assert inside and outside and not inside & outside
        assert mask[labels == label].sum() == 3  # one of four recordings: the first that makes a fifth of twelve
    alone = ["the same"] * 24
    assert np.array_equal(selection_mask(labels, alone), selection_mask(labels))  # nothing better to be had


def test_groups_count_only_where_all_are_known():
    known = Picture(Path("x"), "a.png", 0, "0", group="monday")
    assert groups_of([known, known]) == ["monday", "monday"]
    assert groups_of([known, Picture(Path("x"), "b.png", 0, "1")]) is None
