"""Manifests: a named, hashed draw of video that every run and every number carries.

A manifest says which seconds of which recordings may be used, so that "40 hours" has one meaning. Its hash covers ids
and seconds, never paths. `headcam subset` writes manifests (`headcam.video.sampling.subset`), a data module restricts
what it draws from to one, and a run writes its own account of what it drew from (`data.json`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcam.errors import InputError
from headcam.files import sha256_json, write_text
from headcam.video.stretches import Stretch, common

if TYPE_CHECKING:
    from headcam.video.sampling.units import Units

CONTRACT = "manifest"
VERSION = 2

STILL: tuple[Stretch, ...] = ((0.0, 0.0),)  # what stands for a still picture, which lasts no time


@dataclass(frozen=True)
class Manifest:
    """A draw: which seconds of which recordings.

    Attributes:
        seconds: recording id -> seconds of video (0 for a still picture).
        stretches: recording id -> the stretches that may be drawn from, none empty but `((0.0, 0.0),)` for a still
            picture. None in a run's account of its data (`data.json`), which counts units instead.
        frames: recording id -> units that can be drawn from it, in a run's account; else None.
        name: what a person calls it; the only thing that the hash does not cover.
        rule, fraction, seed: how it was drawn; `fraction` is of the hours that could have been drawn.
        recordings_hash: of the index that it was drawn from (`headcam.video.recordings.recordings_hash`).
        quarantine_hash: of the quarantine table that was heeded; None where the index was not scanned.
        parent: hash of the manifest that a run's data was restricted to.
        settings: the other settings of the draw.
    """

    seconds: dict[str, float]
    stretches: dict[str, tuple[Stretch, ...]] | None = None
    frames: dict[str, int] | None = None
    name: str = "all"
    rule: str = "all"
    fraction: float = 1.0
    seed: int = 0
    recordings_hash: str | None = None
    quarantine_hash: str | None = None
    parent: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all of the above but the name: what this draw is called in cards, tables and reports."""
        return sha256_json({k: v for k, v in self._facts().items() if k != "name"})

    @property
    def hours(self) -> float:
        """Hours of video; still pictures add none."""
        return sum(self.seconds.values()) / 3600

    @staticmethod
    def of(units: "Units", parent: "Manifest | None" = None) -> "Manifest":
        """A run's account of the data that it draws from: everything that `units` hold.

        Args:
            units: what can be drawn, after any restriction.
            parent: the manifest that the units were restricted to; its name, rule, fraction and seed are taken over.
        """
        seconds: dict[str, float] = {}
        frames: dict[str, int] = {}
        for recording, s, n in zip(units.recordings, units.seconds_by_recording(), units.counts_by_recording()):
            if n:
                # The same recording may stand in two stores; microseconds keep the hash free of rounding noise.
                seconds[recording] = round(seconds.get(recording, 0.0) + float(s), 6)
                frames[recording] = frames.get(recording, 0) + int(n)
        order = sorted(seconds)
        inherited = () if parent is None else ("name", "rule", "fraction", "seed", "recordings_hash", "quarantine_hash")
        return Manifest(
            seconds={k: seconds[k] for k in order},
            frames={k: frames[k] for k in order},
            parent=None if parent is None else parent.hash,
            **{k: getattr(parent, k) for k in inherited},
        )

    def restrict(self, stretches: Mapping[str, tuple[Stretch, ...]]) -> dict[str, tuple[Stretch, ...]]:
        """What of `stretches` (recording id -> stretches) lies in this manifest; recordings without any are absent.

        Raises:
            InputError: this is a run's account, which does not say which seconds it holds.
        """
        if self.stretches is None:
            raise InputError(
                f"manifest {self.name!r} is a run's account of its data and lists no stretches",
                "give a file that headcam subset wrote",
            )
        out = {}
        for recording, have in stretches.items():
            want = self.stretches.get(recording, ())
            both = STILL if tuple(have) == want == STILL else common(have, want)
            if both:
                out[recording] = both
        return out

    def write(self, path: str | Path) -> None:
        """Write the manifest as JSON, a line a recording, whole or not at all."""
        facts = {"contract": CONTRACT, "version": VERSION, "name": self.name, "hours": self.hours, "hash": self.hash}
        write_text(path, _json_lines(facts | self._facts()))

    @staticmethod
    def read(path: str | Path) -> "Manifest":
        """Read a manifest back.

        Raises:
            InputError: not there, no manifest, another version, or content that does not match its hash.
        """
        path, fix = Path(path), "give a file that headcam subset wrote"
        try:
            value = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as a manifest: {error}", fix) from error
        if not isinstance(value, dict) or "contract" not in value:
            raise InputError(f"{path} is no manifest", fix)
        if value["contract"] != CONTRACT or value.get("version") != VERSION:
            raise InputError(
                f"{path} is a {value['contract']} of version {value.get('version')}, "
                f"not a manifest of version {VERSION}",
                "write it again with this version of headcam",
            )
        try:
            manifest = Manifest(**{f.name: value[f.name] for f in fields(Manifest)})
            manifest = manifest._with_tuples()
            intact = manifest.hash == value.get("hash")
        except (KeyError, TypeError, ValueError, AttributeError):
            intact = False
        if not intact:
            raise InputError(f"{path} was changed after it was written: its hash does not match", "write it again")
        return manifest

    def _with_tuples(self) -> "Manifest":
        """Stretches as pairs again, which JSON turned into lists."""
        if self.stretches is None:
            return self
        pairs = {k: tuple((float(a), float(b)) for a, b in v) for k, v in self.stretches.items()}
        return replace(self, stretches=pairs)

    def _facts(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _json_lines(facts: Mapping[str, Any]) -> str:
    """JSON with a line for each fact and, in a fact that is a table, a line for each entry: small, yet easy to read."""

    one_line = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            entries = ",\n".join(f"  {one_line(k)}: {one_line(v)}" for k, v in value.items())
            lines.append(f" {one_line(key)}: {{\n{entries}\n }}")
        else:
            lines.append(f" {one_line(key)}: {one_line(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
