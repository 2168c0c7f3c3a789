"""Weights that outlive the code: `weights.safetensors` of an encoder in timm's names, and its `card.json`.

The card holds all that is needed to rebuild the encoder with no other file (contract `card` of the design): the
architecture and its arguments, image size and normalisation, hours lived and samples seen, hashes of weights, config
and manifest.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from headcam.errors import InputError
from headcam.files import atomic_file, sha256_file, write_json
from headcam.ssl.resnet import ResNet
from headcam.ssl.vit import VisionTransformer

VERSION = 1
ARCHITECTURES = {"VisionTransformer": VisionTransformer, "ResNet": ResNet}  # what cards may name
_PREFIX = "network.encoder."  # of the encoder in a Lightning checkpoint of ours


def save_weights(folder: str | Path, encoder: nn.Module, card: dict[str, Any]) -> Path:
    """Write `weights.safetensors` and `card.json` (with the hash of the weights) into `folder`, each whole or not.

    Returns:
        The path of the weights. They load strictly into `timm.models.VisionTransformer(..., num_classes=0)`.
    """
    folder = Path(folder)
    path = folder / "weights.safetensors"
    state = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    with atomic_file(path) as file:
        file.write(save(state, metadata={"format": "pt"}))
    write_json(folder / "card.json", {**card, "weights_hash": sha256_file(path)})
    return path


def state_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes, types and values of all weights and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def build_encoder(
    card: dict[str, Any], seed: int, architectures: Mapping[str, type[nn.Module]] = ARCHITECTURES
) -> nn.Module:
    """The architecture of `card` at random initialisation, in eval mode; the weights follow from `seed` alone."""
    architecture = card["architecture"]
    if architecture["class"] not in architectures:
        raise InputError(
            f"{card.get('name', 'the card')} is a {architecture['class']} (objective {card.get('objective')}), where "
            f"one of {', '.join(architectures)} is wanted",
            "give a run of headcam fit whose objective makes one",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        arguments = architecture["arguments"]
        if "img_size" in arguments:
            arguments = {**arguments, "img_size": tuple(arguments["img_size"])}
        encoder = architectures[architecture["class"]](**arguments)
    return encoder.eval()


def load_encoder(
    source: str | Path, architectures: Mapping[str, type[nn.Module]] = ARCHITECTURES
) -> tuple[nn.Module, dict[str, Any]]:
    """What a run trained for use elsewhere (an encoder, a tokenizer, a GPT) in eval mode, and its card.

    Args:
        source: a run folder, a `weights.safetensors` with its `card.json` beside it, or a checkpoint (`.ckpt`).
        architectures: the classes that its card may name.
    Raises:
        InputError: nothing there, not a checkpoint of headcam, another class, or weights that do not fit the card.
    """
    source = Path(source)
    if source.is_file() and source.suffix not in (".ckpt", ".safetensors"):
        raise InputError(f"{source} is no checkpoint", "give a run folder, a weights.safetensors or a .ckpt file")
    if source.is_dir():
        source = source / "weights.safetensors"
    if not source.is_file():
        raise InputError(f"{source} does not exist", "give a run folder, a weights.safetensors or a .ckpt file")
    state, card = _read_checkpoint(source) if source.suffix == ".ckpt" else _read_safetensors(source)
    encoder = build_encoder(card, seed=0, architectures=architectures)
    wanted, found = encoder.state_dict(), state
    wrong = [k for k in wanted if k not in found or found[k].shape != wanted[k].shape] + sorted(
        set(found) - set(wanted)
    )
    if wrong:
        key = wrong[0]
        shapes = [str(tuple(d[key].shape)) if key in d else "absent" for d in (found, wanted)]
        raise InputError(
            f"the weights of {source} are not those of its card: {len(wrong)} keys differ, first {key}: "
            f"{shapes[0]} in the file, {shapes[1]} in the model",
            "use the card.json that was written with these weights",
        )
    encoder.load_state_dict(found)
    return encoder, card


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    card_path = path.with_name("card.json")
    if not card_path.is_file():
        raise InputError(f"{card_path} is missing", "keep card.json beside weights.safetensors")
    try:
        card = _checked(json.loads(card_path.read_text("utf-8")), card_path)
        state = load_file(path)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise InputError(f"{path} or its card.json is damaged: {error}", "copy both files again") from error
    if card["weights_hash"] != sha256_file(path):
        # A kill between writing the two, or files of two runs side by side.
        raise InputError(f"{card_path} belongs to other weights than {path}", "use the run's checkpoints/last.ckpt")
    return state, card


def open_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a Lightning checkpoint of ours, memory-mapped: tensors are read when they are used.

    Raises:
        InputError: damaged, or not written by headcam fit.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # For files that are no checkpoint torch.load raises pickle, zip, runtime and other errors.
        raise InputError(
            f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}", "give a .ckpt file of headcam fit"
        ) from error
    if not isinstance(checkpoint, dict) or "headcam_card" not in checkpoint:
        raise InputError(f"{path} was not written by headcam fit", "give a checkpoint of a run's checkpoints/ folder")
    _checked(checkpoint["headcam_card"], Path(path))
    return checkpoint


def _read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    checkpoint = open_checkpoint(path)
    state = {k.removeprefix(_PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(_PREFIX)}
    return state, {**checkpoint["headcam_card"], "weights_hash": sha256_file(path)}


def _checked(card: Any, path: Path) -> dict[str, Any]:
    if not isinstance(card, dict):
        raise InputError(f"{path} holds no card", "use the card.json that headcam fit wrote")
    if card.get("contract") != "card" or card.get("version") != VERSION:
        raise InputError(
            f"{path} holds a {card.get('contract')} of version {card.get('version')}, not a card of version {VERSION}",
            "use the version of headcam that wrote it",
        )
    return card
