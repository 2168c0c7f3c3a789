"""The sampling law: what sample i of a run is follows from (units, settings, seed, i) alone.

An epoch visits every unit (`headcam.video.sampling.units`) once. Shuffled, its order is a keyed permutation of all
units; in the order lived, units come by age or date in windows of some hours of video, permuted within each window.
Within its unit a sample gets a time, and each of its views (`headcam.video.sampling.views`) a crop box, a flip, colours
and the noise that decides its mask, each from its own counter-based stream. Nothing is remembered between samples, so a
run resumes from its step number, on any number of workers or processes, and what it has lived through follows from the
number of samples that it has drawn (`headcam.video.sampling.accounting`). A picture that cannot be decoded is replaced
by an independent draw from the same law.
"""

import hashlib
import math
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from headcam.errors import InputError
from headcam.randomness import permuted, stream
from headcam.video.colour import Colour, draw_colour
from headcam.video.sampling.units import Units
from headcam.video.sampling.views import ViewLaw
from headcam.video.transforms import Box, crop_box

ORDERS = ("shuffled", "lived")

_HOUR_US = 3_600_000_000  # microseconds


Stages = Sequence[tuple[int, tuple[ViewLaw, ...]]]


@dataclass(frozen=True)
class View:
    """One view of a sample.

    Attributes:
        crop: box in pixels of the upright picture.
        flip: mirrored left to right.
        colour: what its colours go through; None: they stay.
        noise: (n,) float32 in [0, 1), as many numbers as its law asks for; the patches with the smallest values stay
            visible.
    """

    crop: Box
    flip: bool
    colour: Colour | None
    noise: np.ndarray


@dataclass(frozen=True)
class Sample:
    """Sample i of a run.

    Attributes:
        i: its number in the run, from 0.
        unit: number of the unit that it was drawn from.
        time_s: the wanted time in seconds from the start of the recording (the frame on screen then is the picture).
        views: `views[g][v]` is view v of law g.
    """

    i: int
    unit: int
    time_s: float
    views: tuple[tuple[View, ...], ...]


