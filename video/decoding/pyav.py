"""The default backend: PyAV, that is FFmpeg's own libraries, decoding what is wanted, exactly, and little else.

Times asked for together are decoded as a plan (`headcam.video.decoding.planning`): the decoder sees only the packets
that the wanted frames need. A plan is made for H.264 and HEVC in containers with an index (MP4/MOV, Matroska/WebM), and
what comes out is held against what the packets said. Where anything differs, and for all other files, the reader walks:
it decodes every frame forwards, which is always right, and seeks only where that skips work. What goes wrong is
seeking, so a seek goes to the presentation time of a key frame (by its decode time it would land one group of pictures
too early in MP4 with B-frames), and its landing is checked: where the first frame that comes out is later than the
wanted time (open GOPs, tables that lie), the reader goes back further, at last to the start of the file.

Damage is never glossed over where the decoder can know it. It is told to refuse what it would otherwise conceal, or
to mark it; after a refused packet or a marked frame, frames count again from the next key frame on, and a time in
between is an error. (FFmpeg's HEVC and VP8 decoders notice little: flipped bits there mostly give wrong pictures.)
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import BinaryIO

import av
import numpy as np

from headcam.errors import DecodeError
from headcam.video.decoding.bitstreams import packet_rule
from headcam.video.decoding.planning import PacketFacts, Plan, Unplannable, pts_at
from headcam.video.decoding.scaling import Scaler
from headcam.video.metadata import clockwise_rotation, codec_name, one_line, open_video, source_name
from headcam.video.readers import END_TOLERANCE_S, Frame, Reader, ReaderInfo, scaled_size

_WITH_INDEX = ("mov,mp4", "matroska,webm")  # formats in which a seek by time stamp lands where it says
_BLIND_SEEK_S = 10.0  # a jump of at least so much is worth a seek where the key frames are not known
_PLANNED_SEEK_S = 1.0  # and so much in a plan, where passing over packets costs their reading only
_CHECKED = "crccheck+bitstream+buffer"  # AVOption err_detect: what the decoder looks at
_REFUSED = _CHECKED + "+explode"  # and refuses, instead of concealing it
_CONCEALED = "the decoder had to guess parts of a frame"
_UNTIMED = "a frame without a time"
_ENDED_EARLY = "the container was given up before its end"
_CUT_SHORT = "a packet is cut short"


class PyAVReader(Reader):
    """Reader by PyAV (14 or newer). See `headcam.video.readers.open_reader` for the arguments; `source` is a path or
    a binary file object, which stays open.

    Attributes:
        packets_sent: packets that the decoder was given so far; what planning saves shows in it.
    """

    def __init__(
        self, source: str | BinaryIO, *, threads: int, short_side: int | None, keyframes: Sequence[int] | None
    ):
        self._source, self._threads = source, threads
        self._path = source_name(source)
        self._keyframes = sorted(keyframes) if keyframes is not None else None
        self._container = self._rule = None
        self.packets_sent = 0
        self._holding = False  # whether the decoder was given packets since it was emptied
        self._start()
        try:
            first, self._first_gap = next(self._steps, (None, ""))
            if first is None:
                reason = f": {self._trouble}" if self._trouble else ""
                raise DecodeError(f"{self._path} has no frame that can be decoded{reason}", "repair or remove the file")
        except BaseException:
            self.close()
            raise
        stream = self._stream
        rotation = clockwise_rotation(first, self._path)
        upright = (first.height, first.width) if rotation % 180 else (first.width, first.height)
        self.info = ReaderInfo(
            path=self._path,
            backend="pyav",
            codec=codec_name(stream),
            width=upright[0],
            height=upright[1],
            rotation=rotation,
            frame_rate=stream.average_rate or Fraction(0),
            time_base=stream.time_base,
            start_pts=first.pts if stream.start_time is None else stream.start_time,
        )
        self._scaler = Scaler(*scaled_size(first.width, first.height, short_side))
        self._seekable = self._container.format.name.startswith(_WITH_INDEX)
        self._rule = packet_rule(self.info.codec, stream.codec_context.extradata)
        self._plannable = self._seekable and self._rule is not None and not self._first_gap
        self._first_pts = first.pts
        self._current, self._coming = first, None  # the frame walked to, and the one after it once it was needed
        self._given: Frame | None = None  # the frame yielded last
        self._plan: Plan | None = None  # the plan that has the container, none while walking

    def iter_frames(self, times_s: Iterable[float]) -> Iterator[Frame]:
        times = [float(t) for t in times_s]
        given = 0
        # Times that do not ascend are nobody's contract, but the walk gets them right.
        ascending = times and times[0] <= times[-1] and all(a <= b for a, b in pairwise(times))
        if ascending and self._plannable and not self._goes_on(times[0]):
            try:
                for frame in self._planned(times):
                    given += 1
                    yield frame
            except Unplannable:
                self._plannable = False
        for time_s in times[given:]:
            self._walk_to(time_s)
            yield self._give(self._current)

    def close(self) -> None:
        self._steps = self._plan = self._current = self._coming = None  # they hold frames, and this reader
        if self._container is not None:
            self._container.close()
            self._container = self._stream = None

    def _give(self, frame: av.VideoFrame) -> Frame:
        if self._given is None or self._given.pts != frame.pts:
            image = np.rot90(self._scaler(frame), -self.info.rotation // 90)
            self._given = Frame(np.ascontiguousarray(image), frame.pts, self.time_s(frame.pts))
        return self._given

    def _start(self) -> None:
        """Open the source, at its start."""
        self._container, self._stream = open_video(self._source)
        self._stream.thread_count = self._threads
        # FFmpeg's H.264 decoder marks what it conceals, and told to refuse it would not start in an open GOP.
        strict = _CHECKED if self._stream.codec_context.name == "h264" else _REFUSED
        self._stream.codec_context.options = {"err_detect": strict}
        self._steps, self._trouble = self._walk(landed=False), ""

    # Planned: times asked for together

    def _goes_on(self, time_s: float) -> bool:
        """Whether `time_s` lies ahead in the group of pictures where the last request ended: then walking keeps what
        is decoded for the request after this one, while a plan would start at the key frame each time."""
        if self._given is None or time_s < self._given.time_s:
            return False
        if self._keyframes is None:
            return time_s - self._given.time_s <= _BLIND_SEEK_S
        keyframe = self._keyframe_before(time_s)
        return keyframe is None or keyframe <= self._given.pts

    def _planned(self, times: list[float]) -> Iterator[Frame]:
        """Frames for `times`, by a plan; raises Unplannable as soon as the file does not keep to it."""
        base, start = self.info.time_base, self.info.start_pts
        ticks = [max(pts_at(t, start, base), self._first_pts) for t in times]
        wanted = sorted(set(ticks))
        plan = self._plan = Plan(wanted, self._keyframes)
        self._steps = self._current = self._coming = None
        self._trouble = ""
        frames = self._frames_of(plan, wanted)
        frame, reached = None, None
        for tick, time_s in zip(ticks, times):
            if tick != reached:
                frame, reached = next(frames), tick
            if frame.pts == plan.last:
                self._check_end(time_s, frame)
            yield self._give(frame)
            if self._plan is not plan:  # somebody else used the reader meanwhile
                raise Unplannable("the reader is elsewhere")

    def _frames_of(self, plan: Plan, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """The frame for each of `wanted`, by carrying out `plan`."""
        base = self.info.time_base
        decoded: deque[av.VideoFrame] = deque()  # ascending; those that a wanted time stamp may still want
        given = 0
        least = round(_PLANNED_SEEK_S / base)
        packets = self._demux_from(self._plan_start(wanted[0]))
        self._holding = False
        while not plan.done:
            packet = next(packets, None)
            if packet is None or not packet.size:
                plan.finish()
            else:
                plan.add(self._facts(packet))
            for facts, restart in plan.ready():
                if restart:
                    decoded.extend(self._drained())
                decoded.extend(self._decoded(facts.packet))
            if plan.broken or plan.done:
                decoded.extend(self._drained())
            while given < len(plan.answers):
                while decoded and decoded[0].pts < plan.answers[given]:
                    decoded.popleft()
                if not decoded:
                    break
                if decoded[0].pts != plan.answers[given]:
                    raise Unplannable("the decoder gives other frames than the packets say")
                given += 1
                yield decoded[0]
            if given < len(wanted):
                while len(decoded) > 1 and decoded[1].pts <= wanted[given]:
                    decoded.popleft()
            target = plan.jump(least)
            if target is not None:
                packets = self._demux_from(target)
        if given < len(wanted):
            raise Unplannable("the decoder keeps frames back")

    def _facts(self, packet: av.Packet) -> PacketFacts:
        data = bytes(packet)
        keyframe = packet.is_keyframe and self._rule.can_start(data)
        return PacketFacts(packet, packet.pts, keyframe, self._rule.disposable(data), not packet.is_discard)

    def _demux_from(self, pts: int) -> Iterator[av.Packet]:
        """Packets from the key frame at or before `pts` on."""
        try:
            self._container.seek(pts, stream=self._stream, backward=True, any_frame=False)
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    raise Unplannable(_CUT_SHORT)
                yield packet
        except (av.error.FFmpegError, IndexError) as error:
            raise Unplannable(one_line(error)) from error

    def _plan_start(self, wanted: int) -> int:
        """Where to seek to for the first wanted time stamp."""
        if self._keyframes is None:
            far = (wanted - self._first_pts) * self.info.time_base > _BLIND_SEEK_S
            return wanted if far else self._first_pts
        k = bisect_right(self._keyframes, wanted)
        return self._keyframes[k - 1] if k else self._first_pts

    def _decoded(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            frames = self._send(packet)
        except av.error.FFmpegError as error:
            raise Unplannable(one_line(error)) from error
        if any(f.pts is None or f.is_corrupt for f in frames):
            raise Unplannable(_CONCEALED)
        return frames

    def _drained(self) -> list[av.VideoFrame]:
        """What the decoder holds; after this it can start at any key frame."""
        if not self._holding:
            return []
        frames = self._decoded(None)
        self._stream.codec_context.flush_buffers()
        self._holding = False
        return frames

    # Walking: every frame, forwards

    def _walk_to(self, time_s: float) -> None:
        """Make the frame on screen at `time_s` the current one."""
        if self._steps is None:
            self._seek(time_s)
        elif self._coming is None:
            self._coming = next(self._steps, None)
        if self._worth_seeking(time_s):
            self._seek(time_s)
        if time_s < self.time_s(self._current.pts) and self._first_gap:
            raise self._damaged(time_s, self._first_gap)
        while True:
            if self._coming is None:
                self._coming = next(self._steps, None)
            if self._coming is None:
                return self._check_end(time_s, self._current)
            frame, gap = self._coming
            if self.time_s(frame.pts) > time_s:
                if gap and time_s >= self._shown_until(self._current):
                    raise self._damaged(time_s, gap)
                return None
            self._current, self._coming = frame, None

    def _worth_seeking(self, time_s: float) -> bool:
        if time_s < self.time_s(self._current.pts):
            return self._current.pts != self._first_pts  # backwards; nothing comes before the first frame
        if not self._seekable:
            return False
        # Where nothing comes, the file has ended, or a damaged container was given up: a seek may get behind that.
        reached = self._current if self._coming is None else self._coming[0]
        if self._keyframes is None:
            return time_s - self.time_s(reached.pts) > _BLIND_SEEK_S
        keyframe = self._keyframe_before(time_s)
        return keyframe is not None and keyframe > reached.pts

    def _keyframe_before(self, time_s: float) -> int | None:
        k = bisect_right(self._keyframes, time_s, key=self.time_s) if self._keyframes else 0
        return self._keyframes[k - 1] if k else None

    def _seek(self, time_s: float) -> None:
        self._plan = None
        for target in self._landings(time_s):
            try:
                self._container.seek(target, stream=self._stream, backward=True, any_frame=False)
                self._steps, self._trouble = self._walk(landed=True), ""
                frame, _ = next(self._steps, (None, ""))
            except (av.error.FFmpegError, DecodeError):
                break
            if frame is not None and self.time_s(frame.pts) <= time_s:
                self._current, self._coming = frame, None
                return
        self.close()
        self._start()
        self._current, _ = next(self._steps, (None, ""))
        self._coming = None
        if self._current is None:
            raise DecodeError(f"{self._path} cannot be read a second time", "check the disk")

    def _landings(self, time_s: float) -> Iterator[int]:
        """Time stamps to seek to: the one that should do, then earlier ones, twice as far back each time."""
        if not self._seekable:
            return
        base, start = self.info.time_base, self.info.start_pts
        k = bisect_right(self._keyframes or (), time_s, key=self.time_s) - 1
        target = pts_at(time_s, start, base)
        for back in (0, *(2**n for n in range(32))):
            if self._keyframes is None:
                yield max(start, target - round(back / base))
                if target - back / base <= start:
                    return
            elif back <= k:
                yield self._keyframes[k - back]
            else:
                return

    def _walk(self, landed: bool) -> Iterator[tuple[av.VideoFrame, str]]:
        """Frames in order of presentation, each with what is wrong between it and the frame before ("": nothing).

        After damage, and where a seek has `landed`, frames count from the next key frame on: those in between may
        refer to what is not there.
        """
        last = -math.inf  # pts of the frame yielded last
        gap = ""
        skipping = landed  # no packet goes to the decoder before the next key frame
        resume = -math.inf  # no frame counts before this pts
        keys: deque[int] = deque(maxlen=16)  # of key frames that the decoder was given
        for packet, trouble in self._demux_doggedly():
            frames: list[av.VideoFrame] = []
            if packet is not None and not trouble:
                if skipping and packet.size:
                    if not packet.is_keyframe or (self._rule and not self._rule.can_start(bytes(packet))):
                        continue
                    skipping, resume = False, -math.inf if packet.pts is None else packet.pts
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(packet.pts)
                try:
                    frames = self._send(packet)
                except av.error.EOFError:
                    return
                except av.error.FFmpegError as error:
                    leading = packet.pts is not None and packet.pts < resume  # needs what was not decoded
                    trouble = "" if leading else one_line(error)
            if trouble:
                # Pictures from before the damage may wait in the decoder for their turn.
                until = -math.inf if packet is None or packet.pts is None else packet.pts
                frames = [f for f in self._left_over() if f.pts is not None and f.pts < until]
            for frame in frames:
                if frame.pts is None and last == -math.inf:
                    raise DecodeError(
                        f"{self._path} has no presentation times", "remux it to MP4 with time stamps, e.g. by ffmpeg"
                    )
                if frame.pts is None:
                    gap, resume = _UNTIMED, math.inf
                    continue
                if frame.pts <= last or frame.pts < resume:
                    continue
                if frame.is_corrupt:
                    gap = self._trouble = _CONCEALED
                    resume = next((key for key in keys if key > frame.pts), math.inf)
                    continue
                yield frame, gap
                last, gap, self._trouble = frame.pts, "", ""
            if trouble or (resume == math.inf and not skipping):
                gap = self._trouble = trouble or gap
                self._stream.codec_context.flush_buffers()
                skipping = True

    def _demux_doggedly(self) -> Iterator[tuple[av.Packet | None, str]]:
        """Packets, each with what is wrong with it ("": nothing); None where one cannot be read."""
        failures = 0
        while failures < 2:
            try:
                for packet in self._container.demux(self._stream):
                    failures = 0
                    yield packet, _CUT_SHORT if packet.is_corrupt else ""
                return
            # IndexError: a stream that was not there at the start; PyAV does not know it.
            except (av.error.FFmpegError, IndexError) as error:
                failures += 1
                yield None, one_line(error)

    def _send(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        if packet is not None and packet.size:
            self.packets_sent += 1
            self._holding = True
        return self._stream.codec_context.decode(packet)

    def _left_over(self) -> list[av.VideoFrame]:
        try:
            return self._send(None)
        except av.error.FFmpegError:
            return []

    def _shown_until(self, frame: av.VideoFrame) -> float:
        claimed = getattr(frame, "duration", None) or 0  # PyAV 14.0 does not tell
        duration = claimed * self.info.time_base or (self.info.frame_rate and 1 / self.info.frame_rate)
        return self.time_s(frame.pts) + float(duration)

    def _check_end(self, time_s: float, last: av.VideoFrame) -> None:
        """Raise unless the last frame is still on screen at `time_s`."""
        end_s = self._shown_until(last)
        if not self._trouble and self._keyframes and self._keyframes[-1] > last.pts:
            self._trouble = _ENDED_EARLY
        if time_s < end_s or (time_s < end_s + END_TOLERANCE_S and not self._trouble):
            return
        if self._trouble:
            raise self._damaged(time_s, self._trouble, last)
        raise self.beyond_end(time_s, end_s)

    def _damaged(self, time_s: float, reason: str, last: av.VideoFrame | None = None) -> DecodeError:
        good_s = self.time_s((last or self._current).pts)
        return DecodeError(
            f"{self._path}: damaged after {good_s:.6g} s ({reason}), no frame at {time_s:.6g} s",
            "use other times, or repair the file",
        )
