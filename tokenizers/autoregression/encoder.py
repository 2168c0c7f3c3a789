"""Any layer of a GPT or of a tokenizer as an encoder, for probes and embeddings.

| model | layer | features of each position |
| --- | --- | --- |
| GPT | 1 .. depth, -1 .. -depth from the end | hidden states after that block, of the last one after the norm |
| tokenizer | `latents` | what the encoder makes of the picture, before it is quantized |
| tokenizer | `quantized` | what the codes of the picture stand for |

Without a layer named, a GPT gives the block in its middle, where iGPT found the features that classify best (Chen et
al. 2020), a tokenizer its latents. A model of clips takes a picture as a clip of equal frames.

What such an encoder is compared with is its random twin: of a GPT the same network at random initialisation on the
same tokens, so that the difference is what the GPT learned, its tokenizer kept; of a tokenizer all of it.

Shapes: B batch, L positions (N tokens; one less of a GPT without a start token), D width.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.weights import build_encoder, load_encoder
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer, tokenizer_classes
from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.autoregression.loading import tokenizer_of

TOKENIZER_LAYERS = ("latents", "quantized")
Layer = int | str | None


class TokenEncoder(nn.Module):
    """Features of pictures from a layer of a GPT on their tokens, or of a tokenizer.

    Args:
        tokenizer: of the pictures.
        gpt: None: the tokenizer alone is the encoder.
        layer: see the module; None: the default one.

    Attributes:
        layer: the one that is used.
        embed_dim: D.
        num_prefix_tokens: 0, there is no class token.
        img_size: (H, W) in pixels of the pictures.

    Raises:
        InputError: no such layer, or a model that wants a class with every picture.
    """

    num_prefix_tokens = 0

    def __init__(self, tokenizer: Tokenizer, gpt: GPT | None = None, layer: Layer = None):
        super().__init__()
        self.tokenizer, self.gpt = tokenizer, gpt
        self.layer = _checked_layer(gpt, layer)
        self.img_size = tokenizer.img_size
        self.embed_dim = tokenizer.quantizer.dim if gpt is None else gpt.embed_dim

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), normalised by the tokenizer's mean and std -> (B, L, D)."""
        if self.layer == "latents":
            return self.tokenizer.latents(self._clips(images)).flatten(2).transpose(1, 2)
        tokens = self._tokens(images)
        if self.gpt is None:
            return self.tokenizer.quantizer.dequantize(tokens).flatten(2).transpose(1, 2)
        return self.gpt.features(tokens, self.layer)

    @torch.no_grad()
    def block_outputs(self, images: Tensor) -> Iterator[Tensor]:
        """What `forward_features` gives for layers 1, 2, .. depth of a GPT in turn, in one pass: (B, L, D) each."""
        yield from self.gpt.block_outputs(self._tokens(images))

    def random_twin(self, seed: int) -> "TokenEncoder":
        """The same encoder at random initialisation, which follows from `seed` alone; a GPT keeps its tokenizer."""
        trained = self.tokenizer if self.gpt is None else self.gpt
        architecture = {"class": type(trained).__name__, "arguments": trained.arguments}
        twin = build_encoder({"architecture": architecture}, seed, {architecture["class"]: type(trained)})
        if self.gpt is None:
            return TokenEncoder(twin, None, self.layer).eval()
        return TokenEncoder(self.tokenizer, twin, self.layer).eval()

    def _tokens(self, images: Tensor) -> Tensor:
        """(B, *grid)."""
        return self.tokenizer.encode(self.tokenizer.to_uint8(self._clips(images)))

    def _clips(self, images: Tensor) -> Tensor:
        """Stills as clips of equal frames where the tokenizer is of clips."""
        frames = self.tokenizer.num_frames
        return images.unsqueeze(2).expand(-1, -1, frames, -1, -1) if frames > 1 and images.ndim == 4 else images


def load_token_encoder(source: str | Path, layer: Layer = None) -> tuple[TokenEncoder, dict[str, Any]]:
    """A layer of a trained GPT or tokenizer as an encoder in eval mode, and a card for it.

    Args:
        source: run folder, weights with their card beside them, or a checkpoint; a GPT's has its tokenizer with it.
        layer: see the module; digits may come as a string.
    Returns:
        The encoder, and the model's card with what the encoder wants of pictures (`img_size`, `mean`, `std`), with
        `layer`, and with the layer in its name.
    Raises:
        InputError: neither a GPT nor a tokenizer, or no such layer.
    """
    model, card = load_encoder(source, token_architectures())
    return as_token_encoder(model, card, source, layer)


def as_token_encoder(
    model: nn.Module, card: dict[str, Any], source: str | Path, layer: Layer
) -> tuple[TokenEncoder, dict[str, Any]]:
    """What `load_token_encoder` makes of a model and card that are loaded already."""
    if isinstance(model, GPT):
        encoder = TokenEncoder(tokenizer_of(model, card, source), model, layer)
    else:
        encoder = TokenEncoder(model, None, layer)
    about = {
        "name": f"{card['name']}, layer {encoder.layer}",
        "img_size": list(encoder.img_size),
        "mean": list(encoder.tokenizer.mean),
        "std": list(encoder.tokenizer.std),
        "layer": encoder.layer,
    }
    return encoder.eval(), {**card, **about}


def token_architectures() -> dict[str, type[nn.Module]]:
    """The models that a layer can be taken of, by the names that cards give them."""
    return {**tokenizer_classes(), "GPT": GPT}


def _checked_layer(gpt: GPT | None, layer: Layer) -> int | str:
    if isinstance(layer, str) and layer.lstrip("-").isdigit():
        layer = int(layer)
    if gpt is None:
        if layer is not None and layer not in TOKENIZER_LAYERS:
            raise InputError(f"layer {layer} is none of a tokenizer", f"use one of {', '.join(TOKENIZER_LAYERS)}")
        return layer or TOKENIZER_LAYERS[0]
    if gpt.start == "class":
        raise InputError("a model with a class token wants a class with every picture", "probe one without classes")
    if layer is None:
        return max(1, gpt.depth // 2)
    if not isinstance(layer, int) or not 1 <= abs(layer) <= gpt.depth:
        raise InputError(
            f"layer {layer} is none of a GPT of {gpt.depth} blocks", f"give 1 to {gpt.depth}, or -1 for the last"
        )
    return layer if layer > 0 else gpt.depth + 1 + layer
