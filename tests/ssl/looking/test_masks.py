"""Masks by kind: which patches stay visible."""

import pytest
import torch

from headcam.errors import InputError
from headcam.ssl.looking.masks import directed_noise
from headcam.ssl.masking import random_mask


def visible(kind: str, slots: int, grid: tuple[int, int], keep: int, seed: int = 0) -> torch.Tensor:
    """(slots, rows, columns) bool."""
    noise = torch.rand(1, slots * grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    mask = random_mask(directed_noise(kind, noise, grid), keep)
    return ~mask.as_binary().bool().view(slots, *grid)


def test_centre_hides_a_centred_square():
    seen = visible("centre", 1, (8, 8), keep=64 - 16)[0]
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[2:6, 2:6] = True
    assert torch.equal(~seen, hidden)


def test_centre_hides_the_same_in_every_frame_and_an_uneven_rest_by_noise():
    seen = visible("centre", 4, (8, 8), keep=4 * 30)
    assert all(torch.equal(frame, seen[0]) for frame in seen) and seen[0].sum() == 30
    assert seen[0, 0].all() and not seen[0, 3:5, 3:5].any()
    assert not torch.equal(seen, visible("centre", 4, (8, 8), keep=4 * 30, seed=1))


def test_temporal_hides_the_end():
    seen = visible("temporal", 4, (3, 5), keep=2 * 15 + 4)
    assert seen[:2].all() and seen[2].sum() == 4 and not seen[3].any()


def test_random_is_the_noise_itself_and_what_makes_no_sense_is_refused():
    noise = torch.rand(2, 16)
    assert directed_noise("random", noise, (4, 4)) is noise
    with pytest.raises(InputError, match="a temporal mask needs a model for clips"):
        directed_noise("temporal", noise, (4, 4))
    with pytest.raises(InputError, match=r"mask 'center' is unknown\. Fix: use one of random, centre, temporal"):
        directed_noise("center", noise, (4, 4))
