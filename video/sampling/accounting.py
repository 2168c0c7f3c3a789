"""What a run has lived through: unique hours, samples and passes of each source, and what could not be decoded.

All of it is a pure function of the plan, the number of samples drawn, and the list of pictures that could not be
decoded; it is kept up to date step by step, and a resumed run counts as one that never stopped.

A unit is lived once a sample of the plan's own order shows it. A unit whose picture could not be decoded is not, and
adds its hours only when a later epoch can decode it; a picture that stands in for it is a sample of its own source,
and its unit's hours are counted when its own turn comes. So hours are never more than what was seen.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from headcam.errors import InputError
from headcam.video.sampling.plan import FramePlan

_LEAST_SAMPLES = 1000  # a share of fewer samples than these is taken of these
_CHUNK = 1 << 20
_UNKNOWN = "unknown"
_HOUR_US = 3.6e9


@dataclass(frozen=True, order=True)
class Undecoded:
    """A picture that was drawn and could not be decoded.

    Attributes:
        sample: number of the sample that it was drawn for.
        attempt: 0 for the plan's own draw, 1 for its first replacement, ...
        recording, source: where it should have come from.
        time_s: the wanted time in the recording, in seconds.
        reason: one line.
    """

    sample: int
    attempt: int
    recording: str
    source: str
    time_s: float
    reason: str


class Account:
    """The account of a run with plan `plan`; `advance` it to the number of samples that the run has drawn.

    Attributes:
        samples: drawn so far, each counted once however often it was replaced.
        undecoded: pictures that could not be decoded, in the order of samples.
        replaced: samples among `samples` that show another picture than the plan's own.
        sources: names of the sources of the plan's units, sorted.
    """

    def __init__(self, plan: FramePlan):
        self.plan = plan
        units = plan.units
        names = np.array([name or _UNKNOWN for name in units.facts.source_names])[units.facts.source]
        sources, self._source_of = np.unique(names, return_inverse=True)
        self.sources: tuple[str, ...] = tuple(sources.tolist())
        self._counts = self._by_source(units.counts_by_recording())
        self._available = self._by_source(units.microseconds_by_recording())
        self.samples = self.replaced = 0
        self.undecoded: list[Undecoded] = []
        self._drawn = np.zeros(len(sources), np.int64)  # samples
        self._lived = np.zeros(len(sources), np.int64)  # microseconds
        self._missing: set[int] = set()  # units whose turn came and that were never decoded

    def advance(self, samples: int, undecoded: Iterable[Undecoded] = ()) -> None:
        """Go on to `samples`, of which `undecoded` are the pictures that failed since the last call."""
        failed = sorted(undecoded)
        n = len(self.plan.units)
        lost = np.array([u.sample for u in failed if u.attempt == 0], dtype=np.int64)
        start = self.samples
        while start < samples:
            end = min(samples, (start // n + 1) * n)
            here = lost[(lost >= start) & (lost < end)]
            self._live(start, end, set(self.plan.unit(here).tolist()))
            start = end
        self._replace(failed, lost)
        self.samples = max(self.samples, samples)
        self.undecoded += failed
        self.replaced += len(lost)

    def _live(self, start: int, end: int, failed: set[int]) -> None:
        """Count the samples `start` .. `end` - 1 of one epoch; `failed` are the units among theirs that failed."""
        first, whole = start < len(self.plan.units), end - start == len(self.plan.units)
        if whole:  # what is in it is known without looking
            self._drawn += self._counts
            if first:
                self._lived += self._available - self._microseconds(np.array(sorted(failed), np.int64))
            else:
                self._find(self._missing - failed)
        elif first or self._missing or len(self.sources) > 1:
            for units in self._units(start, end):
                self._drawn += np.bincount(self._sources(units), minlength=len(self.sources))
                if first:
                    self._lived += self._microseconds(units[~np.isin(units, list(failed))])
                elif self._missing:
                    self._find(self._missing.intersection(units.tolist()) - failed)
        else:
            self._drawn += end - start  # all of the only source
        if first:
            self._missing |= failed

    def _find(self, units: set[int]) -> None:
        """Units that were missing and now were decoded."""
        self._lived += self._microseconds(np.array(sorted(units), np.int64))
        self._missing -= units

    def _replace(self, failed: list[Undecoded], lost: np.ndarray) -> None:
        """Samples count for the source of the picture that they show."""
        if len(self.sources) > 1 and len(lost):
            attempts = Counter(u.sample for u in failed)
            shown = np.array([self.plan.replacement(int(i), attempts[int(i)]).unit for i in lost], np.int64)
            np.subtract.at(self._drawn, self._sources(self.plan.unit(lost)), 1)
            np.add.at(self._drawn, self._sources(shown), 1)

    def refuse_beyond(self, most: float) -> None:
        """Stop a run of whose samples more than the share `most` were replaced; a share of at least 1,000 samples.

        Raises:
            InputError: names the recordings with most of the damage.
        """
        if self.replaced > most * max(self.samples, _LEAST_SAMPLES):
            worst = Counter(u.recording for u in self.undecoded).most_common(3)
            names = ", ".join(f"{name} ({count})" for name, count in worst)
            raise InputError(
                f"{self.replaced} of {self.samples} samples could not be decoded, more than the share "
                f"data.max_replaced {most:g} allows; most of them in {names}",
                "find the damage with headcam scan, so that training uses verified seconds only; "
                "replaced.csv in the run folder lists what was met",
            )

    @property
    def hours(self) -> float:
        """Unique hours of video that were seen."""
        return int(self._lived.sum()) / _HOUR_US

    def by_source(self) -> dict[str, dict[str, float]]:
        """For each source: unique `hours` lived, `hours_available`, `units`, `samples`, and `passes` over its units."""
        return {
            name: {
                "hours": int(self._lived[k]) / _HOUR_US,
                "hours_available": int(self._available[k]) / _HOUR_US,
                "units": int(self._counts[k]),
                "samples": int(self._drawn[k]),
                "passes": int(self._drawn[k]) / int(self._counts[k]),
            }
            for k, name in enumerate(self.sources)
        }

    def _units(self, start: int, end: int) -> Iterator[np.ndarray]:
        for at in range(start, end, _CHUNK):
            yield self.plan.unit(np.arange(at, min(at + _CHUNK, end)))

    def _sources(self, units: np.ndarray) -> np.ndarray:
        return self._source_of[self.plan.units.recording_of(units)]

    def _microseconds(self, units: np.ndarray) -> np.ndarray:
        """Video that `units` stand for, by source."""
        out = np.zeros(len(self.sources), np.int64)
        np.add.at(out, self._sources(units), self.plan.units.microseconds_of(units))
        return out

    def _by_source(self, values: np.ndarray) -> np.ndarray:
        out = np.zeros(len(self.sources), np.int64)
        np.add.at(out, self._source_of, values)
        return out
