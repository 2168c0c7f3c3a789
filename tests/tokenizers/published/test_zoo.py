"""The published tokenizers and GPTs by name: names and counts as published, files held against their names, the CLI."""

import json

import pytest
import torch

from headcam.cli import main
from headcam.errors import InputError
from headcam.tokenizers.autoencoders.conv_tokenizer import ConvTokenizer
from headcam.tokenizers.autoencoders.tokenizer import load_tokenizer
from headcam.tokenizers.autoregression.gpt import GPT, load_gpt
from headcam.tokenizers.published.zoo import find, is_generative, load, published, tokenizer_name

# original_generative_and_memory.md 1.1, 1.5 and 1.6
PARAMETERS = {
    "say_gimel": 730_671_360,
    "konkleiid_gimel": 730_671_360,
    "imagenet1_gimel": 750_659_840,
    "imagenet100_alef": 110_417_664,
    "imagenet100_bet": 336_126_976,
    "imagenet100_dalet": 1_528_398_400,
    "iGPT-S-SAYCam-0.01": 78_279_168,
    "iGPT-mini-ImageNet": 21_536_256,
    "say_32x32_8192": 66_890_627,
    "imagenet_16x16_16384": 76_073_859,
}


def test_all_published_names_are_there_with_their_counts():
    groups = [name.split("/")[0] for name in published()]
    assert {group: groups.count(group) for group in groups} == {"gpt_saycam": 5 + 26, "igpt": 5}
    for name, parameters in PARAMETERS.items():
        assert find(name).parameters == parameters, name
    assert find("y+konklenonvehicle_gimel").place.as_posix() == (
        "eminorhan/gpt_saycam/gpt_pretrained_models/y+konklenonvehicle_gimel.pt"
    )
    assert find("a_32x32_8192").filename == "vqgan_pretrained_models/a_32x32_8192.ckpt"
    assert find("iGPT-S-ImageNet").repo_id is None


def test_the_promised_sizes_are_those_of_our_models():
    seen = set()
    for model in published().values():
        if str(model.arguments) in seen or "mini" in model.name:  # whose depth is not promised
            continue
        seen.add(str(model.arguments))
        plain = {
            "quantizer_options": {
                "code_dim": None,
                "l2_normalize": False,
                "kmeans": False,
                "threshold_ema_dead_code": 0,
            }
        }
        with torch.device("meta"):
            made = ConvTokenizer(**model.arguments, **plain) if model.family == "vqgan" else GPT(**model.arguments)
        assert sum(p.numel() for p in made.parameters()) == model.parameters, model.name
    assert len(seen) == 2 + 5 + 1  # f8, f16; gimel of each, alef, bet, dalet; iGPT-S


def test_every_gpt_has_the_tokenizer_that_it_was_trained_with():
    wanted = {
        "say_gimel": "say_32x32_8192",
        "y_gimel": "y_32x32_8192",
        "s+konkleiid_gimel": "s_32x32_8192",
        "konklenonvehicle_gimel": "say_32x32_8192",
        "imagenet100_dalet": "imagenet_16x16_16384",
        "imagenet1+konkleiid_gimel": "imagenet_16x16_16384",
    }
    for gpt, tokenizer in wanted.items():
        assert tokenizer_name(find(gpt)) == f"gpt_saycam/{tokenizer}"
    for model in published().values():
        if model.family == "gpt":
            codes = published()[tokenizer_name(model)].arguments["codebook_size"]
            assert codes == model.arguments["vocab_size"], model.name


def test_names_of_encoders_and_near_ones_are_told_apart():
    assert is_generative("say_gimel") and not is_generative("dino_say_vitb14")
    for name, near in [("say_gimmel", "say_gimel"), ("dino_say_vitb15", "dino_say_vitb16")]:
        with pytest.raises(
            InputError, match=f"'{name}' is neither a published model nor a file.*did you mean .*{near}"
        ):
            find(name)
    with pytest.raises(InputError, match="'vit_kinetics_none' is the name of 2"):
        find("vit_kinetics_none")


