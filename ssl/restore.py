"""From a run folder or a checkpoint back to the whole trained objective, decoder and all.

Saved weights hold the encoder alone, which is what probes need; pictures of what a masked autoencoder completes need
the rest of it. That is in the checkpoints, and the run's `config.yaml` says how to build it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from headcam.errors import InputError
from headcam.ssl.objective import Objective
from headcam.ssl.weights import open_checkpoint


def objective_from_config(model: Mapping[str, Any]) -> Objective:
    """The objective that the `model` part of a config (`class_path`, `init_args`) describes, not built yet.

    Raises:
        InputError: a class or argument that this version does not know.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "model")
    # jsonargparse 4.49 renamed the method.
    instantiate = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    try:
        return instantiate(parser.parse_object({"model": dict(model)})).model
    except (jsonargparse.ArgumentError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise InputError(
            f"the config describes no model of this version: {problem}", "use the version of headcam that wrote it"
        ) from error


def load_objective(source: str | Path) -> tuple[Objective, dict[str, Any]]:
    """A trained objective in eval mode, and its card.

    Args:
        source: a run folder (its newest checkpoint is read) or a `.ckpt` in the `checkpoints/` of one.
    Raises:
        InputError: no run, no checkpoint, or one that does not fit the run's config.
    """
    source = Path(source)
    run = source if source.is_dir() else source.parent.parent
    checkpoint_path = source / "checkpoints" / "last.ckpt" if source.is_dir() else source
    config_path = run / "config.yaml"
    for path in (config_path, checkpoint_path):
        if not path.is_file():
            raise InputError(f"{path} does not exist", "give the folder of a run of headcam fit")
    checkpoint = open_checkpoint(checkpoint_path)
    model, card = yaml.safe_load(config_path.read_text("utf-8"))["model"], checkpoint["headcam_card"]
    if "episodes" in card:  # a classifier's classes come from the data, not from the config
        model["init_args"]["num_episodes"] = card["episodes"]["number"]
    objective = objective_from_config(model)
    objective.configure_model()
    try:
        objective.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(
            f"{checkpoint_path} does not fit {config_path}: {problem}", "keep a run's files together"
        ) from error
    return objective.eval(), card
