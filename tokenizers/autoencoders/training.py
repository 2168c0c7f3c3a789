"""Training of tokenizers: reconstruct, look right to a network, fool an adversary, keep the codes in use.

    pixels ─▶ tokenizer ─▶ reconstruction ─┬─▶ l1 or l2 ────────────┐
                 │                         ├─▶ LPIPS, if weights ───┼─▶ loss ─▶ one backward, one AdamW
                 └─▶ quantizer's loss      └─▶ discriminator, if any┘
                                                (weights frozen: moves the tokenizer alone)
                         pixels, reconstruction cut off ─▶ discriminator ─▶ hinge loss (moves the discriminator alone)

`VQGAN` (Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", CVPR), `VideoVQGAN` (Ge et al.
2022, TATS, with causal convolutions) and `ViTVQ` differ in their tokenizer and in what is judged. The losses
themselves are in `headcam.tokenizers.losses`.

The published code takes two optimizers in turn. Here both halves come from one forward pass and one optimizer steps
both: the tokenizer's adversarial term goes through the discriminator with its weights detached, the discriminator's
loss sees reconstructions that are detached, so neither reaches the other's weights, and since AdamW does not care for
the scale of a gradient the steps are those of two optimizers. (`trainer.gradient_clip_val` clips both halves by their
common norm.) The discriminator learns from the first step on and is listened to from `loss.adversarial_start` on.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from headcam.errors import InputError
from headcam.ssl.objective import ComputeSettings, Objective, OptimizerSettings
from headcam.ssl.training.distributed import say_once
from headcam.ssl.vit import SIZES
from headcam.tokenizers.autoencoders.conv_tokenizer import ConvTokenizer
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer, load_tokenizer
from headcam.tokenizers.autoencoders.usage_watch import CodebookUsage
from headcam.tokenizers.autoencoders.video_tokenizer import VideoTokenizer
from headcam.tokenizers.autoencoders.vit_tokenizer import ViTTokenizer
from headcam.tokenizers.losses.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    frozen,
    generator_loss,
)
from headcam.tokenizers.losses.lpips import LPIPS, load_perceptual, perceptual_trunk
from headcam.tokenizers.losses.settings import LossSettings
from headcam.tokenizers.published.zoo import open_source
from headcam.tokenizers.quantizers.quantizer import Quantized
from headcam.video.sampling.views import ViewLaw


class TokenizerNetwork(nn.Module):
    """A tokenizer, and the discriminators that judge it in training.

    Attributes:
        encoder: the whole tokenizer; so called since it is what is saved and used elsewhere.
        discriminator: none, one for pictures, or for clips two: of a frame and of the whole.
    """

    def __init__(self, tokenizer: Callable[[], Tokenizer], loss: LossSettings):
        super().__init__()
        self.encoder = tokenizer()
        sizes: list[tuple[int, ...]] = []
        if loss.adversarial_weight:
            sizes.append(self.encoder.img_size)
            if self.encoder.num_frames > 1:
                sizes.append((self.encoder.num_frames, *self.encoder.img_size))
        self.discriminator = nn.ModuleList(PatchDiscriminator(size, loss.disc_ch, loss.disc_layers) for size in sizes)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Quantized]:
        """As of the tokenizer."""
        return self.encoder(images, noise)


class TokenizerObjective(Objective):
    """What the training of all tokenizers has in common.

    Args:
        tokenizer: makes one at random initialisation; its pixels are normalised to -1..1.
        loss: see `LossSettings`.
        optimizer, compute: see `Objective`.

    Attributes:
        tokens: (B, *grid) int64 of the newest batch, for those who count codes.
    """

    def __init__(
        self,
        tokenizer: Callable[[], Tokenizer],
        loss: LossSettings | None,
        optimizer: OptimizerSettings | None,
        compute: ComputeSettings | None,
    ):
        self.loss_settings = loss or LossSettings()
        super().__init__(partial(TokenizerNetwork, tokenizer, self.loss_settings), optimizer, compute)
        skeleton: Tokenizer = self.skeleton.encoder
        self.num_frames, self.mean, self.std = skeleton.num_frames, skeleton.mean, skeleton.std
        # Numbers that come with a view: which frame of a clip is looked at alone, and what a quantizer draws.
        noise = (self.num_frames > 1) + skeleton.quantizer.draws
        self.views = (ViewLaw("clip" if self.num_frames > 1 else "image", self.img_size, noise=noise),)
        self.tokens: Tensor | None = None
        self._perceptual: list[LPIPS] = []  # in a list, so that it is no submodule: neither trained nor saved
        self._trunk: str | None = None  # of LPIPS, known before a plan, which can read no files
        if self.loss_settings.perceptual:
            with suppress(InputError):  # a run says so when it starts; what is trained already needs no such file
                self._trunk = perceptual_trunk(self.loss_settings.perceptual)

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            raise InputError(
                "the weights of a tokenizer in training cannot be spread over processes",
                "set trainer.strategy to ddp; a tokenizer fits on one device",
            )
        super().configure_model()

    def open_initial(self, source: str) -> tuple[nn.Module, dict[str, Any]]:
        """A tokenizer of a run, or `zoo:NAME`, or a published file."""
        return open_source(source, load_tokenizer)

    def configure_callbacks(self) -> list[Callback]:
        """The watch over codes, where the trainer was not given one."""
        return [] if any(isinstance(c, CodebookUsage) for c in self.trainer.callbacks) else [CodebookUsage()]

    def setup(self, stage: str) -> None:
        """Load the perceptual network before anything is built or written, and say what it is."""
        if self._perceptual or stage != "fit":
            return
        if not self.loss_settings.perceptual:
            say_once("training without a perceptual loss (model.loss.perceptual is null): expect softer pictures")
            return
        say_once(f"perceptual loss: {self.perceptual(torch.empty(0)).source}; trained on ImageNet labels")

    def perceptual(self, like: Tensor) -> LPIPS:
        """LPIPS on the device of `like`; without weights where `like` has no numbers either (plans, counts of work)."""
        if _is_planned(like):
            trunk = self._trunk or perceptual_trunk(self.loss_settings.perceptual)
            with torch.device(like.device):
                return LPIPS(trunk)
        if not self._perceptual:
            self._perceptual.append(load_perceptual(self.loss_settings.perceptual))
        return self._perceptual[0].to(like.device)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One batch: `image` uint8 (B, 3, H, W) or `clip` (B, 3, T, H, W), and `noise` (B, n) where some is asked for.

        In validation `loss` is the sum of the weighted `reconstruction` and `perceptual` and of the `quantizer`'s
        terms; nothing is drawn, so it is the same for the same weights. In training those of the adversary are added.
        `psnr` is in dB, of pixels in 0..1, mean over pictures.
        """
        law, settings, step = self.views[0], self.loss_settings, self._step()
        images, noise = self.normalize(batch[law.name]), batch.get(law.noise_key)
        quantizer = self.network.encoder.quantizer
        if self.training:
            quantizer.set_step(step)
        out, codes = self.network(images, noise[:, -1] if self.training and quantizer.draws else None)
        out = out.float()
        if not _is_planned(out):
            self.tokens = codes.indices.detach()

        difference = (out - images).abs() if settings.reconstruction == "l1" else (out - images).square()
        values = {"reconstruction": difference.mean(), "quantizer": codes.loss, "psnr": psnr(out, images).mean()}
        nll = settings.reconstruction_weight * values["reconstruction"]
        stills = self.stills(images, noise), self.stills(out, noise)
        if settings.perceptual:
            values["perceptual"] = self.perceptual(out)(*stills).mean()
            nll = nll + settings.perceptual_weight * values["perceptual"]
        loss = nll + codes.loss
        if self.training and len(self.network.discriminator):
            # The first discriminator judges stills; the second one, of clips, the whole.
            real, fake = (stills[0], images), (stills[1], out)
            added, told = self._adversary(real, fake, nll, self._ramp(step))
            loss, values = loss + added, values | told
        return {"loss": loss, **values}

    def stills(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """Pictures (B, 3, H, W) as they are; of clips (B, 3, T, H, W) one frame each, as `noise` (B, n) draws it."""
        if images.ndim == 4:
            return images
        frame = (noise[:, 0] * images.shape[2]).long().clamp(max=images.shape[2] - 1)
        return images[torch.arange(len(images), device=images.device), :, frame]

    def _adversary(
        self, real: Sequence[Tensor], fake: Sequence[Tensor], nll: Tensor, ramp: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the adversary adds to the loss, and its figures.

        Args:
            real, fake: what each discriminator judges, of the data and of the tokenizer.
            nll: the tokenizer's other terms, for the adaptive weight.
            ramp: share of the adversarial weight that counts, in [0, 1].
        """
        settings, judges = self.loss_settings, self.network.discriminator
        # Group norm keeps samples apart, so that both go in at once.
        scores = [judge(torch.cat([a, b.detach()])).chunk(2) for judge, a, b in zip(judges, real, fake)]
        added = sum(discriminator_loss(a, b) for a, b in scores)
        values = {
            "discriminator": added,
            "score_real": torch.stack([a.detach().float().mean() for a, _ in scores]).mean(),
            "score_fake": torch.stack([b.detach().float().mean() for _, b in scores]).mean(),
            "adversarial_weight": torch.zeros_like(nll, requires_grad=False),
        }
        if ramp:
            values["adversarial"] = sum(generator_loss(frozen(judge)(b)) for judge, b in zip(judges, fake))
            weight = torch.full_like(nll, settings.adversarial_weight * ramp, requires_grad=False)
            if settings.adversarial_adaptive:
                last_layer = self.network.encoder.decoder.conv_out.weight
                weight = weight * adaptive_weight(nll, values["adversarial"], last_layer)
            values["adversarial_weight"] = weight
            added = added + weight * values["adversarial"]
        return added, values

    def _ramp(self, step: int) -> float:
        """As `LossSettings.ramp`; all of it where no run is under way, so that a plan is for the larger step."""
        return 1.0 if self._trainer is None else self.loss_settings.ramp(step)

    def _step(self) -> int:
        return 0 if self._trainer is None else self.global_step

    def after_optimizer_step(self) -> None:
        """Codebooks that follow averages, and codes that get a new place; nothing of it where the step was skipped."""
        self.encoder.quantizer.after_step(self.global_step, self.step_check.bad)

    @torch.no_grad()
    def reconstruct(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Normalised pictures or clips of a batch, and what the tokenizer makes of them."""
        images, training = self.normalize(batch[self.views[0].name]), self.network.training
        self.network.eval()
        out, _ = self.network(images)
        self.network.train(training)
        return images, out.float()

    def card(self) -> dict[str, Any]:
        """As of all objectives, with the losses it was trained by; a perceptual network means labels of ImageNet."""
        settings = asdict(self.loss_settings)
        if self.loss_settings.perceptual:
            trained = self._perceptual[0].source if self._perceptual else "LPIPS"
            settings["perceptual"] = f"{trained}; trained on ImageNet labels"
        return {**super().card(), "losses": settings}


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], clipped to it: two (B, ...) -> (B,) without gradient."""
    with torch.no_grad():
        error = (images.clamp(-1, 1) - others.clamp(-1, 1)).float().square().flatten(1).mean(1) / 4  # of pixels in 0..1
        return -10 * error.clamp_min(1e-10).log10()


def _is_planned(tensor: Tensor) -> bool:
    """Whether the tensor has a shape but no numbers."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


class VQGAN(TokenizerObjective):
    """Training of the convolutional tokenizer of pictures.

    Args:
        img_size: Pixels, one side or [height, width]; 2^(levels - 1) must divide both.
        ch: Channels at full resolution (published: 128).
        ch_mult: Factor of the channels at every level; each level but the first halves the resolution.
        num_res_blocks: Residual blocks of a level (published: 2; the decoder has one more).
        attn_resolutions: Rows of the maps that attend, such as 32 for the grid of 256 pixels at an eighth.
        z_channels: Channels between encoder and quantizer (published: 256).
        embed_dim: Width of latents (published: 256).
        codebook_size: Codes.
        quantizer: vq, ema, fsq, lfq or gumbel.
        quantizer_options: Of that quantizer, see headcam.tokenizers.quantizers; null: its defaults.
        loss: Terms and weights; adversary and perceptual network.
        optimizer: AdamW and its schedule.
        compute: Attention backend, checkpointing, compilation.
    """

    name = "vqgan"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        ch: int = 128,
        ch_mult: tuple[int, ...] = (1, 1, 2, 4),
        num_res_blocks: int = 2,
        attn_resolutions: tuple[int, ...] = (32,),
        z_channels: int = 256,
        embed_dim: int = 256,
        codebook_size: int = 8192,
        quantizer: Literal["vq", "ema", "fsq", "lfq", "gumbel"] = "vq",
        quantizer_options: dict[str, Any] | None = None,
        loss: LossSettings | None = None,
        optimizer: OptimizerSettings | None = None,
        compute: ComputeSettings | None = None,
    ):
        tokenizer = partial(
            ConvTokenizer,
            img_size=img_size,
            ch=ch,
            ch_mult=ch_mult,
            num_res_blocks=num_res_blocks,
            attn_resolutions=attn_resolutions,
            z_channels=z_channels,
            embed_dim=embed_dim,
            codebook_size=codebook_size,
            quantizer=quantizer,
            quantizer_options=quantizer_options,
        )
        super().__init__(tokenizer, loss, optimizer, compute)


