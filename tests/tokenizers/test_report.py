"""The tokenizer report on tiny tokenizers: figures against recomputation, what is left out, the page, refusals."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.ssl.vit import VisionTransformer
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoencoders.tokenizer import load_tokenizer
from headcam.tokenizers.autoencoders.video_tokenizer import VideoTokenizer
from headcam.tokenizers.fidelity.distances import kernel_distance
from headcam.tokenizers.fidelity.features import EncoderFeatures
from headcam.tokenizers.report import difference, report
from headcam.video.items import open_items
from headcam.video.sampling.manifest import Manifest


def save(folder, model):
    card = {"contract": "card", "version": 1, "objective": "test", "name": folder.name}
    card |= {"img_size": list(model.img_size), "mean": [0.5] * 3, "std": [0.5] * 3}
    card["architecture"] = {"class": type(model).__name__, "arguments": model.arguments}
    save_weights(folder, model, card)
    return folder


def palette(folder, colours: int, seed: int):
    model = PaletteTokenizer(img_size=16, codebook_size=colours)
    model.quantizer.codebook.copy_(torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (colours, 3))))
    return save(folder, model)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    palette(root / "few", 4, 0)
    palette(root / "many", 64, 1)
    torch.manual_seed(0)
    video = VideoTokenizer(img_size=16, num_frames=4, downsample=(2, 8, 8), ch=8, codebook_size=16, embed_dim=8,
                           quantizer="fsq")  # fmt: skip
    save(root / "video", video.eval())
    save(root / "encoder", VisionTransformer((16, 16), patch_size=8, embed_dim=24, depth=1, num_heads=2).eval())
    return root


@pytest.fixture(scope="module")
def done(models, stores, recordings, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    tokenizers = [models / name for name in ("few", "many", "video")]
    data = [stores[0], stores[0].parent / "pictures" / "val", recordings[1]]
    result = report(tokenizers, data, out, num=12, encoder=models / "encoder", step_s=0.1, quiet=True)
    return out, result


def value(result, model, data, metric):
    found = [n for n in result.numbers if (n.model, n.data, n.metric) == (model, data, metric)]
    assert len(found) == 1, (model, data, metric)
    return found[0]


def test_figures_are_those_of_the_pictures(models, stores, done):
    _, result = done
    pictures = open_items(
        stores[0].parent / "pictures" / "val", (16, 16), num=12
    ).stacked()  # all ten, in the order of their names
    tokenizer = load_tokenizer(models / "many")[0]
    tokens = tokenizer.encode(pictures)
    made = tokenizer.decode(tokens).numpy().astype(float)
    psnr = [10 * np.log10(255**2 / ((p - m) ** 2).mean()) for p, m in zip(pictures.numpy().astype(float), made)]
    number = value(result, "many", "val", "psnr")
    assert number.n == 10 and number.value == pytest.approx(np.mean(psnr)) and number.low < number.value < number.high
    counts = np.bincount(tokens.flatten().numpy(), minlength=64)
    shares = counts[counts > 0] / counts.sum()
    assert value(result, "many", "val", "usage").value == (counts > 0).mean()
    assert value(result, "many", "val", "dead").value == (counts == 0).sum()
    assert value(result, "many", "val", "perplexity").value == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert value(result, "many", "val", "usage").n == 10 * 256
    features = EncoderFeatures(models / "encoder")
    kid = kernel_distance(features(pictures), features(torch.from_numpy(made).byte()))
    number = value(result, "many", "val", "kid")
    assert (number.value, number.low) == pytest.approx((kid.estimate, kid.low), rel=1e-3)
    assert number.evaluator == "features of encoder, not comparable"
    assert value(result, "many", "val", "psnr").value > value(result, "few", "val", "psnr").value


def test_costs_of_tokens(done):
    _, result = done
    for model, tokens, per_second, bits in (("many", 256, 2560, 6.0), ("video", 8, 20, 8 * 4 / 1024)):
        assert value(result, model, "", "tokens").value == tokens
        assert value(result, model, "", "tokens_per_second").value == pytest.approx(per_second)
        assert value(result, model, "", "bits_per_pixel").value == pytest.approx(bits)


def test_clips_are_measured_over_time(models, recordings, done):
    _, result = done
    data = recordings[1].name
    items = open_items(recordings[1], (16, 16), 4, num=12, step_s=0.1, seed=0)
    clips = torch.stack(list(items))
    tokenizer = load_tokenizer(models / "video")[0]
    made = tokenizer.decode(tokenizer.encode(clips))
    steps = [np.diff(x.numpy().astype(float), axis=2) for x in (clips, made)]
    for metric, wanted in (
        ("motion_original", np.abs(steps[0]).mean()),
        ("motion", np.abs(steps[1]).mean()),
        ("motion_error", np.abs(steps[1] - steps[0]).mean()),
    ):
        found = value(result, "video", data, metric)
        assert found.n == len(items) and found.value == pytest.approx(wanted, rel=1e-3)


def test_table_page_and_pictures(done):
    out, result = done
    with open(out / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["value"]) for r in rows] == [n.value for n in result.numbers]
    assert {r["contract"] for r in rows} == {"tokenizer report/1"}
    text = result.page.read_text()
    assert text.count("<svg") == 2 and "data:image" in text and "It is not known what few, many" in text
    assert len(list((out / "pictures").glob("*.png"))) == 3 * 2 + 1
    said = " ".join(result.left_out)
    assert "video on" in said and "takes clips" in said and "LPIPS: no weights" in said and result.skipped == 0


def test_it_goes_on_where_it_was_and_shows_no_frames_if_told(models, stores, done, tmp_path, monkeypatch):
    out, _ = done
    shutil.copytree(out / "measured", tmp_path / "measured")
    from headcam.tokenizers.fidelity import measure

    monkeypatch.setattr(measure, "_measure", lambda *_: pytest.fail("measured again"))
    again = report([models / "few"], [stores[0]], tmp_path, num=12, encoder=models / "encoder", step_s=0.1,
                   frames=False, quiet=True)  # fmt: skip
    text = again.page.read_text()
    assert "data:image" not in text and not (tmp_path / "pictures").exists()


def test_recordings_that_were_trained_on_are_named(models, stores, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(models / "few", run)
    held_out = open_items(stores[1], (16, 16), 1, num=5, step_s=0.1, seed=0)
    seen = held_out.recordings[:2]
    Manifest(seconds=dict.fromkeys(sorted(seen), 0.0)).write(run / "data.json")
    page = report([run], [stores[1]], tmp_path / "a", num=5, quiet=True).page.read_text()
    assert "2 of 5 items are of recordings that few was also trained on" in page
    Manifest(seconds={"0" * 16: 1.0}).write(run / "data.json")
    page = report([run], [stores[1]], tmp_path / "b", num=5, quiet=True).page.read_text()
    assert "None of the items is of a recording that few was trained on" in page


def test_pictures_that_cannot_be_decoded_are_counted(models, stores, tmp_path):
    shutil.copytree(stores[0].parent / "pictures" / "val", tmp_path / "photos")
    (tmp_path / "photos" / "003.png").write_bytes(b"no picture")
    result = report([models / "few"], [tmp_path / "photos"], tmp_path / "out", quiet=True)
    assert result.skipped == 1 and value(result, "few", "photos", "psnr").n == 9
    assert "003.png" in result.page.read_text()


def test_difference_is_grey_where_there_is_none():
    a = np.array([[100, 100, 100, 100]], np.uint8)
    assert difference(a, a + np.array([0, 10, 100, 0], np.uint8)).tolist() == [[128, 168, 255, 128]]
    assert difference(a, a - np.array([0, 10, 100, 0], np.uint8)).tolist() == [[128, 88, 0, 128]]


def test_bad_input_is_one_line(models, stores, tmp_path):
    few, data = models / "few", stores[1]
    (tmp_path / "empty").mkdir()
    for tokenizers, sets, more, message in (
        ([], [data], {}, "a report needs a tokenizer and data"),
        ([few], [tmp_path / "nothing"], {}, "nothing does not exist"),
        ([few], [tmp_path / "empty"], {}, "holds no pictures and is no store"),
        ([models / "video"], [stores[0].parent / "pictures" / "val"], {}, "this model takes clips"),
        ([models / "encoder"], [data], {}, "is a VisionTransformer"),
        ([few], [data], {"num": 0}, "0 items of "),
        ([few], [data], {"inception": tmp_path / "no.pth"}, "Inception weights .* do not exist"),
        ([few], [data], {"device": "nonsense"}, "device nonsense cannot be used"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            report(tokenizers, sets, tmp_path / "out", quiet=True, **more)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "report.html").exists() and json.loads((few / "card.json").read_text())
