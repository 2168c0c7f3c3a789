"""Stimuli that nobody has to ask for: pairs of objects from the synthetic world, and pictures of noise.

The published stimuli carry no licence. These stand in for them in tests, in `headcam demo` and wherever nothing can be
copied: one object on a white ground, as in Brady et al. (2008), in the published layout and in two role-swapped sets.

    novel       objects of two different kinds
    exemplar    two objects of one kind: other proportions, other colours and patterns
    state       one object twice, in one light: turned round, seen from higher or lower, or tipped over
    filler      one object; studied in both sets, never tested

What differs from the published stimuli: the world has twelve kinds of objects (`video.synthetic.objects`), so the foil
of a novel pair is of a kind that other studied pictures show as well. The states are poses, not doors that open. Nobody
has measured people on these pictures.

`noise_stimuli` is a control without anything to tell pictures apart by but memory: independent uniform pixels, so
that all pictures are equally complex. The original's control (Orhan 2022) drew random *tokens*, 2,500 pictures to
study and 2,500 others; here pixels are random, and a tokenizer comes after.

Every picture follows from (seed, condition, number) alone; files that exist are kept. A picture is rendered once and
the same bytes are written wherever it belongs.
"""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2

from headcam.errors import InputError
from headcam.files import claim
from headcam.progress import Progress
from headcam.recognition_memory.stimuli.generated_pictures import Draw, noise, rendered, write_item
from headcam.recognition_memory.stimuli.manifest import FILE_NAME
from headcam.recognition_memory.stimuli.prepare import prepare

CONDITIONS = ("novel", "exemplar", "state")
_VERSION = 1  # of the pictures; a folder that another version began is not continued
_SETTINGS = "generated.json"


def generate_stimuli(
    folder: str | os.PathLike,
    *,
    num_pairs: int = 20,
    num_fillers: int = 140,
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
    conditions: Sequence[str] = CONDITIONS,
    processes: int = 1,
    quiet: bool = False,
) -> Path:
    """Write `set_1/` and `set_2/` of rendered pictures to `folder`, and the manifest of them.

    Set k studies picture k of each pair, and all fillers: `len(conditions) * num_pairs + num_fillers` pictures a set.

    Args:
        num_pairs: pairs of each condition.
        num_fillers: pictures that are studied in both sets and not tested.
        size: (H, W) in pixels, at least 16 a side.
        conditions: some of "novel", "exemplar", "state".
        processes: that render; the bytes do not depend on it.
    Returns:
        The path of the manifest.
    Raises:
        InputError: values that make no experiment, or a folder that was begun with other settings.
        StorageError: where the disk is full or not writable.
    """
    unknown = [c for c in conditions if c not in CONDITIONS]
    if unknown or not conditions or len(set(conditions)) < len(conditions):
        raise InputError(
            f"conditions {', '.join(map(repr, conditions)) or '(none)'} cannot be generated",
            f"use some of {', '.join(CONDITIONS)}, each once",
        )
    return _generate(rendered, folder, list(conditions), num_pairs, num_fillers, size, seed, processes, quiet)


def noise_stimuli(
    folder: str | os.PathLike,
    *,
    num_pairs: int = 300,
    num_fillers: int = 1900,
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
    quiet: bool = False,
) -> Path:
    """Write two role-swapped sets of pictures of noise, condition "noise", and their manifest; return its path.

    Each channel of each pixel is uniform over 0 to 255. Otherwise as `generate_stimuli`.
    """
    return _generate(noise, folder, ["noise"], num_pairs, num_fillers, size, seed, 1, quiet)


def _generate(
    draw: Draw,
    folder: str | os.PathLike,
    conditions: list[str],
    num_pairs: int,
    num_fillers: int,
    size: tuple[int, int],
    seed: int,
    processes: int,
    quiet: bool,
) -> Path:
    if num_pairs < 1 or num_fillers < 0:
        raise InputError(f"{num_pairs} pairs and {num_fillers} fillers are no experiment", "ask for at least one pair")
    if min(size) < 16:
        raise InputError(f"pictures of {size[0]} x {size[1]} pixels show nothing", "use at least 16 pixels a side")
    folder = Path(folder).expanduser()
    settings = {
        "version": _VERSION,
        "pictures": draw.__name__,
        "conditions": conditions,
        "num_pairs": num_pairs,
        "num_fillers": num_fillers,
        "size": list(size),
        "seed": seed,
    }
    note = folder / _SETTINGS
    if not note.exists() and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"{folder} holds other things already", "use a new folder")
    claim(note, settings, "generated stimuli")
    items = [(condition, k) for condition in conditions for k in range(num_pairs)]
    items += [("filler", k) for k in range(num_fillers)]
    jobs = [(draw, folder, kind, k, tuple(size), seed) for kind, k in items]
    with Progress("making pictures", len(jobs), "pairs and fillers", quiet) as progress:
        for _, (kind, number) in zip(_work(jobs, processes), items):
            progress.advance(current=f"{kind} {number}")
    manifest = folder / FILE_NAME
    return manifest if manifest.exists() else prepare(folder, manifest, quiet=quiet).manifest


def _work(jobs: list[tuple], processes: int) -> Iterator[None]:
    """Do all jobs, in this process or in some others; one item for each job that is done, in their order."""
    if processes <= 1:
        yield from map(write_item, jobs)
        return
    # Not forked: the caller may hold threads (torch, OpenCV) that do not survive it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        try:
            yield from pool.map(write_item, jobs, chunksize=16)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
