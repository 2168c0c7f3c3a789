"""Masked autoencoders: for images (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", CVPR) and for
clips (Feichtenhofer et al. 2022, "Masked Autoencoders As Spatiotemporal Learners", NeurIPS).

A ViT encodes a small random part of the patches; a small decoder gets them back together with mask tokens and predicts
the pixels of the masked patches. One network does both; the images' objective `MAE` is below, the clips' `STMAE` in
`headcam.ssl.stmae`. Loss and weights are those of the published models, the work is less: patches are chosen before
they are embedded; the tokens stay in the order [class, visible, masked], since attention does not care (positions are
added by index); and the last decoder block forms queries for the masked tokens only, since no other enters the loss.

What sets the model for clips apart: patches are tubes of some frames, so the mask is random over space and time;
positions of encoder and decoder are learned, one vector a place plus one a time slot; and the decoder has a class token
of its own, the encoder's does not enter it.

Shapes: B batch, C channels, T frames, L patches, K visible, M masked, u frames of a tube (1 for images), P = u * p * p
* C values of a patch, Q of them predicted, D encoder width, E decoder width.
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.masking import Mask, gather_tokens, num_visible, patchify, random_mask, unpatchify
from headcam.ssl.objective import ComputeSettings, Objective, OptimizerSettings
from headcam.ssl.positions import resample, sincos_2d
from headcam.ssl.vit import SIZES, Block, Positions, VisionTransformer, init_weights, patch_grid, run_block
from headcam.video.sampling.views import ViewLaw


def normalize_patches(patches: Tensor) -> Tensor:
    """Each patch minus its mean, over its standard deviation (He et al. 2022, section 4.1): (B, M, Q) -> (B, M, Q)."""
    mean = patches.mean(dim=-1, keepdim=True)
    variance = patches.var(dim=-1, keepdim=True)  # unbiased, as published
    return (patches - mean) / (variance + 1e-6).sqrt()


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder; usable without Lightning.

    It works at the resolution that its input brings, as long as patches divide it: position tables follow (see
    `VisionTransformer.position_table`), and so does the number of visible patches.

    Args:
        img_size, patch_size, embed_dim, depth, num_heads, num_frames, tubelet_size, positions: of the encoder, see
            `VisionTransformer`. `separable` positions make it a model for clips.
        decoder_embed_dim, decoder_depth, decoder_num_heads: E and blocks of the decoder (published: 512, 8, 16; for
            clips 512, 4, 16).
        mask_ratio: fraction of patches hidden from the encoder, in [0, 1).
        norm_pix_loss: predict each patch normalised by its own mean and deviation.
        predicted_frames: what is predicted of a masked tube: `all` its frames, or the `first` one only (Feichtenhofer
            et al. 2022, section 3: a single time slice is sufficient).
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
        num_frames: int = 1,
        tubelet_size: int = 1,
        positions: Positions = "sincos",
        predicted_frames: Literal["all", "first"] = "all",
    ):
        super().__init__()
        self.encoder = VisionTransformer(
            img_size,
            patch_size,
            3,
            embed_dim,
            depth,
            num_heads,
            num_frames=num_frames,
            tubelet_size=tubelet_size,
            positions=positions,
        )
        if decoder_num_heads < 1 or decoder_embed_dim % decoder_num_heads:
            raise InputError(
                f"{decoder_num_heads} decoder heads do not divide decoder_embed_dim {decoder_embed_dim}",
                "choose a divisor as decoder_num_heads",
            )
        self.patch_size, self.tubelet_size, self.norm_pix_loss = patch_size, tubelet_size, norm_pix_loss
        self.set_mask_ratio(mask_ratio)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        learned = [self.mask_token]
        rows, columns = self.encoder.grid
        if self.for_clips:
            self.decoder_cls_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
            self.decoder_pos_embed_class = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
            self.decoder_pos_embed_spatial = nn.Parameter(torch.zeros(1, rows * columns, decoder_embed_dim))
            self.decoder_pos_embed_temporal = nn.Parameter(torch.zeros(1, self.encoder.slots, decoder_embed_dim))
            learned += [self.decoder_cls_token, self.decoder_pos_embed_class]
            learned += [self.decoder_pos_embed_spatial, self.decoder_pos_embed_temporal]
        else:
            self.decoder_pos_embed = nn.Parameter(sincos_2d(decoder_embed_dim, (rows, columns)), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(decoder_embed_dim, decoder_num_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        frames = tubelet_size if predicted_frames == "all" else 1
        self.decoder_pred = nn.Linear(decoder_embed_dim, frames * patch_size**2 * 3)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_norm, self.decoder_pred):
            init_weights(part)
        for parameter in learned:
            nn.init.normal_(parameter, std=0.02)
        self.checkpointing = False

    @property
    def for_clips(self) -> bool:
        """Whether positions are separable and the decoder has a class token of its own."""
        return self.encoder.positions == "separable"

    def set_mask_ratio(self, mask_ratio: float) -> None:
        """Hide this fraction of the patches from now on; `InputError` outside [0, 1) or where it hides none."""
        self.mask_ratio = mask_ratio
        self.num_visible(self.encoder.num_patches)

    def num_visible(self, num_patches: int) -> int:
        """K of `num_patches` patches; `InputError` where that leaves none to predict."""
        keep = num_visible(num_patches, self.mask_ratio)
        if keep == num_patches:
            raise InputError(f"mask_ratio {self.mask_ratio:g} masks none of {keep} patches", "raise it, say to 0.75")
        return keep

    def decoder_position_table(self, grid: tuple[int, int]) -> Tensor:
        """(1, 1 + L, E): what the decoder adds to its class token and patches, for a `grid` of (rows, columns).

        As in the encoder, another grid than the model's own covers the same field of view.
        """
        own = self.encoder.grid
        if self.for_clips:
            spatial = self.decoder_pos_embed_spatial
            if grid != own:
                spatial = resample(spatial, own, grid)
            temporal = self.decoder_pos_embed_temporal.repeat_interleave(grid[0] * grid[1], dim=1)
            return torch.cat([self.decoder_pos_embed_class, spatial.repeat(1, self.encoder.slots, 1) + temporal], dim=1)
        if grid == own:
            return self.decoder_pos_embed
        table = self.decoder_pos_embed
        return sincos_2d(table.shape[-1], grid, field=own, device=table.device).to(table)

    def forward_decoder(self, latent: Tensor, mask: Mask, grid: tuple[int, int] | None = None) -> Tensor:
        """Predict the masked patches: tokens (B, 1 + K, D) -> (B, M, Q) in the order of `mask.ids_masked`."""
        M = mask.ids_masked.shape[1]
        table = self.decoder_position_table(grid or self.encoder.grid)
        if self.for_clips:
            visible = self.decoder_embed(latent[:, 1:])
            cls = (self.decoder_cls_token + table[:, :1]).expand(len(latent), -1, -1)
        else:
            x = self.decoder_embed(latent)
            cls, visible = x[:, :1] + table[:, :1], x[:, 1:]
        # Rows of a table by index: unlike with `gather`, backward needs no copy of the table for every sample.
        seen, hidden = (F.embedding(ids, table[0, 1:]) for ids in mask)  # (B, K, E), (B, M, E)
        x = torch.cat([cls, visible + seen, self.mask_token + hidden], dim=1)  # (B, 1 + L, E)
        for block in self.decoder_blocks[:-1]:
            x = run_block(block, x, self.checkpointing)
        # The last block (or, without any, the cut alone) is needed for the masked tokens only.
        if len(self.decoder_blocks):
            x = run_block(self.decoder_blocks[-1], x, self.checkpointing, num_queries=M)
        else:
            x = x[:, -M:]
        return self.decoder_pred(self.decoder_norm(x))

    def target(self, patches: Tensor, mask: Mask) -> Tensor:
        """True values of what is predicted: (B, L, P) -> (B, M, Q), in the order of `mask.ids_masked`."""
        return gather_tokens(patches[..., : self.decoder_pred.out_features], mask.ids_masked)

    def forward_loss(self, target: Tensor, prediction: Tensor) -> Tensor:
        """Mean squared error over the masked patches (He et al. 2022, section 3): two (B, M, Q) -> scalar."""
        if self.norm_pix_loss:
            target = normalize_patches(target)
        return (prediction.float() - target).square().mean()

    def forward(self, images: Tensor, noise: Tensor) -> dict[str, Any]:
        """Loss and predictions.

        Args:
            images: (B, 3, H, W), or clips (B, 3, T, H, W), float, normalised.
            noise: (B, L) float; the K patches with the smallest values are visible.
        Returns:
            `loss` scalar, `prediction` (B, M, Q), `mask` a `Mask`.
        Raises:
            InputError: a picture that patches do not divide, a clip of another length than the model's, or noise that
                is not one number for each patch.
        """
        grid = patch_grid(tuple(images.shape[-2:]), self.patch_size)
        frames, L = images.shape[2] if images.ndim == 5 else 1, self.encoder.slots * grid[0] * grid[1]
        if frames != self.encoder.num_frames:
            raise InputError(
                f"input of {frames} frames does not fit a model for {self.encoder.num_frames}",
                "cut clips to its length",
            )
        if noise.shape[1] != L:
            raise InputError(f"noise of {noise.shape[1]} numbers does not fit {L} patches", "give one for each patch")
        patches = patchify(images, self.patch_size, self.tubelet_size)  # (B, L, P)
        mask = random_mask(noise, self.num_visible(L))
        latent = self.encoder.forward_patches(patches, mask.ids_keep, grid)  # (B, 1 + K, D)
        prediction = self.forward_decoder(latent, mask, grid)
        loss = self.forward_loss(self.target(patches, mask), prediction)
        return {"loss": loss, "prediction": prediction, "mask": mask}

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What the model sees and what it makes of it, in the range of `images`.

        With `norm_pix_loss` each predicted patch is put back on the true patch's mean and deviation, which the model
        does not know: such pictures show structure, not brightness (as in the paper's own visualisation). Where only
        the first frame of a tube is predicted, it stands for the others too.

        Args:
            images, noise: as in `forward`.
        Returns:
            masked, with hidden patches at zero (the mean colour), and completed, with the visible patches as they are:
            two of the shape of `images`.
        """
        out = self(images, noise)
        mask: Mask = out["mask"]
        patches = patchify(images, self.patch_size, self.tubelet_size)
        prediction = out["prediction"].to(patches.dtype)
        if self.norm_pix_loss:
            truth = self.target(patches, mask)
            deviation = (truth.var(dim=-1, keepdim=True) + 1e-6).sqrt()
            prediction = prediction * deviation + truth.mean(dim=-1, keepdim=True)
        prediction = prediction.repeat(1, 1, patches.shape[-1] // prediction.shape[-1])  # (B, M, P)
        where = mask.ids_masked.unsqueeze(-1).expand_as(prediction)
        grid = patch_grid(tuple(images.shape[-2:]), self.patch_size)
        masked, completed = (
            unpatchify(patches.scatter(1, where, hidden), self.patch_size, grid, self.tubelet_size)
            for hidden in (torch.zeros_like(prediction), prediction)
        )
        return masked, completed


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
        positions: Of the encoder: sincos (fixed, as published) or learned (as in optimized-mae).
        resolutions: Progressive resolution: optimizer step -> side of the images from then on, in pixels. Starts at
            step 0 and ends with `img_size`; null trains at `img_size` throughout. Patches keep their size in pixels, so
            that early steps have fewer of them; every resolution covers the same field of view.
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
        positions: Literal["sincos", "learned"] = "sincos",
        resolutions: dict[int, int] | None = None,
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
            positions=positions,
        )
        super().__init__(build, optimizer, compute)
        self.views = (ViewLaw("image", self.img_size, noise=self.skeleton.encoder.num_patches),)
        self.resolutions = {} if resolutions is None else self._checked(resolutions)

    @property
    def view_stages(self) -> list[tuple[int, tuple[ViewLaw, ...]]]:
        stages = []
        for step, side in self.resolutions.items():
            rows, columns = patch_grid((side, side), self.skeleton.patch_size)
            stages.append((step, (ViewLaw("image", (side, side), noise=rows * columns),)))
        return stages or super().view_stages

    def _checked(self, resolutions: dict[int, int]) -> dict[int, int]:
        """`resolutions` in the order of steps; `InputError` where they are no schedule for this model."""
        steps = sorted(resolutions)
        if not steps or steps[0] != 0:
            raise InputError(
                f"model.resolutions start at step {steps[0] if steps else 'none'}",
                "give the side of the first steps under 0, for example {0: 160, 100000: 224}",
            )
        last = resolutions[steps[-1]]
        if (last, last) != self.img_size:
            raise InputError(
                f"model.resolutions end with {last} x {last}, but img_size is {self.img_size[0]} x {self.img_size[1]}",
                "let the last side be img_size",
            )
        for side in resolutions.values():
            rows, columns = patch_grid((side, side), self.skeleton.patch_size)
            self.skeleton.num_visible(rows * columns)
        return {step: resolutions[step] for step in steps}

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
