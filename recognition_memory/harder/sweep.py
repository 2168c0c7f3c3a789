"""Sweeps: the same experiment at every combination of learning rate, batch size and list length.

Recognition saturates after one exposure at the published settings. How little study suffices, and how long a list can
be, shows only where study is made weaker or the list longer. Every cell of

    sweep.lr x sweep.batch_size x sweep.list_length

is an experiment of its own in OUT/<cell>/, run and scored like any other (so it can be opened, reported and restarted
like any other), and `sweep.csv` gathers the scores of all, one row a cell, condition, exposure and rule.

What has no list keeps its setting of `study`. Retention and recall are left out of cells, which are about study alone.
Where `selection` is asked for and learning rates are not swept, each cell chooses its own before it studies, since the
best one depends on the batch; the rate in the table is the one that was chosen.

Capacity is bits a decision carries times pictures studied: `capacity_bits` from the two-alternative accuracy, at most
one bit a picture and so a lower bound of what is kept; `capacity_bits_saved` from the description length that study
saved, where the learner's scores are nats. By the rule `role_swapped` both are of two learners' memories.
"""

import itertools
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from headcam.errors import InputError
from headcam.files import atomic_file
from headcam.recognition_memory.experiment import Experiment, StudySettings
from headcam.recognition_memory.run import LOSSES, run
from headcam.recognition_memory.running.claim import ABOUT
from headcam.recognition_memory.scoring.scores import score
from headcam.recognition_memory.stimuli.lists import with_list_length
from headcam.recognition_memory.stimuli.manifest import MemoryManifest
from headcam.recognition_memory.study import Diverged

COLUMNS = (
    "lr",
    "batch_size",
    "list_length",  # empty: all study pictures
    "study_pictures",  # of a run; the fewest where study sets differ
    "updates_per_exposure",
    "condition",
    "exposures",
    "rule",
    "accuracy",
    "low",
    "high",
    "d_prime",  # of the two-alternative test
    "bits_2afc",  # a decision
    "bits_saved",  # a picture; empty where scores are no nats
    "capacity_bits",  # bits_2afc x study_pictures
    "capacity_bits_saved",  # bits_saved x study_pictures
    "n_pairs",
    "n_runs",
    "cell",  # folder of the cell
    "reason",  # why a cell has no figures: study diverged
)

FILE_NAME = "sweep.csv"
_MATCH = ["condition", "exposures", "rule"]
_WHOLE = ("batch_size", "list_length", "study_pictures", "updates_per_exposure", "exposures", "n_pairs", "n_runs")
_FIGURES = ("accuracy", "low", "high", "d_prime_2afc", "bits_2afc", "bits_saved")
_RESAMPLES = 2000  # of the intervals of a cell: there are many cells, and score() gives a single one any number


def sweep(
    experiment: Experiment, out: str | Path, *, manifest: MemoryManifest, device: str = "cpu", quiet: bool = False
) -> Path:
    """Run and score every cell of `experiment.sweep`; what an earlier sweep has done is not done again.

    Args:
        out: folder that gets one folder a cell, and `sweep.csv`.
        manifest: of the experiment.
    Returns:
        `sweep.csv`. A cell whose study diverges is a row with its reason and no figures.
    Raises:
        InputError: nothing to sweep; a list length that the manifest does not allow (before any cell is run); or what
            ends a run, other than a loss or score that is not finite.
    """
    out, cells = Path(out), sweep_cells(experiment)
    for study_set in experiment.study_sets or manifest.study_sets:
        for length in {study.list_length for study in cells.values()}:
            with_list_length(manifest, study_set, length, experiment.seeds[0])
    rows = []
    for number, (name, study) in enumerate(cells.items(), start=1):
        if not quiet:
            print(f"sweep: cell {number} of {len(cells)}, {name}", file=sys.stderr, flush=True)
        rows += _cell(experiment, study, out / name, manifest, device, quiet)
    # Whole numbers of which some are missing stay whole numbers in the file.
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(_WHOLE, "Int64"))
    with atomic_file(out / FILE_NAME, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")
    return out / FILE_NAME


def sweep_cells(experiment: Experiment) -> dict[str, StudySettings]:
    """Name of a cell, after what is swept, -> its settings of study: all combinations, in the order of the lists."""
    swept = {name: values for name, values in asdict(experiment.sweep).items() if values}
    if not swept:
        raise InputError(
            "sweep has no list of values", "give sweep.lr, sweep.batch_size or sweep.list_length, or no sweep"
        )
    combinations = [dict(zip(swept, values)) for values in itertools.product(*swept.values())]
    return {
        "-".join(f"{name}_{value:g}" for name, value in cell.items()): replace(experiment.study, **cell)
        for cell in combinations
    }


def _cell(
    experiment: Experiment, study: StudySettings, folder: Path, manifest: MemoryManifest, device: str, quiet: bool
) -> list[dict]:
    """The rows of one cell, run and scored."""
    selection = None if experiment.sweep.lr else experiment.selection
    one = replace(experiment, study=study, selection=selection, retention=None, recall=None, sweep=None)
    settings = {"batch_size": study.batch_size, "list_length": study.list_length, "cell": folder.name}
    try:
        run(one, folder, manifest=manifest, device=device, quiet=quiet)
    except Diverged as error:
        return [settings | {"lr": study.lr, "reason": error.problem}]
    about = json.loads((folder / ABOUT).read_text("utf-8"))
    swapped, predictions = manifest.role_swapped, about["predictions"]
    score(folder / LOSSES, folder, predictions=predictions, role_swapped=swapped, n_resamples=_RESAMPLES, quiet=True)
    return [settings | {"lr": about["lr"]} | row for row in _gathered(folder, about)]


def _gathered(folder: Path, about: dict[str, Any]) -> list[dict]:
    """What `score` wrote of the plain test, with the capacity that follows."""
    accuracy, signals = (_plain(folder / f"{name}.csv") for name in ("accuracy", "signals"))
    pictures = min(about["study_pictures"].values())
    signal = signals.set_index(_MATCH)
    rows = []
    for row in accuracy.to_dict("records"):
        of = signal.loc[tuple(row[name] for name in _MATCH)]
        rows.append(
            {name: row[name] for name in (*_MATCH, "accuracy", "low", "high", "n_pairs", "n_runs")}
            | {
                "study_pictures": pictures,
                "updates_per_exposure": min(about["updates_per_exposure"].values()),
                "d_prime": of["d_prime_2afc"],
                "bits_2afc": of["bits_2afc"],
                "bits_saved": of["bits_saved"],
                "capacity_bits": of["bits_2afc"] * pictures,
                "capacity_bits_saved": of["bits_saved"] * pictures,
                "reason": "",
            }
        )
    return rows


def _plain(path: Path) -> pd.DataFrame:
    """Rows of the plain test: there is a column `test` only where there are others."""
    table = pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in _FIGURES})
    return table[table["test"] == ""] if "test" in table else table
