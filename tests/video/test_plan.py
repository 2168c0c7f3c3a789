"""The sampling law against brute force: what a run sees follows from (seed, i) alone, on any number of processes."""

import numpy as np
import pytest
from scipy import stats

from headcam.errors import InputError
from headcam.video.plan import FramePlan, Units, mask_noise, step_samples


def units(seconds, recordings=3, width=64, height=48) -> Units:
    n = len(seconds)
    return Units(
        recording=(np.arange(n) % recordings).astype(np.int32),
        time_s=np.arange(n, dtype=np.float64),
        seconds=np.asarray(seconds, dtype=np.float64),
        width=np.full(n, width, np.int32),
        height=np.full(n, height, np.int32),
        recordings=tuple(f"r{k}" for k in range(recordings)),
    )


def mixed_units(n: int = 37) -> Units:
    """Seconds of video with shorter ends, and still pictures that stand for none."""
    return units([0.0 if k % 5 == 0 else 0.37 if k % 7 == 0 else 1.0 for k in range(n)])


def plan(of: Units | None = None, seed: int = 0, **settings) -> FramePlan:
    return FramePlan(of or mixed_units(), seed, num_patches=16, **settings)


def same(a, b) -> bool:
    facts = [(s.i, s.unit, s.time_s, s.crop, s.flip) for s in (a, b)]
    return facts[0] == facts[1] and np.array_equal(a.noise, b.noise)


def test_sample_i_is_the_same_alone_in_any_order_and_from_another_plan():
    forward = [plan().sample(i) for i in range(100)]
    other = plan()
    for i in reversed(range(100)):
        assert same(forward[i], other.sample(i))
    assert not any(same(forward[i], plan(seed=1).sample(i)) for i in range(100))


def test_every_epoch_visits_every_unit_once_in_an_order_of_its_own():
    p, n = plan(), len(mixed_units())
    epochs = p.unit(np.arange(4 * n)).reshape(4, n)
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    across = np.arange(n - 3, n + 3)  # a batch that straddles two epochs
    assert p.unit(across).tolist() == [p.sample(int(i)).unit for i in across]


def test_orders_of_two_epochs_are_uncorrelated():
    p = plan(units(np.ones(1000)))
    first, second = p.unit(np.arange(2000)).reshape(2, 1000)
    assert abs(stats.spearmanr(first, second).statistic) < 0.13  # 4 standard errors


def test_a_sample_lies_within_its_unit_and_its_picture():
    of = mixed_units()
    for i in range(200):
        s = plan(of).sample(i)
        assert of.time_s[s.unit] <= s.time_s < of.time_s[s.unit] + max(of.seconds[s.unit], 1e-12)
        assert 0 <= s.crop.left and s.crop.left + s.crop.width <= 64
        assert 0 <= s.crop.top and s.crop.top + s.crop.height <= 48
        assert s.noise.dtype == np.float32 and s.noise.shape == (16,) and (0 <= s.noise).all() and (s.noise < 1).all()


def test_flips_come_at_their_probability():
    flips = sum(plan().sample(i).flip for i in range(1000))
    assert 430 < flips < 570
    assert not any(plan(flip=0).sample(i).flip for i in range(50))
    assert all(plan(flip=1).sample(i).flip for i in range(50))


def test_mask_noise_is_uniform_and_free_of_the_number_of_patches_before_it():
    noise = np.concatenate([mask_noise(0, i, 64) for i in range(200)])
    assert stats.kstest(noise, "uniform").pvalue > 1e-3
    assert np.array_equal(mask_noise(0, 5, 64)[:16], mask_noise(0, 5, 16))


@pytest.mark.parametrize("samples", [0, 1, 10, 36, 37, 38, 100])
def test_hours_seen_equal_those_of_a_set_of_units(samples):
    of = mixed_units()
    p = plan(of)
    seen = {p.sample(i).unit for i in range(samples)}
    assert p.hours_seen(samples) == pytest.approx(sum(of.seconds[k] for k in seen) / 3600, rel=1e-12, abs=0)
    if samples >= len(of):
        assert p.hours_seen(samples) == pytest.approx(of.hours, rel=1e-12)


def test_stills_count_no_hours():
    assert plan(units([0.0] * 5)).hours_seen(5) == 0


def test_hours_do_not_depend_on_where_a_run_was_stopped():
    """A sum of floats would differ in its last digits, and a resumed run's metrics from those of the straight one."""
    p = plan(units(np.random.default_rng(0).uniform(0.1, 3, 500)))
    for cuts in ([600], [7, 600], [100, 101, 499, 600, 700], list(range(0, 601, 8)) + [600]):
        total = sum(p.microseconds_seen(b, since=a) for a, b in zip([0, *cuts], cuts))
        assert total == p.microseconds_seen(600)


@pytest.mark.parametrize("step", [0, 3, 1000])
def test_a_step_sees_the_same_samples_on_any_number_of_processes(step):
    wanted = list(range(step * 12, (step + 1) * 12))
    for world_size in (1, 2, 3, 4, 6, 12):
        parts = [step_samples(step, 12 // world_size, rank, world_size) for rank in range(world_size)]
        assert all(part.dtype == np.int64 for part in parts)
        assert sorted(np.concatenate(parts).tolist()) == wanted


def test_resumed_on_more_processes_no_sample_is_lost_or_seen_twice():
    one = [i for step in range(10) for i in step_samples(step, 12)]
    four = [i for step in range(10, 25) for rank in range(4) for i in step_samples(step, 3, rank, 4)]
    assert sorted([*one, *four]) == list(range(25 * 12))


def test_accumulated_micro_steps_make_the_same_run_of_samples():
    micro = [i for k in range(3) for i in step_samples(5 * 3 + k, 4)]
    assert micro == step_samples(5, 12).tolist()


def test_concatenated_units_keep_recordings_apart():
    a, b = mixed_units(7), units([1.0, 2.0], recordings=2, width=320)
    both = Units.concatenate([a, b])
    assert len(both) == 9 and both.hours == pytest.approx(a.hours + b.hours)
    assert both.recordings == ("r0", "r1", "r2", "r0", "r1")
    assert both.recording.dtype == np.int32 and both.recording.tolist() == [*a.recording, 3, 4]
    assert both.width.tolist() == [64] * 7 + [320] * 2 and both.time_s.tolist() == [*a.time_s, 0.0, 1.0]


@pytest.mark.parametrize(
    "settings, telling",
    [
        ({"scale": (0.0, 1.0)}, r"crop scale \(0.0, 1.0\) is no range in \(0, 1\]"),
        ({"scale": (0.5, 0.2)}, "crop scale"),
        ({"scale": (0.2, 1.1)}, "crop scale"),
        ({"scale": (float("nan"), 1.0)}, "crop scale"),
        ({"ratio": (0.0, 1.0)}, "crop ratio"),
        ({"ratio": (2.0, 1.0)}, "crop ratio"),
        ({"flip": 1.5}, "flip is 1.5, no probability"),
        ({"flip": float("nan")}, "flip is nan"),
        ({"of": units([])}, "no frame to draw from"),
    ],
)
def test_settings_out_of_range_are_refused(settings, telling):
    of = settings.pop("of", mixed_units())
    with pytest.raises(InputError, match=telling):
        FramePlan(of, 0, 16, **settings)


def test_settings_at_their_bounds_are_accepted():
    for settings in ({"scale": (1.0, 1.0)}, {"scale": (0.01, 0.01)}, {"flip": 0}, {"flip": 1}, {"ratio": (1.0, 1.0)}):
        plan(**settings).sample(0)
