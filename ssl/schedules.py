"""Learning-rate schedules as pure functions of the optimizer step."""

import math


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, final: float = 0.0) -> float:
    """Factor of the peak learning rate at `step`: linear from 0, then half a cosine from 1 to `final`.

    As in MAE (He et al. 2022, table 8; Loshchilov and Hutter 2017), per step instead of per epoch. Step 0 already
    moves: it gets 1 / warmup_steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_constant(step: int, *, warmup_steps: int) -> float:
    """Factor of the peak learning rate at `step`: linear from 0, then 1 (the headcam recipes: no warm-up, constant)."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