class VideoVQGAN(TokenizerObjective):
    """Training of the causal tokenizer of clips.

    The perceptual network and the picture discriminator look at one frame of each clip, drawn with the sample, a
    discriminator of its own at the whole clip (as in TATS).

    Args:
        img_size: Pixels, one side or [height, width]; `downsample` must divide both.
        num_frames: Frames of a clip; how far apart they are is `data.step_s`.
        downsample: Frames, rows and columns of a token, each a power of two.
        ch: Channels at full resolution; doubled at every level.
        num_res_blocks: Residual blocks of a level.
        codebook_size: Codes.
        embed_dim: Width of latents (published: 256).
        quantizer: vq, ema, fsq, lfq or gumbel.
        quantizer_options: Of that quantizer, see headcam.tokenizers.quantizers; null: its defaults.
        loss: Terms and weights; adversary and perceptual network.
        optimizer: AdamW and its schedule.
        compute: Attention backend, checkpointing, compilation.
    """

    name = "video_vqgan"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        num_frames: int = 16,
        downsample: tuple[int, int, int] = (4, 16, 16),
        ch: int = 32,
        num_res_blocks: int = 2,
        codebook_size: int = 16_384,
        embed_dim: int = 256,
        quantizer: Literal["vq", "ema", "fsq", "lfq", "gumbel"] = "vq",
        quantizer_options: dict[str, Any] | None = None,
        loss: LossSettings | None = None,
        optimizer: OptimizerSettings | None = None,
        compute: ComputeSettings | None = None,
    ):
        tokenizer = partial(
            VideoTokenizer,
            img_size=img_size,
            num_frames=num_frames,
            downsample=downsample,
            ch=ch,
            num_res_blocks=num_res_blocks,
            codebook_size=codebook_size,
            embed_dim=embed_dim,
            quantizer=quantizer,
            quantizer_options=quantizer_options,
        )
        super().__init__(tokenizer, loss, optimizer, compute)


