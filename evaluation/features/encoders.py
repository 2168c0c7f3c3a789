"""What features are taken of: a frozen encoder in eval mode (`EncoderExtractor`), or the picture itself
(`PixelExtractor`, the baseline that needs no model).

Two more build on the first: `headcam.evaluation.features.layers` takes all layers in one pass, and
`headcam.evaluation.features.clips` takes videos.
"""

import os
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headcam.errors import InputError
from headcam.evaluation.features.blocks import block_number, block_outputs
from headcam.evaluation.features.pictures import read_picture, resize_and_crop
from headcam.evaluation.protocols import EncoderFeatures, PixelFeatures
from headcam.files import sha256_json
from headcam.ssl.weights import ARCHITECTURES, build_encoder, load_encoder, state_hash
from headcam.tokenizers.autoregression.encoder import TokenEncoder, as_token_encoder, token_architectures
from headcam.video.transforms import normalize

_BATCH_SIZE = {"cpu": 64}  # pictures; a ViT-L at 224 pixels then needs about 1 GiB for its activations
_BATCH_SIZE_ELSEWHERE = 256


class Extractor(Protocol):
    """What `extract` needs to know of a way to get features."""

    @property
    def dim(self) -> int:
        """Number of features D."""

    @property
    def batch_size(self) -> int:
        """Items at a time that are quick and fit into memory."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that the features follow from, apart from the items; JSON."""

    def load(self, item: Any) -> Any:
        """A labelled picture or video, decoded; whatever this raises means that it cannot be read."""

    def prepare(self, loaded: Any) -> np.ndarray:
        """What `load` gave as a uint8 array, of the same shape for every item."""

    def compute(self, batch: np.ndarray) -> np.ndarray:
        """Prepared items (B, ...) as float32 features (B, D)."""


def load_frozen(source: str | os.PathLike, layer: str | None = None) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Whatever was trained, as an encoder of pictures in eval mode, and its card.

    Args:
        source: run folder, weights with their card beside them, or checkpoint, of an encoder, a GPT or a tokenizer.
        layer: of a GPT or tokenizer, see `headcam.tokenizers.autoregression.encoder`; None: its default one. That of
            an encoder is a setting of the protocol, `EncoderFeatures.layer`.
    Raises:
        InputError: nothing there that pictures can be encoded by, or no such layer.
    """
    model, card = load_encoder(source, {**ARCHITECTURES, **token_architectures()})
    if card["architecture"]["class"] not in ARCHITECTURES:
        return as_token_encoder(model, card, source, layer)
    if layer is not None:
        raise InputError(f"layer {layer}: {card['name']} is neither a GPT nor a tokenizer", "leave --layer out")
    return model, card


def random_twin(encoder: torch.nn.Module, card: dict[str, Any], seed: int) -> torch.nn.Module:
    """The encoder of `load_frozen` at random initialisation, which follows from `seed` alone.

    Of a GPT the tokenizer is kept: what is compared is what the GPT learned of the tokens.
    """
    return encoder.random_twin(seed) if isinstance(encoder, TokenEncoder) else build_encoder(card, seed)


class EncoderExtractor:
    """Frozen features of an encoder, in float32.

    A model of clips (`num_frames` above 1) takes a picture as a clip of equal frames.

    Args:
        encoder: module with `forward_features(images (B, 3, H, W)) -> (B, P + L, D)`, `num_prefix_tokens` and
            `embed_dim`. It is moved to `device` and put into eval mode.
        card: its card; `img_size` ([H, W] in pixels), `mean` and `std` (of pixels in [0, 1]) are used.
        protocol: with a `layer`, the output of that block of a ViT or GPT in place of the encoder's features.
    Raises:
        InputError: the class token is asked of an encoder without one, or a layer that it does not have.
    """

    load = staticmethod(read_picture)

    def __init__(
        self, encoder: torch.nn.Module, card: dict[str, Any], protocol: EncoderFeatures, device: str | torch.device
    ):
        if protocol.pool == "cls" and encoder.num_prefix_tokens < 1:
            raise InputError(f"pool cls: {card['name']} has no class token", "use --pool avg")
        self._block = None if protocol.layer is None else block_number(encoder, protocol.layer)
        self.encoder = encoder.to(device).eval()
        self.card, self.protocol, self.device = card, protocol, torch.device(device)

    @property
    def dim(self) -> int:
        return self.encoder.embed_dim

    @property
    def batch_size(self) -> int:
        return _BATCH_SIZE.get(self.device.type, _BATCH_SIZE_ELSEWHERE)

    @cached_property
    def weights_hash(self) -> str:
        """See `headcam.ssl.weights.state_hash`."""
        return state_hash(self.encoder)

    @property
    def identity(self) -> dict[str, Any]:
        # Weights do not tell everything (the number of heads, the normalisation): the card does.
        return {"protocol": asdict(self.protocol), "weights": self.weights_hash, "card": sha256_json(self.card)}

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Resize and centre crop to the encoder's image size: (H, W, 3)."""
        return resize_and_crop(image, tuple(self.card["img_size"]), self.protocol.resize_ratio)

    @torch.inference_mode()
    def compute(self, batch: np.ndarray) -> np.ndarray:
        """Pictures (B, H, W, 3) uint8 to pooled features (B, D) float32."""
        return self.pooled(self.normalized(batch)).cpu().numpy()

    def normalized(self, batch: np.ndarray) -> Tensor:
        """uint8 pictures (B, H, W, 3) as the encoder wants them, on its device: float32 (B, 3, H, W)."""
        pixels = torch.from_numpy(batch)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        pixels = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return normalize(pixels, self.card["mean"], self.card["std"])

    def pooled(self, images: Tensor) -> Tensor:
        """Features (B, D) float32 of normalised pictures (B, 3, H, W), or of clips (B, 3, T, H, W)."""
        if self._block is None:
            return self.pool(self.encoder.forward_features(images))
        return self.pool(next(islice(block_outputs(self.encoder, images), self._block - 1, None)))

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, P + L, D) to (B, D) float32, as the protocol says."""
        if self.protocol.pool == "cls":
            return tokens[:, 0].float()
        return tokens[:, self.encoder.num_prefix_tokens :].mean(dim=1).float()


class PixelExtractor:
    """The picture itself, averaged over area to `side` x `side`, as side * side * 3 values in [0, 1]."""

    batch_size = 256
    load = staticmethod(read_picture)

    def __init__(self, protocol: PixelFeatures):
        self.protocol = protocol

    @property
    def dim(self) -> int:
        return self.protocol.side**2 * 3

    @property
    def identity(self) -> dict[str, Any]:
        return {"protocol": asdict(self.protocol)}

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The whole picture, its sides changed independently: (side, side, 3)."""
        return np.asarray(image.resize((self.protocol.side, self.protocol.side), Image.Resampling.BOX))

    def compute(self, batch: np.ndarray) -> np.ndarray:
        """(B, side, side, 3) uint8 to (B, side * side * 3) float32."""
        return batch.reshape(len(batch), -1).astype(np.float32) / 255
