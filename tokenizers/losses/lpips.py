"""LPIPS, the distance of two pictures as a network trained to name things sees it (Zhang et al. 2018, "The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric", CVPR; version 0.1 of its weights).

    pictures ─▶ trunk (AlexNet or VGG-16) ─▶ 5 taps ─▶ unit length over channels ─▶ squared differences
                                                            ─▶ weighted sum over channels ─▶ mean over places ─▶ sum

The trunk was trained on the labels of ImageNet: a tokenizer that is trained through it has learned from labels too, and
its card says so. The weights are not part of this package; `load_perceptual` reads them from a file or lets torchvision
fetch the trunk. A tokenizer needs none of this to be used, and can be trained without.

As a loss its gradient has to stay finite: a channel vector that is all zero has no direction, so a small constant
stands under the root.
"""

from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.video.transforms import IMAGENET_MEAN, IMAGENET_STD

Trunk = Literal["alexnet", "vgg16"]
# Layers in the order of torchvision's `features`, so that its keys fit: (channels, kernel, stride, padding) of a
# convolution, which a ReLU follows, or (kernel, stride) of a max-pool.
_LAYERS: dict[str, tuple[tuple[int, ...], ...]] = {
    "alexnet": ((64, 11, 4, 2), (3, 2), (192, 5, 1, 2), (3, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)),
    "vgg16": (
        *((64, 3, 1, 1), (64, 3, 1, 1), (2, 2), (128, 3, 1, 1), (128, 3, 1, 1), (2, 2)),
        *((256, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), (2, 2)),
        *((512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1), (2, 2), (512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1)),
    ),
}
# Those whose outputs are compared (ReLUs), and their channels.
_TAPS: dict[str, dict[int, int]] = {
    "alexnet": {1: 64, 4: 192, 7: 384, 9: 256, 11: 256},
    "vgg16": {3: 64, 8: 128, 15: 256, 22: 512, 29: 512},
}
_NAMES = {"alexnet": "AlexNet", "vgg16": "VGG-16"}
_SMALLEST = {"alexnet": 31, "vgg16": 16}  # pixels of a side that reach the last tap
_FLOOR = 1e-10  # added to squared lengths; those of real features are above 1e-2
_PREFIX = "loss.perceptual_loss."  # of LPIPS in the checkpoints of taming-transformers


