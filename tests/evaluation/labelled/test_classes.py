"""The 1,000 classes of ImageNet: their order, and names that are never keys."""

import csv
from pathlib import Path

import pytest

from headcam.evaluation.labelled.classes import imagenet_classes, titles

SHARED = Path(__file__).resolve().parents[3].parent / "shared/data/labelled/imagenet_one_each"


def test_standard_order():
    known = imagenet_classes()
    assert [k.index for k in known] == list(range(1000))
    assert [k.wnid for k in known] == sorted({k.wnid for k in known})
    assert known[0].names == ("tench", "Tinca tinca") and known[207].names[0] == "golden retriever"
    assert known[281].names[0] == "tabby" and known[999].names[0] == "toilet tissue"


def test_titles_are_by_wnid():
    assert titles(["n03126707", "n01440764", "n02012849"]) == ("crane", "tench", "crane")
    assert titles(["n01440764", "cat"]) == ()
    assert len(titles([k.wnid for k in imagenet_classes()])) == 1000
    firsts = [title.lower() for title in titles([k.wnid for k in imagenet_classes()])]
    assert {name for name in firsts if firsts.count(name) > 1} == {"crane", "cardigan", "maillot"}


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared/data")
def test_the_list_is_the_shared_one():
    with open(SHARED / "imagenet_classes.csv", newline="") as file:
        rows = [(int(row["index"]), row["wnid"], row["names"]) for row in csv.DictReader(file)]
    assert rows == [(k.index, k.wnid, ", ".join(k.names)) for k in imagenet_classes()]
