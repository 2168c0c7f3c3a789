"""The learning rate of study, chosen on other pictures and then frozen.

A learning rate that is chosen on the tested pictures would be part of the result. So it is chosen on a set of its own:

    other pictures, halves A and B ─┬─ study A, test A_i against B_i ─┐
                                    └─ study B, test B_i against A_i ─┴─▶ margins of both ─▶ mean / SD, for each rate

The margin of a pair is calibrated: how much more the score of the studied picture fell than that of its foil. The
criterion is the mean of all margins over their standard deviation (d' of a two-alternative test, in units of the
margin); the highest wins, the smaller rate where two are equal. Accuracy stands beside it but decides nothing: it
saturates. A rate at which study diverges is left out with the reason.

`selection.csv` gets one row a rate, as soon as it is known. A restarted choice goes on after the rates that are there,
where they come from the same settings and pictures (column `settings`).
"""

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.files import atomic_file, sha256_json
from headcam.progress import Progress
from headcam.randomness import permuted
from headcam.recognition_memory.experiment import Experiment, build_learner
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.running.other_pictures import open_other_pictures
from headcam.recognition_memory.stimuli.manifest import MemoryManifest, is_manifest, load_pictures
from headcam.recognition_memory.study import Diverged, Student

COLUMNS = (
    "settings",  # first 16 digits of the SHA-256 of what the row depends on, besides the rate
    "lr",
    "d_prime",  # mean / SD of the calibrated margins of both directions
    "accuracy",  # share of margins above 0, ties as half
    "pairs",  # margins: both directions
    "studied_before",  # mean scores
    "studied_after",
    "foils_before",
    "foils_after",
    "finite",
    "reason",  # why not; then the figures are empty
)
_LEAST_PICTURES = 16  # eight pairs in either direction; fewer do not tell rates apart


@dataclass(frozen=True)
class Selected:
    """Attributes:
    lr: the learning rate to study with.
    table: the rows of `selection.csv`, in the order of `selection.lrs`.
    notes: what was left out, and on how many pictures the choice rests.
    """

    lr: float
    table: list[dict]
    notes: tuple[str, ...]


def select_lr(
    experiment: Experiment, manifest: MemoryManifest, folder: str | Path, *, device: str = "cpu", quiet: bool = False
) -> Selected:
    """Choose the learning rate by `experiment.selection`; everything else of study is as in the experiment.

    Args:
        manifest: of the experiment, none of whose pictures may be used.
        folder: where `selection.csv` is written.
    Raises:
        InputError: pictures that cannot be had, are too few or belong to the experiment; or the learner learns nothing
            by gradients.
        Diverged: study diverges at every rate.
    """
    settings, folder = experiment.selection, Path(folder)
    learner = build_learner(experiment.learner)  # every study begins anew with it
    pictures, notes = _pictures(experiment, manifest, tuple(learner.img_size))
    key = _settings_key(experiment, pictures)
    rows = {row["lr"]: row for row in _read(folder / "selection.csv") if row["settings"] == key}
    with Progress("learning rate", total=len(settings.lrs), unit="rates", quiet=quiet) as progress:
        for lr in settings.lrs:
            if lr not in rows:
                rows[lr] = {"settings": key, "lr": lr} | _tried(experiment, lr, learner, pictures, device)
                _write(folder / "selection.csv", [rows[one] for one in settings.lrs if one in rows])
            progress.advance(current=f"{lr:g}")
    table = [rows[lr] for lr in settings.lrs]
    _write(folder / "selection.csv", table)
    usable = [row for row in table if row["finite"]]
    if not usable:
        raise Diverged(
            f"study diverges at every learning rate of selection.lrs ({', '.join(f'{lr:g}' for lr in settings.lrs)}): "
            f"{table[0]['reason']}",
            "give smaller ones",
        )
    best = max(usable, key=lambda row: (row["d_prime"], -row["lr"]))
    notes += [
        f"learning rate {row['lr']:g} left out of the choice: {row['reason']}" for row in table if not row["finite"]
    ]
    if len(usable) > 1 and best["lr"] in (min(settings.lrs), max(settings.lrs)):
        notes.append(f"the chosen learning rate {best['lr']:g} is at the edge of selection.lrs")
    return Selected(best["lr"], table, tuple(notes))


