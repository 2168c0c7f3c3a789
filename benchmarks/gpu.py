"""What training steps reach on a CUDA device: images and clips a second, share of the peak, memory against the plan.

`mae_vitl16`: ViT-L/16 at 224 pixels, 75 % masked; the peer is the device's published dense peak in bf16 doing the same
FLOP (as counted, without recomputation), so the ratio is the share of the peak. `stmae_vith14`: ViT-H/14 on 16 frames
in tubes of 2, 90 % masked; the peer is the target of 350 clips a second. `mae_1792`: ViT-H/14 at 1792 pixels, 80 %
masked, all blocks checkpointed, at the batch that the memory plan says fits the device; the peer is the original's
record, 8 images on 80 GB, and the ratio is images per GB over its own. `gpt_gimel`: the GPT of 730 M parameters on
1,024 tokens of 8,192; the peer is the peak again (the originals reached about 12 TFLOP/s on an A100).

A step is forward and backward under bf16 autocast and fused AdamW, on a batch that lies decoded on the device: loading
is another benchmark's matter. Where there is no CUDA device all four are not applicable, and say so.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import Bench, Fidelity, Measured, NotApplicable, Result, main

from headcam.ssl.mae import MAE
from headcam.ssl.objective import ComputeSettings, Objective, parameter_groups
from headcam.ssl.planning.flops import peak_flops, training_flops
from headcam.ssl.planning.memory_plan import plan_memory
from headcam.ssl.stmae import STMAE
from headcam.tokenizers.autoregression.training import TokenGPT

_LEAST_STEPS = 10
_WARM_UP = 3  # kernels are chosen, the allocator finds its sizes
_MAE_BAR, _MAE_BATCH = 0.45, 256
_CLIPS_A_SECOND, _CLIPS = 350, 32
_GPT_BAR, _SEQUENCES = 0.5, 16
_RECORD = 80e9 / 8  # bytes a sample of the original at 1792 pixels: batch 8 on 80 GB
_RECORD_BAR = 5  # 40 images on 80 GB
_MIB = 2**20


@dataclass(frozen=True)
class Steps:
    """Wall seconds of each timed step, and the most bytes that were allocated on a CUDA device (0 on a CPU)."""

    seconds: list[float]
    peak_bytes: int


def training_steps(
    objective: Objective, batch_size: int, device: torch.device, deadline: float, least: int = _LEAST_STEPS
) -> Steps:
    """Train on one batch over and over until the deadline (`time.monotonic`), at least `least` steps.

    Under bf16 autocast on a CUDA device, in fp32 on a CPU.
    """
    cuda = device.type == "cuda"
    objective.configure_model()
    objective.to(device)
    optimizer = torch.optim.AdamW(parameter_groups(objective.network, 0.05), lr=1e-4, fused=True)
    batch = objective.example_batch(batch_size, device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)

    def step() -> float:
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = objective.losses(batch)["loss"]
        optimizer.zero_grad()  # where Lightning does it
        loss.backward()
        optimizer.step()
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    for _ in range(_WARM_UP):
        step()
    seconds: list[float] = []
    while len(seconds) < least or time.monotonic() + seconds[-1] < deadline:
        seconds.append(step())
    return Steps(seconds, torch.cuda.max_memory_allocated(device) if cuda else 0)


def against(steps: Steps, batch_size: int, peer_s: float, bar: float, unit: str, device_name: str) -> Measured:
    """Measured steps beside a peer that takes `peer_s` seconds a sample."""
    each = [seconds / batch_size for seconds in steps.seconds]
    rate = Fidelity(1 / statistics.median(each), f"{unit}s/s", least=0)
    return Measured(
        bar=bar,
        clock="wall",
        ours=statistics.median(each),
        peer=peer_s,
        ratios=[peer_s / seconds for seconds in each],
        other=[],
        unit=f"{unit}, batch {batch_size}",
        fidelity={f"rate on {device_name}": rate},
    )


def mae_vitl16(bench: Bench) -> Result:
    """Share of the device's peak."""
    return _share_of_peak(bench, lambda: MAE("l"), _MAE_BATCH, _MAE_BAR, "image")


