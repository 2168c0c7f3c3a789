"""Encoder and decoder of the VQGAN: convolutional maps between a picture and a grid f times as coarse.

Written after Esser et al. 2021 (Taming transformers, section 3.1 and table 7): levels of residual blocks, each level
half the resolution of the one before, with self-attention where the resolution is low. Names of weights, normalisation
(32 groups, eps 1e-6), activation (x sigmoid(x)) and padding are those of the published models, so that their weights
fit: a level is `down.L` or `up.L` with L = 0 at full resolution in both, `block.B`, `attn.B` where it attends, and
`downsample` or `upsample` where another level follows. `headcam.tokenizers.autoencoders.conv_tokenizer` puts a
quantizer between the two.

Any size works that f divides, and both memory formats (`channels_last` is the faster one on GPUs with bf16).

Shapes: B batch, C channels, H x W of a feature map, f = 2^(levels - 1).
"""

from collections.abc import Collection, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.attention import Attention, attend
from headcam.ssl.vit import run_block

_GROUPS = 32


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, z_channels, H / f, W / f).

    Args:
        ch: channels at full resolution before the multiplication.
        ch_mult: for each level, by what `ch` is multiplied.
        num_res_blocks: of each level.
        attention_levels: levels that attend after each block; between down and out there is attention in any case.
        z_channels: of the outcome.
    """

    def __init__(
        self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, attention_levels: Collection[int], z_channels: int
    ):
        super().__init__()
        widths = [ch, *(ch * factor for factor in ch_mult)]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(widths[k], widths[k + 1], num_res_blocks, k in attention_levels, last=k == len(ch_mult) - 1)
            for k in range(len(ch_mult))
        )
        self.mid = Middle(widths[-1], "encoder")
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, z_channels, h, w) -> (B, 3, f h, f w); arguments as of `Encoder`, one block more in each level."""

    def __init__(
        self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, attention_levels: Collection[int], z_channels: int
    ):
        super().__init__()
        widths = [ch * factor for factor in ch_mult]
        before = [*widths[1:], widths[-1]]  # channels that come into each level: those of the next coarser one
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], "decoder")
        self.up = nn.ModuleList(
            UpLevel(before[k], widths[k], num_res_blocks + 1, k in attention_levels, last=k == 0)
            for k in range(len(ch_mult))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where `attends`."""

    checkpointing_part: str

    def __init__(self, before: int, channels: int, num_blocks: int, attends: bool):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(channels if k else before, channels) for k in range(num_blocks))
        self.attn = nn.ModuleList(ConvAttention(channels) for _ in range(num_blocks if attends else 0))
        self.checkpointing = False  # keep no block's inner activations for backward, compute them again

    def blocks(self, x: Tensor) -> Tensor:
        for k, block in enumerate(self.block):
            x = run_block(block, x, self.checkpointing)
            if self.attn:
                x = run_block(self.attn[k], x, self.checkpointing)
        return x


class DownLevel(_Level):
    """(B, before, H, W) -> (B, channels, H / 2, W / 2); at the last level the size stays."""

    checkpointing_part = "encoder"

    def __init__(self, before: int, channels: int, num_blocks: int, attends: bool, last: bool):
        super().__init__(before, channels, num_blocks, attends)
        self.downsample = None if last else Downsample(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.downsample is None else self.downsample(x)


class UpLevel(_Level):
    """(B, before, h, w) -> (B, channels, 2 h, 2 w); at the last level the size stays."""

    checkpointing_part = "decoder"

    def __init__(self, before: int, channels: int, num_blocks: int, attends: bool, last: bool):
        super().__init__(before, channels, num_blocks, attends)
        self.upsample = None if last else Upsample(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution; `part` is `encoder` or `decoder`."""

    def __init__(self, channels: int, part: str):
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = ConvAttention(channels)
        self.block_2 = ResBlock(channels, channels)
        self.checkpointing_part = part
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.block_1, self.attn_1, self.block_2):
            x = run_block(block, x, self.checkpointing)
        return x


class ResBlock(nn.Module):
    """Two times norm, activation, 3 x 3 convolution, added to the input: (B, before, H, W) -> (B, channels, H, W)."""

    def __init__(self, before: int, channels: int):
        super().__init__()
        self.norm1 = group_norm(before)
        self.conv1 = nn.Conv2d(before, channels, 3, padding=1)
        self.norm2 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, channels, 1) if before != channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class ConvAttention(Attention):
    """Self-attention among all places of a map, with one head of all its channels, added to the map.

    It is an `Attention` so that whatever sets backends finds it; its projections are 1 x 1 convolutions of their own.
    """

    def __init__(self, channels: int):
        nn.Module.__init__(self)  # without the layers of `Attention`: published weights have others
        self.num_heads = 1
        self.backend = "sdpa"
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = self.norm(x)
        # Maps to tokens of one head, (B, 1, H W, C); in channels_last that is how they lie in memory.
        q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        attended = attend(q, k, v, backend=self.backend).squeeze(1)
        return x + self.proj_out(attended.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """3 x 3 convolution of stride 2, zeros at the right and lower border only, as the published models have it."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every value four times (nearest neighbour), then a 3 x 3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups of channels, or as many as there are channels below 32.

    Raises:
        InputError: 32 groups do not divide the channels.
    """
    groups = min(_GROUPS, channels)
    if channels % groups:
        raise InputError(
            f"{channels} channels cannot be normalised in {groups} groups",
            f"choose ch so that ch times each of ch_mult is a multiple of {_GROUPS}, such as 32, 64 or 128",
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)
