"""Study lists of other lengths: nested, the same fillers in both sets, the tested pictures always."""

from hashlib import sha256
from pathlib import Path

import pytest

from headcam.errors import InputError
from headcam.recognition_memory.stimuli.lists import with_list_length
from headcam.recognition_memory.stimuli.manifest import MemoryManifest, Stimulus


def picture(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


NUMBER = {picture(number): number for number in range(200)}


def manifest_of(fillers: dict[str, list[int]]) -> MemoryManifest:
    """Two role-swapped sets of five pairs: pictures 0 to 4 against 10 to 14; fillers of each set as given."""
    rows = []
    for study_set, seen, unseen in (("1", 0, 10), ("2", 10, 0)):
        studied = [seen + k for k in range(5)] + fillers[study_set]
        rows += [
            Stimulus(study_set, f"set_{study_set}/{k:03d}.png", "study", "", None, True, "", picture(number))
            for k, number in enumerate(studied)
        ]
        for k in range(5):
            rows.append(Stimulus(study_set, f"t{k}", "test", "novel", k, True, "", picture(seen + k)))
            rows.append(Stimulus(study_set, f"t{k}", "test", "novel", k, False, "", picture(unseen + k)))
    return MemoryManifest("toys", Path(), tuple(rows))


FILLERS = list(range(100, 140))
MANIFEST = manifest_of({"1": FILLERS, "2": FILLERS[::-1]})


def numbers(study_set: str, length: int | None, seed: int = 0, manifest: MemoryManifest = MANIFEST) -> list[int]:
    return [NUMBER[s.sha256] for s in with_list_length(manifest, study_set, length, seed)]


def test_tested_pictures_then_fillers_nested():
    whole = numbers("1", 45)
    assert whole[:5] == [0, 1, 2, 3, 4] and sorted(whole[5:]) == FILLERS and whole[5:] != FILLERS
    for length in (5, 6, 20, 44):
        assert numbers("1", length) == whole[:length]
    assert numbers("1", None) == [0, 1, 2, 3, 4, *FILLERS]


def test_both_sets_get_the_same_fillers_whatever_their_files_are_called():
    assert numbers("2", 20)[:5] == [10, 11, 12, 13, 14]
    assert numbers("1", 20)[5:] == numbers("2", 20)[5:]


def test_the_seed_draws():
    draws = {seed: numbers("1", 20, seed)[5:] for seed in range(200)}
    assert numbers("1", 20, 3)[5:] == draws[3] != draws[4]
    # 15 of 40 fillers: each is drawn in 3 of 8 lists; 200 lists have a standard deviation of 7.
    counts = [sum(filler in draw for draw in draws.values()) for filler in FILLERS]
    assert min(counts) > 75 - 28 and max(counts) < 75 + 28


def test_a_list_holds_different_pictures():
    """A picture that the set studies twice counts once where a length is asked for."""
    doubled = manifest_of({"1": [0, 100, 100, 101], "2": []})
    assert len(numbers("1", None, manifest=doubled)) == 9
    assert sorted(numbers("1", 7, manifest=doubled)) == [0, 1, 2, 3, 4, 100, 101]
    with pytest.raises(InputError, match=r"8 pictures cannot be had from set '1'.*use 5 .* to 7"):
        numbers("1", 8, manifest=doubled)


@pytest.mark.parametrize("length", [4, 46, 0, -1])
def test_lengths_that_cannot_be_had(length):
    with pytest.raises(InputError, match=r"use 5 \(the tested pictures alone\) to 45"):
        numbers("1", length)
