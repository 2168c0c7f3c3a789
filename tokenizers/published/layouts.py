"""Layouts of the published tokenizers and GPTs: read a file safely, say of which family it is, and hold its keys.

As with the encoders (`headcam.ssl.published.checkpoint_layouts`), the family follows from keys alone, never from the
file's name; every key is then used, left out by name, or an error, and every shape follows from a few of them.

| family | files | wrapper | what becomes of it |
| --- | --- | --- | --- |
| `vqgan` | taming-transformers (Esser et al. 2021), gpt_saycam | `state_dict` | `ConvTokenizer` |
| `gumbel-vqgan` | taming-transformers, OpenImages f8 | `state_dict` | `ConvTokenizer`, quantizer `gumbel` |
| `gpt` | gpt_saycam (VQGAN-GPT) | `model_state_dict` | `GPT` without start token |
| `igpt` | iGPT-S, iGPT-mini (Orhan 2022) | `model_state_dict`, `clusters` | the same, and a `PaletteTokenizer` |
| `tats-gpt` | vqgan-gpt-video (TATS, Ge et al. 2022) | `state_dict`, prefix `transformer.` | `GPT` with start token |
| `tats-vqgan` | vqgan-gpt-video | `state_dict` | refused: its encoder is not causal |

Two kinds of objects besides tensors are in these files: Lightning's older versions name classes of callbacks, and iGPT
keeps its settings as an object. Neither package is imported for them: inert classes of ours stand in.

Shapes: D width, K codes, P positions of a GPT.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.ssl.published.checkpoint_layouts import complain, read_checkpoint

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


class Settings:
    """Stands in for a pickled object that only holds settings: its attributes, none of its code."""


class Callback:
    """Stands in for the class of a callback, by which older versions of Lightning name a state that is not read."""


_INERT = [
    (Settings, "mingpt.model.GPTConfig"),
    (Callback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]


class Opened(NamedTuple):
    """A file of a known family: the whole of it, and the state dict in question."""

    family: str
    state: State
    file: dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A documented layout.

    Attributes:
        entry: of the file, with the state dict.
        sign: a pattern that keys of this family match and those of the families after it do not.
        beside: entries that the file has to have besides.
        dropped: what is left out, by name: the pattern of its keys.
    """

    entry: str
    sign: str
    beside: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)


_LOSS = {"discriminator": r"loss\.discriminator\.main\.", "perceptual_loss": r"loss\.perceptual_loss\."}
_ATTENTION = r"blocks\.\d+\.attn\.(key|query|value)\."
FAMILIES = {  # the first that fits is it
    "tats-gpt": Family("state_dict", rf"transformer\.{_ATTENTION}", dropped={"tokenizer": r"first_stage_model\."}),
    "tats-vqgan": Family("state_dict", r"encoder\.conv_blocks\."),
    "gumbel-vqgan": Family("state_dict", r"quantize\.(proj|embed)\.", dropped=_LOSS),
    "vqgan": Family("state_dict", r"encoder\.down\.\d+\.block\.", dropped=_LOSS),
    "igpt": Family("model_state_dict", _ATTENTION, beside=("clusters",)),
    "gpt": Family("model_state_dict", _ATTENTION),
}
TOKENIZERS = ("vqgan", "gumbel-vqgan", "igpt")  # what a tokenizer can be had from
GPTS = ("gpt", "igpt", "tats-gpt")


def detect(path: str | Path) -> str | None:
    """The family of a published tokenizer or GPT (a key of `FAMILIES`); None: the file is none of them.

    Raises:
        InputError: no file, damaged, no dictionary, or with pickled objects that are not known to be harmless.
    """
    return _identify(_read(path))


def open_as(path: str | Path, wanted: tuple[str, ...]) -> Opened:
    """A file that has to be of one of the `wanted` families; errors as of `detect`, and where it is of another."""
    file = _read(path)
    family = _identify(file)
    if family == "tats-vqgan":
        raise InputError(
            f"{path} is a video tokenizer of TATS, whose encoder sees later frames in every token: headcam has none",
            "train a causal one: headcam fit with a recipe of configs/tokenizers",
        )
    if family not in wanted:
        raise InputError(
            f"{path} is {family or 'of no published family'} where one of {', '.join(wanted)} is wanted",
            "give another file; headcam zoo --convert takes published models of any kind",
        )
    return Opened(family, dict(file[FAMILIES[family].entry]), file)


def _read(path: str | Path) -> dict[str, Any]:
    with torch.serialization.safe_globals(_INERT):
        return read_checkpoint(path)


def _identify(file: dict[str, Any]) -> str | None:
    for name, family in FAMILIES.items():
        state = file.get(family.entry)
        if not isinstance(state, dict) or not all(entry in file for entry in family.beside):
            continue
        if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
            if any(re.match(family.sign, key) for key in state):
                return name
    return None


def drop(opened: Opened) -> tuple[State, dict[str, int]]:
    """The state dict without what its family leaves out, and how many keys that were, by name."""
    rest, dropped = dict(opened.state), {}
    for name, pattern in FAMILIES[opened.family].dropped.items():
        keys = [key for key in rest if re.match(pattern, key)]
        for key in keys:
            del rest[key]
        dropped[name] = len(keys)
    return rest, dropped


def require(state: State, axes: Mapping[str, int], path: Path) -> None:
    """Raise where a key that tells sizes is missing or has another number of axes."""
    complain(path, [key for key in axes if key not in state], [])
    for key, count in axes.items():
        if state[key].ndim != count:
            raise InputError(f"{path}: {key} is {tuple(state[key].shape)}, not of {count} axes", "get the file again")


def hold(state: State, wanted: Shapes, path: Path) -> None:
    """Raise where a state dict has not exactly the keys and shapes that are wanted."""
    complain(path, [key for key in wanted if key not in state], [key for key in state if key not in wanted])
    for key, shape in wanted.items():
        if tuple(state[key].shape) != shape or not state[key].is_floating_point():
            raise InputError(
                f"{path}: {key} is {tuple(state[key].shape)} of {state[key].dtype}, "
                f"where the other keys ask for {shape} of floating point",
                "get the file again",
            )


def count(state: State, pattern: str) -> int:
    """How many things the keys number: one more than the highest number that `pattern` captures, 0 for none."""
    return 1 + max((int(found[1]) for key in state if (found := re.match(pattern, key))), default=-1)


def gpt_shapes(depth: int, width: int, vocab_size: int, positions: int, prefix: str = "") -> Shapes:
    """Every key of a published GPT (minGPT's names) and its shape."""
    norm = {"weight": (width,), "bias": (width,)}
    shapes: Shapes = {
        "tok_emb.weight": (vocab_size, width),
        "pos_emb": (1, positions, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
        "head.weight": (vocab_size, width),
    }
    block = {f"{name}.{kind}": shape for name in ("ln1", "ln2") for kind, shape in norm.items()}
    for name in ("key", "query", "value", "proj"):
        block |= {f"attn.{name}.weight": (width, width), f"attn.{name}.bias": (width,)}
    block |= {"mlp.0.weight": (4 * width, width), "mlp.0.bias": (4 * width,)}
    block |= {"mlp.2.weight": (width, 4 * width), "mlp.2.bias": (width,), "attn.mask": (1, 1, positions, positions)}
    for k in range(depth):
        shapes |= {f"blocks.{k}.{name}": shape for name, shape in block.items()}
    return {prefix + key: shape for key, shape in shapes.items()}
