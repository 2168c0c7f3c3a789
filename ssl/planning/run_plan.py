"""From hours of video, a recipe and GPUs to batch, learning rate, steps, time, memory and disk, before anything runs.

Memory is computed from the step itself (`headcam.ssl.planning.memory_plan`), work is counted
(`headcam.ssl.planning.flops`). Time needs what nobody knows before a run: the share of the device's peak that it will
reach. It is therefore stated for a share that the caller names, beside the range of what is usual (`USUAL_SHARES`).
Loading and disk rest on rates that were measured once (the constants below), scaled by area where pictures are larger:
an estimate, and called one.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from headcam.errors import InputError
from headcam.ssl.objective import Objective
from headcam.ssl.planning.flops import count_flops, peak_flops
from headcam.ssl.planning.memory_plan import USABLE, MemoryPlan, plan_memory
from headcam.video.sampling.views import ViewLaw

# The originals of humanlike-vits and HVM-1 reached 3 to 19 % of peak; 45 % is good for large matrices.
USUAL_SHARES = (0.2, 0.5)
CORES_A_GPU = 16  # for loading, as usual

# One core of a Zen 3 server, single-threaded, interleaved runs. Cut of a 256-pixel JPEG to 224; 16 frames of a clip of
# the clip store (456 x 256, GOP 32); a JPEG of short side 256 at quality 90; a second of the clip store.
_IMAGE_S = 2.7e-3
_CLIP_S = 54e-3
_JPEG_BYTES = 36.8e3
_CLIP_STORE_BYTES_A_SECOND = 6.8e6 / 60
_MEASURED_SIDE, _MEASURED_FRAMES = 224, 16
_TOKEN_BYTES = 2


# Memory in bytes (10^9 a GB, as cards are named) of the devices whose peak `peak_flops` knows.
GPUS = {"a100-40gb": 40e9, "a100-80gb": 80e9, "h100-80gb": 80e9, "h200-141gb": 141e9}


@dataclass(frozen=True)
class Gpu:
    """A device to plan for: memory in bytes, and peak in FLOP/s at the run's precision (None: no source at hand)."""

    name: str
    memory: float
    peak: float | None


def gpu_of(name: str, precision: str | int, memory_gb: float | None = None, tflops: float | None = None) -> Gpu:
    """A device by name, or any other by its memory; what is given wins over what is listed.

    Raises:
        InputError: a name that is not listed without `memory_gb`.
    """
    if name.lower() not in GPUS and memory_gb is None:
        raise InputError(
            f"--gpu {name!r} is not a device that headcam knows",
            f"use one of {', '.join(GPUS)}, or give --gpu_memory_gb and --gpu_tflops as well",
        )
    for option, value in (("--gpu_memory_gb", memory_gb), ("--gpu_tflops", tflops)):
        if value is not None and not value > 0:
            raise InputError(f"{option} is {value}", "give a number above 0")
    memory = GPUS[name.lower()] if memory_gb is None else memory_gb * 1e9
    return Gpu(name, memory, peak_flops(name, str(precision)) if tflops is None else tflops * 1e12)


