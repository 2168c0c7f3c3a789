"""Temporal classification: say which episode of the video a frame comes from (Orhan, Gupta and Lake 2020, NeurIPS).

The video is cut into consecutive episodes of some minutes (`headcam.video.episodes`; published: 288 s), each a class,
and a network learns to classify single frames with strong changes of crop and colour. What stays alike within minutes,
objects and places, has to be told from what comes and goes within seconds; no label is needed but the time. Used on
500 hours of SAYCam in 2020 and on up to 1,300 hours in 2021 (Orhan, arXiv 2109.11523).

    frame ─▶ encoder ─▶ one vector ─▶ linear ─▶ a score for each episode ─▶ cross-entropy

How many classes there are follows from the data alone, so the last layer is built when the data module has cut the
episodes. Held-out loss needs frames of episodes that are trained on: `data.hold_out` takes blocks of 10 s out of the
training recordings (`data.val` must be null). For E episodes, chance is a loss of ln E and an accuracy of 100 / E
percent.

The published optimizer, Adam without weight decay, is AdamW with `weight_decay` 0: the two differ in nothing else.

Batch normalisation (the convolutional backbones): each process normalises by the statistics of its own part of the
batch, as each GPU of the original did, and weights are saved with the running statistics of the first process. A batch
that is shared by several GPUs gives the numbers of the same batch on one with `trainer.sync_batchnorm: true` only (or
with a ViT).

Shapes: B batch, L places, D width of the encoder, E episodes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.objective import ComputeSettings, Objective, OptimizerSettings
from headcam.ssl.resnet import ResNet
from headcam.ssl.vit import SIZES, VisionTransformer
from headcam.video.sampling.views import ColourLaw, ViewLaw

# ColorJitter(0.9, 0.9, 0.9, 0.5) with probability 0.9, then grayscale and blur; code of 2020 and 2021.
_COLOURS = ColourLaw(
    jitter=0.9,
    brightness=0.9,
    contrast=0.9,
    saturation=0.9,
    hue=0.5,
    grayscale=0.2,
    blur=0.5,
    blur_sigma=(0.1, 2.0),
)
_EPISODES = 1000  # of the skeleton, before data are there


class EpisodeClassifier(nn.Module):
    """Encoder and linear classifier; usable without Lightning.

    Args:
        build_encoder: makes an encoder of the interface `forward_features`, `num_prefix_tokens`, `embed_dim`.
        num_episodes: E.
        pool: what the classifier sees: `avg`, the mean over all places (patches), or `token`, the class token.
    """

    def __init__(self, build_encoder: Callable[[], nn.Module], num_episodes: int, pool: Literal["avg", "token"]):
        super().__init__()
        self.encoder = build_encoder()
        self.pool = pool
        self.head = nn.Linear(self.encoder.embed_dim, num_episodes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> scores (B, E)."""
        tokens = self.encoder.forward_features(images)  # (B, prefix + L, D)
        return self.head(tokens[:, 0] if self.pool == "token" else tokens[:, self.encoder.num_prefix_tokens :].mean(1))