class ViTVQ(TokenizerObjective):
    """Training of the plain-ViT tokenizer of pictures; meant to be trained without an adversary.

    Args:
        size: named encoder and decoder: ti, s, b, l or h. `embed_dim`, `depth` and `num_heads` override it one by one.
        img_size: Pixels, one side or [height, width]; `patch_size` must divide both.
        patch_size: Side of a patch in pixels, which is a token.
        embed_dim: Width; null takes that of `size`.
        depth: Blocks of the encoder, and of the decoder; null takes that of `size`.
        num_heads: Attention heads; null takes that of `size`.
        latent_dim: Width of latents.
        codebook_size: Codes.
        quantizer: vq, ema, fsq, lfq or gumbel.
        quantizer_options: Of that quantizer, see headcam.tokenizers.quantizers; null: its defaults.
        loss: Terms and weights; adversary and perceptual network.
        optimizer: AdamW and its schedule.
        compute: Attention backend, checkpointing, compilation.
    """

    name = "vit_vq"

    def __init__(
        self,
        size: Literal["ti", "s", "b", "l", "h"] = "s",
        img_size: int | tuple[int, int] = 256,
        patch_size: int = 16,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        latent_dim: int = 64,
        codebook_size: int = 8192,
        quantizer: Literal["vq", "ema", "fsq", "lfq", "gumbel"] = "fsq",
        quantizer_options: dict[str, Any] | None = None,
        loss: LossSettings | None = None,
        optimizer: OptimizerSettings | None = None,
        compute: ComputeSettings | None = None,
    ):
        named = SIZES[size]
        tokenizer = partial(
            ViTTokenizer,
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim or named.embed_dim,
            depth=depth or named.depth,
            num_heads=num_heads or named.num_heads,
            latent_dim=latent_dim,
            codebook_size=codebook_size,
            quantizer=quantizer,
            quantizer_options=quantizer_options,
        )
        super().__init__(tokenizer, loss, optimizer, compute)