@dataclass(frozen=True)
class RunPlan:
    """What a run will take. Bytes are of one device unless said otherwise; a sample is one draw of the plan."""

    memory: MemoryPlan = field(repr=False)
    gpu: Gpu
    gpus: int
    hours: float
    largest_batch: int  # samples a device and micro-step that fit
    batch_size: int  # samples a device and micro-step
    accumulate: int  # micro-steps of an optimizer step
    global_batch: int  # samples of an optimizer step
    views: int  # images (or clips) of a sample that count for the learning rate
    lr: float
    steps: int
    passes: float  # over the seconds of the video
    flops_a_sample: float  # forward and backward
    recomputed: float  # share that checkpointing adds
    share: float  # of the peak
    core_s_a_sample: float  # seconds of one core that loading a sample takes
    store_bytes: float
    checkpoint_bytes: float

    @property
    def samples(self) -> int:
        return self.steps * self.global_batch

    def samples_per_second(self, share: float) -> float | None:
        """Of all devices together, at a share of their peak; None where the peak is not known."""
        if self.gpu.peak is None:
            return None
        return self.gpus * self.gpu.peak * share / (self.flops_a_sample * (1 + self.recomputed))

    def hours_of_run(self, share: float) -> float | None:
        """Wall time in hours, for as long as data keep up."""
        rate = self.samples_per_second(share)
        return None if rate is None else self.samples / rate / 3600

    @property
    def hours_of_loading(self) -> float:
        """Hours that loading alone takes with the usual number of cores a device: the run's least time."""
        return self.samples * self.core_s_a_sample / (CORES_A_GPU * self.gpus) / 3600

    def table(self) -> str:
        """The plan as readable text, memory last."""
        low, high = USUAL_SHARES
        extra = f" x {self.accumulate} micro-steps" if self.accumulate > 1 else ""
        views = f", {self.global_batch * self.views} views" if self.views > 1 else ""
        peak = self.memory.peak_bytes(self.batch_size)
        rows = [
            ("video", f"{self.hours:,.2f} hours, {self.hours * 3600:,.0f} seconds"),
            ("devices", f"{self.gpus} x {self.gpu.name}, {self.gpu.memory / 1e9:g} GB each"),
            ("largest batch", f"{self.largest_batch} a device, at {USABLE:.0%} of its memory"),
            ("batch", f"{self.batch_size} a device x {self.gpus} devices{extra} = {self.global_batch} samples{views}"),
            ("learning rate", f"{self.lr:.4g} at the top of the schedule"),
            ("length", f"{self.steps:,} steps = {self.samples:,} samples = {self.passes:.3g} passes over the seconds"),
            ("work", f"{self.flops_a_sample / 1e9:,.1f} GFLOP a sample, and {self.recomputed:.0%} computed again"),
        ]
        if self.gpu.peak is None:
            rows.append(("time", f"unknown: no peak of {self.gpu.name} is at hand (give --gpu_tflops)"))
        else:
            hours, slow, fast = (self.hours_of_run(share) for share in (self.share, low, high))
            rate = self.samples_per_second(self.share)
            usual = f"{_duration(slow)} at {low:.0%}, {_duration(fast)} at {high:.0%}"
            rows += [
                (
                    "time",
                    f"{_duration(hours)} at {self.share:.0%} of peak ({usual}); {hours * self.gpus:,.1f} GPU-hours",
                ),
                (
                    "loading",
                    f"{rate:,.1f} samples/s; about {rate * self.core_s_a_sample:,.1f} cores in all, from a store "
                    f"({CORES_A_GPU} a GPU: at least {_duration(self.hours_of_loading)})",
                ),
            ]
        rows += [
            ("disk", f"about {_bytes(self.store_bytes)} for the store; {_bytes(self.checkpoint_bytes)} a checkpoint"),
            ("memory", f"{peak / 1e9:.1f} of {self.gpu.memory / 1e9:g} GB at the peak of a step"),
        ]
        width = max(len(name) for name, _ in rows) + 2
        text = "\n".join(name.ljust(width) + value for name, value in rows)
        return f"{text}\n\n{self.memory.table(self.batch_size)}"

    def as_json(self) -> dict[str, Any]:
        """Everything `table` says, for a file."""
        facts = {k: v for k, v in vars(self).items() if k not in ("memory", "gpu")}
        times = {f"{s:g}": self.hours_of_run(s) for s in sorted({self.share, *USUAL_SHARES})}
        return {
            "contract": "run plan",
            "version": 1,
            "gpu": asdict(self.gpu),
            **facts,
            "samples": self.samples,
            "samples_per_second": self.samples_per_second(self.share),
            "hours_of_run_by_share_of_peak": times,
            "hours_of_loading": self.hours_of_loading,
            "memory": self.memory.as_json(self.batch_size),
        }


