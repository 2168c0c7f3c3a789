"""Published checkpoints to encoders of ours: exact, strict, and never by guessing.

`convert` reads a file of one of the documented families (`headcam.ssl.published.checkpoint_layouts`), takes the sizes
of the model from the shapes of its weights, checks every key and every shape against the model of those sizes, and
returns the encoder with a card that names the file by its hash and says what was done with its keys. Nothing is
interpolated here, and nothing is left at random.
"""

import argparse
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import headcam
from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.ssl.published.checkpoint_layouts import (
    FAMILIES,
    Network,
    State,
    complain,
    identify,
    kind_of_table,
    partition,
    read_checkpoint,
)
from headcam.ssl.resnet import TRUNKS, ResNet
from headcam.ssl.vit import SIZES, VisionTransformer
from headcam.video.transforms import IMAGENET_MEAN, IMAGENET_STD

# A state dict does not tell the number of attention heads; the published widths do.
HEADS = {size.embed_dim: size.num_heads for size in SIZES.values()}
_STMAE_MEAN, _STMAE_STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)


class Converted(NamedTuple):
    """An encoder in eval mode, its card, and the classifier that the file held, if any: (B, D) -> (B, classes)."""

    encoder: nn.Module
    card: dict[str, Any]
    head: nn.Module | None

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images or clips -> (B, classes), as the published classifier gives them."""
        tokens = self.encoder.forward_features(images)
        return self.head(tokens[:, 0] if self.encoder.num_prefix_tokens else tokens.mean(dim=1))


def convert(
    path: str | Path,
    family: str | None = None,
    num_heads: int | None = None,
    network: Network = "teacher",
    name: str | None = None,
) -> Converted:
    """Read a published checkpoint.

    Args:
        path: the file.
        family: what it has to be (a key of `FAMILIES`); None: any of them.
        num_heads: attention heads of a Vision Transformer; None: those of published models of its width (`HEADS`).
        network: which of the two networks of a DINO or Mugs file.
        name: for the card; None: that of the file.
    Raises:
        InputError: no file, a damaged one, one with pickled objects other than `argparse.Namespace`; no family or more
            than one, or another than `family`; keys missing or unknown, shapes or positions that do not fit.
    """
    path = Path(path)
    file = read_checkpoint(path)
    kind, found = identify(file, network, path)
    if family is not None and kind != family:
        raise InputError(f"{path} holds {kind} where {family} is wanted", "give the file that belongs to the name")
    state, head, dropped = partition(found, FAMILIES[kind], path)
    keys_used = len(state) + len(head)
    if kind.startswith("stmae"):
        state = _fuse_qkv(state, path)
    if "conv1.weight" in state:
        encoder = _build(ResNet, _measure_resnet(state, path), state, path)
    else:
        encoder = _build(VisionTransformer, _measure_vit(state, kind, num_heads, path), state, path)
    classifier = _build_head(head, encoder.embed_dim, path) if head else None
    source = {
        "file": path.name,
        "hash": sha256_file(path),
        "family": kind,
        "entry": found.entry,
        "entries_not_read": [str(k) for k in file if k not in (found.entry, "args")] if found.entry else [],
        "keys_used": keys_used,
        "keys_dropped": dropped,
        "args": _plain(file.get("args")),
    }
    video = getattr(encoder, "num_frames", 1) > 1
    card = {
        "contract": "card",
        "version": 1,
        "headcam": headcam.__version__,
        "name": name or path.stem,
        "objective": FAMILIES[kind].objective,
        "architecture": {"class": type(encoder).__name__, "arguments": encoder.arguments},
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "img_size": list(encoder.img_size),
        "mean": list(_STMAE_MEAN if video else IMAGENET_MEAN),
        "std": list(_STMAE_STD if video else IMAGENET_STD),
        "weights_hash": source["hash"],
        "source": source,
    }
    if classifier is not None:
        card["classes"] = len(head[FAMILIES[kind].head[1][-1]])  # of the bias
    return Converted(encoder, card, classifier)


def _depth(state: State) -> int:
    return 1 + max((int(found[1]) for key in state if (found := re.match(r"blocks\.(\d+)\.", key))), default=-1)


def _fuse_qkv(state: State, path: Path) -> State:
    """Separate maps for queries, keys and values to the joint one: rows q, k, v."""
    state = dict(state)
    missing = []
    for block in range(_depth(state)):
        for kind in ("weight", "bias"):
            names = [f"blocks.{block}.attn.{name}.{kind}" for name in "qkv"]
            missing += [name for name in names if name not in state]
            if not missing:
                parts = [state.pop(name) for name in names]
                square = (parts[0].shape[-1],) * (2 if kind == "weight" else 1)
                for name, part in zip(names, parts):
                    if part.shape != square:
                        raise InputError(f"{path}: {name} is {tuple(part.shape)}, not {square}", "get the file again")
                state[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    complain(path, missing, [])
    return state


def _require(state: State, axes: dict[str, int], path: Path) -> None:
    """Raise where a key that tells sizes is missing or has another number of axes."""
    complain(path, [key for key in axes if key not in state], [])
    for key, count in axes.items():
        if state[key].ndim != count:
            raise InputError(f"{path}: {key} is {tuple(state[key].shape)}, not of {count} axes", "get the file again")


def _measure_vit(state: State, kind: str, num_heads: int | None, path: Path) -> dict[str, Any]:
    """Arguments of the Vision Transformer whose weights these are, from their shapes."""
    video = kind.startswith("stmae")
    tables = ["pos_embed_spatial", "pos_embed_temporal"] if video else ["pos_embed"]
    _require(state, {"cls_token": 3, "patch_embed.proj.weight": 5 if video else 4, **dict.fromkeys(tables, 3)}, path)
    width, patch_size = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    tubelet_size = state["patch_embed.proj.weight"].shape[2] if video else 1
    places = state[tables[0]].shape[1] - (not video)
    side = math.isqrt(places)
    if side**2 != places or side == 0:
        raise InputError(f"{path} has positions of {places} places, no square", "convert models of square pictures")
    if num_heads is None and width not in HEADS:
        raise InputError(
            f"{path} has width {width}, which no published model has, and state dicts do not tell attention heads",
            "give num_heads",
        )
    positions = "separable" if video else kind_of_table(state["pos_embed"])
    if kind == "mae-finetuned" and positions == "neither":
        positions = "learned"  # fine-tuning trained the table too
    wanted = {"mae": "sincos", "optimized-mae": "learned", "dino": "learned", "mugs": "learned"}.get(kind, positions)
    if positions != wanted:
        raise InputError(
            f"{path} is {kind}, whose positions are {wanted}, but its pos_embed is "
            + ("in part" if positions == "neither" else "exactly" if positions == "sincos" else "not")
            + " the fixed sin-cos table",
            "get the file again",
        )
    return {
        "img_size": side * patch_size,
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": _depth(state),
        "num_heads": num_heads or HEADS[width],
        "num_frames": state[tables[1]].shape[1] * tubelet_size if video else 1,
        "tubelet_size": tubelet_size,
        "positions": positions,
    }


def _measure_resnet(state: State, path: Path) -> dict[str, Any]:
    """Arguments of the trunk whose weights these are, from the groups of its convolutions and its depth."""
    _require(state, {"layer1.0.conv2.weight": 4}, path)
    channels, width = state["layer1.0.conv2.weight"].shape[:2]
    deepest = 1 + max((int(m[1]) for key in state if (m := re.match(r"layer3\.(\d+)\.", key))), default=-1)
    for name, (blocks, groups, width_per_group) in TRUNKS.items():
        if (deepest, channels, width) == (blocks[2], groups * width_per_group, width_per_group):
            return {"name": name}
    raise InputError(
        f"{path} holds a ResNet with {deepest} blocks in layer3 and {channels} channels in groups of {width}",
        f"give one of {', '.join(TRUNKS)}",
    )


def _build(architecture: type[nn.Module], arguments: dict[str, Any], state: State, path: Path) -> nn.Module:
    """The encoder with exactly these weights, as float32, in memory of its own."""
    with torch.device("meta"):
        encoder = architecture(**arguments)
    _load(encoder, state, path)
    return encoder.eval()


def _build_head(state: State, embed_dim: int, path: Path) -> nn.Module:
    """A linear classifier, or one behind a batch norm without affine parameters."""
    normed = "1.weight" in state
    weight = state["1.weight" if normed else "weight"]
    with torch.device("meta"):
        linear = nn.Linear(embed_dim, len(weight))
        head = nn.Sequential(nn.BatchNorm1d(embed_dim, eps=1e-6, affine=False), linear) if normed else linear
    _load(head, state, path)
    return head.eval()


def _load(module: nn.Module, state: State, path: Path) -> None:
    wanted = module.state_dict()
    complain(path, [key for key in wanted if key not in state], [key for key in state if key not in wanted])
    for key, value in wanted.items():
        if state[key].shape != value.shape or state[key].is_floating_point() != value.is_floating_point():
            raise InputError(
                f"{path}: {key} is {tuple(state[key].shape)} of {state[key].dtype}, "
                f"where the other keys ask for {tuple(value.shape)} of {value.dtype}",
                "get the file again",
            )
    copies = {key: state[key].detach().to(value.dtype, copy=True).contiguous() for key, value in wanted.items()}
    module.load_state_dict(copies, assign=True)


def _plain(value: Any) -> Any:
    """Pickled arguments as JSON can hold them; what it cannot hold, as text."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
