"""`headcam subset`: draw manifests from an index, and the held-out part that none of them touches.

`subset` draws manifests of several sizes and seeds by one of three rules, from verified seconds only
(`headcam.video.quarantine`). What is held out is chosen first and depends on neither sizes nor seeds, so that all
subsets of a study share it. The laws of drawing, and what is exact about them, are in `headcam.video.sampling.draws`;
what a manifest is, in `headcam.video.sampling.manifest`.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from headcam.errors import InputError
from headcam.files import atomic_file
from headcam.video.quarantine import quarantine_of, verified_stretches
from headcam.video.recordings import read_recordings, recordings_hash, usable
from headcam.video.sampling.draws import MICROSECONDS, Segments, interleaved, keys, whole
from headcam.video.sampling.manifest import STILL, Manifest
from headcam.video.stretches import Stretch

RULES = ("stratified", "contiguous", "recordings")
STRATA = ("source", "wearer", "recorded_on", "session", "camera")  # columns of the index that a draw may balance
GROUPS = ("recording", "wearer", "session", "source")  # what may be held out as a whole
TABLE = "subsets.csv"
HELD_OUT = "held_out.json"

_UNKNOWN = "unknown"  # the value of a column that is null
_HOUR = 3600 * MICROSECONDS

Footage = dict[str, tuple[Stretch, ...]]


@dataclass(frozen=True)
class Subsets:
    """What `subset` wrote: the manifests by their file's name below `out`, and the table that compares them."""

    manifests: dict[str, Manifest]
    table: pd.DataFrame


def subset(
    recordings_file: str | Path,
    out: str | Path,
    *,
    hours: Sequence[float] = (),
    fractions: Sequence[float] = (),
    seeds: Sequence[int] = (0,),
    rule: str = "stratified",
    strata: Sequence[str] = ("source", "wearer", "recorded_on"),
    segment_s: float = 60.0,
    by: str = "recording",
    held_out: float | None = None,
    held_out_seed: int = 0,
    hold_out: Sequence[str] = (),
    leave_one_out: bool = False,
    quarantine: str | Path | None = "auto",
) -> Subsets:
    """Draw a manifest for each size and seed from an index and write them to the folder `out`, with a table of them.

    Rules:
    - `stratified`: segments of at most `segment_s`, mixed so that each stratum keeps its share. Hours are exact to the
      microsecond. Beware of slivers: the first and the last segment of a manifest are cut to any length, and a
      verified stretch may be short; a unit or clip that lasts longer does not fit in there.
    - `contiguous`: one block of the footage in the order of paths, as in the studies of 2021 to 2023, but any block can
      be drawn: it wraps around at the end. Such a subset is a stretch of one or two sources.
    - `recordings`: whole recordings, mixed like the segments. Hours come out near the wanted ones.
    The smaller subset of a seed lies inside the larger one, seeds are independent draws, every second (of rule
    `recordings`: every recording) has the same chance. Still pictures last no time: of them the same fraction is drawn,
    by count.

    Args:
        recordings_file: index, as `headcam index` writes it.
        out: folder to write to; it may hold other subsets of the same study only.
        hours, fractions: sizes; fractions are of what is not held out, in (0, 1].
        seeds: one manifest of each size for each.
        strata: columns of the index, out of `STRATA`, in whose joint values the draw is balanced; null is a value.
        segment_s: length of the segments of rule `stratified` in seconds.
        by: what is held out as a whole, out of `GROUPS`. Choose `session` where files are cuts of long recordings.
        held_out: fraction of the hours to hold out, about; at least one group.
        held_out_seed: of that draw, which is independent of `seeds`.
        hold_out: hold out these groups instead (the child S, say).
        leave_one_out: for each group in turn, hold it out: one set of manifests in `out/without-NAME` for each.
        quarantine: see `headcam.video.quarantine.quarantine_of`; `auto` heeds the table beside the index.
    Raises:
        InputError: an option out of its range, more hours than there are, no verified second, groups that the index
            does not know, or an `out` that belongs to another study.
    """
    _check_options(hours, fractions, seeds, rule, strata, segment_s, by)
    if (held_out is not None) + bool(hold_out) + leave_one_out > 1:
        raise InputError("held_out, hold_out and leave_one_out exclude each other", "give one of them")
    if held_out is not None and not 0 < held_out < 1:
        raise InputError(f"held_out is {held_out}, no fraction above 0 and below 1", "give for example 0.1")
    table = read_recordings(recordings_file)
    found = quarantine_of(recordings_file, table, quarantine)
    footage = verified_stretches(table, found)
    if not footage:
        raise InputError(
            f"{recordings_file} holds no verified second of video and no picture",
            "look at its columns status and reason, and at what headcam scan says",
        )
    facts = _Facts(table, footage, strata)
    origin = {"recordings_hash": recordings_hash(table), "quarantine_hash": found and found.hash}

    manifests: dict[str, Manifest] = {}
    for folder, outside in _splits(facts, by, held_out, held_out_seed, hold_out, leave_one_out).items():
        kept = {name: stretches for name, stretches in footage.items() if name not in outside}
        settings: dict[str, Any] = {"held_out": None}
        if outside:
            how = {"held_out": held_out} if held_out is not None else {"names": facts.values(by, outside)}
            apart = _manifest(
                {name: footage[name] for name in footage if name in outside},
                footage,
                name="held_out",
                rule="held_out",
                seed=held_out_seed if held_out is not None else 0,
                settings={"by": by} | how,
                **origin,
            )
            manifests[folder + HELD_OUT] = apart
            settings["held_out"] = apart.hash
        if rule != "contiguous":
            settings["strata"] = list(strata)
        if rule == "stratified":
            settings["segment_s"] = float(segment_s)
        for seed in seeds:
            draw = _Draw(facts, kept, rule, segment_s, seed)
            for label, size, fraction in _sizes(hours, fractions, draw.total):
                name = f"{rule}-{label}-seed{seed}"
                drawn = draw.of(size, fraction)
                if not drawn:
                    fix = "ask for more, or use rule stratified, which cuts recordings"
                    raise InputError(f"rule {rule} with seed {seed} draws nothing for {label}", fix)
                manifests[f"{folder}{name}.json"] = _manifest(
                    drawn, kept, name=name, rule=rule, seed=seed, settings=settings, **origin
                )
    _refuse_other_study(Path(out), manifests)
    rows = pd.DataFrame([_row(file, manifest, facts) for file, manifest in manifests.items()]).fillna(0.0)
    for file, manifest in manifests.items():
        manifest.write(Path(out, file))
    with atomic_file(Path(out, TABLE), "w") as file:
        rows.to_csv(file, index=False, lineterminator="\n")
    return Subsets(manifests, rows)


