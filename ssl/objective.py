"""What all objectives share as Lightning modules: optimizer, schedule, normalisation of pixels, the card.

An objective says which views of a sample it wants (`headcam.video.sampling.views`); the data module cuts and draws
accordingly, so that no size is written twice in a config. Training is counted in steps and
samples, never in epochs of a loader: see `headcam.video.sampling.plan`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

import headcam
from headcam.errors import InputError
from headcam.ssl.schedules import warmup_constant, warmup_cosine
from headcam.video.sampling.views import ViewLaw
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


@dataclass
class ComputeSettings:
    """How the same numbers are computed: speed and memory, no result beyond rounding.

    Attributes:
        attention: `sdpa` (PyTorch), `xformers` (memory-efficient attention on CUDA) or `math` (reference).
        checkpointing: Blocks whose inner activations are computed again in backward instead of being kept.
        compile: Compile the network with torch.compile.
    """

    attention: Literal["sdpa", "xformers", "math"] = "sdpa"
    checkpointing: Literal["none", "encoder", "decoder", "all"] = "none"
    compile: bool = False


class Objective(pl.LightningModule):
    """Base of the objectives. A subclass says how to build its network, which views it wants, and its losses.

    The network is built by `configure_model`, which Lightning calls when data are ready and devices known; until then
    there is a skeleton of it on the meta device: settings are checked and parameters counted, no memory is taken.

    Args:
        build: makes the network (an `nn.Module` with `.encoder`) at random initialisation.
        optimizer: see `OptimizerSettings`.
        compute: see `ComputeSettings`.

    Attributes:
        views: what every sample has to hold, set by the subclass.
        num_frames: T of a clip; 1 for single frames.
        view_stages: (first optimizer step, views) of runs that change resolution on the way; else one stage.
        img_size: (H, W) that probes cut pictures to.
    """

    name: str  # of the objective, as cards and reports spell it
    views: tuple[ViewLaw, ...]
    num_frames: int = 1

    def __init__(
        self, build: Callable[[], nn.Module], optimizer: OptimizerSettings | None, compute: ComputeSettings | None
    ):
        super().__init__()
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.compute_settings = compute or ComputeSettings()
        self.build = build
        with torch.device("meta"):
            object.__setattr__(self, "skeleton", build())  # not a submodule: it has no weights to train or save
        self.network: nn.Module | None = None
        self.img_size: tuple[int, int] = self.skeleton.encoder.img_size

    @property
    def encoder(self) -> nn.Module:
        """What is trained for use elsewhere: saved as weights, probed, shown."""
        return self.network.encoder

    @property
    def view_stages(self) -> list[tuple[int, tuple[ViewLaw, ...]]]:
        return [(0, self.views)]

    @property
    def views_per_sample(self) -> int:
        """Views of a sample that count as images of the batch (repeated crops of a clip do, crops of DINO do not)."""
        return 1

    def configure_model(self) -> None:
        if self.network is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch.initial_seed())  # the run's seed, wherever the generator stands by now
                self.network = self.build()
            for module in self.network.modules():
                if hasattr(module, "checkpointing"):
                    module.checkpointing = self.compute_settings.checkpointing in ("all", module.checkpointing_part)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch: `loss`, which is minimised, and whatever else is worth a column in the log; scalars."""
        raise NotImplementedError

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        values = self.losses(batch)
        self.check_finite(values["loss"])
        for key, value in values.items():
            self.log(f"train/{key}", value.detach(), batch_size=len(batch[self.views[0].name]))
        return values["loss"]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for key, value in self.losses(batch).items():
            size = len(batch[self.views[0].name])
            self.log(f"val/{key}", value, batch_size=size, on_epoch=True, sync_dist=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step()

    def after_optimizer_step(self) -> None:
        """Called once after every optimizer step (not after a micro-step), when `global_step` has been counted up."""

    def example_batch(self, batch_size: int, device: str | torch.device = "meta") -> dict[str, Tensor]:
        """A batch of the shapes and types that training sees, for counting memory and work before any data is read."""
        batch = {}
        for law in self.views:
            lead = (batch_size,) if law.count is None else (batch_size, law.count)
            frames = (self.num_frames,) if self.num_frames > 1 else ()
            batch[law.name] = torch.zeros(*lead, 3, *frames, *law.size, dtype=torch.uint8, device=device)
            if law.noise:
                batch[law.noise_key] = torch.rand(*lead, law.noise, device=device)
        return batch

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) or (B, 3, T, H, W) -> float32, ImageNet mean and standard deviation."""
        return normalize(images, IMAGENET_MEAN, IMAGENET_STD)

    def samples_per_step(self) -> int:
        """Samples that one optimizer step draws over all processes."""
        trainer = self.trainer
        return trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches

    def card(self) -> dict[str, Any]:
        """What is needed to rebuild the encoder with no other file, and what it has lived through."""
        encoder = self.skeleton.encoder
        return {
            "contract": "card",
            "version": 1,
            "headcam": headcam.__version__,
            "objective": self.name,
            "architecture": {"class": type(encoder).__name__, "arguments": encoder.arguments},
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "parameters_total": sum(p.numel() for p in self.skeleton.parameters()),
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
            lr=settings.peak_lr(self.samples_per_step() * self.views_per_sample),
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
            token = name.endswith("_token") or "pos_embed" in name
            (no_decay if parameter.ndim == 1 or token else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


def _differences(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        theirs, ours = theirs.get("arguments", theirs), ours.get("arguments", ours)
        keys = [k for k in sorted(theirs | ours) if theirs.get(k) != ours.get(k)]
        return ", ".join(f"{k} {theirs.get(k)} (here {ours.get(k)})" for k in keys)
    return f"{theirs} (here {ours})"
