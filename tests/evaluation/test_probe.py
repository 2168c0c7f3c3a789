"""The whole probe, from checkpoint and pictures to scores, and the command line in front of it."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import headcam.cli
from headcam.errors import InputError
from headcam.evaluation import protocols
from headcam.evaluation.features.encoders import PixelExtractor
from headcam.evaluation.features.extraction import extract
from headcam.evaluation.heads.knn import knn_scores
from headcam.evaluation.heads.linear import in_top, linear_probe
from headcam.evaluation.labelled.sets import labels_of, read_labelled, selection_mask
from headcam.evaluation.probe import probe
from headcam.evaluation.scoring.items import read_items
from headcam.evaluation.scoring.scores import read_scores

TINY_IMAGENET = Path(__file__).parents[2].parent / "shared/data/labelled/tiny_imagenet_50"
MODELS = ["small", "small (random weights)", "raw pixels", "chance"]


def write_video(path: Path, seconds: int, seed: int, rate: int = 10) -> None:
    """A colour that drifts, 64 x 48; the class is in the seed's hundreds."""
    colour = np.array([200, 60, 60]) if seed >= 100 else np.array([60, 60, 200])
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(seconds * rate):
            picture = np.clip(colour + rng.normal(0, 20, (48, 64, 3)), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


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
    assert (report["contract"], report["version"], report["model"]["hours"]) == ("probe", 2, 0.5)
    assert (report["data"]["train"], report["data"]["test"]) == (120, 30)
    assert report["data"]["of_which_set_aside_for_choices"] == 24
    assert {s.protocol_hash for s in result.scores} == set(report["protocols"])
    assert [(o["model"], o["stem"]) for o in report["outcomes"]] == [
        (model, stem) for stem in ("knn/k20_T0.07", "linear") for model in MODELS[:3]
    ]
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

    monkeypatch.setattr("headcam.evaluation.labelled.sets.Picture.open", fail)
    before = first.scores_file.read_bytes()
    first.scores_file.unlink()
    assert probe(checkpoint, labelled, tmp_path / "one", quiet=True).scores_file.read_bytes() == before


QUICK = {
    "linear-layers": (
        "kind: LinearProbe\nname: quick-layers\nversion: 2\nepochs: 2\nlayers: all\nbase_lr_per_256: [0.1]"
    ),
    "linear-aug": "kind: LinearProbe\nname: quick-aug\nversion: 2\nepochs: 2\naugmentation: crop and flip",
    "knn-sweep": "kind: KNN\nname: quick-sweep\nversion: 2\nk: [1, 5]\ntemperature: [0.07, 0.2]",
    "label-curve": "kind: LabelCurve\nname: quick-curve\nversion: 1\nlabels_per_class: [2, 4, 500]\ndraws: 3",
    "fewshot": (
        "kind: Finetune\nname: quick-fewshot\nversion: 1\nlabels: {per_class: 5, draws: 2}\nepochs: 2\nbatch_size: 16\n"
        "lr: [0.001]"
    ),
}


@pytest.fixture
def quick(tmp_path):
    """Files of one protocol of each kind that takes a second."""
    files = {}
    for name, text in QUICK.items():
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(text)
    return files


def test_every_kind_of_protocol_gives_scores_with_their_baselines(checkpoint, labelled, tmp_path, quick):
    out = tmp_path / "out"
    result = probe(checkpoint, labelled, out, protocol=list(quick.values()), quiet=True)
    stems = {(s.model, s.metric.removesuffix("/top1")) for s in result.scores if s.metric.endswith("/top1")}
    networks = {"quick-layers/layer01", "quick-aug", "quick-fewshot", "quick-fewshot/draw0", "quick-fewshot/draw1"}
    frozen = {"quick-sweep", *(f"quick-curve/{n}{d}" for n in (2, 4) for d in ("", "/draw0", "/draw1", "/draw2"))}
    expected = {(model, stem) for model in MODELS[:2] for stem in networks | frozen}
    expected |= {("raw pixels", stem) for stem in frozen}
    expected |= {("chance", stem) for stem in networks | frozen if "/draw" not in stem}
    assert stems == expected
    assert {(o["model"], o["protocol"]) for o in result.report["left_out"]} == {
        ("raw pixels", name) for name in ("quick-layers-v2", "quick-aug-v2", "quick-fewshot-v1")
    }
    by_stem = {(o["model"], o["stem"]): o["details"] for o in result.report["outcomes"]}
    assert by_stem["small", "quick-curve/4/draw0"]["points_left_out"] == [500]
    assert by_stem["small", "quick-fewshot/draw1"]["labelled_pictures"] == 30
    lists = {by_stem[model, f"quick-fewshot/draw{d}"]["list_hash"] for model in MODELS[:2] for d in (0, 1)}
    assert len(lists) == 2  # a list a draw, the same for both models
    mean = {s.metric: s for s in result.scores if s.model == "small"}
    draws = [mean[f"quick-fewshot/draw{d}/top1"].value for d in (0, 1)]
    assert mean["quick-fewshot/top1"].value == pytest.approx(np.mean(draws))
    assert [mean[f"quick-fewshot/draw{d}/top1"].seed for d in (0, 1)] == [0, 1]

    items = read_items(out)
    assert np.mean(items.guesses["small", "quick-aug"].rank == 1) * 100 == pytest.approx(mean["quick-aug/top1"].value)
    per_class = list(csv.DictReader((out / "per_class.csv").read_text().splitlines()))
    assert {row["stem"] for row in per_class} == {"quick-aug", "quick-sweep", "quick-fewshot"}
    own = [float(row["value"]) for row in per_class if (row["model"], row["stem"]) == ("small", "quick-fewshot")]
    assert np.mean(own) == pytest.approx(mean["quick-fewshot/top1"].value)  # classes of equal size


def test_protocols_add_up_and_what_is_done_is_not_done_again(checkpoint, labelled, tmp_path, quick, monkeypatch):
    out = tmp_path / "out"
    both = probe(checkpoint, labelled, tmp_path / "at once", protocol=["knn", quick["fewshot"]], quiet=True)
    probe(checkpoint, labelled, out, protocol=["knn"], quiet=True)
    later = probe(checkpoint, labelled, out, protocol=[quick["fewshot"]], quiet=True)
    assert later.scores == both.scores

    def fail(*arguments, **more):
        raise AssertionError("measured again")

    for name in ("finetune", "knn_scores"):
        monkeypatch.setattr(f"headcam.evaluation.measuring.{name}", fail)
    assert probe(checkpoint, labelled, out, protocol=["knn"], quiet=True).scores == both.scores


def test_one_name_is_one_protocol_in_a_folder(checkpoint, labelled, tmp_path):
    probe(checkpoint, labelled, tmp_path / "out", protocol=["knn"], quiet=True)
    with pytest.raises(InputError, match="protocol knn is asked for with other settings"):
        probe(checkpoint, labelled, tmp_path / "out", protocol=["knn"], pool="cls", quiet=True)


def test_probes_of_several_models_share_features(checkpoint, labelled, tmp_path, monkeypatch):
    own = probe(checkpoint, labelled, tmp_path / "own", quiet=True)
    probe(checkpoint, labelled, tmp_path / "one", cache=tmp_path / "features", quiet=True)

    def fail(*arguments):
        raise AssertionError("a picture was decoded again")

    monkeypatch.setattr("headcam.evaluation.labelled.sets.Picture.open", fail)
    shared = probe(checkpoint, labelled, tmp_path / "two", cache=tmp_path / "features", quiet=True)
    assert shared.scores == own.scores and not (tmp_path / "two" / "features").exists()


def test_a_head_that_was_removed_is_fitted_again(checkpoint, labelled, tmp_path):
    first = probe(checkpoint, labelled, tmp_path / "out", protocol=["linear"], quiet=True)
    for path in (tmp_path / "out" / "heads").iterdir():
        path.unlink()
    assert probe(checkpoint, labelled, tmp_path / "out", protocol=["linear"], quiet=True).scores == first.scores
    assert len(list((tmp_path / "out" / "heads").iterdir())) == 3


def test_fewer_draws_first_then_more(checkpoint, labelled, tmp_path, quick):
    out = tmp_path / "out"
    one = probe(checkpoint, labelled, out, protocol=[quick["fewshot"]], draws=1, quiet=True)
    all_draws = probe(checkpoint, labelled, out, protocol=[quick["fewshot"]], quiet=True)
    first, second = ({(s.model, s.metric): s.value for s in r.scores} for r in (one, all_draws))
    key = ("small", "quick-fewshot/draw0/top1")
    assert first[key] == second[key] and ("small", "quick-fewshot/draw1/top1") not in first


def test_a_killed_probe_goes_on(checkpoint, labelled, tmp_path, quick, monkeypatch):
    whole = probe(checkpoint, labelled, tmp_path / "whole", protocol=["knn", quick["label-curve"]], quiet=True)

    def killed(*arguments, **more):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("headcam.evaluation.measuring.label_curve", killed)
        with pytest.raises(KeyboardInterrupt):
            probe(checkpoint, labelled, out, protocol=["knn", quick["label-curve"]], quiet=True)
    assert not (out / "scores.csv").exists()
    resumed = probe(checkpoint, labelled, out, protocol=["knn", quick["label-curve"]], quiet=True)
    assert resumed.scores == whole.scores


def test_choosing_on_the_test_set_is_reported_as_what_it_is(checkpoint, labelled, tmp_path, quick, capsys):
    plain = probe(checkpoint, labelled, tmp_path / "plain", protocol=["linear", quick["fewshot"]], quiet=True)
    assert plain.report["test_selection"] == []
    words = ["probe", str(checkpoint), f"--labelled={labelled}", f"--out={tmp_path / 'out'}", "--quiet"]
    protocol = f"--protocol=linear,{quick['fewshot']}"
    assert headcam.cli.main([*words, protocol, "--test_selection"]) == 0
    assert "biased: linear chosen on the test set would be" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert read_scores(tmp_path / "out" / "scores.csv") == list(plain.scores)  # the honest numbers are the same
    gaps = {(g["model"], g["stem"]): g["top1"] - g["honest_top1"] for g in report["test_selection"]}
    assert set(gaps) == {(m, "linear") for m in MODELS[:3]} | {
        (m, f"quick-fewshot/draw{d}") for m in MODELS[:2] for d in (0, 1)
    }
    assert all(gap >= -1e-4 for gap in gaps.values())  # points; the best cannot be below what was chosen honestly


def test_robustness_of_the_linear_heads(checkpoint, labelled, write_pictures, tmp_path, capsys):
    other = write_pictures(tmp_path / "other", {f"class {i}": 3 for i in range(3)}, first=500)
    (other / "classes.csv").write_text("folder,class\n" + "".join(f"class {i},class {i}\n" for i in range(3)))
    words = ["probe", str(checkpoint), f"--labelled={labelled}", f"--out={tmp_path / 'out'}", "--quiet"]
    assert headcam.cli.main([*words, f"--robustness={other}"]) == 0
    scores = {(s.model, s.metric): s for s in read_scores(tmp_path / "out" / "scores.csv")}
    assert scores["raw pixels", "linear/other/top1"].value > 70  # the same colours
    assert scores["chance", "linear/other/top1"].value == pytest.approx(100 / 3)  # of three answers
    assert scores["small", "linear/other/top1"].data != scores["small", "linear/top1"].data
    assert headcam.cli.main([*words, "--corruptions"]) == 0
    rows = read_scores(tmp_path / "out" / "scores.csv")
    more = {(s.model, s.metric): s for s in rows}
    assert len(more) == len(rows)  # one row a number
    assert scores.items() <= more.items()  # the earlier set stays
    clean, worst = (more["small", f"linear/{name}"].value for name in ("top1", "corruption/impulse_noise/5/top1"))
    assert worst <= clean and more["raw pixels", "linear/corruption/mean/top1"].n == 30


def test_trained_on_one_child_and_tested_on_another(checkpoint, write_pictures, tmp_path):
    for k, child in enumerate(("alice", "sam")):
        write_pictures(tmp_path / "children" / child, {f"class {i}": 12 for i in range(3)}, first=100 * k)
    result = probe(
        checkpoint,
        tmp_path / "children",
        tmp_path / "out",
        protocol=["linear"],
        train_groups=["alice"],
        test_groups=["sam"],
        quiet=True,
    )
    assert (result.report["data"]["train"], result.report["data"]["test"]) == (36, 36)
    assert "alice" in result.report["data"]["name"] and "sam" in result.report["data"]["name"]
    with pytest.raises(InputError, match="has a split of its own"):
        probe(checkpoint, tmp_path, tmp_path / "o", known="core50", train_groups=["a"], test_groups=["b"])


def test_multilabel_accuracy_is_a_metric(checkpoint, labelled, tmp_path):
    names = [p.name for p in read_labelled(labelled).test]
    truth = tmp_path / "multi.json"
    truth.write_text(json.dumps({name: [0, 1, 2, 3, 4, 5] if k else [] for k, name in enumerate(names)}))
    result = probe(checkpoint, labelled, tmp_path / "out", protocol=["linear"], multilabels=truth, quiet=True)
    multi = [s for s in result.scores if s.metric == "linear/multilabel_top1"]
    assert [(s.model, s.value, s.n) for s in multi] == [(m, 100.0, 29) for m in MODELS[:3]]


def test_videos_by_frozen_features_and_by_finetuning(checkpoint, tmp_path, quick):
    for part, seeds in (("train", range(6)), ("val", range(6, 8))):
        for seed in seeds:
            for k, name in enumerate(("wave", "walk")):
                path = tmp_path / "videos" / part / name / f"{seed}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_video(path, 2, 100 * k + seed)
    text = QUICK["fewshot"].replace("quick-fewshot", "quick-video").replace("per_class: 5", "per_class: 4")
    quick["fewshot"].write_text(text + "\nclips: {step_seconds: 0.1, num_frames: 4, test_clips: 2, flip: always}")
    protocol = ["linear", quick["fewshot"]]
    result = probe(checkpoint, tmp_path / "videos", tmp_path / "out", protocol=protocol, draws=1, quiet=True)
    assert result.report["data"]["media"] == "videos" and result.report["data"]["test"] == 4
    linear = next(p for p in result.report["protocols"].values() if p["name"] == "linear")
    assert linear["features"]["clips"]["test_clips"] == 1
    assert {(s.model, s.metric) for s in result.scores} >= {
        *((model, "linear/top1") for model in MODELS),
        *((model, "quick-video/top1") for model in MODELS[:2]),
    }


def test_a_report_of_an_older_version_is_refused_by_name(checkpoint, labelled, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "probe.json").write_text('{"contract": "probe", "version": 1}')
    with pytest.raises(InputError, match="report of version 1, and this headcam writes version 2"):
        probe(checkpoint, labelled, tmp_path / "out", quiet=True)


def test_too_few_pictures_for_a_shot_names_the_class(checkpoint, labelled, tmp_path):
    with pytest.raises(InputError, match=r"class 0.* 20 .*26"):
        probe(checkpoint, labelled, tmp_path / "out", protocol=["fewshot-2pct"], quiet=True)


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
    assert [line.split()[-1] for line in printed if line.startswith(("knn/", "linear/")) and "minus" not in line] == [
        *("16.7", "83.3", "16.7", "83.3")
    ]  # chance, the last column
    assert any(line.startswith("linear/top1, small minus raw pixels: ") for line in printed)
    assert any(re.fullmatch(r"linear ran at \d+ % of this machine.s peak of matrix products", line) for line in printed)


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
    selection = selection_mask(labels)
    votes = knn_scores(train - mean, labels, test - mean, 50, protocols.KNN(features), selection=selection)
    assert 100 * in_top(votes.scores, truth, 1).float().mean() == pytest.approx(14.7, abs=0.3)
    short = dataclasses.replace(protocols.LinearProbe(features), epochs=8, base_lr_per_256=(0.02,))
    result = linear_probe(train, labels, selection, test, 50, short, seed=0, quiet=True)
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
