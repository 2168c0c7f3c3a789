"""What people did in the browser: files of the page (`page.py`) become a memory table and a summary of who took part.

    memory-1-2026-01-31.json, memory-2-...  ─read_people─▶ memory table (model "people")  ─score─▶ as for any model
                                                           summary, a row a participant

A person chooses between two pictures and has no loss. The table holds the choice as 0 (the picture that was taken for
the studied one) and 1, so that the raw rule, the lower one wins, gives the share of right choices and nothing else is
defined. All other measures of a person, such as how many repeats were noticed, are in the summary.
"""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import norm

from headcam.errors import InputError
from headcam.recognition_memory.people.page import DATA_CONTRACT

MODEL = "people"
_COLUMNS = ["model", "pretraining", "study_set", "seed", "condition", "exposures", "pair", "loss_seen", "loss_unseen"]
_NEEDED = {
    "page": str,
    "manifest": dict,
    "settings": dict,
    "participant": int,
    "study_set": str,
    "speed": (int, float),
    "complete": bool,
    "started": str,
    "finished": str,
    "interruptions": int,
    "study": list,
    "test": list,
}
_STUDY = {"position": int, "picture": str, "kind": str, "pressed": bool}
_TEST = {"condition": str, "pair": int, "correct": bool, "rt_ms": (int, float)}


def read_people(files: Sequence[str | PathLike], *, allow_fast: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read data files of one page.

    Nobody is left out of the table but those who stopped before the end, and the summary says so. Whether a participant
    who missed most repeats should count is the experimenter's to decide, before the test is looked at: the summary has
    what that takes; leave their files out then.

    Args:
        files: JSON files as the page saved them, in any order.
        allow_fast: also take files that were made at a higher speed (`?speed=` in the address), to try things out.
    Returns:
        The memory table: one row a participant, condition and pair; model "people", pretraining "", seed the
        participant's number, exposures 1, loss_seen 0 and loss_unseen 1 for a right choice and the other way round.
        The summary, one row a participant, sorted by number: participant, study_set, file, included, reason (empty
        where included), n_trials and accuracy of the test, rt_ms (median of the test, milliseconds), repeats, hits,
        new, false_alarms (of the study), d_prime of the repeats, interruptions (times that the window was left),
        minutes.
        The d' of the repeats adds half a response to either side, (hits + 0.5) / (repeats + 1), so that it is finite
        (log-linear correction); without repeats it is NaN.
    Raises:
        InputError: no files, a file that is none of ours or of another version, of a page with other pictures or
            settings than the first, made at a higher speed, of a participant who is there already; or nobody who
            finished.
    """
    if not files:
        raise InputError("no data files were given", "give the JSON files that the page saved")
    records = [(Path(file), _read(Path(file), allow_fast)) for file in files]
    _check_one_page(records)
    seen: dict[int, Path] = {}
    for file, record in records:
        number = record["participant"]
        if number in seen:
            raise InputError(
                f"{file} and {seen[number]} are both of participant {number}",
                "keep the right one; two people with one number have to be told apart by hand",
            )
        seen[number] = file
    records.sort(key=lambda one: one[1]["participant"])
    rows = [row for _, record in records if record["complete"] for row in _rows(record)]
    if not rows:
        raise InputError(
            f"none of {len(records)} participants came to the end of the test", "collect files of people who did"
        )
    return pd.DataFrame(rows, columns=_COLUMNS), pd.DataFrame([_summary(file, record) for file, record in records])


def _read(path: Path, allow_fast: bool) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", "give a JSON file that the page saved") from None
    contract = record.get("contract") if isinstance(record, dict) else None
    if contract != DATA_CONTRACT:
        raise InputError(
            f"{path} has the contract {contract!r}", f"this headcam reads {DATA_CONTRACT}, which its own pages save"
        )
    _check_fields(record, _NEEDED, str(path))
    for part, needed in (("study", _STUDY), ("test", _TEST)):
        for k, row in enumerate(record[part]):
            _check_fields(row, needed, f"{path}, {part}, entry {k}")
    if record["speed"] != 1 and not allow_fast:
        raise InputError(
            f"{path} was made at {record['speed']:g} times the speed, which is no data of a person",
            "open the page without ?speed= in its address",
        )
    return record


def _check_fields(record: Any, needed: dict[str, Any], where: str) -> None:
    for name, kind in needed.items():
        value = record.get(name) if isinstance(record, dict) else None
        # To Python True is an int, too.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{where}: {name} is {value!r}", "give the file as the page saved it")


def _check_one_page(records: Sequence[tuple[Path, dict[str, Any]]]) -> None:
    first_file, first = records[0]
    for file, record in records[1:]:
        if record["manifest"].get("hash") != first["manifest"].get("hash"):
            what = f"the manifest {record['manifest'].get('name')!r}, not {first['manifest'].get('name')!r}"
        elif record["page"] != first["page"]:
            differ = sorted(
                f"{name} {record['settings'].get(name)} instead of {first['settings'].get(name)}"
                for name in record["settings"].keys() | first["settings"].keys()
                if record["settings"].get(name) != first["settings"].get(name)
            )
            what = f"another page ({', '.join(differ) or 'other pairs or fillers'})"
        else:
            continue
        raise InputError(f"{file} is of {what}, unlike {first_file}", "score the files of one page at a time")


def _rows(record: dict[str, Any]) -> list[tuple]:
    run = (MODEL, "", record["study_set"], record["participant"])
    trials = sorted(record["test"], key=lambda trial: (trial["condition"], trial["pair"]))
    return [
        (*run, trial["condition"], 1, trial["pair"], float(not trial["correct"]), float(trial["correct"]))
        for trial in trials
    ]


def _summary(file: Path, record: dict[str, Any]) -> dict[str, Any]:
    study, test = record["study"], record["test"]
    repeated = [row["pressed"] for row in study if row["kind"] == "repeat"]
    new = [row["pressed"] for row in study if row["kind"] != "repeat"]
    duration = pd.Timestamp(record["finished"]) - pd.Timestamp(record["started"])
    return {
        "participant": record["participant"],
        "study_set": record["study_set"],
        "file": file.name,
        "included": record["complete"],
        "reason": "" if record["complete"] else _where_stopped(record),
        "n_trials": len(test),
        "accuracy": sum(row["correct"] for row in test) / len(test) if test else float("nan"),
        "rt_ms": float(pd.Series([row["rt_ms"] for row in test], dtype=float).median()),
        "repeats": len(repeated),
        "hits": sum(repeated),
        "new": len(new),
        "false_alarms": sum(new),
        "d_prime": _d_prime(repeated, new),
        "interruptions": record["interruptions"],
        "minutes": duration.total_seconds() / 60,
    }


def _where_stopped(record: dict[str, Any]) -> str:
    planned = record.get("planned", {})
    return (
        f"stopped after {len(record['study'])} of {planned.get('study', '?')} pictures of the study and "
        f"{len(record['test'])} of {planned.get('test', '?')} of the test"
    )


def _d_prime(repeated: Sequence[bool], new: Sequence[bool]) -> float:
    if not repeated or not new:
        return float("nan")
    hit, false_alarm = ((sum(pressed) + 0.5) / (len(pressed) + 1) for pressed in (repeated, new))
    return float(norm.ppf(hit) - norm.ppf(false_alarm))
