"""Self-distillation without labels, DINO (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision
Transformers", ICCV).

A student sees two large and several small crops of a frame, a teacher only the large ones; each network ends in a
distribution over K learned prototypes, and the student learns to say of every crop what the teacher says of another
large one. The teacher is a moving average of the student, a little sharper and centred, which together keep both from
saying the same of every frame (`headcam.ssl.training.collapse` watches that). The teacher is the better network of the
two: it is what `encoder` means here, what is saved, and what is probed.

Here are the settings and what changes during training: the teacher's momentum and temperature, the weight decay, the
first steps in which prototypes are frozen. All of it follows from the optimizer step, and teacher and centre are state
of the network (`headcam.ssl.dino_network`), so a resumed run goes on exactly.

It differs from the published code in that position embeddings and the class token do not decay; that the teacher's
temperature warms up by step instead of by epoch, and the learning rate falls to 0; that several micro-batches of an
optimizer step move the centre once, by their common mean; that the length of prototypes is always fixed; and in how
position embeddings reach the small crops (`headcam.ssl.positions`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from headcam.errors import InputError
from headcam.ssl.dino_network import NUM_GLOBAL, DINONetwork
from headcam.ssl.objective import ComputeSettings, Objective, OptimizerSettings
from headcam.ssl.resnet import ResNet
from headcam.ssl.schedules import cosine_between, linear_between, momentum_for_batch
from headcam.ssl.training.collapse import CollapseAlarm, collapse_figures
from headcam.ssl.vit import SIZES, VisionTransformer
from headcam.video.sampling.views import ColourLaw, ViewLaw


class DINO(Objective):
    """Self-distillation as a Lightning module.

    Args:
        backbone: `vit`, or a convolutional trunk.
        size: named ViT: ti, s, b, l or h. `embed_dim`, `depth` and `num_heads` override it one by one.
        img_size: Pixels of the two large crops, one side or [height, width].
        local_crops_size: Pixels of the small crops.
        patch_size: Side of a ViT's patch in pixels; it must divide both sizes.
        embed_dim: Width of a ViT; null takes that of `size`.
        depth: Blocks of a ViT; null takes that of `size`.
        num_heads: Attention heads of a ViT; null takes that of `size`.
        drop_path_rate: Stochastic depth of a student ViT at its last block.
        out_dim: Prototypes, K.
        head_hidden_dim: Width of the heads' hidden layers.
        head_bottleneck_dim: Width in which prototypes are compared.
        use_bn_in_head: Batch normalisation in the heads.
        local_crops_number: Small crops of a frame; 0 for none.
        global_crops_scale: Area of large crops as a fraction of the frame.
        local_crops_scale: Area of small crops as a fraction of the frame.
        student_temp: Temperature of the student's distribution.
        teacher_temp: Temperature of the teacher's, behind its warm-up.
        warmup_teacher_temp: Temperature of the teacher's at the first step.
        warmup_teacher_temp_steps: Optimizer steps from there to `teacher_temp`, linearly.
        center_momentum: What the centre keeps of itself in a step.
        momentum_teacher: What the teacher keeps of itself in the first step; it goes to 1 by a cosine.
        momentum_teacher_steps: Optimizer steps of that cosine; null: those of the run.
        momentum_teacher_batch: Global batch that `momentum_teacher` is meant for; at another one the momentum is
            scaled so that a sample counts as much (Busbridge et al. 2023). Null: it is taken as it is.
        weight_decay_end: Weight decay at the last step, reached by a cosine; null: it stays.
        freeze_last_layer_steps: First optimizer steps in which the student's prototypes stay as they are.
        clip_grad: Largest norm of each parameter's gradient by itself, as published (3.0); 0: none.
        optimizer: AdamW and its schedule.
        compute: Attention backend, checkpointing, compilation.
    """

    name = "dino"

    def __init__(
        self,
        backbone: Literal["vit", "resnet50", "resnext50_32x4d", "resnext101_32x8d"] = "vit",
        size: Literal["ti", "s", "b", "l", "h"] = "s",
        img_size: int | tuple[int, int] = 224,
        local_crops_size: int | tuple[int, int] = 96,
        patch_size: int = 16,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        drop_path_rate: float = 0.0,
        out_dim: int = 65_536,
        head_hidden_dim: int = 2048,
        head_bottleneck_dim: int = 256,
        use_bn_in_head: bool = False,
        local_crops_number: int = 8,
        global_crops_scale: tuple[float, float] = (0.4, 1.0),
        local_crops_scale: tuple[float, float] = (0.05, 0.4),
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        warmup_teacher_temp: float = 0.04,
        warmup_teacher_temp_steps: int = 0,
        center_momentum: float = 0.9,
        momentum_teacher: float = 0.996,
        momentum_teacher_steps: int | None = None,
        momentum_teacher_batch: int | None = None,
        weight_decay_end: float | None = None,
        freeze_last_layer_steps: int = 0,
        clip_grad: float = 3.0,
        optimizer: OptimizerSettings | None = None,
        compute: ComputeSettings | None = None,
    ):
        _check(locals())
        vit = backbone == "vit"
        named = SIZES[size]
        encoder = partial(ResNet, backbone, img_size)
        if vit:
            encoder = partial(
                VisionTransformer,
                img_size=img_size,
                patch_size=patch_size,
                embed_dim=embed_dim or named.embed_dim,
                depth=depth or named.depth,
                num_heads=num_heads or named.num_heads,
                positions="learned",
                drop_path_rate=drop_path_rate,
            )
        super().__init__(
            partial(DINONetwork, encoder, out_dim, head_hidden_dim, head_bottleneck_dim, use_bn_in_head),
            optimizer,
            compute,
        )
        self.student_temp, self.teacher_temp = student_temp, teacher_temp
        self.warmup_teacher_temp, self.warmup_teacher_temp_steps = warmup_teacher_temp, warmup_teacher_temp_steps
        self.center_momentum = center_momentum
        self.momentum_teacher, self.momentum_teacher_steps = momentum_teacher, momentum_teacher_steps
        self.momentum_teacher_batch = momentum_teacher_batch
        self.weight_decay_end = weight_decay_end
        self.freeze_last_layer_steps, self.clip_grad = freeze_last_layer_steps, clip_grad
        self._stepping = 0  # the optimizer step that is being taken
        self.uniform_entropy = math.log(out_dim)  # nats, of the distribution that prefers no prototype; the loss then

        small = (local_crops_size, local_crops_size) if isinstance(local_crops_size, int) else tuple(local_crops_size)
        if local_crops_number:
            _check_local_size(small, self.img_size, patch_size if vit else 1)
        noise = 2 * len(self.skeleton.encoder.blocks) if drop_path_rate else 0
        first, second = ColourLaw(blur=1.0), ColourLaw(blur=0.1, solarize=0.2)  # of the two large crops
        self.views = (
            ViewLaw(
                "global", self.img_size, NUM_GLOBAL, global_crops_scale,
                flip=0.5, colours=(first, second), noise=noise, held_out="same",
            ),
        )  # fmt: skip
        if local_crops_number:
            law = ViewLaw(
                "local", small, local_crops_number, local_crops_scale,
                flip=0.5, colours=(ColourLaw(blur=0.5),), noise=noise, held_out="same",
            )  # fmt: skip
            self.views += (law,)

    def forward(self, images: Tensor) -> Tensor:
        """Features of the teacher for probes: normalised (B, 3, H, W) -> tokens (B, num_prefix_tokens + L, D)."""
        return self.encoder.forward_features(images)

    def configure_callbacks(self) -> list[Callback]:
        """The watch over collapse, where the trainer was not given one with settings of its own."""
        return [] if any(isinstance(c, CollapseAlarm) for c in self.trainer.callbacks) else [CollapseAlarm()]

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One batch: `global` uint8 (B, 2, 3, H, W), `local` (B, n, 3, h, w), and their noise where paths are dropped.

        While training, the centre takes note of the teacher's outputs; in steps that are logged, the figures of
        `headcam.ssl.training.collapse` and the current settings of the schedules come with the loss.
        """
        step = self._step()
        inputs = {}
        for law in self.views:
            views = batch[law.name]
            inputs[f"{law.name}_views"] = self.normalize(views.flatten(0, 1)).view(views.shape)
            if law.noise and self.training:
                inputs[law.noise_key] = batch[law.noise_key]
        teacher_temp = self.teacher_temperature(step)
        frozen = self.training and step < self.freeze_last_layer_steps
        out = self.network(**inputs, student_temp=self.student_temp, teacher_temp=teacher_temp, frozen=frozen)
        values = {"loss": out["loss"]}
        if not self.training:
            return values
        self.network.note_outputs(out["outputs"])
        if self._is_logged(step):
            values |= collapse_figures(out["features"].flatten(0, 1), out["teacher"].flatten(0, 1))
            values["center_norm"] = self.network.center.norm()
            schedules = {"teacher_temp": teacher_temp, "teacher_momentum": self.teacher_momentum(step)}
            values |= {key: values["loss"].new_tensor(value) for key, value in schedules.items()}
        return values

    def teacher_temperature(self, step: int) -> float:
        """Temperature of the teacher's distribution at an optimizer step."""
        start, steps = self.warmup_teacher_temp, self.warmup_teacher_temp_steps
        return linear_between(step, start=start, end=self.teacher_temp, steps=steps)

    def teacher_momentum(self, step: int) -> float:
        """What the teacher keeps of itself in an optimizer step."""
        total = self.momentum_teacher_steps or self.trainer.max_steps
        momentum = cosine_between(step, start=self.momentum_teacher, end=1.0, total_steps=total)
        if self.momentum_teacher_batch is None:
            return momentum
        return momentum_for_batch(momentum, batch=self.samples_per_step(), reference=self.momentum_teacher_batch)

    def weight_decay(self, step: int) -> float:
        """Weight decay of the matrices at an optimizer step."""
        start = self.optimizer_settings.weight_decay
        if self.weight_decay_end is None:
            return start
        return cosine_between(step, start=start, end=self.weight_decay_end, total_steps=self.trainer.max_steps)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["weight_decay"] = self.weight_decay(self.global_step)  # see `parameter_groups`
        if self.global_step < self.freeze_last_layer_steps:
            for parameter in self.network.student_head.last_layer.parameters():
                parameter.grad = None  # zeros would still decay it

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """Clip as the trainer says, if it does, then each parameter's gradient by its own norm (`clip_grad`)."""
        super().configure_gradient_clipping(optimizer, *args, **kwargs)  # judges the gradients, too
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if self.clip_grad and gradients:
            factors = torch._foreach_reciprocal(torch._foreach_add(torch._foreach_norm(gradients), 1e-6))
            torch._foreach_mul_(factors, self.clip_grad)
            torch._foreach_clamp_max_(factors, 1.0)
            torch._foreach_mul_(gradients, factors)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._stepping = self.global_step
        super().optimizer_step(*args, **kwargs)

    def after_optimizer_step(self) -> None:
        """Centre and teacher follow, but for a step that was skipped (a verdict that a GPU is not waited for)."""
        skip = self.step_check.bad
        self.network.update_center(self.center_momentum, skip)
        self.network.update_teacher(self.teacher_momentum(self._stepping), skip)

    def _step(self) -> int:
        return 0 if self._trainer is None else self.global_step

    def _is_logged(self, step: int) -> bool:
        if self._trainer is None:
            return False
        every = self.trainer.log_every_n_steps
        return bool(every and (step + 1) % every == 0) or step + 1 == self.trainer.max_steps


