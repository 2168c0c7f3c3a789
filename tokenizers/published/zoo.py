"""The published tokenizers and GPTs by name: where each is, what it must be, and how to get it as a model of ours.

    from headcam.tokenizers.published.zoo import load
    gpt, card, tokenizer = load("say_gimel")

They are had in the same three ways as the encoders (`headcam.ssl.zoo`), and held against what the name promises. A GPT
comes with the tokenizer whose tokens it was trained on.

| group | what | source |
| --- | --- | --- |
| `gpt_saycam` | VQGANs of 256 x 256 pixels on SAYCam and ImageNet, and GPTs on their tokens | VQGAN-GPT of Orhan |
| `igpt` | GPTs on 64 x 64 pixels of 512 colours; no repository, files only | Orhan 2022 |

GPTs of `gpt_saycam` are named after data and size; `+konkleiid`, `+konklenonvehicle` were trained on with pictures of
objects. The depth of iGPT-mini is not stated by its author: it is inferred from the size of its file, and not checked.
"""

import difflib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headcam.errors import InputError
from headcam.ssl import zoo as encoders
from headcam.ssl.zoo import Published, fetch
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer, load_tokenizer
from headcam.tokenizers.autoregression.gpt import GPT, PRESETS
from headcam.tokenizers.published.converters import convert_gpt, convert_tokenizer
from headcam.tokenizers.published.layouts import GPTS, TOKENIZERS, detect

Opened = tuple[Tokenizer | GPT, dict[str, Any]]

_REPOSITORY = "eminorhan/gpt_saycam"
_CHILDREN = ("say", "s", "a", "y")
_F8 = {"ch_mult": [1, 1, 2, 4], "attn_resolutions": [32], "codebook_size": 8192}
_F16 = {"ch_mult": [1, 1, 2, 2, 4], "attn_resolutions": [16], "codebook_size": 16384}
_F8_PARAMETERS, _F16_PARAMETERS = 66_890_627, 76_073_859  # of keys and shapes as published, without the losses
_F16_NAME = "imagenet_16x16_16384"


class Loaded(NamedTuple):
    """A model in eval mode, its card, and for a GPT its tokenizer with card, where there is one."""

    model: Tokenizer | GPT
    card: dict[str, Any]
    tokenizer: tuple[Tokenizer, dict[str, Any]] | None


def load(
    name: str | Path,
    file: str | Path | None = None,
    *,
    tokenizer: str | Path | None = None,
    grid: Sequence[int] | None = None,
    num_heads: int | None = None,
) -> Loaded:
    """A published tokenizer or GPT.

    Args:
        name: a name of `published()`, its part after the slash, or the path of any file in a documented layout.
        file: the file of a named model where it is already at hand.
        tokenizer: of a GPT's tokens: what `load_tokenizer` takes, or a published file; None: the one that belongs to
            the name, or is in the same file (iGPT).
        grid, num_heads: see `headcam.tokenizers.published.converters.convert_gpt`.
    Raises:
        InputError: no such name, no network to get the file, a file that is not what the name promises, and whatever
            the converters refuse.
    """
    model = None if _is_file(name) else find(str(name))
    path = Path(name) if model is None else Path(file) if file is not None else fetch(model)
    family = detect(path) if model is None else model.family
    if family in GPTS:
        coder = _tokenizer_of(model, path, family, tokenizer)
        gpt, card = convert_gpt(path, tokenizer=None if coder is None else coder[0], grid=grid, num_heads=num_heads)
        loaded = Loaded(gpt, card, coder)
    else:
        loaded = Loaded(*convert_tokenizer(path), None)
    if model is not None:
        _check(model, loaded.card, path)
        loaded.card["name"] = model.name
    return loaded


def open_source(source: str, own: Callable[[str], Opened]) -> Opened:
    """Model and card of `zoo:NAME`, of a published file, or of what `own` reads (a run, weights with their card)."""
    name, path = source.removeprefix("zoo:"), Path(source)
    if name != source or (path.is_file() and path.suffix != ".safetensors" and detect(path) is not None):
        loaded = load(name)
        return loaded.model, loaded.card
    return own(source)


def is_generative(name: str | Path) -> bool:
    """Whether a name or file is that of a tokenizer or GPT, not of an encoder; errors as of `load`."""
    return detect(name) is not None if _is_file(name) else find(str(name)).name in published()


def find(name: str) -> Published:
    """The model of that name, be it an encoder; `InputError` with the nearest names where there is none."""
    if name in _aliases():
        return published()[_aliases()[name]]
    try:
        return encoders.find(name)
    except InputError as error:
        near = difflib.get_close_matches(name, _aliases(), n=4, cutoff=0.75)
        if not near or " is the name of " in error.problem:
            raise
        fix = f"did you mean {', '.join(near)}; headcam zoo lists all names"
        raise InputError(error.problem, fix) from error


