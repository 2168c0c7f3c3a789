"""Masked autoencoder for images (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", CVPR).

A ViT encodes a random quarter of the patches; a small decoder gets them back together with mask tokens and predicts
the pixels of the masked patches. Loss and weights are those of the published model, the work is less: patches are
chosen before they are embedded; the tokens stay in the order [class, visible, masked], since attention does not care
(positions are added by index); and the last decoder block forms queries for the masked tokens only, since no other
enters the loss.

Shapes: B batch, C channels, L patches, K visible, M masked, P = p * p * C pixels of a patch, D encoder width, E decoder
width.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.masking import Mask, gather_tokens, num_visible, patchify, random_mask, unpatchify
from headcam.ssl.objective import ComputeSettings, Objective, OptimizerSettings
from headcam.ssl.positions import sincos_2d
from headcam.ssl.vit import SIZES, Block, VisionTransformer, init_weights, run_block
from headcam.video.sampling.views import ViewLaw


def normalize_patches(patches: Tensor) -> Tensor:
    """Each patch minus its mean, over its standard deviation (He et al. 2022, section 4.1): (B, M, P) -> (B, M, P)."""
    mean = patches.mean(dim=-1, keepdim=True)
    variance = patches.var(dim=-1, keepdim=True)  # unbiased, as published
    return (patches - mean) / (variance + 1e-6).sqrt()


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder; usable without Lightning.

    Args:
        img_size, patch_size, embed_dim, depth, num_heads: of the encoder, see `VisionTransformer`.
        decoder_embed_dim, decoder_depth, decoder_num_heads: E and blocks of the decoder (published: 512, 8, 16).
        mask_ratio: fraction of patches hidden from the encoder, in [0, 1).
        norm_pix_loss: predict each patch normalised by its own mean and deviation.
    Raises:
        InputError: sizes that do not fit, `mask_ratio` outside [0, 1).
    """

    checkpointing_part = "decoder"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = True,
    ):
        super().__init__()
        self.encoder = VisionTransformer(img_size, patch_size, 3, embed_dim, depth, num_heads)
        if decoder_num_heads < 1 or decoder_embed_dim % decoder_num_heads:
            raise InputError(
                f"{decoder_num_heads} decoder heads do not divide decoder_embed_dim {decoder_embed_dim}",
                "choose a divisor as decoder_num_heads",
            )
        self.patch_size, self.norm_pix_loss = patch_size, norm_pix_loss
        self.keep = num_visible(self.encoder.num_patches, mask_ratio)
        if self.keep == self.encoder.num_patches:
            raise InputError(f"mask_ratio {mask_ratio:g} masks none of {self.keep} patches", "raise it, say to 0.75")
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(sincos_2d(decoder_embed_dim, self.encoder.grid), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(decoder_embed_dim, decoder_num_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * 3)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_norm, self.decoder_pred):
            init_weights(part)
        nn.init.normal_(self.mask_token, std=0.02)
        self.checkpointing = False

    def forward_decoder(self, latent: Tensor, mask: Mask) -> Tensor:
        """Predict the masked patches: tokens (B, 1 + K, D) -> (B, M, P) in the order of `mask.ids_masked`."""
        x = self.decoder_embed(latent)  # (B, 1 + K, E)
        B, M = mask.ids_masked.shape
        positions = self.decoder_pos_embed[:, 1:].expand(B, -1, -1)
        x = torch.cat(
            [
                x[:, :1] + self.decoder_pos_embed[:, :1],
                x[:, 1:] + gather_tokens(positions, mask.ids_keep),
                self.mask_token + gather_tokens(positions, mask.ids_masked),
            ],
            dim=1,
        )  # (B, 1 + L, E)
        for block in self.decoder_blocks[:-1]:
            x = run_block(block, x, self.checkpointing)
        # The last block (or, without any, the cut alone) is needed for the masked tokens only.
        if len(self.decoder_blocks):
            x = run_block(self.decoder_blocks[-1], x, self.checkpointing, num_queries=M)
        else:
            x = x[:, -M:]
        return self.decoder_pred(self.decoder_norm(x))

    def forward_loss(self, target: Tensor, prediction: Tensor) -> Tensor:
        """Mean squared error over the masked patches (He et al. 2022, section 3): two (B, M, P) -> scalar."""
        if self.norm_pix_loss:
            target = normalize_patches(target)
        return (prediction.float() - target).square().mean()

    def forward(self, images: Tensor, noise: Tensor) -> dict[str, Any]:
        """Loss and predictions.

        Args:
            images: (B, 3, H, W) float, normalised.
            noise: (B, L) float; the K patches with the smallest values are visible.
        Returns:
            `loss` scalar, `prediction` (B, M, P), `mask` a `Mask`.
        """
        mask = random_mask(noise, self.keep)
        patches = patchify(images, self.patch_size)  # (B, L, P)
        latent = self.encoder.forward_patches(patches, mask.ids_keep)  # (B, 1 + K, D)
        prediction = self.forward_decoder(latent, mask)
        loss = self.forward_loss(gather_tokens(patches, mask.ids_masked), prediction)
        return {"loss": loss, "prediction": prediction, "mask": mask}

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What the model sees and what it makes of it, in the range of `images`.

        With `norm_pix_loss` each predicted patch is put back on the true patch's mean and deviation, which the model
        does not know: such pictures show structure, not brightness (as in the paper's own visualisation).

        Returns:
            masked (B, 3, H, W) with hidden patches at zero (the mean colour), completed (B, 3, H, W) with the visible
            patches as they are.
        """
        out = self(images, noise)
        mask: Mask = out["mask"]
        patches = patchify(images, self.patch_size)
        prediction = out["prediction"].to(patches.dtype)
        if self.norm_pix_loss:
            truth = gather_tokens(patches, mask.ids_masked)
            deviation = (truth.var(dim=-1, keepdim=True) + 1e-6).sqrt()
            prediction = prediction * deviation + truth.mean(dim=-1, keepdim=True)
        where = mask.ids_masked.unsqueeze(-1).expand_as(prediction)
        grid = self.encoder.grid
        masked = patches.scatter(1, where, 0.0)
        completed = patches.scatter(1, where, prediction)
        return unpatchify(masked, self.patch_size, grid), unpatchify(completed, self.patch_size, grid)


class MAE(Objective):
    """Masked autoencoding as a Lightning module.

    Args:
        size: named encoder: ti, s, b, l or h. `embed_dim`, `depth` and `num_heads` override it one by one.
        img_size: Pixels, one side or [height, width]; `patch_size` must divide both.
        patch_size: Side of a patch in pixels (8, 14 and 16 are usual).
        embed_dim: Width of the encoder; null takes that of `size`.
        depth: Blocks of the encoder; null takes that of `size`.
        num_heads: Attention heads of the encoder; null takes that of `size`.
        decoder_embed_dim: Width of the decoder (published: 512).
        decoder_depth: Blocks of the decoder (published: 8).
        decoder_num_heads: Attention heads of the decoder (published: 16).
        mask_ratio: Fraction of patches hidden from the encoder (published: 0.75).
        norm_pix_loss: Predict patches normalised by their own mean and deviation (published recipe: true).
        optimizer: AdamW and its schedule.
        compute: Attention backend, checkpointing, compilation.
    """

    name = "mae"

    def __init__(
        self,
        size: Literal["ti", "s", "b", "l", "h"] = "s",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = True,
        optimizer: OptimizerSettings | None = None,
        compute: ComputeSettings | None = None,
    ):
        named = SIZES[size]
        build = partial(
            MaskedAutoencoder,
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim or named.embed_dim,
            depth=depth or named.depth,
            num_heads=num_heads or named.num_heads,
            decoder_embed_dim=decoder_embed_dim,
            decoder_depth=decoder_depth,
            decoder_num_heads=decoder_num_heads,
            mask_ratio=mask_ratio,
            norm_pix_loss=norm_pix_loss,
        )
        super().__init__(build, optimizer, compute)
        self.views = (ViewLaw("image", self.img_size, noise=self.skeleton.encoder.num_patches),)

    def forward(self, images: Tensor) -> Tensor:
        """Features for probes: normalised (B, 3, H, W) -> tokens (B, 1 + L, D)."""
        return self.encoder.forward_features(images)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One batch: `image` uint8 (B, 3, H, W), `noise` (B, L)."""
        return {"loss": self.network(self.normalize(batch["image"]), batch["noise"])["loss"]}

    def reconstruct(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised pictures, masked pictures and completions of a batch, each (B, 3, H, W)."""
        images = self.normalize(batch["image"])
        return images, *self.network.reconstruct(images, batch["noise"])