class _Facts:
    """What the index says of the recordings in use: their paths, strata and groups."""

    def __init__(self, table: pa.Table, footage: Footage, strata: Sequence[str]):
        rows = usable(table)
        names = rows["recording"].to_pylist()
        columns = {column: dict(zip(names, rows[column].to_pylist())) for column in ("path", *STRATA)}
        self._footage, self._columns = footage, columns
        self.path = columns["path"]
        self.labels = {
            column: {
                name: _UNKNOWN if columns[column][name] is None else str(columns[column][name]) for name in footage
            }
            for column in strata
        }
        self.stratum = {name: "\x1f".join(self.labels[column][name] for column in strata) for name in footage}
        self.shown = [column for column in strata if column != "recorded_on"]  # too many days for a table

    def group(self, by: str) -> dict[str, str]:
        """Recording -> the group that it belongs to; refused where the index does not know that of each."""
        if by == "recording":
            return {name: name for name in self._footage}
        group = {name: self._columns[by][name] for name in self._footage}
        without = sorted(self.path[name] for name, of in group.items() if of is None)
        if without:
            raise InputError(
                f"{len(without)} of {len(group)} recordings have no {by}, such as {without[0]}",
                f"give the {by} with headcam index --names or --metadata, or hold out --by recording",
            )
        return group

    def values(self, by: str, recordings: Collection[str]) -> list[str]:
        """The groups of some recordings, sorted."""
        group = self.group(by)
        return sorted({group[name] for name in recordings})

    def draw_groups(self, by: str, fraction: float, seed: int) -> set[str]:
        """The recordings of a random draw of groups that hold about `fraction` of the hours."""
        length = {name: _length(stretches) for name, stretches in self._footage.items()}
        if not any(length.values()):
            length = dict.fromkeys(length, 1)
        group = self.group(by)
        sizes: dict[str, int] = {}
        for name, of in group.items():
            sizes[of] = sizes.get(of, 0) + length[name]
        names = sorted(sizes)
        if len(names) < 2:
            raise InputError(f"there is one {by} only ({names[0]})", "hold out --by something that there is more of")
        strata = [""] * len(names)
        if by == "recording":  # not the draw's own strata: all subsets of a study are to share what is held out
            columns = self._columns["source"], self._columns["wearer"]
            strata = ["\x1f".join(str(column[name]) for column in columns) for name in names]
        lengths = np.array([max(1, sizes[name]) for name in names])
        order = interleaved(lengths, [keys(names)], keys(strata), seed, "held out")
        taken = whole(lengths, order, round(fraction * int(lengths.sum())), seed, "held out", at_least_one=True)
        held = {name for name, yes in zip(names, taken) if yes}
        return {name for name, of in group.items() if of in held}


