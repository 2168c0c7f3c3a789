"""`headcam sample` on small built models: the files it writes, looked at as numbers, and what it refuses."""

import inspect
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from headcam.cli.sample import main
from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.randomness import stream
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoencoders.tokenizer import load_tokenizer
from headcam.tokenizers.autoencoders.video_tokenizer import VideoTokenizer
from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.autoregression.pictures import sheet, tile_box, write_mp4
from headcam.tokenizers.autoregression.scoring import load_scorer
from headcam.video.items import open_items

COLOURS = 16


def save_run(folder, tokenizer, start_token="learned"):
    """A run folder of a GPT with its tokenizer, as `headcam fit` leaves it."""
    gpt = GPT(tokenizer.vocab_size, tokenizer.grid, 24, 2, 2, start_token=start_token)
    for name, parameter in gpt.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4 if "head" in name else 0.2)
    base = {"contract": "card", "version": 1, "name": "small"}
    about = {"architecture": {"class": type(tokenizer).__name__, "arguments": tokenizer.arguments}}
    path = save_weights(folder / "tokenizer", tokenizer, {**base, **about})
    about = {"architecture": {"class": "GPT", "arguments": gpt.arguments}, "tokenizer": {"hash": sha256_file(path)}}
    save_weights(folder, gpt, {**base, **about, "img_size": list(gpt.img_size)})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on palette tokens of 8 x 10 pixels (one without a start token), and on clips of 4 frames of 16 x 16."""
    root = tmp_path_factory.mktemp("gpts")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        palette = PaletteTokenizer((8, 10), COLOURS)
        palette.quantizer.codebook.copy_(torch.from_numpy(stream(0, "test palette", 0).uniform(0, 255, (COLOURS, 3))))
        save_run(root / "image", palette)
        save_run(root / "startless", palette, "none")
        clips = VideoTokenizer(16, 4, (2, 8, 8), ch=4, num_res_blocks=1, codebook_size=16, embed_dim=8)
        save_run(root / "clip", clips)
    return root


def tiles(path, side, rows, columns, labelled=False, named=False):
    """The tiles of a sheet, not enlarged any more: (rows, columns, H, W, 3). Enlarged pixels have to be squares."""
    picture, found = np.asarray(Image.open(path).convert("RGB")), []
    last = tile_box(rows - 1, columns - 1, side, labelled)
    margin = picture.shape[1] - (last.left + last.width + 4)  # for names of rows
    assert picture.shape[0] == last.top + last.height + 4 and (margin > 0) == named
    for i in range(rows):
        for j in range(columns):
            box = tile_box(i, j, side, labelled, margin)
            tile = picture[box.top : box.top + box.height, box.left : box.left + box.width]
            factor = box.width // side[1]
            small = tile[::factor, ::factor]
            assert np.array_equal(small.repeat(factor, 0).repeat(factor, 1), tile)
            found.append(small)
    return np.stack(found).reshape(rows, columns, *side, 3)


def run(capsys, *words):
    assert main([*map(str, words), "--quiet"]) == 0
    return capsys.readouterr().out.splitlines()


def test_free_samples_are_the_decoded_tokens_without_a_line_in_them(runs, tmp_path, capsys):
    words = ("free", runs / "image", "--out", tmp_path, "--num", 5, "--top_k", 4, "--tokens", tmp_path / "t.npy")
    lines = run(capsys, *words, "--batch_size", 2)
    assert lines == [str(tmp_path / "t.npy"), str(tmp_path / "free.png")]
    tokens = np.load(tmp_path / "t.npy")
    assert tokens.dtype == np.uint16 and tokens.shape == (5, 8, 10)
    tokenizer, _ = load_tokenizer(runs / "image")
    expected = tokenizer.decode(torch.from_numpy(tokens.astype(np.int64))).permute(0, 2, 3, 1).numpy()
    found = tiles(tmp_path / "free.png", (8, 10), rows=2, columns=3).reshape(6, 8, 10, 3)
    assert np.array_equal(found[:5], expected) and (found[5] == 255).all()
    before = (tmp_path / "free.png").read_bytes()
    run(capsys, *words, "--batch_size", 16)
    assert (tmp_path / "free.png").read_bytes() == before


def test_a_model_without_a_start_token_says_where_the_first_token_comes_from(runs, tmp_path, capsys):
    lines = run(capsys, "free", runs / "startless", "--out", tmp_path, "--num", 1)
    assert "no start token: the first token of each was drawn uniformly" in lines[0]


def test_half_keeps_the_given_rows_token_for_token(runs, stores, tmp_path, capsys):
    run(capsys, "half", runs / "image", "--data", stores[1], "--out", tmp_path, "--num", 3, "--completions", 2,
        "--tokens", tmp_path / "t.npy")  # fmt: skip
    found = tiles(tmp_path / "half.png", (8, 10), rows=3, columns=5, labelled=True)
    pixels = open_items(stores[1], (8, 10), num=3).stacked()
    assert np.array_equal(found[:, 0], pixels.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(found[:, 2, :4], found[:, 0, :4]) and (found[:, 2, 4:] == 128).all()
    tokens = np.load(tmp_path / "t.npy").astype(np.int64)
    tokenizer, _ = load_tokenizer(runs / "image")
    assert np.array_equal(tokens[:, :, :4], tokenizer.encode(pixels).numpy()[:, None, :4].repeat(2, 1))
    assert np.array_equal(found[:, 1], decode(tokenizer, tokenizer.encode(pixels).numpy()))
    assert np.array_equal(found[:, 3:].reshape(6, 8, 10, 3), decode(tokenizer, tokens.reshape(6, 8, 10)))
    assert not np.array_equal(tokens[0, 0], tokens[0, 1])
    run(capsys, "half", runs / "image", "--data", stores[1], "--out", tmp_path, "--num", 1, "--given", 7)
    assert (tiles(tmp_path / "half.png", (8, 10), 1, 7, labelled=True)[0, 2, 7:] == 128).all()


def test_continuations_know_the_given_frames_only(runs, recordings, tmp_path, capsys, monkeypatch):
    seen = []
    encode = VideoTokenizer.encode
    monkeypatch.setattr(VideoTokenizer, "encode", lambda self, p: seen.append(tuple(p.shape)) or encode(self, p))
    lines = run(capsys, "continue", runs / "clip", "--data", recordings[1], "--out", tmp_path, "--num", 2,
                "--completions", 3, "--step_s", 0.2, "--tokens", tmp_path / "t.npy")  # fmt: skip
    assert seen == [(2, 3, 2, 16, 16)]
    assert lines[1:] == [str(tmp_path / f"continue.{kind}") for kind in ("png", "mp4", "gif")]
    monkeypatch.undo()

    tokens, (tokenizer, _) = np.load(tmp_path / "t.npy").astype(np.int64), load_tokenizer(runs / "clip")
    pixels = open_items(recordings[1], (16, 16), 4, num=2, step_s=0.2).stacked()
    assert tokens.shape == (2, 3, 2, 2, 2)
    assert np.array_equal(tokens[:, :, :1], tokenizer.encode(pixels)[:, None, :1].expand(-1, 3, -1, -1, -1).numpy())
    strip = tiles(tmp_path / "continue.png", (16, 16), 8, 4, labelled=True, named=True)  # a row a clip
    strip = strip.reshape(2, 4, 4, 16, 16, 3)
    assert np.array_equal(strip[:, 0], pixels.permute(0, 2, 3, 4, 1).numpy())
    assert np.array_equal(strip[:, 1:].reshape(6, 4, 16, 16, 3), decode(tokenizer, tokens.reshape(6, 2, 2, 2)))

    with Image.open(tmp_path / "continue.gif") as gif:
        moving = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
        assert len(moving) == 4 and gif.info["duration"] == 200 and gif.info["loop"] == 0
    with av.open(str(tmp_path / "continue.mp4")) as video:
        assert float(video.streams.video[0].average_rate) == 5
        played = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(played) == 4
    for frame in range(4):  # both show, at this time, what the film strip has there
        for i, j in ((0, 0), (1, 2)):
            box = tile_box(i, j, (16, 16), True)
            for picture in (moving[frame], played[frame]):  # of noise, so: 256 colours, half the chroma
                tile = picture[box.top : box.top + box.height, box.left : box.left + box.width].astype(int)
                expected = strip[i, j, frame].repeat(8, 0).repeat(8, 1)
                assert np.abs(tile - expected).mean() < 20


def test_surprise_is_drawn_for_pictures_and_clips(runs, stores, recordings, tmp_path, capsys):
    lines = run(capsys, "surprise", runs / "startless", "--data", stores[1], "--out", tmp_path / "a", "--num", 2)
    assert "scores cover 79 of 80 tokens, not the first" in lines[0]
    assert np.asarray(Image.open(lines[-1])).std() > 10
    (line,) = run(capsys, "surprise", runs / "clip", "--data", recordings[1], "--out", tmp_path / "b", "--num", 1)
    assert np.asarray(Image.open(line)).shape[1] > 300
    clip = open_items(recordings[1], (16, 16), 4, num=1).stacked()
    assert load_scorer(runs / "clip").surprise(clip).shape == (1, 2, 2, 2)


def test_free_clips_move(runs, tmp_path, capsys):
    lines = run(capsys, "free", runs / "clip", "--out", tmp_path, "--num", 2)
    assert [line.rpartition(".")[2] for line in lines] == ["png", "mp4", "gif"]
    tiles(tmp_path / "free.png", (16, 16), rows=2, columns=4, labelled=True, named=True)


def test_video_without_h264_is_mpeg4(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", frozenset({"mpeg4"}))
    frames = stream(0, "test frames", 0).integers(0, 256, (3, 33, 47, 3), dtype=np.uint8)
    write_mp4(tmp_path / "a.mp4", frames, 0.25)
    with av.open(str(tmp_path / "a.mp4")) as video:
        about = video.streams.video[0]
        assert (about.codec_context.name, about.width, about.height) == ("mpeg4", 48, 34)
        assert len(list(video.decode(video=0))) == 3


def test_large_tiles_are_not_enlarged_and_labels_stay_in_their_column():
    tile = stream(0, "test tile", 0).integers(0, 256, (130, 128, 3), dtype=np.uint8)
    made = sheet([[tile, tile]], ["a label that is much wider than its tile, and so is cut", ""])
    for j in range(2):
        box = tile_box(0, j, (130, 128), True)
        assert np.array_equal(made[box.top : box.top + 130, box.left : box.left + 128], tile)
    assert (made[:22, 136:] == 255).all() and (made[:22, :132] < 255).any()


def test_context_gets_what_was_said_and_its_own_defaults(tmp_path, capsys, monkeypatch):
    from headcam.tokenizers import context as module

    said, signature = [], inspect.signature(module.context)
    page = SimpleNamespace(page=tmp_path / "context.html", notes=["a note"])
    monkeypatch.setattr(module, "context", lambda **given: said.append(signature.bind(**given).arguments) or page)
    words = ["context", "runs/gpt", "--train", "tokens", "--held_out", "other", "--out", "out"]
    assert run(capsys, *words) == ["a note", str(page.page)]
    assert run(capsys, *words, "--num", 3, "--completions", 2, "--fractions", "[0.5]", "--top_p", 0.9, "--no_frames")
    least, most = said
    assert least["run"] == "runs/gpt" and (least["train"], least["held_out"]) == ("tokens", "other")
    assert not {"num", "samples", "fractions", "checkpoints"} & set(least) and least["frames"]
    assert (most["num"], most["samples"], most["fractions"], most["top_p"]) == (3, 2, [0.5], 0.9)
    assert not most["frames"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["half", "{image}"], "needs pictures or clips. Fix: give --data"),
        (["half", "{image}", "--data={frames}", "--given=8"], "8 of 8 rows of tokens cannot be given"),
        (["half", "{clip}", "--data={frames}"], "use headcam sample continue"),
        (["continue", "{image}", "--data={frames}"], "use headcam sample half"),
        (["continue", "{clip}", "--data={clips}", "--given=3"], "3 of 4 frames cannot be given"),
        (["continue", "{clip}", "--data={clips}", "--given=4"], "4 of 4 frames"),
        (["free", "{image}", "--label=1"], "not conditioned on a class"),
        (["free", "{image}", "--num=0"], "0 samples"),
        (["free", "{image}", "--top_p=2"], "top_p is 2"),
        (["free", "{image}", "--device=abacus"], "device abacus cannot be used"),
        (["free", "{image}/tokenizer"], "is a PaletteTokenizer"),
        (["free", "{image}", "--tokenizer={clip}"], "trained on tokens of another tokenizer"),
        (["context", "{image}"], "give --train and --held_out"),
        (["dream", "{image}"], "dream"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(runs, stores, recordings, tmp_path, words, message):
    places = {"image": runs / "image", "clip": runs / "clip", "frames": stores[1], "clips": recordings[1]}
    with pytest.raises(InputError) as caught:
        main([word.format(**places) for word in words] + ["--out", str(tmp_path / "out"), "--quiet"])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def decode(tokenizer, tokens):
    """uint8 with channels last."""
    return tokenizer.decode(torch.from_numpy(tokens)).movedim(1, -1).numpy()