class TemporalClassification(Objective):
    """Temporal classification as a Lightning module.

    The area of crops and the probability of mirroring are those of the data (`data.scale`, `data.flip`; published: 0.2
    to 1 in 2020, 0.08 to 1 in 2021, and 0.5).

    Args:
        backbone: `vit`, or a convolutional trunk (published: resnext50_32x4d, resnext101_32x8d; the MobileNetV2 of
            the paper of 2020 is not offered).
        size: named ViT: ti, s, b, l or h. `embed_dim`, `depth` and `num_heads` override it one by one.
        img_size: Pixels, one side or [height, width].
        patch_size: Side of a ViT's patch in pixels; it must divide both.
        embed_dim: Width of a ViT; null takes that of `size`.
        depth: Blocks of a ViT; null takes that of `size`.
        num_heads: Attention heads of a ViT; null takes that of `size`.
        pool: What a ViT is classified by: `avg`, the mean of its patches, or `token`, its class token. A trunk has no
            token.
        episode_seconds: Length of an episode (published: 288).
        num_episodes: Classes, where there are no data to tell (`--plan_memory`); null takes them from the data, and
            1,000 before those are there. Data that hold another number are refused.
        optimizer: AdamW and its schedule.
        compute: Attention backend, checkpointing, compilation.
    Raises:
        InputError: settings that do not fit each other; in `setup`, data of fewer than two episodes or another number
            than `num_episodes`.
    """

    name = "temporal_classification"

    def __init__(
        self,
        backbone: Literal["vit", "resnet50", "resnext50_32x4d", "resnext101_32x8d"] = "resnext50_32x4d",
        size: Literal["ti", "s", "b", "l", "h"] = "s",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        pool: Literal["avg", "token"] = "avg",
        episode_seconds: float = 288.0,
        num_episodes: int | None = None,
        optimizer: OptimizerSettings | None = None,
        compute: ComputeSettings | None = None,
    ):
        if num_episodes is not None and num_episodes < 2:
            raise InputError(f"num_episodes is {num_episodes}", "give 2 or more, or null to take it from the data")
        if not (math.isfinite(episode_seconds) and episode_seconds > 0):
            raise InputError(f"episode_seconds is {episode_seconds}", "give seconds above 0, such as 288")
        if backbone == "vit":
            named = SIZES[size]
            build_encoder = partial(
                VisionTransformer,
                img_size=img_size,
                patch_size=patch_size,
                embed_dim=embed_dim or named.embed_dim,
                depth=depth or named.depth,
                num_heads=num_heads or named.num_heads,
            )
        else:
            if pool == "token":
                raise InputError(f"{backbone} has no class token to pool", "set model.pool to avg")
            build_encoder = partial(ResNet, backbone, img_size)
        self._classifier = partial(EpisodeClassifier, build_encoder, pool=pool)
        super().__init__(partial(self._classifier, num_episodes or _EPISODES), optimizer, compute)
        self.num_episodes, self.episode_seconds = num_episodes, episode_seconds
        self.views = (ViewLaw("image", self.img_size, colours=(_COLOURS,)),)

    def setup(self, stage: str) -> None:
        """Give the network one class for each episode of the data; Lightning calls it between data and model."""
        super().setup(stage)
        found = len(self.trainer.datamodule.episodes)
        if found < 2:
            raise InputError(
                f"the data hold {found} episode of {self.episode_seconds:g} s: nothing to tell apart",
                "lower model.episode_seconds, or give more video",
            )
        if self.num_episodes not in (None, found):
            raise InputError(
                f"model.num_episodes is {self.num_episodes}, the data hold {found} episodes of "
                f"{self.episode_seconds:g} s",
                "set it to null, or give the data it was meant for",
            )
        if self.network is None:
            self.build = partial(self._classifier, found)
            with torch.device("meta"):
                object.__setattr__(self, "skeleton", self.build())

    def forward(self, images: Tensor) -> Tensor:
        """Features for probes: normalised (B, 3, H, W) -> tokens (B, prefix + L, D)."""
        return self.encoder.forward_features(images)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One batch: `image` uint8 (B, 3, H, W), `label` (B,) int64, the episode; `accuracy` is in percent."""
        scores = self.network(self.normalize(batch["image"])).float()
        right = scores.detach().argmax(-1) == batch["label"]
        return {"loss": F.cross_entropy(scores, batch["label"]), "accuracy": 100 * right.float().mean()}

    def example_batch(self, batch_size: int, device: str | torch.device = "meta") -> dict[str, Tensor]:
        batch = super().example_batch(batch_size, device)
        return batch | {"label": torch.zeros(batch_size, dtype=torch.int64, device=device)}

    def card(self) -> dict[str, Any]:
        """As of all objectives, with `episodes`: how many, and of how many seconds each."""
        episodes = {"number": self.skeleton.head.out_features, "seconds": self.episode_seconds}
        return super().card() | {"episodes": episodes}
