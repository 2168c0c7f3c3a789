"""Layouts of published checkpoints: read a file safely, say of which family it is, and sort its keys.

A published file is a pickled dictionary: a wrapper (`model`, `teacher`, `model_state_dict`, ...) around state dicts,
with optimizers and an `argparse.Namespace` beside them. The family follows from keys alone, never from the file's name;
a prefix goes only where all keys of that part carry it, and only at the start of a key. Every key of the wanted network
is then used, left out by name, or an error. `headcam.ssl.published.converters` makes encoders of what is used.

| family | files | wrapper | layout |
| --- | --- | --- | --- |
| `mae` | humanlike-vits, silicon-menagerie, MAE (He et al. 2022) | `model` | fused qkv, fixed sin-cos positions |
| `optimized-mae` | optimized-mae | `model` | the same with learned positions |
| `mae-finetuned` | humanlike-vits, fine-tuned | `model` | the same, and `head`: batch norm, linear |
| `stmae` | video-models, HVM-1, ST-MAE (Feichtenhofer et al. 2022) | `model`, `model_state` | tubes; separate q, k, v |
| `stmae-finetuned` | video-models, HVM-1, fine-tuned | `model` | the same, and `head`: linear |
| `dino` | silicon-menagerie, DINO (Caron et al. 2021) | `teacher`, `student` or none | ViT, learned positions; ResNet |
| `mugs` | silicon-menagerie, Mugs (Zhou et al. 2022) | `teacher`, `student` or none | DINO's ViT, `relation_blocks` |
| `temporal-classification` | Orhan et al. 2020, Orhan 2021 | `model_state_dict` | ResNeXt, and `fc` |
"""

import argparse
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.ssl.positions import sincos_2d

Network = Literal["teacher", "student"]
State = dict[str, Tensor]

_TABLE_TOLERANCE = 1e-4  # published sin-cos tables were computed in float32 or in float64
_CLASSIFIER = ("weight", "bias")
_NORMED_CLASSIFIER = ("0.running_mean", "0.running_var", "0.num_batches_tracked", "1.weight", "1.bias")


class Found(NamedTuple):
    """The wanted network in a file: the entry that holds it (None: the file itself), its keys, the encoder's prefix."""

    entry: str | None
    state: State
    prefix: str = ""


@dataclass(frozen=True)
class Part:
    """Keys that an encoder has no use for.

    Attributes:
        pattern: of its keys.
        keys: all its keys for a number of blocks, where the layout is known: it is there wholly or not at all.
    """

    pattern: str
    keys: Callable[[int], set[str]] | None = None


@dataclass(frozen=True)
class Family:
    """A documented layout.

    Attributes:
        objective: as cards spell it.
        find: gives the wanted network of a file whose keys are those of this family, else None.
        dropped: what is left out, by name.
        head: prefix and keys of the classifier.
    """

    objective: str
    find: Callable[[dict[str, Any], Network], Found | None]
    dropped: Mapping[str, Part] = field(default_factory=dict)
    head: tuple[str, tuple[str, ...]] = ("", ())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dictionary in a file of `torch.save`; of pickled objects, plain containers, tensors and Namespaces only.

    Raises:
        InputError: no file, damaged, no dictionary, or other objects (making them could run any code).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist", "give the file of a published checkpoint")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # The oldest files are no zip archives, and only those can be mapped into memory.
            file = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        # For what is no checkpoint torch.load raises pickle, zip, runtime and other errors.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(
                f"{path} holds a pickled {refused[1]}, which could run any code when it is made",
                "get the file from its authors; published ones hold tensors and argparse.Namespace only",
            ) from error
        raise InputError(
            f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}", "download the file again"
        ) from error
    if not isinstance(file, dict):
        raise InputError(
            f"{path} holds a {type(file).__name__}, no dictionary", "give the file of a published checkpoint"
        )
    return file


def identify(file: dict[str, Any], network: Network, path: Path) -> tuple[str, Found]:
    """The family of an opened file and the wanted network in it."""
    matches = {name: found for name, family in FAMILIES.items() if (found := family.find(file, network)) is not None}
    if len(matches) > 1:
        raise InputError(
            f"{path} has the keys of {' and of '.join(matches)}",
            "save the wanted model alone; none is guessed",
        )
    if not matches:
        keys = ", ".join(map(str, list(file)[:6])) + (", ..." if len(file) > 6 else "")
        raise InputError(
            f"{path} has the layout of no published family: its keys are {keys}",
            f"give a file of one of {', '.join(FAMILIES)}",
        )
    return next(iter(matches.items()))


