"""From folders to a manifest: pairing, planted faults, and the published stimuli where they are at hand."""

import csv
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headcam.errors import InputError
from headcam.recognition_memory.stimuli.manifest import MemoryManifest
from headcam.recognition_memory.stimuli.prepare import prepare

STIMULI = Path(__file__).resolve().parents[4] / "shared" / "data" / "recognition_memory"


def shared_data(test):
    """Mark a test that reads the published stimuli."""
    absent = pytest.mark.skipif(not STIMULI.is_dir(), reason="../shared/data/recognition_memory is absent")
    return pytest.mark.shared(absent(test))


def paint(path: Path, number: int, size: tuple[int, int] = (12, 12)) -> None:
    """Write a picture that follows from `number`, of `size` (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")  # whatever the suffix says


def object_set(at: Path, num_pairs: int = 4, fillers: range = range(900, 903), swap: bool = False) -> None:
    """A set in the layout of Brady et al.: pictures 100 + k and 200 + k are a pair, stored in falling order."""
    for k in reversed(range(num_pairs)):
        seen, unseen = (200 + k, 100 + k) if swap else (100 + k, 200 + k)
        paint(at / "study" / "study" / f"{seen}.png", seen)
        paint(at / "test" / "state_seen" / "state_2" / f"{k}_a.png", seen)
        paint(at / "test" / "state_unseen" / "state_1" / f"{k}_b.png", unseen)
    for filler in fillers:
        paint(at / "study" / "study" / f"{filler}.png", filler)


def category_set(at: Path, categories: tuple[str, ...] = ("zebra", "Axe", "cup")) -> None:
    """A set in the layout of Konkle et al.: a folder for each category, novel foils in one folder."""
    for k, category in enumerate(categories):
        paint(at / "study" / "2_exemplar" / category / f"{9 - k}.png", k)
        paint(at / "study" / "2_exemplar" / category / f"other{k}.png", 50 + k)
        for condition in ("2_exemplar", "novel", "16_exemplar"):
            paint(at / "test" / f"{condition}_seen" / category / f"{9 - k}.png", k)
        for condition, first in (("2_exemplar", 100), ("16_exemplar", 300)):
            paint(at / "test" / f"{condition}_unseen" / category / f"{k}.png", first + k)
        paint(at / "test" / "novel_unseen" / "novel_unseen" / f"n{9 - k}.jpe", 200 + k)


def names(manifest: MemoryManifest, condition: str, study_set: str = "1") -> list[tuple[str, str]]:
    return [(Path(p.seen.path).name, Path(p.unseen.path).name) for p in manifest.pairs(study_set, condition)]


def test_two_role_swapped_sets(tmp_path):
    object_set(tmp_path / "toys_1")
    object_set(tmp_path / "toys_2", swap=True)
    (tmp_path / "notes").mkdir()
    found = prepare(tmp_path, quiet=True)
    assert found.sets == ("1", "2") and found.study == 14 and found.pairs == 8
    assert found.manifest == tmp_path / "manifest.csv"
    assert found.flagged == {} and found.flagged_rows == 0 and found.skipped == ()
    assert found.notes == ("taken as study sets: toys_1, toys_2; not: notes",)
    manifest = MemoryManifest.read(tmp_path)
    assert manifest.role_swapped
    assert names(manifest, "state") == [(f"{k}_a.png", f"{k}_b.png") for k in range(4)]
    assert {s.category for s in manifest.study("1")} == {"study"}


def test_a_set_by_itself_and_names_of_sets(tmp_path):
    object_set(tmp_path / "toys_7")
    found = prepare(tmp_path / "toys_7", tmp_path / "out", name="mine", quiet=True)
    assert found.sets == ("7",) and found.manifest == tmp_path / "out" / "mine.csv"
    assert any("one study set" in note for note in found.notes)
    assert MemoryManifest.read(found.manifest).name == "mine"
    object_set(tmp_path / "tools_7", swap=True)
    assert prepare(tmp_path, quiet=True).sets == ("tools_7", "toys_7")  # the number alone would not tell them apart
    with pytest.raises(InputError, match=r"other\.csv cannot be called 'mine'"):
        prepare(tmp_path, tmp_path / "other.csv", name="mine")


def test_categories_are_paired_by_their_names_as_bytes(tmp_path):
    category_set(tmp_path / "things")
    found = prepare(tmp_path / "things", quiet=True)
    manifest = MemoryManifest.read(found.manifest)
    assert manifest.conditions == ("novel", "2_exemplar", "16_exemplar") and manifest.study_sets == ("things",)
    assert [p.seen.category for p in manifest.pairs("things", "2_exemplar")] == ["Axe", "cup", "zebra"]
    assert names(manifest, "2_exemplar", "things") == [("8.png", "1.png"), ("7.png", "2.png"), ("9.png", "0.png")]
    # Foils of the novel condition lie in one folder: by file name.
    assert [unseen for _, unseen in names(manifest, "novel", "things")] == ["n7.jpe", "n8.jpe", "n9.jpe"]
    assert {s.category for s in manifest.study("things")} == {f"2_exemplar/{c}" for c in ("zebra", "Axe", "cup")}
    for one, other in (("novel", "2_exemplar"), ("novel", "16_exemplar"), ("2_exemplar", "16_exemplar")):
        assert f"{one} and {other} of set things test the same 3 studied pictures" in found.notes


def test_capitals_come_before_small_letters(tmp_path):
    """As in the published pairing, whatever the language of the machine sorts like."""
    for k, (seen, unseen) in enumerate((("a.png", "p.png"), ("B.PNG", "R.png"), ("_c.png", "q.png"))):
        paint(tmp_path / "study" / seen, k)
        paint(tmp_path / "test" / "state_seen" / seen, k)
        paint(tmp_path / "test" / "state_unseen" / unseen, 10 + k)
    manifest = MemoryManifest.read(prepare(tmp_path, tmp_path / "toys.csv", quiet=True).manifest)
    (study_set,) = manifest.study_sets
    expected = [("B.PNG", "R.png"), ("_c.png", "p.png"), ("a.png", "q.png")]
    assert names(manifest, "state", study_set) == expected


def test_planted_faults_are_flagged(tmp_path):
    """A leaked foil, a copy among the studied, a foil used twice: the faults of the published Konkle set 2."""
    object_set(tmp_path / "toys_1", num_pairs=5)
    object_set(tmp_path / "toys_2", num_pairs=5, swap=True)
    study, test = tmp_path / "toys_1" / "study", tmp_path / "toys_1" / "test"
    paint(study / "leak.png", 203)  # the foil of pair 3
    paint(study / "again" / "copy.png", 101)  # pair 1, studied twice
    paint(test / "state_unseen" / "state_1" / "4_b.png", 200)  # the foil of pair 4 is that of pair 0
    found = prepare(tmp_path, quiet=True)
    assert found.flagged == {
        "study_duplicate": 2,
        "studied_foil": 1,
        "studied_twice": 1,
        "leaked_foil": 1,
        "repeated_foil": 2,
    }
    assert found.flagged_rows == 7
    manifest = MemoryManifest.read(found.manifest)
    flags = {p.number: p.flags for p in manifest.pairs("1", "state")}
    assert flags == {0: ("repeated_foil",), 1: ("studied_twice",), 2: (), 3: ("leaked_foil",), 4: ("repeated_foil",)}
    assert not any(s.flags for s in manifest.stimuli if s.study_set == "2")
    assert {Path(s.path).name for s in manifest.study("1") if s.flags} == {"leak.png", "copy.png", "101.png"}
    with open(found.manifest, newline="") as file:
        assert sum(bool(row["flags"]) for row in csv.DictReader(file)) == 7
    assert not manifest.role_swapped and any("not role-swapped" in note for note in found.notes)


def test_study_and_foils(tmp_path):
    for k in range(5):
        paint(tmp_path / "study" / f"{k}.png", k)
    for k in range(3):
        paint(tmp_path / "foils" / "sub" / f"f{k}.png", 10 + k)
    found = prepare(tmp_path, quiet=True)
    manifest = MemoryManifest.read(found.manifest)
    assert found.sets == ("1", "2") and found.study == 10 and manifest.role_swapped
    assert names(manifest, "novel") == [(f"{k}.png", f"f{k}.png") for k in range(3)]
    assert names(manifest, "novel", "2") == [(f"f{k}.png", f"{k}.png") for k in range(3)]
    assert {Path(s.path).name for s in manifest.study("2")} == {"f0.png", "f1.png", "f2.png", "3.png", "4.png"}
    for k in range(3, 6):
        paint(tmp_path / "foils" / f"f{k}.png", 10 + k)
    with pytest.raises(InputError, match="6 foils for 5 study pictures"):
        prepare(tmp_path, quiet=True)


def test_broken_study_pictures_are_skipped_and_named_broken_test_pictures_are_not(tmp_path):
    object_set(tmp_path / "toys_1")
    (tmp_path / "toys_1" / "study" / "study" / "901.png").write_bytes(b"no picture")
    paint(tmp_path / "toys_1" / "study" / "wide.png", 5, size=(12, 30))
    found = prepare(tmp_path, quiet=True)
    ((file, reason),) = found.skipped
    assert file == "toys_1/study/study/901.png" and "no picture that can be decoded" in reason
    assert found.study == 7 and "901.png" not in found.manifest.read_text()
    assert "1 file is not square (toys_1/study/wide.png is 30 x 12 pixels): the largest central part is shown" in (
        found.notes
    )
    victim = tmp_path / "toys_1" / "test" / "state_unseen" / "state_1" / "2_b.png"
    victim.write_bytes(victim.read_bytes()[:60])
    found.manifest.unlink()
    with pytest.raises(InputError, match=r"test picture .*2_b\.png cannot be used.*remove pair 2 of condition 'state'"):
        prepare(tmp_path, quiet=True)
    assert not found.manifest.exists()


def break_study(at: Path) -> None:
    (at / "study").rename(at / "learn")


def empty_study(at: Path) -> None:
    for path in (at / "study").rglob("*.png"):
        path.unlink()


def no_unseen(at: Path) -> None:
    (at / "test" / "state_unseen").rename(at / "test" / "state_foils")


def unequal(at: Path) -> None:
    (at / "test" / "state_seen" / "state_2" / "0_a.png").unlink()


def not_studied(at: Path) -> None:
    (at / "study" / "study" / "102.png").unlink()


def no_condition(at: Path) -> None:
    for name in ("state_seen", "state_unseen"):
        (at / "test" / name).rename(at / "test" / name.replace("_", "-"))


def crossed(at: Path) -> None:
    for side, folders in (("seen", "aab"), ("unseen", "abb")):
        for k, folder in enumerate(folders):
            paint(at / "test" / f"exemplar_{side}" / folder / f"{k}.png", 100 + k if side == "seen" else 700 + k)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (break_study, r"toys_1 has no study/"),
        (empty_study, r"study holds no pictures"),
        (no_unseen, r"condition 'state' has no pictures in .*state_unseen"),
        (unequal, r"condition 'state' .* has 3 seen and 4 unseen pictures"),
        (not_studied, r"2_a\.png is tested as seen in set '1' .* no study picture has its bytes"),
        (no_condition, r"holds no condition"),
        (crossed, r"'exemplar' .* has 2 seen and 1 unseen pictures in category 'a'"),
    ],
)
def test_faults_of_the_folder_are_errors_that_name_it(tmp_path, fault, message):
    object_set(tmp_path / "toys_1")
    fault(tmp_path / "toys_1")
    for folder in (tmp_path / "toys_1", tmp_path):
        with pytest.raises(InputError, match=message):
            prepare(folder, quiet=True)
    assert not list(tmp_path.rglob("manifest.csv"))


def test_folders_that_hold_no_set(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        prepare(tmp_path / "nothing")
    paint(tmp_path / "a.png", 0)
    with pytest.raises(InputError, match=r"holds no set of stimuli. Fix: a set holds study/"):
        prepare(tmp_path, quiet=True)


def test_the_order_of_the_file_system_and_of_the_threads_does_not_matter(tmp_path, monkeypatch):
    object_set(tmp_path / "toys_1")
    category_set(tmp_path / "things_2")
    first = prepare(tmp_path, quiet=True).manifest.read_bytes()
    walk, iterdir = os.walk, Path.iterdir

    def backwards(top, **kwargs):
        for base, folders, files in walk(top, **kwargs):
            folders.sort(reverse=True)
            yield base, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(iterdir(self), reverse=True)))
    monkeypatch.setattr("headcam.recognition_memory.stimuli.prepare.THREADS", 1)
    assert prepare(tmp_path, quiet=True).manifest.read_bytes() == first


@shared_data
def test_brady(tmp_path):
    found = prepare(STIMULI, tmp_path / "brady.csv", quiet=True)
    assert found.flagged_rows == 0 and found.skipped == ()
    assert found.notes == ("taken as study sets: brady_1, brady_2; not: konkle_objects",)
    brady = MemoryManifest.read(found.manifest)
    assert brady.study_sets == ("1", "2") and brady.conditions == ("novel", "exemplar", "state") and brady.role_swapped
    with open(STIMULI / "brady_pairs.csv", newline="") as file:
        published = list(csv.DictReader(file))
    assert len(published) == 300
    for study_set, condition in product(brady.study_sets, brady.conditions):
        assert len(brady.study(study_set)) == 2500
        rows = [row for row in published if row["condition"] == condition]
        assert names(brady, condition, study_set) == [
            tuple(
                row[which]
                for which in sorted(("picture_1", "picture_2"), key=lambda w: w != row[f"studied_in_set_{study_set}"])
            )
            for row in sorted(rows, key=lambda row: int(row["pair"]))
        ]


@shared_data
def test_konkle(tmp_path):
    """The faults that the reference lists in its section 6.1."""
    found = prepare(STIMULI / "konkle_objects", tmp_path / "konkle.csv", quiet=True)
    manifest = MemoryManifest.read(found.manifest)
    assert manifest.conditions == ("novel", "1_exemplar", "2_exemplar", "4_exemplar", "8_exemplar", "16_exemplar")
    assert all(len(manifest.pairs(s, c)) == 40 for s in ("1", "2") for c in manifest.conditions)
    assert len(manifest.study("1")) == len(manifest.study("2")) == 1240 and not manifest.role_swapped
    assert found.flagged_rows == 240 and not any(s.flags for s in manifest.stimuli if s.study_set == "1")
    doubled = {s.sha256 for s in manifest.study("2") if "study_duplicate" in s.flags}
    assert len(doubled) == 40 and len({s.sha256 for s in manifest.study("2")}) == 1200
    leaked = [p for p in manifest.pairs("2", "1_exemplar") if "leaked_foil" in p.flags]
    assert [p.number for p in leaked] == [6, 28, 31, 39]
    assert [p.seen.category for p in leaked] == ["speakers", "trunk", "umbrella", "yarn"]
    assert found.flagged["leaked_foil"] == 4
    assert sum("AMC5143AAS_COB_370.jpe is 96 x 56 pixels" in note for note in found.notes) == 1
    for study_set in ("1", "2"):
        assert f"novel and 1_exemplar of set {study_set} test the same 40 studied pictures" in found.notes
    assert "1_exemplar and 16_exemplar of set 2 share 36 foils" in found.notes
    assert any(note.startswith("condition 16_exemplar is the same in all sets") for note in found.notes)
