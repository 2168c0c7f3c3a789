"""Few-shot lists: they follow from names alone, nest, are equal in every process, and fail where labels are too few."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from headcam.errors import InputError
from headcam.evaluation.labelled.draws import draw, read_list, write_list
from headcam.evaluation.labelled.sets import LabelledSet, Picture, read_labelled
from headcam.evaluation.protocols import Labels

_ROOT = Path("somewhere")


def fake_set(counts: dict[str, int], prefix: str = "train") -> LabelledSet:
    """A set of pictures that nobody has to open; rows in the order of their content, as in real ones."""
    classes = tuple(sorted(counts))
    train = []
    for label, name in enumerate(classes):
        for i in range(counts[name]):
            sha256 = hashlib.sha256(f"{name} {i}".encode()).hexdigest()
            train.append(Picture(_ROOT, f"{prefix}/{name}/{i}.jpg", label, sha256))
    train.sort(key=lambda p: (p.label, p.sha256))
    return LabelledSet("fake", classes, tuple(train), (), "folders", ())


def names(data: LabelledSet, drawn) -> set[str]:
    return {data.train[row].name for row in drawn.rows}


def by_hand(data: LabelledSet, number: int) -> list[tuple[str, str, str]]:
    """(key, class, name) of all pictures, by the rule as it is written in the documentation."""
    keyed = []
    for p in data.train:
        name = data.classes[p.label]
        key = hashlib.sha256(f"{number}/{name}/{Path(p.name).name}".encode()).hexdigest()
        keyed.append((key, name, p.name))
    return sorted(keyed)


def test_so_many_of_each_class_by_the_rule_as_written():
    data = fake_set({"ant": 30, "bee": 12, "cow": 20})
    for number in (0, 3):
        drawn = draw(data, Labels(per_class=10), number)
        want = {c: [name for _, other, name in by_hand(data, number) if other == c][:10] for c in data.classes}
        assert names(data, drawn) == {name for part in want.values() for name in part}
        assert drawn.number == number and drawn.rows.dtype == np.int64 and (np.diff(drawn.rows) > 0).all()


def test_a_fraction_takes_classes_as_they_come():
    data = fake_set({"ant": 300, "bee": 30})
    drawn = draw(data, Labels(fraction=0.1), 1)
    assert names(data, drawn) == {name for _, _, name in by_hand(data, 1)[:33]}
    counts = Counter(data.train[row].label for row in drawn.rows)
    assert counts[0] > 22 and counts[1] < 11  # near 30 and 3: by size, not by class


@pytest.mark.parametrize(("fraction", "n", "count"), [(0.010147, 1_281_167, 13_000), (0.02, 1_281_167, 25_623)])
def test_fractions_count_as_the_originals_do(fraction, n, count):
    from headcam.evaluation.labelled import draws

    assert draws._fraction_of(fraction, n) == count
    data = fake_set({"ant": 700, "bee": 300})  # the same arithmetic, through the front door
    assert len(draw(data, Labels(fraction=fraction), 0).rows) == int(fraction * 1000)


def test_lists_of_a_draw_nest_and_draws_differ():
    data = fake_set({"ant": 40, "bee": 40})
    sizes = (2, 5, 10, 40)
    shots = [names(data, draw(data, Labels(per_class=size), 4)) for size in sizes]
    assert all(small < large for small, large in pairwise(shots))
    shares = [names(data, draw(data, Labels(fraction=f), 4)) for f in (0.05, 0.3, 1.0)]
    assert all(small < large for small, large in pairwise(shares))
    lists = {draw(data, Labels(per_class=10), number).list_hash for number in range(10)}
    assert len(lists) == 10


def test_all_labels_are_all_rows_in_every_draw():
    data = fake_set({"ant": 4, "bee": 3})
    assert draw(data, Labels(), 0).rows.tolist() == draw(data, Labels(), 9).rows.tolist() == list(range(7))


def test_pictures_that_cannot_be_used_make_way_for_the_next():
    data = fake_set({"ant": 30, "bee": 30})
    first = draw(data, Labels(per_class=5), 0)
    allowed = np.delete(np.arange(60), first.rows[0])
    second = draw(data, Labels(per_class=5), 0, allowed)
    assert first.rows[0] not in second.rows and len(set(first.rows) - set(second.rows)) == 1
    assert len(draw(data, Labels(fraction=0.5), 0, allowed).rows) == 30  # of all 60, not of 59
    assert draw(data, Labels(), 0, allowed).rows.tolist() == allowed.tolist()


def test_the_list_does_not_depend_on_folders_order_or_content():
    here = fake_set({"ant": 20, "bee": 20})
    moved = [Picture(Path("other"), f"deep/down/{p.name}", p.label, p.sha256[::-1]) for p in here.train]
    there = LabelledSet("copy", here.classes, tuple(moved[::-1]), (), "shards", ())
    for labels in (Labels(per_class=7), Labels(fraction=0.4)):
        one, other = draw(here, labels, 2), draw(there, labels, 2)
        assert one.list_hash == other.list_hash
        assert {Path(name).name for name in names(here, one)} == {Path(name).name for name in names(there, other)}


_PROGRAM = """
import sys
from headcam.evaluation.labelled.draws import draw
from headcam.evaluation.labelled.sets import read_labelled
from headcam.evaluation.protocols import Labels
data = read_labelled(sys.argv[1])
for labels in (Labels(per_class=3), Labels(fraction=0.4)):
    drawn = draw(data, labels, 5)
    print(drawn.list_hash, *(data.train[row].name for row in drawn.rows))
