"""Only numbers of one protocol on the same pictures share a column; what is one thing is one row."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from headcam.errors import InputError
from headcam.evaluation.comparing.columns import Column, grid_of, main_column, readable, why_apart
from headcam.evaluation.comparing.probes import read_probes
from headcam.evaluation.scoring.scores import read_scores, write_scores
from headcam.evaluation.subjects import CHANCE, PIXELS

spec = importlib.util.spec_from_file_location("worlds", Path(__file__).with_name("conftest.py"))
worlds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worlds)


def grid(*folders, names=None):
    return grid_of(read_probes(folders), names)


def columns(g, metric="linear/top1"):
    return [column for column in g.columns if column.metric == metric]


def test_one_protocol_on_the_same_pictures_is_one_column(tmp_path, write_probe, world):
    g = grid(write_probe(tmp_path / "1", "a", world), write_probe(tmp_path / "2", "b", world, seed=2))
    (column,) = columns(g)
    assert [row.name for row in g.trained_in(column)] == ["a", "b"]
    assert [row.name for row in g.rows] == ["a", "b", "random weights of a, b", PIXELS, CHANCE]
    assert all(column in row.cells for row in g.rows), "baselines stand in the column of what they were measured beside"
    assert g.title(column).replace("\N{NON-BREAKING HYPHEN}", "-") == "linear, top-1"


def test_the_folder_name_of_the_pictures_does_not_matter_but_their_content_does(tmp_path, write_probe, world):
    same, other = worlds.labelled_set(name="renamed"), worlds.labelled_set(first=500)
    a = write_probe(tmp_path / "1", "a", world)
    assert len(columns(grid(a, write_probe(tmp_path / "2", "b", same, seed=2)))) == 1
    g = grid(a, write_probe(tmp_path / "3", "b", other, seed=2))
    first, second = columns(g)
    (reason,) = why_apart(g, first, second)
    assert reason.startswith("labelled pictures: pictures@") and "240 test pictures" in reason
    assert g.title(second).endswith("(2)")


def test_another_setting_is_another_column_and_is_named_with_both_values(tmp_path, write_probe, world):
    g = grid(write_probe(tmp_path / "1", "a", world), write_probe(tmp_path / "2", "b", world, seed=2, pool="cls"))
    first, second = columns(g)
    assert why_apart(g, first, second) == ["features.pool: avg | cls"]
    assert [row.name for row in g.trained_in(first)] == ["a"]
    with pytest.raises(InputError, match=r"linear/top1 was measured in different ways \(features.pool: avg \| cls\)"):
        main_column(g)


def test_one_checkpoint_under_two_protocols_is_one_row(tmp_path, write_probe, world):
    digest = "d" * 64
    g = grid(
        write_probe(tmp_path / "1", "a", world, weights=digest),
        write_probe(tmp_path / "2", "a", world, weights=digest, pool="cls"),
    )
    (row,) = g.trained
    assert len([column for column in row.cells if column.metric == "linear/top1"]) == 2
    assert [row.guesses(column) is not None for column in columns(g)] == [True, True]
    with pytest.raises(InputError, match="there is only one model here, a, and nothing to compare it with"):
        main_column(g)


def test_what_disagrees_stays_apart(tmp_path, write_probe, world):
    digest = "d" * 64
    g = grid(
        write_probe(tmp_path / "1", "a", world, 1.0, weights=digest),
        write_probe(tmp_path / "2", "a", world, 2.0, weights=digest),
    )
    assert [row.name for row in g.trained] == ["a (1)", "a (2)"]


def test_equal_names_get_as_much_of_the_path_as_tells_them_apart(tmp_path, write_probe, world):
    folders = [tmp_path / "x" / "probe", tmp_path / "y" / "probe", tmp_path / "other"]
    for k, folder in enumerate(folders):
        write_probe(folder, "a" if k < 2 else "b", world, seed=k)
    assert [row.name for row in grid(*folders).trained] == ["a (x/probe)", "a (y/probe)", "b"]
    assert [row.name for row in grid(*folders, names=["p", "q", "r"]).trained] == ["p", "q", "r"]


@pytest.mark.parametrize("names", [["p"], ["p", "p"], ["p", "q", "r"]])
def test_names_that_do_not_fit(tmp_path, write_probe, world, names):
    folders = [write_probe(tmp_path / str(k), "a", world, seed=k) for k in range(2)]
    with pytest.raises(InputError, match=f"--names has {len(names)} names"):
        grid(*folders, names=names)


def test_a_twin_stands_beside_its_own_model(tmp_path, write_probe, world):
    g = grid(write_probe(tmp_path / "1", "a", world), write_probe(tmp_path / "2", "b", world, seed=2))
    (column,) = columns(g)
    for row in g.trained:
        assert g.baseline(row, "random", column).name == "random weights of a, b"
        assert g.baseline(row, "pixels", column).name == PIXELS


def test_the_main_column_is_a_linear_probe_that_most_models_share(tmp_path, write_probe, world):
    folders = [
        write_probe(tmp_path / "1", "a", world, stems=["knn/k20_T0.07", "linear"]),
        write_probe(tmp_path / "2", "b", world, seed=2, stems=["knn/k20_T0.07", "linear"]),
        write_probe(tmp_path / "3", "c", world, seed=3, stems=["knn/k20_T0.07"]),
    ]
    assert main_column(grid(*folders[:2])).metric == "linear/top1"
    assert main_column(grid(*folders)).metric == "knn/k20_T0.07/top1", "three models have it"
    assert main_column(grid(*folders), "linear/top5").metric == "linear/top5"
    with pytest.raises(InputError, match=r"--metric linear/top2 is no accuracy .* use one of knn/k20_T0.07/top1"):
        main_column(grid(*folders), "linear/top2")


@pytest.mark.parametrize(
    ("metric", "kind", "stem", "text"),
    [
        ("linear/top1", "plain", "linear", "linear, top-1"),
        ("knn/k20_T0.07/top5", "plain", "knn/k20_T0.07", "knn k20 T0.07, top-5"),
        ("fewshot-1pct/draw3/top1", "draw", "fewshot-1pct/draw3", "fewshot-1pct draw3, top-1"),
        ("label-curve/10/top1", "labels", "label-curve/10", "label-curve 10, top-1"),
        ("label-curve/10/draw3/top1", "draw", "label-curve/10/draw3", "label-curve 10 draw3, top-1"),
        ("linear-layers/layer03/top1", "layer", "linear-layers/layer03", "linear-layers layer03, top-1"),
        ("linear/imagenet-a/top1", "robustness", "linear/imagenet-a", "linear imagenet-a, top-1"),
        ("linear/cue-conflict/shape_bias", "robustness", "linear/cue-conflict/shape_bias", None),
        ("linear/corruption/mean/top1", "robustness", "linear/corruption/mean", None),
    ],
)
def test_kinds_of_metrics(metric, kind, stem, text):
    column = Column(metric, "d", "p")
    assert (column.kind, column.stem) == (kind, stem)
    assert text is None or readable(metric) == text


def test_chance_is_one_row_whatever_it_stands_beside(tmp_path, write_probe, world):
    """Shape bias counts each model's own decisions, and so does the chance beside it."""
    folders = [write_probe(tmp_path / str(k), f"m{k}", world, seed=k) for k in range(2)]
    table = folders[1] / "scores.csv"
    write_scores(table, [replace(s, n=s.n - 7) if s.model == CHANCE else s for s in read_scores(table)])
    assert [row.name for row in grid(*folders).rows if row.role == "chance"] == [CHANCE]
