"""`headcam compare`, folders to page and table: numbers are the probes', nothing is silent, pictures are checked."""

import csv
import hashlib
import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headcam.cli.compare import main
from headcam.errors import InputError
from headcam.evaluation.compare import compare
from headcam.evaluation.comparing.table import COLUMNS
from headcam.evaluation.scoring.scores import Score, read_scores
from headcam.evaluation.watching.record import Record, Row
from headcam.files import sha256_file, write_json

SHAPE, CORRUPTED = "linear/cue-conflict/shape_bias", "linear/corruption/gaussian_noise/3/top1"


def text_of(page: Path) -> str:
    text = re.sub(r"<svg.*?</svg>|<style>.*?</style>|<img[^>]*>", " ", page.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split()).replace("\N{NON-BREAKING HYPHEN}", "-")


def sections(page: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page.read_text("utf-8"))


@pytest.fixture
def two(tmp_path, write_probe, world) -> list[Path]:
    return [
        write_probe(tmp_path / "1", "mae", world, 0.8, draws=2, curve=(2, 5), layers=2, hours=1.0),
        write_probe(tmp_path / "2", "dino", world, 1.6, seed=2, draws=2, curve=(2, 5), layers=2, hours=20.0),
    ]


def test_page_and_table_say_what_the_probes_found(two, tmp_path):
    result = compare(two, tmp_path / "out", quiet=True)
    text = text_of(result.page)
    scores = {s.model: s for s in read_scores(two[0] / "scores.csv") if s.metric == "linear/top1"}
    scores |= {s.model: s for s in read_scores(two[1] / "scores.csv") if s.metric == "linear/top1"}
    for score in scores.values():
        shown = f"{score.value:.1f}" + ("" if score.low == score.high else f" [{score.low:.1f}, {score.high:.1f}]")
        assert shown in text
    (difference,) = result.differences[result.main]
    gap = scores["dino"].value - scores["mae"].value
    assert difference.interval.estimate == pytest.approx(gap)
    assert f"dino minus mae +{gap:.1f} [+{difference.interval.low:.1f}, +{difference.interval.high:.1f}]" in text
    assert f"dino gets {scores['dino'].value:.1f} %" in result.headline and result.headline in text
    assert "this test cannot tell" not in result.headline and "Not shown to be better" not in result.headline
    assert "stands corrected" not in text, "there is one difference, and nothing to correct for"
    for heading in (
        "The numbers",
        "Differences between models",
        "Accuracy against labels",
        "Accuracy from block to block",
        "Hours of pretraining video against score",
        "Pictures on which they differ",
        "Confusions that one makes and the other does not",
        "Classes on which they differ most",
        "Do they err on the same pictures?",
    ):
        assert heading in sections(result.page)
    assert "What may not be compared" not in sections(result.page)
    assert "Nothing was skipped" in text and "Nothing was chosen on test pictures" in text
    assert "<img" not in result.page.read_text("utf-8")


