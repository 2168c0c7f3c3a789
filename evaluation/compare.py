"""Checkpoints side by side: what several `headcam probe` found, on one page and in one table.

    PROBE_OUT  PROBE_OUT ...   (scores.csv, probe.json, items.parquet, pictures.parquet; online_probe.csv of the run)
        │ read, checked                            comparing/probes.py
        ▼
    rows are models, columns are comparable        comparing/columns.py    equal protocol hash and equal data, or apart
        │
        ├─ paired differences, confusions ...      comparing/pairs.py
        ▼
    OUT/compare.html  OUT/compare.csv              comparing/page.py (curves.py, mistakes.py, robust.py), table.py

Nothing is measured here: no model is loaded, and a picture is opened only to be shown.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headcam.errors import InputError
from headcam.evaluation.comparing.columns import Column, Grid, grid_of, main_column
from headcam.evaluation.comparing.page import headline, write_page
from headcam.evaluation.comparing.pairs import Difference, above_baselines, differences
from headcam.evaluation.comparing.probes import read_probes
from headcam.evaluation.comparing.table import write_table
from headcam.progress import Progress


@dataclass(frozen=True)
class Comparison:
    """What was gathered for the page.

    Attributes:
        grid: all numbers, sorted into rows and comparable columns.
        main: the column that the page is about.
        differences: of the trained models, for each column that has test pictures to pair (draws: of their mean).
        above_baselines: trained models minus their baselines, in `main`.
        labelled: the user's labelled folder, where pictures are to be shown.
        page, table: the files.
    """

    grid: Grid
    main: Column
    differences: dict[Column, list[Difference]]
    above_baselines: list[Difference]
    labelled: Path | None
    page: Path
    table: Path

    @property
    def headline(self) -> str:
        """The result in a few sentences."""
        return headline(self)

    @property
    def media(self) -> str:
        """What the main metric classified: "pictures" or "videos"."""
        return self.grid.trained_in(self.main)[0].origin[self.main].media

    @property
    def alarms(self) -> tuple[str, ...]:
        """Skipped and leaked pictures of the probes, with their folders."""
        return tuple(f"{probe.folder}: {alarm}" for probe in self.grid.probes for alarm in probe.alarms)


def compare(
    folders: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    labelled: str | os.PathLike | None = None,
    frames: bool = True,
    metric: str | None = None,
    names: Sequence[str] | None = None,
    quiet: bool = False,
) -> Comparison:
    """Compare the models that were probed into `folders`; write OUT/compare.html and OUT/compare.csv.

    Args:
        folders: what `headcam probe` wrote, two or more.
        out: folder of the page and the table, made where missing.
        labelled: the labelled pictures that were probed, to show some on which models differ.
        frames: whether pictures may be on the page at all.
        metric: what the page is about, such as "linear/top1"; default a linear probe's, else the first that most
            models share.
        names: how to call the checkpoints, one name a folder; default: their own.
        quiet: no progress on standard error.
    Raises:
        InputError: see `read_probes`, `grid_of` and `main_column`; a labelled folder that is not there or does not
            hold the pictures that were tested.
        StorageError: `out` cannot be written.
    """
    place = None if labelled is None else Path(labelled).expanduser()
    if place is not None and not place.is_dir():
        raise InputError(f"labelled folder {place} does not exist", "give the folder that was probed, or leave it out")
    grid = grid_of(read_probes(folders), names)
    main = main_column(grid, metric)
    columns = [column for column in grid.of_kind("plain", "labels", "layer") if column.top is not None]
    found = {}
    with Progress("paired differences", len(columns), "metrics", quiet=quiet) as progress:
        for column in columns:
            found[column] = differences(grid, column)
            progress.advance(current=column.metric)
    out = Path(out)
    page, table = out / "compare.html", out / "compare.csv"
    result = Comparison(grid, main, found, above_baselines(grid, main), place, page, table)
    write_table(table, result)
    write_page(page, result, frames)
    return result
