"""The account of a run against sets of units: whatever fails, and however the run was cut into pieces."""

from collections import Counter

import numpy as np
import pytest

from headcam.errors import InputError
from headcam.video.sampling.accounting import Account, Undecoded
from headcam.video.sampling.plan import FramePlan
from headcam.video.sampling.units import FrameUnits, RecordingFacts
from headcam.video.sampling.views import ViewLaw

SOURCES = ("babyview", "", "saycam")  # of the recordings r0, r1, r2, ...; in turn


def plan(recordings=6, frames=7, order="shuffled", sources=SOURCES) -> FramePlan:
    n = recordings * frames
    facts = RecordingFacts(
        ids=np.array([f"r{k}" for k in range(recordings)]),
        source=(np.arange(recordings) % len(sources)).astype(np.int32),
        source_names=sources,
        age_days=np.arange(recordings, dtype=float),
        recorded_on=np.full(recordings, np.nan),
    )
    units = FrameUnits(
        recording=np.repeat(np.arange(recordings, dtype=np.int32), frames),
        time_s=np.tile(np.arange(frames, dtype=float), recordings),
        seconds=np.random.default_rng(0).uniform(0.1, 2, n),
        width=np.full(n, 64, np.int32),
        height=np.full(n, 48, np.int32),
        row=np.arange(n),
        facts=facts,
    )
    return FramePlan(units, 3, (ViewLaw("image", (32, 32)),), order=order, window_hours=10 / 3600)


def drawn(p: FramePlan, samples: int, fails) -> tuple[list[Undecoded], list[int]]:
    """What the data set would report, and the unit that each sample shows in the end."""
    found, shown = [], []
    for i in range(samples):
        attempt, unit = 0, p.sample(i).unit
        while fails(unit, i, attempt):
            name = p.units.recordings[p.units.recording_of(unit)]
            found.append(Undecoded(i, attempt, name, "", float(p.units.time_of(unit)), "torn"))
            attempt += 1
            unit = p.replacement(i, attempt).unit
        shown.append(unit)
    return found, shown


FAILURES = {
    "none": lambda unit, i, attempt: False,
    "always some": lambda unit, i, attempt: unit % 9 == 4,
    "first epoch only": lambda unit, i, attempt: i < 42 and unit % 5 == 0,
    "at random": lambda unit, i, attempt: (unit * 7919 + i * 31 + attempt) % 6 == 0,
}


@pytest.mark.parametrize("order", ["shuffled", "lived"])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("samples", [1, 20, 42, 43, 84, 200])
def test_hours_samples_and_passes_are_those_of_sets(order, failure, samples):
    p = plan(order=order)
    n, units = len(p.units), p.units
    found, shown = drawn(p, samples, FAILURES[failure])
    failed = {u.sample for u in found if u.attempt == 0}
    lived = {int(p.unit(np.array([i]))[0]) for i in range(samples) if i not in failed}
    names = [units.sources[units.recording_of(u)] or "unknown" for u in range(n)]
    samples_by = Counter(names[u] for u in shown)

    account = Account(p)
    account.advance(samples, found)
    assert account.hours * 3600 == pytest.approx(sum(float(units.seconds_of(u)) for u in lived), abs=1e-6 * n)
    assert account.samples == samples and account.replaced == len(failed)
    for name, facts in account.by_source().items():
        of = [u for u in range(n) if names[u] == name]
        assert facts["samples"] == samples_by[name] and facts["passes"] == samples_by[name] / len(of)
        assert facts["hours"] * 3600 == pytest.approx(
            sum(float(units.seconds_of(u)) for u in lived & set(of)), abs=1e-4
        )
        assert facts["hours_available"] * 3600 == pytest.approx(units.seconds_of(np.array(of)).sum(), abs=1e-4)
        assert facts["units"] == len(of)
    assert sum(facts["samples"] for facts in account.by_source().values()) == samples
    assert account.sources == ("babyview", "saycam", "unknown")


@pytest.mark.parametrize("sources", [SOURCES, ("",)])
@pytest.mark.parametrize("failure", FAILURES)
def test_the_account_does_not_depend_on_where_a_run_was_looked_at(failure, sources):
    p = plan(sources=sources)
    found, _ = drawn(p, 300, FAILURES[failure])
    whole = Account(p)
    whole.advance(300, reversed(found))  # of several processes, in any order
    for cuts in ([7, 42, 84, 299, 300], list(range(1, 301)), [41, 85, 300], [300, 300]):
        parts, start = Account(p), 0
        for end in cuts:
            parts.advance(end, [u for u in found if start <= u.sample < end])
            start = end
        assert parts.by_source() == whole.by_source() and parts.hours == whole.hours  # to the last digit
        assert (parts.replaced, parts.undecoded) == (whole.replaced, whole.undecoded) and parts.undecoded == found


def test_a_share_that_is_too_large_stops_and_names_the_worst_recordings():
    p = plan()
    worst = [Undecoded(i, 0, "r2" if i % 3 else "r4", "", 0.0, "torn") for i in range(12)]
    account = Account(p)
    account.advance(50, worst[:10])
    account.refuse_beyond(0.01)  # 10 of at least 1,000
    account.advance(60, [Undecoded(55, 0, "r2", "", 0.0, "torn")])
    telling = r"11 of 60 samples could not be decoded.*max_replaced 0\.01 .*in r2 \(7\), r4 \(4\)\. Fix: .*headcam scan"
    with pytest.raises(InputError, match=telling):
        account.refuse_beyond(0.01)
    account.refuse_beyond(0.011)
    with pytest.raises(InputError, match="max_replaced 0 allows"):
        account.refuse_beyond(0)
    account.advance(1100)
    account.refuse_beyond(0.01)  # 11 of 1,100