# Which family: looked for in the wrapper's keys and in key names that only one family has.


def _tensors(value: Any) -> State | None:
    if not isinstance(value, dict) or not value:
        return None
    return value if all(isinstance(v, Tensor) and isinstance(k, str) for k, v in value.items()) else None


def _without(prefix: str, state: State) -> State:
    """`state` without `prefix` where all its keys start with it, else as it is."""
    if not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _has(state: State, pattern: str) -> bool:
    return any(re.match(pattern, key) for key in state)


def _find_mae(file: dict[str, Any], finetuned: bool, learned: bool | None) -> Found | None:
    state = _tensors(file.get("model"))
    if state is None or not _has(state, r"blocks\.\d+\.attn\.qkv\.") or _has(state, r"head\.") != finetuned:
        return None
    # Without a table it counts as the commoner family, whose missing key is then named.
    is_learned = "pos_embed" in state and kind_of_table(state["pos_embed"]) == "learned"
    return Found("model", state) if learned is None or learned == is_learned else None


def _find_stmae(file: dict[str, Any], finetuned: bool) -> Found | None:
    entry = "model" if "model" in file else "model_state"
    state = _tensors(file.get(entry))
    if state is None or not _has(state, r"blocks\.\d+\.attn\.[qkv]\."):
        return None
    return Found(entry, state) if _has(state, r"head\.(weight|bias)") == finetuned else None


def _find_dino(file: dict[str, Any], network: Network, mugs: bool) -> Found | None:
    """DINO and Mugs, whose files differ by the relation blocks and memories of the one and the loss of the other."""
    entry = network if "teacher" in file or "student" in file else None
    state = _tensors(file if entry is None else file.get(entry))
    if state is None:
        return None
    state = _without("module.", state)
    prefix = "backbone." if _has(state, r"backbone\.") else ""
    inside = re.escape(prefix)
    if not _has(state, inside + r"(blocks\.\d+\.attn\.qkv\.|layer\d\.\d+\.conv)"):
        return None
    signs_of_mugs = _has(state, inside + r"relation_blocks\.") or f"{network}_mem" in file
    signs_of_dino = "dino_loss" in file
    return Found(entry, state, prefix) if (signs_of_mugs if mugs else signs_of_dino or not signs_of_mugs) else None


def _find_temporal_classification(file: dict[str, Any]) -> Found | None:
    state = _tensors(file.get("model_state_dict"))
    state = None if state is None else _without("module.", state)
    return Found("model_state_dict", state) if state and _has(state, r"layer\d\.\d+\.conv") else None


