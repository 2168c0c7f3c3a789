"""Seconds of the training recordings that are kept for validation, in blocks of whole seconds.

Some objectives can be validated only on recordings that they are trained on, since their labels are the episodes of
these. Every recording is cut into blocks of some seconds from its start; a keyed hash of the recording's id and the
block's number picks those that are held out. So the choice depends neither on the order of an index, nor on the run's
seed or other settings: runs on the same seconds are validated on the same seconds. A recording that is one block alone
stays in training, since nothing else would show its labels.

What is apart are seconds, not pictures: the frame on screen when a block begins may have come up within the block
before. And neighbours in time look alike, so such a validation says less about new places than one on other recordings.
"""

import numpy as np

from headcam.errors import InputError
from headcam.randomness import hashed
from headcam.video.sampling.draws import keys
from headcam.video.sampling.manifest import STILL
from headcam.video.sampling.units import Units
from headcam.video.stretches import Stretch

_CHUNK = 1 << 20  # units that are looked at together

Stretches = dict[str, tuple[Stretch, ...]]


def hold_out(units: Units, share: float, block_s: float) -> tuple[Stretches, Stretches]:
    """Split the recordings of `units` into stretches to train on and stretches that are held out.

    Blocks are taken in the order of their hashes until `share` of all seconds is reached; still pictures, which last no
    time, stay in training.

    Args:
        units: all that could be trained on.
        share: of their seconds, in (0, 1).
        block_s: length of a block in seconds.
    Returns:
        two dictionaries, recording id -> stretches, with no second in both; restrict units to them.
    Raises:
        InputError: there is not a block for each side.
    """
    counts = units.counts_by_recording()
    last = np.cumsum(counts) - 1
    ends = units.time_of(last) + units.seconds_of(last)
    blocks = np.maximum(1, np.ceil(ends / block_s)).astype(np.int64)  # of each recording
    first = np.cumsum(blocks) - blocks
    lasting = np.zeros(blocks.sum(), np.int64)  # microseconds of each block that can be drawn
    for start in range(0, len(units), _CHUNK):
        i = np.arange(start, min(start + _CHUNK, len(units)))
        recording, middle = units.recording_of(i), units.time_of(i) + units.seconds_of(i) / 2
        number = np.minimum(middle // block_s, blocks[recording] - 1).astype(np.int64)
        np.add.at(lasting, first[recording] + number, units.microseconds_of(i))

    recording = np.repeat(np.arange(len(blocks)), blocks)
    number = np.arange(len(recording)) - first[recording]
    chance = hashed([keys(units.facts.ids.tolist())[recording], number], 0, "hold out")
    order = np.lexsort((number, chance))
    order = order[(lasting[order] > 0) & (blocks[recording[order]] > 1)]
    reached = np.cumsum(lasting[order])
    taken = 1 + int(reached.searchsorted(share * lasting.sum())) if len(order) else 0
    if not 0 < taken < len(order):
        raise InputError(
            f"data.hold_out {share:g} leaves no seconds to train on: there are {len(order)} blocks of {block_s:g} s "
            "with video, in recordings of several",
            "train on more video, or validate on other recordings (data.val)",
        )
    held = np.zeros(len(recording), bool)
    held[order[:taken]] = True
    sides: tuple[Stretches, Stretches] = {}, {}
    for name, start, end, video in zip(units.facts.ids.tolist(), first, first + blocks, ends > 0):
        if not video:
            sides[0][name] = STILL
            continue
        for side, chosen in zip(sides, (~held[start:end], held[start:end])):
            found = _runs(chosen, block_s)
            if found:
                side[name] = found
    return sides


def _runs(chosen: np.ndarray, block_s: float) -> tuple[Stretch, ...]:
    """Chosen blocks of a recording as stretches, those that touch as one."""
    edges = block_s * np.flatnonzero(np.diff(chosen.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    return tuple((float(start), float(end)) for start, end in edges)
