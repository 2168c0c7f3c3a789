"""Footage in two recordings, found from hashes alone: planted overlaps are told exactly, look-alikes are not."""

import numpy as np
import pytest

from headcam.video.scanning.duplicates import find_duplicates
from headcam.video.scanning.frames import Settings, picture_hash

S = Settings()


def footage(seed, samples):
    """uint64 (samples,): hashes of a picture that moves a little between samples, valid (bit 0 set)."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, 63).astype(bool)
    out = np.zeros(samples, np.uint64)
    for k in range(samples):
        bits[rng.choice(63, 6, replace=False)] ^= True
        out[k] = sum(int(b) << (i + 1) for i, b in enumerate(bits)) | 1
    return out


def noisy(hashes, bits, seed=99):
    """The hashes of another encoding: `bits` of each are turned over."""
    rng = np.random.default_rng(seed)
    flips = [sum(1 << int(k) for k in rng.choice(np.arange(1, 64), bits, replace=False)) for _ in hashes]
    return hashes ^ np.array(flips, np.uint64)


def find(recordings, settings=S):
    return find_duplicates(recordings, {name: len(h) / 4 for name, h in recordings.items()}, settings)


@pytest.mark.parametrize("bits", [0, 2, 5])
def test_a_planted_overlap_is_told_with_its_offset_and_the_longer_recording_keeps_it(bits):
    long, short = footage(1, 400), footage(2, 100)
    short[20:60] = noisy(long[133:173], bits)
    found = find({"b": long, "a": short, "c": footage(3, 200)})
    ((start, end, reason, measure, detail),) = found.pop("a")
    assert not found
    assert (start, end, reason, detail) == (5.0, 15.0, "duplicate", "also in b from 33.25 s")
    assert measure == pytest.approx(bits)


def test_of_equals_the_smaller_id_keeps_it_and_many_copies_leave_one():
    one = footage(4, 80)
    copies = {f"{k:02d}": noisy(one, 3, seed=k) for k in range(30)}
    found = find(copies)
    assert sorted(found) == sorted(copies)[1:]
    assert all([row[:2] for row in rows] == [[0.0, 20.0]] for rows in found.values())


def test_the_order_in_which_recordings_come_does_not_matter():
    recordings = {str(k): footage(k, 120) for k in range(8)}
    recordings["3"][10:50] = noisy(recordings["6"][60:100], 4)
    recordings["5"][0:40] = noisy(recordings["6"][60:100], 4)
    backwards = dict(reversed(recordings.items()))
    assert find(recordings) == find(backwards)
    edges = {name: [edge for row in rows for edge in row[:2]] for name, rows in find(recordings).items()}
    assert sorted(edges) == ["5", "6"]  # all three equally long: 3 keeps it
    assert edges["5"] == pytest.approx([0, 10], abs=0.25) and edges["6"] == pytest.approx([15, 25], abs=0.25)


def test_what_does_not_move_is_no_evidence():
    wall = np.full(200, footage(5, 1)[0])
    assert find({"a": wall, "b": wall.copy()}) == {}
    nothing = np.zeros(200, np.uint64)  # black or plain: no hash
    assert find({"a": nothing, "b": nothing.copy()}) == {}
    assert find({}) == {}


def test_too_short_or_too_different_is_not_the_same_footage():
    long, short = footage(6, 300), footage(7, 100)
    short[10:17] = long[50:57]  # 1.75 s
    assert find({"a": long, "b": short}) == {}
    short[10:18] = long[50:58]
    assert [row[:2] for row in find({"a": long, "b": short})["b"]] == [[2.5, 4.5]]
    assert find({"a": long, "b": noisy(long, 14)}) == {}


def test_pictures_hash_alike_when_scaled_and_noisy_and_plain_ones_not_at_all():
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(8, 8))
    picture = 128 + 40 * np.kron(coarse, np.ones((4, 4)))
    other = 128 + 40 * np.kron(rng.normal(size=(8, 8)), np.ones((4, 4)))
    same = picture_hash(picture) ^ picture_hash(0.8 * picture + 10 + rng.normal(size=(32, 32)))
    assert same.bit_count() <= 4
    assert (picture_hash(picture) ^ picture_hash(other)).bit_count() > 15
    assert picture_hash(picture) & 1 and picture_hash(np.full((32, 32), 90.0)) == 0
    assert (picture_hash(picture) ^ picture_hash(255 - picture)).bit_count() == 63  # all signs but the mean's
