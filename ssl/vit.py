"""The Vision Transformer that every objective trains (Dosovitskiy et al. 2021), with timm's parameter names.

It differs from timm's `VisionTransformer` in three ways: it can encode a part of the patches only (what a masked
autoencoder needs) and then embeds no other patch; its position table is MAE's fixed sin-cos one; sides of the image
need not be equal. Its state dict loads into timm's model with strict checking, and the features are the same.

Shapes: B batch, C channels, H x W pixels, p patch side, L = (H / p)(W / p) patches, D width; tokens (B, 1 + L, D) with
the class token first.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.attention import Attention
from headcam.ssl.masking import gather_tokens, patchify
from headcam.ssl.positions import sincos_2d


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

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or only the last `num_queries` tokens of it, computed without the others."""
        wanted = x if num_queries is None else x[:, x.shape[1] - num_queries :]
        x = wanted + self.attn(self.norm1(x), num_queries)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Linear map of patches, stored as the convolution that timm stores; it works on cut patches, see `patchify`."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, K, p * p * C) -> (B, K, D)."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, p * p * C): patches are channel-last
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
    Raises:
        InputError: a patch that does not divide the image, heads that do not divide the width.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.patch_size, self.embed_dim, self.in_chans = patch_size, embed_dim, in_chans
        self.grid = patch_grid(self.img_size, patch_size)
        if num_heads < 1 or embed_dim % num_heads:
            raise InputError(f"{num_heads} heads do not divide embed_dim {embed_dim}", "choose a divisor as num_heads")
        # Enough to build the same encoder again; it goes into the card of saved weights.
        self.arguments = {
            "img_size": list(self.img_size),
            "patch_size": patch_size,
            "in_chans": in_chans,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
        }
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_2d(embed_dim, self.grid), requires_grad=False)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        init_weights(self)

    @property
    def num_patches(self) -> int:
        """L."""
        return self.grid[0] * self.grid[1]

    def forward_patches(self, patches: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Encode cut patches, all or the chosen ones: (B, L, p * p * C), (B, K) -> normed tokens (B, 1 + K, D)."""
        positions = self.pos_embed[:, 1:]
        if ids_keep is not None:
            patches = gather_tokens(patches, ids_keep)
            positions = gather_tokens(positions.expand(len(patches), -1, -1), ids_keep)
        x = self.patch_embed(patches) + positions  # (B, K, D)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls, x], dim=1)  # (B, 1 + K, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised images -> tokens (B, 1 + L, D) after the final norm, the class token first."""
        if images.shape[-2:] != self.img_size:
            raise InputError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels do not fit a model for "
                f"{self.img_size[0]} x {self.img_size[1]}",
                "resize them to the model's img_size",
            )
        return self.forward_patches(patchify(images, self.patch_size))

    forward = forward_features


def patch_grid(img_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches; `InputError` where the patch does not divide both sides."""
    for side in img_size:
        if patch_size < 1 or side < patch_size or side % patch_size:
            divisors = [p for p in range(4, side + 1) if side % p == 0 and p <= 32] or [side]
            raise InputError(
                f"patch_size {patch_size} does not divide the image side {side} of {img_size[0]} x {img_size[1]}",
                f"use a patch_size of {', '.join(map(str, divisors))}, or an img_size that {patch_size} divides",
            )
    return img_size[0] // patch_size, img_size[1] // patch_size


def init_weights(model: nn.Module) -> None:
    """MAE's initialisation (He et al. 2022, appendix A.1): Xavier uniform for linear maps, the patch embedding as one.

    Biases zero, norms one and zero, class and mask tokens normal with standard deviation 0.02.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for name in ("cls_token", "mask_token"):
        if isinstance(getattr(model, name, None), nn.Parameter):
            nn.init.normal_(getattr(model, name), std=0.02)
