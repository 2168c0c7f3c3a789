"""`headcam plan` as a person types it."""

import json

import pyarrow as pa
import pytest
import yaml

from headcam.cli import main
from headcam.video.recordings import recordings_table, write_recordings
from headcam.video.sampling.manifest import Manifest

RECIPE = "configs/ssl/mae_vitti8_64.yaml"
SMALL = ("--model.depth=1", "--model.decoder_depth=1")
PLAN = ("plan", "--config", RECIPE, *SMALL, "--gpu", "h100-80gb")


def test_a_recipe_and_hours_give_a_plan(capsys, tmp_path):
    out = tmp_path / "plan.json"
    assert main([*PLAN, "--hours", "5", "--gpus", "2", "--passes", "2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "18,000 seconds" in text and "2 x h100-80gb" in text and "optimizer state" in text
    assert text.splitlines()[-1] == f"plan: {out}"
    plan = json.loads(out.read_text())
    from headcam.cli.options import config_path

    recipe = yaml.safe_load(config_path(RECIPE).read_text())
    assert plan["batch_size"] == recipe["data"]["init_args"]["batch_size"]
    assert plan["passes"] == pytest.approx(2, rel=0.2)


def test_without_a_length_the_recipes_is_taken(capsys):
    from headcam.cli.options import config_path

    assert main([*PLAN, "--hours", "5"]) == 0
    steps = yaml.safe_load(config_path(RECIPE).read_text())["trainer"]["max_steps"]
    assert f"{steps:,} steps" in capsys.readouterr().out


def test_settings_of_the_model_and_the_batch_can_be_changed(capsys, tmp_path):
    out = tmp_path / "plan.json"
    change = ("--model.img_size=96", "--model.compute.checkpointing=all", "--batch_size=largest", "--steps=7")
    assert main([*PLAN, "--hours=1", *change, "--out", str(out)]) == 0
    assert "96 x 96" in capsys.readouterr().out
    plan = json.loads(out.read_text())
    assert plan["batch_size"] == plan["largest_batch"] and plan["recomputed"] > 0 and plan["steps"] == 7


def test_hours_come_from_a_manifest_or_an_index(capsys, tmp_path):
    manifest = tmp_path / "two.json"
    Manifest(seconds={"a": 3600.0, "b": 3600.0}, stretches={"a": ((0.0, 3600.0),), "b": ((0.0, 3600.0),)}).write(
        manifest
    )
    assert main([*PLAN, "--recordings", str(manifest)]) == 0
    assert "2.00 hours, 7,200 seconds" in capsys.readouterr().out

    table = recordings_table([])
    row = {"recording": "c" * 16, "path": "c.mp4", "duration_s": 1800.0, "status": "ok"}
    table = pa.Table.from_pylist([row], schema=table.schema)
    write_recordings(table, tmp_path / "index.parquet")
    assert main([*PLAN, "--recordings", str(tmp_path / "index.parquet")]) == 0
    assert "0.50 hours, 1,800 seconds" in capsys.readouterr().out


def test_the_verbs_own_options_come_from_a_file_too(capsys, tmp_path):
    options = tmp_path / "mine.yaml"
    options.write_text("hours: 2\ngpu: a100-40gb\nsteps: 3\n")
    assert main([*PLAN, "--config", str(options)]) == 0
    text = capsys.readouterr().out
    assert "7,200 seconds" in text and "1 x a100-40gb" in text and "3 steps" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*PLAN, "--hours", "5", "--gpu", "k80"), "use one of a100-40gb"),
        (PLAN, "--hours is None and --recordings is None. Fix: give one"),
        ((*PLAN, "--hours", "5", "--batch_size", "many"), "--batch_size is 'many'. Fix: give a number"),
        ((*PLAN, "--hours", "5", "--model.image_size=96"), "image_size"),
        ((*PLAN, "--hours", "5", "--model.img_size=97"), "patch_size 8 does not divide"),
        ((*PLAN, "--hours", "5", "--model.optimizer.lr=1e-3"), "set exactly one of them"),
        (("plan", "--hours", "5"), "there is no model to plan for"),
        (("plan", "--config", "configs/none.yaml"), "config configs/none.yaml was not found"),
    ],
)
def test_errors_are_one_line(capsys, arguments, message):
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
