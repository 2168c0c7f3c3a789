"""What all tokenizers share: pictures or clips to a grid of tokens and back.

A tokenizer is an encoder, a quantizer and a decoder. Used, it takes pixels (uint8) to tokens and tokens to pixels;
trained, its `forward` gives the reconstruction with its gradient. It needs nothing else than its own weights and card
for either: the networks that some losses look through are no part of it.

`load_tokenizer` makes one again from a run folder, from weights with their card, or from the copy that a token store
and the run of a GPT carry with them.

Shapes: B batch, T frames (no such dimension where `num_frames` is 1), `grid` (h, w) or (t, h, w), D width of latents.
"""

import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.weights import load_encoder
from headcam.tokenizers.quantizers.quantizer import Quantized, Quantizer

# Class -> module; the modules are imported when a card names one of them.
_CLASSES = {
    "ConvTokenizer": "headcam.tokenizers.autoencoders.conv_tokenizer",
    "VideoTokenizer": "headcam.tokenizers.autoencoders.video_tokenizer",
    "ViTTokenizer": "headcam.tokenizers.autoencoders.vit_tokenizer",
    "PaletteTokenizer": "headcam.tokenizers.autoencoders.palette",
}


_STEP_S = 8 / 30  # HVM-1's; of tokenizers whose card says nothing


class Tokenizer(nn.Module):
    """Base of the tokenizers.

    A subclass builds encoder and decoder, sets `arguments` (JSON values with which the class makes it again), and
    implements `latents` and `pixels`.

    Args:
        img_size: (H, W) in pixels.
        grid: of the tokens, (h, w) or (t, h, w), where t is for `num_frames`.
        quantizer: of latents to tokens.
        num_frames: T of a clip; 1 for pictures.
        mean, std: of pixels in [0, 1], per channel; what is subtracted and divided by before encoding.

    Attributes:
        tubelet_size: frames of a token; 1 for pictures.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        grid: tuple[int, ...],
        quantizer: Quantizer,
        num_frames: int = 1,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ):
        super().__init__()
        self.img_size, self.grid, self.num_frames = tuple(img_size), tuple(grid), num_frames
        self.tubelet_size = num_frames // grid[0] if len(grid) == 3 else 1
        self.mean, self.std = tuple(mean), tuple(std)
        self.quantizer = quantizer
        self.arguments: dict[str, Any] = {}

    @property
    def vocab_size(self) -> int:
        """Number of different tokens K."""
        return self.quantizer.codebook_size

    @property
    def num_tokens(self) -> int:
        """Tokens of a picture or clip."""
        return math.prod(self.grid)

    def latents(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) or (B, 3, T, H, W) -> (B, D, *grid), what is quantized."""
        raise NotImplementedError

    def pixels(self, quantized: Tensor) -> Tensor:
        """(B, D, *grid) -> normalised (B, 3, H, W) or (B, 3, T, H, W)."""
        raise NotImplementedError

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Quantized]:
        """Normalised pictures or clips -> reconstructions, and the codes in between; `noise` for the quantizer."""
        codes = self.quantizer(self.latents(images), noise)
        return self.pixels(codes.quantized), codes

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Tokens of pictures or clips: uint8 (B, 3, H, W) or (B, 3, T, H, W) -> int64 (B, *grid).

        Raises:
            InputError: another size, or a clip of another length, than the tokenizer is made for.
        """
        self.check(pixels)
        return self.quantizer(self.latents(self.normalize(pixels))).indices

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Pictures or clips that tokens stand for: int64 (B, *grid) -> uint8 (B, 3, H, W) or (B, 3, T, H, W).

        Raises:
            InputError: another grid than the tokenizer's, or a token outside its vocabulary.
        """
        self.check_tokens(tokens)
        return self.to_uint8(self.pixels(self.quantizer.dequantize(tokens)))

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, ...) -> float32, less `mean`, over `std`."""
        mean, std = self._channels(pixels)
        return (pixels.float() / 255 - mean) / std

    def to_uint8(self, images: Tensor) -> Tensor:
        """The inverse of `normalize`, rounded and clipped."""
        mean, std = self._channels(images)
        return ((images.float() * std + mean) * 255).round().clamp(0, 255).byte()

    def _channels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        shape = (3,) + (1,) * (images.ndim - 2)
        return tuple(torch.tensor(values, device=images.device).view(shape) for values in (self.mean, self.std))

    def check(self, pixels: Tensor) -> None:
        """Raise `InputError` for pictures or clips of another shape than the tokenizer's; clips may be shorter."""
        frames = () if self.num_frames == 1 else (self.num_frames,)
        wanted, found = (3, *frames, *self.img_size), tuple(pixels.shape[1:])
        if frames and len(found) == 4 and 0 < found[1] <= frames[0] and found[1] % self.tubelet_size == 0:
            found = (found[0], frames[0], *found[2:])
        if found != wanted:
            raise InputError(
                f"pixels of {_size(tuple(pixels.shape[1:]))} do not fit a tokenizer for {_size(wanted)}"
                + (f" (or the first {self.tubelet_size} n frames)" if frames else ""),
                "cut and resize to its size, or use another tokenizer",
            )

    def check_tokens(self, tokens: Tensor) -> None:
        """Raise `InputError` for tokens of another grid (clips may be shorter), or outside the vocabulary."""
        found = tuple(tokens.shape[1:])
        shorter = len(self.grid) == 3 and len(found) == 3 and 0 < found[0] <= self.grid[0]
        if (found[1:] if shorter else found) != (self.grid[1:] if shorter else self.grid):
            raise InputError(
                f"tokens of {_size(found)} do not fit a tokenizer of {_size(self.grid)}",
                "use the tokenizer that made them",
            )
        check_vocabulary(tokens, self.vocab_size)


def check_vocabulary(tokens: Tensor, vocab_size: int) -> None:
    """Raise `InputError` where a token is none of 0 .. vocab_size - 1."""
    if tokens.numel() and not (0 <= int(tokens.min()) and int(tokens.max()) < vocab_size):
        worst = int(tokens.max()) if int(tokens.max()) >= vocab_size else int(tokens.min())
        raise InputError(
            f"token {worst} is outside the vocabulary of {vocab_size}", "use tokens of the tokenizer that belongs here"
        )


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def clip_step(card: dict[str, Any], given: float | None) -> float:
    """Seconds between two frames of a clip: those `given`, else those that a tokenizer's card was trained on."""
    return card.get("step_s") or _STEP_S if given is None else given


def tokenizer_classes() -> dict[str, type[Tokenizer]]:
    """The tokenizers that a card may name."""
    return {name: getattr(import_module(module), name) for name, module in _CLASSES.items()}


def load_tokenizer(source: str | Path) -> tuple[Tokenizer, dict[str, Any]]:
    """A trained tokenizer in eval mode, and its card.

    Args:
        source: a run folder, weights with their card beside them, a checkpoint, or a folder with a copy of a tokenizer
            in `tokenizer/` (a token store, a GPT's run).
    Raises:
        InputError: nothing there, or no tokenizer.
    """
    source = Path(source)
    if (source / "tokenizer").is_dir():
        source = source / "tokenizer"
    return load_encoder(source, tokenizer_classes())