def _check(settings: dict[str, Any]) -> None:
    """Refuse settings of `DINO` that cannot work, whatever the others are."""

    def check(key: str, holds: Callable[[Any], bool], wanted: str) -> None:
        value = settings[key]
        if value is not None and not holds(value):
            raise InputError(f"{key} is {value}", f"give {wanted}")

    check("out_dim", lambda x: x >= 2, "a number of prototypes, such as 65536")
    check("local_crops_number", lambda x: x >= 0, "0 or more, such as 8")
    for key in ("global_crops_scale", "local_crops_scale"):
        check(key, lambda x: 0 < x[0] <= x[1] <= 1, "two fractions of the frame's area, such as 0.4, 1.0")
    for key in ("student_temp", "teacher_temp", "warmup_teacher_temp"):
        check(key, lambda x: 0 < x < math.inf, "a temperature above 0, such as 0.04 (teacher) or 0.1 (student)")
    for key in ("center_momentum", "momentum_teacher"):
        check(key, lambda x: 0 <= x <= 1, "a number in [0, 1]; the nearer to 1, the slower it moves")
    for key in ("momentum_teacher_steps", "momentum_teacher_batch"):
        check(key, lambda x: x >= 1, "null or a number from 1 on")
    for key in ("warmup_teacher_temp_steps", "freeze_last_layer_steps", "clip_grad", "weight_decay_end"):
        check(key, lambda x: 0 <= x < math.inf, "a number from 0 on")
    given = [key for key in ("embed_dim", "depth", "num_heads", "drop_path_rate") if settings[key]]
    if settings["backbone"] != "vit" and given:
        raise InputError(f"{given[0]} {settings[given[0]]} does not apply to {settings['backbone']}", "leave it out")


def _check_local_size(small: tuple[int, int], large: tuple[int, int], patch_size: int) -> None:
    for side, largest in zip(small, large):
        if side > largest:
            raise InputError(
                f"local crops of {small[0]} x {small[1]} pixels are larger than the global ones of "
                f"{large[0]} x {large[1]}",
                "set local_crops_size below img_size (published: 96 of 224)",
            )
        if side < 1 or side % patch_size:
            near = sorted({max(1, side // patch_size) * patch_size, -(-side // patch_size) * patch_size})
            raise InputError(
                f"patch_size {patch_size} does not divide local_crops_size {side}",
                f"use a local_crops_size of {' or '.join(map(str, near))}",
            )
