"""Convolutions over clips that never look ahead in time: the blocks of the video tokenizer.

A causal convolution pads time on the left only, so that what comes out at a frame depends on that frame and on earlier
ones (Yu et al. 2023, MAGVIT-v2). Here every 3-D kernel is factorised into one over the rows and columns of a frame and
one over the frames of a place, with norm and SiLU between them (Tran et al. 2018, "R(2+1)D"): 12 C^2 instead of 27 C^2
weights, and on a CPU about half of the time of the full kernel, or less.

What keeps the arrow of time:

* `TimeConv` of kernel k and stride s puts k - s copies of the first frame in front. Slot j then ends with frame
  s (j + 1) - 1, so that strides in a row compose: after a reduction by u in all, slot j depends on frames < (j + 1) u.
  Copies of the frame, not zeros: a clip starts as though the picture had stood still.
* `FrameNorm` is a group norm of each frame by itself. Statistics over several frames, of a group norm of the clip or of
  a batch norm, would carry the future into the past (and, in a batch norm, other clips too).
* `Upsample` lets a slot make its own frames: a convolution to s C channels, which are then laid out in time.

The blocks take and give clips (B, C, T, h, w) whose memory has the channels last, (B, T, h, w, C). In this order frames
are a batch of pictures, and the frames of all places a picture of T rows, without copying.

Shapes: B clips, C channels, T frames or time slots, (h, w) rows and columns at this level.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_frames(clips: Tensor) -> Tensor:
    """(B, C, T, h, w) -> (B * T, C, h, w): a view where channels lie last."""
    return clips.transpose(1, 2).flatten(0, 1)


def as_clips(frames: Tensor, T: int) -> Tensor:
    """(B * T, C, h, w) -> (B, C, T, h, w), the inverse of `as_frames`."""
    return frames.unflatten(0, (-1, T)).transpose(1, 2)


class FrameConv(nn.Conv2d):
    """A convolution of each frame by itself: (B, C, T, h, w) -> (B, C', T, h', w')."""

    def forward(self, x: Tensor) -> Tensor:
        return as_clips(super().forward(as_frames(x)), x.shape[2])


class FrameNorm(nn.GroupNorm):
    """Group norm of each frame by itself: up to 32 groups of at least 4 channels, eps 1e-6 as in VQGAN."""

    def __init__(self, channels: int):
        groups = math.gcd(32, channels)
        while groups > 1 and channels // groups < 4:
            groups //= 2
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return as_clips(super().forward(as_frames(x)), x.shape[2])


class TimeConv(nn.Conv2d):
    """A causal convolution over the frames of each place: (B, C, T, h, w) -> (B, C', T / stride, h, w).

    Args:
        in_channels, out_channels: C and C'.
        kernel: k frames.
        stride: s <= k; it has to divide T.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size=(kernel, 1), stride=(stride, 1))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        x = x.permute(0, 2, 3, 4, 1).flatten(2, 3)  # (B, T, h * w, C)
        ahead = x[:, :1].expand(-1, self.kernel_size[0] - self.stride[0], -1, -1)
        x = torch.cat([ahead, x], dim=1).permute(0, 3, 1, 2)  # (B, C, k - s + T, h * w): time is the rows
        return super().forward(x).unflatten(3, (h, w))


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3 x 3 within frames; norm, SiLU, 3 over time; added to the input: (B, C, T, h, w) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = FrameNorm(channels)
        self.conv1 = FrameConv(channels, channels, 3, padding=1)
        self.norm2 = FrameNorm(channels)
        self.conv2 = TimeConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(residual)))


class Downsample(nn.Module):
    """Fewer frames, rows and columns by strided convolutions: (B, C, T, h, w) -> (B, C', T / s_t, h / s_h, w / s_w).

    Args:
        strides: (s_t, s_h, s_w), each 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, strides: tuple[int, int, int]):
        super().__init__()
        self.conv = FrameConv(in_channels, out_channels, 3, stride=strides[1:], padding=1)
        self.time = TimeConv(out_channels, out_channels, stride=strides[0]) if strides[0] > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.time(self.conv(x))


class Upsample(nn.Module):
    """The way back: (B, C, T, h, w) -> (B, C', T * s_t, h * s_h, w * s_w).

    Time by a convolution to s_t C channels that become frames (sub-pixel convolution, Shi et al. 2016; Yu et al. 2023);
    rows and columns by nearest neighbours and a convolution, which leaves no checkerboard (Odena et al. 2016).
    """

    def __init__(self, in_channels: int, out_channels: int, strides: tuple[int, int, int]):
        super().__init__()
        self.strides = strides
        self.time = TimeConv(in_channels, strides[0] * in_channels) if strides[0] > 1 else None
        self.conv = FrameConv(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.time is not None:
            x = self.time(x).permute(0, 2, 3, 4, 1).unflatten(-1, (self.strides[0], -1))  # (B, T, h, w, s_t, C)
            x = x.permute(0, 1, 4, 2, 3, 5).flatten(1, 2).permute(0, 4, 1, 2, 3)  # (B, C, T * s_t, h, w)
        if self.strides[1:] != (1, 1):
            scale = tuple(float(s) for s in self.strides[1:])
            x = as_clips(F.interpolate(as_frames(x), scale_factor=scale, mode="nearest"), x.shape[2])
        return self.conv(x)
