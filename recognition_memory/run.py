"""Running an experiment: every study set with every seed, into one folder, stopped and started at will.

    OUT/experiment.yaml   complete settings
        experiment.json   what was run on what, and what has to be known to read the numbers
        losses.csv        the memory table: scores of all pairs before study and after each exposure
        study.csv         a row an exposure: updates, study loss, mean scores, seconds
        positions.csv     where in the exposure each tested picture was studied, 0 for the first
        selection.csv, retention.csv, recall.csv, recall_items.csv, sweep/    where they are asked for
        runs/SET-SEED/    the state of a run while it goes; afterwards its rows

The stimuli become pixels in `running.materials`, a run goes its way in `running.one_run`, and `running.claim` keeps the
folder from other experiments. Killed at any moment and started again with the same words, an experiment goes on behind
its last whole exposure, and its tables come out the same, byte for byte (on a CPU, and `seconds` apart; on a GPU,
rounding may differ). Nothing is scored here: `headcam.recognition_memory.scoring` reads the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from headcam.devices import usable_device
from headcam.errors import InputError
from headcam.files import atomic_file, write_json
from headcam.recognition_memory.experiment import Experiment, build_learner
from headcam.recognition_memory.harder.recall import recall_summary
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.running.claim import ABOUT, claim
from headcam.recognition_memory.running.materials import gather
from headcam.recognition_memory.running.one_run import OneRun, Rows
from headcam.recognition_memory.running.other_pictures import open_other_pictures
from headcam.recognition_memory.running.selection import select_lr
from headcam.recognition_memory.scoring.table import check_losses, write_losses
from headcam.recognition_memory.stimuli.manifest import MemoryManifest
from headcam.recognition_memory.stimuli.variants import parse_variant
from headcam.recognition_memory.study import study_order

LOSSES = "losses.csv"
STUDY_COLUMNS = ("study_set", "seed", "exposures", "updates", "study_loss", "loss_seen", "loss_unseen", "seconds")
POSITION_COLUMNS = ("study_set", "seed", "exposures", "condition", "pair", "position")


@dataclass(frozen=True)
class RunResult:
    """Attributes:
    folder: of the experiment.
    table: the memory table.
    notes: what was left out, and what limits the conclusions; they stand in experiment.json, too.
    pairs_left_out: of the pairs that were asked for, over all sets.
    """

    folder: Path
    table: Path
    notes: tuple[str, ...]
    pairs_left_out: int


def run(
    experiment: Experiment,
    out: str | Path,
    *,
    manifest: MemoryManifest | str | Path | None = None,
    device: str = "cpu",
    quiet: bool = False,
) -> RunResult:
    """Run an experiment, or what is left of it.

    Args:
        out: a new folder, or one of the same experiment.
        manifest: in place of `experiment.manifest`, read already or not.
        device: as torch names it; a run may go on on another one, up to rounding.
        quiet: no progress on standard error.
    Raises:
        InputError: no manifest, `out` holds another experiment, settings that do not fit the pictures or the learner,
            or a loss or score that is not finite.
        StorageError: the disk is full or not writable.
    """
    out = Path(out)
    usable_device(device)
    if manifest is None and experiment.manifest is None:
        raise InputError("the experiment names no manifest", "give one with --manifest, see headcam memory prepare")
    if not isinstance(manifest, MemoryManifest):
        experiment = replace(experiment, manifest=str(manifest or experiment.manifest))
        manifest = MemoryManifest.read(experiment.manifest)
    learner = build_learner(experiment.learner)
    about = claim(out, experiment, manifest, learner)
    if about["complete"]:
        return RunResult(out, out / LOSSES, tuple(about["notes"]), about["pairs_left_out"])
    materials = gather(manifest, experiment, tuple(learner.img_size))
    if experiment.retention is not None:  # opened once now: what is wrong with it should not show after hours of study
        open_other_pictures(experiment.retention.data, manifest, materials.size, num=1, seed=experiment.seeds[0])
    notes = [*materials.notes, *_notes_on_learner(experiment, learner)]
    chosen = "as given"
    asked = experiment
    if asked.selection is not None:
        selected = select_lr(asked, manifest, out, device=device, quiet=quiet)
        experiment = replace(asked, study=replace(asked.study, lr=selected.lr))
        chosen = "highest d' on other pictures, see selection.csv"
        notes += selected.notes
    runs = [
        OneRun(materials, experiment, learner, study_set, seed, out / "runs" / f"{study_set}-{seed}", device, quiet)
        for study_set in materials.study_sets
        for seed in experiment.seeds
    ]
    found = [one.rows() for one in runs]
    _write_tables(out, runs, found)
    notes += [note for rows in found for note in rows.notes]
    if experiment.sweep is not None:
        from headcam.recognition_memory.harder.sweep import sweep  # not above: it calls `run` for every cell

        sweep(asked, out / "sweep", manifest=manifest, device=device, quiet=quiet)
    notes = list(dict.fromkeys(notes))
    tested = {name: {c: len(pairs) for c, pairs in some.items()} for name, some in materials.pairs.items()}
    conditions = experiment.test.conditions or manifest.conditions
    left_out = sum(
        len(manifest.pairs(name, condition)) - some.get(condition, 0)
        for name, some in tested.items()
        for condition in conditions
    )
    lists = {study_set: len(materials.study_list(study_set, experiment.seeds[0])) for study_set in materials.study_sets}
    write_json(
        out / ABOUT,
        about
        | {
            "unit": learner.unit,
            "predictions": learner.predictions,
            "bound": learner.bound(""),
            "bounds": {name: learner.bound(name) for name in found[0].scores},
            "parameters": found[0].parameters,
            "hours": (learner.card or {}).get("hours"),
            "study_pictures": lists,
            "updates_per_exposure": {name: -(-n // experiment.study.batch_size) for name, n in lists.items()},
            "lr": experiment.study.lr,
            "lr_chosen": chosen,
            "pairs": tested,
            "pairs_left_out": left_out,
            "device": device,
            "complete": True,
            "notes": notes,
        },
    )
    return RunResult(out, out / LOSSES, tuple(notes), left_out)


def _write_tables(out: Path, runs: Sequence[OneRun], found: Sequence[Rows]) -> None:
    """All tables of the folder, from the rows of all runs."""
    losses, study, positions, experiment = [], [], [], runs[0].experiment
    for one, rows in zip(runs, found, strict=True):
        tests = one.materials.tests[one.study_set]
        for test in tests:
            for exposure, scores in enumerate(rows.scores[test.name]):
                losses += one.memory_rows(test, exposure, scores)
        losses += rows.retention
        for exposure, (updates, loss, seconds) in enumerate(rows.study):
            scores = np.array(rows.scores[tests[0].name][exposure])
            means = [float(scores[pictures].mean()) for pictures in (tests[0].seen, tests[0].unseen)]
            study.append((one.study_set, one.seed, exposure, updates, loss, *means, round(seconds, 3)))
        positions += _positions(one)
    write_losses(out / LOSSES, check_losses(pd.DataFrame(losses), str(out / LOSSES)))
    _write_csv(out / "study.csv", pd.DataFrame(study, columns=STUDY_COLUMNS))
    _write_csv(out / "positions.csv", pd.DataFrame(positions, columns=POSITION_COLUMNS))
    if experiment.retention is not None:
        log = [
            {"study_set": one.study_set, "seed": one.seed} | row
            for one, rows in zip(runs, found)
            for row in rows.retention_log
        ]
        _write_csv(out / "retention.csv", pd.DataFrame(log))
    if experiment.recall is not None:
        items = [row for rows in found for row in rows.recall]
        _write_csv(out / "recall_items.csv", pd.DataFrame(items))
        _write_csv(out / "recall.csv", recall_summary(items))


def _positions(one: OneRun) -> list[tuple]:
    """Rows of `positions.csv`; of a picture that is studied twice in an exposure, the first place."""
    listed, positions = one.materials.study_list(one.study_set, one.seed), []
    for exposure in range(1, one.experiment.study.exposures + 1):
        order = listed[study_order(len(listed), one.seed, exposure)].tolist()
        place = {row: k for k, row in reversed(list(enumerate(order)))}
        for condition, pairs in one.materials.pairs[one.study_set].items():
            for pair in pairs:
                position = place[one.materials.row[pair.seen.sha256]]
                positions.append((one.study_set, one.seed, exposure, condition, pair.number, position))
    return positions


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with atomic_file(path, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")


def _notes_on_learner(experiment: Experiment, learner: Learner) -> list[str]:
    notes = []
    if learner.card is not None and experiment.pretraining == "none":
        name = learner.card.get("name", "weights of a file")
        notes.append(f"the model is called untrained (pretraining none), but it starts from trained weights: {name}")
    if learner.card is None and experiment.pretraining != "none":
        notes.append(f"pretraining is called {experiment.pretraining}, but the learner names no trained weights")
    if learner.card is not None and learner.card["architecture"]["class"] == "GPT":
        if (learner.card.get("tokenizer") or {}).get("hash") is None:
            notes.append(
                "the tokenizer is the one that was named: nothing in the GPT's card says which it was trained on"
            )
    for test in ("", *(parse_variant(text).name for text in experiment.test.variants)):
        bound = learner.bound(test)
        if bound:
            notes.append(
                f"the {f'test {test}' if test else 'plain test'} of this learner is no test of memory: {bound}"
            )
    return notes
