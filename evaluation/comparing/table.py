"""`compare.csv`: a row for each number of the comparison, scores as they were probed and differences between models.

Columns are those of scores.csv behind four of this table's own. In a row of kind `difference` the number is the first
model's minus that of `minus`, in percentage points.
"""

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from headcam.evaluation.scoring.scores import Score
from headcam.files import atomic_file

if TYPE_CHECKING:
    from headcam.evaluation.compare import Comparison

CONTRACT = "compare/1"
COLUMNS = ("contract", "kind", "folder", "name", *(f.name for f in fields(Score)), "minus", "pairing", "comparisons")


def write_table(path: Path, c: "Comparison") -> None:
    """Write the table, whole or not at all; floats so that they read back exactly.

    Columns of its own: kind ("score" or "difference"), folder (of the probe, as given), name (of the row on the page),
    and of differences minus (the other row's name), pairing ("paired" or "unpaired"), comparisons (how many
    differences of the metric were made).
    """
    with atomic_file(path, "w") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for probe in c.grid.probes:
            for score in probe.scores:
                name = next(row.name for row in c.grid.rows if row.models.get(probe.number) == score.model)
                writer.writerow(
                    {"contract": CONTRACT, "kind": "score", "folder": str(probe.folder), "name": name} | asdict(score)
                )
        for d in [*(d for found in c.differences.values() for d in found), *c.above_baselines]:
            number = {"value": d.interval.estimate, "low": d.interval.low, "high": d.interval.high, "n": d.interval.n}
            writer.writerow(
                {"contract": CONTRACT, "kind": "difference", "folder": str(d.first.origin[d.column].folder)}
                | {"name": d.first.name, "minus": d.second.name}
                | asdict(d.first.cells[d.column])
                | number
                | {"pairing": "paired" if d.paired else "unpaired", "comparisons": d.comparisons}
            )