"""


def test_two_processes_on_two_copies_draw_the_same(tmp_path, write_pictures):
    one, other = tmp_path / "one", tmp_path / "other place"
    for part, first in (("train", 0), ("val", 50)):
        write_pictures(one / part, {"a": 8, "b": 6}, first=first)
    for path in sorted(one.rglob("*.png"), reverse=True):  # written in another order
        copy = other / path.relative_to(one)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    said = [
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(folder)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for folder, seed in ((one, "1"), (other, "2"))
    ]
    assert said[0] == said[1] and len(said[0].splitlines()) == 2


def test_videos_and_their_stretches_are_drawn_alike():
    from headcam.evaluation.labelled.videos import Video

    videos = [Video(_ROOT, f"train/a/{i // 2}.mp4", 0, f"{i:016x}", start_seconds=10.0 * (i % 2)) for i in range(8)]
    data = LabelledSet("clips", ("a",), tuple(videos), (), "list", ())
    rows = draw(data, Labels(per_class=5), 0).rows.tolist()
    assert sum(row % 2 == 0 for row in rows) == 3  # of two stretches of a file, the first comes first
    assert {row // 2 for row in rows} == {int(Path(name).stem) for _, _, name in by_hand(data, 0)[:5]}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            Labels(per_class=6),
            r"class ant of fake has 5 .* and 6 are needed \(of 3 classes that have too few, the first\)",
        ),
        (Labels(per_class=5), "class bee of fake has 4 training pictures that can be used, and 5 are needed. Fix"),
        (Labels(per_class=0), "0 of each class"),
        (Labels(per_class=2, fraction=0.5), "2 of each class and for a fraction of 0.5"),
        (Labels(fraction=0.0), "a fraction of 0.0 of 14 pictures is no share"),
        (Labels(fraction=1.5), "no share"),
        (Labels(fraction=0.05), "a fraction of 0.05 of 14 pictures is less than one"),
    ],
)
def test_labels_that_cannot_be_had(labels, message):
    with pytest.raises(InputError, match=message):
        draw(fake_set({"ant": 5, "bee": 4, "cow": 5}), labels, 0)


def test_too_few_that_can_be_read():
    data = fake_set({"ant": 5, "bee": 5})
    with pytest.raises(InputError, match="8 labelled pictures are wanted, and 7 of fake can be used"):
        draw(data, Labels(fraction=0.8), 0, np.arange(7))
    with pytest.raises(InputError, match=r"class bee of fake has 2 .* and 3 are needed"):
        draw(data, Labels(per_class=3), 0, np.arange(7))


def test_a_list_goes_out_and_comes_back(tmp_path):
    data = fake_set({"ant": 9, "bee": 9})
    drawn = draw(data, Labels(per_class=4), 6)
    path = tmp_path / "list.txt"
    write_list(path, data, drawn)
    first, _, rest = path.read_text().partition("\n")
    assert first.startswith("# first by SHA-256 of draw, class and file name; draw 6; 8 of fake@")
    assert hashlib.sha256(rest.encode()).hexdigest() == drawn.list_hash and first.endswith(drawn.list_hash)
    back = read_list(path, fake_set({"ant": 9, "bee": 9}, prefix="elsewhere"))
    assert back.list_hash == drawn.list_hash and back.rows.tolist() == drawn.rows.tolist()

    slashed = fake_set({"home/attic": 9, "home": 9})
    drawn = draw(slashed, Labels(per_class=2), 0)
    write_list(path, slashed, drawn)
    assert read_list(path, slashed).rows.tolist() == drawn.rows.tolist()


def test_published_lists_of_file_names(tmp_path, write_pictures):
    write_pictures(tmp_path / "set/train", {"a": 4}, first=0)
    write_pictures(tmp_path / "set/train", {"b": 4}, first=10)
    write_pictures(tmp_path / "set/val", {"a": 1, "b": 1}, first=50)
    data = read_labelled(tmp_path / "set")
    path = tmp_path / "1percent.txt"
    path.write_text("11.png\n\n2.png\n# a remark\n13.png\n")
    assert sorted(Path(name).name for name in names(data, read_list(path, data))) == ["11.png", "13.png", "2.png"]
    path.write_text("data/train/a/2.png\nb/13.png\n")
    assert names(data, read_list(path, data)) == {"train/a/2.png", "train/b/13.png"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0.jpg\nx.jpg\ny.jpg\n",
            "2 of the 3 pictures of .*list.txt are not in the training part of fake, first x.jpg",
        ),
        ("ant/0.jpg\nbee/0.jpg\n", "1 of the 2 .* first bee/0.jpg"),
        ("1.jpg\n0.jpg\n1.jpg\n", "lists 1.jpg 2 times"),
        ("# nothing\n", "is empty"),
        (None, "list.txt does not exist"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, text, message):
    train = [
        Picture(_ROOT, f"train/{c}/{n}.jpg", i, f"{n}") for i, c, n in ((0, "ant", 0), (0, "ant", 1), (1, "bee", 2))
    ]
    data = LabelledSet("fake", ("ant", "bee"), tuple(train), (), "folders", ())
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_list(tmp_path / "list.txt", data)


def test_namesakes_cannot_be_listed_by_name(tmp_path):
    data = fake_set({"ant": 3, "bee": 3})
    (tmp_path / "list.txt").write_text("0.jpg\n")
    with pytest.raises(InputError, match=r"two training pictures called 0.jpg: .* or list pictures as class/file"):
        read_list(tmp_path / "list.txt", data)
    twice = [Picture(_ROOT, f"train/ant/{day}/0.jpg", 0, day) for day in ("monday", "tuesday")]
    torn = LabelledSet("torn", ("ant",), tuple(twice), (), "folders", ())
    with pytest.raises(InputError, match=r"called ant/0.jpg: train/ant/monday/0.jpg and train/ant/tuesday/0.jpg"):
        write_list(tmp_path / "out.txt", torn, draw(torn, Labels(per_class=1), 0))
    assert not (tmp_path / "out.txt").exists()
