"""Every shipped recipe parses, builds the model that its header states, and takes a step at a small size."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from headcam.cli import main

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("ssl/*.yaml"))
DEMO = sorted((ROOT / "configs").glob("demo/*.yaml"))
# A recipe cut down to what a test can afford; what makes it that recipe (objective, optimizer, masks, crops) stays.
SMALL = (
    "--model.embed_dim=64", "--model.depth=2", "--model.num_heads=4", "--model.decoder_embed_dim=32",
    "--model.decoder_depth=1", "--model.decoder_num_heads=4", "--data.batch_size=2", "--data.num_workers=0",
    "--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false",
)  # fmt: skip


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

    module, _, kind = config["model"]["class_path"].rpartition(".")
    arguments = dict(config["model"]["init_args"])
    if isinstance(arguments["img_size"], list):
        arguments["img_size"] = tuple(arguments["img_size"])
    from headcam.ssl.objective import OptimizerSettings

    arguments["optimizer"] = OptimizerSettings(**arguments["optimizer"])
    with torch.device("meta"):
        model = getattr(__import__(module, fromlist=[kind]), kind)(**arguments)
    assert all(parameter.is_meta for parameter in model.parameters())
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
def test_a_recipe_takes_a_step_at_a_small_size(path, stores, tmp_path):
    patch = yaml.safe_load(path.read_text("utf-8"))["model"]["init_args"]["patch_size"]
    data = (f"--data.train=[{stores[0]}]", f"--data.val=[{stores[1]}]", f"--model.img_size={4 * patch}")
    assert main(["fit", "--config", str(path), "--out", str(tmp_path / "run"), *SMALL, *data]) == 0
    metrics = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(metrics) == 2 and "val/loss" in metrics[0]
    assert (tmp_path / "run" / "weights.safetensors").is_file()
