"""Splits that keep groups whole: near-copies stay on one side, children are kept apart, what is left out is named."""

import hashlib
from pathlib import Path

import pytest

from headcam.errors import InputError
from headcam.evaluation.labelled.groups import by_group, half_by_group, read_groups, with_recordings
from headcam.evaluation.labelled.listing import Item
from headcam.evaluation.labelled.sets import LabelledSet, Picture


def items(name: str, counts: dict[str, int]) -> list[Item]:
    """`count` frames of each recording, in a class."""
    return [Item(f"{name}/{group}_{i:05d}.jpg", group=group) for group, count in counts.items() for i in range(count)]


def test_recordings_stay_whole_and_classes_are_halved():
    by_class = {
        "ball": items("ball", {f"rec{i:02d}": 5 + i % 3 for i in range(12)}),
        "car": items("car", {f"rec{i:02d}": 4 for i in range(6, 18)}),
        "door": items("door", {"rec01": 9, "rec20": 9}),
    }
    train, test, skipped = half_by_group(by_class)
    sides = [{item.group for part in side.values() for item in part} for side in (train, test)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == {
        item.group for part in by_class.values() for item in part
    }
    for name, part in by_class.items():
        assert sorted(train[name] + test[name]) == sorted(part)
        assert 0.3 <= len(test[name]) / len(part) <= 0.7
    assert skipped == []
    shuffled = {name: by_class[name][::-1] for name in reversed(by_class)}
    assert [{n: sorted(p) for n, p in part.items()} for part in half_by_group(shuffled)[:2]] == [
        {n: sorted(p) for n, p in part.items()} for part in (train, test)
    ]


def test_of_two_recordings_that_of_the_smaller_hash_is_for_training():
    by_class = {
        "ball": items("ball", {"monday": 3, "tuesday": 3}),
        "car": items("car", {"monday": 1, "tuesday": 1, "z": 5}),
    }
    train, test, _ = half_by_group(by_class)
    first, second = sorted(("monday", "tuesday"), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert {item.group for item in train["ball"]} == {first} and {item.group for item in test["ball"]} == {second}
    assert len(train["car"]) == 6 and len(test["car"]) == 1  # sides that are taken stay; of as many, to training


def test_a_class_of_one_recording_is_left_out_and_named():
    by_class = {"ball": items("ball", {"a": 2, "b": 2}), "cat": items("cat", {"a": 1}), "dog": items("dog", {"x": 2})}
    train, test, skipped = half_by_group(by_class)
    assert list(train) == list(test) == ["ball"]
    assert [name for name, _ in skipped] == ["cat/a_00000.jpg", "dog/x_00000.jpg", "dog/x_00001.jpg"]
    assert {reason for _, reason in skipped} == {
        "class cat is left out: all its recordings fall on one side",
        "class dog is left out: all its recordings fall on one side",
    }


@pytest.mark.parametrize(
    ("file", "recording"),
    [
        ("S_20130517_0607_01_000042.jpg", "S_20130517_0607_01"),
        ("S_20130517_0607_01_frame_42.jpg", "S_20130517_0607_01"),
        ("S_20130517_0607_01-frame42.JPEG", "S_20130517_0607_01"),
        ("visit 3 img 0007.png", "visit 3"),
        ("V1.f12.jpg", "V1"),
        ("monday/12.jpg", "monday"),
        ("monday/morning/x.jpg", "monday/morning"),
    ],
)
def test_recordings_by_name(tmp_path, file, recording):
    by_class = {"ball": [Item(f"ball/{file}"), Item("ball/other_01.jpg"), Item("ball/other_02.jpg")] * 2}
    assert with_recordings(tmp_path, by_class)["ball"][0].group == recording


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1.jpg", "a/x_2.jpg", "b/3.jpg"], "the recording of 2 pictures cannot be told, first a/1.jpg"),
        (["a/x_1.jpg", "a/x_2.jpg", "b/x_3.jpg"], "the 3 pictures of .* are of 1 recordings, such as 'x'"),
        (["a/1_x_1.jpg", "a/2_x_1.jpg", "b/3_x_1.jpg"], "the 3 pictures of .* are of 3 recordings"),
    ],
)
def test_names_that_tell_no_recordings_ask_for_a_table(tmp_path, names, message):
    by_class: dict = {}
    for name in names:
        by_class.setdefault(name[0], []).append(Item(name))
    with pytest.raises(InputError, match=rf"{message}.*write .*groups.csv with the columns name,group"):
        with_recordings(tmp_path, by_class)
    (tmp_path / "groups.csv").write_text(
        "name,group\n" + "".join(f"{Path(n).name},g{i}\n" for i, n in enumerate(names))
    )
    groups = [item.group for part in with_recordings(tmp_path, by_class).values() for item in part]
    assert groups == ["g0", "g1", "g2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,recording\na,b\n", "no columns name and group"),
        ("name,group\na.jpg,x\na.jpg,y\n", "gives a.jpg the groups 'x' and 'y'"),
        ("name,group\na.jpg,\n", "gives a.jpg the groups '' and ''"),
    ],
)
def test_tables_of_groups_that_cannot_be_used(tmp_path, text, message):
    assert read_groups(tmp_path) is None
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_groups(tmp_path)