def one_block(width: int, codes: int, positions: int) -> dict[str, torch.Tensor]:
    """A published GPT of one block."""
    new = torch.Generator().manual_seed(0)
    linear = {f"attn.{part}": (width, width) for part in ("key", "query", "value", "proj")}
    linear |= {"mlp.0": (4 * width, width), "mlp.2": (width, 4 * width)}
    state = {f"blocks.0.{name}.weight": torch.randn(*shape, generator=new) for name, shape in linear.items()}
    state |= {f"blocks.0.{name}.bias": torch.randn(shape[0], generator=new) for name, shape in linear.items()}
    for norm in ("blocks.0.ln1", "blocks.0.ln2", "ln_f"):
        state |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    tables = {"tok_emb.weight": (codes, width), "head.weight": (codes, width), "pos_emb": (1, positions, width)}
    state |= {name: torch.randn(*shape, generator=new) for name, shape in tables.items()}
    return state | {"blocks.0.attn.mask": torch.ones(1, 1, positions, positions).tril()}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder of files: a small tokenizer of 8 x 8 tokens of 24, and a GPT on them."""
    monkeypatch.chdir(tmp_path)
    plain = {"code_dim": None, "l2_normalize": False, "kmeans": False, "threshold_ema_dead_code": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"ch": 32, "ch_mult": [1, 1, 1, 1, 1, 2], "num_res_blocks": 1, "z_channels": 8, "embed_dim": 8}
        tokenizer = ConvTokenizer(256, attn_resolutions=[], codebook_size=24, quantizer_options=plain, **sizes)
    state = tokenizer.state_dict()
    state["quantize.embedding.weight"] = state.pop("quantizer.codebook")
    torch.save({"state_dict": state}, tmp_path / "tokenizer.ckpt")
    torch.save({"model_state_dict": one_block(64, 24, 63)}, tmp_path / "gpt.pt")
    return tokenizer


def zoo(capsys, *words: str) -> list[str]:
    assert main(["zoo", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_tokenizer_and_its_gpt_are_converted_by_file(files, tmp_path, capsys):
    lines = zoo(capsys, "--convert", "tokenizer.ckpt", "--out", "tokenizer")
    assert lines[0].startswith("tokenizer: vqgan, ") and lines[0].endswith("256 x 256 pixels to 8 x 8 tokens of 24")
    assert lines[1].endswith("used, none left out") and lines[-1] == "tokenizer/weights.safetensors"
    for given in ("tokenizer", "tokenizer.ckpt"):
        lines = zoo(capsys, "--convert", "gpt.pt", "--tokenizer", given, "--out", "gpt")
        assert lines[0].startswith("gpt: gpt, ") and lines[0].endswith("8 x 8 tokens of 24")
        assert lines[1] == "keys: 21 used, 1 of masks left out"
        assert "no start token: its scores are of 63 tokens" in lines[2] and "gpt/tokenizer" in lines[3]
        assert load_gpt("gpt")[1]["tokenizer"]["hash"] == load_tokenizer("gpt")[1]["weights_hash"]
    copy = load_tokenizer("gpt")[0]
    assert all(torch.equal(a, b) for a, b in zip(copy.state_dict().values(), files.state_dict().values()))
    lines = zoo(capsys, "--convert", "gpt.pt", "--out", "bare")
    assert "no tokenizer was given" in lines[3] and not (tmp_path / "bare/tokenizer").exists()
    assert "tokenizer" not in json.loads((tmp_path / "bare/card.json").read_text("utf-8"))


def test_one_gpt_is_described_with_its_tokenizer(capsys):
    text = "\n".join(zoo(capsys, "y+konkleiid_gimel"))
    assert "tokenizer     gpt_saycam/y_32x32_8192" in text and "730,671,360 parameters" in text
    assert text.endswith("headcam zoo --convert gpt_saycam/y+konkleiid_gimel --out DIR") and "classifier" not in text
    assert "in the same file" in "\n".join(zoo(capsys, "iGPT-mini"))


def test_a_file_that_is_not_what_its_name_promises_is_refused(files):
    with pytest.raises(
        InputError, match=r"tokenizer\.ckpt is not gpt_saycam/s_32x32_8192: ch 32 \(published: 128\), num_res"
    ):
        load("s_32x32_8192", file="tokenizer.ckpt")
    with pytest.raises(InputError, match=r"gpt\.pt is not gpt_saycam/say_gimel: vocab_size 24 \(published: 8192\)"):
        load("say_gimel", file="gpt.pt", tokenizer="tokenizer.ckpt")


def test_a_file_is_looked_for_in_the_folder_that_headcam_zoo_names(files, tmp_path, monkeypatch):
    """It is found there: what is wrong is its sizes."""
    monkeypatch.setenv("HEADCAM_ZOO", str(tmp_path / "zoo"))
    place = tmp_path / "zoo" / find("say_32x32_8192").place
    place.parent.mkdir(parents=True)
    (tmp_path / "tokenizer.ckpt").rename(place)
    with pytest.raises(InputError, match=r"say_32x32_8192\.ckpt is not gpt_saycam/say_32x32_8192: ch 32"):
        load("say_gimel", file="gpt.pt")  # its tokenizer comes first
    with pytest.raises(InputError, match=r"is in no public repository\. Fix: ask its authors for iGPT-S-ImageNet\.pt"):
        load("iGPT-S-ImageNet")


@pytest.mark.parametrize(
    "words, telling",
    [
        (["--convert", "say_gimmel", "--out", "out"], "did you mean say_gimel"),
        (
            ["--convert", "gpt.pt", "--out", "out", "--grid", "2", "5", "5"],
            "has 64 tokens, which are no grid of 2 x 5 x 5",
        ),
        (["--convert", "gpt.pt", "--out", "out", "--tokenizer", "gpt.pt"], "gpt.pt is no checkpoint"),
        (["--convert", "gpt.pt", "--out", "out", "--tokenizer", "absent"], "absent does not exist"),
    ],
)
def test_bad_words_get_one_line(files, words, telling, capsys, tmp_path):
    assert main(["zoo", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("headcam: ") and telling in err
    assert not (tmp_path / "out").exists()
