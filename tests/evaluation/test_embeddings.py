"""`headcam export`: the rows are the encoder's own features, and a stopped export goes on."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from headcam.cli import main
from headcam.errors import InputError
from headcam.evaluation import embeddings
from headcam.evaluation.embeddings import export
from headcam.evaluation.features.pictures import resize_and_crop
from headcam.ssl.vit import VisionTransformer
from headcam.ssl.weights import load_encoder, save_weights
from headcam.tokenizers.autoregression.loading import load_gpt_and_tokenizer
from headcam.video.transforms import normalize

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    encoder = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    card = {
        "contract": "card", "version": 1, "name": "small", "img_size": [32, 32], "mean": MEAN, "std": STD,
        "architecture": {"class": "VisionTransformer", "arguments": encoder.arguments},
    }  # fmt: skip
    return save_weights(folder, encoder, card).parent


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.jpg", "sub/c.png"):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_rows_are_the_features_of_the_pictures_in_order_of_their_paths(weights, pictures, tmp_path):
    made = export(weights, pictures, tmp_path / "e.parquet", quiet=True)
    table = pq.read_table(made.out)
    assert table["path"].to_pylist() == ["a.jpg", "b.png", "sub/c.png"] and (made.rows, made.dim) == (3, 32)
    encoder, _ = load_encoder(weights)
    for name, row in zip(table["path"].to_pylist(), table["embedding"].to_pylist()):
        with Image.open(pictures / name) as picture:
            image = torch.from_numpy(resize_and_crop(picture.convert("RGB"), (32, 32), 256 / 224))
        with torch.no_grad():
            tokens = encoder.forward_features(normalize(image.permute(2, 0, 1)[None], MEAN, STD))
        np.testing.assert_allclose(row, tokens[0, 1:].mean(0).numpy(), rtol=1e-4, atol=1e-5)


def test_npz_of_a_store_carries_recording_and_time(weights, stores, tmp_path):
    made = export(weights, stores[1], tmp_path / "e.npz", pool="cls", quiet=True)
    with np.load(made.out) as table:
        assert table["embedding"].shape == (10, 32) and table["embedding"].dtype == np.float32
        assert len(set(table["recording"].tolist())) == 10 and not table["seconds"].any()
    about = json.loads((tmp_path / "e.npz.json").read_text())
    assert about["pool"] == "cls" and about["model"] == "small" and about["rows"] == 10


def test_a_frame_of_each_second_of_an_index(weights, recordings, tmp_path):
    made = export(weights, recordings[1], tmp_path / "e.parquet", quiet=True)
    table = pq.read_table(made.out).to_pandas()
    assert made.rows == 6 and table["time_s"].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert table["recording"].nunique() == 1 and (table["seconds"] == 1).all()


def test_a_stopped_export_does_only_what_is_left(weights, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "_BLOCK", 1)
    monkeypatch.setattr(embeddings, "_BATCH", 1)
    compute, calls = embeddings.EncoderExtractor.compute, []

    def stops(self, batch):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(batch))
        return compute(self, batch)

    monkeypatch.setattr(embeddings.EncoderExtractor, "compute", stops)
    with pytest.raises(KeyboardInterrupt):
        export(weights, pictures, tmp_path / "e.npz", quiet=True)
    assert not (tmp_path / "e.npz").exists()
    with pytest.raises(InputError, match="holds an export of something else"):
        export(weights, pictures, tmp_path / "e.npz", pool="cls", quiet=True)
    monkeypatch.setattr(embeddings.EncoderExtractor, "compute", lambda self, b: calls.append(1) or compute(self, b))
    export(weights, pictures, tmp_path / "e.npz", quiet=True)
    assert len(calls) == 3 and not (tmp_path / "e.npz.parts").exists()
    export(weights, pictures, tmp_path / "whole.npz", quiet=True)
    with np.load(tmp_path / "e.npz") as a, np.load(tmp_path / "whole.npz") as b:
        assert np.array_equal(a["embedding"], b["embedding"])


def test_what_cannot_be_read_is_skipped_and_said(weights, pictures, tmp_path, capsys):
    (pictures / "a.jpg").write_bytes(b"no picture")
    assert main(["export", str(weights), "--data", str(pictures), "--out", str(tmp_path / "e.parquet"), "--quiet"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "2 embeddings of 32 numbers" and "skipped: 1 that cannot be read, such as a.jpg" in out[1]
    assert out[-1] == str(tmp_path / "e.parquet")


def test_bad_input_is_one_line(weights, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for data, out, message in (
        ("nowhere", "e.npz", "does not exist"),
        (str(tmp_path / "empty"), "e.npz", "holds no pictures"),
        (str(tmp_path), "e.csv", "is neither .parquet nor .npz"),
    ):
        assert main(["export", str(weights), "--data", data, "--out", str(tmp_path / out)]) == 2
        assert message in capsys.readouterr().err


def test_a_layer_of_a_gpt(gpt_run, pictures, tmp_path):
    words = ["export", str(gpt_run), "--data", str(pictures), "--layer", "-1", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "e.npz")]) == 0
    with np.load(tmp_path / "e.npz") as table:
        embedding, names = table["embedding"], table["path"].tolist()
    assert json.loads((tmp_path / "e.npz.json").read_text())["model"] == "tiny, layer 3"
    gpt, tokenizer, _ = load_gpt_and_tokenizer(gpt_run)
    for name, row in zip(names, embedding):
        with Image.open(pictures / name) as picture:
            image = torch.tensor(resize_and_crop(picture.convert("RGB"), (8, 8), 256 / 224)).permute(2, 0, 1)
        with torch.no_grad():
            expected = gpt.features(tokenizer.encode(image[None]), 3).mean(dim=1)[0]
        np.testing.assert_allclose(row, expected.numpy(), rtol=1e-4, atol=1e-5)
