"""Spatiotemporal masked autoencoder (Feichtenhofer et al. 2022, "Masked Autoencoders As Spatiotemporal Learners",
NeurIPS; arXiv 2205.09113), as used for HVM-1 (Orhan 2024, arXiv 2407.18067) and the video models before it.

A clip is cut into tubes of two frames by a patch; nine of ten are hidden, at random over space and time alike, and the
rest is encoded. Network, loss and completions are those of `headcam.ssl.mae.MaskedAutoencoder`; what clips add is here:
their size in a batch, several views of one decoded clip, and the pixels' normalisation.

VideoMAE (Tong et al. 2022) is another model: it hides the same places in all time slots, has no class token, and its
positions are fixed.
"""

from functools import partial
from typing import Literal

from torch import Tensor

from headcam.errors import InputError
from headcam.ssl.mae import MaskedAutoencoder
from headcam.ssl.objective import ComputeSettings, Objective, OptimizerSettings
from headcam.ssl.vit import SIZES
from headcam.video.sampling.views import ViewLaw


class STMAE(Objective):
    """Spatiotemporal masked autoencoding as a Lightning module.

    Args:
        size: named encoder: ti, s, b, l or h. `embed_dim`, `depth` and `num_heads` override it one by one.
        img_size: Pixels, one side or [height, width]; `patch_size` must divide both.
        patch_size: Side of a patch in pixels (14 and 16 are usual).
        embed_dim: Width of the encoder; null takes that of `size`.
        depth: Blocks of the encoder; null takes that of `size`.
        num_heads: Attention heads of the encoder; null takes that of `size`.
        num_frames: Frames of a clip (published: 16); how far apart they are is `data.step_s`.
        tubelet_size: Frames of a tube (published: 2); must divide `num_frames`.
        decoder_embed_dim: Width of the decoder (published: 512).
        decoder_depth: Blocks of the decoder (published: 4).
        decoder_num_heads: Attention heads of the decoder (published: 16).
        mask_ratio: Fraction of tubes hidden from the encoder (published: 0.9; HVM-1 at 448 pixels: 0.95).
        predicted_frames: What is predicted of a hidden tube: all its frames (HVM-1), or the first one only, half the
            work of the last layer (as published).
        norm_pix_loss: Predict patches normalised by their own mean and deviation (published: true; HVM-1: false).
        repeats: Views of every decoded clip, each with a crop, flip and mask of its own; a batch of B clips is one of
            B x repeats for the model and for the learning rate. Decoding is what clips cost; repeats share it.
        optimizer: AdamW and its schedule.
        compute: Attention backend, checkpointing, compilation.
    """

    name = "stmae"
    # One for all channels, as published for clips (images have ImageNet's).
    mean = (0.45, 0.45, 0.45)
    std = (0.225, 0.225, 0.225)

    def __init__(
        self,
        size: Literal["ti", "s", "b", "l", "h"] = "s",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        num_frames: int = 16,
        tubelet_size: int = 2,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 4,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.9,
        predicted_frames: Literal["all", "first"] = "all",
        norm_pix_loss: bool = False,
        repeats: int = 1,
        optimizer: OptimizerSettings | None = None,
        compute: ComputeSettings | None = None,
    ):
        if num_frames < 2:
            raise InputError(f"model.num_frames is {num_frames}", "give clips of 2 frames or more; MAE is for images")
        if repeats < 1:
            raise InputError(f"model.repeats is {repeats}", "give the views of a decoded clip, at least 1")
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
            num_frames=num_frames,
            tubelet_size=tubelet_size,
            positions="separable",
            predicted_frames=predicted_frames,
        )
        super().__init__(build, optimizer, compute)
        self.num_frames, self.repeats = num_frames, repeats
        # One view is a law without `count`, so that a batch of single views looks like a batch of held-out ones.
        count = repeats if repeats > 1 else None
        self.views = (ViewLaw("clip", self.img_size, count, noise=self.skeleton.encoder.num_patches),)

    @property
    def views_per_sample(self) -> int:
        return self.repeats

    def forward(self, clips: Tensor) -> Tensor:
        """Features for probes: normalised clips (B, 3, T, H, W) or stills (B, 3, H, W) -> tokens (B, 1 + L, D)."""
        return self.encoder.forward_features(clips)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One batch: `clip` uint8 (B, 3, T, H, W), `noise` (B, L); with repeats (B, R, 3, T, H, W), (B, R, L)."""
        clips, noise = batch["clip"], batch["noise"]
        if clips.ndim == 6:
            clips, noise = clips.flatten(0, 1), noise.flatten(0, 1)  # (B * R, ...)
        return {"loss": self.network(self.normalize(clips), noise)["loss"]}

    def reconstruct(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised clips, masked clips and completions of a batch of single views, each (B, 3, T, H, W)."""
        clips = self.normalize(batch["clip"])
        return clips, *self.network.reconstruct(clips, batch["noise"])
