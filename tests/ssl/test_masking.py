"""Counts, masks and patches: what is kept, in which order, and that cutting loses nothing."""

import pytest
import torch

from headcam.errors import InputError
from headcam.ssl.masking import gather_tokens, num_visible, patchify, random_mask, unpatchify


@pytest.mark.parametrize(
    "patches, ratio, visible",
    [(196, 0.75, 49), (256, 0.8, 51), (100, 0.9, 10), (1568, 0.9, 156), (8192, 0.95, 409), (4, 0, 4), (3, 0.99, 1)],
)
def test_how_a_ratio_becomes_a_count(patches, ratio, visible):
    assert num_visible(patches, ratio) == visible


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 75])
def test_ratios_out_of_range_are_refused(ratio):
    with pytest.raises(InputError, match=r"mask_ratio must be in \[0, 1\)"):
        num_visible(10, ratio)


def test_a_mask_keeps_the_smallest_noise_and_ties_fall_to_the_first():
    mask = random_mask(torch.tensor([[0.5, 0.1, 0.5, 0.0, 0.9], [0.2] * 5]), 2)
    assert mask.ids_keep.tolist() == [[3, 1], [0, 1]]
    assert mask.ids_masked.tolist() == [[0, 2, 4], [2, 3, 4]]
    assert mask.as_binary().tolist() == [[1, 0, 1, 0, 1], [0, 0, 1, 1, 1]]


def test_patches_of_a_clip_one_by_one():
    """Time slot, row, column outside; frame of the tube, row, column, channel inside."""
    clip = torch.arange(2 * 3 * 4 * 4 * 6).view(2, 3, 4, 4, 6)  # (B, C, T, H, W)
    patches = patchify(clip, 2, 2)
    assert patches.shape == (2, 2 * 2 * 3, 2 * 2 * 2 * 3)
    for slot in range(2):
        for row in range(2):
            for column in range(3):
                tube = clip[:, :, 2 * slot : 2 * slot + 2, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                wanted = tube.permute(0, 2, 3, 4, 1).flatten(1)
                assert torch.equal(patches[:, (slot * 2 + row) * 3 + column], wanted)


@pytest.mark.parametrize(
    "shape, tubelet_size",
    [((2, 3, 8, 12), 1), ((2, 3, 4, 8, 12), 1), ((2, 3, 4, 8, 12), 2), ((2, 1, 4, 8, 12), 4)],
    ids=["images", "clips of single frames", "clips", "one slot"],
)
def test_unpatchify_is_the_inverse(shape, tubelet_size):
    x = torch.randn(shape)
    patches = patchify(x, 4, tubelet_size)
    assert torch.equal(unpatchify(patches, 4, (2, 3), tubelet_size), x)


def test_an_image_is_a_clip_of_one_frame():
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(patchify(images, 4), patchify(images.unsqueeze(2), 4))


def test_visible_and_masked_patches_are_all_of_them():
    patches, noise = torch.randn(3, 10, 4), torch.rand(3, 10)
    mask = random_mask(noise, 4)
    ids = torch.cat(mask, dim=1)
    both = torch.cat([gather_tokens(patches, mask.ids_keep), gather_tokens(patches, mask.ids_masked)], dim=1)
    assert torch.equal(both, gather_tokens(patches, ids))
    assert torch.equal(ids.sort(dim=1).values, torch.arange(10).expand(3, -1))
