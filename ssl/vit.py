"""The Vision Transformer that every objective trains (Dosovitskiy et al. 2021), for images and for clips.

One class serves both. An image is cut into patches, a clip into tubes of `tubelet_size` frames (Feichtenhofer et al.
2022); either way tokens are ordered time, row, column. With `num_frames` 1 the state dict has timm's names, loads into
timm's `VisionTransformer` with strict checking, and gives the same features. It differs from timm's in what it can
leave out (a masked autoencoder encodes some patches only, and no other is embedded), in its position tables
(`headcam.ssl.positions`), and in taking any grid of patches, or pictures of several sizes in one packed sequence.

A model for clips takes stills too: a still is a clip of equal frames, so its patches are embedded once, by the kernel
summed over time, and repeated over the time slots. `headcam.ssl.inflation` turns one kind of model into the other.

Under autocast the stream of tokens between the blocks stays in float32, linear maps and attention are in the lower
precision; a model cast as a whole (`.bfloat16()`) is in its own precision throughout.

Shapes: B batch, C channels, T frames, H x W pixels, p patch side, u tubelet size, t = T / u time slots,
L = t (H / p) (W / p) patches, K chosen ones, P = u p p C values of a patch, D width; tokens (B, 1 + L, D) with the
class token first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from headcam.errors import InputError
from headcam.ssl.attention import Attention, BlockDiagonal, Mask
from headcam.ssl.masking import gather_tokens, patchify
from headcam.ssl.positions import resample, sincos_2d

Positions = Literal["sincos", "learned", "separable"]


@dataclass(frozen=True)
class Size:
    """Width, depth and heads of a named model."""

    embed_dim: int
    depth: int
    num_heads: int


# ViT-Ti, S: Touvron et al. 2021 (DeiT), table 1; B, L, H: Dosovitskiy et al. 2021, table 1.
SIZES = {
    "ti": Size(192, 12, 3),
    "s": Size(384, 12, 6),
    "b": Size(768, 12, 12),
    "l": Size(1024, 24, 16),
    "h": Size(1280, 32, 16),
}


class Mlp(nn.Module):
    """Two linear layers with GELU between: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to its input."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(
        self, x: Tensor, num_queries: int | None = None, mask: Mask = None, keep: Tensor | None = None
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or only the last `num_queries` tokens of it, computed without the others.

        Args:
            mask: see `headcam.ssl.attention`.
            keep: (B, 1, 2) or (B, N, 2), factors of the two residual branches of each sample or token (stochastic
                depth: 0 drops one).
        """
        wanted = x if num_queries is None else x[:, x.shape[1] - num_queries :]
        attended = self.attn(self.norm1(x), num_queries, mask)
        if keep is None:
            x = wanted + attended
            return x + self.mlp(self.norm2(x))
        keep = keep[:, -wanted.shape[1] :].to(wanted.dtype)  # that of the stream: 1 / (1 - rate) is no bf16 number
        x = wanted + attended * keep[..., :1]
        return x + self.mlp(self.norm2(x)) * keep[..., 1:]


class PatchEmbed(nn.Module):
    """Linear map of patches, stored as the convolution that timm stores; it works on cut patches, see `patchify`."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, tubelet_size: int = 1):
        super().__init__()
        if tubelet_size == 1:
            self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        else:
            kernel = (tubelet_size, patch_size, patch_size)
            self.proj = nn.Conv3d(in_chans, embed_dim, kernel_size=kernel, stride=kernel)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, K, P) -> (B, K, D); patches of stills, (B, K, p * p * C), meet the kernel summed over time."""
        weight = self.proj.weight  # (D, C, p, p) or (D, C, u, p, p)
        if weight.ndim == 4:
            weight = weight.unsqueeze(2)
        if patches.shape[-1] < weight[0].numel():  # stills
            weight = weight.sum(dim=2, keepdim=True)
        weight = weight.permute(0, 2, 3, 4, 1).flatten(1)  # (D, u * p * p * C): patches are channel-last
        return F.linear(patches, weight, self.proj.bias)


class VisionTransformer(nn.Module):
    """A plain ViT encoder with a class token.

    Args:
        img_size: pixels, one side or (height, width).
        patch_size: p in pixels; must divide both sides.
        in_chans: C.
        embed_dim: D, a multiple of 4 and of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
        num_frames: T, 1 for images.
        tubelet_size: u, frames of a tube; must divide T.
        positions: `sincos` (MAE's fixed table) or `learned` (one vector a patch, as in DINO) for images, `separable`
            (one learned vector a place plus one a time slot, as in ST-MAE) for clips.
        drop_path_rate: stochastic depth, probability at the last block, rising linearly from 0 at the first (Huang et
            al. 2016). It acts only where noise is passed, see `forward_patches`.
        position_field: rows and columns of the grid in whose units `sincos` positions count, for a model that was
            moved to another resolution (`headcam.ssl.inflation.resize`); None: its own.
    Raises:
        InputError: a patch that does not divide the image, a tube that does not divide the clip, heads that do not
            divide the width, positions that do not fit.
    """

    num_prefix_tokens = 1
    checkpointing_part = "encoder"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_frames: int = 1,
        tubelet_size: int = 1,
        positions: Positions = "sincos",
        drop_path_rate: float = 0.0,
        position_field: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.patch_size, self.embed_dim, self.in_chans = patch_size, embed_dim, in_chans
        self.num_frames, self.tubelet_size, self.positions = num_frames, tubelet_size, positions
        self.grid = patch_grid(self.img_size, patch_size)
        self.slots = time_slots(num_frames, tubelet_size)
        self.position_field = tuple(position_field or self.grid)
        if num_heads < 1 or embed_dim % num_heads:
            raise InputError(f"{num_heads} heads do not divide embed_dim {embed_dim}", "choose a divisor as num_heads")
        if positions not in ("sincos", "learned", "separable") or (positions == "separable") != (num_frames > 1):
            raise InputError(
                f"positions {positions!r} do not fit {num_frames} frames",
                "use sincos or learned for images (num_frames 1), separable for clips",
            )
        if self.position_field != self.grid and positions != "sincos":
            raise InputError(
                f"position_field {list(self.position_field)} does not go with {positions} positions",
                "leave it out: learned positions are those of the model's own grid",
            )
        if not 0 <= drop_path_rate < 1:
            raise InputError(f"drop_path_rate is {drop_path_rate}", "give a number in [0, 1), such as 0.1")
        # Enough to build the same encoder again; it goes into the card of saved weights. What changes no feature of a
        # trained model (stochastic depth, attention backend, checkpointing) is not part of it.
        self.arguments: dict[str, Any] = {
            "img_size": list(self.img_size),
            "patch_size": patch_size,
            "in_chans": in_chans,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "num_frames": num_frames,
            "tubelet_size": tubelet_size,
            "positions": positions,
        }
        if self.position_field != self.grid:
            self.arguments["position_field"] = list(self.position_field)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, tubelet_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        places = self.grid[0] * self.grid[1]
        if positions == "separable":
            self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, embed_dim))
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, places, embed_dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, self.slots, embed_dim))
        elif positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + places, embed_dim))
        else:
            table = sincos_2d(embed_dim, self.grid, field=self.position_field)
            self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.drop_path_rates = [drop_path_rate * k / max(1, depth - 1) for k in range(depth)]
        self.checkpointing = False  # keep no block's inner activations for backward, compute them again
        init_weights(self)

    @property
    def num_patches(self) -> int:
        """L."""
        return self.slots * self.grid[0] * self.grid[1]

    def position_table(self, grid: tuple[int, int] | None = None) -> Tensor:
        """(1, 1 + L, D): what is added to the class token and to the patches, for a `grid` of (rows, columns).

        Another grid than the model's own covers the same field of view: the fixed table is evaluated in between its
        places, learned ones are interpolated (see `headcam.ssl.positions.resample`).
        """
        grid = grid or self.grid
        if self.positions == "separable":
            spatial = self.pos_embed_spatial
            if grid != self.grid:
                spatial = resample(spatial, self.grid, grid)
            patches = (self.pos_embed_temporal.unsqueeze(2) + spatial.unsqueeze(1)).flatten(1, 2)
            return torch.cat([self.pos_embed_class, patches], dim=1)
        if grid == self.grid:
            return self.pos_embed
        if self.positions == "sincos":
            table = sincos_2d(self.embed_dim, grid, field=self.position_field, device=self.pos_embed.device)
            return table.to(self.pos_embed.dtype)
        return torch.cat([self.pos_embed[:, :1], resample(self.pos_embed[:, 1:], self.grid, grid)], dim=1)

    def embed_patches(
        self, patches: Tensor, ids_keep: Tensor | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """Cut patches, all or the chosen ones, to tokens before the first block: (B, L, P) -> (B, 1 + K, D).

        Arguments as of `forward_patches`.
        """
        rows, columns = grid or self.grid
        places = rows * columns
        table = self.position_table((rows, columns))
        positions = table[:, 1:]
        # In a model for clips, the patches of one time slot are those of a still: the same picture in every slot.
        slots = self.slots if patches.shape[1] == places else 1
        if ids_keep is None:
            x = self.patch_embed(patches)
            x = x.repeat(1, slots, 1) if slots > 1 else x
        else:
            x = self.patch_embed(gather_tokens(patches, ids_keep % places if slots > 1 else ids_keep))
            # Rows of a table by index: unlike with `gather`, backward needs no copy of the table for every sample.
            positions = F.embedding(ids_keep, positions[0])
        x = x + positions  # (B, K, D)
        cls = (self.cls_token + table[:, :1]).expand(len(x), -1, -1)
        return torch.cat([cls, x], dim=1)

    def forward_tokens(self, x: Tensor, drop_noise: Tensor | None = None, mask: Mask = None) -> Tensor:
        """Blocks and final norm: (B, N, D) -> (B, N, D).

        Args:
            drop_noise: (B, depth, 2) as in `forward_patches`, or (B, N, depth, 2) with the noise of every token.
            mask: which tokens attend to which, see `headcam.ssl.attention`.
        """
        if drop_noise is not None and drop_noise.ndim == 3:
            drop_noise = drop_noise.unsqueeze(1)
        for k, block in enumerate(self.blocks):
            keep = None
            if drop_noise is not None and self.drop_path_rates[k]:
                rate = self.drop_path_rates[k]
                keep = (drop_noise[:, :, k] >= rate).float() / (1 - rate)  # (B, 1 or N, 2)
            x = run_block(block, x, self.checkpointing, mask=mask, keep=keep)
        return self.norm(x)

    def forward_patches(
        self,
        patches: Tensor,
        ids_keep: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        drop_noise: Tensor | None = None,
    ) -> Tensor:
        """Encode cut patches, all or the chosen ones.

        Args:
            patches: (B, L, P), see `patchify`.
            ids_keep: (B, K) int64, the patches that are seen; None: all.
            grid: rows and columns of the picture in patches where they are not the model's own.
            drop_noise: (B, depth, 2) uniform in [0, 1), decides which residual branches stochastic depth drops; None:
                none is dropped (evaluation).
        Returns:
            (B, 1 + K, D) after the final norm.
        """
        return self.forward_tokens(self.embed_patches(patches, ids_keep, grid), drop_noise)

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) or clips (B, C, T, H, W) -> tokens (B, 1 + L, D), the class token first.

        A model for clips takes images as clips of equal frames.
        """
        if images.shape[-2:] != self.img_size:
            raise InputError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels do not fit a model for "
                f"{self.img_size[0]} x {self.img_size[1]}",
                "resize them to the model's img_size",
            )
        return self.forward_patches(self._cut(images))

    def forward_packed(self, images: Sequence[Tensor], drop_noise: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Batches of pictures of several sizes in one sequence, in which each picture attends to itself only.

        The same numbers as `forward_patches` of each batch, by fewer and larger operations.

        Args:
            images: normalised batches (B_i, C, H_i, W_i), or clips; p divides each side.
            drop_noise: for each of them (B_i, depth, 2), see `forward_patches`; None: no branch is dropped.
        Returns:
            For each of them the tokens (B_i, 1 + L_i, D).
        """
        parts = []
        for batch in images:
            grid = patch_grid(tuple(batch.shape[-2:]), self.patch_size)
            parts.append(self.embed_patches(self._cut(batch), grid=grid))
        lengths = [(len(part), part.shape[1]) for part in parts]  # (B_i, N_i)
        mask = BlockDiagonal(tuple(n for count, n in lengths for _ in range(count)))
        if drop_noise is not None:  # (1, sum of B_i N_i, depth, 2)
            noise = [noise.repeat_interleave(n, dim=0) for noise, (_, n) in zip(drop_noise, lengths)]
            drop_noise = torch.cat(noise).unsqueeze(0)
        x = torch.cat([part.flatten(0, 1) for part in parts]).unsqueeze(0)
        x = self.forward_tokens(x, drop_noise, mask).squeeze(0)
        x = x.split([count * n for count, n in lengths])
        return [part.unflatten(0, shape) for part, shape in zip(x, lengths)]

    def _cut(self, images: Tensor) -> Tensor:
        """Patches (B, L, P) of images or clips; a clip has to be of the model's length."""
        if images.ndim == 5 and images.shape[2] != self.num_frames:
            raise InputError(
                f"clips of {images.shape[2]} frames do not fit a model for {self.num_frames}", "cut them to its length"
            )
        return patchify(images, self.patch_size, self.tubelet_size if images.ndim == 5 else 1)

    forward = forward_features


def run_block(block: Block, x: Tensor, checkpointing: bool, **how: Any) -> Tensor:
    """`block(x, **how)`; with `checkpointing`, backward computes its inside again instead of keeping it."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, **how)
    return block(x, **how)


def patch_grid(img_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches; `InputError` where the patch does not divide both sides."""
    for side in img_size:
        if patch_size < 1 or side < patch_size or side % patch_size:
            common = math.gcd(*img_size)
            divisors = [p for p in range(4, 33) if common % p == 0] or [common]
            raise InputError(
                f"patch_size {patch_size} does not divide the image side {side} of {img_size[0]} x {img_size[1]}",
                f"use a patch_size of {', '.join(map(str, divisors))}, or an img_size that {patch_size} divides",
            )
    return img_size[0] // patch_size, img_size[1] // patch_size


def time_slots(num_frames: int, tubelet_size: int) -> int:
    """Time slots of a clip; `InputError` where the tube does not divide it."""
    if num_frames < 1 or tubelet_size < 1 or num_frames % tubelet_size:
        raise InputError(
            f"tubelet_size {tubelet_size} does not divide num_frames {num_frames}",
            "use for example 16 frames in tubes of 2, or 1 and 1 for images",
        )
    return num_frames // tubelet_size


def init_weights(model: nn.Module) -> None:
    """MAE's initialisation (He et al. 2022, appendix A.1): Xavier uniform for linear maps, the patch embedding as one.

    Biases zero, norms one and zero; class and mask tokens and learned positions normal with standard deviation 0.02.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters(recurse=False):
        if parameter.requires_grad and ("token" in name or "pos_embed" in name):
            nn.init.normal_(parameter, std=0.02)