@dataclass(frozen=True)
class FramePlan:
    """The pure function i -> `Sample`.

    Args:
        units: what can be drawn; at least one.
        seed: of the run; other seeds are independent draws.
        views: laws of the views of a sample.
        scale: range of a crop's area as a fraction of the picture's (MAE: 0.2 to 1), where a law leaves it open.
        flip: probability of mirroring, where a law leaves it open.
        order: `shuffled`, or `lived` for a curriculum in the order of the wearer's age (or the date).
        window_hours: hours of video in a window of the order `lived`.
        stages: (first sample, laws) of later stages of a run, in whose samples other laws hold, such as larger views.
    Raises:
        InputError: no units, a setting out of range, or an order that ages and dates do not give.
    """

    units: Units
    seed: int
    views: tuple[ViewLaw, ...]
    scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    order: str = "shuffled"
    window_hours: float = 10.0
    stages: Stages = ()

    def __post_init__(self) -> None:
        if len(self.units) == 0:
            raise InputError("there is no frame to draw from", "index and store a folder with readable recordings")
        if self.order not in ORDERS:
            raise InputError(f"order {self.order!r} is unknown", f"use one of {', '.join(ORDERS)}")
        stages = [(0, self.views), *self.stages]
        if any(later[0] <= earlier[0] for earlier, later in pairwise(stages)):
            raise InputError(f"stages start at the samples {[first for first, _ in stages]}", "let them rise from 0")
        settled = [tuple(law.with_defaults(self.scale, self.flip) for law in views) for _, views in stages]
        lived = LivedOrder(self.units, self.window_hours) if self.order == "lived" else None
        object.__setattr__(self, "_firsts", [first for first, _ in stages])
        object.__setattr__(self, "_laws", settled)
        object.__setattr__(self, "_lived", lived)

    def laws(self, i: int) -> tuple[ViewLaw, ...]:
        """Laws of the views of sample i, with nothing left open."""
        return self._laws[bisect_right(self._firsts, i) - 1]

    def unit(self, i: np.ndarray) -> np.ndarray:
        """Units of the samples `i` (int64, any shape): epoch i // n visits every unit once in its own keyed order."""
        i = np.asarray(i, dtype=np.int64)
        epoch, position = np.divmod(i, len(self.units))
        out = np.empty(i.shape, dtype=np.int64)
        for one in range(epoch.min(initial=0), epoch.max(initial=-1) + 1):
            chosen = epoch == one
            out[chosen] = self._unit(one, position[chosen])
        return out

    def _unit(self, epoch: int, position: np.ndarray) -> np.ndarray:
        if self._lived is None:
            return permuted(position, len(self.units), self.seed, f"epoch {epoch}")
        out = np.empty(position.shape, dtype=np.int64)
        windows = self._lived.window(position)
        for window in np.unique(windows):
            chosen = windows == window
            start, end = self._lived.bounds(int(window))
            mixed = permuted(position[chosen] - start, end - start, self.seed, f"epoch {epoch} window {window}")
            out[chosen] = self._lived.unit(start + mixed)
        return out

    def sample(self, i: int) -> Sample:
        """Sample number i (0 <= i)."""
        return self._within(int(self.unit(np.array([i]))[0]), i, "")

    def replacement(self, i: int, attempt: int) -> Sample:
        """An independent draw from the law of sample i, for when its picture cannot be decoded.

        Every unit is as likely as any other; in the order `lived`, every unit of the same window.

        Args:
            i: number of the sample.
            attempt: 1 for its first replacement, 2 where that cannot be decoded either, ...
        """
        start, end = 0, len(self.units)
        if self._lived is not None:
            start, end = self._lived.bounds(int(self._lived.window(np.int64(i % end))))
        position = stream(self.seed, f"replacement {attempt}", i).integers(start, end)
        unit = position if self._lived is None else self._lived.unit(position)
        return self._within(int(unit), i, f" of replacement {attempt}")

    def _within(self, unit: int, i: int, draw: str) -> Sample:
        """Where and how sample i is cut from its unit; `draw` sets the streams of a replacement apart."""
        units = self.units
        width, height = units.size_of(unit)
        within = stream(self.seed, "time" + draw, i).random()
        return Sample(
            i=i,
            unit=unit,
            time_s=float(units.time_of(unit) + within * units.seconds_of(unit)),
            views=draw_views(self.laws(i), int(width), int(height), self.seed, i, after=draw),
        )

    def digest(self, start: int, stop: int) -> str:
        """SHA-256 over unit, time, crops and flips of the samples start .. stop - 1.

        Equal digests prove that two runs saw the same samples, on however many processes and however often resumed.
        """
        seen = hashlib.sha256()
        for i in range(start, stop):
            sample = self.sample(i)
            seen.update(struct.pack("<qqd", i, sample.unit, sample.time_s))
            for view in (view for views in sample.views for view in views):
                seen.update(struct.pack("<4d?", *view.crop, view.flip))
        return seen.hexdigest()


def draw_views(
    laws: Sequence[ViewLaw], width: int, height: int, seed: int, counter: int, before: str = "", after: str = ""
) -> tuple[tuple[View, ...], ...]:
    """Draw all views of one picture: `[g][v]` is view v of law g.

    Every number comes from a stream of its own, so that no law moves the draws of another. The first view of the first
    law has the streams "crop", "flip", "colour" and "mask"; view v of a law has "crop <name> <v>" and so on.

    Args:
        laws: with nothing left open (`ViewLaw.with_defaults`).
        width, height: of the upright picture in pixels.
        seed, counter: of the streams.
        before, after: what stands around the names of the streams and sets draws of another kind apart.
    """

    def draw(law: ViewLaw, v: int) -> View:
        name = after if v == 0 and law is laws[0] else f" {law.name} {v}{after}"
        colour = law.colour(v)
        return View(
            crop=crop_box(stream(seed, f"{before}crop{name}", counter), width, height, law.scale, law.ratio),
            flip=bool(stream(seed, f"{before}flip{name}", counter).random() < law.flip),
            colour=None if colour is None else draw_colour(stream(seed, f"{before}colour{name}", counter), colour),
            noise=mask_noise(seed, counter, law.noise, f"{before}mask{name}"),
        )

    return tuple(tuple(draw(law, v) for v in range(law.views)) for law in laws)


