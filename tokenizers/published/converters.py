"""Published tokenizers and GPTs to ours: exact, strict, and never by guessing.

`convert_tokenizer` and `convert_gpt` read a file of a documented family (`headcam.tokenizers.published.layouts`), take
the sizes of the model from the shapes of its weights, hold every key and every shape against the model of those sizes,
and return it with a card that names the file by its hash and says what was done with its keys. Two things that weights
do not tell are the size of the pictures (256 pixels in all published tokenizers) and the number of attention heads (64
channels each in all published GPTs).

Published image GPTs have no start token: of N tokens the first is never predicted, and a converted model keeps that
(`start_token: none`; its score covers N - 1 tokens). That of TATS starts with code 0; ours starts with a copy of that
row of its token table, so that it computes the same.

Shapes: D width, K codes, P positions, N tokens of a picture or clip.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import headcam
from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.conv_tokenizer import ConvTokenizer
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer
from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.autoregression.loading import check_fit
from headcam.tokenizers.published.layouts import (
    FAMILIES,
    GPTS,
    TOKENIZERS,
    Opened,
    State,
    count,
    drop,
    gpt_shapes,
    hold,
    open_as,
    require,
)

_HEAD_DIM = 64
_IMG_SIZE = 256
# Our key -> theirs, where they differ.
_CODES = {
    "vqgan": {"quantizer.codebook": "quantize.embedding.weight"},
    "gumbel-vqgan": {
        "quantizer.codebook": "quantize.embed.weight",
        "quantizer.proj.weight": "quantize.proj.weight",
        "quantizer.proj.bias": "quantize.proj.bias",
    },
}
# Published codebooks: codes as wide as the latents, compared by distance, and nothing beside them.
_QUANTIZERS = {
    "vqgan": ("vq", {"code_dim": None, "l2_normalize": False, "kmeans": False, "threshold_ema_dead_code": 0.0}),
    "gumbel-vqgan": ("gumbel", {"kl_weight": 1e-8, "diversity_weight": 0.0, "kmeans": False}),
}
_GPT_LAYERS = {"norm1": "ln1", "norm2": "ln2", "attn.proj": "attn.proj", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}


def convert_tokenizer(path: str | Path, *, img_size: int = _IMG_SIZE) -> tuple[Tokenizer, dict[str, Any]]:
    """Read a published tokenizer.

    Args:
        path: the file; of an iGPT, whose palette is its tokenizer, too.
        img_size: pixels, which weights of convolutions do not tell; a palette's follows from its GPT.
    Returns:
        The tokenizer in eval mode, and its card.
    Raises:
        InputError: no file, a damaged one, one of another family, keys missing or unknown, shapes that do not fit.
    """
    path = Path(path)
    opened = open_as(path, TOKENIZERS)
    if opened.family == "igpt":
        return _palette(opened, path)
    state, dropped = drop(opened)
    quantizer, options = _QUANTIZERS[opened.family]
    arguments = _measure_vqgan(state, _CODES[opened.family]["quantizer.codebook"], img_size, path)
    with torch.device("meta"):
        tokenizer = ConvTokenizer(**arguments, quantizer=quantizer, quantizer_options=options)
    theirs = {key: _CODES[opened.family].get(key, key) for key in tokenizer.state_dict()}
    hold(state, {theirs[key]: tuple(value.shape) for key, value in tokenizer.state_dict().items()}, path)
    _load(tokenizer, {key: state[name] for key, name in theirs.items()})
    return tokenizer, _tokenizer_card(tokenizer, path, "vqgan", _source(path, opened, len(state), dropped))


def convert_gpt(
    path: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    grid: Sequence[int] | None = None,
    num_heads: int | None = None,
) -> tuple[GPT, dict[str, Any]]:
    """Read a published GPT.

    Args:
        path: the file.
        tokenizer: of its tokens; the GPT has to have its grid and vocabulary.
        grid: of its tokens where neither a tokenizer nor a square says it: (t, h, w) of a video GPT.
        num_heads: attention heads; None: what the file says (iGPT), else D / 64.
    Returns:
        The GPT in eval mode, and its card.
    Raises:
        InputError: as `convert_tokenizer`; a mask that is not causal; a grid or tokenizer that does not fit.
    """
    path = Path(path)
    opened = open_as(path, GPTS)
    state, dropped = drop(opened)
    prefix = "transformer." if opened.family == "tats-gpt" else ""
    require(state, {f"{prefix}tok_emb.weight": 2, f"{prefix}pos_emb": 3}, path)
    vocab_size, width = state[f"{prefix}tok_emb.weight"].shape
    positions = state[f"{prefix}pos_emb"].shape[1]
    depth = count(state, rf"{prefix}blocks\.(\d+)\.")
    hold(state, gpt_shapes(depth, width, vocab_size, positions, prefix), path)
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    _check_masks(state, depth, path)
    start = opened.family == "tats-gpt"
    num_tokens = positions if start else positions + 1
    arguments = {
        "vocab_size": vocab_size,
        "grid": _grid(num_tokens, not start, tokenizer.grid if tokenizer and grid is None else grid, path),
        "embed_dim": width,
        "depth": depth,
        "num_heads": _heads(width, num_heads, opened, path),
        "start_token": "learned" if start else "none",
    }
    with torch.device("meta"):
        gpt = GPT(**arguments)
    if tokenizer is not None:
        check_fit(gpt, tokenizer)
    fused = _renamed(state, depth)
    if start:
        fused["start_token"] = state["tok_emb.weight"][:1].reshape(gpt.start_token.shape)
    _load(gpt, fused)
    source = _source(path, opened, len(state) - depth, {"masks": depth, **dropped})
    return gpt, _card(gpt, path, "gpt", source)


def save_gpt(
    folder: str | Path,
    gpt: GPT,
    card: dict[str, Any],
    tokenizer: tuple[Tokenizer, dict[str, Any]] | None = None,
) -> Path:
    """Write a GPT as `weights.safetensors` and `card.json`, with a copy of its tokenizer in `tokenizer/`.

    Args:
        tokenizer: with its card; None: without one the GPT scores and samples tokens only.
    Returns:
        The path of the GPT's weights.
    """
    folder = Path(folder)
    if tokenizer is not None:
        weights = save_weights(folder / "tokenizer", *tokenizer)
        card = {
            **card,
            "tokenizer": {
                "hash": sha256_file(weights),
                "class": type(tokenizer[0]).__name__,
                "img_size": list(tokenizer[0].img_size),
                "num_frames": tokenizer[0].num_frames,
            },
        }
    return save_weights(folder, gpt, card)


def _measure_vqgan(state: State, codebook: str, img_size: int, path: Path) -> dict[str, Any]:
    """Arguments of the tokenizer whose weights these are, from their shapes."""
    levels = count(state, r"encoder\.down\.(\d+)\.")
    first = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
    ends = ("encoder.conv_in.weight", "encoder.conv_out.weight", "quant_conv.weight")
    require(state, {**dict.fromkeys((*ends, *first), 4), codebook: 2}, path)
    ch = len(state["encoder.conv_in.weight"])
    attends = [level for level in range(levels) if count(state, rf"encoder\.down\.{level}\.attn\.(\d+)\.")]
    return {
        "img_size": img_size,
        "ch": ch,
        "ch_mult": [len(state[key]) // ch for key in first],
        "num_res_blocks": count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "attn_resolutions": [img_size >> level for level in attends],
        "z_channels": len(state["encoder.conv_out.weight"]),
        "embed_dim": len(state["quant_conv.weight"]),
        "codebook_size": len(state[codebook]),
    }


def _palette(opened: Opened, path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The colours of an iGPT; pictures have as many pixels as the GPT has tokens."""
    colours = opened.file["clusters"]
    require(opened.state, {"pos_emb": 3, "tok_emb.weight": 2}, path)
    vocab_size = len(opened.state["tok_emb.weight"])
    hold({"clusters": torch.as_tensor(colours)}, {"clusters": (vocab_size, 3)}, path)
    side = _grid(opened.state["pos_emb"].shape[1] + 1, True, None, path)[0]
    with torch.device("meta"):
        tokenizer = PaletteTokenizer(img_size=side, codebook_size=vocab_size)
    _load(tokenizer, {"quantizer.codebook": torch.as_tensor(colours)})
    return tokenizer, _tokenizer_card(tokenizer, path, "palette", _source(path, opened, 1, {}))


