"""Where training starts from: `headcam fit --init zoo:NAME | RUN | FILE` instead of a random initialisation.

The encoder of another model is copied into the network that is about to be trained; what only the objective has (a
decoder, a head) stays at its random initialisation. Three differences between the two encoders can be bridged, by
`headcam.ssl.inflation` and nothing else: the resolution, images that become clips, and clips that become images. Any
other difference is an error that names it: no weight is ever left out, cut or guessed. What was done goes into the card
of the new run, under `init`.

An objective whose `encoder` is none of these (a tokenizer, a GPT) opens its sources itself, `Objective.open_initial`;
then all of the architecture has to be the same.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from headcam.errors import InputError
from headcam.ssl import zoo
from headcam.ssl.inflation import deflate, inflate, resize
from headcam.ssl.published.converters import convert
from headcam.ssl.resnet import ResNet
from headcam.ssl.vit import VisionTransformer
from headcam.ssl.weights import load_encoder

Opened = tuple[nn.Module, dict[str, Any]]

_ZOO = "zoo:"
_OF_TRAINING = ("quantizer_options",)  # weights of losses and the like; what of them is in the weights shows there
_SAME = ("patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio")  # what no bridge changes


def initialize(network: nn.Module, source: str, open_source: Callable[[str], Opened] | None = None) -> dict[str, Any]:
    """Copy the weights of another encoder into `network.encoder` and, where there is one, `network.student_encoder`.

    Args:
        network: that of an objective, at random initialisation.
        source: `zoo:NAME` (`headcam.ssl.zoo`), a run folder, a checkpoint or weights of headcam fit, or the file of a
            published checkpoint.
        open_source: how to make weights and card of `source`; None for those of encoders.
    Returns:
        the record for the card: `source`, `name` and `hash` of the weights, `steps` that were taken, `into` which
        parts, and `mean` and `std` of the pixels that the source was trained on.
    Raises:
        InputError: no such source, or an encoder that differs in more than resolution and frames.
    """
    encoder, card = (open_source or open_encoder)(source)
    fitted, steps = _fit(encoder, network.encoder, source)
    into = [part for part in ("encoder", "student_encoder") if hasattr(network, part)]
    for part in into:
        target = getattr(network, part)
        target.load_state_dict(fitted.state_dict())
        if getattr(target, "positions", None) == "sincos":
            # In whose units the copied table counts: other grids of this model are evaluated in the same.
            target.position_field = fitted.position_field
            if fitted.position_field != target.grid:
                target.arguments["position_field"] = list(fitted.position_field)
    return {
        "source": source,
        "name": card["name"],
        "hash": card["weights_hash"],
        "steps": steps,
        "into": into,
        "mean": card.get("mean"),
        "std": card.get("std"),
    }


def open_encoder(source: str) -> Opened:
    """The encoder of a source as `initialize` takes it, and its card."""
    if source.startswith(_ZOO):
        return zoo.load(source.removeprefix(_ZOO))
    path = Path(source).expanduser()
    if path.is_dir() or path.suffix in (".ckpt", ".safetensors"):
        return load_encoder(path)
    if not path.is_file():
        known = f"did you mean {_ZOO}{source}" if source in zoo.published() else f"a published model is {_ZOO}NAME"
        raise InputError(f"{source} to start from does not exist", f"give a run folder or a file; {known}")
    return convert(path)[:2]


def _fit(encoder: nn.Module, target: nn.Module, source: str) -> tuple[nn.Module, list[str]]:
    """`encoder` with the architecture of `target`, and what had to be done to it."""

    def refuse(what: str, theirs: Any, ours: Any) -> InputError:
        return InputError(
            f"{source} does not fit the model to be trained: its {what} is {theirs}, here it is {ours}",
            "start from another model, or change the model's settings",
        )

    if type(encoder) is not type(target):
        raise refuse("architecture", type(encoder).__name__, type(target).__name__)
    if isinstance(target, ResNet):
        if encoder.arguments["name"] != target.arguments["name"]:
            raise refuse("trunk", encoder.arguments["name"], target.arguments["name"])
        return encoder, ["copied"]
    if not isinstance(target, VisionTransformer):
        for key, ours in target.arguments.items():
            if key not in _OF_TRAINING and encoder.arguments.get(key) != ours:
                raise refuse(key, encoder.arguments.get(key), ours)
        shapes = [{name: tuple(x.shape) for name, x in one.state_dict().items()} for one in (encoder, target)]
        for name in sorted(shapes[0] | shapes[1]):
            if shapes[0].get(name) != shapes[1].get(name):
                raise refuse(name, *(one.get(name, "absent") for one in shapes))
        return encoder, ["copied"]
    for key in _SAME:
        if encoder.arguments[key] != target.arguments[key]:
            raise refuse(key, encoder.arguments[key], target.arguments[key])

    steps = []
    if encoder.img_size != target.img_size:
        sizes = [f"{height} x {width}" for height, width in (encoder.img_size, target.img_size)]
        encoder = resize(encoder, target.img_size)
        steps.append(f"positions resampled from {sizes[0]} to {sizes[1]} pixels")
    if encoder.num_frames == 1 < target.num_frames:
        encoder = inflate(encoder, target.num_frames, target.tubelet_size)
        steps.append(f"inflated to {target.num_frames} frames in tubes of {target.tubelet_size}")
    elif target.num_frames == 1 < encoder.num_frames:
        steps.append(f"deflated from {encoder.num_frames} frames, mean of the time positions")
        encoder = deflate(encoder)
    for key in ("num_frames", "tubelet_size"):
        if encoder.arguments[key] != target.arguments[key]:
            raise refuse(key, encoder.arguments[key], target.arguments[key])
    if encoder.positions != target.positions:
        if target.positions == "sincos":  # frozen: they could not become what they are said to be
            raise refuse("kind of positions", encoder.positions, "sincos")
        steps.append("sin-cos positions taken as the start of learned ones")
    return encoder, [*steps, "copied"]
