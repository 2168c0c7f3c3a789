"""A tokenizer of pictures whose encoder and decoder are plain Vision Transformers.

The transformer autoencoder of the original (TAE): patches, learned positions, blocks, a linear map to a few channels a
patch; the same way back, with a linear map to the pixels of each patch at its end. No class token, no convolution but
the cut into patches. Unlike there the channels are quantized, so that a picture is h x w tokens; finite scalar
quantization (Mentzer et al. 2024) by default, which has no codebook that could collapse. It learns by reconstruction
alone: no adversary is needed, and what it blurs is a matter of its size and of the loss.

Encoder and decoder are made of the blocks of `headcam.ssl.vit`, so that attention backends and checkpointing are chosen
as everywhere, and its `SIZES` name widths and depths.

Shapes: B batch, H x W pixels, p patch side, (h, w) grid, L = h w patches, D width of latents.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.masking import patchify, unpatchify
from headcam.ssl.vit import Block, PatchEmbed, init_weights, patch_grid, run_block
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer
from headcam.tokenizers.quantizers.table import build_quantizer


class ViTTokenizer(Tokenizer):
    """Pictures to a grid of tokens and back.

    Args:
        img_size: pixels, one side or (height, width).
        patch_size: p, must divide both sides.
        embed_dim, depth, num_heads: width, blocks and heads of the encoder, and again of the decoder (as in
            `headcam.ssl.vit.SIZES`; the default is ViT-S).
        latent_dim: D, channels of a patch that the quantizer sees.
        codebook_size: K.
        quantizer, quantizer_options: see `headcam.tokenizers.quantizers.table`.
    Raises:
        InputError: a patch that does not divide the picture, heads that do not divide the width.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        latent_dim: int = 64,
        codebook_size: int = 8192,
        quantizer: str = "fsq",
        quantizer_options: Mapping[str, Any] | None = None,
    ):
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        grid = patch_grid(size, patch_size)
        if num_heads < 1 or embed_dim % num_heads:
            raise InputError(f"{num_heads} heads do not divide embed_dim {embed_dim}", "choose a divisor as num_heads")
        super().__init__(size, grid, build_quantizer(quantizer, codebook_size, latent_dim, quantizer_options))
        self.arguments = {
            "img_size": list(size),
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "latent_dim": latent_dim,
            "codebook_size": codebook_size,
            "quantizer": quantizer,
            "quantizer_options": dict(quantizer_options or {}),
        }
        self.encoder = Encoder(grid, patch_size, embed_dim, depth, num_heads, latent_dim)
        self.decoder = Decoder(grid, patch_size, embed_dim, depth, num_heads, latent_dim)

    def latents(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def pixels(self, quantized: Tensor) -> Tensor:
        return self.decoder(quantized)


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, D, h, w).

    Attributes:
        checkpointing: compute inner activations of the blocks again in backward instead of keeping them.
    """

    checkpointing_part = "encoder"

    def __init__(
        self, grid: tuple[int, int], patch_size: int, embed_dim: int, depth: int, num_heads: int, latent_dim: int
    ):
        super().__init__()
        self.grid, self.patch_size = grid, patch_size
        self.patch_embed = PatchEmbed(patch_size, 3, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, latent_dim)
        self.checkpointing = False
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(patchify(images, self.patch_size)) + self.pos_embed  # (B, L, embed_dim)
        for block in self.blocks:
            x = run_block(block, x, self.checkpointing)
        return self.head(self.norm(x)).transpose(1, 2).unflatten(2, self.grid)


class Decoder(nn.Module):
    """(B, D, h, w) -> (B, 3, H, W); attributes as of `Encoder`."""

    checkpointing_part = "decoder"

    def __init__(
        self, grid: tuple[int, int], patch_size: int, embed_dim: int, depth: int, num_heads: int, latent_dim: int
    ):
        super().__init__()
        self.grid, self.patch_size = grid, patch_size
        self.embed = nn.Linear(latent_dim, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        # Losses that weigh gradients at the last layer find it by this name, that of the convolutional tokenizers.
        self.conv_out = nn.Linear(embed_dim, patch_size**2 * 3)
        self.checkpointing = False
        init_weights(self)

    def forward(self, quantized: Tensor) -> Tensor:
        x = self.embed(quantized.flatten(2).transpose(1, 2)) + self.pos_embed  # (B, L, embed_dim)
        for block in self.blocks:
            x = run_block(block, x, self.checkpointing)
        return unpatchify(self.conv_out(self.norm(x)), self.patch_size, self.grid)