def _check_masks(state: State, depth: int, path: Path) -> None:
    """Raise where a layer attends in any other way than each token to itself and those before it."""
    positions = state["pos_emb"].shape[1]
    causal = torch.ones(positions, positions, dtype=torch.bool).tril()
    for k in range(depth):
        if not torch.equal(state[f"blocks.{k}.attn.mask"][0, 0] != 0, causal):
            raise InputError(
                f"{path}: blocks.{k}.attn.mask is not lower triangular, so its tokens do not see just those before",
                "give a causal model; the attention of others would be changed",
            )


def _renamed(state: State, depth: int) -> State:
    """minGPT's names to ours; separate maps for queries, keys and values to the joint one."""
    ours = {
        "tok_embed.weight": state["tok_emb.weight"],
        "pos_embed": state["pos_emb"],
        "norm.weight": state["ln_f.weight"],
        "norm.bias": state["ln_f.bias"],
        "head.weight": state["head.weight"],
    }
    for k in range(depth):
        for kind in ("weight", "bias"):
            parts = [state[f"blocks.{k}.attn.{name}.{kind}"] for name in ("query", "key", "value")]
            ours[f"blocks.{k}.attn.qkv.{kind}"] = torch.cat(parts)
            for name, theirs in _GPT_LAYERS.items():
                ours[f"blocks.{k}.{name}.{kind}"] = state[f"blocks.{k}.{theirs}.{kind}"]
    return ours


