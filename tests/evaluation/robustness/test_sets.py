"""Robustness sets: which answers a classifier has for a folder of pictures, and how its scores become decisions."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headcam.errors import InputError
from headcam.evaluation.labelled.classes import imagenet_classes
from headcam.evaluation.robustness.sets import categories, read_robustness
from headcam.randomness import stream

GEIRHOS = Path(__file__).parents[3].parent / "shared/data/labelled/geirhos_16class"
WNIDS = tuple(known.wnid for known in imagenet_classes())


def write(folder: Path, names: list[str]) -> Path:
    """A distinct 8 x 8 picture for each name below `folder`."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = stream(1, "robustness picture", i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def one_hot(chosen: list[int], num_classes: int) -> torch.Tensor:
    return 5 * torch.nn.functional.one_hot(torch.tensor(chosen), num_classes).float()


def test_sixteen_categories_have_207_imagenet_classes():
    """The counts of the stimuli's README, and their numbers agree with the standard order."""
    counts = {name: len(wnids) for name, wnids in categories().items()}
    assert len(counts) == 16 and sum(counts.values()) == 207
    assert counts["dog"] == 109 and counts["bird"] == 49 and counts["truck"] == 8 and counts["oven"] == 1
    assert len({wnid for wnids in categories().values() for wnid in wnids}) == 207
    assert set(WNIDS) >= {wnid for wnids in categories().values() for wnid in wnids}


def test_numbers_of_the_shipped_categories_are_standard_numbers():
    from importlib.resources import files

    text = files("headcam.evaluation.robustness").joinpath("categories.csv").read_text("utf-8")
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    assert all(WNIDS[int(row["index"])] == row["wnid"] for row in rows)


@pytest.mark.shared
@pytest.mark.skipif(not GEIRHOS.is_dir(), reason="no shared data")
def test_shipped_categories_are_those_of_the_stimuli():
    with open(GEIRHOS / "class16_to_imagenet.csv", newline="") as file:
        given = Counter((row["category"], row["wnid"]) for row in csv.DictReader(file))
    assert Counter((name, wnid) for name, wnids in categories().items() for wnid in wnids) == given


def test_a_category_is_decided_by_the_mean_probability_of_its_classes_not_by_the_sum(tmp_path):
    write(tmp_path, ["dog/a.png", "oven/b.png"])
    data = read_robustness(tmp_path, WNIDS)
    dogs = [WNIDS.index(wnid) for wnid in categories()["dog"]]
    probabilities = torch.full((1, 1000), 1e-6)
    probabilities[0, dogs] = 0.5 / 109  # together more likely than the oven ...
    probabilities[0, WNIDS.index(categories()["oven"][0])] = 0.4  # ... which is likelier than each of them
    decision = data.decisions(probabilities.log())
    assert [data.answers[k] for k in decision] == ["oven"]

    # Against a plain statement of the rule, on random logits.
    logits = 3 * torch.from_numpy(stream(0, "logits", 0).standard_normal((50, 1000)))
    p = torch.softmax(logits, dim=1).numpy()
    for row, decided in zip(p, data.decisions(logits)):
        means = {name: np.mean([row[WNIDS.index(w)] for w in wnids]) for name, wnids in categories().items()}
        assert data.answers[decided] == max(means, key=means.get)


def test_logits_are_restricted_to_the_classes_of_the_set(tmp_path):
    """A class that the set does not have is never the answer, however likely; one that the head lacks is left out."""
    folder = write(tmp_path / "imagenet-a", [f"{WNIDS[k]}/x.png" for k in (6, 11, 13)])
    write(folder, ["n99999999/y.png"])
    data = read_robustness(folder, WNIDS)
    assert data.name == "imagenet-a" and data.answers == (WNIDS[6], WNIDS[11], WNIDS[13])
    logits = one_hot([500, 500, 500], 1000)
    logits[[0, 1, 2], [11, 6, 13]] = 1.0
    assert data.decisions(logits).tolist() == [1, 0, 2]
    assert data.notes[0].startswith("1 of 4 classes (1 pictures) are unknown") and "n99999999" in data.notes[0]
    assert "4 of the 200 classes" in data.notes[1]
    # A restricted softmax and restricted logits are the same order.
    random = torch.from_numpy(stream(0, "logits", 1).standard_normal((20, 1000)))
    assert torch.allclose(data.answer_scores(random), random[:, [6, 11, 13]])


def test_folders_of_numbers_are_standard_numbers_and_not_in_the_order_of_text(tmp_path):
    folder = write(tmp_path / "imagenetv2-matched-frequency-format-val", [f"{k}/x.png" for k in (2, 10, 999)])
    data = read_robustness(folder, WNIDS)
    assert data.name == "imagenet-v2-matched-frequency"
    number = {p.name.split("/")[0]: data.members[p.label] for p in data.pictures}
    assert number == {"2": (2,), "10": (10,), "999": (999,)}

    # A head of some ImageNet classes only, in an order of its own.
    few = read_robustness(folder, (WNIDS[999], "other", WNIDS[10]))
    assert {p.name.split("/")[0]: few.members[p.label] for p in few.pictures} == {"999": (0,), "10": (2,)}

    write(folder, ["1000/x.png"])
    with pytest.raises(InputError, match="folder 1000, and ImageNet's classes are 0 to 999"):
        read_robustness(folder, WNIDS)


