"""Which packets of a video the decoder has to see, so that the frames wanted come out of it, and no others cost time.

A decoder works through packets in decode order, and most of what it makes on the way to a wanted frame is thrown
away. Three kinds of packets need never reach it:

- pictures that no other picture refers to, where they are not wanted themselves (their bytes tell: `bitstreams.py`);
- everything between the last wanted frame of a group of pictures and the next key frame with a wanted one behind it;
- everything after the last wanted frame of all.

`Plan` decides this packet by packet from time stamps (pts) alone. It decodes nothing and reads no file: the reader
(`headcam.video.decoding.pyav`) hands it the facts of each packet as it is demuxed, sends on what the plan lets through,
and holds what comes out against `Plan.answers`. Packets come in decode order, frames are shown in order of pts, and
what makes a plan possible is that the two orders differ by little: no more than 16 frames that are shown after a frame
come before it (the most that H.264 A.3.1 and H.265 A.4.2 let a decoder hold back). So a frame is known to be the last
one up to a time as soon as 17 packets of later frames were read. Decode times are not relied on: too many files have
wrong ones. Where a file breaks the rule the plan says so (`Unplannable`) and the reader decodes everything.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_FARTHEST_S = 1e9  # any time beyond is beyond every recording
_MOST_REORDERED = 16  # frames that are decoded before, and shown after, another one


class Unplannable(Exception):
    """The packets do not bear out what a plan rests on: decode without one."""


@dataclass(frozen=True, slots=True)
class PacketFacts:
    """What a plan knows of a packet. `shown` is false where an edit list cuts the frame away."""

    packet: Any
    pts: int | None
    keyframe: bool
    disposable: bool
    shown: bool = True


class Plan:
    """Packets in, in decode order (`add`); out, in the same order, those that the decoder has to see (`ready`).

    Args:
        wanted: time stamps, strictly ascending; each wants the frame with the largest pts not above it.
        keyframes: pts where decoding can start, ascending; None where they are not known (nothing is skipped then
            but disposable packets and the end).

    Attributes:
        answers: the pts that each wanted time stamp turned out to want, as far as is known: a prefix of `wanted`.
        broken: whether something that frames may refer to was withheld since the last restart (true at the start):
            what the decoder holds should be drained, and the next packet that goes to it is a key frame.
    """

    def __init__(self, wanted: Sequence[int], keyframes: Sequence[int] | None):
        self._wanted, self._keyframes = wanted, keyframes or ()
        self.answers: list[int] = []
        self.broken = True
        self._queue: deque[PacketFacts] = deque()  # read and not decided
        self._shown: list[int] = []  # pts read, ascending: the best for the first open time stamp, and all above it
        self._due: set[int] = set()  # answers whose packet has not been let through
        self._latest: list[int] = []  # the largest pts read, as many as can come before an earlier frame, and one
        self._ended = False
        self._start: float = -math.inf  # pts of the key frame let through last
        self._reached: float = -math.inf  # largest pts read, or jumped to

    @property
    def done(self) -> bool:
        """Every wanted frame is known and its packet let through: no more packets are needed."""
        return len(self.answers) == len(self._wanted) and not self._due

    def add(self, facts: PacketFacts) -> None:
        """Take note of the next packet in decode order.

        Raises:
            Unplannable: time stamps are missing, repeat, or are more out of order than frames can be.
        """
        pts = facts.pts
        if pts is None:
            raise Unplannable("a packet without a time stamp")
        if facts.shown:
            k = bisect_left(self._shown, pts)
            if k < len(self._shown) and self._shown[k] == pts:
                raise Unplannable("two packets with one time stamp")
            insort(self._shown, pts)
            insort(self._latest, pts)
            if len(self._latest) > _MOST_REORDERED + 1 and self._latest.pop(0) == pts:
                raise Unplannable("frames come later than they can")
        self._reached = max(self._reached, pts)
        self._queue.append(facts)
        self._resolve()

    def finish(self) -> None:
        """Take note that there are no more packets."""
        self._ended = True
        self._resolve()

    def ready(self) -> Iterator[tuple[PacketFacts, bool]]:
        """Packets that are decided and needed, each with whether the decoder must be started afresh for it.

        Raises:
            Unplannable: a packet is needed that could not be decoded, since decoding cannot start there.
        """
        while self._queue:
            facts = self._queue[0]
            needed = self._needs_disposable(facts) if facts.disposable else self._needs_reference(facts)
            if needed is None:
                return
            if needed:
                if self.broken and not facts.keyframe:
                    raise Unplannable("no key frame where there should be one")
                restart, self.broken = self.broken, False
                if facts.keyframe:
                    self._start = facts.pts
                self._due.discard(facts.pts)
                yield self._queue.popleft(), restart
            else:
                self._queue.popleft()
                # What is shown before the last key frame is referred to by no frame that is shown after it.
                self.broken |= not facts.disposable and facts.pts >= self._start

    @property
    def last(self) -> int | None:
        """Pts of the recording's last frame, once `finish` was called."""
        return self._shown[-1] if self._ended and self._shown else None

    def jump(self, least: int = 0) -> int | None:
        """Pts of a key frame, more than `least` further on, before which no packet is needed; None where there is
        none. The caller seeks there, and goes on with `add`."""
        if not self.broken or self._queue or len(self.answers) == len(self._wanted):
            return None
        k = bisect_right(self._keyframes, self._wanted[len(self.answers)])
        if not k or self._keyframes[k - 1] <= self._reached + least:
            return None
        self._reached = self._keyframes[k - 1]
        return self._reached

    def _resolve(self) -> None:
        """Settle what wanted time stamps want, in their order, as far as packets tell."""
        while len(self.answers) < len(self._wanted):
            wanted = self._wanted[len(self.answers)]
            k = bisect_right(self._shown, wanted)
            settled = self._ended or len(self._shown) - k > _MOST_REORDERED
            if k == 0:
                if settled:
                    raise Unplannable("no frame at or before a wanted time")
                return
            del self._shown[: k - 1]
            best = self._shown[0]
            if best != wanted and not settled:
                return
            if any(f.pts == best for f in self._queue):
                self._due.add(best)
            self.answers.append(best)

    def _needs_disposable(self, facts: PacketFacts) -> bool | None:
        """Whether a packet that no other depends on is itself wanted; None while that is open."""
        k = bisect_left(self._wanted, facts.pts)
        if k == len(self._wanted) or not facts.shown:
            return False
        if k < len(self.answers):
            return self.answers[k] == facts.pts
        if self._wanted[k] == facts.pts:
            return True
        best = self._shown[bisect_right(self._shown, self._wanted[k]) - 1]
        return False if best > facts.pts else None

    def _needs_reference(self, facts: PacketFacts) -> bool | None:
        """Whether a packet that others may depend on has to be decoded; None while that is open.

        What depends on it has a pts below that of the next key frame (in an open group of pictures that includes
        frames shown before, and decoded after, that key frame).
        """
        k = bisect_right(self._keyframes, facts.pts)
        limit = self._keyframes[k] if k < len(self._keyframes) else math.inf
        count = bisect_left(self._wanted, limit)
        if count <= len(self.answers):
            return any(f.pts in self._due and f.pts < limit for f in self._queue)
        # Otherwise what it wants may be shown before it and decoded after it: wait and see.
        return True if self._wanted[count - 1] >= facts.pts else None


def pts_at(time_s: float, start_pts: int, time_base: Fraction) -> int:
    """The largest pts whose time, in float64 seconds from `start_pts`, is not later than `time_s`.

    The time of a frame is the float64 nearest to the exact fraction, so asking for a frame's own time gives its pts.
    """
    time_s = min(time_s, _FARTHEST_S)
    ticks = math.floor(Fraction(time_s) / time_base)
    while (ticks + 1) * time_base.numerator / time_base.denominator <= time_s:
        ticks += 1
    return start_pts + ticks
