"""Finetuning as a whole: it learns, it chooses blindly, it goes on after a kill, and processes do not change it."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.evaluation.finetuning import loop as loop_module
from headcam.evaluation.finetuning import restart
from headcam.evaluation.finetuning.processes import run_on
from headcam.evaluation.finetuning.train import finetune
from headcam.evaluation.labelled.sets import LabelledSet, labels_of, read_labelled
from headcam.evaluation.protocols import Clips, Finetune
from headcam.files import claim
from headcam.ssl.vit import VisionTransformer

QUICK = Finetune(
    pool="avg", lr=(2e-3,), epochs=3, schedule="cosine", batch_size=8, resize=4, crop_scale=(0.5, 1.0), name="quick"
)
CARD = {"name": "small", "img_size": [16, 16], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def small_vit():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2), CARD


@pytest.fixture
def data(tmp_path, write_pictures) -> LabelledSet:
    """Three classes, told by their colour: 12 pictures each to train on, 10 for the test."""
    write_pictures(tmp_path / "set" / "train", dict.fromkeys("abc", 12))
    write_pictures(tmp_path / "set" / "val", dict.fromkeys("abc", 10), first=100)
    return read_labelled(tmp_path / "set")


def all_rows(data):
    return np.arange(len(data.train))


def run(data, out, protocol=QUICK, rows=None, **more):
    rows = all_rows(data) if rows is None else rows
    more = {"build": small_vit, "num_classes": len(data.classes), "seed": 0, "quiet": True} | more
    return finetune(data=data, rows=rows, protocol=protocol, out=out, **more)


def accuracy(result, data):
    return float((result.scores.argmax(dim=1).numpy() == labels_of(data.test)).mean())


def relabelled(data: LabelledSet, part: str, seed: int) -> LabelledSet:
    pictures = getattr(data, part)
    labels = np.random.default_rng(seed).permutation(labels_of(pictures))
    changed = tuple(dataclasses.replace(p, label=int(label)) for p, label in zip(pictures, labels))
    return dataclasses.replace(data, **{part: changed})


def test_learns_what_there_is_to_learn(data, tmp_path):
    protocol = dataclasses.replace(QUICK, epochs=12)
    result = run(data, tmp_path / "out", protocol)
    assert accuracy(result, data) > 0.85
    assert result.scores.shape == (30, 3) and result.scores.dtype == torch.float32
    torch.testing.assert_close(result.scores.exp().sum(dim=1), torch.ones(30))
    assert (result.lr, result.epochs, result.selection_top1) == (2e-3, 12, {})  # there was nothing to choose
    assert result.unreadable == {} and result.test_top1_by_epoch is None and result.seconds > 0


def test_shuffled_labels_give_chance(data, tmp_path):
    found = [
        accuracy(run(relabelled(data, "train", seed), tmp_path / str(seed), dataclasses.replace(QUICK, epochs=6)), data)
        for seed in range(3)
    ]
    assert np.mean(found) < 0.6  # 90 guesses at 1 in 3; the right labels give above 0.85


def test_choices_are_made_on_a_fifth_of_the_labels_and_blind_to_the_test(data, tmp_path):
    protocol = dataclasses.replace(QUICK, schedule="constant", lr=(1e-5, 2e-3), epochs=5, choose_epoch_every=2)
    result = run(data, tmp_path / "a", protocol)
    assert set(result.selection_top1) == {(lr, e) for lr in (1e-5, 2e-3) for e in (2, 4, 5)}
    assert (result.lr, result.epochs) == min(
        result.selection_top1, key=lambda c: (-result.selection_top1[c], c[1], c[0])
    )
    assert all(abs(value * 6 - round(value * 6)) < 1e-6 for value in result.selection_top1.values())  # 2 of 12, x 3
    blind = run(relabelled(data, "test", 0), tmp_path / "b", protocol)
    assert torch.equal(blind.scores, result.scores) and blind.selection_top1 == result.selection_top1


def test_the_final_training_has_all_labels_from_the_start(data, tmp_path):
    """With the chosen values given, so that there is nothing to choose, the same scores come out."""
    protocol = dataclasses.replace(QUICK, schedule="constant", lr=(1e-5, 2e-3), epochs=3)
    searched = run(data, tmp_path / "a", protocol)
    given = dataclasses.replace(protocol, lr=(searched.lr,), epochs=searched.epochs, choose_epoch_every=99)
    assert torch.equal(run(data, tmp_path / "b", given).scores, searched.scores)


def test_test_accuracy_by_epoch_is_a_report_that_changes_nothing(data, tmp_path):
    protocol = dataclasses.replace(QUICK, schedule="constant", epochs=4)
    honest = run(data, tmp_path / "out", protocol)
    told = run(data, tmp_path / "out", protocol, score_test_by_epoch=True)  # in the same folder: trained on from there
    assert torch.equal(told.scores, honest.scores) and told.selection_top1 == honest.selection_top1
    assert list(told.test_top1_by_epoch) == [1, 2, 3, 4]
    assert told.test_top1_by_epoch[told.epochs] == pytest.approx(accuracy(told, data))
    assert run(data, tmp_path / "out", protocol).test_top1_by_epoch is None


class _Killed(Exception):
    pass


def test_a_killed_run_goes_on_with_the_same_numbers(data, tmp_path, monkeypatch):
    protocol = dataclasses.replace(
        QUICK, schedule="constant", lr=(1e-3, 2e-3), epochs=2, augmentation="heavy", drop_path=0.3, clip_grad=1.0
    )
    whole = run(data, tmp_path / "whole", protocol)
    monkeypatch.setattr(restart, "_SECONDS_BETWEEN_STATES", 0.0)
    monkeypatch.setattr(restart, "_MOST_TIME_FOR_STATES", float("inf"))
    step, steps = loop_module.Loop._step, []

    def kill_at(last):
        def counted(*arguments):
            if len(steps) == last:
                raise _Killed
            steps.append(last)
            step(*arguments)

        monkeypatch.setattr(loop_module.Loop, "_step", counted)

    # 8 steps for each rate of the search (30 rows, 4 steps an epoch), then 5 an epoch: middle of a search, its end, ...
    for last in (3, 8, 13, 18, 10**6):
        kill_at(last)
        try:
            result = run(data, tmp_path / "killed", protocol)
        except _Killed:
            assert (tmp_path / "killed" / "state.pt").exists()
    assert len(steps) == 16 + 5 * whole.epochs  # not one was taken twice
    assert torch.equal(result.scores, whole.scores)
    assert (result.lr, result.selection_top1) == (whole.lr, whole.selection_top1)
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["finetune.json", "result.json", "scores.npy"]


def test_a_finished_run_is_read_and_another_is_refused(data, tmp_path, monkeypatch):
    first = run(data, tmp_path / "out")
    monkeypatch.setattr(loop_module.Loop, "train", None)  # a second training would fail
    assert torch.equal(run(data, tmp_path / "out").scores, first.scores)
    with pytest.raises(InputError, match="holds a finetuning of other settings: seed is 0 there, 1 here"):
        run(data, tmp_path / "out", seed=1)
    with pytest.raises(InputError, match=r"other settings: protocol\.epochs is 3 there, 4 here"):
        run(data, tmp_path / "out", dataclasses.replace(QUICK, epochs=4))
    with pytest.raises(InputError, match="other settings: labels is"):
        run(data, tmp_path / "out", rows=all_rows(data)[:-1])
    about = (tmp_path / "out" / "finetune.json").read_text()
    (tmp_path / "out" / "finetune.json").write_text(about.replace("quick-v1", "quick-v0"))
    with pytest.raises(InputError, match="protocol is quick-v0 there, quick-v1 here"):
        run(data, tmp_path / "out")
    (tmp_path / "out" / "finetune.json").write_text(about)
    (tmp_path / "out" / "result.json").write_text("{}")
    with pytest.raises(InputError, match="damaged result"):
        run(data, tmp_path / "out")


@pytest.mark.slow
def test_two_processes_get_what_one_gets(data, tmp_path):
    protocol = dataclasses.replace(
        QUICK, schedule="constant", epochs=2, augmentation="heavy", drop_path=0.3, clip_grad=1.0, layer_decay=0.7
    )
    one = run(data, tmp_path / "one", protocol)
    two = run(data, tmp_path / "two", protocol, processes=2)
    torch.testing.assert_close(two.scores, one.scores, rtol=0, atol=1e-4)
    assert accuracy(two, data) == accuracy(one, data)
    assert (two.lr, two.epochs, two.selection_top1) == (one.lr, one.epochs, one.selection_top1)


def test_an_error_in_a_process_of_several_is_told(tmp_path):
    """Any work that fails will do: here, claiming a folder of other settings."""
    claim(tmp_path / "note.json", {"a": 1}, "a thing")
    job = SimpleNamespace(device=torch.device("cpu"))
    with pytest.raises(InputError, match="of other settings: a is 1 there, 2 here"):
        run_on(2, partial(claim, tmp_path / "note.json", {"a": 2}), job)


def test_an_unreadable_training_picture_is_named(data, tmp_path):
    data.train[3].path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=rf"{data.train[3].name} cannot be read"):
        run(data, tmp_path / "out")


def test_unreadable_test_pictures_are_named_and_have_no_scores(data, tmp_path):
    data.test[4].path.write_bytes(b"no picture")
    result = run(data, tmp_path / "out", dataclasses.replace(QUICK, epochs=1))
    assert list(result.unreadable) == [4] and "UnidentifiedImageError" in result.unreadable[4]
    assert result.scores[4].isnan().all() and result.scores.isnan().sum() == 3
    again = run(data, tmp_path / "out", dataclasses.replace(QUICK, epochs=1))
    assert again.unreadable == result.unreadable
    for picture in data.test[:12]:
        picture.path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"12 of the 30 test pictures of set cannot be read, 40\.0%"):
        run(data, tmp_path / "other", dataclasses.replace(QUICK, epochs=1))


def test_a_training_that_diverges_is_told(data, tmp_path):
    with pytest.raises(InputError, match="quick-v1 diverged"):
        run(data, tmp_path / "out", dataclasses.replace(QUICK, lr=(1e30,), epochs=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": (0.0,)}, "lr is 0.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 2}, "batches of 2 cannot be normalised"),
        ({"choose_epoch_every": 0}, "choose_epoch_every is 0"),
        ({"clips": Clips()}, "quick-v1 is for videos, and set holds pictures"),
    ],
)
def test_settings_out_of_range(data, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(data, tmp_path / "out", dataclasses.replace(QUICK, **changes))


def test_bfloat16_is_refused_where_it_would_crawl(data, tmp_path, monkeypatch):
    from headcam.evaluation.finetuning import train

    low = dataclasses.replace(QUICK, precision="bfloat16", epochs=1)
    monkeypatch.setattr(train, "cpu_bf16", lambda: None)
    with pytest.raises(InputError, match="this CPU has neither"):
        run(data, tmp_path / "out", low)
    monkeypatch.setattr(train, "cpu_bf16", lambda: "pretended")
    exact = run(data, tmp_path / "exact", dataclasses.replace(low, precision="float32")).scores
    found = run(data, tmp_path / "low", low).scores
    assert 1e-5 < (found - exact).abs().max() < 0.2