def test_a_head_whose_own_classes_are_numbers_is_taken_at_its_word(tmp_path):
    data = read_robustness(write(tmp_path, ["0/x.png", "1/x.png"]), ("1", "0", "2"))
    assert {p.name: data.members[p.label] for p in data.pictures} == {"0/x.png": (1,), "1/x.png": (0,)}


def test_only_categories_that_the_head_knows_are_answered(tmp_path):
    """The 50 classes of Tiny ImageNet, say, have some dogs, a cat and cars: the others are named and left out."""
    write(tmp_path, ["dog/a.png", "cat/b.png", "truck/c.png"])
    dogs, cat = categories()["dog"][:2], categories()["cat"][0]
    data = read_robustness(tmp_path, (*dogs, "n00000000", cat))
    assert data.answers == ("cat", "dog") and data.members == ((3,), (0, 1))
    assert sorted(p.name for p in data.pictures) == ["cat/b.png", "dog/a.png"]
    assert "14 of 16 categories (1 pictures)" in data.notes[0] and "truck" in data.notes[0]
    assert "dog by 2 of 109" in data.notes[1]


def test_cue_conflict_keeps_the_pictures_of_which_both_cues_can_be_answered(tmp_path):
    names = [
        "cat/cat1-dog2.png",
        "cat/cat1-truck1.png",
        "dog/dog3-cat1.png",
        "dog/dog3-dog1.png",
        "truck/truck1-cat1.png",
    ]
    data = read_robustness(write(tmp_path, names), (categories()["dog"][0], categories()["cat"][0]))
    assert data.kind == "cue conflict" and data.name == "cue-conflict"
    found = {p.name: (data.answers[p.label], data.answers[t]) for p, t in zip(data.pictures, data.textures)}
    assert found == {"cat/cat1-dog2.png": ("cat", "dog"), "dog/dog3-cat1.png": ("dog", "cat")}
    assert any("1 pictures whose shape and texture agree" in note for note in data.notes)
    assert any("1 more pictures are left out" in note for note in data.notes)


def test_a_file_that_does_not_name_its_cues_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cat/other.png does not name the shape cat and a texture"):
        read_robustness(write(tmp_path / "a", ["cat/cat1-dog2.png", "cat/other.png", "dog/dog1-cat1.png"]), WNIDS)
    with pytest.raises(InputError, match=r"dog/cat1-dog2.png does not name the shape dog"):
        read_robustness(write(tmp_path / "b", ["dog/cat1-dog2.png"]), WNIDS)


def test_classes_csv_maps_folders_of_any_name(tmp_path):
    write(tmp_path, ["hound/a.png", "puppy/b.png", "kitten/c.png", "spoon/d.png"])
    (tmp_path / "classes.csv").write_text(
        "folder,class\nhound,dog-1\nhound,dog-2\npuppy,dog-3\nkitten,cat\nspoon,none\n"
    )
    data = read_robustness(tmp_path, ("cat", "dog-1", "dog-2", "dog-3"))
    assert dict(zip(data.answers, data.members)) == {"hound": (1, 2), "kitten": (0,), "puppy": (3,)}
    assert "spoon" in data.notes[0]
    (tmp_path / "classes.csv").write_text("folder,class\nhound,dog-1\npuppy,dog-1\nkitten,cat\n")
    same = read_robustness(tmp_path, ("cat", "dog-1"))
    assert dict(zip(same.answers, same.members)) == {"hound+puppy": (1,), "kitten": (0,)}
    assert {p.name: same.answers[p.label] for p in same.pictures}["puppy/b.png"] == "hound+puppy"
    (tmp_path / "classes.csv").write_text("folder,label\n")
    with pytest.raises(InputError, match="make them folder,class"):
        read_robustness(tmp_path, ("cat",))
    (tmp_path / "classes.csv").write_text("folder,class\nhound,cat\nhound,cat\n")
    with pytest.raises(InputError, match="names a class of folder hound twice"):
        read_robustness(tmp_path, ("cat",))


def test_a_set_of_other_classes_is_refused(tmp_path):
    write(tmp_path, ["spoon/a.png", "fork/b.png"])
    with pytest.raises(InputError, match=r"knows 0 of the classes of its 2 folders \(fork, spoon.*classes\.csv"):
        read_robustness(tmp_path, ("cat", "dog"))
    with pytest.raises(InputError, match="does not exist"):
        read_robustness(tmp_path / "none", ("cat", "dog"))
    with pytest.raises(InputError, match="no pictures"):
        read_robustness(tmp_path / "fork", ("cat", "dog"))


def test_a_tie_is_no_decision(tmp_path):
    data = read_robustness(write(tmp_path, ["cat/a.png", "dog/b.png"]), ("cat", "dog"))
    scores = torch.tensor([[1.0, 1.0], [2.0, 1.0], [float("nan"), 0.0]])
    assert data.decisions(scores).tolist() == [-1, 0, -1]


def test_identity_follows_from_content_and_answers(tmp_path):
    a = read_robustness(write(tmp_path / "a" / "set", ["cat/a.png", "dog/b.png"]), ("cat", "dog"))
    b = read_robustness(write(tmp_path / "b" / "set", ["cat/a.png", "dog/b.png"]), ("x", "dog", "cat"))
    assert a.identity == b.identity and a.name == "set"
    write(tmp_path / "b" / "set", ["dog/a.png"])
    assert read_robustness(tmp_path / "b" / "set", ("cat", "dog")).identity != a.identity