def _pictures(experiment: Experiment, manifest: MemoryManifest, size: tuple[int, int]) -> tuple[Tensor, list[str]]:
    """Different pictures, an even number of them, mixed: uint8 (2 n, 3, H, W); the first n are half A."""
    settings = experiment.selection
    data, notes = Path(settings.pictures), []
    if is_manifest(data):
        other = MemoryManifest.read(data)
        stimuli = {stimulus.sha256: stimulus for stimulus in other.stimuli}
        shared = sorted(stimuli.keys() & {stimulus.sha256 for stimulus in manifest.stimuli})
        if shared:
            raise InputError(
                f"{len(shared)} pictures of {data} belong to the experiment {manifest.name}, such as "
                f"{stimuli[shared[0]].path}",
                "choose the learning rate on pictures that are neither studied nor tested",
            )
        names = sorted(stimuli)
        chosen = np.sort(permuted(np.arange(min(settings.num, len(names))), len(names), settings.seed, "items"))
        found = load_pictures(other, [stimuli[names[k]] for k in chosen], size, experiment.test.resample)
    else:
        items = open_other_pictures(data, manifest, size, num=settings.num, seed=settings.seed)
        found = items.stacked()
        if items.skipped:
            item, reason = items.skipped[0]
            notes.append(f"selection: {len(items.skipped)} pictures could not be decoded, such as {item} ({reason})")
    different = torch.unique(found.flatten(1), dim=0, return_inverse=True)[1].numpy()
    first = np.sort(np.unique(different, return_index=True)[1])  # a foil must not be a studied picture in disguise
    if len(first) < _LEAST_PICTURES:
        raise InputError(
            f"{data} has {len(first)} different pictures, too few to choose a learning rate on",
            f"give at least {_LEAST_PICTURES}, better some hundreds, or set study.lr and leave selection out",
        )
    first = first[: len(first) // 2 * 2]
    mixed = first[permuted(np.arange(len(first)), len(first), settings.seed, "selection halves")]
    notes.append(f"learning rate chosen on {len(mixed)} other pictures, half studied and half foils, both ways round")
    return found[torch.from_numpy(mixed)], notes


def _tried(experiment: Experiment, lr: float, learner: Learner, pictures: Tensor, device: str) -> dict:
    """Study either half at this rate, and test it against the other."""
    settings, batch_size = experiment.selection, experiment.test.batch_size
    study = replace(experiment.study, lr=lr, list_length=None)
    before, after = [], []  # of each direction: (2, n) scores, first of what is studied
    halves = pictures.chunk(2)
    for studied, foils in (halves, halves[::-1]):
        learner.begin(settings.seed, pictures)
        student = Student(learner, study, settings.seed, device)
        tested = torch.cat([studied, foils])
        try:
            before.append(student.scores(tested, batch_size).reshape(2, -1))
            for exposure in range(1, settings.exposures + 1):
                student.expose(studied, exposure)
            after.append(student.scores(tested, batch_size).reshape(2, -1))
        except Diverged as error:
            return dict.fromkeys(COLUMNS[2:-2]) | {"finite": False, "reason": error.problem}
        if student.updates == 0:
            name = type(learner).__name__
            raise InputError(f"{name} learns nothing by gradients: it has no learning rate", "leave selection out")
    before, after = np.concatenate(before, axis=1), np.concatenate(after, axis=1)
    drop = before - after
    margins = drop[0] - drop[1]
    spread = margins.std(ddof=1)
    means = {
        f"{role}_{when}": float(scores[k].mean())
        for k, role in enumerate(("studied", "foils"))
        for when, scores in (("before", before), ("after", after))
    }
    return means | {
        "d_prime": float(margins.mean() / spread) if spread > 0 else 0.0,
        "accuracy": float(np.mean(margins > 0) + np.mean(margins == 0) / 2),
        "pairs": margins.size,
        "finite": True,
        "reason": "",
    }


def _settings_key(experiment: Experiment, pictures: Tensor) -> str:
    study = asdict(experiment.study)
    for name in ("lr", "list_length", "exposures"):  # tried here, of no meaning here, and `selection.exposures`
        del study[name]
    return sha256_json(
        {
            "learner": experiment.learner,
            "study": study,
            "exposures": experiment.selection.exposures,
            "seed": experiment.selection.seed,
            "pictures": hashlib.sha256(pictures.numpy().tobytes()).hexdigest(),
            "size": list(pictures.shape),
        }
    )[:16]


def _write(path: Path, rows: list[Mapping]) -> None:
    with atomic_file(path, "w") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)  # floats as repr: they are read back to the bit


def _read(path: Path) -> list[dict]:
    """Rows of an earlier choice; none where there is no such file, or it is not one of ours."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            return []
        return [
            row
            | {name: float(row[name]) if row[name] else None for name in COLUMNS[1:9] if name != "pairs"}
            | {"pairs": int(row["pairs"]) if row["pairs"] else None, "finite": row["finite"] == "True"}
            for row in reader
        ]
