"""Clips: a few frames at equal steps of time, several clips of a file decoded in one pass.

    with open_reader("walk.mp4", short_side=256, keyframes=keyframes) as reader:
        images, times_s = read_clips(reader, starts_s=[0.0, 12.5], num_frames=16, step_s=8 / 30)

A clip is meant in time: frame k is the one on screen at `start_s + k * step_s`, whatever the file's rate is or whether
it has one. To take every eighth frame of a file at 30000/1001 frames a second, `step_s` is 8 * 1001 / 30000: the stride
over the rate, and every stride is then exact, wherever the clip starts. Two errors are common here. Linear spacing from
the start to the last frame of the span, `linspace(start, start + num_frames * stride - 1, num_frames)`, ends one frame
short of a stride before the next clip: 16 frames at stride 8 come 127 / 15 = 8.47 frames apart instead of 8, that is 8
or 9 by turns. And a stride made from a truncated rate (`int(fps)`) is right at 29.97 frames a second and wrong at 30,
or the other way round.

Where time stamps are rounded coarsely (Matroska: to a millisecond), a clip that starts exactly at a frame's time may
find a later frame a fraction of a millisecond away, not yet on screen; start in the middle of a frame to be safe.
"""

import math
from collections.abc import Sequence

import numpy as np

from headcam.errors import InputError
from headcam.video.readers import Reader

_HAIR_S = 1e-6  # added to every time: start + k * step is off by rounding, and may not fall before its frame


def clip_times(start_s: float, num_frames: int, step_s: float) -> np.ndarray:
    """Times of a clip's frames, float64 (num_frames,), in seconds: start_s + k * step_s, and a microsecond.

    The microsecond, which is shorter than any frame, keeps rounding from choosing the frame before: a clip that starts
    at a frame's own time has that frame, and every stride-th after it.

    Raises:
        InputError: the start is negative, the step not above 0, or there is no frame.
    """
    if not (math.isfinite(start_s) and start_s >= 0):
        raise InputError(f"a clip's start is {start_s} s", "use a time from 0 on")
    if not (math.isfinite(step_s) and step_s > 0):
        raise InputError(f"a clip's step is {step_s} s", "use the stride over the frame rate, above 0")
    if num_frames < 1:
        raise InputError(f"a clip's num_frames is {num_frames}", "use at least 1")
    return start_s + step_s * np.arange(num_frames) + _HAIR_S


def read_clips(
    reader: Reader, starts_s: Sequence[float], num_frames: int, step_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Read clips of one recording, in one pass however they overlap.

    Args:
        reader: of the recording; its `short_side` decides the size.
        starts_s: a start for each of B clips, seconds, in any order.
        num_frames: T, frames of a clip.
        step_s: seconds between two frames of a clip.
    Returns:
        images uint8 (B, T, H, W, 3), RGB, and the frames' exact times in seconds, float64 (B, T).
    Raises:
        DecodeError: a time lies beyond the end, or in damage.
        InputError: see `clip_times`; or there is no clip.
    """
    if not len(starts_s):
        raise InputError("no clip is asked for", "give at least one start")
    times = np.concatenate([clip_times(float(start), num_frames, step_s) for start in starts_s])
    order = np.argsort(times, kind="stable")
    found = np.empty(len(times))
    images = None
    for place, frame in zip(order, reader.iter_frames(times[order].tolist())):
        if images is None:
            images = np.empty((len(times), *frame.image.shape), np.uint8)
        images[place], found[place] = frame.image, frame.time_s
    shape = len(starts_s), num_frames
    return images.reshape(*shape, *images.shape[1:]), found.reshape(shape)
