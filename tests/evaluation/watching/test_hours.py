"""Hours seen against a count of every single sample; milestones at their edges."""

from types import SimpleNamespace

import numpy as np
import pytest

from headcam.evaluation.watching import hours
from headcam.evaluation.watching.hours import HoursSeen, milestone


class Plan:
    """Seven units of uneven length, each shown once an epoch in an order of the epoch's own."""

    MICROSECONDS = np.array([500_000, 1_000_000, 333_333, 0, 1_000_000, 7, 2_500_000])

    def __init__(self):
        self.asked = 0
        self.units = self

    def __len__(self) -> int:
        return 7

    def microseconds_by_recording(self) -> np.ndarray:
        return np.array([self.MICROSECONDS[:3].sum(), self.MICROSECONDS[3:].sum()])

    def microseconds_of(self, units: np.ndarray) -> np.ndarray:
        return self.MICROSECONDS[units]

    def unit(self, i: np.ndarray) -> np.ndarray:
        self.asked += i.size
        epoch, position = np.divmod(i, 7)
        return (position * 3 + epoch) % 7


@pytest.mark.parametrize("stops", [[1, 2, 3, 9, 21, 22, 40, 70], [5, 5, 33], [0, 7, 14], [70]])
def test_hours_seen_are_those_of_every_sample_one_by_one(stops, monkeypatch):
    monkeypatch.setattr(hours, "_CHUNK", 3)
    plan = Plan()
    seen = HoursSeen(plan)
    for stop in stops:
        one_by_one = sum(int(plan.MICROSECONDS[plan.unit(np.array([i]))[0]]) for i in range(stop))
        assert seen.advance(stop) == one_by_one / 3.6e9


def test_whole_epochs_cost_nothing():
    plan = Plan()
    HoursSeen(plan).advance(7 * 10**12 + 2)
    assert plan.asked == 2


def test_still_pictures_stand_for_no_hours():
    plan = SimpleNamespace(units=Plan())
    plan.units.MICROSECONDS = np.zeros(7, np.int64)
    plan.unit = plan.units.unit
    assert HoursSeen(plan).advance(100) == 0


def test_milestones_of_every_decade():
    assert [milestone(x, None) for x in (0.0, 0.00099, 0.001, 0.00299, 0.003, 0.01, 0.9999, 1.0, 3.0, 29.9, 1e4)] == [
        *(0.0, 0.0, 0.001, 0.001, 0.003, 0.01, 0.3, 1.0, 3.0, 10.0, 1e4)
    ]


def test_milestones_as_given():
    assert [milestone(x, [5, 0.5]) for x in (0.4, 0.5, 4.9, 5, 1000)] == [0.0, 0.5, 0.5, 5, 5]
