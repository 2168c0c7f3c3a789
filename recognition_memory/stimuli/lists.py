"""Study lists of other lengths: the tested pictures, and as many fillers as are wanted (Standing 1973).

People remember a falling share of a growing number of pictures: the number remembered follows a power law of the
length of the list (Standing 1973, "Learning 10,000 pictures", lists of 20 to 10,000). Here the pairs of the test stay
the same from list to list and only the fillers between them are fewer or more, so that accuracies differ by the length
of the list and by nothing else.
"""

import numpy as np

from headcam.errors import InputError
from headcam.randomness import hashed
from headcam.recognition_memory.stimuli.manifest import MemoryManifest, Stimulus


def with_list_length(manifest: MemoryManifest, study_set: str, length: int | None, seed: int) -> tuple[Stimulus, ...]:
    """The study rows of a list of `length` different pictures; all rows of the set where `length` is None.

    All tested pictures come first, in the order of the set, then fillers in an order that is drawn by `seed`. The draw
    is nested: a shorter list of the same seed is the beginning of a longer one. A filler's place follows from the
    seed and its own bytes, so two role-swapped sets with the same fillers get the same ones.

    Raises:
        InputError: `length` is below the number of tested pictures, or above that of different study pictures.
    """
    rows = manifest.study(study_set)
    if length is None:
        return rows
    different = {s.sha256: s for s in reversed(rows)}  # the first row of each picture
    tested = {p.seen.sha256 for c in manifest.conditions for p in manifest.pairs(study_set, c)}
    if not len(tested) <= length <= len(different):
        raise InputError(
            f"a study list of {length} pictures cannot be had from set {study_set!r} of manifest {manifest.name}",
            f"use {len(tested)} (the tested pictures alone) to {len(different)} (all that there are)",
        )
    fillers = sorted(set(different) - tested)
    keys = hashed([np.array([int(sha256[:16], 16) for sha256 in fillers], np.uint64)], seed, "memory:list")
    drawn = [fillers[k] for k in np.argsort(keys, kind="stable")]
    return tuple(s for s in rows if s.sha256 in tested and different[s.sha256] is s) + tuple(
        different[sha256] for sha256 in drawn[: length - len(tested)]
    )
