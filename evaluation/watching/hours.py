"""How many hours of video a run has seen, repeats included, and the milestones on its way.

Two counts of hours stand beside each other in headcam. Hours *lived* are unique: a second counts once however often it
was shown (`headcam.video.sampling.accounting`). Hours *seen* are samples drawn times the seconds that each stands for:
a run that shows one hour ten times has lived one hour and seen ten. In the first pass over the data both are equal.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from headcam.video.sampling.plan import FramePlan

FIRST_MILESTONE = 0.001  # hours
_CHUNK = 1 << 20  # samples looked at a time
_HOUR_US = 3.6e9


class HoursSeen:
    """Hours that the samples of a plan stand for, one after the other; `advance` goes on to a number of samples.

    A pure function of the plan and that number: a resumed run counts as one that never stopped. Where a picture could
    not be decoded, the sample counts as the plan drew it, not as what stood in for it.
    """

    def __init__(self, plan: FramePlan):
        self.plan = plan
        self._samples = self._microseconds = 0
        self._epoch = int(plan.units.microseconds_by_recording().sum())

    def advance(self, samples: int) -> float:
        """Hours of the samples 0 .. `samples` - 1; `samples` is not less than at the call before."""
        n = len(self.plan.units)
        while self._samples < samples:
            start = self._samples
            if start % n == 0 and samples - start >= n:  # whole epochs show every unit once: nothing to look at
                epochs = (samples - start) // n
                self._samples += epochs * n
                self._microseconds += epochs * self._epoch
            else:
                self._samples = min(samples, start + _CHUNK, (start // n + 1) * n)
                units = self.plan.unit(np.arange(start, self._samples))
                self._microseconds += int(self.plan.units.microseconds_of(units).sum())
        return self._microseconds / _HOUR_US


def milestone(hours: float, milestones: Sequence[float] | None) -> float:
    """The last milestone up to `hours`, 0 before the first.

    Args:
        milestones: in hours, any order; None: 1, 3, 10, 30, ... in every decade from `FIRST_MILESTONE` on.

    >>> [milestone(hours, None) for hours in (0.0005, 0.003, 2.9, 40)]
    [0.0, 0.003, 1.0, 30.0]
    """
    if milestones is not None:
        return max((at for at in milestones if at <= hours), default=0.0)
    rising = (FIRST_MILESTONE * 10**decade * step for decade in itertools.count() for step in (1, 3))
    found = 0.0
    for at in rising:
        at = round(at, 3)  # 0.001 * 3 is not 0.003 in binary
        if at > hours:
            return found
        found = at
