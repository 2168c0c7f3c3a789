"""A fitted linear head as a file: the classifier that a probe found, to be used on other pictures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from headcam.errors import InputError
from headcam.evaluation import protocols
from headcam.evaluation.heads.normalisation import Normalisation
from headcam.files import atomic_file

HEAD_CONTRACT = "linear-head/1"


@dataclass(frozen=True)
class LinearHead:
    """A fitted linear layer with the normalisation before it, to be used on features of other pictures.

    Attributes:
        normalisation: of the features.
        weight: (D, num_classes) float32, of normalised features.
        bias: (num_classes,) float32.
    """

    normalisation: Normalisation
    weight: torch.Tensor
    bias: torch.Tensor

    @torch.inference_mode()
    def logits(self, features: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Features (B, D) of any float type to (B, num_classes) float32, on the CPU."""
        return torch.addmm(self.bias, self.normalisation(features)[:, :-1], self.weight).cpu()

    def save(self, path: Path, protocol: protocols.LinearProbe, classes: Sequence[str]) -> None:
        """Write it as a safetensors file that says by which protocol, and for which classes in which order."""
        tensors = {
            "mean": self.normalisation.mean,
            "scale": self.normalisation.scale,
            "weight": self.weight,
            "bias": self.bias,
        }
        about = {
            "contract": HEAD_CONTRACT,
            "protocol": protocols.label(protocol),
            "protocol_hash": protocols.protocol_hash(protocol),
            "classes": json.dumps(list(classes)),
        }
        with atomic_file(path) as file:
            file.write(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, about))

    @classmethod
    def load(cls, path: Path, protocol: protocols.LinearProbe) -> tuple["LinearHead", tuple[str, ...]]:
        """A head that `save` wrote, and its classes.

        Raises:
            InputError: no such file, another contract, or a head of another protocol or version of it.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise InputError(f"linear head {path} cannot be read: {error}", "run headcam probe again") from error
        if about.get("contract") != HEAD_CONTRACT:
            raise InputError(
                f"{path} is no linear head of contract {HEAD_CONTRACT}, but {about.get('contract', 'something else')}",
                "give a file from the folder heads/ of headcam probe",
            )
        if about["protocol_hash"] != protocols.protocol_hash(protocol):
            raise InputError(
                f"{path} was fitted by protocol {about['protocol']} ({about['protocol_hash'][:12]}), and "
                f"{protocols.label(protocol)} ({protocols.protocol_hash(protocol)[:12]}) is wanted",
                "fit it again with headcam probe, or ask for the protocol that it is of",
            )
        head = cls(Normalisation(tensors["mean"], tensors["scale"]), tensors["weight"], tensors["bias"])
        return head, tuple(json.loads(about["classes"]))