@functools.cache
def published() -> dict[str, Published]:
    """All published tokenizers and GPTs by name."""
    return {model.name: model for make in (_tokenizers, _gpts, _igpts) for model in make()}


def tokenizer_name(model: Published) -> str | None:
    """The published tokenizer of a GPT of `gpt_saycam`; None for others."""
    if model.family != "gpt":
        return None
    data = model.name.split("/")[1].split("_")[0].split("+")[0]
    if data.startswith("imagenet"):
        return f"gpt_saycam/{_F16_NAME}"
    return f"gpt_saycam/{data if data in _CHILDREN else 'say'}_32x32_8192"  # GPTs on objects alone: that of SAY


@functools.cache
def _aliases() -> dict[str, str]:
    """Full names and their last parts -> full names."""
    return {alias: name for name in published() for alias in (name, name.split("/")[1])}


def _is_file(name: str | Path) -> bool:
    return str(name) not in _aliases() and Path(name).is_file()


def _tokenizer_of(
    model: Published | None, path: Path, family: str | None, given: str | Path | None
) -> tuple[Tokenizer, dict[str, Any]] | None:
    if given is not None:
        published_file = Path(given).is_file() and Path(given).suffix != ".safetensors" and detect(given) in TOKENIZERS
        return convert_tokenizer(given) if published_file else load_tokenizer(given)
    if family == "igpt":
        return convert_tokenizer(path)
    name = None if model is None else tokenizer_name(model)
    return None if name is None else load(name)[:2]


def _check(model: Published, card: dict[str, Any], path: Path) -> None:
    """Hold what was read against what the name promises."""
    found = {"family": card["source"]["family"], **card["architecture"]["arguments"]}
    wanted = {"family": model.family, **model.arguments}
    wrong = [f"{key} {found.get(key)} (published: {value})" for key, value in wanted.items() if found.get(key) != value]
    if wrong:
        raise InputError(f"{path} is not {model.name}: {', '.join(wrong)}", "give the file that belongs to the name")


def _tokenizers() -> Iterator[Published]:
    common = {"img_size": [256, 256], "ch": 128, "num_res_blocks": 2, "z_channels": 256, "embed_dim": 256}
    models = [(f"{child}_32x32_8192", _F8, _F8_PARAMETERS) for child in _CHILDREN]
    for name, sizes, parameters in [*models, (_F16_NAME, _F16, _F16_PARAMETERS)]:
        file = f"vqgan_pretrained_models/{name}.ckpt"
        yield Published(f"gpt_saycam/{name}", file, "vqgan", common | sizes, parameters, _REPOSITORY)


def _gpts() -> Iterator[Published]:
    reference = ("imagenet100", "imagenet10", "imagenet1")
    tasks = ("konkleiid", "konklenonvehicle")
    names = [f"{data}_gimel" for data in (*_CHILDREN, *reference)]
    names += [f"imagenet100_{size}" for size in ("alef", "bet", "dalet")]
    names += [f"{data}+{task}_gimel" for task in tasks for data in (*reference, *_CHILDREN)]
    names += [f"{task}_gimel" for task in tasks]
    for name in names:
        data, size = name.split("_")
        side, vocab_size = (16, 16384) if data.startswith("imagenet") else (32, 8192)
        arguments, parameters = _gpt(size, side, vocab_size)
        file = f"gpt_pretrained_models/{name}.pt"
        yield Published(f"gpt_saycam/{name}", file, "gpt", arguments, parameters, _REPOSITORY)


def _igpts() -> Iterator[Published]:
    for name in ("iGPT-S-ImageNet", "iGPT-S-SAYCam", "iGPT-S-SAYCam-0.1", "iGPT-S-SAYCam-0.01", "iGPT-mini-ImageNet"):
        mini = "mini" in name
        arguments, parameters = _gpt("igpt_mini" if mini else "igpt_s", 64, 512)
        if mini:
            del arguments["depth"]
        yield Published(f"igpt/{name}", f"{name}.pt", "igpt", arguments, parameters, None)


def _gpt(size: str, side: int, vocab_size: int) -> tuple[dict[str, Any], int]:
    """Arguments and parameters: 2 K D + (N - 1) D + L (12 D^2 + 13 D) + 2 D."""
    D, depth, heads = PRESETS[size].embed_dim, PRESETS[size].depth, PRESETS[size].num_heads
    arguments = {"vocab_size": vocab_size, "grid": [side, side], "embed_dim": D, "depth": depth, "num_heads": heads}
    parameters = 2 * vocab_size * D + (side**2 - 1) * D + depth * (12 * D**2 + 13 * D) + 2 * D
    return arguments | {"start_token": "none", "positions": "learned"}, parameters
