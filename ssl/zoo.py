"""The published models by name: where each is, what it must be, and how to get it as an encoder of ours.

    from headcam.ssl.zoo import load
    encoder, card = load("humanlike-vits/vith14@476_1.0_1")

A file comes from the path that is given, from the folder in the environment variable HEADCAM_ZOO, or through
huggingface_hub, which keeps it in its cache. Whatever its way, it is converted strictly
(`headcam.ssl.published.converters`) and held against what the name promises: family, every size of the architecture,
number of parameters. There is no fallback: what cannot be had or does not fit is an error.

| group | what | paper |
| --- | --- | --- |
| `humanlike-vits` | image MAE of 0.5 to 5000 hours, 6 x 13 models; `finetuned_*`: on 2 % of ImageNet | Orhan 2023 |
| `silicon-menagerie` | DINO, Mugs and MAE on SAYCam and on reference data | Orhan and Lake 2024 |
| `video-models` | spatiotemporal MAE on SAYCam and Kinetics, `*-shot`: fine-tuned | Orhan et al. 2024 (CogSci) |
| `hvm-1` | spatiotemporal MAE on 4971 hours of human-like video, `*-shot`, `*-2pt`: fine-tuned | Orhan 2024 |
| `baby-vision` | temporal classification on SAYCam; no repository, files only | Orhan et al. 2020 |
| `human-ssl` | temporal classification on 1301 hours; no repository, files only; these names are ours | Orhan 2021 |
"""

import difflib
import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from headcam.errors import InputError
from headcam.ssl.published.converters import Converted, Network, convert
from headcam.ssl.vit import SIZES

FOLDER = "HEADCAM_ZOO"  # environment variable: folder of files that were downloaded by hand

