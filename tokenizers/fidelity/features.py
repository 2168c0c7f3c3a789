"""The feature networks that FID and KID are computed on, each with the label that its numbers carry.

`InceptionFeatures` is the network of the published numbers: the Inception-v3 of the 2015 TensorFlow release with the
weights that pytorch-fid ported (`pt_inception-2015-12-05-6726825d.pth`), which the user supplies. It is torchvision's
network but for 1,008 classes and its pooling (averages leave padding out; the last block takes a maximum).
`EncoderFeatures` is any of our own encoders, for where that file is not to be had: good for telling two tokenizers
apart, comparable with no number elsewhere, and labelled so.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from headcam.errors import InputError
from headcam.ssl.weights import load_encoder

_SIDE = 299  # pixels that Inception-v3 takes
_CLASSES = 1008  # of the 2015 release
_BATCH = 16


class Features(Protocol):
    """A frozen network.

    Attributes:
        label: what names its numbers, such as "Inception-v3 2015".
        comparable: whether numbers elsewhere are of the same network.
    """

    label: str
    comparable: bool

    def __call__(self, pictures: Tensor) -> np.ndarray:
        """uint8 (B, 3, H, W) -> (B, D) float64."""


class _Pooled:
    """An Inception block whose pooling branch is another: the branches come as a list, that one last."""

    def _pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:-1], self.branch_pool(self._pool(x))]


class _A(_Pooled, InceptionA):
    pass


class _C(_Pooled, InceptionC):
    pass


class _E(_Pooled, InceptionE):
    pass


class _LastE(_Pooled, InceptionE):
    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


def fid_inception() -> Inception3:
    """The network of the 2015 release without its weights; keys and shapes are those of pytorch-fid's file."""
    last = 2048  # channels that only the last of the two E blocks gets

    def block_e(in_channels: int) -> nn.Module:
        return (_LastE if in_channels == last else _E)(in_channels)

    blocks = [BasicConv2d, _A, InceptionB, _C, InceptionD, block_e, InceptionAux]
    network = Inception3(_CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False)
    return network


class InceptionFeatures:
    """The 2,048 pooled features of `fid_inception`.

    Pictures are resized to 299 x 299, bilinear with antialiasing: for pictures up to that size the same as in
    pytorch-fid, for larger ones not (its resampling skips pixels).

    Args:
        path: state dict, .pth or .safetensors.
        device: where to compute.
    Raises:
        InputError: no such file, or other weights.
    """

    comparable = True

    def __init__(self, path: str | Path, device: str = "cpu"):
        self.device = torch.device(device)
        self.network = fid_inception()
        state = _read_state(Path(path))
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(
                f"{path} does not hold the Inception-v3 of pytorch-fid ({str(error).splitlines()[1].strip()[:120]})",
                "give pt_inception-2015-12-05-6726825d.pth of its release page",
            ) from error
        self.network.fc = nn.Identity()
        self.network.to(self.device).eval()
        self.label = f"Inception-v3 2015 ({Path(path).name}), {_SIDE} px bilinear antialiased"

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> np.ndarray:
        return _in_batches(pictures, self._batch)

    def _batch(self, pictures: Tensor) -> Tensor:
        return self.network(_resized(pictures.to(self.device), (_SIDE, _SIDE)) / 127.5 - 1)


class EncoderFeatures:
    """Features of one of our own encoders: the mean of its patch tokens, at its own image size and normalisation.

    Args:
        source: run folder, weights with their card, or checkpoint of an encoder for images.
        device: where to compute.
    Raises:
        InputError: no such encoder, or one for clips.
    """

    comparable = False

    def __init__(self, source: str | Path, device: str = "cpu"):
        encoder, card = load_encoder(source)
        if getattr(encoder, "num_frames", 1) > 1:
            raise InputError(f"{source} is an encoder for clips", "give a run whose encoder takes images")
        self.device, self.card = torch.device(device), card
        self.encoder = encoder.to(self.device)
        self.label = f"features of {card.get('name', Path(source).name)}, not comparable"

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> np.ndarray:
        return _in_batches(pictures, self._batch)

    def _batch(self, pictures: Tensor) -> Tensor:
        mean, std = (torch.tensor(self.card[name], device=self.device).view(3, 1, 1) for name in ("mean", "std"))
        images = _resized(pictures.to(self.device), tuple(self.card["img_size"])) / 255
        return self.encoder.forward_features((images - mean) / std)[:, self.encoder.num_prefix_tokens :].mean(dim=1)


def _in_batches(pictures: Tensor, features: Callable[[Tensor], Tensor]) -> np.ndarray:
    return np.concatenate([features(part).double().cpu().numpy() for part in pictures.split(_BATCH)])


def _resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(pictures.float(), size=size, mode="bilinear", align_corners=False, antialias=True)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"Inception weights {path} do not exist", "give the file, or leave the option out")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as weights ({str(error).splitlines()[0][:120]})",
            "download the file again; a state dict is wanted, not TorchScript",
        ) from error
