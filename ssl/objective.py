"""What all objectives share as Lightning modules: optimizer, schedule, normalisation of pixels, the card.

An objective says which image it wants (`img_size`) and how many patches its mask noise has (`num_patches`); the data
module cuts and draws accordingly, so that no size is written twice in a config. Training is counted in steps and
samples, never in epochs of a loader: see `headcam.video.sampling.plan`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

import headcam
from headcam.errors import InputError
from headcam.ssl.schedules import warmup_constant, warmup_cosine
from headcam.ssl.vit import VisionTransformer
from headcam.video.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize


@dataclass
class OptimizerSettings:
    """AdamW and its schedule.

    Attributes:
        base_lr_per_256: Peak learning rate for a global batch of 256 images; it grows linearly with the global batch
            (Goyal et al. 2017; MAE: 1.5e-4). Give this or `lr`.
        lr: Peak learning rate as it is, whatever the batch.
        betas: Decay of AdamW's two moments (MAE: 0.9, 0.95).
        weight_decay: Not applied to biases, norms, position, class and mask tokens.
        schedule: `cosine` falls to zero at the last step, `constant` stays.
        warmup_steps: Optimizer steps of linear warm-up.
    """

    base_lr_per_256: float | None = 1.5e-4
    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if (self.lr is None) == (self.base_lr_per_256 is None):
            raise InputError(
                f"optimizer.lr is {self.lr} and optimizer.base_lr_per_256 is {self.base_lr_per_256}",
                "set exactly one of them and the other to null",
            )
        for name in ("lr", "base_lr_per_256", "weight_decay", "warmup_steps"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"optimizer.{name} is {value}", "give a number from 0 on")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer.betas are {list(self.betas)}", "give two numbers in [0, 1), such as 0.9, 0.95")

    def peak_lr(self, global_batch: int) -> float:
        """The learning rate at the top of the schedule for a global batch in images."""
        return self.lr if self.lr is not None else self.base_lr_per_256 * global_batch / 256


class Objective(pl.LightningModule):
    """Base of the objectives. A subclass sets `self.network` (with `.encoder`) and computes losses.

    Args:
        encoder: the Vision Transformer that is trained; kept inside the subclass's network.
        optimizer: see `OptimizerSettings`.
    """

    name: str  # of the objective, as cards and reports spell it

    def __init__(self, encoder: VisionTransformer, optimizer: OptimizerSettings | None):
        super().__init__()
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.img_size: tuple[int, int] = encoder.img_size
        self.num_patches: int = encoder.num_patches

    @property
    def encoder(self) -> VisionTransformer:
        return self.network.encoder

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32, ImageNet mean and standard deviation."""
        return normalize(images, IMAGENET_MEAN, IMAGENET_STD)

    def samples_per_step(self) -> int:
        """Samples that one optimizer step draws over all processes."""
        trainer = self.trainer
        return trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches

    def card(self) -> dict[str, Any]:
        """What is needed to rebuild the encoder with no other file, and what it has lived through."""
        return {
            "contract": "card",
            "version": 1,
            "headcam": headcam.__version__,
            "objective": self.name,
            "architecture": {"class": "VisionTransformer", "arguments": self.encoder.arguments},
            "parameters": sum(p.numel() for p in self.encoder.parameters()),
            "parameters_total": sum(p.numel() for p in self.network.parameters()),
            "img_size": list(self.img_size),
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.setdefault("headcam_card", self.card())  # a run folder's card says more, and comes before

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs, ours = checkpoint["headcam_card"], self.card()
        for what in ("objective", "architecture", "parameters_total"):
            if theirs[what] != ours[what]:
                raise InputError(
                    f"the checkpoint holds another model: its {what} is {_differences(theirs[what], ours[what])}",
                    "resume with the config that the checkpoint was trained with (config.yaml of its run folder)",
                )

    def configure_optimizers(self) -> dict[str, Any]:
        settings, total = self.optimizer_settings, self.trainer.max_steps
        if settings.schedule == "cosine":

            def factor(step: int) -> float:
                return warmup_cosine(step, total_steps=total, warmup_steps=settings.warmup_steps)
        else:

            def factor(step: int) -> float:
                return warmup_constant(step, warmup_steps=settings.warmup_steps)

        optimizer = torch.optim.AdamW(
            parameter_groups(self.network, settings.weight_decay),
            lr=settings.peak_lr(self.samples_per_step()),
            betas=settings.betas,
            fused=not self._scales_gradients(),
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _scales_gradients(self) -> bool:
        """Whether gradients are scaled (fp16): a fused optimizer would undo that inside its step, after clipping."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as `trainer.gradient_clip_val` says; Lightning refuses that for fused optimizers under bf16 too."""
        if self._scales_gradients() or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.network.parameters(), gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)

    def check_finite(self, loss: Tensor) -> None:
        """Stop with one line where the loss is no number any more; earlier checkpoints are untouched.

        Looked at in every step on a CPU, elsewhere where the loss is logged anyway: reading it makes a GPU wait.
        """
        every = self.trainer.log_every_n_steps or self.trainer.max_steps
        if loss.device.type != "cpu" and self.global_step % every:
            return
        value = float(loss.detach())
        if not math.isfinite(value):
            rates = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
            raise InputError(
                f"the loss became {value} at step {self.global_step} (learning rate {rates[0]:.3g})",
                "lower the learning rate or set trainer.gradient_clip_val, and resume from the last checkpoint",
            )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay; biases, norms, position, class and mask tokens without."""
    decay, no_decay = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            token = name.endswith(("cls_token", "pos_embed", "mask_token"))
            (no_decay if parameter.ndim == 1 or token else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


def _differences(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        theirs, ours = theirs.get("arguments", theirs), ours.get("arguments", ours)
        keys = [k for k in sorted(theirs | ours) if theirs.get(k) != ours.get(k)]
        return ", ".join(f"{k} {theirs.get(k)} (here {ours.get(k)})" for k in keys)
    return f"{theirs} (here {ours})"