def test_the_table_has_every_score_and_every_difference(two, tmp_path):
    result = compare(two, tmp_path / "out", quiet=True)
    with open(result.table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and {row["contract"] for row in rows} == {"compare/1"}
    scores = [row for row in rows if row["kind"] == "score"]
    assert len(scores) == sum(len(read_scores(folder / "scores.csv")) for folder in two)
    for folder in two:
        for score in read_scores(folder / "scores.csv"):
            (row,) = [
                r for r in scores if (r["folder"], r["model"], r["metric"]) == (str(folder), score.model, score.metric)
            ]
            assert float(row["value"]) == score.value and row["protocol_hash"] == score.protocol_hash
    found = [row for row in rows if row["kind"] == "difference"]
    assert len(found) == sum(map(len, result.differences.values())) + len(result.above_baselines)
    row = next(r for r in found if (r["metric"], r["name"], r["minus"]) == ("linear/top1", "dino", "mae"))
    assert float(row["value"]) == result.differences[result.main][0].interval.estimate
    assert row["pairing"] == "paired" and row["folder"] == str(two[1])


def test_the_same_words_give_the_same_bytes(two, tmp_path):
    files = []
    for _ in range(2):
        result = compare(two, tmp_path / "out", quiet=True)
        files.append((result.page.read_bytes(), result.table.read_bytes()))
    assert files[0] == files[1]


def test_models_that_cannot_be_told_apart_are_called_so(tmp_path, write_probe, world):
    folders = [write_probe(tmp_path / str(k), f"m{k}", world, 1.0, seed=k) for k in range(2)]
    headline = compare(folders, tmp_path / "out", quiet=True).headline
    assert headline.count("this test cannot tell the two apart") == 1
    found = re.search(
        r"difference of ([\d.]+) points .* from (\S+) to (\S+): this", headline.replace("\N{MINUS SIGN}", "-")
    )
    estimate, low, high = map(float, found.groups())  # the better model less the other, as the sentence names them
    assert low < 0 < high and abs((low + high) / 2 - estimate) < 1


def test_a_model_that_is_no_better_than_its_random_weights_is_named(tmp_path, write_probe, world):
    folders = [write_probe(tmp_path / str(k), f"m{k}", world, skill, seed=k) for k, skill in enumerate((1.6, 0.4))]
    headline = compare(folders, tmp_path / "out", quiet=True).headline
    assert "Not shown to be better than its own random weights: m1." in headline


def test_a_model_of_another_protocol_stands_apart_with_the_reason(two, tmp_path, write_probe, world):
    other = write_probe(tmp_path / "3", "cls-token", world, 3.0, seed=3, pool="cls")
    result = compare([*two, other], tmp_path / "out", quiet=True)
    text = text_of(result.page)
    assert "features.pool: avg | cls" in text and "What may not be compared" in sections(result.page)
    assert "most of 2 models" not in text and "dino gets" in result.headline, "the best is not the best of its column"
    assert all("cls-token" not in (d.first.name, d.second.name) for d in result.differences[result.main])


def test_twelve_models_are_each_compared_with_the_first(tmp_path, write_probe, world):
    folders = [
        write_probe(tmp_path / str(k), f"model-{k:02d}", world, 1 + k / 20, seed=k, stems=["linear"]) for k in range(12)
    ]
    result = compare(folders, tmp_path / "out", quiet=True)
    text = text_of(result.page)
    assert len(result.differences[result.main]) == 11 and "stands corrected" in text
    assert "each is compared with the first only" in text and "random weights of model-00, model-01, model-02" in text
    assert "Twelve models compared" in text and "model-11 minus model-00" in text
    assert "wrong, and what they said" in text


def test_alarms_are_on_the_page_and_change_the_status(two, tmp_path, write_probe, world, capsys):
    details = {"at_the_end_of_the_range": True, "base_lr_per_256": 1.0}
    gaps = [{"model": "tc", "stem": f"fewshot/draw{d}", "honest_top1": 30.0, "top1": 33.0 + d} for d in range(2)]
    other = write_probe(tmp_path / "3", "tc", world, 1.2, seed=3, details=details, test_selection=gaps)
    report = json.loads((other / "probe.json").read_text())
    report["data"]["skipped"] = [{"picture": "val/x.png", "reason": "garbage"}]
    write_json(other / "probe.json", report)
    out = tmp_path / "out"
    assert main([*map(str, two), f"--out={out}", "--quiet"]) == 0
    assert "alarm:" not in capsys.readouterr().out
    assert main([*map(str, two), str(other), f"--out={out}", "--quiet"]) == 1
    printed = capsys.readouterr().out
    assert f"alarm: {other}: 1 picture was skipped, such as val/x.png (garbage)" in printed
    text = text_of(out / "compare.html")
    assert "1 picture was skipped, such as val/x.png (garbage)" in text
    assert "the learning rate that was chosen, 1, is at the end of the range" in text
    assert "tc fewshot 30.0 33.5 +3.5" in text and "are biased and no scores" in text
    assert "No linear-aug-v2 of raw pixels: needs an encoder." in text


def test_robustness_stands_beside_people(tmp_path, write_probe, world):
    def extra(name: str, seed: int, value: float) -> list[Score]:
        return [
            Score(name, f"{seed:064x}", "made@aa", "linear-v2", "h", metric, value, value - 2, value + 2, 300, 0)
            for metric in (SHAPE, CORRUPTED, "linear/corruption/mean/top1", "linear/edges/top1")
        ]

    folders = [
        write_probe(tmp_path / str(k), f"m{k}", world, seed=k, extra=extra(f"m{k}", k, 20.0 + 7 * k)) for k in range(2)
    ]
    result = compare(folders, tmp_path / "out", quiet=True)
    text = text_of(result.page)
    assert "Robustness" in sections(result.page)
    assert "linear cue-conflict shape bias 20.0 [18.0, 22.0] 27.0 [25.0, 29.0] 95.8" in text, "people, 480 pictures"
    assert "linear edges, top-1 20.0 [18.0, 22.0] 27.0 [25.0, 29.0] 87.1 [77.0, 97.2]" in text
    assert "linear corruption mean, top-1" in text and "gaussian noise" not in text, "severities are in the table only"
    assert CORRUPTED in result.table.read_text()


def with_files(folder: Path, world):
    """The world's test pictures as files, named by their true hashes."""
    pictures = []
    for k, picture in enumerate(world.test):
        path = folder / picture.name
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = np.full((20, 30, 3), (k % 250, picture.label * 30, k // 250), np.uint8)
        Image.fromarray(colour).save(path)
        pictures.append(replace(picture, root=folder, sha256=sha256_file(path)))
    return replace(world, test=tuple(sorted(pictures, key=lambda p: (p.label, p.sha256, p.name))))


def test_pictures_are_those_that_were_tested_and_can_be_left_out(tmp_path, write_probe, world):
    data = with_files(tmp_path / "pictures", world)
    folders = [write_probe(tmp_path / str(k), f"m{k}", data, seed=k) for k in range(2)]
    shown = compare(folders, tmp_path / "out", labelled=tmp_path / "pictures", quiet=True).page
    assert shown.read_text().count("<img") == 6
    hidden = compare(folders, tmp_path / "out", labelled=tmp_path / "pictures", frames=False, quiet=True).page
    assert "<img" not in hidden.read_text() and "Pictures are left out of this report" in text_of(hidden)
    for path in (tmp_path / "pictures").rglob("*.png"):
        path.write_bytes(hashlib.sha256(path.read_bytes()).digest())
    with pytest.raises(InputError, match=r"of the probes is not in .*pictures, or is another one there"):
        compare(folders, tmp_path / "out", labelled=tmp_path / "pictures", quiet=True)
    with pytest.raises(InputError, match=r"labelled folder .*gone does not exist"):
        compare(folders, tmp_path / "out", labelled=tmp_path / "gone", quiet=True)


def test_online_probes_are_one_chart(two, tmp_path):
    for folder in two:
        Record(folder / "online_probe.csv").add(
            [
                Row(k, 10 * k, h, h, "linear-v2", "h", "d@1", "linear/top1", 20.0 + k, 18.0, 30.0, 99, 12.5)
                for k, h in enumerate((0.0, 0.1, 1.0))
            ]
        )
    result = compare(two, tmp_path / "out", quiet=True)
    assert "Accuracy during pretraining" in sections(result.page)
    assert "accuracy over 0.1 to 1 hours seen" in result.page.read_text()


def test_command_line_says_the_result_and_names_the_files(two, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*map(str, two), "--out", str(out), "--names", "first, second", "--metric", "linear/top5"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "second gets" in printed[0] and "(linear, top-5)" in printed[0]
    assert printed[-2:] == [f"table: {out / 'compare.csv'}", f"page: {out / 'compare.html'}"]
    with pytest.raises(InputError, match=r"--metric linear/cue-conflict/shape_bias is no accuracy"):
        main([*map(str, two), "--out", str(out), "--metric", SHAPE])
    with pytest.raises(InputError, match="is given twice"):
        main([str(two[0]), str(two[0]), "--out", str(out)])
