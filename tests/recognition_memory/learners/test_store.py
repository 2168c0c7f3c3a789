"""The store of studied pictures: each once, and a fair draw where it is bounded."""

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.recognition_memory.learners.store import PictureStore, bound_of_store, picture_keys


def filled(capacity, keys, seed=0, batch_size=7) -> PictureStore:
    store = PictureStore(capacity)
    store.begin(seed, None)
    for start in range(0, len(keys), batch_size):
        part = np.array(keys[start : start + batch_size], dtype=np.uint64)
        store.add(part, torch.from_numpy(part.astype(np.float64))[:, None])
    return store


def held(store) -> list[int]:
    return store.vectors[:, 0].long().tolist()


def test_a_picture_is_stored_once_in_the_order_of_study():
    assert held(filled(None, [5, 3, 5, 9, 3, 1, 2, 5, 8])) == [5, 3, 9, 1, 2, 8]


def test_a_bounded_store_does_not_depend_on_order_batches_or_repeats():
    keys = list(range(100))
    kept = set(held(filled(20, keys)))
    assert len(kept) == 20
    assert set(held(filled(20, keys[::-1], batch_size=13))) == kept
    assert set(held(filled(20, keys * 3, batch_size=32))) == kept
    assert set(held(filled(20, keys, seed=1))) != kept
    assert set(held(filled(10, keys))) < kept  # a smaller store holds part of a larger one


def test_every_picture_is_as_likely_to_be_kept():
    counts = np.zeros(40)
    for seed in range(1000):
        counts[held(filled(10, list(range(40)), seed, batch_size=40))] += 1
    assert counts.sum() == 10_000
    # 250 each, standard deviation 13.7; chi-square of 39 degrees over 0.75 has the mean 39 and deviation 8.8.
    assert ((counts - 250) ** 2 / (250 * 0.75)).sum() < 39 + 5 * 8.8


def test_keys_follow_from_pixels_alone():
    pixels = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    keys = picture_keys(pixels)
    assert np.array_equal(picture_keys(pixels.flip(0)), keys[::-1]) and len(set(keys.tolist())) == 3
    turned = pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # the same pixels in another order in memory
    assert np.array_equal(picture_keys(turned), keys)
    pixels[0, 0, 0, 0] += 1
    assert picture_keys(pixels)[0] != keys[0]


def test_state_goes_through_a_file(tmp_path):
    store = filled(4, [2**64 - 1, 3, 5, 9, 11])
    torch.save(store.state(), tmp_path / "state.pt")
    other = PictureStore(4)
    other.load(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.vectors, store.vectors)
    for one in (store, other):
        one.add(np.array([3, 2**64 - 1, 12], dtype=np.uint64), torch.tensor([[3.0], [1.0], [12.0]]).double())
    assert torch.equal(other.vectors, store.vectors)


def test_only_a_full_store_of_undegraded_pictures_is_an_upper_bound():
    for test in ("", "foil mirror", "after 8 updates"):
        assert bound_of_store(PictureStore(None), test) == "upper bound"
    assert bound_of_store(PictureStore(None), "noise 25") == ""
    assert bound_of_store(PictureStore(5), "") == ""


def test_capacities_that_store_nothing_or_everything_are_refused():
    with pytest.raises(InputError, match="capacity is 0"):
        PictureStore(0)
    with pytest.raises(InputError, match="capacity 30 holds all of the 30 pictures"):
        PictureStore(30).begin(0, 30)
