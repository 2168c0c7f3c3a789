"""The README's own lines, run as written but for the places of data and the size of the run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from headcam.cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """`my_videos` with two short clips and a broken one, `pictures` with two classes."""
    from headcam.video.synthetic.world import render_walks

    root = tmp_path_factory.mktemp("readme")
    render_walks(root / "my_videos", num_walks=2, seconds=12, fps=5, size=(64, 80), seed=0)
    (root / "my_videos" / "broken.mp4").write_bytes(b"not a video")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("bright", 200)):
        (root / "pictures" / name).mkdir(parents=True)
        for k in range(15):
            picture = np.clip(level + rng.normal(0, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(root / "pictures" / name / f"{k}.png"), picture)
    return root


def smaller(words: list[str]) -> list[str]:
    """Only the length and depth of the run are cut: the encoder stays the one that the timm lines load."""
    cut = ["--trainer.max_steps=1", "--data.batch_size=2", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    recipe = Path(words[words.index("--config") + 1]).name
    if "mae" in recipe:
        cut.append("--model.decoder_depth=1")
    if recipe.startswith("tc_"):
        cut += ["--data.hold_out=0.5", "--model.episode_seconds=4"]  # of the few seconds of video here
    return cut


@pytest.mark.slow
def test_the_worked_path_runs_as_written(data, headcam):
    every = [line for block in blocks("sh") for line in block.splitlines()]
    variables = dict(line.replace('"', "").split("=", 1) for line in every if re.match(r"[A-Z]+=", line))
    verbs = []
    for line in (line for line in every if line.startswith("headcam ")):
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = [w.replace("~", str(data)) for w in shlex.split(line, comments=True)][1:]
        verbs.append(words[0])
        cut = smaller(words) if words[0] == "fit" else []
        if words[:2] == ["memory", "run"]:
            cut = ["--study.exposures=1", "--seeds=[0]"]
        done = headcam(*words, *cut, cwd=data, check=False)
        # The broken file is listed, never fatal: index says so with exit status 1.
        assert done.returncode == (1 if words[0] == "index" else 0), done.stderr
        assert Path(data, done.stdout.strip().splitlines()[-1].split(": ")[-1].strip()).exists(), (
            "ends by naming a file"
        )
    assert verbs[:6] == ["index", "scan", "subset", "store", "fit", "probe"]
    objectives = ["store", "fit", "fit", "fit", "fit", "show", "show", "export", "plan"]
    pictures = ["store", "fit", "tokenize", "tokenize", "tokenize", "fit", "sample", "sample", "probe"]
    clips = ["store", "fit", "tokenize", "tokenize", "fit", "sample"]
    memory = ["tokenize", "tokenize", "fit", *["memory"] * 5]
    measured = ["probe", "probe", "compare"]
    assert verbs[6:] == [*objectives, *measured, *pictures, *clips, *memory]
    assert "VIDEOS=~/my_videos" in README

    (python,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", python], cwd=data, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_table_of_verbs_is_the_command_lines():
    assert re.findall(r"^\| `headcam (\w+)` \|", README, re.M) == sorted(VERBS, key=list(VERBS).index)


def test_the_two_commands_are_the_makefiles_and_cis():
    dry = ["make", "-n", "-C", str(ROOT), "demo", "VIDEOS=/v", "LABELLED=/l"]
    assert "--videos /v --labelled /l" in subprocess.run(dry, capture_output=True, text=True, check=True).stdout
    for command in ("make demo", "make test"):
        assert any(line.startswith(command) for line in blocks("sh")[0].splitlines())
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_path_that_the_readme_names_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README):
        assert (ROOT / target).exists(), target
    for config in re.findall(r"configs/\S+?\.yaml", README):
        assert (ROOT / config).is_file(), config
