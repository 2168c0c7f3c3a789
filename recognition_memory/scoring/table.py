"""The memory table (contract, DESIGN section 4): losses of studied pictures and their foils, read, checked, arranged.

    losses.csv ─read_losses─▶ data frame ─groups─▶ one `Group` a model, pretraining and test:
                                                   arrays (study sets, seeds, exposures, pairs, seen | unseen)

One row is one pair of one condition, tested in one run (a study set and a seed) after some number of exposures;
exposure 0 is before study. `loss_seen` is of the picture that was studied in that set, `loss_unseen` of its foil;
whatever the unit, lower is more familiar. An optional last column `test` names another test than the plain one
("noise 25", "foil mirror", "after 64 updates"). A table may come from elsewhere: everything is checked here, once.
"""

import gzip
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from headcam.errors import InputError
from headcam.files import atomic_file

COLUMNS = (
    "model",
    "pretraining",
    "study_set",
    "seed",
    "condition",
    "exposures",
    "pair",
    "loss_seen",
    "loss_unseen",
)
TEST = "test"
POOLED = "pooled"  # all conditions together, in every output; no condition may be called so
_TEXT = ("model", "pretraining", "study_set", "condition", TEST)
_INTEGERS = ("seed", "exposures", "pair")
_LOSSES = ("loss_seen", "loss_unseen")
_KEY = ["model", "pretraining", TEST, "study_set", "seed", "condition", "exposures", "pair"]
_FOIL = "foil "  # foils made from the studied picture: the two sets then share no pictures
_SWAPPED_CORRELATION = 0.5


@dataclass(frozen=True)
class Group:
    """All runs of one model, one pretraining and one test, as arrays.

    Attributes:
        study_sets, seeds, exposures, conditions: what the axes of `losses` stand for.
        losses: condition -> (sets, seeds, exposures, pairs, 2) float64; [..., 0] seen, [..., 1] unseen; NaN where a
            study set has no run of a seed.
        pairs: condition -> (pairs,) numbers of the pairs.
        role_swapped: there are two study sets, and a pair's picture that is studied in one is its foil in the other.
        notes: what was left out of the table, and why.
    """

    model: str
    pretraining: str
    test: str
    study_sets: tuple[str, ...]
    seeds: tuple[int, ...]
    exposures: tuple[int, ...]
    conditions: tuple[str, ...]
    losses: dict[str, np.ndarray]
    pairs: dict[str, np.ndarray]
    role_swapped: bool = False
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called in notes: "igpt_s, imagenet, noise 25"."""
        return ", ".join(filter(None, (self.model, self.pretraining, self.test)))

    @property
    def runs(self) -> np.ndarray:
        """(sets, seeds) bool: which runs there are."""
        return ~np.isnan(self.losses[self.conditions[0]][:, :, 0, 0, 0])

    @property
    def choices(self) -> bool:
        """Whether every pair holds a 0 and a 1: choices between two pictures (people), which have no criterion."""
        return all(
            np.isin(losses[self.runs], (0, 1)).all() and (losses[self.runs].sum(axis=-1) == 1).all()
            for losses in self.losses.values()
        )


def read_losses(path: str | PathLike) -> pd.DataFrame:
    """Read and check a memory table, CSV or gzipped CSV.

    Returns:
        A frame with `COLUMNS` and `test` (text, "" for the plain test), sorted by run, exposure and pair; conditions
        stay in the order in which the file has them first. Losses are bit-exact (a "none" stays text).
    Raises:
        InputError: no such file, missing or unknown columns, cells that are not what their column wants, losses that
            are not finite, duplicated rows, no rows at all.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"memory table {path} was not found", "give a CSV file such as OUT/losses.csv of a memory run")
    types = (
        dict.fromkeys(_TEXT, pa.string()) | dict.fromkeys(_INTEGERS, pa.int64()) | dict.fromkeys(_LOSSES, pa.float64())
    )
    try:
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(use_threads=False),  # else errors do not name the row
            convert_options=pa_csv.ConvertOptions(column_types=types, null_values=[], strings_can_be_null=False),
        )
        header = table.column_names
    except (
        pa.ArrowInvalid,
        UnicodeDecodeError,
        OSError,
    ) as error:  # OSError: what is no gzip file, or only part of one
        reason = re.sub(r"column #(\d+)", lambda number: f"column {int(number[1]) + 1}", str(error))
        raise InputError(
            f"memory table {path} could not be read: {reason}",
            f"give a CSV file with the columns {', '.join(COLUMNS)}, a value in every cell",
        ) from error
    _check_header(path, header)
    frame = table.to_pandas()
    if TEST not in frame:
        frame[TEST] = ""
    return check_losses(frame, str(path))


