"""Every shipped recipe parses, builds the model that its header states, and takes a step at a small size.

The small size comes from an overlay: `tests/overlays/<objective>.yaml`, given after the recipe.
"""

import re
from pathlib import Path

import pytest
import yaml

from headcam.cli import main
from headcam.ssl.restore import objective_from_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("ssl/*.yaml"))
DEMO = sorted((ROOT / "configs").glob("demo/*.yaml"))
TRAINER = (
    "--data.batch_size=2", "--data.num_workers=0", "--trainer.max_steps=1", "--trainer.accelerator=cpu",
    "--trainer.devices=1", "--trainer.strategy=auto", "--trainer.num_nodes=1", "--trainer.enable_progress_bar=false",
    "--trainer.precision=32-true",
)  # fmt: skip
CONVOLUTIONAL = ("--model.embed_dim=null", "--model.depth=null", "--model.num_heads=null")  # as they are: no such sizes


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_are_recipes():
    assert len(CONFIGS) >= 10


@pytest.mark.parametrize("path", CONFIGS + DEMO, ids=name)
def test_a_recipe_parses_and_builds_the_model_that_its_header_states(path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(path), "--print_config"])
    assert stop.value.code in (0, None)
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["trainer"]["max_steps"] > 0

    model = objective_from_config(config["model"])
    assert all(parameter.is_meta for parameter in model.skeleton.parameters()) and model.network is None
    stated = re.search(r"^# encoder parameters: ([\d,]+)", path.read_text("utf-8"), re.MULTILINE)
    if stated:
        assert model.card()["parameters"] == int(stated[1].replace(",", ""))


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_recipe_states_its_source_and_its_size(path):
    """Header of a recipe: what it is, the paper, the parameters of its encoder, the effective batch."""
    header = path.read_text("utf-8").partition("seed_everything")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    for wanted in ("# paper: ", "# encoder parameters: ", "# effective batch: "):
        assert wanted in header


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_recipe_takes_a_step_at_a_small_size(path, stores, recordings, tmp_path):
    model = yaml.safe_load(path.read_text("utf-8"))["model"]
    kind, settings = model["class_path"].split(".")[-2], model["init_args"]
    small = ["--config", str(path), "--config", str(ROOT / "tests" / "overlays" / f"{kind}.yaml"), *TRAINER]
    patch = settings.get("patch_size", 16)
    small.append(f"--model.img_size={4 * patch}")
    if kind == "dino":
        small.append(f"--model.local_crops_size={2 * patch}")
    if settings.get("resolutions"):
        small.append(f"--model.resolutions={{'0': {2 * patch}, '1': {4 * patch}}}")
    if str(settings.get("backbone", "")).startswith("resne"):
        small += CONVOLUTIONAL
    if kind in ("mae", "dino"):
        small += [f"--data.train=[{stores[0]}]", f"--data.val=[{stores[1]}]"]
    else:
        small.append(f"--data.train=[{recordings[0]}]")
        small += ["--data.hold_out=0.4"] if kind == "temporal_classification" else [f"--data.val=[{recordings[1]}]"]
    assert main(["fit", *small, "--out", str(tmp_path / "run")]) == 0
    metrics = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(metrics) == 2 and "val/loss" in metrics[0]
    assert (tmp_path / "run" / "weights.safetensors").is_file()
