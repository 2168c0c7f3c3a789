"""Batches, views and test views of pictures: keyed, whole, and the same however the work is shared."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from headcam.evaluation.features.augmented import AugmentedPictures
from headcam.evaluation.finetuning import data as data_module
from headcam.evaluation.finetuning.data import PictureExamples, ScoredItems, epoch_batches, part_of
from headcam.evaluation.labelled.sets import read_labelled
from headcam.evaluation.protocols import Finetune

MEAN = (0.485, 0.456, 0.406)


@pytest.fixture
def pictures(tmp_path, write_pictures):
    write_pictures(tmp_path / "set" / "train", {"a": 6, "b": 6})
    write_pictures(tmp_path / "set" / "val", {"a": 1, "b": 1}, first=50)
    return read_labelled(tmp_path / "set").train


@pytest.mark.parametrize(("n", "batch_size"), [(30, 8), (13, 128), (257, 128), (7, 3), (4, 3), (3, 3)])
def test_an_epoch_has_every_row_once_in_batches_of_about_one_size(n, batch_size):
    rows = np.arange(n) * 3 + 1
    batches = epoch_batches(rows, batch_size, seed=0, epoch=2)
    assert sorted(np.concatenate(batches)) == rows.tolist()
    sizes = [len(batch) for batch in batches]
    assert len(sizes) == -(-n // batch_size) and max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2  # one alone cannot be normalised
    other = epoch_batches(rows, batch_size, seed=0, epoch=3)
    assert n == 3 or not np.array_equal(np.concatenate(batches), np.concatenate(other))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("size", [7, 8])
def test_parts_hold_pairs_and_make_the_batch(size, processes):
    batch = np.arange(size) + 40
    parts = [part_of(batch, rank, processes) for rank in range(processes)]
    assert sorted(np.concatenate(parts)) == batch.tolist()
    for part in parts:
        assert np.array_equal(part + part[::-1], np.full(len(part), 2 * 40 + size - 1))
    assert max(map(len, parts)) - min(map(len, parts)) <= 2


@pytest.mark.parametrize("augmentation", ["minimal", "heavy"])
def test_views_follow_from_seed_epoch_and_row(pictures, augmentation):
    protocol = Finetune(augmentation=augmentation)
    examples = PictureExamples(pictures, protocol, (16, 16), MEAN, seed=1)
    together = next(examples.views([np.array([3, 7, 5])], epoch=2))
    assert together.shape == (3, 3, 16, 16) and together.dtype == torch.uint8
    alone = list(examples.views([np.array([5]), np.array([7, 3])], epoch=2))
    assert torch.equal(together, torch.cat([alone[1][1:], alone[1][:1], alone[0]]))
    assert not torch.equal(next(examples.views([np.array([3, 7, 5])], epoch=3)), together)
    seeded = PictureExamples(pictures, protocol, (16, 16), MEAN, seed=2)
    assert not torch.equal(next(seeded.views([np.array([3, 7, 5])], epoch=2)), together)


def test_heavy_views_are_minimal_ones_changed(pictures):
    rows = np.arange(12)
    views = {
        name: next(PictureExamples(pictures, Finetune(augmentation=name), (16, 16), MEAN, seed=1).views([rows], 0))
        for name in ("minimal", "heavy")
    }
    crops = AugmentedPictures(pictures, (16, 16), seed=1, interpolation="bilinear").batch(rows, 0)
    assert torch.equal(views["minimal"], crops)
    unchanged = (views["heavy"] == crops).flatten(1).all(dim=1).sum()
    assert 0 < unchanged < 10  # a quarter, by law


def test_test_views_are_resized_by_so_many_pixels_and_cropped(pictures, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    item = dataclasses.replace(pictures[0], root=tmp_path, name="wide.png")
    view = PictureExamples(pictures, Finetune(resize=4), (16, 16), MEAN, seed=0).prepare(item)
    resized = Image.fromarray(pixels).resize((33, 20), Image.Resampling.BICUBIC)  # short side 16 + 4
    expected = np.asarray(resized.crop((8, 2, 24, 18))).transpose(2, 0, 1)
    assert np.array_equal(view, expected[None])


@pytest.mark.parametrize("kept_bytes", [0, 2000, 1 << 30])
def test_scored_items_are_the_same_each_time_and_kept_where_they_are_few(pictures, monkeypatch, kept_bytes):
    monkeypatch.setattr(data_module, "_KEPT_BYTES", kept_bytes)
    examples = PictureExamples(pictures, Finetune(), (16, 16), MEAN, seed=0)
    prepared = []

    def prepare(item):
        prepared.append(item.name)
        return examples.prepare(item)

    items = ScoredItems(pictures, prepare, batch_size=5, rank=1, processes=2)
    first, second = list(items), list(items)
    assert [rows.tolist() for rows, _ in first] == [[1, 3, 5, 7, 9], [11]]
    for (rows, views), (_, again) in zip(first, second):
        for row, view, same in zip(rows, views, again):
            assert np.array_equal(view, examples.prepare(pictures[row])) and np.array_equal(view, same)
    assert len(prepared) == (6 if kept_bytes > 2000 else 12)
