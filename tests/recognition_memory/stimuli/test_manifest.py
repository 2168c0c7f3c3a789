"""The table of stimuli: what it says, what it refuses, and the pixels that it leads to."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from headcam.errors import InputError
from headcam.recognition_memory.stimuli.manifest import COLUMNS, FLAGS, MemoryManifest, is_manifest, load_pictures
from headcam.recognition_memory.stimuli.prepare import prepare


def paint(path: Path, number: int, size: tuple[int, int] = (20, 20), **save) -> None:
    """Write a picture that follows from `number`, of `size` (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two role-swapped sets of three exemplar pairs (pictures 10 to 15) and two fillers."""
    root = tmp_path / "objects"
    for k in range(3):
        for study_set, seen, unseen in ((1, 10 + k, 13 + k), (2, 13 + k, 10 + k)):
            at = root / f"toy_{study_set}"
            paint(at / "study" / f"{seen}.png", seen)
            paint(at / "test" / "exemplar_seen" / f"p{k}.png", seen)
            paint(at / "test" / "exemplar_unseen" / f"q{k}.png", unseen)
    for filler in (1, 2):
        for study_set in (1, 2):
            paint(root / f"toy_{study_set}" / "study" / f"filler{filler}.png", filler)
    return root


@pytest.fixture
def manifest(folder) -> MemoryManifest:
    return MemoryManifest.read(prepare(folder, quiet=True).manifest)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def rewrite(path: Path, rows: list[dict[str, str]], columns=COLUMNS) -> None:
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def test_what_it_says(manifest):
    assert manifest.name == "objects" and manifest.study_sets == ("1", "2") and manifest.conditions == ("exemplar",)
    assert [s.path for s in manifest.study("1")] == [
        f"toy_1/study/{name}.png" for name in ("10", "11", "12", "filler1", "filler2")
    ]
    pairs = manifest.pairs("2", "exemplar")
    assert [p.number for p in pairs] == [0, 1, 2] and all(p.seen.seen and not p.unseen.seen for p in pairs)
    assert pairs[1].seen.path == "toy_2/test/exemplar_seen/p1.png"
    assert pairs[1].seen.sha256 == manifest.study("2")[1].sha256 == manifest.pairs("1", "exemplar")[1].unseen.sha256
    assert manifest.role_swapped and not any(s.flags for s in manifest.stimuli)
    with pytest.raises(InputError, match=r"no study set '3'.*use one of 1, 2"):
        manifest.study("3")
    with pytest.raises(InputError, match=r"no condition 'state'.*use one of exemplar"):
        manifest.pairs("1", "state")


def test_one_pair_in_the_wrong_role_is_no_role_swap(manifest):
    first, *rest = manifest.pairs("1", "exemplar")
    swapped = {first.seen: replace(first.seen, seen=False), first.unseen: replace(first.unseen, seen=True)}
    assert not replace(manifest, stimuli=tuple(swapped.get(s, s) for s in manifest.stimuli)).role_swapped
    one_set = replace(manifest, stimuli=tuple(s for s in manifest.stimuli if s.study_set == "1"))
    assert not one_set.role_swapped and rest


def test_written_and_read_again_from_another_place(manifest, tmp_path):
    elsewhere = MemoryManifest.read(manifest.write(tmp_path / "elsewhere" / "tables.csv"))
    assert elsewhere.name == "tables" and elsewhere.hash == manifest.hash
    assert all(Path(s.path).is_absolute() for s in elsewhere.stimuli)  # nothing lies below that folder
    size = (8, 8)
    assert torch.equal(
        load_pictures(manifest, manifest.study("1"), size), load_pictures(elsewhere, elsewhere.study("1"), size)
    )
    above = MemoryManifest.read(manifest.write(tmp_path / "above.csv"))
    assert above.study("1")[0].path == "objects/toy_1/study/10.png"


def test_its_hash_follows_content_and_roles_not_names(manifest, folder, tmp_path):
    copy = tmp_path / "copied"
    shutil.copytree(folder, copy)
    for path in list(copy.glob("toy_*/study/*.png")):
        path.rename(path.with_name(f"a{path.name}"))  # the same order
    assert MemoryManifest.read(prepare(copy, quiet=True).manifest).hash == manifest.hash
    first = copy / "toy_1" / "study" / "a10.png"
    first.rename(first.with_name("z.png"))  # another order of study
    assert MemoryManifest.read(prepare(copy, quiet=True).manifest).hash != manifest.hash
    swapped = [replace(s, study_set={"1": "2", "2": "1"}[s.study_set]) for s in manifest.stimuli]
    assert replace(manifest, stimuli=tuple(swapped)).hash != manifest.hash


def test_flags_are_facts_of_the_rows_not_of_the_column(manifest, folder):
    path = folder / "manifest.csv"
    rows = rows_of(path)
    foil = next(r for r in rows if r["study_set"] == "1" and r["seen"] == "false")
    leak = {**foil, "role": "study", "condition": "", "pair": "", "seen": "", "category": ""}
    rewrite(path, [*rows, leak])  # by hand, with the column of flags left empty
    stimuli = MemoryManifest.read(path).stimuli
    assert {s.flags for s in stimuli if s.sha256 == foil["sha256"] and s.study_set == "1"} == {
        ("leaked_foil",),
        ("studied_foil",),
    }
    pair = MemoryManifest.read(path).pairs("1", "exemplar")[0]
    assert pair.flags == ("leaked_foil",) and set(pair.flags) <= set(FLAGS)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("contract", "memory_manifest/2", "row 2 of memory manifest .* has contract 'memory_manifest/2'"),
        ("role", "train", "has role 'train'"),
        ("sha256", "ABC", "64 hexadecimal digits"),
        ("study_set", "", "has study_set ''"),
        ("path", "", "name the file"),
        ("condition", "novel", "leave it empty in rows of role study"),
    ],
)
def test_values_that_mean_nothing_are_refused(manifest, folder, column, value, message):
    path = folder / "manifest.csv"
    rows = rows_of(path)
    rows[0][column] = value
    rewrite(path, rows)
    with pytest.raises(InputError, match=message):
        MemoryManifest.read(path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("pair", "-1", "has pair '-1'"),
        ("seen", "yes", "has seen 'yes'"),
        ("seen", "false", "pair 0 of condition 'exemplar' in set '1' .* has 0 seen and 2 unseen pictures"),
        ("condition", "", "name it"),
        ("sha256", "0" * 64, "no study picture has its bytes"),
    ],
)
def test_tests_that_mean_nothing_are_refused(manifest, folder, column, value, message):
    path = folder / "manifest.csv"
    rows = rows_of(path)
    next(r for r in rows if r["seen"] == "true")[column] = value
    rewrite(path, rows)
    with pytest.raises(InputError, match=message):
        MemoryManifest.read(path)


def test_tables_that_are_none_are_refused(manifest, folder, tmp_path):
    path = folder / "manifest.csv"
    rows = rows_of(path)
    with pytest.raises(InputError, match=r"does not exist.*headcam memory prepare"):
        MemoryManifest.read(tmp_path / "nothing.csv")
    rewrite(path, rows, [c for c in COLUMNS if c not in ("pair", "seen")])
    with pytest.raises(InputError, match="lacks the columns pair, seen"):
        MemoryManifest.read(folder)
    rewrite(path, [r for r in rows if r["role"] == "test"])
    with pytest.raises(InputError, match=r"set '1' .* has no study pictures"):
        MemoryManifest.read(folder)
    rewrite(path, [r for r in rows if r["role"] == "study" or r["study_set"] == "1"])
    with pytest.raises(InputError, match=r"set '2' .* has no test pairs"):
        MemoryManifest.read(folder)
    rewrite(path, [])
    with pytest.raises(InputError, match="has no rows"):
        MemoryManifest.read(folder)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no readable CSV table"):
        MemoryManifest.read(folder)


def one_picture(folder: Path, **kwargs) -> MemoryManifest:
    """A manifest whose study/ holds a picture of a given size, and one foil."""
    paint(folder / "study" / kwargs.pop("name", "a.png"), 0, **kwargs)
    paint(folder / "foils" / "b.png", 1)
    return MemoryManifest.read(prepare(folder, quiet=True).manifest)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [96, 50, 256])
def test_square_pictures_are_resized_as_torchvision_does(tmp_path, resample, side):
    manifest = one_picture(tmp_path, size=(side, side), name="a.jpg", quality=92)
    peer = transforms.Compose([transforms.Resize(64, transforms.InterpolationMode(resample)), transforms.PILToTensor()])
    with Image.open(tmp_path / "study" / "a.jpg") as picture:
        expected = peer(picture)
    (pixels,) = load_pictures(manifest, manifest.study("1"), (64, 64), resample)
    assert pixels.dtype == torch.uint8 and pixels.is_contiguous() and torch.equal(pixels, expected)


@pytest.mark.parametrize(
    ("size", "wanted", "box"),  # box: left, upper, right, lower
    [
        ((56, 96), (28, 28), (20, 0, 76, 56)),
        ((97, 40), (20, 20), (0, 28, 40, 68)),
        ((60, 60), (20, 40), (0, 15, 60, 45)),
        ((60, 60), (64, 32), (15, 0, 45, 60)),
    ],
)
def test_other_pictures_lose_as_little_as_the_wanted_shape_allows(tmp_path, size, wanted, box):
    manifest = one_picture(tmp_path, size=size)
    with Image.open(tmp_path / "study" / "a.png") as picture:
        expected = np.asarray(picture.crop(box).resize(wanted[::-1], Image.Resampling.BILINEAR))
    (pixels,) = load_pictures(manifest, manifest.study("1"), wanted)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_pictures_taken_turned_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by 90 degrees clockwise
    manifest = one_picture(tmp_path, exif=exif)
    with Image.open(tmp_path / "study" / "a.png") as picture:
        stored = np.asarray(picture)
    (pixels,) = load_pictures(manifest, manifest.study("1"), (20, 20))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.rot90(stored, -1))


def test_changed_and_missing_files_are_named(manifest, folder):
    victim = folder / "toy_1" / "study" / "11.png"
    paint(victim, 99)
    with pytest.raises(InputError, match=r"11\.png has changed since manifest objects was made"):
        load_pictures(manifest, manifest.study("1"), (8, 8))
    victim.unlink()
    with pytest.raises(InputError, match=r"11\.png of manifest objects cannot be read: No such file"):
        load_pictures(manifest, manifest.study("1"), (8, 8))
    assert load_pictures(manifest, (), (8, 8)).shape == (0, 3, 8, 8)
    with pytest.raises(InputError, match="0 x 8 pixels"):
        load_pictures(manifest, (), (0, 8))


def test_another_table_called_manifest_is_none_of_ours(tmp_path):
    (tmp_path / "manifest.csv").write_text("file,label\na.jpg,cat\n")
    assert not is_manifest(tmp_path) and not is_manifest(tmp_path / "manifest.csv") and not is_manifest(tmp_path / "x")
    (tmp_path / "ours.csv").write_text(",".join(COLUMNS) + "\n")
    assert is_manifest(tmp_path / "ours.csv")
