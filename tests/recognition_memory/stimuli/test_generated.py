"""Generated stimuli: the published layout, pairs that are what they are called, the same bytes again."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from headcam.errors import InputError
from headcam.recognition_memory.stimuli.generated import generate_stimuli, noise_stimuli
from headcam.recognition_memory.stimuli.manifest import MemoryManifest, Pair, load_pictures

SMALL = {"num_pairs": 6, "num_fillers": 4, "size": (32, 32), "seed": 3, "quiet": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> MemoryManifest:
    return MemoryManifest.read(generate_stimuli(tmp_path_factory.mktemp("world") / "toys", **SMALL))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pictures(manifest: MemoryManifest, pairs: tuple[Pair, ...], size: tuple[int, int]) -> np.ndarray:
    """(pairs, 2, H, W, 3) float64: seen, unseen."""
    rows = [s for pair in pairs for s in (pair.seen, pair.unseen)]
    pixels = load_pictures(manifest, rows, size).permute(0, 2, 3, 1).numpy()
    return pixels.reshape(-1, 2, *pixels.shape[1:]).astype(np.float64)


def test_two_role_swapped_sets_without_a_fault(made):
    assert made.conditions == ("novel", "exemplar", "state") and made.role_swapped
    assert [len(made.study(s)) for s in made.study_sets] == [3 * 6 + 4] * 2
    assert not any(s.flags for s in made.stimuli)
    assert len({s.sha256 for s in made.stimuli}) == 3 * 6 * 2 + 4  # every picture is another one
    fillers = [{s.sha256 for s in made.study(k) if "filler" in s.path} for k in made.study_sets]
    assert fillers[0] == fillers[1] and len(fillers[0]) == 4


def test_the_pictures_show_one_thing_on_white(made):
    for condition in made.conditions:
        found = pictures(made, made.pairs("1", condition), (32, 32)).reshape(-1, 32, 32, 3)
        edge = np.concatenate([found[:, 0], found[:, -1], found[:, :, 0], found[:, :, -1]], 1)
        assert (edge > 250).all()
        covered = (found.min(-1) < 235).mean((1, 2))
        assert (0.03 < covered).all() and (covered < 0.9).all()


def test_states_share_their_colours_exemplars_do_not(made):
    """The mean colour of an object stays about the same when it is turned; another object has another one."""

    def distance(condition: str) -> float:
        found = pictures(made, made.pairs("1", condition), (32, 32))
        objects = (found.min(-1) < 235)[..., None]
        mean = (found * objects).sum((2, 3)) / objects.sum((2, 3))
        return float(np.median(np.abs(mean[:, 0] - mean[:, 1]).mean(-1)))

    assert 2 * distance("state") < min(distance("exemplar"), distance("novel"))
    for condition in made.conditions:  # and the pictures of a pair are never nearly the same
        found = pictures(made, made.pairs("1", condition), (32, 32))
        assert (np.abs(found[:, 0] - found[:, 1]).mean((1, 2, 3)) > 10).all()


def test_what_is_missing_is_made_again_to_the_byte(made, tmp_path):
    folder = tmp_path / "toys"
    shutil.copytree(made.root, folder)
    whole = bytes_of(folder)
    (folder / "manifest.csv").unlink()
    for path in sorted(folder.rglob("*.png"))[::3]:
        path.unlink()
    generate_stimuli(folder, **SMALL)
    assert bytes_of(folder) == whole


@pytest.mark.slow
def test_processes_do_not_matter(made, tmp_path):
    generate_stimuli(tmp_path / "toys", **SMALL, processes=2)
    assert bytes_of(tmp_path / "toys") == bytes_of(made.root)


def test_more_pairs_keep_the_first_ones_and_seeds_differ(made, tmp_path):
    few = {**SMALL, "num_pairs": 2, "num_fillers": 1, "conditions": ["state"]}
    shorter = MemoryManifest.read(generate_stimuli(tmp_path / "few", **few))
    assert [p.seen.sha256 for p in shorter.pairs("1", "state")] == [p.seen.sha256 for p in made.pairs("1", "state")[:2]]
    other = MemoryManifest.read(generate_stimuli(tmp_path / "other", **{**few, "seed": 4}))
    assert not {s.sha256 for s in other.stimuli} & {s.sha256 for s in shorter.stimuli}


def test_noise_is_uniform_and_independent(tmp_path):
    manifest = MemoryManifest.read(noise_stimuli(tmp_path / "n", num_pairs=8, num_fillers=3, size=(16, 24), quiet=True))
    assert manifest.conditions == ("noise",) and manifest.role_swapped and len(manifest.study("1")) == 11
    found = pictures(manifest, manifest.pairs("1", "noise"), (16, 24)).reshape(16, -1)
    values = np.bincount(found.astype(int).ravel(), minlength=256)
    assert abs(found.mean() - 127.5) < 5 * 73.9 / np.sqrt(found.size) and values.min() > 0
    between = np.corrcoef(found)[np.triu_indices(16, 1)]
    assert np.abs(between).max() < 5 / np.sqrt(found.shape[1])


def test_folders_and_values_that_do_not_fit_are_refused(made, tmp_path):
    with pytest.raises(InputError, match="generated stimuli of other settings"):
        generate_stimuli(made.root, **{**SMALL, "seed": 9})
    with pytest.raises(InputError, match="generated stimuli of other settings"):
        noise_stimuli(made.root, quiet=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other things already"):
        generate_stimuli(tmp_path / "full", **SMALL)
    for wrong, message in (
        ({"num_pairs": 0}, "0 pairs and 4 fillers"),
        ({"size": (8, 32)}, "8 x 32 pixels"),
        ({"conditions": ["novel", "scene"]}, "'scene' cannot be generated"),
        ({"conditions": []}, r"\(none\) cannot be generated"),
    ):
        with pytest.raises(InputError, match=message):
            generate_stimuli(tmp_path / "new", **{**SMALL, **wrong})
    assert not (tmp_path / "new").exists()
