"""Paired differences and what is looked for among many, against slow and obvious statements of the same."""

import hashlib
from collections import Counter
from dataclasses import replace
from math import comb

import numpy as np
import pytest

from headcam.evaluation.comparing.columns import Column, grid_of
from headcam.evaluation.comparing.pairs import (
    above_baselines,
    class_differences,
    confusions,
    differences,
    examples,
    model_pairs,
)
from headcam.evaluation.comparing.probes import read_probes


@pytest.fixture
def two(tmp_path, write_probe, world):
    write_probe(tmp_path / "1", "a", world, 0.8, draws=4)
    write_probe(tmp_path / "2", "b", world, 1.6, seed=2, draws=3)
    return grid_of(read_probes([tmp_path / "1", tmp_path / "2"]))


def column_of(grid, metric="linear/top1") -> Column:
    return next(column for column in grid.columns if column.metric == metric)


def hits(row, column, stem=None):
    guess, items = row.guesses(column, stem), row.origin[column].items
    return guess.top[:, 0] == items.labels


def test_a_difference_is_later_minus_earlier_and_shorter_than_unpaired(two):
    column = column_of(two)
    a, b = two.trained
    (found,) = differences(two, column)
    assert (found.first, found.second, found.paired) == (b, a, True)
    assert found.interval.estimate == pytest.approx(b.cells[column].value - a.cells[column].value)
    d = 100 * (hits(b, column).astype(float) - hits(a, column))
    half = 1.96 * d.std() / np.sqrt(len(d))
    assert found.interval.low == pytest.approx(d.mean() - half, abs=0.7)
    assert found.interval.high == pytest.approx(d.mean() + half, abs=0.7)
    independent = np.hypot(*(s.high - s.low for s in (a.cells[column], b.cells[column])))
    assert found.interval.high - found.interval.low < 0.95 * independent
    assert found.stands


def test_top5_counts_ranks(two):
    column = column_of(two, "linear/top5")
    (found,) = differences(two, column)
    a, b = two.trained
    expected = 100 * float(np.mean((b.guesses(column).rank <= 5).astype(float) - (a.guesses(column).rank <= 5)))
    assert found.interval.estimate == pytest.approx(expected)


def test_draws_are_paired_by_their_numbers(two):
    column = column_of(two, "fewshot/top1")
    (found,) = differences(two, column)
    a, b = two.trained
    of = [hits(b, column, f"fewshot/draw{d}").astype(float) - hits(a, column, f"fewshot/draw{d}") for d in range(3)]
    assert found.interval.estimate == pytest.approx(100 * np.mean(of)), "draw 3 is only in one of them"
    assert found.paired and found.interval.low < found.interval.estimate < found.interval.high


def test_other_test_pictures_are_not_paired(tmp_path, write_probe, world):
    write_probe(tmp_path / "1", "a", world, 0.8)
    write_probe(tmp_path / "2", "b", world, 1.6, seed=2, keep=slice(1, None))  # one could not be read there
    grid = grid_of(read_probes([tmp_path / "1", tmp_path / "2"]))
    column = column_of(grid)
    (found,) = differences(grid, column)
    a, b = (row.cells[column] for row in grid.trained)
    assert not found.paired
    assert found.interval.estimate == b.value - a.value
    assert found.interval.low == pytest.approx(b.value - a.value - np.hypot(b.value - b.low, a.high - a.value))
    assert not class_differences(*grid.trained, column, 5) and not confusions(*grid.trained, column, 5)
    assert examples(grid.trained, column, 5) == ([], 0)


def test_correction_for_many_comparisons_can_only_take_away(tmp_path, write_probe, world):
    for k in range(5):
        write_probe(tmp_path / str(k), f"m{k}", world, 1 + 0.12 * k, seed=k)
    grid = grid_of(read_probes([tmp_path / str(k) for k in range(5)]))
    found = differences(grid, column_of(grid))
    assert len(found) == 10 and {d.comparisons for d in found} == {10}
    outside = [d for d in found if d.interval.low > 0 or d.interval.high < 0]
    assert {id(d) for d in found if d.stands} < {id(d) for d in outside}, "some are lost, none is gained"