def _grid(num_tokens: int, square: bool, grid: Sequence[int] | None, path: Path) -> list[int]:
    """Rows and columns (and time slots) of the tokens: those given, or a square where pictures are square."""
    if grid is None:
        side = math.isqrt(num_tokens)
        if not square or side**2 != num_tokens:
            raise InputError(
                f"{path} has {num_tokens} tokens, and weights do not tell their grid",
                "give grid, such as 4 16 16 of a clip, or the tokenizer",
            )
        return [side, side]
    if math.prod(grid) != num_tokens:
        raise InputError(
            f"{path} has {num_tokens} tokens, which are no grid of {' x '.join(map(str, grid))}",
            "give the grid or the tokenizer that the GPT was trained with",
        )
    return list(grid)


def _heads(width: int, num_heads: int | None, opened: Opened, path: Path) -> int:
    """Attention heads: those given, those of an iGPT's settings, or 64 channels each."""
    stated = num_heads or getattr(opened.file.get("model_config"), "n_head", None)
    if stated is None and width % _HEAD_DIM:
        raise InputError(
            f"{path} has width {width}, no multiple of the {_HEAD_DIM} channels of a head of published models, and "
            "weights do not tell heads",
            "give num_heads",
        )
    heads = width // _HEAD_DIM if stated is None else stated
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise InputError(f"{heads} heads do not divide the width {width} of {path}", "give a divisor as num_heads")
    return heads


def _load(module: nn.Module, state: State) -> None:
    """Fill a module on the meta device with exactly these weights, as float32, in memory of its own."""
    copies = {key: value.detach().to(torch.float32, copy=True).contiguous() for key, value in state.items()}
    module.load_state_dict(copies, assign=True)
    module.eval()


def _source(path: Path, opened: Opened, keys_used: int, dropped: dict[str, int]) -> dict[str, Any]:
    """What a card says of the file and of its keys."""
    entry = FAMILIES[opened.family].entry
    return {
        "file": path.name,
        "hash": sha256_file(path),
        "family": opened.family,
        "entry": entry,
        "entries_not_read": [str(key) for key in opened.file if key != entry],
        "keys_used": keys_used,
        "keys_dropped": dropped,
    }


def _tokenizer_card(tokenizer: Tokenizer, path: Path, objective: str, source: dict[str, Any]) -> dict[str, Any]:
    return _card(tokenizer, path, objective, source, mean=list(tokenizer.mean), std=list(tokenizer.std))


def _card(model: Tokenizer | GPT, path: Path, objective: str, source: dict[str, Any], **pixels: Any) -> dict[str, Any]:
    return {
        "contract": "card",
        "version": 1,
        "headcam": headcam.__version__,
        "name": path.stem,
        "objective": objective,
        "architecture": {"class": type(model).__name__, "arguments": model.arguments},
        "parameters": sum(p.numel() for p in model.parameters()),
        "img_size": list(model.img_size),
        **pixels,
        "weights_hash": source["hash"],
        "source": source,
    }
