"""The demo's test of memory: does a model that grew up on the demo's video remember pictures that it sees once?

    frames/train ─▶ palette ─▶ tokens ─▶ GPT, some hundred steps ─┐
    rendered novel, exemplar and state pairs, two swapped sets ────┴─▶ study and test ─▶ memory/report.html
                                                                  the same GPT untrained, on the same palette

The pictures are rendered whatever the video is: objects on a plain ground, as in Brady et al. (2008). Every step goes
on where it was stopped. The section of the demo's page is drawn here, too, from the files alone.
"""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd

from headcam.cli import fit
from headcam.cli.options import config_path
from headcam.pages import Estimate, Page
from headcam.recognition_memory.experiment import read_experiment
from headcam.recognition_memory.human import human_level
from headcam.recognition_memory.report import report
from headcam.recognition_memory.run import run
from headcam.recognition_memory.stimuli.generated import generate_stimuli
from headcam.tokenizers.autoencoders.palette import fit_palette
from headcam.tokenizers.token_store import make_token_store

CONFIGS = ("configs/tokenizers/igpt_micro.yaml", "configs/memory/micro.yaml")
STEPS_PER_MINUTE = 100  # optimizer steps of the GPT for each minute of the demo's training: about a quarter of the time
_COLOURS, _IMG_SIZE = 32, 12  # of the two recipes
_EXPOSURES = 3
_RULES = ("raw", "calibrated", "unstudied_reference")
UNTRAINED, TRAINED = "none", "video"  # names of the two in tables


def remember(
    out: Path,
    *,
    steps: int,
    num_pairs: int,
    num_fillers: int,
    size: tuple[int, int],
    seed: int,
    processes: int,
    frames: bool,
    quiet: bool,
) -> Path:
    """Run the test into `out/memory` and write its page; see `headcam.demo.demo` for the arguments."""
    folder = out / "memory"
    manifest = generate_stimuli(
        out / "world" / "pairs",
        num_pairs=num_pairs,
        num_fillers=num_fillers,
        size=size,
        seed=seed,
        processes=processes,
        quiet=quiet,
    )
    store = out / "frames" / "train"
    palette = folder / "palette"
    fit_palette(store, palette, codebook_size=_COLOURS, img_size=_IMG_SIZE, quiet=quiet)
    make_token_store(store, palette, folder / "tokens", flip=0.5, num_workers=0, quiet=quiet)
    if not _is_trained(folder / "gpt", steps):
        _fit(folder, steps, quiet)
    starts = {TRAINED: f"source={folder / 'gpt'}", UNTRAINED: f"palette={palette}"}  # the page is about the first
    runs = []
    for name, start in starts.items():
        overrides = [f"--pretraining={name}", f"--learner.init_args.{start}", f"--study.exposures={_EXPOSURES}"]
        experiment = read_experiment(config_path(CONFIGS[1]), overrides)
        runs.append(run(experiment, folder / name, manifest=manifest, quiet=quiet).folder)
    return report(runs, folder, frames=frames, quiet=quiet)


def _is_trained(run: Path, steps: int) -> bool:
    return (run / "card.json").exists() and json.loads((run / "card.json").read_text("utf-8"))["step"] == steps


def _fit(folder: Path, steps: int, quiet: bool) -> None:
    with redirect_stdout(io.StringIO()):  # the run folder that it names is not what the user is to open
        fit.main(
            [
                f"--config={CONFIGS[0]}",
                f"--out={folder / 'gpt'}",
                f"--data.train=[{folder / 'tokens'}]",
                "--trainer.accelerator=cpu",
                "--trainer.precision=32-true",
                f"--trainer.max_steps={steps}",
                f"--model.optimizer.warmup_steps={steps // 10}",
                f"--trainer.log_every_n_steps={max(1, steps // 20)}",
                f"--checkpoint_every={max(1, steps // 4)}",
                f"--trainer.enable_progress_bar={'false' if quiet else 'true'}",
            ]
        )


def draw_section(page: Page, folder: Path) -> None:
    """The section on memory of the demo's page, from the scores in `folder`."""
    table = pd.read_csv(folder / "accuracy.csv", keep_default_na=False)
    pooled = table[table["condition"] == "pooled"]
    last = int(pooled["exposures"].max())
    people = human_level("pooled")
    page.section(
        "What it remembers of pictures seen once",
        f"A GPT of colours ({_IMG_SIZE} x {_IMG_SIZE} pixels) that was pretrained on the same video, and the same one "
        "untrained, study rendered pictures, each once an exposure, and are then asked which picture of a pair they "
        "studied: pairs of two kinds of thing, of two things of a kind, and of one thing in two states. Every pair is "
        "run in both directions. People, on other pictures and seen for three seconds, name "
        f"{100 * people.accuracy:.1f} % right after one exposure ({people.study} {people.year}).",
    )
    names = {TRAINED: "pretrained on the video", UNTRAINED: "untrained"}
    rows = []
    for pretraining, name in names.items():
        for exposures in dict.fromkeys((1, last)):
            row = [f"{name}, {exposures} exposure{'s' if exposures > 1 else ''}"]
            for rule in _RULES:
                found = pooled[
                    (pooled["pretraining"] == pretraining)
                    & (pooled["rule"] == rule)
                    & (pooled["exposures"] == exposures)
                ]
                values = (100 * float(found[column].iloc[0]) for column in ("accuracy", "low", "high"))
                row.append(Estimate(*values))
            rows.append(row)
    pairs, runs = (int(pooled[column].iloc[0]) for column in ("n_pairs", "n_runs"))
    page.table(
        ["% of pairs right", "lower loss wins", "against itself before study", "against runs that did not study it"],
        rows,
        f"{pairs} pairs, {runs} runs (two sets, two seeds), 95 % intervals over pairs and runs; guessing gets 50. "
        "The lower loss belongs to the simpler picture more often than to the studied one. An untrained model's loss "
        "before study says nothing about a picture, so its right column is the one to read. memory/report.html says "
        "more.",
        highlight=0,
    )