def gpt_gimel(bench: Bench) -> Result:
    """Share of the device's peak."""
    return _share_of_peak(
        bench, lambda: TokenGPT("gimel", vocab_size=8192, grid=(32, 32)), _SEQUENCES, _GPT_BAR, "sequence"
    )


def _share_of_peak(bench: Bench, build: Callable[[], Objective], batch_size: int, bar: float, unit: str) -> Result:
    if (missing := _missing()) is not None:
        return NotApplicable(bar, missing)
    device, name = torch.device("cuda"), torch.cuda.get_device_name()
    peak = peak_flops(name, torch.bfloat16)
    if peak is None:
        return NotApplicable(bar, f"no published peak of {name} is at hand (headcam.ssl.planning.flops)")
    objective = build()
    steps = training_steps(objective, batch_size, device, bench.deadline)
    return against(steps, batch_size, training_flops(objective) / peak, bar, unit, name)


def stmae_vith14(bench: Bench) -> Result:
    """Clips a second over the target."""
    if (missing := _missing()) is not None:
        return NotApplicable(1.0, missing)
    objective = STMAE("h", img_size=224, patch_size=14, num_frames=16, tubelet_size=2, repeats=1, mask_ratio=0.9)
    steps = training_steps(objective, _CLIPS, torch.device("cuda"), bench.deadline)
    return against(steps, _CLIPS, 1 / _CLIPS_A_SECOND, 1.0, "clip", torch.cuda.get_device_name())


def mae_1792(bench: Bench) -> Result:
    """Images per GB over the original's, and the peak of memory over the plan's."""
    if (missing := _missing()) is not None:
        return NotApplicable(_RECORD_BAR, missing)
    device, name = torch.device("cuda"), torch.cuda.get_device_name()
    total = torch.cuda.get_device_properties(device).total_memory

    def objective() -> Objective:
        return MAE("h", 1792, 14, mask_ratio=0.8, compute=ComputeSettings(checkpointing="all"))

    plan = plan_memory(objective(), "bf16-mixed")
    batch_size = plan.largest_batch(total)
    steps = None
    while steps is None:
        try:
            steps = training_steps(objective(), batch_size, device, bench.deadline, least=1)
        except torch.cuda.OutOfMemoryError:  # the plan was wrong: find what fits, the figure of memory will say it
            if batch_size == 1:
                raise
            batch_size = max(1, batch_size * 9 // 10)
        gc.collect()
        torch.cuda.empty_cache()
    each = [seconds / batch_size for seconds in steps.seconds]
    return Measured(
        bar=_RECORD_BAR,
        clock="memory",
        ours=total / batch_size / _MIB,
        peer=_RECORD / _MIB,
        ratios=[_RECORD * batch_size / total],
        other=[],
        unit=f"image of 1792 x 1792 ({batch_size} on {name})",
        fidelity={
            "peak over the plan's": Fidelity(steps.peak_bytes / plan.peak_bytes(batch_size), "", least=0.9, most=1.1),
            "peak": Fidelity(steps.peak_bytes / 1e9, "GB", least=0),
            f"rate on {name}": Fidelity(1 / statistics.median(each), "images/s", least=0),
        },
    )


def _missing() -> str | None:
    """What this machine lacks for the figures, if anything."""
    if not torch.cuda.is_available():
        return "no CUDA device here"
    if not torch.cuda.is_bf16_supported():
        return f"{torch.cuda.get_device_name()} has no bf16"
    return None


if __name__ == "__main__":
    main("gpu", {"mae_vitl16": mae_vitl16, "stmae_vith14": stmae_vith14, "mae_1792": mae_1792, "gpt_gimel": gpt_gimel})