@pytest.fixture
def children() -> LabelledSet:
    """Children S, A and Y; only S has cows, only A and Y have dogs. Two bytes of each picture, for the order."""
    rows = [
        ("S", "ant"),
        ("S", "bee"),
        ("S", "cow"),
        ("A", "ant"),
        ("A", "bee"),
        ("A", "dog"),
        ("Y", "bee"),
        ("Y", "dog"),
    ]
    classes = ("ant", "bee", "cow", "dog")
    pictures = [
        Picture(
            Path("root"), f"{child}/{name}/{i}.jpg", classes.index(name), f"{(7 * i + len(child)) % 10}", group=child
        )
        for child, name in rows
        for i in range(2)
    ]
    return LabelledSet(
        "toys", classes, tuple(pictures[::2]), tuple(pictures[1::2]), "folders", (), ("a", "b", "c", "d")
    )


def test_from_one_child_to_another(children):
    data = by_group(children, ["S"], ["A"])
    assert (data.name, data.classes, data.titles) == ("toys-S-to-A", ("ant", "bee"), ("a", "b"))
    for part, child in ((data.train, "S"), (data.test, "A")):
        assert [p.label for p in part] == [0, 0, 1, 1] and {p.group for p in part} == {child}
        assert [(p.label, p.sha256) for p in part] == sorted((p.label, p.sha256) for p in part)
        assert all(p.name.split("/")[1] == data.classes[p.label] for p in part)
    assert sorted(data.skipped) == [
        (f"{child}/{name}/{i}.jpg", f"class {name} is left out: S and A do not both have it")
        for child, name in (("A", "dog"), ("S", "cow"))
        for i in range(2)
    ]


def test_several_children_and_new_numbers_of_classes(children):
    data = by_group(children, {"Y"}, {"S", "A"})
    assert (data.name, data.classes) == ("toys-Y-to-A+S", ("bee", "dog"))
    assert {p.name.split("/")[1]: p.label for p in data.train + data.test} == {"bee": 0, "dog": 1}
    assert len(data.train) == 4 and len(data.test) == 6


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([], ["S"], "training on nothing and testing on S is no split"),
        (["S"], ["S", "A"], r"training on S and testing on A\+S is no split .* groups are A, S, Y"),
        (["S"], ["T"], "no picture is of group 'T'. Fix: groups are A, S, Y"),
        (["S"], ["Y"], "S and Y have 1 classes in common"),
    ],
)
def test_children_that_cannot_be_set_against_each_other(children, train, test, message):
    with pytest.raises(InputError, match=message.replace("split .* groups", "split.*groups")):
        by_group(children, train, test)
