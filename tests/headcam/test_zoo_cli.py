"""`headcam zoo`: lists, descriptions, conversion to weights that `headcam probe` takes, and one-line errors."""

import json

import cv2
import numpy as np
import pytest
import torch

from headcam.cli import main
from headcam.ssl.vit import VisionTransformer
from headcam.ssl.weights import load_encoder


def zoo(capsys, *words: str) -> list[str]:
    assert main(["zoo", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_without_words_it_counts_the_groups(capsys):
    lines = zoo(capsys)
    assert lines[0].split() == ["humanlike-vits", "156"] and lines[-1].startswith("296 published models")


def test_words_narrow_the_list(capsys):
    lines = zoo(capsys, "mugs", "vitl16")
    assert [line.split()[0] for line in lines] == [
        f"silicon-menagerie/mugs_{child}_vitl16" for child in ("say", "s", "a", "y")
    ]
    assert all("303,301,632 parameters" in line for line in lines)


@pytest.mark.parametrize("word", ["humanlike-vits/vits14_1.0_1", "hvm1@448_ssv2-50shot"])
def test_one_model_is_described(capsys, word):
    lines = zoo(capsys, word)
    text = "\n".join(lines)
    assert lines[0].endswith(word) and "eminorhan/" in text and ".pth" in text and "hours" in text
    assert lines[-1] == f"headcam zoo --convert {lines[0]} --out DIR"


@pytest.fixture
def published(tmp_path):
    """A tiny encoder in the layout of DINO's backbone files."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, positions="learned")
    path = tmp_path / "backbone.pth"
    torch.save(model.state_dict(), path)
    return model, path


def test_converted_weights_are_what_headcam_probe_takes(capsys, published, tmp_path):
    model, path = published
    lines = zoo(capsys, "--convert", path, "--num_heads", "4", "--out", tmp_path / "out")
    assert lines[0].startswith("backbone: dino, ") and "16 x 16 pixels" in lines[0]
    assert lines[1] == "keys: 30 used, none left out" and lines[-1] == str(tmp_path / "out/weights.safetensors")
    encoder, card = load_encoder(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), model.state_dict().values()))
    assert card["source"]["family"] == "dino" and card["source"]["hash"] != card["weights_hash"]

    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label, channel in (("blue", 0), ("red", 2)):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for k in range(count):
                picture = rng.integers(0, 80, (24, 24, 3), dtype=np.uint8)
                picture[..., channel] += 150
                cv2.imwrite(str(folder / f"{k}.png"), picture)
    words = ["--labelled", str(tmp_path / "pictures"), "--out", str(tmp_path / "probe"), "--quiet"]
    assert main(["probe", str(tmp_path / "out"), *words]) == 0
    report = json.loads((tmp_path / "probe" / "probe.json").read_text("utf-8"))
    assert report["model"]["name"] == "backbone"


@pytest.mark.parametrize(
    "words, telling",
    [
        (["dino_say_vitb15"], "did you mean "),
        (["--convert", "dino_say_vitb15", "--out", "out"], "'dino_say_vitb15' is neither a published model nor a file"),
        (["--convert", "dino_say_vitb14"], "--convert takes one model and needs a folder"),
        (["dino", "--convert", "dino_say_vitb14", "--out", "out"], "--convert takes one model and needs a folder"),
        (["--out", "out"], "--out and --file go with --convert"),
        (["--convert", "dino_say_vitb14", "--file", "absent.pth", "--out", "out"], "absent.pth does not exist"),
        (["--convert", "dino_say_vitb14", "--network", "pupil", "--out", "out"], "network"),
    ],
)
def test_bad_words_get_one_line(capsys, words, telling, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["zoo", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("headcam: ") and telling in err
    assert not (tmp_path / "out").exists()


def test_the_classifier_of_a_fine_tuned_file_is_mentioned(capsys, published, tmp_path):
    model, path = published
    head = {"head.0.running_mean": torch.zeros(32), "head.0.running_var": torch.ones(32)}
    head |= {"head.0.num_batches_tracked": torch.tensor(1), "head.1.weight": torch.ones(5, 32)}
    torch.save({"model": model.state_dict() | head | {"head.1.bias": torch.zeros(5)}}, path)
    lines = zoo(capsys, "--convert", path, "--num_heads", "4", "--out", tmp_path / "out")
    assert "its classifier of 5 classes stays in the file" in lines[2]