class _Draw:
    """All subsets of one seed: what lies around the circles of video and of still pictures."""

    def __init__(self, facts: _Facts, footage: Footage, rule: str, segment_s: float, seed: int):
        self._rule, self._seed = rule, seed
        self._footage = footage
        video = {name: stretches for name, stretches in footage.items() if stretches != STILL}
        self._pictures = [name for name in footage if name not in video]
        if rule == "contiguous":
            video = {name: video[name] for name in sorted(video, key=lambda name: (facts.path[name], name))}
            self._pictures.sort(key=lambda name: (facts.path[name], name))
        self._segments = Segments.cut(video, segment_s if rule == "stratified" else math.inf)
        self.total = self._segments.total

        self._names = self._segments.recordings
        self._lengths, self._order = self._segments.length, np.arange(len(self._segments))
        if rule == "recordings":
            self._lengths = np.bincount(self._segments.recording, self._lengths, len(self._names)).astype(np.int64)
            self._lengths = np.maximum(1, self._lengths)
        if rule != "contiguous":
            identity, stratum = keys(self._names), keys([facts.stratum[name] for name in self._names])
            columns = [identity]
            if rule == "stratified":
                columns = [identity[self._segments.recording], self._segments.start]
                stratum = stratum[self._segments.recording]
            self._order = interleaved(self._lengths, columns, stratum, seed, "video")
        self._picture_order = np.arange(len(self._pictures))
        if rule != "contiguous":
            strata = keys([facts.stratum[name] for name in self._pictures])
            one = np.ones(len(self._pictures), np.int64)
            self._picture_order = interleaved(one, [keys(self._pictures)], strata, seed, "pictures")

    def of(self, size: int, fraction: float) -> Footage:
        """The subset of `size` microseconds of video, which are `fraction` of all, in the order of ids."""
        drawn: Footage = {}
        if self.total and self._rule == "recordings":
            taken = whole(self._lengths, self._order, size, self._seed, "video")
            drawn = {name: self._footage[name] for name, yes in zip(self._names, taken) if yes}
        elif self.total:
            drawn = self._segments.arc(self._order, size, self._seed, "video").stretches()
        if self._pictures:
            one = np.ones(len(self._pictures), np.int64)
            taken = whole(one, self._picture_order, round(fraction * len(one)), self._seed, "pictures")
            drawn |= {name: STILL for name, yes in zip(self._pictures, taken) if yes}
        return {name: drawn[name] for name in sorted(drawn)}


def _splits(
    facts: _Facts, by: str, held_out: float | None, seed: int, hold_out: Sequence[str], leave_one_out: bool
) -> dict[str, Collection[str]]:
    """Folder below `out` -> the recordings that are held out there."""
    if held_out is not None:
        splits: dict[str, Collection[str]] = {"": facts.draw_groups(by, held_out, seed)}
    elif hold_out or leave_one_out:
        group = facts.group(by)
        known = sorted(set(group.values()))
        for name in hold_out:
            if name not in known:
                shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
                raise InputError(f"no recording has the {by} {name!r}", f"hold out some of: {shown}")
        members = {name: {recording for recording, of in group.items() if of == name} for name in known}
        if leave_one_out:
            splits = {f"without-{re.sub('[^A-Za-z0-9._-]', '_', name)}/": members[name] for name in known}
            if len(splits) < len(known):
                raise InputError(f"two values of {by} make the same folder name", "leave each out with --hold_out")
        else:
            splits = {"": set().union(*(members[name] for name in hold_out))}
    else:
        splits = {"": ()}
    for outside in splits.values():
        if len(outside) == len(facts.stratum):
            raise InputError(f"holding out {by} {', '.join(facts.values(by, outside))} leaves nothing", "hold out less")
    return splits


