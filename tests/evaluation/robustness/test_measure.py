"""Robustness rows of scripted classifiers whose answers are known."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headcam.errors import InputError
from headcam.evaluation.labelled.classes import imagenet_classes
from headcam.evaluation.labelled.sets import LabelledSet, Picture
from headcam.evaluation.robustness.corruptions import KINDS
from headcam.evaluation.robustness.measure import measure, measure_corruptions
from headcam.evaluation.robustness.sets import categories
from headcam.randomness import stream

GEIRHOS = Path(__file__).parents[3].parent / "shared/data/labelled/geirhos_16class"
WNIDS = tuple(known.wnid for known in imagenet_classes())


def write(folder: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = stream(2, "robustness picture", i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def naming(answer_of):
    """A classifier of the 1,000 classes that is sure of a category; `answer_of` maps a file name to it."""

    def score(pictures: Sequence[Picture]) -> torch.Tensor:
        scores = torch.zeros(len(pictures), 1000)
        for row, picture in enumerate(pictures):
            for wnid in categories()[answer_of(picture.name)]:
                scores[row, WNIDS.index(wnid)] = 9.0
        return scores

    return score


def by_shape(name: str) -> str:
    return name.split("/")[0]


def by_texture(name: str) -> str:
    return Path(name).stem.split("-")[1].rstrip("0123456789")


@pytest.fixture
def conflicts(tmp_path: Path) -> Path:
    """12 pictures of cat, dog and car with one another's texture, each twice."""
    three = ("cat", "dog", "car")
    names = [f"{a}/{a}{i}-{b}{i}.png" for a in three for b in three if a != b for i in (1, 2)]
    return write(tmp_path / "cue_conflict", names)


def test_shape_bias_of_scripted_deciders(conflicts):
    def mixed(name: str) -> str:  # of the two pictures of each pair: the first by shape, the second not
        return by_shape(name) if "1-" in name else by_texture(name) if name.startswith("cat") else "truck"

    for answer_of, value, decided in ((by_shape, 100, 12), (by_texture, 0, 12), (mixed, 75, 8)):
        rows = measure(conflicts, naming(answer_of), WNIDS)
        bias, either = rows
        assert (bias.metric, either.metric) == (
            "linear/cue-conflict/shape_bias",
            "linear/cue-conflict/shape_or_texture",
        )
        assert (bias.value, bias.n, bias.chance) == (value, decided, 50)
        assert bias.low <= value <= bias.high and bias.high > bias.low
        assert (either.value, either.n) == (pytest.approx(100 * decided / 12), 12)
    assert "6 decisions name the shape, 2 the texture and 4 neither" in bias.notes[-1]


def test_no_decision_for_either_cue_has_no_shape_bias(conflicts):
    (row,) = measure(conflicts, naming(lambda name: "truck"), WNIDS)
    assert row.metric == "linear/cue-conflict/shape_or_texture" and row.value == 0


@pytest.mark.shared
@pytest.mark.skipif(not GEIRHOS.is_dir(), reason="no shared data")
def test_the_shared_stimuli_with_oracles():
    bias, either = measure(GEIRHOS / "cue_conflict", naming(by_shape), WNIDS)
    assert (bias.value, bias.n, either.value, either.n) == (100, 480, 100, 480)
    assert measure(GEIRHOS / "cue_conflict", naming(by_texture), WNIDS)[0].value == 0
    for name in ("edges", "silhouettes"):
        top1 = measure(GEIRHOS / name, naming(by_shape), WNIDS, stem="probe")[0]
        assert top1.metric == f"probe/{name}/top1" and (top1.value, top1.n, top1.chance) == (100, 160, 6.25)

    # Of the 50 classes of Tiny ImageNet five categories are known, and 5 x 4 x 2 pictures with conflicting cues.
    tiny = ("n02094433", "n02099712", "n02113799", "n02124075", "n02132136", "n03085013", "n03100240", "n04285008")
    keep = [WNIDS.index(wnid) for wnid in tiny]
    oracle = naming(by_shape)
    bias = measure(GEIRHOS / "cue_conflict", lambda pictures: oracle(pictures)[:, keep], tiny)[0]
    assert (bias.value, bias.n) == (100, 40)
    assert "11 of 16 categories" in bias.notes[0]