class LivedOrder:
    """Units in the order lived, and the windows that this order is cut into.

    Recordings come by age (or date), then by id; units of a recording by time. A window holds the units that start
    within its hours of video, counted along this order. Memory for each recording and window, none for each unit.

    Raises:
        InputError: an age or date is unknown, they are of mixed kinds, or there is no video; a window of no length.
    """

    def __init__(self, units: Units, window_hours: float):
        if not (math.isfinite(window_hours) and window_hours > 0):
            raise InputError(f"window_hours is {window_hours}", "give hours of video above 0, such as 10")
        when = _when_lived(units)
        counts, lasting = units.counts_by_recording(), units.microseconds_by_recording()
        order = np.lexsort((units.facts.ids, when))
        self._first = (np.cumsum(counts) - counts)[order]  # number of a recording's first unit
        self._ends = np.cumsum(counts[order])  # position behind a recording's last unit
        passed = np.cumsum(lasting[order])  # video up to the recording's end
        if not passed[-1]:
            raise InputError("order is lived, but all data are still pictures, which last no time", "use shuffled")
        window = max(1, round(window_hours * _HOUR_US))
        marks = np.arange(window, passed[-1], window)  # where windows start, in microseconds of video
        at = np.searchsorted(passed, marks, side="right")
        edges = [0, int(self._ends[-1])]
        for k in np.unique(at):
            here = np.arange(counts[order[k]])
            starts = units.microseconds_of(self._first[k] + here).cumsum() + passed[k] - lasting[order[k]]
            starts = np.concatenate([[passed[k] - lasting[order[k]]], starts])
            edges += (self._ends[k] - len(here) + np.searchsorted(starts, marks[at == k])).tolist()
        self.edges = np.unique(np.array(edges, dtype=np.int64))  # positions: window w is edges[w] .. edges[w + 1] - 1

    def window(self, position: np.ndarray) -> np.ndarray:
        """Number of the window that holds a position in the order."""
        return self.edges.searchsorted(position, side="right") - 1

    def bounds(self, window: int) -> tuple[int, int]:
        """First position of a window, and the one behind its last."""
        return int(self.edges[window]), int(self.edges[window + 1])

    def unit(self, position: np.ndarray) -> np.ndarray:
        """Number of the unit at a position in the order."""
        k = self._ends.searchsorted(position, side="right")
        counts_before = np.where(k > 0, self._ends[k - 1], 0)
        return self._first[k] + position - counts_before


def _when_lived(units: Units) -> np.ndarray:
    when = units.lived
    missing = int(np.isnan(when).sum())
    if missing:
        ages, dates = (int(np.isfinite(x).sum()) for x in (units.facts.age_days, units.facts.recorded_on))
        both = np.isnan(units.facts.age_days) & np.isnan(units.facts.recorded_on)
        if both.any():
            problem = f"order is lived, but {int(both.sum())} of {len(when)} recordings have neither age nor date"
        else:
            problem = f"order is lived, but {ages} of {len(when)} recordings have an age and {dates} a date, none all"
        raise InputError(problem, "give ages or dates to all with headcam index --metadata, or use the order shuffled")
    return when


def mask_noise(seed: int, i: int, numbers: int, purpose: str = "mask") -> np.ndarray:
    """The (numbers,) float32 noise of sample i: uniform in [0, 1)."""
    return stream(seed, purpose, i).random(numbers, dtype=np.float32)


def step_samples(step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
    """Numbers of the samples that process `rank` of `world_size` draws for (micro-)step `step`: (batch_size,) int64.

    The global batch of a step is a contiguous run of sample numbers, dealt out in equal parts, so that the set of
    samples after a step depends on the global batch size alone and not on how many processes share it.
    """
    first = (step * world_size + rank) * batch_size
    return np.arange(first, first + batch_size, dtype=np.int64)