def _check_options(
    hours: Sequence[float],
    fractions: Sequence[float],
    seeds: Sequence[int],
    rule: str,
    strata: Sequence[str],
    segment_s: float,
    by: str,
) -> None:
    if not hours and not fractions:
        raise InputError("no size is given", "use --hours '[0.1,1,10]' or --fractions '[0.01,0.1,1]'")
    for wanted in hours:
        if not 0 < wanted < math.inf:
            raise InputError(f"hours holds {wanted}", "give numbers above 0")
    for wanted in fractions:
        if not 0 < wanted <= 1:
            raise InputError(f"fractions holds {wanted}, which is not above 0 and at most 1", "give for example [0.1]")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds is {list(seeds)}", "give different whole numbers, such as [0,1,2]")
    if not 1e-3 <= segment_s < math.inf:
        raise InputError(f"segment_s is {segment_s}", "use a number of seconds, such as 60")
    for value, known, option in ((rule, RULES, "rule"), (by, GROUPS, "by"), *((s, STRATA, "strata") for s in strata)):
        if value not in known:
            raise InputError(f"{option} knows no {value!r}", f"use one of {', '.join(known)}")


def _sizes(hours: Sequence[float], fractions: Sequence[float], total: int) -> list[tuple[str, int, float]]:
    """(label, microseconds, fraction of all) of each wanted size, where there are `total` microseconds."""
    if hours and not total:
        raise InputError("there are still pictures only, which last no time", "give --fractions instead of --hours")
    sizes = [(f"{wanted:g}h", round(wanted * _HOUR), wanted * _HOUR / total) for wanted in hours]
    for label, size, _ in sizes:
        if size > total:
            raise InputError(
                f"{label} are wanted and {total / _HOUR:.6f} h can be drawn",
                "ask for less, or use --fractions '[1]' for all",
            )
    sizes += [(f"{100 * wanted:g}pct", round(wanted * total), wanted) for wanted in fractions]
    labels = [label for label, *_ in sizes]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"two sizes would be called {label}", "give sizes that differ in the first six digits")
    return sizes


def _length(stretches: Sequence[Stretch]) -> int:
    """Microseconds in stretches that a manifest or `verified_stretches` lists."""
    return sum(round((end - start) * MICROSECONDS) for start, end in stretches)


def _manifest(drawn: Footage, there: Footage, **facts: Any) -> Manifest:
    """The manifest of `drawn` out of what was `there`."""
    seconds = {name: _length(stretches) / MICROSECONDS for name, stretches in drawn.items()}
    whole = sum(_length(stretches) for stretches in there.values())
    fraction = sum(map(_length, drawn.values())) / whole if whole else len(drawn) / len(there)
    return Manifest(seconds=seconds, stretches=drawn, fraction=round(fraction, 9), **facts)


def _row(file: str, manifest: Manifest, facts: _Facts) -> dict[str, Any]:
    """A line of the table: sizes, and the share of hours (of pictures, where there are no hours) of each value."""
    pictures = sum(stretches == STILL for stretches in manifest.stretches.values())
    row = {
        "file": file,
        "hours": round(manifest.hours, 6),
        "recordings": len(manifest.seconds),
        "pictures": pictures,
        "hash": manifest.hash,
    }
    weights = manifest.seconds if manifest.hours else dict.fromkeys(manifest.seconds, 1.0)
    whole = sum(weights.values())
    for column in facts.shown:
        shares: dict[str, float] = {}
        for name, weight in weights.items():
            label = facts.labels[column][name]
            shares[label] = shares.get(label, 0.0) + weight / whole
        row |= {f"{column}={label}": round(shares[label], 6) for label in sorted(shares)}
    return row


def _refuse_other_study(out: Path, manifests: Mapping[str, Manifest]) -> None:
    """Raise where a folder holds manifests of another index, or with another held-out part: the two would mix."""
    for file, manifest in manifests.items():
        for path in sorted(Path(out, file).parent.glob("*.json")):
            try:
                there = Manifest.read(path)
            except InputError:
                continue  # a file of another kind, or one that is about to be replaced
            if _study(there) != _study(manifest):
                raise InputError(
                    f"{path} was drawn from another index or with another held-out part",
                    "choose another --out, or remove the old subsets",
                )


def _study(manifest: Manifest) -> tuple[Any, ...]:
    held_out = manifest.hash if manifest.rule == "held_out" else manifest.settings.get("held_out")
    return manifest.recordings_hash, manifest.quarantine_hash, held_out
