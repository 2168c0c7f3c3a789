"""Schedules as pure functions of the optimizer step, so that a run that is resumed goes on exactly where it was.

First those of the learning rate, as factors of its peak; then those of other settings, as values (DINO changes the
teacher's momentum and temperature and the weight decay on the way).
"""

import math
from collections.abc import Mapping


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, final: float = 0.0) -> float:
    """Factor of the peak learning rate at `step`: linear from 0, then half a cosine from 1 to `final`.

    As in MAE (He et al. 2022, table 8; Loshchilov and Hutter 2017), per step instead of per epoch. Step 0 already
    moves: it gets 1 / warmup_steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_constant(step: int, *, warmup_steps: int, milestones: Mapping[int, float] | None = None) -> float:
    """Factor of the peak learning rate at `step`: linear from 0, then 1 (the headcam recipes: no warm-up, constant).

    From each step of `milestones` on, the factor given there (HVM-1 ends in some epochs at a tenth).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    passed = [at for at in milestones or () if at <= step]
    return milestones[max(passed)] if passed else 1.0


def cosine_between(step: int, *, start: float, end: float, total_steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at `total_steps` and behind it.

    Of the teacher's momentum and the weight decay in DINO (Caron et al. 2021, section 3.2, "Implementation details").
    """
    progress = min(1.0, step / max(1, total_steps))
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def linear_between(step: int, *, start: float, end: float, steps: int) -> float:
    """A straight line from `start` at step 0 to `end` at `steps` and behind it (0 steps: `end` from the first on)."""
    return start + (end - start) * min(1.0, step / steps) if steps else end


def momentum_for_batch(momentum: float, *, batch: int, reference: int) -> float:
    """The momentum of a moving average of weights that forgets as much a sample as `momentum` does at `reference`.

    One step with a batch k times as large stands for k steps, over which the average keeps momentum ** k of itself
    (Busbridge et al. 2023, "How to scale your EMA", definition 1.2).
    """
    return momentum ** (batch / reference)