def test_all_pairs_up_to_six_then_against_the_first():
    rows = list(range(6))
    assert len(model_pairs(rows)) == 15 and model_pairs(rows)[0] == (1, 0)
    assert model_pairs(list(range(7))) == [(k, 0) for k in range(1, 7)]


def test_baselines_are_paired_with_each_model(two):
    column = column_of(two)
    found = above_baselines(two, column)
    assert [(d.first.name, d.second.role) for d in found] == [
        ("a", "random"),
        ("a", "pixels"),
        ("b", "random"),
        ("b", "pixels"),
    ]
    for d in found:
        expected = d.first.cells[column].value - d.second.cells[column].value
        assert d.paired and d.interval.estimate == pytest.approx(expected)


def test_confusions_against_a_loop(two):
    column = column_of(two)
    a, b = two.trained
    items = a.origin[column].items
    counts = []
    for row in (b, a):
        counted = Counter()
        for label, said in zip(items.labels, row.guesses(column).top[:, 0]):
            if label != said:
                counted[items.classes[label], items.classes[said]] += 1
        counts.append(counted)
    gaps = {pair: abs(counts[0][pair] - counts[1][pair]) for pair in counts[0] | counts[1]}
    found = confusions(b, a, column, 7)
    assert [gaps[c.true, c.said] for c in found] == sorted(gaps.values(), reverse=True)[:7]
    for c in found:
        assert (c.first, c.second, c.n) == (counts[0][c.true, c.said], counts[1][c.true, c.said], 30)


def test_class_differences_against_a_loop(two):
    column = column_of(two)
    a, b = two.trained
    items = a.origin[column].items
    right = (hits(b, column), hits(a, column))
    expected = {}
    for k, name in enumerate(items.classes):
        of = items.labels == k
        only = [int((right[i][of] & ~right[1 - i][of]).sum()) for i in (0, 1)]
        n = sum(only)
        p = min(1.0, 2 * sum(comb(n, i) for i in range(min(only) + 1)) / 2**n)
        expected[name] = (100 * right[0][of].mean(), 100 * right[1][of].mean(), p * len(items.classes) < 0.05)
    found = class_differences(b, a, column, 8)
    gaps = [abs(c.first - c.second) for c in found]
    assert gaps == sorted(gaps, reverse=True)
    for c in found:
        first, second, stands = expected[c.name]
        assert (c.first, c.second, c.stands) == (pytest.approx(first), pytest.approx(second), stands)
        assert c.interval.low <= first - second + 1e-9 and c.interval.high >= first - second - 1e-9
    assert {c.stands for c in found} == {True, False}


def test_examples_are_all_that_differ_in_the_order_of_a_hash(two):
    column = column_of(two)
    items = two.trained[0].origin[column].items
    a, b = (hits(row, column) for row in two.trained)
    found, total = examples(two.trained, column, 10_000)
    assert total == len(found) == int((a != b).sum())
    keys = [hashlib.sha256(f"example {e.sha256}".encode()).hexdigest() for e in found]
    assert keys == sorted(keys)
    for e in found:
        k = items.sha256.index(e.sha256)
        assert e.true == items.classes[items.labels[k]]
        assert [right for _, right in e.said] == [a[k], b[k]]
        assert [said == e.true for said, _ in e.said] == [a[k], b[k]]
    assert examples(two.trained, column, 3)[0] == found[:3]


def test_titles_stand_for_class_names_and_repeat_with_them(tmp_path, write_probe, world):
    named = replace(world, titles=("crane", "crane", *(f"thing {k}" for k in range(2, 8))))
    for k in range(2):
        write_probe(tmp_path / str(k), f"m{k}", named, seed=k)
    grid = grid_of(read_probes([tmp_path / "0", tmp_path / "1"]))
    names = {e.true for e in examples(grid.trained, column_of(grid), 10_000)[0]}
    assert {"crane (class 0)", "crane (class 1)", "thing 2"} <= names
