"""The sampling law against brute force: what a run sees follows from (seed, i) alone, on any number of processes."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from headcam.errors import InputError
from headcam.video.sampling.plan import FramePlan, Sample, View, mask_noise, step_samples
from headcam.video.sampling.units import FrameUnits, JoinedUnits, RecordingFacts, StretchUnits, Units
from headcam.video.sampling.views import ColourLaw, ViewLaw

# Of the sample law before samples had several views (2026-11-21): they detect change, no more. A row is the unit, the
# time, the box, the flip and the noise.
GOLDEN_UNITS = [364, 236, 317, 849, 532]
GOLDEN = {
    "sample 1234": (465, 465.60460197978983, (84, 28, 115, 142), True, [0.41190820932388306, 0.7529314160346985]),
    "sample 0": (364, 364.26714151190026, (26, 7, 207, 206), False, [0.6796403527259827, 0.9163767099380493]),
    "replacement 1": (794, 794.9025992813928, (21, 3, 276, 218), False, [0.3751526474952698, 0.7418140769004822]),
    "replacement 2": (310, 310.7155870166838, (27, 1, 266, 234), True, [0.15999460220336914, 0.3917003273963928]),
    "lived": (79, 19.38239457633268, (0, 0, 52, 43), False, [0.4557911157608032, 0.9092676639556885]),
    "lived replacement": (63, 3.610453046486061, (8, 10, 32, 37), True, [0.9720883369445801, 0.8409841060638428]),
}


def units(seconds, recordings=3, width=64, height=48) -> FrameUnits:
    n = len(seconds)
    return FrameUnits(
        recording=(np.arange(n) * recordings // max(n, 1)).astype(np.int32),
        time_s=np.arange(n, dtype=np.float64),
        seconds=np.asarray(seconds, dtype=np.float64),
        width=np.full(n, width, np.int32),
        height=np.full(n, height, np.int32),
        row=np.arange(n),
        facts=RecordingFacts.unknown([f"r{k}" for k in range(recordings)]),
    )


def aged(ages, seconds=60.0, dates=None, unit_seconds=1.0) -> StretchUnits:
    """A recording of `seconds` for each age."""
    r = len(ages)
    return StretchUnits(
        recording=np.arange(r, dtype=np.int32),
        start_s=np.zeros(r),
        end_s=np.broadcast_to(np.asarray(seconds, float), r).copy(),
        unit_seconds=unit_seconds,
        width=np.full(r, 64, np.int32),
        height=np.full(r, 48, np.int32),
        row=np.arange(r),
        facts=RecordingFacts(
            ids=np.array([f"r{k}" for k in range(r)]),
            source=np.zeros(r, np.int32),
            source_names=("",),
            age_days=np.array(ages, float),
            recorded_on=np.full(r, np.nan) if dates is None else np.array(dates, float),
        ),
    )


def mixed_units(n: int = 37) -> Units:
    """Seconds of video with shorter ends, and still pictures that stand for none."""
    return units([0.0 if k % 5 == 0 else 0.37 if k % 7 == 0 else 1.0 for k in range(n)])


def law(noise: int = 16, **settings) -> tuple[ViewLaw]:
    """What a masked autoencoder asks for."""
    return (ViewLaw("image", (32, 32), noise=noise, **settings),)


DINO = (
    ViewLaw("global", (32, 32), 2, (0.4, 1.0), colours=(ColourLaw(blur=1.0), ColourLaw(blur=0.1, solarize=0.2))),
    ViewLaw("local", (16, 16), 5, (0.05, 0.4), colours=(ColourLaw(),), noise=3),
)


def plan(of: Units | None = None, seed: int = 0, views: tuple[ViewLaw, ...] = law(), **settings) -> FramePlan:
    return FramePlan(of or mixed_units(), seed, views, **settings)


def only(sample: Sample) -> View:
    """The view of a sample that has one."""
    ((view,),) = sample.views
    return view


def facts_of(sample: Sample) -> list:
    """Everything that was drawn, in a form that can be compared."""
    views = [(v.crop, v.flip, v.colour, v.noise.tolist()) for group in sample.views for v in group]
    return [sample.i, sample.unit, sample.time_s, *views]


def same(a, b) -> bool:
    return facts_of(a) == facts_of(b)


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
        crop, noise = only(s).crop, only(s).noise
        assert 0 <= crop.left and crop.left + crop.width <= 64
        assert 0 <= crop.top and crop.top + crop.height <= 48
        assert noise.dtype == np.float32 and noise.shape == (16,) and (0 <= noise).all() and (noise < 1).all()


def test_flips_come_at_their_probability():
    flips = sum(only(plan().sample(i)).flip for i in range(1000))
    assert 430 < flips < 570
    assert not any(only(plan(flip=0).sample(i)).flip for i in range(50))
    assert all(only(plan(flip=1).sample(i)).flip for i in range(50))


def test_mask_noise_is_uniform_and_free_of_the_number_of_patches_before_it():
    noise = np.concatenate([mask_noise(0, i, 64) for i in range(200)])
    assert stats.kstest(noise, "uniform").pvalue > 1e-3
    assert np.array_equal(mask_noise(0, 5, 64)[:16], mask_noise(0, 5, 16))


def test_samples_of_one_view_are_those_of_earlier_versions():
    p = FramePlan(units(np.ones(1000), width=320, height=240), 7, law(4))
    assert p.unit(np.array([0, 1, 999, 1000, 54321])).tolist() == GOLDEN_UNITS
    lived = FramePlan(aged([3, 1, 2]), 7, law(4), scale=(0.08, 1.0), order="lived", window_hours=1 / 60)
    drawn = {
        "sample 1234": p.sample(1234),
        "sample 0": p.sample(0),
        "replacement 1": p.replacement(1234, 1),
        "replacement 2": p.replacement(1234, 2),
        "lived": lived.sample(200),
        "lived replacement": lived.replacement(200, 3),
    }
    for name, sample in drawn.items():
        view = only(sample)
        found = sample.unit, sample.time_s, tuple(view.crop), view.flip, view.noise[:2].tolist()
        assert found == GOLDEN[name], name
        assert view.noise.shape == (4,) and view.colour is None


def test_no_law_moves_the_draws_of_another():
    """A second law, more views or colours leave the numbers of the others as they are."""
    of = units(np.ones(100), width=320, height=240)
    coloured = law(colours=(ColourLaw(),))
    small = ViewLaw("small", (16, 16), 3, (0.1, 0.3), noise=2)
    for i in range(20):
        alone, more = plan(of).sample(i), plan(of, views=(*law(), small)).sample(i)
        assert facts_of(more)[:4] == facts_of(alone)
        more_still = plan(of, views=(*coloured, replace(small, count=5))).sample(i)
        assert facts_of(more_still)[4:7] == facts_of(more)[4:7]
        view, other = only(alone), more_still.views[0][0]
        assert (view.crop, view.flip) == (other.crop, other.flip) and np.array_equal(view.noise, other.noise)
        assert view.colour is None and other.colour is not None


def test_every_view_is_a_draw_of_its_own_from_its_own_law():
    p = plan(units(np.ones(100), width=320, height=240), views=DINO, flip=0.5)
    drawn = [[v for group in p.sample(i).views for v in group] for i in range(400)]
    assert all(len(views) == 7 for views in drawn)
    area = np.array([[v.crop.width * v.crop.height / (320 * 240) for v in views] for views in drawn])
    assert (area[:, :2] > 0.39).all() and (area[:, 2:] < 0.41).all() and (area[:, 2:] > 0.04).all()
    left = np.array([[v.crop.left / max(1, 320 - v.crop.width) for v in views] for views in drawn])
    flips = np.array([[v.flip for v in views] for views in drawn], float)
    for values in (area, left, flips):
        together = np.corrcoef(values.T) - np.eye(7)
        assert np.abs(together).max() < 0.21  # 4 standard errors of 0.05
    blurred = np.array([[v.colour.blur > 0 for v in views] for views in drawn]).mean(axis=0)
    solarized = np.array([[v.colour.solarize for v in views] for views in drawn]).mean(axis=0)
    assert blurred[0] == 1 and 0.03 < blurred[1] < 0.2 and (np.abs(blurred[2:] - 0.5) < 0.1).all()
    assert solarized[0] == 0 and 0.1 < solarized[1] < 0.3 and (solarized[2:] == 0).all()
    assert len({v.noise.tobytes() for views in drawn for v in views[2:]}) == 2000  # 5 views of 400 samples
    assert drawn[0][0].noise.shape == (0,) and drawn[0][2].noise.shape == (3,)


def test_stages_change_the_views_from_a_sample_on_and_nothing_else():
    larger = law(64, scale=(0.5, 0.6))
    p = plan(stages=((10, larger), (20, DINO)))
    assert [p.laws(i)[0].name for i in (0, 9, 10, 19, 20, 1000)] == ["image"] * 4 + ["global"] * 2
    for i in range(30):
        wanted = plan(views=(law(), larger, DINO)[i // 10]).sample(i)
        assert same(p.sample(i), wanted)
    assert same(p.replacement(15, 2), plan(views=larger).replacement(15, 2))
    with pytest.raises(InputError, match=r"stages start at the samples \[0, 10, 10\]"):
        plan(stages=((10, larger), (10, DINO)))


def test_a_digest_names_the_samples_and_their_views():
    p = plan(views=DINO)
    assert p.digest(5, 20) == plan(views=DINO).digest(5, 20) and len(p.digest(5, 20)) == 64
    others = [p.digest(5, 21), p.digest(4, 20), plan(views=DINO, seed=1).digest(5, 20), plan().digest(5, 20)]
    others += [plan(views=DINO, flip=1).digest(5, 20), plan(views=DINO[:1]).digest(5, 20)]
    assert len({p.digest(5, 20), *others}) == 7


@pytest.mark.parametrize("window_minutes", [1, 2.5, 7, 1000])
def test_the_order_lived_takes_windows_one_after_the_other_and_mixes_within(window_minutes):
    rng = np.random.default_rng(0)
    ages, lengths = rng.permutation(20).astype(float), rng.uniform(0.4, 100, 20)
    of = aged(ages, lengths)
    p = FramePlan(of, 0, law(), order="lived", window_hours=window_minutes / 60)
    n = len(of)
    # The same, said with lists: units by age; each in the window that the video before it falls into.
    by_age = sorted(range(n), key=lambda u: (ages[of.recording_of(u)], of.time_of(u)))
    passed, windows = 0, {}
    for u in by_age:
        windows.setdefault(passed // round(window_minutes * 60e6), []).append(u)
        passed += int(of.microseconds_of(u))
    for epoch in range(2):
        drawn = p.unit(np.arange(epoch * n, (epoch + 1) * n)).tolist()
        for wanted in windows.values():
            part, drawn = drawn[: len(wanted)], drawn[len(wanted) :]
            assert sorted(part) == sorted(wanted)
            assert len(part) < 20 or part != wanted  # mixed
        assert drawn == []
    first, second = p.unit(np.arange(2 * n)).reshape(2, n)
    assert not np.array_equal(first, second)
    assert [p.sample(i).unit for i in range(0, 2 * n, 97)] == p.unit(np.arange(0, 2 * n, 97)).tolist()


def test_the_order_lived_runs_over_sources_and_breaks_ties_by_recording():
    a, b = aged([300, 10], 5), aged([200, 10], 3)
    p = FramePlan(JoinedUnits([a, b]), 0, law(), order="lived", window_hours=1 / 3600)
    assert p.unit(np.arange(16)).tolist() == [5, 6, 7, 8, 9, 13, 14, 15, 10, 11, 12, 0, 1, 2, 3, 4]


def test_stills_fall_into_the_window_in_which_they_were_taken():
    p = FramePlan(aged([3, 1, 2, 4], [60, 60, 0, 0]), 0, law(), order="lived", window_hours=1 / 60)
    drawn = p.unit(np.arange(122))
    assert sorted(drawn[:61]) == [*range(60, 121)] and sorted(drawn[61:]) == [*range(60), 121]


@pytest.mark.parametrize(
    "ages, dates, telling",
    [
        ([1, np.nan, np.nan], None, "2 of 3 recordings have neither age nor date.*headcam index --metadata"),
        ([1, 2, np.nan], [np.nan, 7, 8], "2 of 3 recordings have an age and 2 a date, none all"),
        ([np.nan] * 2, None, "2 of 2 recordings have neither"),
    ],
)
def test_an_order_that_nobody_knows_is_refused(ages, dates, telling):
    with pytest.raises(InputError, match=telling):
        FramePlan(aged(ages, dates=dates), 0, law(), order="lived")
    FramePlan(aged(ages, dates=dates), 0, law())


def test_dates_order_where_ages_are_incomplete():
    p = FramePlan(aged([1, np.nan], 3, dates=[9, 8]), 0, law(), order="lived", window_hours=1 / 3600)
    assert p.unit(np.arange(6)).tolist() == [3, 4, 5, 0, 1, 2]


def test_a_replacement_is_an_independent_draw_from_the_same_law():
    p = plan(units(np.ones(50)))
    drawn = [p.replacement(i, attempt) for i in range(1000) for attempt in (1, 2)]
    counts = np.bincount([s.unit for s in drawn], minlength=50)
    assert stats.chisquare(counts).pvalue > 1e-3
    own = [p.sample(i // 2) for i in range(2000)]
    assert sum(a.unit == b.unit for a, b in zip(drawn, own)) < 80  # 40 by chance
    assert abs(stats.spearmanr([s.time_s % 1 for s in drawn], [s.time_s % 1 for s in own]).statistic) < 0.1
    pairs = [(only(a), only(b)) for a, b in zip(drawn[:50], own)]
    assert not any(np.array_equal(a.noise, b.noise) or a.crop == b.crop for a, b in pairs)
    assert [s.i for s in drawn] == [s.i for s in own]
    assert same(p.replacement(7, 2), plan(units(np.ones(50))).replacement(7, 2))
    assert not same(p.replacement(7, 2), p.replacement(7, 1))


def test_a_replacement_of_the_order_lived_comes_from_the_same_window():
    of = aged([2, 1, 3], 10)
    p = FramePlan(of, 0, law(), order="lived", window_hours=10 / 3600)
    for i in range(60):
        found = {p.replacement(i, attempt).unit for attempt in range(1, 80)}
        assert found == set(range(10 * (1, 0, 2)[i % 30 // 10], 10 * (1, 0, 2)[i % 30 // 10] + 10))


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


@pytest.mark.parametrize(
    "settings, telling",
    [
        ({"scale": (0.0, 1.0)}, r"crop scale \(0.0, 1.0\) is no range in \(0, 1\]"),
        ({"scale": (0.5, 0.2)}, "crop scale"),
        ({"scale": (0.2, 1.1)}, "crop scale"),
        ({"scale": (float("nan"), 1.0)}, "crop scale"),
        ({"flip": 1.5}, "flip is 1.5, no probability"),
        ({"flip": float("nan")}, "flip is nan"),
        ({"of": units([])}, "no frame to draw from"),
        ({"order": "random"}, "order 'random' is unknown. Fix: use one of shuffled, lived"),
        ({"of": aged([1.0]), "order": "lived", "window_hours": 0}, "window_hours is 0"),
        ({"of": aged([1.0]), "order": "lived", "window_hours": float("nan")}, "window_hours is nan"),
        ({"of": aged([1.0], 0), "order": "lived"}, "all data are still pictures"),
    ],
)
def test_settings_out_of_range_are_refused(settings, telling):
    of = settings.pop("of", mixed_units())
    with pytest.raises(InputError, match=telling):
        FramePlan(of, 0, law(), **settings)


def test_settings_at_their_bounds_are_accepted():
    for settings in ({"scale": (1.0, 1.0)}, {"scale": (0.01, 0.01)}, {"flip": 0}, {"flip": 1}):
        plan(**settings).sample(0)
