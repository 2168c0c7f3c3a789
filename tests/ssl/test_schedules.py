"""Schedules at their corners, and against the published formulas."""

import math
from itertools import pairwise

import pytest

from headcam.ssl.schedules import (
    cosine_between,
    linear_between,
    momentum_for_batch,
    warmup_constant,
    warmup_cosine,
)


def test_cosine_at_its_corners():
    factor = [warmup_cosine(step, total_steps=110, warmup_steps=10) for step in range(120)]
    assert factor[0] == 0.1 and factor[4] == 0.5  # the first step moves already
    assert factor[9] == factor[10] == 1.0
    assert factor[60] == pytest.approx(0.5)  # half of the way down
    assert 0 < factor[109] < 3e-4 and factor[110] == pytest.approx(0, abs=1e-15)
    assert factor[119] == factor[110]  # not up again behind the end
    assert all(a >= b for a, b in pairwise(factor[9:]))


def test_cosine_is_that_of_mae_for_each_step_behind_the_warm_up():
    """MAE, util/lr_sched.py: min_lr + (lr - min_lr) * 0.5 * (1 + cos(pi * (epoch - warmup) / (epochs - warmup)))."""
    for step in range(5, 50):
        wanted = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 5) / (50 - 5)))
        assert warmup_cosine(step, total_steps=50, warmup_steps=5, final=0.1) == pytest.approx(wanted)


@pytest.mark.parametrize("warmup, total", [(0, 1), (5, 5), (10, 5)])
def test_degenerate_lengths_stay_in_range(warmup, total):
    assert all(0 <= warmup_cosine(s, total_steps=total, warmup_steps=warmup) <= 1 for s in range(12))
    assert warmup_cosine(0, total_steps=total, warmup_steps=warmup) > 0


def test_constant():
    assert [warmup_constant(step, warmup_steps=4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmup_constant(0, warmup_steps=0) == 1


def test_a_cosine_between_two_values_is_that_of_dino():
    """DINO, utils.py, cosine_scheduler: final + 0.5 * (base - final) * (1 + cos(pi * i / n)), i = 0 .. n - 1."""
    for start, end in ((0.996, 1.0), (0.04, 0.4)):
        values = [cosine_between(step, start=start, end=end, total_steps=1000) for step in range(1100)]
        assert [values[0], values[500]] == pytest.approx([start, (start + end) / 2])
        assert values[999] == pytest.approx(end + 0.5 * (start - end) * (1 + math.cos(math.pi * 0.999)), rel=1e-12)
        assert set(values[1000:]) == {end}  # not back behind the end
        assert all(a < b for a, b in pairwise(values[:1000]))
    assert cosine_between(0, start=1.0, end=2.0, total_steps=0) == 1.0


def test_a_line_between_two_values():
    assert [linear_between(s, start=0.04, end=0.07, steps=3) for s in (0, 1, 3, 9)] == pytest.approx(
        [0.04, 0.05, 0.07, 0.07]
    )
    assert linear_between(0, start=0.04, end=0.07, steps=0) == 0.07


def test_a_momentum_forgets_as_much_a_sample_whatever_the_batch():
    assert momentum_for_batch(0.996, batch=1024, reference=1024) == 0.996
    assert momentum_for_batch(0.996, batch=2048, reference=1024) == pytest.approx(0.996**2)
    # A fixed student followed over as many samples in small steps: the average ends at the same place.
    small = momentum_for_batch(0.9, batch=16, reference=64)
    assert small**4 == pytest.approx(0.9)


def test_milestones_set_the_factor_from_their_step_on():
    """HVM-1: 274,000 steps at 1e-4, then a tail at 1e-5."""
    factors = [warmup_constant(s, warmup_steps=2, milestones={6: 0.1, 4: 0.5}) for s in range(8)]
    assert factors == [0.5, 1.0, 1.0, 1.0, 0.5, 0.5, 0.1, 0.1]