def check_losses(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Check the rows of a memory table and sort them; `name` is what errors call it. Raises as `read_losses`."""
    if frame.empty:
        raise InputError(f"memory table {name} has no rows", "run the experiment to its end, or give another table")
    for column in ("model", "study_set", "condition"):
        if (frame[column] == "").any():
            raise InputError(f"memory table {name}: {column} is empty in {_row(frame, frame[column] == '')}", "name it")
    if (frame.condition == POOLED).any():
        raise InputError(
            f"memory table {name}: a condition is called {POOLED}, which stands for all conditions together",
            "leave those rows out: pooled figures are computed from the others",
        )
    if (frame.exposures < 0).any():
        raise InputError(
            f"memory table {name}: exposures is negative in {_row(frame, frame.exposures < 0)}",
            "count from 0, which is before study",
        )
    for column in _LOSSES:
        bad = ~np.isfinite(frame[column].to_numpy())
        if bad.any():
            raise InputError(
                f"memory table {name}: {column} is not finite in {_row(frame, bad)} ({int(bad.sum())} such rows)",
                "find out why that run diverged (a lower learning rate helps), and measure it again",
            )
    repeated = frame.duplicated(_KEY).to_numpy()
    if repeated.any():
        raise InputError(
            f"memory table {name}: {_row(frame, repeated)} occurs more than once ({int(repeated.sum())} such rows)",
            "keep one row for each run, exposure, condition, pair and test; give runs of other settings another name",
        )
    order = {condition: k for k, condition in enumerate(pd.unique(frame.condition))}
    sets = {study_set: k for k, study_set in enumerate(sorted(pd.unique(frame.study_set), key=_natural))}
    keys = (frame.condition.map(order), frame.study_set.map(sets))
    return (
        frame[[*COLUMNS, TEST]]
        .assign(_condition=keys[0], _set=keys[1])
        .sort_values(
            ["model", "pretraining", TEST, "_set", "seed", "_condition", "exposures", "pair"],
            kind="stable",
            ignore_index=True,
        )
        .drop(columns=["_condition", "_set"])
    )


def write_losses(path: str | PathLike, frame: pd.DataFrame) -> None:
    """Write a memory table (`.csv` or `.csv.gz`), whole or not at all; floats so that they are read back bit-exact.

    The column `test` is left out where all rows are plain tests. The same frame gives the same bytes.
    """
    columns = [*COLUMNS] + ([TEST] if TEST in frame and (frame[TEST] != "").any() else [])
    text = frame[columns].to_csv(index=False, lineterminator="\n").encode()
    with atomic_file(path) as file:
        file.write(gzip.compress(text, mtime=0) if str(path).endswith(".gz") else text)


def groups(frame: pd.DataFrame, role_swapped: bool | None = None) -> list[Group]:
    """Arrange a checked memory table as one `Group` a model, pretraining and test, in alphabetical order.

    Runs of unequal length are cut to the exposures that all have, and pairs that not every study set has are left out;
    both are said in `notes`.

    Args:
        frame: as `read_losses` returns it, or several such frames below each other.
        role_swapped: whether the two study sets are mirror images of each other. None: decided by the losses, since
            one picture has nearly the same loss in both sets: over the pictures of a condition and role, the losses
            in one set must correlate at least 0.5 with those in the other, roles exchanged, at some exposure.
    Raises:
        InputError: a row is missing, named; runs have no exposure in common, or study sets no pair.
    """
    return [
        _group(rows, model, pretraining, test, role_swapped)
        for (model, pretraining, test), rows in frame.groupby(["model", "pretraining", TEST], sort=True)
    ]


def _group(rows: pd.DataFrame, model: str, pretraining: str, test: str, role_swapped: bool | None) -> Group:
    name = ", ".join(filter(None, (model, pretraining, test)))
    sets = tuple(sorted(pd.unique(rows.study_set), key=_natural))
    seeds = tuple(sorted(int(seed) for seed in pd.unique(rows.seed)))
    conditions = tuple(pd.unique(rows.condition))
    notes = []

    lengths = rows.groupby(["study_set", "seed", "condition"], sort=False).exposures.agg(lambda e: frozenset(e))
    exposures = tuple(sorted(int(e) for e in frozenset.intersection(*lengths)))
    if not exposures:
        raise InputError(f"memory table: the runs of {name} have no exposure in common", "score them as two tables")
    left_out = sorted(frozenset.union(*lengths) - set(exposures))
    if left_out:
        notes.append(
            f"runs are of unequal length; only the {len(exposures)} exposures that all have are scored, "
            f"{len(left_out)} are left out (from {left_out[0]} to {left_out[-1]})"
        )

    pairs = {}
    for condition in conditions:
        pairs[condition], n_left_out = _common_pairs(rows[rows.condition == condition], sets)
        if not pairs[condition].size:
            raise InputError(
                f"memory table: the study sets of {name} have no pair of condition {condition} in common",
                "number the pairs alike in all sets, or score the sets as two tables",
            )
        if n_left_out:
            notes.append(
                f"{n_left_out} of {pairs[condition].size + n_left_out} pairs of {condition} are not in every study set "
                "and are left out"
            )

    runs = np.zeros((len(sets), len(seeds)), bool)
    losses = {}
    for condition in conditions:
        cells = rows[(rows.condition == condition) & rows.exposures.isin(exposures) & rows.pair.isin(pairs[condition])]
        index = (
            pd.Index(sets).get_indexer(cells.study_set),
            np.searchsorted(seeds, cells.seed),
            np.searchsorted(exposures, cells.exposures),
            np.searchsorted(pairs[condition], cells.pair),
        )
        losses[condition] = np.full((len(sets), len(seeds), len(exposures), pairs[condition].size, 2), np.nan)
        losses[condition][index] = cells[list(_LOSSES)].to_numpy()
        runs[index[:2]] = True
    for condition in conditions:
        absent = np.argwhere(runs[:, :, None, None] & np.isnan(losses[condition][..., 0]))
        if absent.size:
            s, k, e, p = absent[0]
            raise InputError(
                f"memory table: {name} has no row for study_set {sets[s]}, seed {seeds[k]}, condition {condition}, "
                f"exposures {exposures[e]}, pair {pairs[condition][p]} ({len(absent)} rows are missing)",
                "let that run finish, or take its rows out",
            )
    if not runs.all():
        notes.append("the study sets have runs of different seeds; each set counts the same")
    return Group(
        model,
        pretraining,
        test,
        sets,
        seeds,
        exposures,
        conditions,
        losses,
        pairs,
        role_swapped=_role_swapped(losses, sets, test) if role_swapped is None else _can_swap(sets, test, role_swapped),
        notes=tuple(notes),
    )


def _common_pairs(rows: pd.DataFrame, sets: tuple[str, ...]) -> tuple[np.ndarray, int]:
    """Numbers of the pairs that all study sets have, and how many others there are; `rows` are of one condition."""
    in_sets = rows[["study_set", "pair"]].drop_duplicates().groupby("pair").size()
    common = in_sets.index[in_sets == len(sets)].to_numpy()
    return common, in_sets.size - common.size


def _can_swap(sets: tuple[str, ...], test: str, role_swapped: bool) -> bool:
    return role_swapped and len(sets) == 2 and not test.startswith(_FOIL)


def _role_swapped(losses: dict[str, np.ndarray], sets: tuple[str, ...], test: str) -> bool:
    """Whether pictures keep their losses from the one set to the other if roles are exchanged, at any exposure."""
    if not _can_swap(sets, test, True):
        return False
    means = [np.nanmean(values, axis=1) for values in losses.values()]  # (2, exposures, pairs, 2)
    means = np.concatenate([values - values.mean(axis=2, keepdims=True) for values in means], axis=2)
    here, there = (values.reshape(len(values), -1) for values in (means[0], means[1, ..., ::-1]))
    spread = np.sqrt((here**2).sum(axis=1) * (there**2).sum(axis=1))
    return bool(((here * there).sum(axis=1) >= _SWAPPED_CORRELATION * spread)[spread > 0].any())


def _check_header(path: Path, header: list[str]) -> None:
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise InputError(
            f"memory table {path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}",
            f"give a CSV file with the columns {', '.join(COLUMNS)}",
        )
    unknown = [column for k, column in enumerate(header) if column not in (*COLUMNS, TEST) or column in header[:k]]
    if unknown:
        raise InputError(
            f"memory table {path} has columns that mean nothing here, or come twice: {', '.join(unknown)}",
            f"keep the columns {', '.join(COLUMNS)} and, for other tests than the plain one, {TEST}",
        )


def _row(frame: pd.DataFrame, chosen: np.ndarray | pd.Series) -> str:
    """The first chosen row, in words."""
    row = frame[np.asarray(chosen)].iloc[0]
    return ", ".join(f"{column} {row[column]}" for column in _KEY if row[column] != "")


def _natural(text: str) -> tuple:
    """Sorts "2" before "10"."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", text))
