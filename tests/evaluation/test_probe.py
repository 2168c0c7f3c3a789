"""The whole probe, from checkpoint and pictures to scores, and the command line in front of it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import headcam.cli
from headcam.errors import InputError
from headcam.evaluation import protocols
from headcam.evaluation.features import PixelExtractor, extract
from headcam.evaluation.knn import knn_votes
from headcam.evaluation.labelled import labels_of, read_labelled, selection_mask
from headcam.evaluation.linear_probe import in_top, linear_probe
from headcam.evaluation.probe import probe
from headcam.evaluation.scores import read_scores

TINY_IMAGENET = Path(__file__).parents[2].parent / "shared/data/labelled/tiny_imagenet_50"
MODELS = ["small", "small (random weights)", "raw pixels", "chance"]


@pytest.fixture
def labelled(tmp_path, write_pictures):
    write_pictures(tmp_path / "labelled/train", {f"class {i}": 20 for i in range(6)})
    return write_pictures(tmp_path / "labelled/val", {f"class {i}": 5 for i in range(6)}, first=100).parent


def test_every_number_has_its_baselines_and_its_interval(checkpoint, labelled, tmp_path):
    result = probe(checkpoint, labelled, tmp_path / "out", quiet=True)
    assert read_scores(result.scores_file) == list(result.scores)
    metrics = ["knn/k20_T0.07/top1", "knn/k20_T0.07/top5", "linear/top1", "linear/top5"]
    assert [(s.model, s.metric) for s in result.scores] == [(model, metric) for model in MODELS for metric in metrics]
    for score in result.scores:
        assert 0 <= score.low <= score.value <= score.high <= 100
        assert (score.n, score.data) == (30, read_labelled(labelled).identity)
    value = {(s.model, s.metric): s.value for s in result.scores}
    assert value["chance", "linear/top1"] == pytest.approx(100 / 6)
    assert value["chance", "linear/top5"] == pytest.approx(500 / 6)
    assert value["raw pixels", "linear/top1"] > 70  # the classes differ in their mean colour
    card = json.loads((checkpoint / "card.json").read_text())
    hashes = {s.model: s.weights_hash for s in result.scores}
    assert hashes["small"] == card["weights_hash"] and len(hashes["small (random weights)"]) == 64


def test_the_report_tells_what_the_numbers_rest_on(checkpoint, labelled, tmp_path):
    result = probe(checkpoint, labelled, tmp_path / "out", quiet=True)
    report = json.loads(result.report_file.read_text())
    assert report == json.loads(json.dumps(result.report))
    assert (report["contract"], report["version"], report["model"]["hours"]) == ("probe", 1, 0.5)
    assert (report["data"]["train"], report["data"]["test"]) == (120, 30)
    assert report["data"]["of_which_set_aside_for_the_learning_rate"] == 24
    assert {s.protocol_hash for s in result.scores} == set(report["protocols"])
    assert [p["model"] for p in report["linear_probes"]] == MODELS[:3]
    value = {(s.model, s.metric): s.value for s in result.scores}
    for difference in report["differences"]:
        expected = value["small", difference["metric"]] - value[difference["minus"], difference["metric"]]
        assert difference["estimate"] == pytest.approx(expected)
        assert difference["low"] <= difference["estimate"] <= difference["high"]


def test_same_words_same_bytes_with_and_without_cache(checkpoint, labelled, tmp_path, monkeypatch):
    first = probe(checkpoint, labelled, tmp_path / "one", quiet=True)
    other = probe(checkpoint, labelled, tmp_path / "two", quiet=True)
    assert first.scores_file.read_bytes() == other.scores_file.read_bytes()

    def fail(*arguments):
        raise AssertionError("a picture was decoded again")

    monkeypatch.setattr("headcam.evaluation.features.load_picture", fail)
    before = first.scores_file.read_bytes()
    first.scores_file.unlink()
    assert probe(checkpoint, labelled, tmp_path / "one", quiet=True).scores_file.read_bytes() == before


def test_another_probe_is_not_written_over(checkpoint, labelled, tmp_path):
    probe(checkpoint, labelled, tmp_path / "out", quiet=True)
    with pytest.raises(InputError, match="report of another probe"):
        probe(checkpoint, labelled, tmp_path / "out", seed=1, quiet=True)


def test_pool_is_part_of_the_protocol(checkpoint, labelled, tmp_path):
    hashes = [
        {s.model: s.protocol_hash for s in probe(checkpoint, labelled, tmp_path / pool, pool=pool, quiet=True).scores}
        for pool in ("avg", "cls")
    ]
    assert hashes[0]["small"] != hashes[1]["small"]
    assert hashes[0]["raw pixels"] == hashes[1]["raw pixels"]


def test_five_classes_have_no_top5(checkpoint, labelled, tmp_path):
    for part in ("train", "val"):
        shutil.rmtree(labelled / part / "class 5")
    result = probe(checkpoint, labelled, tmp_path / "out", quiet=True)
    assert {s.metric for s in result.scores} == {"knn/k20_T0.07/top1", "linear/top1"}


def test_command_line(checkpoint, labelled, tmp_path, capsys):
    out = tmp_path / "out"
    status = headcam.cli.main(["probe", str(checkpoint), "--labelled", str(labelled), "--out", str(out), "--quiet"])
    printed = capsys.readouterr().out.splitlines()
    assert status == 0
    assert printed[-1] == str(out / "scores.csv") and Path(printed[-1]).is_file()
    assert next(line for line in printed if line.startswith("chance")).split()[1:] == ["16.7", "83.3", "16.7", "83.3"]
    assert any(line.startswith("linear/top1, small minus raw pixels: ") for line in printed)


def test_skipped_and_leaked_pictures_are_said_and_change_the_status(checkpoint, labelled, tmp_path, capsys):
    (labelled / "train/class 1/3.png").write_bytes(b"garbage")
    (labelled / "val/class 2/101.png").write_bytes(b"\x89PNG")
    shutil.copy(labelled / "train/class 0/0.png", labelled / "val/class 0/0.png")
    out = tmp_path / "out"
    assert headcam.cli.main(["probe", str(checkpoint), f"--labelled={labelled}", f"--out={out}", "--quiet"]) == 1
    printed = capsys.readouterr().out
    assert "skipped: 2 pictures that cannot be read, such as train/class 1/3.png (UnidentifiedImageError" in printed
    assert "alarm: 1 test pictures are also in the training set, such as val/class 0/0.png" in printed
    report = json.loads((out / "probe.json").read_text())
    assert [s["picture"] for s in report["data"]["skipped"]] == ["train/class 1/3.png", "val/class 2/101.png"]
    assert (report["data"]["train"], report["data"]["test"]) == (119, 30)
    assert {s.n for s in read_scores(out / "scores.csv")} == {30}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labelled={empty}"], "no pictures in class folders"),
        (["--labelled={labelled}", "--device=abacus"], "device abacus cannot be used"),
        (["--labelled={labelled}", "--pool=max"], "pool"),
        (["--labelled={labelled}", "--sed=1"], "sed"),
        ([], "labelled"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(checkpoint, labelled, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    filled = [a.format(labelled=labelled, empty=tmp_path / "empty") for a in arguments]
    out = tmp_path / "out"
    assert headcam.cli.main(["probe", str(checkpoint), f"--out={out}", "--quiet", *filled]) == 2
    error = capsys.readouterr().err
    assert message in error and "Fix: " in error and error.count("\n") == 1
    assert not out.exists()


def test_a_class_that_cannot_be_decoded(checkpoint, labelled, tmp_path):
    for path in (labelled / "val/class 4").iterdir():
        path.write_bytes(path.name.encode())
    with pytest.raises(InputError, match="not one test picture of class class 4"):
        probe(checkpoint, labelled, tmp_path / "out", quiet=True)


@pytest.mark.shared
@pytest.mark.skipif(not TINY_IMAGENET.is_dir(), reason="../shared/data/labelled/tiny_imagenet_50 is not here")
def test_raw_pixels_of_tiny_imagenet(tmp_path):
    """The data set's README gives 17.3 % (linear, L-BFGS with L2) and 14.7 % (kNN) for the same 768 values."""
    data = read_labelled(TINY_IMAGENET)
    assert (len(data.classes), len(data.train), len(data.test), data.leaked) == (50, 20_000, 2_500, ())
    features = protocols.PixelFeatures()
    train, test = (
        extract(PixelExtractor(features), part, tmp_path, quiet=True).values.astype(np.float32)
        for part in (data.train, data.test)
    )
    mean, labels, truth = train.mean(axis=0), labels_of(data.train), torch.from_numpy(labels_of(data.test))
    votes = knn_votes(train - mean, labels, test - mean, 50, protocols.KNN(features))
    assert 100 * in_top(votes, truth, 1).float().mean() == pytest.approx(14.7, abs=0.3)
    short = dataclasses.replace(protocols.LinearProbe(features), epochs=8, base_lr_per_256=(0.02,))
    result = linear_probe(train, labels, selection_mask(labels), test, 50, short, seed=0, quiet=True)
    assert 100 * in_top(result.logits, truth, 1).float().mean() == pytest.approx(17.3, abs=1.0)


