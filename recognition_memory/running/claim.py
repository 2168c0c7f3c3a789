"""Whose folder it is: an experiment goes on in a folder of its own, and in no other's.

`experiment.json` carries the hash of everything that numbers depend on: the settings, the stimuli, and the weights that
the learner starts from; the latter two by content, wherever they lie.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from headcam.errors import InputError
from headcam.files import sha256_json, write_json, write_text
from headcam.recognition_memory.experiment import Experiment, experiment_yaml
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.running.one_run import ROWS, STATE
from headcam.recognition_memory.stimuli.manifest import MemoryManifest
from headcam.runs import environment

CONTRACT = "memory_experiment/1"
ABOUT, SETTINGS = "experiment.json", "experiment.yaml"


def claim(out: Path, experiment: Experiment, manifest: MemoryManifest, learner: Learner) -> dict[str, Any]:
    """Make `out` the folder of this experiment; what its `experiment.json` holds so far.

    A folder in which another experiment has not come to its first test is free.

    Raises:
        InputError: it is the folder of another experiment.
    """
    ours = _settings(experiment_yaml(experiment), learner)
    parts = {"settings": sha256_json(ours), "manifest": manifest.hash, "weights": sha256_json(learner.origins)}
    path = out / ABOUT
    if path.is_file():
        try:
            about = json.loads(path.read_text("utf-8"))
            theirs = _settings((out / SETTINGS).read_text("utf-8"), learner)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{path} cannot be read: {error}", "remove it, or choose another --out") from error
        if about.get("contract") != CONTRACT:
            raise InputError(f"{path} is of {about.get('contract')}, not {CONTRACT}", "choose another --out")
        if about["parts"] == parts:
            return about
        if any(path.name in (STATE, ROWS) for path in (out / "runs").glob("*/*")):
            changed = [
                f"{name} is {there!r} there and {here!r} here" for name, there, here in _differences(theirs, ours)
            ]
            changed += [
                f"the {name} differs" for name in ("manifest", "weights") if about["parts"][name] != parts[name]
            ]
            raise InputError(
                f"{out} holds another experiment: {'; '.join(changed)}", "choose another --out, or remove it"
            )
    about = {
        "contract": CONTRACT,
        "experiment_hash": sha256_json(parts),
        "parts": parts,
        "model": experiment.model,
        "pretraining": experiment.pretraining,
        "manifest": {
            "name": manifest.name,
            "path": str(Path(experiment.manifest or manifest.root).resolve()),
            "hash": manifest.hash,
            "role_swapped": manifest.role_swapped,
        },
        "environment": environment(),
        "complete": False,
        "notes": [],
    }
    write_text(out / SETTINGS, experiment_yaml(experiment))
    write_json(path, about)  # last: it says that the folder is taken
    return about


def _settings(text: str, learner: Learner) -> dict[str, Any]:
    """Settings without the places of manifest and weights, which go by their hashes."""
    settings = {key: value for key, value in yaml.safe_load(text).items() if key != "manifest"}
    for name in learner.origins:
        settings["learner"].get("init_args", {}).pop(name, None)
    return settings


def _differences(theirs: Any, ours: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, their value, our value) of settings that differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = dict.fromkeys([*theirs, *ours])
        return [d for key in keys for d in _differences(theirs.get(key), ours.get(key), f"{name}.{key}".lstrip("."))]
    return [] if theirs == ours else [(name, theirs, ours)]
