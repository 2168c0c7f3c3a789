"""`headcam tokenize`: the words, their results on standard output, exit status, and one-line errors."""

import inspect
import shutil

import pytest

from headcam.cli.tokenize import main
from headcam.errors import InputError
from headcam.tokenizers.token_store import TokenStore
from headcam.video.stores.frame_store import FrameStore


@pytest.fixture(scope="module")
def palette(stores, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "palette"
    assert main(["palette", str(stores[0]), "--out", str(folder), "--codebook_size=16", "--img_size=8", "--quiet"]) == 0
    return folder


def test_a_palette_says_its_error_beside_a_baseline(stores, tmp_path, capsys):
    words = ["palette", str(stores[0]), "--out", str(tmp_path), "--codebook_size=16", "--img_size=8", "--quiet"]
    assert main(words) == 0
    first = capsys.readouterr().out
    lines = first.splitlines()
    assert lines[0] == "16 colours from 1152 pixels of 36 frames"
    assert lines[1].startswith("mean squared error of a channel, 8 bits, on 4 held-out frames: ")
    assert "(one colour for all pixels: " in lines[1] and lines[-1] == f"palette: {tmp_path / 'card.json'}"
    assert main(words) == 0 and capsys.readouterr().out == first


def test_a_store_from_a_palette(stores, palette, tmp_path, capsys):
    words = ["store", str(stores[1]), "--tokenizer", str(palette), "--out", str(tmp_path / "t"), "--num_workers=0"]
    assert main([*words, "--crops=4", "--scale=[0.2,1]", "--flip=0.5", "--quiet"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "40 grids of 8 x 8 tokens (16 codes) of 10 recordings, 0.00 hours of video"
    assert out[1].startswith("not verified") and out[-1] == f"table: {tmp_path / 't' / 'tokens.parquet'}"
    store = TokenStore(tmp_path / "t")
    assert store.metadata["settings"]["scale"] == [0.2, 1.0] and store.metadata["settings"]["flip"] == 0.5


def test_what_was_skipped_is_status_1(stores, palette, tmp_path, capsys):
    torn = shutil.copytree(stores[1], tmp_path / "torn")
    frames = FrameStore(torn)
    with open(torn / f"frames-{frames.shard[2]:06d}.tar", "r+b") as file:
        file.seek(int(frames.offset[2]))
        file.write(bytes(int(frames.length[2])))
    words = ["store", str(torn), "--tokenizer", str(palette), "--out", str(tmp_path / "t"), "--num_workers=0"]
    assert main([*words, "--quiet"]) == 1
    assert f"skipped: 1 frames or clips, 0.0 s, see {tmp_path / 't' / 'skipped.csv'}" in capsys.readouterr().out


def test_a_report_is_asked_for_with_its_options(tmp_path, capsys, monkeypatch):
    from headcam.tokenizers import report

    asked, made = {}, report.ReportResult(tmp_path / "report.html", [], ["LPIPS: no weights."], 2)
    takes = inspect.signature(report.report)
    monkeypatch.setattr(report, "report", lambda **options: asked.update(options) or made)
    words = ["report", "a", "b", "--data", "c", "d", "--out", str(tmp_path)]
    assert main([*words, "--num=7", "--no-frames", "--quiet"]) == 1
    page = f"page: {tmp_path / 'report.html'}"
    assert capsys.readouterr().out.splitlines() == [
        *("left out: LPIPS: no weights.", "skipped: 2 items could not be decoded", page)
    ]
    assert (asked["tokenizers"], asked["data"], asked["num"], asked["frames"]) == (["a", "b"], ["c", "d"], 7, False)
    takes.bind(**asked)


@pytest.mark.parametrize(
    "words, telling",
    [
        (["palete"], "'palete' is no word of headcam tokenize"),
        ([], "word"),
        (["store", "x", "--out", "y"], "tokenizer"),
        (["palette", "x", "--out", "y", "--colours=3"], "colours"),
    ],
)
def test_wrong_words_are_named(words, telling):
    with pytest.raises(InputError, match=telling):
        main(words)


@pytest.mark.parametrize("word", [[], ["palette"], ["store"], ["report"]])
def test_help_shows_an_example(word, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*word, "--help"])
    assert stop.value.code in (0, None)
    assert f"headcam tokenize {' '.join(word)}" in capsys.readouterr().out.partition("example:\n")[2]
