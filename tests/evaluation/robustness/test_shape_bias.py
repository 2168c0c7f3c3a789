"""Shape bias: exact on scripted deciders, and the published figures of people from their trials."""

import csv
from pathlib import Path

import numpy as np
import pytest

from headcam.evaluation.robustness.shape_bias import reference_figures, shape_bias
from headcam.randomness import stream

TRIALS = Path(__file__).parents[3].parent / "shared/data/labelled/geirhos_16class/human_reference.csv"
SETS = {"cue_conflict_480": "cue-conflict-480", "cue_conflict_all_1200": "cue-conflict"}
OBSERVERS = {"alexnet": "alexnet", "googlenet": "googlenet", "vgg": "vgg16"}


def decided(shape: int, texture: int, other: int):
    """Decisions with those counts on pictures of shape 0 and texture 1."""
    decisions = np.repeat([0, 1, 2], [shape, texture, other])
    return shape_bias(decisions, np.zeros_like(decisions), np.ones_like(decisions), rng=stream(0, "test", 0))


def test_ratio_is_that_of_the_decisions_that_name_either():
    found = decided(30, 10, 60)
    assert (found.shape, found.texture, found.other) == (30, 10, 60)
    assert found.bias.estimate == pytest.approx(0.75, abs=1e-12)
    # The binomial interval of 30 of 40 (normal approximation) is .75 +- 1.96 sqrt(.75 * .25 / 40): .616 to .884.
    assert found.bias.low == pytest.approx(0.616, abs=0.03) and found.bias.high == pytest.approx(0.884, abs=0.03)


def test_intervals_cover():
    """200 experiments with a true bias of 0.7 and half of the decisions about neither cue."""
    truth, covered = 0.7, 0
    for i in range(200):
        rng = stream(3, "experiment", i)
        decisions = rng.choice(3, size=150, p=[0.5 * truth, 0.5 * (1 - truth), 0.5])
        found = shape_bias(decisions, np.zeros(150, int), np.ones(150, int), rng=rng).bias
        covered += found.low <= truth <= found.high
    assert 178 <= covered <= 199  # 95 % of 200 is 190; 178 would be more than three standard deviations below


def test_extreme_deciders_are_not_certain():
    always = decided(20, 0, 5)
    assert always.bias.estimate == 1 and always.bias.high == 1
    assert always.bias.low == pytest.approx(0.025 ** (1 / 20))  # Clopper-Pearson of 20 of 20
    never = decided(0, 20, 5)
    assert never.bias.estimate == 0 and never.bias.high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert decided(0, 0, 9).bias is None


def test_pictures_without_a_conflict_are_refused():
    with pytest.raises(ValueError, match="picture 1 has shape and texture 2"):
        shape_bias(np.array([0, 0]), np.array([0, 2]), np.array([1, 2]), rng=stream(0, "test", 0))


@pytest.mark.shared
@pytest.mark.skipif(not TRIALS.is_file(), reason="no shared data")
def test_human_shape_bias_of_the_published_trials():
    """Every cell of the table in the README of the stimuli, from the counts of each observer."""
    with open(TRIALS, newline="") as file:
        rows = list(csv.DictReader(file))
    figures = {(f.set, f.measure, f.observer): f for f in reference_figures()}
    checked = 0
    for name in {row["set"] for row in rows}:
        values: dict[tuple[str, str], list[float]] = {}
        for row in (row for row in rows if row["set"] == name):
            observer = OBSERVERS.get(row["observer"], "humans")
            if name in SETS:
                none = int(row["other_category"]) + int(row["no_answer"])
                found = decided(int(row["correct_or_shape"]), int(row["texture"]), none)
                total = found.shape + found.texture + found.other
                values.setdefault(("shape_bias", observer), []).append(found.bias.estimate)
                values.setdefault(("shape_or_texture", observer), []).append((found.shape + found.texture) / total)
            else:
                values.setdefault(("top1", observer), []).append(int(row["correct_or_shape"]) / int(row["trials"]))
        for (measure, observer), found in values.items():
            figure = figures.get((SETS.get(name, name), measure, observer))
            if figure is None:  # the README has no shares of either cue for all 1,200
                assert (name, measure) == ("cue_conflict_all_1200", "shape_or_texture")
                continue
            assert len(found) == figure.observers
            assert 100 * np.mean(found) == pytest.approx(figure.value, abs=0.05)
            if figure.sd is not None:
                assert 100 * np.std(found, ddof=1) == pytest.approx(figure.sd, abs=0.05)
            checked += 1
    assert checked == len(figures)
    people = figures["cue-conflict-480", "shape_bias", "humans"]
    assert (people.value, people.sd, people.observers) == (95.85, 1.65, 10)
