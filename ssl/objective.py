"""What all objectives share as Lightning modules: optimizer, schedule, normalisation of pixels, the card.

An objective says which views of a sample it wants (`headcam.video.sampling.views`); the data module cuts and draws
accordingly, so that no size is written twice in a config. Training is counted in steps and samples, never in epochs of
a loader: see `headcam.video.sampling.plan`. A step whose loss or gradient is no number is not taken, see
`headcam.ssl.training.health`; what several processes need is in `headcam.ssl.training.distributed`.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

import headcam
from headcam.errors import InputError
from headcam.ssl.attention import resolve_backend, set_attention_backend
from headcam.ssl.schedules import warmup_constant, warmup_cosine
from headcam.ssl.training.distributed import say_once, shard, whole
from headcam.ssl.training.health import StepCheck, skip_where
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
        milestones: Optimizer steps from which on the learning rate is this factor of the peak; with `constant` only.
    """

    base_lr_per_256: float | None = 1.5e-4
    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    milestones: dict[int, float] | None = None

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

        milestones = self.milestones or {}
        if milestones and self.schedule != "constant":
            raise InputError("optimizer.milestones go with the schedule constant", "leave them out, or set it")
        if not all(at > 0 and 0 <= factor < math.inf for at, factor in milestones.items()):
            raise InputError(f"optimizer.milestones are {milestones}", "give steps above 0 and factors from 0 on")

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
        mean, std: of pixels in [0, 1], per channel; what `normalize` subtracts and divides by, and the card says.
        initial_weights: what training starts from instead of a random initialisation (`headcam fit --init`), see
            `headcam.ssl.published.initial_weights`.
        attention: the backend in use, once the network is built.
        step_check: means and verdict of the newest optimizer step.
        view_stages: (first optimizer step, views) of runs that change resolution on the way; else one stage.
        img_size: (H, W) that probes cut pictures to; of models of tokens, rows and columns of the grid.
        tokens_per_sample: that a model of tokens predicts of a sample; None for models of pixels.
    """

    name: str  # of the objective, as cards and reports spell it
    views: tuple[ViewLaw, ...]
    num_frames: int = 1
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    initial_weights: str | None = None
    tokens_per_sample: int | None = None

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
        self.attention: str | None = None
        self.step_check = StepCheck()
        self._init_record: dict[str, Any] | None = None
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
        if self.network is not None:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())  # the run's seed, wherever the generator stands by now
            self.network = self.build()
        if self.initial_weights:
            from headcam.ssl.published.initial_weights import initialize

            self._init_record = initialize(self.network, self.initial_weights, self.open_initial)
        device = "cpu" if self._trainer is None else self._trainer.strategy.root_device
        self.attention, reason = resolve_backend(self.compute_settings.attention, device)
        if reason:
            say_once(reason)
        set_attention_backend(self.network, self.attention)
        for module in self.network.modules():
            if hasattr(module, "checkpointing"):
                module.checkpointing = self.compute_settings.checkpointing in ("all", module.checkpointing_part)
        if self.compute_settings.compile:
            self.network.compile()  # in place: names of weights stay
        if self.device_mesh is not None:
            shard(self.network, self.device_mesh["data_parallel"])

    def open_initial(self, source: str) -> tuple[nn.Module, dict[str, Any]]:
        """The weights that `headcam fit --init SOURCE` names, as a module like `encoder`, and their card."""
        from headcam.ssl.published.initial_weights import open_encoder

        return open_encoder(source)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch: `loss`, which is minimised, and whatever else is worth a column in the log; scalars."""
        raise NotImplementedError

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        values = self.losses(batch)
        self.step_check.add(values, share=1 / self.trainer.accumulate_grad_batches)
        return values["loss"]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for key, value in self.losses(batch).items():
            size = len(batch[self.views[0].name])
            self.log(f"val/{key}", value, batch_size=size, on_epoch=True, sync_dist=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step()

    def after_optimizer_step(self) -> None:
        """Called once after every optimizer step (not after a micro-step); `global_step` still counts those before.

        Also after one that was skipped, which on a GPU nobody has looked at yet: `step_check.bad` is 1.0 then.
        """

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

    def masked_flops(self, batch_size: int) -> dict[str, float]:
        """FLOP of a forward pass, by part, that attention under a mask does not do although its plain products have
        them (half of those of causal attention); backward has twice as many."""
        return {}

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) or (B, 3, T, H, W) -> float32, less `mean`, over `std`."""
        return normalize(images, self.mean, self.std)

    def samples_per_step(self) -> int:
        """Samples that one optimizer step draws over all processes."""
        trainer = self.trainer
        return trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches

    def card(self) -> dict[str, Any]:
        """What is needed to rebuild the encoder with no other file, and what it has lived through."""
        encoder = self.skeleton.encoder
        arguments = (encoder if self.network is None else self.encoder).arguments  # weights from elsewhere may add one
        card = {
            "contract": "card",
            "version": 1,
            "headcam": headcam.__version__,
            "objective": self.name,
            "architecture": {"class": type(encoder).__name__, "arguments": arguments},
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "parameters_total": sum(p.numel() for p in self.skeleton.parameters()),
            "img_size": list(self.img_size),
            "mean": list(self.mean),
            "std": list(self.std),
        }
        return card if self._init_record is None else {**card, "init": self._init_record}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.setdefault("headcam_card", self.card())  # a run folder's card says more, and comes before

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs = checkpoint["headcam_card"]
        self._adopt_position_field(theirs["architecture"]["arguments"].get("position_field"))
        ours = self.card()
        architecture = {**theirs["architecture"], "arguments": self._completed(theirs["architecture"]["arguments"])}
        theirs = {**theirs, "architecture": architecture}
        for what in ("objective", "architecture", "parameters_total"):
            if theirs[what] != ours[what]:
                raise InputError(
                    f"the checkpoint holds another model: its {what} is {_differences(theirs[what], ours[what])}",
                    "resume with the config that the checkpoint was trained with (config.yaml of its run folder)",
                )
        self._init_record = theirs.get("init")

    def _adopt_position_field(self, field: list[int] | None) -> None:
        """Let encoders count positions as in the checkpoint, which began with weights of another resolution."""
        if field is not None and self.network is not None:
            for encoder in (self.encoder, getattr(self.network, "student_encoder", None)):
                if encoder is not None:
                    encoder.position_field = tuple(field)
                    encoder.arguments["position_field"] = list(field)

    def _completed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """`arguments` of an encoder of an older version, with those that were added since at their defaults."""
        parameters = inspect.signature(type(self.skeleton.encoder)).parameters
        added = [name for name in self.skeleton.encoder.arguments if name not in arguments and name in parameters]
        return arguments | {name: parameters[name].default for name in added}

    def configure_optimizers(self) -> dict[str, Any]:
        settings, total = self.optimizer_settings, self.trainer.max_steps
        if settings.schedule == "cosine":

            def factor(step: int) -> float:
                return warmup_cosine(step, total_steps=total, warmup_steps=settings.warmup_steps)
        else:

            def factor(step: int) -> float:
                return warmup_constant(step, warmup_steps=settings.warmup_steps, milestones=settings.milestones)

        optimizer = torch.optim.AdamW(
            parameter_groups(self.network, settings.weight_decay),
            lr=settings.peak_lr(self.samples_per_step() * self.views_per_sample),
            betas=settings.betas,
            fused=not self.scales_gradients,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def scales_gradients(self) -> bool:
        """Whether gradients are scaled (fp16): a fused optimizer would undo that inside its step, after clipping."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Judge the step, then clip as `trainer.gradient_clip_val` says.

        Called once an optimizer step, when gradients are complete and before they are used. Lightning's own clipping
        refuses fused optimizers under bf16, too.
        """
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        bad = self.step_check.close(whole(norm))
        for key, value in self.step_check.values.items():
            self.log(f"train/{key}", value)
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        skip_where(bad, optimizer)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay; biases, norms, tables of tokens, positions and codes without."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decay, no_decay = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            table = name.endswith(("_token", "codebook")) or "pos_embed" in name or id(parameter) in tables
            (no_decay if parameter.ndim == 1 or table else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


def _differences(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        theirs, ours = theirs.get("arguments", theirs), ours.get("arguments", ours)
        keys = [k for k in sorted(theirs | ours) if theirs.get(k) != ours.get(k)]
        return ", ".join(f"{k} {theirs.get(k)} (here {ours.get(k)})" for k in keys)
    return f"{theirs} (here {ours})"