class LPIPS(nn.Module):
    """The distance, without weights until they are loaded; always in eval mode, no gradient for its weights.

    Keys are `features.*` as in torchvision's trunk, `lin0.weight` to `lin4.weight` (1, C, 1, 1), `shift` and `scale`.

    Args:
        trunk: the network whose taps are compared.

    Attributes:
        source: where the weights come from, one line for logs and cards.
    """

    def __init__(self, trunk: Trunk = "alexnet"):
        super().__init__()
        self.trunk = trunk
        self.source = "no weights"
        taps = _TAPS[trunk]
        with torch.device("meta"):
            self.features = _features(trunk)
            for k, channels in enumerate(taps.values()):
                setattr(self, f"lin{k}", nn.Conv2d(channels, 1, 1, bias=False))
        for module in self.modules():  # no random numbers are drawn for weights that are loaded anyway
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape)))
        # ImageNet's mean and deviation, for pixels in [-1, 1].
        self.register_buffer("shift", 2 * torch.tensor(IMAGENET_MEAN) - 1)
        self.register_buffer("scale", 2 * torch.tensor(IMAGENET_STD))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "LPIPS":
        return super().train(False)  # it is a measure, whatever it is part of

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distances of pictures in [-1, 1]: two (B, 3, H, W) -> (B,) float32; 0 for equal ones, symmetric.

        Raises:
            InputError: pictures too small to reach the last tap.
        """
        if min(images.shape[-2:]) < _SMALLEST[self.trunk]:
            raise InputError(
                f"pictures of {images.shape[-2]} x {images.shape[-1]} are too small for {_NAMES[self.trunk]}",
                f"use {_SMALLEST[self.trunk]} pixels or more a side, or do without the perceptual loss",
            )
        count = len(images)
        x = torch.cat([images, others]).float()
        x = (x - self.shift.view(1, 3, 1, 1)) / self.scale.view(1, 3, 1, 1)
        taps, total = _TAPS[self.trunk], 0
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in taps:
                weight = getattr(self, f"lin{list(taps).index(number)}").weight[0]  # (C, 1, 1)
                unit = _unit(x.float())
                total = total + ((unit[:count] - unit[count:]).square() * weight).sum(1).mean((1, 2))
        return total


def _features(trunk: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for numbers in _LAYERS[trunk]:
        if len(numbers) == 2:
            layers.append(nn.MaxPool2d(*numbers))
        else:
            layers += [nn.Conv2d(inputs, *numbers), nn.ReLU(inplace=True)]
            inputs = numbers[0]
    return nn.Sequential(*layers)


def _unit(features: Tensor) -> Tensor:
    """Channel vectors at unit length: (B, C, h, w) float32; all-zero ones stay, with a finite gradient."""
    return features * (features.square().sum(dim=1, keepdim=True) + _FLOOR).rsqrt()


def load_perceptual(spec: str | Path) -> LPIPS:
    """LPIPS with weights.

    Args:
        spec: a file with trunk and channel weights (safetensors or a PyTorch file with the keys of `LPIPS`, or a
            checkpoint of taming-transformers, which carries a VGG-16 one along); or `torchvision:alexnet` or
            `torchvision:vgg16`: the trunk as torchvision publishes it (downloaded once), with all channels weighted
            alike, since the learned channel weights are published elsewhere. Such distances are 5 to 18 times those
            with learned weights (on the four pairs of a reference), which a loss's weight has to make up for.
    Raises:
        InputError: no such file, other keys, or the download failed.
    """
    spec = str(spec)
    if spec.startswith("torchvision:"):
        return _from_torchvision(perceptual_trunk(spec))
    model = LPIPS(perceptual_trunk(spec))
    state = _read(spec)
    for name in ("shift", "scale"):  # (1, 3, 1, 1) in checkpoints of taming-transformers
        if name in state:
            state[name] = state[name].flatten()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise _wrong(spec, " ".join(str(error).split())[:160]) from error
    model.source = f"LPIPS ({_NAMES[model.trunk]}) of {Path(spec).name}, SHA-256 {sha256_file(spec)[:16]}"
    return model


def perceptual_trunk(spec: str | Path) -> Trunk:
    """The trunk that `load_perceptual(spec)` would have, without a download.

    Raises:
        InputError: no such file, trunk or weights.
    """
    spec = str(spec)
    if spec.startswith("torchvision:"):
        trunk = spec.partition(":")[2]
        if trunk not in _TAPS:
            raise InputError(f"{spec} names no trunk", f"use torchvision:{' or torchvision:'.join(_TAPS)}")
        return trunk
    keys = _read(spec)
    for trunk in ("vgg16", "alexnet"):
        if f"features.{max(_TAPS[trunk]) - 1}.weight" in keys:  # its last convolution
            return trunk
    raise _wrong(spec, "no trunk of AlexNet or VGG-16 is in it")


def _from_torchvision(trunk: Trunk) -> LPIPS:
    model = LPIPS(trunk)
    try:
        published = getattr(torchvision.models, trunk)(weights="IMAGENET1K_V1").features.state_dict()
    except (OSError, RuntimeError) as error:  # no network (URLError), disk full; a torn download
        problem = " ".join(str(error).split())[:160]
        raise InputError(
            f"torchvision could not fetch {trunk}: {problem}",
            "give a local file as model.loss.perceptual, or null to train without",
        ) from error
    model.features.load_state_dict(published)
    for k in range(len(_TAPS[trunk])):
        nn.init.ones_(getattr(model, f"lin{k}").weight)
    model.source = f"torchvision's {_NAMES[trunk]} with all channels weighted alike"
    return model


def _read(path: str) -> dict[str, Tensor]:
    """The tensors of a weights file under the keys of `LPIPS`."""
    if not Path(path).is_file():
        raise InputError(
            f"{path} does not exist", "give a file of LPIPS weights, torchvision:vgg16 or torchvision:alexnet, or null"
        )
    try:
        if path.endswith(".safetensors"):
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            found = found.get("state_dict", found)
    except Exception as error:  # for files that are none torch.load raises pickle, zip, runtime and other errors
        raise _wrong(path, " ".join(str(error).split())[:160]) from error
    if any(key.startswith(_PREFIX) for key in found):
        found = {key.removeprefix(_PREFIX): value for key, value in found.items() if key.startswith(_PREFIX)}
    return {_renamed(key): value for key, value in found.items()}


def _renamed(key: str) -> str:
    """The key of `LPIPS` for one of taming-transformers: `net.slice3.14.bias`, `lin2.model.1.weight`, ..."""
    words = key.split(".")
    if words[0] == "net" and words[1].startswith("slice"):
        return ".".join(["features", *words[2:]])
    if words[0] == "scaling_layer":
        return words[-1]
    return key.replace(".model.1.", ".")


def _wrong(path: str, problem: str) -> InputError:
    return InputError(
        f"{path} holds no LPIPS weights: {problem}",
        "give a file with features.*, lin0.weight to lin4.weight, shift and scale, or torchvision:vgg16",
    )