def _block_keys(prefix: str, depth: int, attention: tuple[str, ...]) -> set[str]:
    layers = ("norm1", *(f"attn.{name}" for name in attention), "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    kinds = ("weight", "bias")
    return {f"{prefix}.{i}.{layer}.{kind}" for i in range(depth) for layer in layers for kind in kinds}


def _decoder_keys(depth: int, attention: tuple[str, ...], others: tuple[str, ...]) -> set[str]:
    linear = {f"decoder_{part}.{kind}" for part in ("embed", "norm", "pred") for kind in ("weight", "bias")}
    return linear | {"mask_token", *others} | _block_keys("decoder_blocks", depth, attention)


_IMAGE_DECODER = Part(
    r"decoder_|mask_token", lambda depth: _decoder_keys(depth, ("qkv",), ("decoder_pos_embed",))
)  # 104 keys where published: 8 blocks
_VIDEO_DECODER = Part(
    r"decoder_|mask_token",
    lambda depth: _decoder_keys(
        depth,
        ("q", "k", "v"),
        ("decoder_cls_token", *(f"decoder_pos_embed_{axis}" for axis in ("spatial", "temporal", "class"))),
    ),
)  # 75 keys where published: 4 blocks
# Weight norm has had two spellings in PyTorch; convolutional students have batch norms in the head.
_PROJECTION = Part(
    r"head\.(mlp\.\d+\.(weight|bias|running_mean|running_var|num_batches_tracked)"
    r"|last_layer\.(weight_[gv]|parametrizations\.weight\.original[01]))$"
)
_MUGS_HEADS = Part(r"(instance_head|local_group_head|group_head)\.(projector|predictor|last_layer)\.")
_RELATION_BLOCKS = Part(
    r"(backbone\.)?relation_blocks\.", lambda depth: _block_keys("relation_blocks", depth, ("qkv",))
)
# Facebook's classifier of clips averages tokens before the norm: no head on features as we define them.
_SLOWFAST_CLASSIFIER = Part(r"head\.projection\.(weight|bias)$")

FAMILIES = {
    "mae": Family("mae", lambda f, _: _find_mae(f, False, learned=False), {"decoder": _IMAGE_DECODER}),
    "optimized-mae": Family("mae", lambda f, _: _find_mae(f, False, learned=True), {"decoder": _IMAGE_DECODER}),
    "mae-finetuned": Family("mae", lambda f, _: _find_mae(f, True, learned=None), head=("head.", _NORMED_CLASSIFIER)),
    "stmae": Family(
        "stmae",
        lambda f, _: _find_stmae(f, False),
        {"decoder": _VIDEO_DECODER, "classifier": _SLOWFAST_CLASSIFIER},
    ),
    "stmae-finetuned": Family("stmae", lambda f, _: _find_stmae(f, True), head=("head.", _CLASSIFIER)),
    "dino": Family("dino", lambda f, network: _find_dino(f, network, mugs=False), {"head": _PROJECTION}),
    "mugs": Family(
        "mugs",
        lambda f, network: _find_dino(f, network, mugs=True),
        {"relation_blocks": _RELATION_BLOCKS, "heads": _MUGS_HEADS},
    ),
    "temporal-classification": Family(
        "temporal_classification", lambda f, _: _find_temporal_classification(f), head=("fc.", _CLASSIFIER)
    ),
}


def partition(found: Found, family: Family, path: Path) -> tuple[State, State, dict[str, int]]:
    """Keys of the encoder without prefix, of the classifier without prefix, and how many were dropped as what."""
    rest = dict(found.state)
    dropped, missing, unknown = {}, [], []
    for name, part in family.dropped.items():
        keys = {key for key in rest if re.match(part.pattern, key)}
        if keys and part.keys is not None:
            bare = {key.removeprefix(found.prefix): key for key in keys}
            depth = 1 + max((int(k) for key in bare for k in re.findall(r"blocks\.(\d+)\.", key)), default=-1)
            wanted = part.keys(depth)
            missing += sorted(wanted - set(bare))
            unknown += sorted(bare[key] for key in set(bare) - wanted)
        for key in keys:
            del rest[key]
        dropped[name] = len(keys)
    prefix, names = family.head
    head = {}
    for name in names:
        if prefix + name in rest:
            head[name] = rest.pop(prefix + name)
        else:
            missing.append(prefix + name)
    unknown += [key for key in rest if not key.startswith(found.prefix)]
    complain(path, missing, unknown)
    return {key.removeprefix(found.prefix): value for key, value in rest.items()}, head, dropped


def complain(path: Path, missing: list[str], unknown: list[str]) -> None:
    """Raise where keys are missing or unknown, and name them."""

    def some(keys: list[str]) -> str:
        return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")

    complaints = [f"lacks {some(missing)}"] * bool(missing) + [f"has the unknown {some(unknown)}"] * bool(unknown)
    if complaints:
        raise InputError(
            f"{path} {' and '.join(complaints)}",
            "get the file again; if its authors changed the layout, headcam does not know the new one",
        )


def kind_of_table(table: Tensor) -> Literal["sincos", "learned", "neither"]:
    """What (1, N + 1, D) positions are: MAE's table, values of their own, or the one with parts of the other."""
    side = math.isqrt(max(table.shape[1] - 1, 0)) if table.ndim == 3 else 0
    if side == 0 or side**2 != table.shape[1] - 1 or table.shape[2] % 4:
        return "learned"
    apart = (table.float() - sincos_2d(table.shape[2], (side, side))).abs() <= _TABLE_TOLERANCE
    if apart.all():
        return "sincos"
    return "neither" if apart[:, 0].all() or apart[:, 1:].all() else "learned"
