"""A causal convolutional tokenizer of clips: t x h x w tokens, none of which knows what comes after it.

The layouts are those of TATS (Ge et al. 2022): a stack of levels, each of which halves time, rows and columns until the
factor asked for is used up, and doubles the width; the decoder mirrors it. Unlike there, time is causal (Yu et al.
2023, MAGVIT-v2): a token depends on the frames of its slot and on earlier ones, a frame on the tokens of its slot and
on earlier ones. So the first frames of a clip give the same tokens whatever comes after them, and a model that predicts
the tokens of the future from those of the past has not been told the answer. What keeps it so, and why the kernels are
factorised, is said in `headcam.tokenizers.autoencoders.causal`.

| layout | tokens of 16 frames at 256 px | tokens of one second at 8 frames/s |
| --- | --- | --- |
| (4, 16, 16) | 4 x 16 x 16 = 1,024 | 512 |
| (2, 16, 16) | 8 x 16 x 16 = 2,048 | 1,024 |
| (4, 8, 8) | 4 x 32 x 32 = 4,096 | 2,048 |

Shapes: B clips, T frames, H x W pixels, (t, h, w) grid of tokens, u = T / t frames of a slot, D width of latents.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.vit import run_block
from headcam.tokenizers.autoencoders.causal import Downsample, FrameConv, FrameNorm, ResidualBlock, Upsample
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer
from headcam.tokenizers.quantizers.table import build_quantizer

_DIMENSIONS = ("time", "height", "width")


class VideoTokenizer(Tokenizer):
    """Clips to a grid of tokens and back.

    Convolutional throughout: the first frames of a clip, whole slots of them, are encoded and decoded as they are.

    Args:
        img_size: pixels, one side or (height, width).
        num_frames: T of a clip.
        downsample: (u, H / h, W / w), powers of two; the grid is what they leave.
        ch: width at full resolution; every level doubles it.
        num_res_blocks: of each level, in encoder and decoder.
        codebook_size: K.
        embed_dim: D.
        quantizer, quantizer_options: see `headcam.tokenizers.quantizers.table`.
    Raises:
        InputError: a factor that is no power of two, or does not divide the clip.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        num_frames: int = 16,
        downsample: Sequence[int] = (4, 16, 16),
        ch: int = 32,
        num_res_blocks: int = 2,
        codebook_size: int = 16384,
        embed_dim: int = 256,
        quantizer: str = "vq",
        quantizer_options: Mapping[str, Any] | None = None,
    ):
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        strides = level_strides(downsample)
        grid = clip_grid((num_frames, *size), downsample)
        if ch < 1 or num_res_blocks < 1:
            raise InputError(f"ch is {ch} and num_res_blocks {num_res_blocks}", "give at least 1, say 32 and 2")
        super().__init__(
            size, grid, build_quantizer(quantizer, codebook_size, embed_dim, quantizer_options), num_frames
        )
        self.arguments = {
            "img_size": list(size),
            "num_frames": num_frames,
            "downsample": list(downsample),
            "ch": ch,
            "num_res_blocks": num_res_blocks,
            "codebook_size": codebook_size,
            "embed_dim": embed_dim,
            "quantizer": quantizer,
            "quantizer_options": dict(quantizer_options or {}),
        }
        self.encoder = Encoder(ch, strides, num_res_blocks, embed_dim)
        self.decoder = Decoder(ch, strides, num_res_blocks, embed_dim)

    def latents(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def pixels(self, quantized: Tensor) -> Tensor:
        return self.decoder(quantized)


class Encoder(nn.Module):
    """(B, 3, T, H, W) -> (B, D, t, h, w).

    Args:
        ch: width at full resolution.
        strides: of each level, from full resolution on.
        num_res_blocks: after the stride of each level.
        embed_dim: D.

    Attributes:
        checkpointing: compute inner activations again in backward instead of keeping them.
    """

    checkpointing_part = "encoder"

    def __init__(self, ch: int, strides: Sequence[tuple[int, int, int]], num_res_blocks: int, embed_dim: int):
        super().__init__()
        self.conv_in = FrameConv(3, ch, 3, padding=1)
        blocks: list[nn.Module] = []
        for stride in strides:
            blocks.append(Downsample(ch, 2 * ch, stride))
            ch *= 2
            blocks += [ResidualBlock(ch) for _ in range(num_res_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = FrameNorm(ch)
        self.conv_out = FrameConv(ch, embed_dim, 1)
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last_3d))
        for block in self.blocks:
            x = run_block(block, x, self.checkpointing)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """(B, D, t, h, w) -> (B, 3, T, H, W); arguments and attributes as of `Encoder`, whose mirror image it is."""

    checkpointing_part = "decoder"

    def __init__(self, ch: int, strides: Sequence[tuple[int, int, int]], num_res_blocks: int, embed_dim: int):
        super().__init__()
        ch *= 2 ** len(strides)
        self.conv_in = FrameConv(embed_dim, ch, 1)
        blocks: list[nn.Module] = [ResidualBlock(ch) for _ in range(num_res_blocks)]
        for stride in reversed(strides):
            blocks.append(Upsample(ch, ch // 2, stride))
            ch //= 2
            blocks += [ResidualBlock(ch) for _ in range(num_res_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = FrameNorm(ch)
        self.conv_out = FrameConv(ch, 3, 3, padding=1)
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last_3d))
        for block in self.blocks:
            x = run_block(block, x, self.checkpointing)
        return self.conv_out(F.silu(self.norm_out(x)))


def level_strides(downsample: Sequence[int]) -> list[tuple[int, int, int]]:
    """Strides (time, height, width) of each level, from full resolution on: 2 until a factor is used up, then 1.

    So time is reduced as early as it can be, which is also where a level costs most.

    Raises:
        InputError: not three powers of two.
    """
    if len(downsample) != 3:
        raise InputError(f"downsample is {list(downsample)}", "give three factors, of time, height and width")
    for name, factor in zip(_DIMENSIONS, downsample):
        if factor < 1 or factor & (factor - 1):
            near = 2 ** max(0, factor.bit_length() - 1) if factor > 0 else 1
            raise InputError(f"downsample of {name} is {factor}, no power of two", f"use for example {near}")
    levels = [factor.bit_length() - 1 for factor in downsample]
    return [tuple(2 if k < level else 1 for level in levels) for k in range(max(levels))]


def clip_grid(clip: tuple[int, int, int], downsample: Sequence[int]) -> tuple[int, int, int]:
    """The tokens (t, h, w) of a clip (T, H, W); `InputError` where a factor does not divide it."""
    for name, unit, size, factor in zip(_DIMENSIONS, ("frames", "pixels", "pixels"), clip, downsample):
        if size < factor or size % factor:
            near = max(1, round(size / factor)) * factor
            raise InputError(
                f"downsample of {name} {factor} does not divide {size} {unit}", f"use {near} {unit} or another factor"
            )
    if clip[0] < 2:
        raise InputError(f"num_frames is {clip[0]}", "give 2 or more; ConvTokenizer and ViTTokenizer are for pictures")
    return tuple(size // factor for size, factor in zip(clip, downsample))
