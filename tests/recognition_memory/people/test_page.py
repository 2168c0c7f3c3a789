"""What goes into the page: which pairs and fillers, which pictures, and nothing from anywhere else."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.recognition_memory.people.page import write_page
from headcam.recognition_memory.stimuli.manifest import MemoryManifest
from headcam.recognition_memory.stimuli.prepare import prepare


def write_picture(path: Path, number: int, size=(40, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    Image.fromarray(np.kron(pixels, np.ones((8, 8, 1), np.uint8))).save(path)


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Two role-swapped sets, 5 pairs of each of two conditions and 20 fillers."""
    for k in range(20):
        for one in (1, 2):
            write_picture(tmp_path / f"set_{one}/study/filler_{k:02}.png", k)
    for c, condition in enumerate(("novel", "state")):
        for k in range(5):
            for seen, unseen in ((1, 2), (2, 1)):
                number = 100 + 20 * c + 2 * k
                write_picture(tmp_path / f"set_{seen}/study/{condition}_{k}.png", number + seen)
                write_picture(tmp_path / f"set_{seen}/test/{condition}_seen/{k}.png", number + seen)
                write_picture(tmp_path / f"set_{seen}/test/{condition}_unseen/{k}.png", number + unseen)
    return prepare(tmp_path, quiet=True).manifest


def design(page: Path) -> dict:
    return json.loads(page.read_text("utf-8").split('id="page">')[1].split("</script>")[0])


def test_everything_of_both_sets_is_in_the_page_once(manifest, tmp_path):
    facts = write_page(manifest, tmp_path / "memory.html", quiet=True)
    page = design(facts.path)
    table = MemoryManifest.read(manifest)
    assert facts.study_sets == ("1", "2") and facts.study == 30 and facts.repeats == 3
    assert facts.pairs == {"novel": 5, "state": 5} and not facts.left_out
    assert facts.bytes == facts.path.stat().st_size
    assert len(page["pictures"]) == 20 + 2 * 2 * 5
    assert page["manifest"]["hash"] == table.hash
    first, second = ({(p["condition"], p["number"]): p for p in one["pairs"]} for one in page["sets"])
    assert {key: (p["seen"], p["unseen"]) for key, p in first.items()} == {
        key: (p["unseen"], p["seen"]) for key, p in second.items()
    }
    for one in page["sets"]:
        studied = {s.sha256[:16] for s in table.study(one["name"])}
        assert {p["seen"] for p in one["pairs"]} | set(one["fillers"]) == studied
        assert not {p["unseen"] for p in one["pairs"]} & studied


def test_pictures_are_the_central_square_and_not_enlarged(manifest, tmp_path):
    page = design(write_page(manifest, tmp_path / "memory.html", quiet=True).path)
    for s in MemoryManifest.read(manifest).stimuli[:4]:
        data = base64.b64decode(page["pictures"][s.sha256[:16]].split(",")[1])
        shown = np.asarray(Image.open(io.BytesIO(data)), dtype=int)
        assert shown.shape == (32, 32, 3)
        assert np.abs(shown - np.asarray(Image.open(manifest.parent / s.path), dtype=int)[:, 4:36]).mean() < 4
    small = design(write_page(manifest, tmp_path / "small.html", size=16, quiet=True).path)
    data = base64.b64decode(next(iter(small["pictures"].values())).split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (16, 16)


def test_smaller_draws_are_parts_of_larger_ones_and_the_same_in_both_sets(manifest, tmp_path):
    def drawn(**settings) -> tuple[set, set]:
        page = design(write_page(manifest, tmp_path / "memory.html", quiet=True, **settings).path)
        first, second = page["sets"]
        numbers = {(p["condition"], p["number"]) for p in first["pairs"]}
        assert numbers == {(p["condition"], p["number"]) for p in second["pairs"]}
        assert set(first["fillers"]) == set(second["fillers"])
        return numbers, set(first["fillers"])

    small, large = drawn(num_pairs=2, num_fillers=6), drawn(num_pairs=3, num_fillers=12)
    assert [len(small[0]), len(small[1]), len(large[0]), len(large[1])] == [4, 6, 6, 12]
    assert small[0] < large[0] and small[1] < large[1]
    assert drawn(num_pairs=2, num_fillers=6, seed=1) != small


def test_the_same_words_give_the_same_bytes(manifest, tmp_path):
    pages = [write_page(manifest, tmp_path / name, quiet=True).path for name in ("a.html", "b.html")]
    assert sha256_file(pages[0]) == sha256_file(pages[1])
    other = write_page(manifest, tmp_path / "c.html", study_ms=1000, quiet=True).path
    assert design(other)["hash"] != design(pages[0])["hash"]


def test_a_studied_foil_and_a_picture_that_comes_again_are_left_out_and_counted(manifest, tmp_path):
    root = manifest.parent
    (root / "set_1/study/leak.png").write_bytes((root / "set_1/test/state_unseen/3.png").read_bytes())
    for k, place in enumerate(("novel_seen", "novel_unseen")):  # a pair of novel is tested again as "again"
        for one in (1, 2):
            again = root / f"set_{one}/test/again_{('seen', 'unseen')[k]}/0.png"
            again.parent.mkdir(parents=True)
            again.write_bytes((root / f"set_{one}/test/{place}/0.png").read_bytes())
    for one in (1, 2):
        for role, number in (("seen", 900 + one), ("unseen", 903 - one)):
            write_picture(root / f"set_{one}/test/again_{role}/1.png", number)
        write_picture(root / f"set_{one}/study/again_1.png", 900 + one)
    prepare(root, quiet=True)
    facts = write_page(manifest, tmp_path / "memory.html", conditions=["novel", "again", "state"], quiet=True)
    assert facts.left_out == {"the foil is studied": 1, "a picture stands in another tested pair": 1}
    assert facts.pairs == {"novel": 5, "again": 1, "state": 4}
    assert ("state", 3) not in {(p["condition"], p["number"]) for p in design(facts.path)["sets"][1]["pairs"]}


def test_the_page_loads_nothing(manifest, tmp_path):
    text = write_page(manifest, tmp_path / "memory.html", quiet=True).path.read_text("utf-8")
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["'](?!data:|\$\{)[^"']""", text)
    assert "sourceMappingURL" not in text and "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"study_set": "3"}, "no study set '3'"),
        ({"conditions": ["smell"]}, "no condition 'smell'"),
        ({"num_pairs": 6}, "has 5 pairs that people can be tested on"),
        ({"num_fillers": 21}, "20 studied pictures that no test uses"),
        ({"num_fillers": 2, "repeats": 0.5}, "only fillers do and there are 2"),
        ({"num_fillers": 1, "repeats": 0.1}, "only fillers do and there are 1"),
        ({"repeats": 1.0}, "repeats is 1.0"),
        ({"study_ms": 0}, "study_ms is 0"),
        ({"break_every": 0}, "break_every is 0"),
    ],
)
def test_what_makes_no_experiment_is_refused(manifest, tmp_path, settings, problem):
    with pytest.raises(InputError, match=re.escape(problem)):
        write_page(manifest, tmp_path / "memory.html", quiet=True, **settings)
    assert not (tmp_path / "memory.html").exists()


def test_jspsych_is_as_published():
    folder = Path(__file__).parents[3] / "recognition_memory/people/jspsych"
    named = dict(
        re.findall(r"^\| `([\w.-]+)` .*`([0-9a-f]{64})` \|$", (folder / "README.md").read_text(), re.MULTILINE)
    )
    assert named == {path.name: sha256_file(path) for path in folder.glob("*.js")} and len(named) == 2
