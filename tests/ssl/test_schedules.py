"""Learning-rate schedules at their corners, and against the published formula."""

import math
from itertools import pairwise

import pytest

from headcam.ssl.schedules import warmup_constant, warmup_cosine


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
