"""Manifests: a named, hashed draw of video that every run and every number carries.

A manifest says which recordings a model was trained on and how many seconds of each, so that "40 hours" has one
meaning. Its hash covers ids and seconds, never paths. Here the rule is `all`: every unit of a frame store.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from headcam.errors import InputError
from headcam.files import sha256_json, write_json
from headcam.video.plan import Units

VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """Seconds used per recording.

    Attributes:
        seconds: recording id -> seconds of video (0 for a still picture).
        frames: recording id -> units that can be drawn from it.
        rule, fraction, seed: how it was drawn.
    """

    seconds: dict[str, float]
    frames: dict[str, int]
    rule: str = "all"
    fraction: float = 1.0
    seed: int = 0

    @property
    def hash(self) -> str:
        """SHA-256 of all of the above: the name of this draw in cards, tables and reports."""
        return sha256_json(asdict(self))

    @property
    def hours(self) -> float:
        return sum(self.seconds.values()) / 3600

    @staticmethod
    def of(units: Units) -> "Manifest":
        """The manifest of everything that `units` hold."""
        n = len(units.recordings)
        seconds = np.bincount(units.recording, weights=units.seconds, minlength=n)
        frames = np.bincount(units.recording, minlength=n)
        total_seconds: dict[str, float] = {}
        total_frames: dict[str, int] = {}
        for name, s, f in zip(units.recordings, seconds, frames):
            # The same recording may stand in two stores; microseconds keep the hash free of rounding noise.
            total_seconds[name] = round(total_seconds.get(name, 0.0) + float(s), 6)
            total_frames[name] = total_frames.get(name, 0) + int(f)
        order = sorted(total_seconds)
        return Manifest({k: total_seconds[k] for k in order}, {k: total_frames[k] for k in order})

    def write(self, path: str | Path) -> None:
        """Write the manifest as JSON, whole or not at all."""
        facts = {"contract": "manifest", "version": VERSION, "hours": self.hours, "hash": self.hash}
        write_json(path, facts | asdict(self))

    @staticmethod
    def read(path: str | Path) -> "Manifest":
        """Read a manifest back.

        Raises:
            InputError: not there, no manifest, another version, or content that does not match its hash.
        """
        try:
            value = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as a manifest: {error}", "give the data.json of a run") from error
        if not isinstance(value, dict) or "contract" not in value:
            raise InputError(f"{path} is no manifest", "give the data.json of a run")
        if value["contract"] != "manifest" or value.get("version") != VERSION:
            raise InputError(
                f"{path} is a {value['contract']} of version {value.get('version')}, "
                f"not a manifest of version {VERSION}",
                "write it again with this version of headcam",
            )
        manifest = Manifest(**{k: value.get(k) for k in ("seconds", "frames", "rule", "fraction", "seed")})
        if manifest.hash != value.get("hash"):
            raise InputError(f"{path} was changed after it was written: its hash does not match", "write it again")
        return manifest
