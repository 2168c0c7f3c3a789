"""Copies across parts, labels that contradict each other, and pictures that cannot be read: found, counted, named."""

from pathlib import Path

import pytest

from headcam.errors import InputError
from headcam.evaluation.labelled.faults import (
    Contradiction,
    check_readable,
    contradictions,
    cross_duplicates,
)
from headcam.evaluation.labelled.sets import LabelledSet, Picture, read_labelled

_SHARED = Path(__file__).parents[3].parent / "shared/data/labelled/tiny_imagenet_50"


def set_of(train: list[tuple[str, int]], test: list[tuple[str, int]]) -> LabelledSet:
    """A set of (content, label); names are part, place and content."""
    parts = [
        tuple(Picture(Path("root"), f"{part}/{i}{content}", label, content) for i, (content, label) in enumerate(items))
        for part, items in (("train", train), ("test", test))
    ]
    return LabelledSet("set", ("ant", "bee", "cow"), *parts, "folders", ())


def test_copies_across_parts_say_whether_labels_agree():
    data = set_of([("x", 0), ("y", 0), ("x", 1), ("z", 2), ("z", 2)], [("x", 1), ("y", 2), ("w", 0), ("z", 2)])
    assert cross_duplicates(data) == (
        ("test/0x", "train/2x", True),
        ("test/1y", "train/1y", False),
        ("test/3z", "train/3z", True),
    )
    assert cross_duplicates(set_of([("x", 0)], [("y", 0)])) == ()


def test_one_content_under_several_labels():
    data = set_of([("x", 0), ("y", 0), ("x", 1), ("z", 2), ("z", 2)], [("y", 2), ("z", 2), ("x", 0)])
    assert contradictions(data) == (
        Contradiction(("train/0x", "train/2x", "test/2x"), ("ant", "bee", "ant")),
        Contradiction(("train/1y", "test/0y"), ("ant", "cow")),
    )


@pytest.mark.parametrize(
    ("count", "total", "stops"),
    [
        (0, 0, False),
        (9, 100, False),
        (10, 1000, False),
        (11, 1000, True),
        (10, 999, True),
        (3, 3, True),
        (9, 10, False),
    ],
)
def test_the_share_that_is_passed_over(count, total, stops):
    unreadable = [(f"{i}.jpg", "truncated") for i in range(count)]
    if not stops:
        check_readable(unreadable, total, "pictures")
        return
    with pytest.raises(InputError, match=rf"^{count} of the {total} pictures cannot be read, .*0.jpg \(truncated\)"):
        check_readable(unreadable, total, "pictures")


def test_only_the_first_three_are_named():
    with pytest.raises(InputError, match=r"100.0%, and 1.0% are passed over: 0 \(x\), 1 \(x\), 2 \(x\), \.\.\.\. Fix"):
        check_readable([(str(i), "x") for i in range(20)], 20, "pictures")


@pytest.mark.shared
@pytest.mark.skipif(not _SHARED.is_dir(), reason="shared data is not here: labelled/tiny_imagenet_50")
def test_tiny_imagenet_has_one_pair_of_two_minds_and_no_leak():
    data = read_labelled(_SHARED)
    pair = {
        "train/n01774384/n01774384_282.JPEG": "n01774384",
        "train/n04275548/n04275548_454.JPEG": "n04275548",
    }
    (found,) = contradictions(data)
    assert dict(zip(found.names, found.classes)) == pair
    assert cross_duplicates(data) == ()