_SAYCAM_HOURS = {"SAY": 502.0, "S": 221.0, "A": 143.0, "Y": 137.0}  # temporal classification: classes x 288 s
_EPISODES = {"SAY": 6269, "S": 2765, "A": 1786, "Y": 1718}
# Parameters of trunks (torchvision's count minus 1000 classes) and of ViT-H/14 for 16 frames, by pixels.
_RESNET_PARAMETERS = {"resnext50_32x4d": 22_979_904, "resnext101_32x8d": 86_742_336}
_STMAE_PARAMETERS = {224: 631_527_680, 448: 632_510_720}
_SHOTS = {"ssv2-10shot": 174, "ssv2-50shot": 174, "kinetics-10shot": 700, "kinetics-50shot": 700}


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        name: `group/model`.
        filename: inside its repository.
        family: key of `headcam.ssl.published.checkpoint_layouts.FAMILIES`.
        arguments: those of the encoder that are known beforehand.
        parameters: of the encoder.
        repo_id: on the Hugging Face hub; None: the file has to be brought.
        classes: outputs of the classifier in the file; None: it has none.
        hours: of video it was trained on, as published; None: not video, or not stated.
    """

    name: str
    filename: str
    family: str
    arguments: dict[str, Any] = field(hash=False)
    parameters: int
    repo_id: str | None
    classes: int | None = None
    hours: float | None = None

    @property
    def place(self) -> Path:
        """Where its file is looked for, inside the folder that HEADCAM_ZOO names."""
        return Path(self.repo_id or self.name.split("/")[0], self.filename)


def load(name: str | Path, file: str | Path | None = None, **how: Any) -> tuple[nn.Module, dict[str, Any]]:
    """An encoder in eval mode, and its card; arguments and errors are those of `load_with_head`."""
    return load_with_head(name, file, **how)[:2]


def load_with_head(
    name: str | Path, file: str | Path | None = None, num_heads: int | None = None, network: Network = "teacher"
) -> Converted:
    """A published model with the classifier that its file holds, if any.

    Args:
        name: a name of `published()`, its part after the slash where that is unique, or the path of any file in one of
            the documented layouts.
        file: the file of a named model where it is already at hand.
        num_heads, network: see `headcam.ssl.published.converters.convert`.
    Raises:
        InputError: no such name (the nearest are listed), no network to get the file, a file that is not what the name
            promises, and whatever `convert` refuses.
    """
    if str(name) not in _aliases() and Path(name).is_file():
        return convert(name, num_heads=num_heads, network=network)
    model = find(str(name))
    path = Path(file) if file is not None else fetch(model)
    converted = convert(path, model.family, num_heads, network, name=model.name)
    _check(model, converted, path)
    if model.hours is not None:
        converted.card["hours"] = model.hours
    return converted


def find(name: str) -> Published:
    """The model of that name; `InputError` with the nearest names where there is none, or more than one."""
    names = _aliases().get(name, ())
    if len(names) == 1:
        return published()[names[0]]
    if names:
        raise InputError(f"{name!r} is the name of {len(names)} published models", f"say {' or '.join(names)}")
    near = difflib.get_close_matches(name, _aliases(), n=4, cutoff=0.5)
    raise InputError(
        f"{name!r} is neither a published model nor a file",
        (f"did you mean {', '.join(near)}; " if near else "") + "headcam zoo lists all names",
    )


def fetch(model: Published) -> Path:
    """The model's file: from the folder HEADCAM_ZOO, else through huggingface_hub's cache or a download."""
    folder = os.environ.get(FOLDER)
    if folder and Path(folder, model.place).is_file():
        return Path(folder, model.place)
    by_hand = f"give the file itself, or put it at {Path(folder or f'${FOLDER}', model.place)}"
    if not folder:
        by_hand += f" (any folder, its path in the environment variable {FOLDER})"
    if model.repo_id is None:
        raise InputError(
            f"{model.name} is in no public repository", f"ask its authors for {model.filename}, then {by_hand}"
        )

    from huggingface_hub import hf_hub_download

    # Without a network it logs each of its attempts, in many lines; the one that counts is ours.
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(repo_id=model.repo_id, filename=model.filename))
    except Exception as error:
        # No network, a proxy, a moved file, a full disk: each raises errors of other packages.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{model.name} could not be downloaded: {reason[0].rstrip('.')}",
            f"get {model.filename} of the Hugging Face repository {model.repo_id} on another machine, then {by_hand}",
        ) from error
    finally:
        log.setLevel(level)


@functools.cache
def published() -> dict[str, Published]:
    """All published models by name."""
    return {model.name: model for make in (_humanlike, _menagerie, _video, _files) for model in make()}


@functools.cache
def _aliases() -> dict[str, tuple[str, ...]]:
    """Full names and their last parts -> the full names that they mean."""
    aliases: dict[str, tuple[str, ...]] = {}
    for name in published():
        aliases[name] = (name,)
        last = name.split("/", 1)[1]
        aliases[last] = (*aliases.get(last, ()), name)
    return aliases


def _check(model: Published, converted: Converted, path: Path) -> None:
    """Hold what was read against what the name promises."""
    card = converted.card
    found = {
        **card["architecture"]["arguments"],
        "parameters": card["parameters"],
        "classes": card.get("classes"),
    }
    wanted = {**model.arguments, "parameters": model.parameters, "classes": model.classes}
    wrong = [f"{key} {found.get(key)} (published: {value})" for key, value in wanted.items() if found.get(key) != value]
    if wrong:
        raise InputError(f"{path} is not {model.name}: {', '.join(wrong)}", "give the file that belongs to the name")


def _image_vit(size: str, patch_size: int, img_size: int, positions: str | None) -> tuple[dict[str, Any], int]:
    """Arguments and parameters: 3 p^2 d + 2 d + (N + 1) d + L (12 d^2 + 13 d) + 2 d."""
    d, depth, places = SIZES[size].embed_dim, SIZES[size].depth, (img_size // patch_size) ** 2
    arguments = _sizes(size, patch_size, img_size) | ({"positions": positions} if positions else {})
    parameters = 3 * patch_size**2 * d + 2 * d + (places + 1) * d + depth * (12 * d**2 + 13 * d) + 2 * d
    return arguments | {"num_frames": 1}, parameters


def _sizes(size: str, patch_size: int, img_size: int) -> dict[str, Any]:
    named = SIZES[size]
    return {
        "img_size": [img_size, img_size],
        "patch_size": patch_size,
        "embed_dim": named.embed_dim,
        "depth": named.depth,
        "num_heads": named.num_heads,
    }


def _humanlike() -> Iterator[Published]:
    runs = [("1.0", 1)] + [(fraction, z) for fraction in ("0.1", "0.01", "0.001", "0.0001") for z in (1, 2, 3)]
    for arch in ("vits14", "vitb14", "vitl14", "vith14", "vith14@448", "vith14@476"):
        img_size = int(arch.partition("@")[2] or 224)
        for fraction, z in runs:
            model = f"{arch}_{fraction}_{z}"
            hours = 5000 * float(fraction)
            for prefix, family, positions, classes in (
                ("", "mae", "sincos", None),
                ("finetuned_", "mae-finetuned", None, 1000),  # fine-tuning may have moved the table
            ):
                arguments, parameters = _image_vit(arch[3], 14, img_size, positions)
                yield Published(
                    f"humanlike-vits/{prefix}{model}",
                    f"{prefix}{arch}/{model}.pth",
                    family,
                    arguments,
                    parameters,
                    "eminorhan/humanlike-vits",
                    classes,
                    hours,
                )


def _menagerie() -> Iterator[Published]:
    children = ("say", "s", "a", "y")
    reference = ("imagenet100", "imagenet10", "imagenet1", "kinetics-200h", "ego4d-200h")
    models = [("dino", data, "vitb14") for data in (*children, "sfp", *reference)]
    models += [("dino", data, "resnext50") for data in (*children, "sfp")]
    models += [
        (algorithm, data, arch)
        for algorithm in ("dino", "mugs", "mae")
        for arch in ("vitl16", "vitb16", "vits16")
        for data in children
    ]
    for algorithm, data, arch in models:
        if arch == "resnext50":
            arguments, parameters = {"name": "resnext50_32x4d"}, _RESNET_PARAMETERS["resnext50_32x4d"]
        else:
            positions = "sincos" if algorithm == "mae" else "learned"
            arguments, parameters = _image_vit(arch[3], int(arch[4:]), 224, positions)
        model = f"{algorithm}_{data}_{arch}"
        hours = 200.0 if data.endswith("-200h") else None
        yield Published(
            f"silicon-menagerie/{model}",
            f"{model}.pth",
            algorithm,
            arguments,
            parameters,
            f"eminorhan/{model}",
            hours=hours,
        )


def _video() -> Iterator[Published]:
    groups = {
        "video-models": ({"say": 449.0, "s": 175.0, "kinetics": None, "kinetics-200h": 200.0}, _SHOTS),
        "hvm-1": ({"hvm1": 4971.0, "hvm1@448": 4971.0, "kinetics": 1330.0}, _SHOTS | {"imagenet-2pt": 1000}),
    }
    for group, (trained_on, tasks) in groups.items():
        for data, hours in trained_on.items():
            img_size = int(data.partition("@")[2] or 224)
            arguments = _sizes("h", 14, img_size) | {"num_frames": 16, "tubelet_size": 2, "positions": "separable"}
            for model, task, classes in (
                ("mae", "none", None),
                ("vit", "none", None),  # the same file: the encoder is what both have
                *(("vit", task, classes) for task, classes in tasks.items()),
            ):
                yield Published(
                    f"{group}/{model}_{data}_{task}",
                    f"{data}_{task}.pth",
                    "stmae" if classes is None else "stmae-finetuned",
                    arguments,
                    _STMAE_PARAMETERS[img_size],
                    f"eminorhan/{group}",
                    classes,
                    hours,
                )


def _files() -> Iterator[Published]:
    """Temporal classification, which was shared as files only."""

    def trunk(name: str, filename: str, resnet: str, classes: int, hours: float) -> Published:
        parameters = _RESNET_PARAMETERS[resnet]
        return Published(name, filename, "temporal-classification", {"name": resnet}, parameters, None, classes, hours)

    for child, episodes in _EPISODES.items():
        model, hours = f"TC-{child}-resnext", _SAYCAM_HOURS[child]
        yield trunk(f"baby-vision/{model}", f"{model}.tar", "resnext50_32x4d", episodes, hours)
    for model in ("TC-SAY-resnext-IN-linear", "TC-SAY-resnext-IN-1pt-linear"):
        yield trunk(f"baby-vision/{model}", f"{model}.tar", "resnext50_32x4d", 1000, _SAYCAM_HOURS["SAY"])
    for model, classes in (("tc-resnext101", 16279), ("tc-resnext101-imagenet-linear", 1000)):
        yield trunk(f"human-ssl/{model}", f"{model}.tar", "resnext101_32x8d", classes, 1301.0)
