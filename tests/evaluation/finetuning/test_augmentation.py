"""The heavy augmentation against timm, whose laws it follows, and its independence of everything but its keys."""

import random
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, random_erasing
from timm.data.mixup import Mixup, mixup_target

from headcam.evaluation.finetuning.augmentation import OPERATIONS, arguments, erase, mix, rand_augment, soft_targets
from headcam.evaluation.finetuning.data import part_of
from headcam.randomness import stream


def picture(seed=0, side=24):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_the_operations_are_those_of_timm():
    assert list(OPERATIONS) == auto_augment._RAND_INCREASING_TRANSFORMS


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("level", [0.0, 0.55, 0.9, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_each_operation_at_each_level_is_that_of_timm(name, level, sign):
    law = auto_augment.LEVEL_TO_ARG[name]
    with mock.patch.object(auto_augment, "_randomly_negate", lambda v: sign * v):
        expected = tuple(law(level * 10, {})) if law else ()
    if (name, level) == ("PosterizeIncreasing", 1.0):
        assert expected == (0,)  # bits: a black picture, and an error in newer Pillows
        expected = (1,)
    assert arguments(name, level, sign) == pytest.approx(expected)


def test_rand_augment_changes_as_often_as_timm():
    """Each of two operations is carried out half of the time: a quarter of the pictures stay as they are, or more
    (an operation may happen to change nothing)."""
    pixels = picture()
    unchanged = [np.array_equal(rand_augment(pixels, stream(0, "x", k), (1, 2, 3)), pixels) for k in range(600)]
    random.seed(0), np.random.seed(0)
    peer = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": (1, 2, 3)})
    image = Image.fromarray(pixels)
    posterize = next(op for op in peer.ops if op.name == "PosterizeIncreasing")
    posterize.level_fn = lambda level, _: (max(1, 4 - int(level * 0.4)),)  # Pillow refuses 0 bits
    theirs = [np.array_equal(np.asarray(peer(image)), pixels) for _ in range(600)]
    assert abs(np.mean(unchanged) - np.mean(theirs)) < 0.09  # three standard errors
    assert np.mean(unchanged) > 0.2


def test_rand_augment_follows_from_its_generator_alone():
    first = [rand_augment(picture(), stream(0, "x", k), (0, 0, 0)) for k in range(20)]
    random.seed(5), np.random.seed(5)
    again = [rand_augment(picture(), stream(0, "x", k), (0, 0, 0)) for k in reversed(range(20))]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again)))
    assert any(not np.array_equal(first[0], other) for other in first[1:])


def test_erasing_has_the_law_of_timm():
    ours, theirs = [], []
    random.seed(0)
    peer = random_erasing.RandomErasing(0.25, mode="pixel", device="cpu")
    for k in range(1500):
        image = torch.full((3, 32, 32), 9.0)
        erase(image, stream(0, "erasing", k))
        ours.append((image != 9).any(0).float().mean().item())
        theirs.append((peer(torch.full((3, 32, 32), 9.0)) != 9).any(0).float().mean().item())
    ours, theirs = np.array(ours), np.array(theirs)
    assert abs((ours > 0).mean() - 0.25) < 0.035 and abs((theirs > 0).mean() - 0.25) < 0.035
    for q in (0.1, 0.5, 0.9):  # of the erased share
        assert np.quantile(ours[ours > 0], q) == pytest.approx(np.quantile(theirs[theirs > 0], q), abs=0.03)
    assert ours.max() < 0.36 and ours[ours > 0].min() > 0.01


def test_erased_pixels_are_normal_noise():
    values = []
    for k in range(300):
        image = torch.full((3, 16, 16), 9.0)
        erase(image, stream(1, "erasing", k))
        values.append(image[image != 9])
    values = torch.cat(values)
    assert abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.05


def test_targets_are_those_of_timm():
    labels = torch.tensor([0, 2, 1, 2])
    found = soft_targets(labels, 3, 0.1)
    torch.testing.assert_close(found, mixup_target(labels, 3, lam=1.0, smoothing=0.1))
    torch.testing.assert_close(found.sum(1), torch.ones(4))


def test_mixing_is_that_of_timm_at_the_same_share():
    """timm is given the very share and rectangle that were drawn here, read off the result."""
    images = torch.rand(6, 3, 16, 16)
    labels = torch.arange(6)
    targets = soft_targets(labels, 6, 0.1)
    kinds = set()
    for k in range(12):
        mixed, found = mix(images, targets, stream(0, "mix", k))
        off, on = targets.min(), targets.max()
        kept = float((found[0, 0] - off) / (on - off))
        torch.testing.assert_close(found, mixup_target(labels, 6, lam=kept, smoothing=0.1))
        from_partner = (mixed == images.flip(0)).all(dim=1)
        if from_partner.any():
            kinds.add("cutmix")
            own = (mixed == images).all(dim=1)
            assert torch.equal(own, ~from_partner)
            assert torch.equal(from_partner[0], from_partner[3])  # one rectangle for all
            assert 1 - from_partner[0].float().mean().item() == pytest.approx(kept, abs=1e-5)
        else:
            peer = Mixup(mixup_alpha=1.0)
            with mock.patch.object(peer, "_params_per_batch", lambda kept=kept: (kept, False)):
                expected = images.clone()
                peer._mix_batch(expected)
            torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-5)
            kinds.add("mixup")
    assert kinds == {"cutmix", "mixup"}


def test_shares_have_the_laws_of_mixup_and_cutmix():
    images, targets = torch.zeros(2, 3, 32, 32), torch.eye(2)
    images[1] = 1
    mixup, cutmix = [], []
    for k in range(3000):
        mixed, found = mix(images, targets, stream(2, "mix", k))
        whole = bool(((mixed == 0) | (mixed == 1)).all())
        (cutmix if whole else mixup).append(found[0, 0].item())
    assert abs(len(cutmix) / 3000 - 0.5) < 0.03
    beta = np.random.default_rng(0).beta(0.8, 0.8, 100_000)
    for q in (0.1, 0.25, 0.75, 0.9):
        assert np.quantile(mixup, q) == pytest.approx(np.quantile(beta, q), abs=0.04)
    np.random.seed(0)
    peer = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0)
    theirs = [peer._mix_batch(torch.zeros(2, 3, 32, 32)) for _ in range(1500)]
    assert np.mean(cutmix) == pytest.approx(np.mean(theirs), abs=0.03)


@pytest.mark.parametrize("size", [2, 5, 8])
def test_parts_of_a_batch_are_mixed_as_the_whole(size):
    images, targets = torch.rand(size, 3, 8, 8), torch.rand(size, 4)
    places = [part_of(np.arange(size), rank, 2) for rank in range(2)]
    assert sorted(np.concatenate(places)) == list(range(size))
    for k in range(4):
        mixed, found = mix(images, targets, stream(0, "mix", k))
        for place in places:
            part = mix(images[place], targets[place], stream(0, "mix", k))
            assert torch.equal(part[0], mixed[place]) and torch.equal(part[1], found[place])