def test_a_layer_of_a_gpt_beside_its_random_twin(gpt_run, labelled, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["probe", str(gpt_run), "--labelled", str(labelled), "--out", str(out), "--quiet"]
    assert headcam.cli.main([*words, "--layer", "2"]) == 0
    scores = read_scores(out / "scores.csv")
    models = ["tiny, layer 2", "tiny, layer 2 (random weights)", "raw pixels", "chance"]
    assert list(dict.fromkeys(s.model for s in scores)) == models
    value = {(s.model, s.metric): s.value for s in scores}
    assert value[models[0], "linear/top1"] > 100 / 6  # the colour of a class is in its tokens
    assert value[models[0], "linear/top1"] != value[models[1], "linear/top1"]
    report = json.loads((out / "probe.json").read_text())
    assert report["model"]["layer"] == 2 and report["model"]["img_size"] == [8, 8]
    capsys.readouterr()
    assert headcam.cli.main([*words, "--layer", "1"]) == 2  # not written over
    assert "report of another probe" in capsys.readouterr().err


def test_a_tokenizer_is_probed_by_its_latents_or_its_codes(gpt_run, labelled, tmp_path):
    values = []
    for layer in (None, "quantized"):
        result = probe(gpt_run / "tokenizer", labelled, tmp_path / str(layer), layer=layer, quiet=True)
        assert result.model == f"tiny, layer {layer or 'latents'}"
        values.append({s.metric: s.value for s in result.scores if s.model == result.model})
        assert values[-1]["linear/top1"] > 50
    assert values[0] != values[1]


@pytest.mark.parametrize(
    ("source", "layer", "message"), [("gpt", "4", "of a GPT of 3 blocks"), ("run", "1", "neither a")]
)
def test_layers_that_are_not_there(checkpoint, gpt_run, labelled, tmp_path, source, layer, message):
    with pytest.raises(InputError, match=message):
        probe(tmp_path / source, labelled, tmp_path / "out", layer=layer, quiet=True)
