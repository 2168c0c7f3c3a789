"""Published tokenizers and GPTs: every key and shape of the real layouts, small ones against plain statements, errors.

The layouts are those of original_generative_and_memory.md 1.6, written out here by rule and held against digests of
the listings that were made of the original classes. Real sizes are converted on the meta device, without storage.
"""

import hashlib
import math
import pathlib
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headcam.errors import InputError
from headcam.tokenizers.autoencoders.conv_tokenizer import ConvTokenizer
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoencoders.tokenizer import load_tokenizer
from headcam.tokenizers.autoregression.gpt import load_gpt
from headcam.tokenizers.autoregression.loading import load_gpt_and_tokenizer
from headcam.tokenizers.published.converters import convert_gpt, convert_tokenizer, save_gpt
from headcam.tokenizers.published.layouts import detect

Shapes = dict[str, tuple[int, ...]]

# What published files hold


def layer(name: str, *weight: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def res_block(name: str, before: int, after: int) -> Shapes:
    shapes = layer(f"{name}.norm1", before) | layer(f"{name}.conv1", after, before, 3, 3)
    shapes |= layer(f"{name}.norm2", after) | layer(f"{name}.conv2", after, after, 3, 3)
    return shapes | (layer(f"{name}.nin_shortcut", after, before, 1, 1) if before != after else {})


def attention(name: str, width: int) -> Shapes:
    shapes = layer(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= layer(f"{name}.{part}", width, width, 1, 1)
    return shapes


def middle(name: str, width: int) -> Shapes:
    blocks = res_block(f"{name}.block_1", width, width) | res_block(f"{name}.block_2", width, width)
    return blocks | attention(f"{name}.attn_1", width)


def vqgan(ch=128, mult=(1, 1, 2, 4), blocks=2, attends=(3,), z=256, codes=8192, dim=256, gumbel=False) -> Shapes:
    widths, last = [ch * factor for factor in mult], len(mult) - 1
    shapes = layer("encoder.conv_in", ch, 3, 3, 3) | layer("decoder.conv_in", widths[-1], z, 3, 3)
    for k, width in enumerate(widths):
        before = {"down": widths[k - 1] if k else ch, "up": widths[min(k + 1, last)]}
        for side, part, count in (("encoder", "down", blocks), ("decoder", "up", blocks + 1)):
            for b in range(count):
                shapes |= res_block(f"{side}.{part}.{k}.block.{b}", width if b else before[part], width)
                if k in attends:
                    shapes |= attention(f"{side}.{part}.{k}.attn.{b}", width)
        if k < last:
            shapes |= layer(f"encoder.down.{k}.downsample.conv", width, width, 3, 3)
        if k > 0:
            shapes |= layer(f"decoder.up.{k}.upsample.conv", width, width, 3, 3)
    shapes |= middle("encoder.mid", widths[-1]) | middle("decoder.mid", widths[-1])
    shapes |= layer("encoder.norm_out", widths[-1]) | layer("encoder.conv_out", z, widths[-1], 3, 3)
    shapes |= layer("decoder.norm_out", ch) | layer("decoder.conv_out", 3, ch, 3, 3)
    shapes |= layer("quant_conv", dim, z, 1, 1) | layer("post_quant_conv", z, dim, 1, 1)
    if gumbel:
        return shapes | layer("quantize.proj", codes, dim, 1, 1) | {"quantize.embed.weight": (codes, dim)}
    return shapes | {"quantize.embedding.weight": (codes, dim)}


def losses(layers: int) -> Shapes:
    """LPIPS on VGG16 and the patch discriminator: 33 keys, and 22 or 16."""
    shapes: Shapes = {f"loss.perceptual_loss.scaling_layer.{name}": (1, 3, 1, 1) for name in ("shift", "scale")}
    slices = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
    before = 3
    for k, (numbers, width) in enumerate(zip(slices.values(), (64, 128, 256, 512, 512))):
        shapes[f"loss.perceptual_loss.lin{k}.model.1.weight"] = (1, width, 1, 1)
        for number in numbers:
            shapes |= layer(f"loss.perceptual_loss.net.slice{k + 1}.{number}", width, before, 3, 3)
            before = width
    shapes |= layer("loss.discriminator.main.0", 64, 3, 4, 4)
    for k in range(1, layers + 1):
        at = f"loss.discriminator.main.{3 * k}"
        shapes[f"loss.discriminator.main.{3 * k - 1}.weight"] = (64 * 2**k, 32 * 2**k, 4, 4)
        shapes |= layer(at, 64 * 2**k) | {f"{at}.{name}": (64 * 2**k,) for name in ("running_mean", "running_var")}
        shapes[f"{at}.num_batches_tracked"] = ()
    return shapes | layer(f"loss.discriminator.main.{3 * layers + 2}", 1, 64 * 2**layers, 4, 4)


def gpt(depth: int, width: int, codes: int, positions: int) -> Shapes:
    shapes = {"pos_emb": (1, positions, width), "tok_emb.weight": (codes, width), "head.weight": (codes, width)}
    shapes |= layer("ln_f", width)
    for k in range(depth):
        at = f"blocks.{k}"
        shapes |= layer(f"{at}.ln1", width) | layer(f"{at}.ln2", width)
        for part in ("key", "query", "value", "proj"):
            shapes |= layer(f"{at}.attn.{part}", width, width)
        shapes |= layer(f"{at}.mlp.0", 4 * width, width) | layer(f"{at}.mlp.2", width, 4 * width)
        shapes[f"{at}.attn.mask"] = (1, 1, positions, positions)
    return shapes


F16 = {"mult": (1, 1, 2, 2, 4), "attends": (4,), "codes": 16384}
# First digits of the SHA-256 over the sorted lines "key shape" of generative_checkpoint_layouts.json.gz (2026-11).
LISTED = {
    "vqgan_f8_8192_saycam": (vqgan() | losses(3), "409d5771b6226750"),
    "vqgan_f16_16384_saycam": (vqgan(**F16) | losses(3), "a58b93baea63cbdf"),
    "vqgan_f16_16384_imagenet": (vqgan(**F16) | losses(2), "235588ee4d81e37f"),
    "gumbelvq_f8_8192_openimages": (vqgan(gumbel=True), "cc26d9bbf6fe992b"),
    "gpt_alef_f8": (gpt(12, 768, 8192, 1023), "1edb83991f4d5aeb"),
    "gpt_alef_f16": (gpt(12, 768, 16384, 255), "848e581df2c38b12"),
    "gpt_bet_f8": (gpt(24, 1024, 8192, 1023), "738b865f27185961"),
    "gpt_bet_f16": (gpt(24, 1024, 16384, 255), "3e021b8cb6a89669"),
    "gpt_gimel_f8": (gpt(36, 1280, 8192, 1023), "a9b5c2f6c4cf6343"),
    "gpt_gimel_f16": (gpt(36, 1280, 16384, 255), "5c132f6ef986407a"),
    "gpt_dalet_f8": (gpt(48, 1600, 8192, 1023), "7a833efd3644dcf1"),
    "gpt_dalet_f16": (gpt(48, 1600, 16384, 255), "58955de875e1f41b"),
    "igpt_s": (gpt(24, 512, 512, 4095), "22c5e8f5e5dfa25e"),
    "tats_transformer_24l_1024e_b1024": (gpt(24, 1024, 16384, 1024), "6e19f8e1dcdb14eb"),
}
# Parameters as computed for the listings, losses and masks left out; heads.
TOKENIZERS = {
    "vqgan_f8_8192_saycam": (66_890_627, (32, 32), {"discriminator": 22, "perceptual_loss": 33}, 299),
    "vqgan_f16_16384_saycam": (76_073_859, (16, 16), {"discriminator": 22, "perceptual_loss": 33}, 343),
    "vqgan_f16_16384_imagenet": (76_073_859, (16, 16), {"discriminator": 16, "perceptual_loss": 33}, 343),
    "gumbelvq_f8_8192_openimages": (68_995_971, (32, 32), {"discriminator": 0, "perceptual_loss": 0}, 301),
}
GPTS = {
    "gpt_alef_f8": (98_424_576, 12),
    "gpt_alef_f16": (110_417_664, 12),
    "gpt_bet_f8": (320_136_192, 16),
    "gpt_bet_f16": (336_126_976, 16),
    "gpt_gimel_f8": (730_671_360, 20),
    "gpt_gimel_f16": (750_659_840, 20),
    "gpt_dalet_f8": (1_503_412_800, 25),
    "gpt_dalet_f16": (1_528_398_400, 25),
    "igpt_s": (78_279_168, 8),
    "tats_transformer_24l_1024e_b1024": (336_914_432, 16),
}


@pytest.mark.parametrize("name", LISTED)
def test_the_layouts_of_these_tests_are_the_listed_ones(name):
    shapes, digest = LISTED[name]
    lines = sorted(f"{key} {tuple(shape)}" for key, shape in shapes.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest().startswith(digest)


def bare(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors without storage, but for the masks, which are looked at and share theirs."""
    tensors = {}
    for key, shape in shapes.items():
        if key.endswith("mask"):
            tensors[key] = tensors.get(
                "blocks.0.attn.mask", torch.ones(shape[2:], dtype=torch.float16).tril()[None, None]
            )
        else:
            integers = key.endswith("num_batches_tracked")
            tensors[key] = torch.empty(shape, device="meta", dtype=torch.int64 if integers else torch.float32)
    return tensors


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_key_of_the_published_tokenizers_is_used_or_dropped_by_name(name, save):
    parameters, grid, dropped, used = TOKENIZERS[name]
    tokenizer, card = convert_tokenizer(save({"state_dict": bare(LISTED[name][0])}))
    assert isinstance(tokenizer, ConvTokenizer) and tokenizer.grid == grid and tokenizer.img_size == (256, 256)
    assert card["parameters"] == parameters and card["source"]["keys_dropped"] == dropped
    assert card["source"]["keys_used"] == used and used + sum(dropped.values()) == len(LISTED[name][0])


@pytest.mark.parametrize("name", GPTS)
def test_every_key_of_the_published_gpts_is_used_or_a_mask(name, save):
    shapes, (parameters, heads) = LISTED[name][0], GPTS[name]
    state, grid = bare(shapes), None
    if name.startswith("tats"):
        file = {"state_dict": {f"transformer.{key}": value for key, value in state.items()}}
        grid, parameters = (4, 16, 16), parameters + 1024  # the copy that starts
    else:
        file = {"model_state_dict": state} | ({"clusters": torch.zeros(512, 3)} if name == "igpt_s" else {})
    model, card = convert_gpt(save(file), grid=grid)
    assert card["parameters"] == parameters and model.num_heads == heads
    assert model.num_positions == shapes["pos_emb"][1] and card["img_size"] == list(model.grid[-2:])
    masks = card["source"]["keys_dropped"]["masks"]
    assert masks == model.depth and card["source"]["keys_used"] + masks == len(shapes) == 17 * model.depth + 5


# Small ones: the same numbers as the original


@pytest.fixture
def save(tmp_path):
    def to_file(file, name="published.pt") -> pathlib.Path:
        torch.save(file, tmp_path / name)
        return tmp_path / name

    return to_file


def drawn(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("mask"):
            state[key] = torch.ones(shape).tril()
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        else:
            state[key] = torch.randn(shape, generator=generator) * 0.2 + (0.8 if "norm" in key or "ln" in key else 0)
    return state


def small_vqgan(gumbel: bool = False) -> dict[str, Tensor]:
    return drawn(vqgan(ch=32, mult=(1, 2), blocks=1, attends=(1,), z=16, codes=20, dim=8, gumbel=gumbel))


D, DEPTH, HEADS, CODES, SIDE = 32, 2, 4, 20, 3


def small_gpt(positions: int = SIDE**2 - 1) -> dict[str, Tensor]:
    return drawn(gpt(DEPTH, D, CODES, positions))


@pytest.mark.parametrize("gumbel", [False, True])
def test_a_tokenizer_has_the_weights_of_the_file_under_the_documented_names(gumbel, save):
    """That these names compute what they computed is a test of ConvTokenizer."""
    state = small_vqgan(gumbel)
    kept = dict(state) if gumbel else state | drawn({"loss.discriminator.main.0.bias": (64,)})
    path = save({"state_dict": kept, "global_step": 3})
    tokenizer, card = convert_tokenizer(path, img_size=16)
    codes = "quantize.embed.weight" if gumbel else "quantize.embedding.weight"
    own = {codes: "quantizer.codebook"} | {
        f"quantize.proj.{kind}": f"quantizer.proj.{kind}" for kind in ("weight", "bias")
    }
    found = tokenizer.state_dict()
    assert len(found) == len(state) and not tokenizer.training
    assert all(torch.equal(found[own.get(key, key)], value) for key, value in state.items())
    assert tokenizer.grid == (8, 8) and tokenizer.vocab_size == 20 and tokenizer.mean == (0.5, 0.5, 0.5)
    assert card["objective"] == "vqgan" and card["source"]["entries_not_read"] == ["global_step"]
    assert card["source"]["family"] == ("gumbel-vqgan" if gumbel else "vqgan") == detect(path)


def test_a_gumbel_tokenizer_takes_the_largest_score(save):
    state = small_vqgan(gumbel=True)
    tokenizer, _ = convert_tokenizer(save({"state_dict": state}), img_size=16)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        latents = tokenizer.latents(pixels / 127.5 - 1).double()
    scores = F.conv2d(latents, state["quantize.proj.weight"].double(), state["quantize.proj.bias"].double())
    assert torch.equal(tokenizer.encode(pixels), scores.argmax(1))


def plain_logits(state: dict[str, Tensor], tokens: Tensor, heads: int = HEADS) -> Tensor:
    """minGPT's forward pass in float64: (n,) -> (n, K), token by token and head by head."""
    w = {key: value.double() for key, value in state.items()}

    def norm(name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / ((x**2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["tok_emb.weight"][tokens] + w["pos_emb"][0, : len(tokens)]
    for k in range(DEPTH):
        h = norm(f"blocks.{k}.ln1", x)
        q, key, v = (linear(f"blocks.{k}.attn.{part}", h).chunk(heads, dim=-1) for part in ("query", "key", "value"))
        out = torch.zeros_like(x)
        for i in range(len(tokens)):
            for head in range(heads):
                weights = torch.softmax(key[head][: i + 1] @ q[head][i] / math.sqrt(D // heads), dim=0)
                out[i, head * (D // heads) : (head + 1) * (D // heads)] = weights @ v[head][: i + 1]
        x = x + linear(f"blocks.{k}.attn.proj", out)
        h = linear(f"blocks.{k}.mlp.0", norm(f"blocks.{k}.ln2", x))
        x = x + linear(f"blocks.{k}.mlp.2", h * 0.5 * (1 + torch.erf(h / math.sqrt(2))))
    return norm("ln_f", x) @ w["head.weight"].T


def grids(count: int, *grid: int) -> Tensor:
    return torch.randint(0, CODES, (count, *grid), generator=torch.Generator().manual_seed(4))


def test_an_image_gpt_predicts_every_token_but_the_first_as_the_original_did(save):
    state = small_gpt()
    model, card = convert_gpt(save({"model_state_dict": state, "optimizer_state_dict": {}}), num_heads=HEADS)
    assert model.start == "none" and model.grid == (SIDE, SIDE) and card["architecture"]["class"] == "GPT"
    tokens = grids(2, SIDE, SIDE)
    for sample, found in zip(tokens.flatten(1), model.nats(tokens)):
        logits = plain_logits(state, sample[:-1])
        wanted = F.cross_entropy(logits, sample[1:], reduction="none")
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model(sample[None, :-1])[0].double(), logits, atol=1e-4, rtol=1e-4)


def test_a_gpt_of_tats_starts_with_what_code_0_was_to_it(save):
    state = small_gpt(positions=2 * SIDE**2)
    kept = {f"transformer.{key}": value for key, value in state.items()} | {"first_stage_model.a.b": torch.zeros(1)}
    path = save({"state_dict": kept, "hyper_parameters": {}})
    model, card = convert_gpt(path, grid=(2, SIDE, SIDE), num_heads=HEADS)
    assert model.start == "learned" and card["source"]["keys_dropped"] == {"masks": DEPTH, "tokenizer": 1}
    tokens = grids(2, 2, SIDE, SIDE)
    for sample, found in zip(tokens.flatten(1), model.nats(tokens)):
        logits = plain_logits(state, torch.cat([torch.zeros(1, dtype=torch.int64), sample[:-1]]))
        wanted = F.cross_entropy(logits, sample, reduction="none")
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match=r"has 18 tokens, and weights do not tell their grid\. Fix: give grid"):
        convert_gpt(path, num_heads=HEADS)


def pickled_class(monkeypatch, name: str) -> type:
    """A class that pickles under the name of another package, which need not be installed."""
    module, _, cls = name.rpartition(".")
    made = type(cls, (), {"__module__": module})
    parts = module.split(".")
    for k in range(len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[: k + 1]), types.ModuleType(".".join(parts[: k + 1])))
    setattr(sys.modules[module], cls, made)
    return made


def test_an_igpt_brings_its_heads_and_its_colours(save, monkeypatch):
    state, colours = small_gpt(), torch.rand(CODES, 3) * 255
    with monkeypatch.context() as patch:
        config = pickled_class(patch, "mingpt.model.GPTConfig")()
        config.n_head, config.n_layer = HEADS, DEPTH
        path = save({"model_state_dict": state, "train_loss": [1.5], "clusters": colours, "model_config": config})
    assert detect(path) == "igpt"
    model, card = convert_gpt(path)
    assert model.num_heads == HEADS and card["source"]["keys_used"] == 15 * DEPTH + DEPTH + 5
    sample = grids(1, SIDE, SIDE)
    wanted = F.cross_entropy(plain_logits(state, sample.flatten()[:-1]), sample.flatten()[1:], reduction="none")
    torch.testing.assert_close(model.nats(sample)[0].double(), wanted, atol=1e-5, rtol=1e-4)

    palette, card = convert_tokenizer(path)
    assert isinstance(palette, PaletteTokenizer) and palette.grid == (SIDE, SIDE) and card["objective"] == "palette"
    assert torch.equal(palette.quantizer.codebook, colours)
    pixels = torch.randint(0, 256, (1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    apart = (pixels[0].double().permute(1, 2, 0).unsqueeze(2) - colours.double()).square().sum(-1)
    assert torch.equal(palette.encode(pixels)[0], apart.argmin(-1))


def test_files_of_old_lightning_name_a_class_that_is_not_imported(save, monkeypatch):
    with monkeypatch.context() as patch:
        callback = pickled_class(patch, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
        path = save({"state_dict": small_vqgan(), "callbacks": {callback: {"best_model_score": torch.tensor(0.1)}}})
        other = pickled_class(patch, "pytorch_lightning.callbacks.harm.Harm")
        harmful = save({"state_dict": small_vqgan(), "callbacks": {other: 1}}, "harmful.ckpt")
    assert convert_tokenizer(path, img_size=16)[0].vocab_size == 20
    with pytest.raises(InputError, match=r"holds a pickled pytorch_lightning\.callbacks\.harm\.Harm, which could run"):
        convert_tokenizer(harmful)


def test_a_gpt_is_saved_with_its_tokenizer_and_loads_again(save, tmp_path):
    tokenizer = convert_tokenizer(save({"state_dict": small_vqgan()}), img_size=6)
    path = save({"model_state_dict": small_gpt()}, "gpt.pt")
    model, card = convert_gpt(path, tokenizer=tokenizer[0], num_heads=HEADS)
    save_gpt(tmp_path / "out", model, card, tokenizer)
    again, card = load_gpt(tmp_path / "out")
    copy, copy_card = load_tokenizer(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(copy.state_dict().values(), tokenizer[0].state_dict().values()))
    assert card["tokenizer"] == {
        "hash": copy_card["weights_hash"],
        "class": "ConvTokenizer",
        "img_size": [6, 6],
        "num_frames": 1,
    }
    pixels = torch.randint(0, 256, (1, 3, 6, 6), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    assert torch.equal(again.nats(copy.encode(pixels)), model.nats(tokenizer[0].encode(pixels)))
    both = load_gpt_and_tokenizer(tmp_path / "out")  # compares the hash
    assert both[0].start == "none" and both[1].grid == both[0].grid


# What is refused


def without(state: dict, key: str) -> dict:
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    "state, telling",
    [
        (without(small_vqgan(), "encoder.mid.attn_1.q.bias"), r"lacks encoder\.mid\.attn_1\.q\.bias\. Fix"),
        (without(small_vqgan(), "quantize.embedding.weight"), r"lacks quantize\.embedding\.weight\. Fix"),
        (without(small_vqgan(True), "quantize.proj.bias"), r"lacks quantize\.proj\.bias\. Fix"),
        (small_vqgan() | {"encoder.extra": torch.zeros(1)}, r"has the unknown encoder\.extra\. Fix"),
        (small_vqgan() | {"loss.logvar": torch.zeros(1)}, r"has the unknown loss\.logvar\. Fix"),
        (
            small_vqgan() | {"decoder.up.1.block.0.conv1.weight": torch.zeros(64, 32, 3, 3)},
            r"decoder\.up\.1\.block\.0\.conv1\.weight is \(64, 32, 3, 3\) .* ask for \(64, 64, 3, 3\)",
        ),
        (small_vqgan() | {"quant_conv.weight": torch.zeros(8, 16)}, r"quant_conv\.weight is \(8, 16\), not of 4 axes"),
    ],
)
def test_keys_and_shapes_of_a_tokenizer_that_do_not_fit_are_named(state, telling, save):
    with pytest.raises(InputError, match=telling) as error:
        convert_tokenizer(save({"state_dict": state}), img_size=16)
    assert "\n" not in str(error.value)


FULL = torch.ones(1, 1, SIDE**2 - 1, SIDE**2 - 1)


@pytest.mark.parametrize(
    "state, telling",
    [
        (without(small_gpt(), "blocks.1.ln2.weight"), r"lacks blocks\.1\.ln2\.weight\. Fix"),
        (without(small_gpt(), "blocks.0.attn.mask"), r"lacks blocks\.0\.attn\.mask\. Fix"),
        (without(small_gpt(), "tok_emb.weight"), r"lacks tok_emb\.weight\. Fix"),
        (small_gpt() | {"sos": torch.zeros(D)}, r"has the unknown sos\. Fix"),
        (small_gpt() | {"head.weight": torch.zeros(CODES + 1, D)}, r"head\.weight is \(21, 32\) .* ask for \(20, 32\)"),
        (small_gpt() | {"blocks.1.attn.mask": FULL}, r"blocks\.1\.attn\.mask is not lower triangular"),
        (small_gpt() | {"blocks.0.attn.mask": FULL.tril(-1)}, r"blocks\.0\.attn\.mask is not lower triangular"),
        (small_gpt(positions=7), r"has 8 tokens, and weights do not tell their grid"),
    ],
)
def test_keys_shapes_and_masks_of_a_gpt_that_do_not_fit_are_named(state, telling, save):
    with pytest.raises(InputError, match=telling) as error:
        convert_gpt(save({"model_state_dict": state}), num_heads=HEADS)
    assert "\n" not in str(error.value)


def test_heads_grid_and_tokenizer_are_not_guessed(save):
    path = save({"model_state_dict": small_gpt()})
    with pytest.raises(
        InputError, match=r"width 32, no multiple of the 64 .* weights do not tell heads\. Fix: give num"
    ):
        convert_gpt(path)
    with pytest.raises(InputError, match="5 heads do not divide the width 32"):
        convert_gpt(path, num_heads=5)
    with pytest.raises(InputError, match="has 9 tokens, which are no grid of 2 x 5"):
        convert_gpt(path, num_heads=HEADS, grid=(2, 5))
    assert convert_gpt(path, num_heads=HEADS, grid=(1, 9))[0].grid == (1, 9)
    with pytest.raises(InputError, match="has 9 tokens, which are no grid of 2 x 2"):
        convert_gpt(path, num_heads=HEADS, tokenizer=PaletteTokenizer(2, CODES))
    with pytest.raises(InputError, match="a vocabulary of 21, where the model has 20"):
        convert_gpt(path, num_heads=HEADS, tokenizer=PaletteTokenizer(SIDE, CODES + 1))


def test_files_of_other_kinds_are_refused_by_name(save):
    encoder = save({"model": {"blocks.0.attn.qkv.weight": torch.zeros(1)}}, "encoder.pth")
    video = save({"state_dict": {"encoder.conv_blocks.0.down.conv.weight": torch.zeros(1)}}, "video.ckpt")
    assert detect(encoder) is None and detect(video) == "tats-vqgan"
    with pytest.raises(InputError, match=r"is of no published family where one of vqgan, gumbel-vqgan, igpt is wanted"):
        convert_tokenizer(encoder)
    with pytest.raises(InputError, match=r"is a video tokenizer of TATS, whose encoder sees later frames"):
        convert_tokenizer(video)
    with pytest.raises(InputError, match=r"is gpt where one of vqgan"):
        convert_tokenizer(save({"model_state_dict": small_gpt()}))
    with pytest.raises(InputError, match=r"is vqgan where one of gpt, igpt, tats-gpt is wanted"):
        convert_gpt(save({"state_dict": small_vqgan()}))
    with pytest.raises(InputError, match=r"absent\.pt does not exist"):
        detect("absent.pt")
