"""Every shipped recipe parses, builds the model that its header states, and takes a step at a small size.

The small size comes from an overlay: `tests/overlays/<class of the model>.yaml`, given after the recipe.
"""

import re
from pathlib import Path

import pytest
import yaml

from headcam.cli import main
from headcam.ssl.restore import objective_from_config

ROOT = Path(__file__).resolve().parents[1]
PIXELS = sorted((ROOT / "configs").glob("ssl/*.yaml"))
TOKENIZERS = sorted(p for p in (ROOT / "configs").glob("tokenizers/*.yaml") if "gpt" not in p.name)
GPTS = sorted(p for p in (ROOT / "configs").glob("tokenizers/*.yaml") if "gpt" in p.name)
CONFIGS = PIXELS + TOKENIZERS + GPTS
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
    assert len(PIXELS) >= 30 and len(TOKENIZERS) >= 10 and len(GPTS) >= 8


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
    assert stated or path in DEMO
    if stated:
        assert model.card()["parameters"] == int(stated[1].replace(",", ""))


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_recipe_states_its_source_and_its_size(path):
    """Header of a recipe: what it is, the paper, the parameters of its encoder, the effective batch."""
    header = path.read_text("utf-8").partition("seed_everything")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    for wanted in ("# paper: ", "# encoder parameters: ", "# effective batch: "):
        assert wanted in header


@pytest.fixture(scope="module")
def token_stores(stores, recordings, tmp_path_factory) -> dict[int, tuple[Path, Path]]:
    """By the number of a grid's axes: stores of tokens to train on and held out, of 4 x 4 and 2 x 4 x 4 of 16 codes."""
    from headcam.ssl.weights import save_weights
    from headcam.tokenizers.autoencoders.training import VQGAN, VideoVQGAN
    from headcam.tokenizers.token_store import make_token_store

    root, quiet = tmp_path_factory.mktemp("tokens"), {"quiet": True, "num_workers": 0}
    small = {"codebook_size": 16, "quantizer": "fsq", "num_res_blocks": 1, "embed_dim": 8}
    pictures = VQGAN(img_size=8, ch=8, ch_mult=(1, 1), attn_resolutions=(4,), z_channels=8, **small)
    clips = VideoVQGAN(img_size=8, num_frames=4, downsample=(2, 2, 2), ch=4, **small)
    out = {}
    for axes, model, data in ((2, pictures, stores), (3, clips, recordings)):
        model.configure_model()
        save_weights(root / f"tokenizer{axes}", model.encoder, {**model.card(), "name": f"tokenizer{axes}"})
        made = []
        for part, source in zip(("train", "val"), data):
            made.append(root / f"{part}{axes}")
            make_token_store(source, root / f"tokenizer{axes}", made[-1], step_s=0.1, **quiet)
        out[axes] = tuple(made)
    return out


def small(path: Path) -> list[str]:
    """Options that cut the recipe down to its overlay."""
    kind = yaml.safe_load(path.read_text("utf-8"))["model"]["class_path"].split(".")[-1].lower()
    overlay = ROOT / "tests" / "overlays" / f"{kind}.yaml"
    return ["--config", str(path), "--config", str(overlay), *TRAINER]


def takes_a_step(options: list[str], run: Path) -> None:
    assert main(["fit", *options, "--out", str(run)]) == 0
    metrics = (run / "metrics.csv").read_text().splitlines()
    assert len(metrics) == 2 and "val/loss" in metrics[0]
    assert (run / "weights.safetensors").is_file()


@pytest.mark.parametrize("path", PIXELS, ids=name)
def test_a_recipe_takes_a_step_at_a_small_size(path, stores, recordings, tmp_path):
    model = yaml.safe_load(path.read_text("utf-8"))["model"]
    kind, settings = model["class_path"].split(".")[-2], model["init_args"]
    options = small(path)
    patch = settings.get("patch_size", 16)
    options.append(f"--model.img_size={4 * patch}")
    if kind == "dino":
        options.append(f"--model.local_crops_size={2 * patch}")
    if settings.get("resolutions"):
        options.append(f"--model.resolutions={{'0': {2 * patch}, '1': {4 * patch}}}")
    if str(settings.get("backbone", "")).startswith("resne"):
        options += CONVOLUTIONAL
    if kind in ("mae", "dino"):
        options += [f"--data.train=[{stores[0]}]", f"--data.val=[{stores[1]}]"]
    else:
        options.append(f"--data.train=[{recordings[0]}]")
        options += ["--data.hold_out=0.4"] if kind == "temporal_classification" else [f"--data.val=[{recordings[1]}]"]
    takes_a_step(options, tmp_path / "run")


@pytest.mark.parametrize("path", TOKENIZERS, ids=name)
def test_a_tokenizer_s_recipe_takes_a_step_at_a_small_size(path, stores, recordings, tmp_path):
    settings = yaml.safe_load(path.read_text("utf-8"))["model"]["init_args"]
    if "num_frames" in settings:
        side, frames, (time, *_) = 2 * max(settings["downsample"]), settings["num_frames"], settings["downsample"]
        options = [f"--model.num_frames={min(frames, 2 * time)}", "--data.step_s=0.1"]
        options += [f"--data.train=[{recordings[0]}]", f"--data.val=[{recordings[1]}]"]
    else:
        side = 4 * settings.get("patch_size", 2 ** (len(settings.get("ch_mult", (1,))) - 1))
        options = [f"--data.train=[{stores[0]}]", f"--data.val=[{stores[1]}]"]
    takes_a_step([*small(path), f"--model.img_size={side}", *options], tmp_path / "run")


@pytest.mark.parametrize("path", GPTS, ids=name)
def test_a_gpt_s_recipe_takes_a_step_at_a_small_size(path, token_stores, tmp_path):
    grid = yaml.safe_load(path.read_text("utf-8"))["model"]["init_args"]["grid"]
    train, val = token_stores[len(grid)]
    options = [f"--model.grid={[2, 4, 4][-len(grid) :]}", f"--data.train=[{train}]", f"--data.val=[{val}]"]
    takes_a_step([*small(path), *options], tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer" / "card.json").is_file()
