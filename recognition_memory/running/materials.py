"""What a learner meets: the study lists and the tests of an experiment, as pixels in memory.

    manifest + settings ─▶ gather ─▶ Materials ─┬─ study_list(study_set, seed)   numbers of pictures, in list order
                                                └─ tests[study_set]              pictures to score, and their pairs

Every different file is decoded and resized once. What is studied and what is tested are rows of that one tensor, so
studied pixels are tested pixels, to the bit. Faults of the stimuli are met here, and said: a picture that lies in the
list twice is studied once, and a pair whose foil is studied is not tested, in no study set, so that all sets and runs
answer the same questions.

Shapes: P different pictures, N of a list, n pairs; pixels are uint8 (·, 3, H, W) RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.recognition_memory.experiment import Experiment
from headcam.recognition_memory.stimuli.lists import with_list_length
from headcam.recognition_memory.stimuli.manifest import MemoryManifest, Pair, load_pictures
from headcam.recognition_memory.stimuli.variants import parse_variant


@dataclass(frozen=True)
class Test:
    """Pairs of one study set, tested in one way. Pictures that several pairs share are scored once.

    Attributes:
        name: as in the column `test` of the memory table; empty: the studied pictures against their foils.
        pairs: (condition, number) of the n pairs.
        pixels: uint8 (M, 3, H, W), the different pictures.
        seen, unseen: (n,) int64, which of `pixels` are the two of each pair.
        names: (M,) files, for messages.
    """

    __test__ = False  # no test of pytest

    name: str
    pairs: tuple[tuple[str, int], ...]
    pixels: Tensor
    seen: np.ndarray
    unseen: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Materials:
    """Attributes:
    manifest: that all of it is of.
    experiment: its settings of study and test.
    pixels: (P, 3, H, W), all different pictures of the manifest, by rising SHA-256: an order that knows no roles.
    row: SHA-256 -> row of `pixels`.
    study_sets: that are run.
    pairs: study set -> condition -> the pairs that are tested.
    tests: study set -> the plain test, then the variants.
    notes: what was left out, and what of the stimuli limits the conclusions.
    """

    manifest: MemoryManifest
    experiment: Experiment
    pixels: Tensor
    row: dict[str, int]
    study_sets: tuple[str, ...]
    pairs: dict[str, dict[str, tuple[Pair, ...]]]
    tests: dict[str, list[Test]]
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return tuple(self.pixels.shape[2:])

    def study_list(self, study_set: str, seed: int) -> np.ndarray:
        """Rows of `pixels` that are studied, (N,) int64 in the order of the list (not of study)."""
        listed = with_list_length(self.manifest, study_set, self.experiment.study.list_length, seed)
        rows = [self.row[stimulus.sha256] for stimulus in listed]
        return np.array(list(dict.fromkeys(rows)) if self.experiment.test.flagged == "leave_out" else rows, np.int64)


def gather(manifest: MemoryManifest, experiment: Experiment, size: tuple[int, int]) -> Materials:
    """Choose what is studied and tested, and decode it.

    Args:
        size: (H, W) in pixels.
    Raises:
        InputError: study sets or conditions that the manifest does not have, no pair left to test, or a file that is
            missing, changed or no picture.
    """
    study_sets = _asked(experiment.study_sets, manifest.study_sets, "study_sets", manifest)
    conditions = _asked(experiment.test.conditions, manifest.conditions, "test.conditions", manifest)
    for length in (experiment.study.list_length, *(experiment.sweep.list_length if experiment.sweep else ())):
        for study_set in study_sets:  # those of a sweep as well: it comes last, after hours of study
            with_list_length(manifest, study_set, length, experiment.seeds[0])
    pairs, notes = _tested(manifest, study_sets, conditions, experiment.test.flagged == "leave_out")
    different = {stimulus.sha256: stimulus for stimulus in reversed(manifest.stimuli)}
    order = sorted(different)
    pixels = load_pictures(manifest, [different[sha256] for sha256 in order], size, experiment.test.resample)
    notes += _notes_on_lists(manifest, study_sets, experiment)
    row = {sha256: k for k, sha256 in enumerate(order)}
    tests = {
        study_set: _tests([pair for some in conditions.values() for pair in some], pixels, row, experiment)
        for study_set, conditions in pairs.items()
    }
    return Materials(manifest, experiment, pixels, row, study_sets, pairs, tests, tuple(notes))


def _asked(
    wanted: Sequence[str] | None, present: Sequence[str], name: str, manifest: MemoryManifest
) -> tuple[str, ...]:
    for one in wanted or ():
        if one not in present:
            raise InputError(
                f"{name} holds {one}, which manifest {manifest.name} does not", f"use {', '.join(present)}"
            )
    return tuple(present if wanted is None else wanted)


def _tested(
    manifest: MemoryManifest, study_sets: Sequence[str], conditions: Sequence[str], leave_out: bool
) -> tuple[dict[str, dict[str, tuple[Pair, ...]]], list[str]]:
    """The pairs of each set and condition: those that can be tested in every one of the sets."""
    pairs, notes = {study_set: {} for study_set in study_sets}, []
    for condition in conditions:
        of_set = {study_set: manifest.pairs(study_set, condition) for study_set in study_sets}
        everywhere = set.intersection(*({pair.number for pair in some} for some in of_set.values()))
        somewhere = set.union(*({pair.number for pair in some} for some in of_set.values()))
        if somewhere - everywhere:
            notes.append(
                f"{len(somewhere - everywhere)} pairs of condition {condition} are not tested: not every study set "
                f"has them"
            )
        for study_set, some in of_set.items():
            leaked = sorted(pair.number for pair in some if "leaked_foil" in pair.flags)
            if leaked and leave_out:
                everywhere -= set(leaked)
                in_all = ", in no study set" if len(study_sets) > 1 else ""
                notes.append(
                    f"{len(leaked)} pairs of condition {condition} are not tested{in_all}: their foil is studied in "
                    f"set {study_set} (pairs {', '.join(map(str, leaked))})"
                )
            elif leaked:
                notes.append(
                    f"{len(leaked)} pairs of condition {condition} are tested in set {study_set} although their foil "
                    f"is studied (pairs {', '.join(map(str, leaked))})"
                )
        for study_set, some in of_set.items():
            if everywhere:
                pairs[study_set][condition] = tuple(pair for pair in some if pair.number in everywhere)
    if not any(pairs.values()):
        raise InputError(f"no pair of manifest {manifest.name} can be tested", "; ".join(notes) or "add test pairs")
    return pairs, notes


def _notes_on_lists(manifest: MemoryManifest, study_sets: Sequence[str], experiment: Experiment) -> list[str]:
    notes = []
    for study_set in study_sets:
        listed = [stimulus.sha256 for stimulus in manifest.study(study_set)]
        repeated = (
            len({sha256 for sha256 in listed if listed.count(sha256) > 1}) if len(set(listed)) < len(listed) else 0
        )
        if repeated:
            once = experiment.test.flagged == "leave_out"
            notes.append(
                f"{repeated} pictures lie in the study list of set {study_set} more than once; they are studied "
                + ("once" if once else "as often")
            )
        foils = sum("repeated_foil" in s.flags for s in manifest.stimuli if s.study_set == study_set)
        if foils:
            notes.append(f"{foils} foils of set {study_set} are those of several pairs, which are not independent")
    if len(study_sets) < 2:
        notes.append(
            "one study set: which picture of a pair is easier is not balanced, rules that need two are left out"
        )
    elif not manifest.role_swapped:
        notes.append(
            "the study sets are not role-swapped: which picture of a pair is easier does not cancel in their mean"
        )
    if len(experiment.seeds) < 2:
        notes.append("one seed: nothing is known of the spread over runs")
    return notes


def _tests(pairs: Sequence[Pair], pixels: Tensor, row: dict[str, int], experiment: Experiment) -> list[Test]:
    """The plain test of the pairs of a study set, then the variants."""
    stimuli = [pair.seen for pair in pairs] + [pair.unseen for pair in pairs]
    keys, files = [stimulus.sha256 for stimulus in stimuli], [stimulus.path for stimulus in stimuli]
    asked = tuple((pair.condition, pair.number) for pair in pairs)
    seen, unseen = pixels[[row[key] for key in keys]].chunk(2)
    tests = [_test("", asked, seen, unseen, files)]
    for text in experiment.test.variants:
        variant = parse_variant(text)
        tests.append(_test(variant.name, asked, *variant.pictures(seen, unseen, keys), files))
        if variant.control is not None:  # a changed picture may gain from study by itself
            half = len(pairs)
            others, swapped = keys[half:] + keys[:half], files[half:] + files[:half]
            tests.append(_test(variant.control, asked, *variant.pictures(unseen, seen, others), swapped))
    return tests


def _test(name: str, pairs: tuple[tuple[str, int], ...], seen: Tensor, unseen: Tensor, files: Sequence[str]) -> Test:
    """A test of n pairs; `files` (2 n) as seen and unseen one after the other."""
    both = torch.cat([seen, unseen])
    first: dict[bytes, int] = {}  # content -> its number among the different pictures
    number, kept = [], []
    for k, picture in enumerate(both.numpy()):
        content = picture.tobytes()
        if content not in first:
            first[content] = len(first)
            kept.append(k)
        number.append(first[content])
    of_seen, of_unseen = np.array(number, np.int64).reshape(2, -1)
    return Test(name, pairs, both[kept], of_seen, of_unseen, tuple(files[k] for k in kept))
