"""The folders that `headcam probe` wrote, read whole and checked, before anything in them is compared.

    scores.csv        the numbers                          headcam.evaluation.scoring.scores
    probe.json        what they were measured on, and how  here
    items.parquet     what was said of each test picture   headcam.evaluation.scoring.items
    pictures.parquet  which pictures those were
    per_class.csv     derived from the items: not read, it is computed anew where two models are compared

A folder that is no probe, is of another contract, or was damaged is refused here by name; nothing behind this module
checks again.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from headcam.errors import InputError
from headcam.evaluation.scoring.items import Items, read_items
from headcam.evaluation.scoring.scores import Score, read_scores
from headcam.evaluation.watching.record import Row, read_online

VERSION = 2  # of the contract "probe" that is read
ONLINE = "online_probe.csv"
_KEYS = ("model", "data", "protocols", "outcomes", "left_out", "test_selection")


@dataclass(frozen=True)
class Probe:
    """One folder.

    Attributes:
        folder: as it was given.
        number: place among the folders that are compared, from 0.
        scores: rows of scores.csv.
        report: probe.json.
        items: what was said of each test picture.
        online: rows of the online probe of the run that the folder lies in, or none.
    """

    folder: Path
    number: int
    scores: tuple[Score, ...]
    report: dict[str, Any]
    items: Items
    online: tuple[Row, ...]

    @property
    def model(self) -> str:
        """Name of the checkpoint that was probed."""
        return self.report["model"]["name"]

    @property
    def media(self) -> str:
        """What was classified: "pictures" or "videos"."""
        return self.report["data"]["media"]

    @cached_property
    def alarms(self) -> tuple[str, ...]:
        """What a reader has to know before believing a number: pictures left out, leaks, a search that hit its end."""
        data, found = self.report["data"], []
        if skipped := data["skipped"]:
            first, what = skipped[0], _counted(len(skipped), self.media)
            found.append(f"{what} skipped, such as {first['picture']} ({first['reason']})")
        if leaked := data["test_pictures_also_in_train"]:
            found.append(f"{_counted(len(leaked), f'test {self.media}')} also in the training set, such as {leaked[0]}")
        return tuple(found)


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what.removesuffix('s')} was" if n == 1 else f"{n:,} {what} were"


def read_probes(folders: Sequence[str | os.PathLike]) -> tuple[Probe, ...]:
    """Read the folders, in their order.

    Raises:
        InputError: the same folder twice, a folder that `headcam probe` did not write, files of another contract or
            files that are damaged or do not belong together.
    """
    seen: dict[Path, Path] = {}
    for folder in map(Path, folders):
        place = folder.expanduser().resolve()
        if place in seen:
            raise InputError(f"{folder} is given twice", "name each probe once")
        seen[place] = folder
    return tuple(_read_probe(folder, number) for number, folder in enumerate(seen.values()))


def _read_probe(folder: Path, number: int) -> Probe:
    report = _read_report(folder)
    scores, items = read_scores(folder / "scores.csv"), read_items(folder)
    pictures = len(items.labels)
    if report["data"].get("test") != pictures:
        raise InputError(
            f"{folder} is damaged: probe.json is of {report['data'].get('test')} test pictures, the items are of "
            f"{pictures}",
            "probe again into another folder",
        )
    if not any(score.model == report["model"]["name"] for score in scores):
        raise InputError(
            f"{folder} is damaged: scores.csv has no row of {report['model']['name']}, which probe.json is about",
            "probe again into another folder",
        )
    return Probe(folder, number, tuple(scores), report, items, _read_online(folder, report))


def _read_report(folder: Path) -> dict[str, Any]:
    file = folder / "probe.json"
    if not file.is_file():
        raise InputError(f"{folder} is no folder of a probe: it has no probe.json", "give the --out of `headcam probe`")
    try:
        report = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}", "probe again into another folder") from error
    if not isinstance(report, dict) or report.get("contract") != "probe":
        raise InputError(f"{file} is no report of a probe", "give the --out of `headcam probe`")
    if report.get("version") != VERSION:
        raise InputError(
            f"{file} follows contract probe/{report.get('version')}, and this version reads probe/{VERSION}",
            "probe again with this version of headcam: cached features are used where they still hold",
        )
    for key in _KEYS:
        if key not in report:
            raise InputError(f"{file} is damaged: it has no {key}", "probe again into another folder")
    return report


def _read_online(folder: Path, report: dict[str, Any]) -> tuple[Row, ...]:
    """The online probe of the run: in the folder itself, or beside it where the run's card is of the probed weights."""
    here, run = folder / ONLINE, folder.expanduser().resolve().parent
    if here.is_file():
        file = here
    elif (run / ONLINE).is_file() and _weights_of(run / "card.json") == report["model"].get("weights_hash"):
        file = run / ONLINE
    else:
        return ()
    return tuple(read_online(file))


def _weights_of(card: Path) -> str | None:
    try:
        return json.loads(card.read_text("utf-8")).get("weights_hash")
    except (OSError, ValueError, AttributeError):
        return None