def plan_run(
    objective: Objective,
    *,
    hours: float,
    gpu: Gpu,
    gpus: int = 1,
    batch_size: int,
    global_batch: int | None = None,
    passes: float | None = None,
    steps: int | None = None,
    precision: str | int = "bf16-mixed",
    shard: bool = False,
    share: float = 0.4,
) -> RunPlan:
    """Plan a run.

    Args:
        objective: of the recipe.
        hours: of video that can be drawn from; a pass is as many samples as it has seconds.
        gpu, gpus: the devices.
        batch_size: samples a device and micro-step, as the recipe says; 0: the largest that fits.
        global_batch: samples of an optimizer step to hold, in as many micro-steps as that takes; None: one micro-step
            on every device, or what `batch_size` makes where that does not fit.
        passes, steps: how long, one of them.
        shard: FSDP instead of DDP.
        share: of the devices' peak that the run is expected to reach.
    Raises:
        InputError: nothing fits, or a setting that makes no sense.
    """
    if not (math.isfinite(hours) and hours > 0):
        raise InputError(f"there are {hours:g} hours of video", "give more than 0, by --hours or --recordings")
    if (passes is None) == (steps is None):
        raise InputError(f"passes are {passes} and steps are {steps}", "give one of --passes and --steps")
    for name, value, good in (
        ("--gpus", gpus, gpus >= 1),
        ("--batch_size", batch_size, batch_size >= 0),
        ("--global_batch", global_batch, global_batch is None or global_batch >= gpus),
        ("--passes", passes, passes is None or passes > 0),
        ("--steps", steps, steps is None or steps > 0),
        ("--share", share, 0 < share <= 1),
    ):
        if not good:
            wanted = {"--share": "a share of the peak in (0, 1]", "--global_batch": f"at least one a device ({gpus})"}
            raise InputError(f"{name} is {value}", f"give {wanted.get(name, 'a number above 0')}")
    largest_views = max((views for _, views in objective.view_stages), key=_pixels)

    def memory_of(accumulate: bool) -> MemoryPlan:
        with _views(objective, largest_views):
            return plan_memory(objective, precision, processes=gpus, shard=shard, accumulate=accumulate)

    memory = memory_of(accumulate=False)
    largest = memory.largest_batch(gpu.memory)
    wanted = (batch_size or largest) * gpus if global_batch is None else global_batch
    batch_size, accumulate = _micro_steps(wanted, gpus, largest)
    if accumulate > 1:  # gradients then stay for the backward pass, and less fits
        memory = memory_of(accumulate=True)
        largest = memory.largest_batch(gpu.memory)
        batch_size, accumulate = _micro_steps(wanted, gpus, largest)
    if largest < 1:
        raise InputError(
            f"not one sample fits on {gpu.name}: a step takes {memory.peak_bytes(1) / 1e9:.1f} GB, and "
            f"{USABLE * gpu.memory / 1e9:.1f} of {gpu.memory / 1e9:g} GB are used",
            "set --model.compute.checkpointing=all, --shard on several devices, or take a smaller model or picture",
        )
    global_batch = batch_size * gpus * accumulate
    seconds = hours * 3600
    steps = steps if steps is not None else max(1, math.ceil(passes * seconds / global_batch))
    training, recomputed = _work(objective, steps)
    core_s, store_bytes_a_second = _loading(objective)
    parameters = sum(p.numel() for p in objective.skeleton.parameters())
    return RunPlan(
        memory=memory,
        gpu=gpu,
        gpus=gpus,
        hours=hours,
        largest_batch=largest,
        batch_size=batch_size,
        accumulate=accumulate,
        global_batch=global_batch,
        views=objective.views_per_sample,
        lr=objective.optimizer_settings.peak_lr(global_batch * objective.views_per_sample),
        steps=steps,
        passes=steps * global_batch / seconds,
        flops_a_sample=training,
        recomputed=recomputed / training,
        share=share,
        core_s_a_sample=core_s,
        store_bytes=seconds * store_bytes_a_second,
        checkpoint_bytes=3 * 4 * parameters,
    )


def _work(objective: Objective, steps: int) -> tuple[float, float]:
    """FLOP a sample, and those computed again: means over the steps of a run that may change resolution on the way."""
    stages = objective.view_stages
    ends = [first for first, _ in stages[1:]] + [steps]
    training = recomputed = 0.0
    for (first, views), end in zip(stages, ends):
        share = max(0, min(end, steps) - first) / steps
        if share:
            with _views(objective, views):
                found = count_flops(objective)
            training += share * found.training
            recomputed += share * found.recomputed
    return training, recomputed


def _loading(objective: Objective) -> tuple[float, float]:
    """Seconds of a core that loading a sample takes, and bytes that a store needs for a second of video: estimates.

    Crops of one picture cost their area, clips cut from one decode cost it once; a store's pictures are larger than the
    cut in the proportion in which they were measured. Reading tokens costs next to nothing; the bytes are those of one
    grid a second.
    """
    if objective.tokens_per_sample:
        return 0.0, _TOKEN_BYTES * objective.tokens_per_sample
    height, width = objective.img_size
    area = max(1.0, height * width / _MEASURED_SIDE**2)
    if objective.num_frames > 1:
        return area * _CLIP_S * objective.num_frames / _MEASURED_FRAMES, area * _CLIP_STORE_BYTES_A_SECOND
    return max(1.0, _pixels(objective.views) / _MEASURED_SIDE**2) * _IMAGE_S, area * _JPEG_BYTES


def _pixels(views: tuple[ViewLaw, ...]) -> int:
    """Pixels of a frame of all views of a sample."""
    return sum((law.count or 1) * law.size[0] * law.size[1] for law in views)


@contextmanager
def _views(objective: Objective, views: tuple[ViewLaw, ...]) -> Iterator[None]:
    """Let the objective's example batches show these views for a while."""
    usual, objective.views = objective.views, views
    try:
        yield
    finally:
        objective.views = usual


def _micro_steps(global_batch: int, gpus: int, largest: int) -> tuple[int, int]:
    """(samples a device and micro-step, micro-steps) that make `global_batch`, or the next that divides evenly."""
    each = math.ceil(global_batch / gpus)
    if largest < 1:
        return each, 1
    accumulate = math.ceil(each / largest)
    return math.ceil(each / accumulate), accumulate


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.0f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.0f} seconds"


def _bytes(size: float) -> str:
    return f"{size / 1e12:.1f} TB" if size >= 1e12 else f"{size / 1e9:.1f} GB"