def test_pictures_that_cannot_be_read_are_counted_and_left_out(tmp_path):
    folder = write(tmp_path / "set", ["cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"])

    def score(pictures: Sequence[Picture]) -> torch.Tensor:
        scores = torch.tensor([[1.0, 0.0] if p.name.startswith("cat") else [0.0, 1.0] for p in pictures])
        scores[[p.name for p in pictures].index("dog/d.png")] = torch.nan
        return scores

    (row,) = measure(folder, score, ("cat", "dog"))
    assert (row.set, row.value, row.n, row.chance) == ("set", 100, 3, 50)
    assert row.notes[-1] == "1 of 4 pictures could not be read"
    with pytest.raises(InputError, match="none of its 4 pictures can be decoded"):
        measure(folder, lambda pictures: torch.full((4, 2), torch.nan), ("cat", "dog"))


def test_a_classifier_that_says_the_same_of_everything_is_never_right(tmp_path):
    folder = write(tmp_path / "imagenet-r", [f"{wnid}/x.png" for wnid in WNIDS[:16]])
    top1, top5 = measure(folder, lambda pictures: torch.zeros(len(pictures), 1000), WNIDS)
    assert (top1.value, top5.value) == (0, 0)
    assert (top1.metric, top1.chance, top5.chance) == ("linear/imagenet-r/top1", 6.25, 31.25)


def labelled(n: int) -> LabelledSet:
    pictures = tuple(Picture(Path("."), f"{i}.png", i % 4, f"{i:064x}") for i in range(n))
    return LabelledSet("toy", ("a", "b", "c", "d"), pictures, pictures, "folders", ())


def test_corruptions_are_averaged_over_severities_and_kinds():
    data = labelled(40)
    truth = torch.tensor([p.label for p in data.test])

    def right_in(first: int) -> torch.Tensor:
        """Right of the first so many pictures, wrong of the others."""
        answers = torch.where(torch.arange(40) < first, truth, (truth + 1) % 4)
        return torch.nn.functional.one_hot(answers, 4).float()

    strength = {"gaussian_noise": 0, "contrast": 10}
    rows = measure_corruptions(
        lambda kind, severity: right_in(30 - strength[kind] - 2 * severity), right_in(32), data, kinds=tuple(strength)
    )
    found = {row.metric.removeprefix("linear/corruption/"): row for row in rows}
    assert len(rows) == 2 * 6 + 2
    assert found["gaussian_noise/1/top1"].value == 70 and found["contrast/5/top1"].value == 25
    assert found["gaussian_noise/mean/top1"].value == pytest.approx(60)
    assert found["mean/top1"].value == pytest.approx(47.5) and found["mean/top1"].chance == 25
    assert found["relative/top1"].value == pytest.approx(100 * 47.5 / 80) and found["relative/top1"].chance is None
    assert all(row.low <= row.value <= row.high and row.n == 40 for row in rows)
    assert rows[0].data == data.identity and rows[0].set == "corruption"


def test_a_classifier_that_corruptions_do_not_touch_keeps_everything():
    data = labelled(20)
    clean = torch.from_numpy(stream(0, "scores", 0).standard_normal((20, 4)))
    rows = measure_corruptions(lambda kind, severity: clean, clean, data)
    assert len(rows) == len(KINDS) * 6 + 2
    assert rows[-1].metric.endswith("relative/top1") and (rows[-1].value, rows[-1].low, rows[-1].high) == (
        100,
        100,
        100,
    )


def test_unknown_corruptions_are_refused():
    with pytest.raises(InputError, match="corruption frost"):
        measure_corruptions(lambda kind, severity: None, torch.zeros(4, 4), labelled(4), kinds=("frost",))
    with pytest.raises(InputError, match="toy is a set of videos"):
        measure_corruptions(lambda kind, severity: None, torch.zeros(4, 4), replace(labelled(4), media="videos"))
