"""Score a checkpoint on labelled pictures, and beside it what the number has to be compared with.

    encoder, trained             ┐                ┌ knn ─────────┐
    encoder, random weights      ├─ each protocol ┤ linear ...   ├─ a guess for every test picture ─▶ scores.csv
    raw pixels, 16 x 16 x 3      ┘                └ fewshot-... ─┘                                 ─▶ per_class.csv
    chance                                                                                         ─▶ items.parquet
                                                                                                   ─▶ probe.json

All subjects see the same pictures, the same splits and the same search over settings. `scores.csv` holds one row a
number; `probe.json` holds everything else that a reader needs to trust it: settings, what was chosen on what, what was
skipped and why, and the paired differences between the encoder and its baselines on the same test pictures. What is
finished lies under OUT (features, outcomes, heads), so a probe that was interrupted, or is asked for more protocols,
computes only what is missing; earlier protocols of the same OUT stay in its tables.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headcam.devices import usable_device
from headcam.errors import InputError
from headcam.evaluation import protocols
from headcam.evaluation.features.extraction import ConstantFeatures, extract
from headcam.evaluation.labelled.faults import SHARE_UNREADABLE
from headcam.evaluation.labelled.known import KNOWN
from headcam.evaluation.labelled.known import notes as known_notes
from headcam.evaluation.labelled.known import read as read_known
from headcam.evaluation.labelled.sets import LabelledSet, read_labelled
from headcam.evaluation.measuring import Material, has_head, measure
from headcam.evaluation.robustness.of_heads import kept_rows, measure_heads
from headcam.evaluation.scoring.guesses import read_multilabels
from headcam.evaluation.scoring.items import write_items
from headcam.evaluation.scoring.scores import Score, write_scores
from headcam.evaluation.subjects import Subject, subjects_of
from headcam.evaluation.tables import VERSION, Found, all_scores, report_of, write_per_class
from headcam.files import write_json

POOLS = ("avg", "cls")


@dataclass(frozen=True)
class ProbeResult:
    """What `probe` found, and where it lies.

    Attributes:
        model: name of the trained encoder; its random twin is called `<model> (random weights)`.
        scores: all rows of scores.csv, the trained encoder's first.
        report: what probe.json holds.
        skipped: name and reason of each labelled picture that could not be read.
        scores_file, report_file: the files.
    """

    model: str
    scores: tuple[Score, ...]
    report: dict[str, Any]
    skipped: tuple[tuple[str, str], ...]
    scores_file: Path
    report_file: Path


def probe(
    source: str | os.PathLike,
    labelled: str | os.PathLike,
    out: str | os.PathLike,
    *,
    protocol: Sequence[str | Path] = protocols.DEFAULT,
    known: str | None = None,
    train_groups: Sequence[str] = (),
    test_groups: Sequence[str] = (),
    seed: int = 0,
    pool: str | None = None,
    layer: str | None = None,
    draws: int | None = None,
    robustness: Sequence[str] = (),
    corruptions: bool = False,
    multilabels: str | os.PathLike | None = None,
    test_selection: bool = False,
    share_unreadable: float = SHARE_UNREADABLE,
    cache: str | os.PathLike | None = None,
    processes: int = 1,
    device: str = "cpu",
    quiet: bool = False,
) -> ProbeResult:
    """Measure the encoder of `source` on the pictures of `labelled`; write the tables of the module into OUT.

    Args:
        source: run folder, weights.safetensors with its card, or Lightning checkpoint.
        labelled: labelled pictures or videos (see `headcam.evaluation.labelled.sets`).
        out: folder for results and cached features, made where missing.
        protocol: names of shipped protocols, or YAML files (see `headcam.evaluation.protocols`).
        known: name of a known set whose layout and split are to be used (see `headcam.evaluation.labelled.known`).
        train_groups, test_groups: of a folder DIR/<child>/<class>/*: train on some children, test on others.
        seed: of the random weights, the order of pictures in training, and the resampling of intervals.
        pool: "avg" (mean of patch tokens) or "cls" (class token) in place of what the protocols say.
        layer: of a GPT or tokenizer, see `load_frozen`.
        draws: make only so many of the draws of few-shot protocols and label curves.
        robustness: folders of other test pictures for the linear heads (see `headcam.evaluation.robustness.sets`).
        corruptions: also score the linear heads on the test pictures corrupted.
        multilabels: labels of the test pictures of which any counts as right, see `read_multilabels`.
        test_selection: also say what choosing on the test set would have given; it costs some time.
        share_unreadable: stop where more than this share of the pictures cannot be read.
        cache: folder of features, which probes of several models may share; None: OUT/features.
        processes: that finetuning is spread over.
        device: where the encoder and the probes run, as torch names it.
        quiet: no progress on standard error.
    Returns:
        The result; accuracies in percent. Top-5 is left out where there are five classes or fewer.
    Raises:
        InputError: a checkpoint, protocol or labelled set that cannot be used, a device that is not there, or an `out`
            that holds the results of another model, seed or set.
        StorageError: `out` cannot be written.
    """
    out, torch_device = Path(out), usable_device(device)
    cache = out / "features" if cache is None else Path(cache)
    if pool is not None and pool not in POOLS:
        raise InputError(f"pool {pool!r} is unknown", f"use one of {', '.join(POOLS)}")
    if draws is not None and draws < 1:
        raise InputError(f"draws is {draws}", "give at least 1, or leave it out for all of a protocol's draws")
    asked = [_with_pool(protocols.protocol(one), pool) for one in protocol]
    subjects = subjects_of(source, layer, seed)
    settings = {"weights": [s.weights_hash for s in subjects], "seed": seed, "layer": subjects[0].card.get("layer")}
    earlier = _earlier(out / "probe.json", settings)
    data = _read(labelled, known, train_groups, test_groups, cache / "hashes.parquet", quiet)
    asked = [protocols.on_media(one, data.media) for one in asked]
    settings["data"] = data.hash
    if earlier and earlier["settings"] != settings:
        raise _another(out / "probe.json", "pictures")
    readable, unreadable = _readable(data, subjects[-1], cache, share_unreadable, torch_device, quiet)
    truths = None if multilabels is None else read_multilabels(multilabels, readable.test, readable.classes)

    material = Material(readable, data, out, cache, seed, torch_device, draws, test_selection, processes, quiet)
    found = Found()
    for one in _in_order(earlier, asked):
        for subject in subjects:
            applied = subject.applies(one)
            if applied is None:
                found.left_out.append({"model": subject.name, "protocol": protocols.label(one), "reason": _why(one)})
            else:
                _measure(applied, subject, material, found, robustness, corruptions)

    found.robust = {
        (subject.name, protocols.protocol_hash(applied)): kept_rows(applied, subject, material)
        for subject, applied, _ in found.rows
        if has_head(applied)
    }
    scores = all_scores(subjects, found, data, truths, seed)
    skipped = [*data.skipped, *unreadable]
    report = report_of(subjects, data, readable, found, skipped, settings, seed, torch_device)
    report["data"]["notes"] = list(known_notes(known, data)) if known in KNOWN else []
    out.mkdir(parents=True, exist_ok=True)
    guessed = {(s.name, m.full_stem): m.guesses for s, _, measured in found.rows for m in measured}
    write_items(out, data, readable.test, guessed)
    write_per_class(out / "per_class.csv", subjects, found, readable, seed)
    write_json(out / "probe.json", report)
    write_scores(out / "scores.csv", scores)
    return ProbeResult(subjects[0].name, tuple(scores), report, tuple(skipped), out / "scores.csv", out / "probe.json")


def _measure(
    protocol: protocols.Protocol,
    subject: Subject,
    material: Material,
    found: Found,
    robustness: Sequence[str],
    corruptions: bool,
) -> None:
    """One protocol on one subject, into `found`; a random twin that gives constants is left out, not fatal."""
    try:
        measured = measure(protocol, subject, material)
    except ConstantFeatures as error:
        if subject.kind == "trained":
            raise
        reason = error.problem
        found.left_out.append({"model": subject.name, "protocol": protocols.label(protocol), "reason": reason})
        return
    found.rows.append((subject, protocol, measured))
    if has_head(protocol):
        measure_heads(protocol, subject, material, robustness, corruptions)


def _read(
    labelled: str | os.PathLike,
    known: str | None,
    train_groups: Sequence[str],
    test_groups: Sequence[str],
    hashes: Path,
    quiet: bool,
) -> LabelledSet:
    if not train_groups and not test_groups:
        return read_labelled(labelled, known=known, hashes=hashes, quiet=quiet)
    if known not in (None, "by-child"):
        raise InputError(f"{known} has a split of its own", "leave out --known, or the groups")
    return read_known("by-child", labelled, hashes=hashes, quiet=quiet, train=train_groups, test=test_groups)


def _with_pool(protocol: protocols.Protocol, pool: str | None) -> protocols.Protocol:
    return protocol if pool is None else protocols.with_features(protocol, pool=pool)


def _why(protocol: protocols.Protocol) -> str:
    return "needs a network" if isinstance(protocol, protocols.Finetune) else "needs an encoder's forward pass"


def _earlier(report_file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The report that lies in OUT already, of the same model and seed; None where there is none."""
    if not report_file.is_file():
        return None
    try:
        found = json.loads(report_file.read_text("utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("contract") != "probe" or found.get("version") != VERSION:
        version = found.get("version") if isinstance(found, dict) else "none"
        raise InputError(
            f"{report_file} is a report of version {version}, and this headcam writes version {VERSION}",
            "choose another --out, or remove that file",
        )
    for key, value in settings.items():
        if found["settings"].get(key) != value:
            raise _another(report_file, key)
    return found


def _another(report_file: Path, what: str) -> InputError:
    return InputError(
        f"{report_file} is the report of another probe (its {what} differ)", "choose another --out, or remove that file"
    )


def _in_order(earlier: dict[str, Any] | None, asked: list[protocols.Protocol]) -> list[protocols.Protocol]:
    """The protocols of the tables: those of earlier calls, then the new ones, each once."""
    before = [] if earlier is None else [protocols.from_settings(one) for one in earlier["asked"]]
    found = list(dict.fromkeys([*before, *asked]))
    names = [one.name for one in found]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise InputError(
            f"protocol {doubled} is asked for with other settings than --out has it with, such as another pool",
            "choose another --out, or give a protocol of your own another name",
        )
    return found


def _readable(
    data: LabelledSet, pixels: Subject, cache: Path, share: float, device: Any, quiet: bool
) -> tuple[LabelledSet, list[tuple[str, str]]]:
    """The set without what cannot be decoded, and what that is: name and reason."""
    clips = protocols.Clips() if data.media == "videos" else None
    extractor = pixels.extractor(protocols.PixelFeatures(clips=clips), device, data.media)
    kept, unreadable = {}, []
    for part, items in (("train", data.train), ("test", data.test)):
        table = extract(
            extractor,
            items,
            cache,
            description=f"{part} {data.media}",
            quiet=quiet,
            share_unreadable=share,
        )
        unreadable += [(items[row].name, reason) for row, reason in sorted(table.unreadable.items())]
        kept[part] = tuple(item for row, item in enumerate(items) if row not in table.unreadable)
        missing = set(range(len(data.classes))) - {item.label for item in kept[part]}
        if missing:
            raise InputError(
                f"not one {part} {data.media[:-1]} of class {data.classes[min(missing)]} in {data.name} can be decoded",
                "replace its files, or remove the class",
            )
    readable = replace(data, train=kept["train"], test=kept["test"]) if unreadable else data
    return readable, unreadable
