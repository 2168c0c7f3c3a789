"""The scoring rules against their definitions in loops, and what they say of observers that remember nothing."""

import numpy as np
import pytest

from headcam.recognition_memory.scoring.rules import RULES, RuleNotDefined, decisions, margins
from headcam.recognition_memory.scoring.table import Group


def group_of(losses: np.ndarray, exposures: tuple[int, ...], role_swapped: bool = True) -> Group:
    """A group of one condition from (sets, seeds, exposures, pairs, 2)."""
    sets, seeds, _, pairs, _ = losses.shape
    return Group(
        *("m", "p", ""),
        study_sets=tuple("123"[:sets]),
        seeds=tuple(range(seeds)),
        exposures=exposures,
        conditions=("novel",),
        losses={"novel": losses},
        pairs={"novel": np.arange(pairs)},
        role_swapped=role_swapped,
    )


def score_of(rule: str, L, s: int, k: int, e: int, p: int, role: str) -> float:
    """The score of one picture as the table of rules defines it. L(set, seed, exposure, pair, role)."""
    if rule == "raw":
        return L(s, k, e, p, role)
    if rule == "calibrated":
        return L(s, k, e, p, role) - L(s, k, 0, p, role)
    if rule == "drop_since_first":
        return L(s, k, e, p, role) - L(s, k, 1, p, role)
    other_role = {"seen": "unseen", "unseen": "seen"}[role]
    if rule == "role_swapped":
        return L(s, k, e, p, role) - L(1 - s, k, e, p, other_role)
    if role == "seen":  # studied here, so its foil-self is in all runs of the other set
        references = [L(1 - s, j, e, p, "unseen") for j in range(3)]
    else:  # a foil here, so it is studied in the other set: other seeds of this one
        references = [L(s, j, e, p, "unseen") for j in range(3) if j != k]
    return L(s, k, e, p, role) - sum(references) / len(references)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_its_definition(rule):
    losses = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2))
    exposures = (0, 1, 2, 5)
    result = margins(rule, group_of(losses, exposures), "novel")
    first = {"raw": 0, "drop_since_first": 2}.get(rule, 1)
    assert result.exposures == tuple(e for e in exposures if e >= first)
    assert result.values.shape == (2, 3, len(result.exposures), 5)

    def L(s, k, e, p, role):
        return losses[s, k, exposures.index(e), p, ["seen", "unseen"].index(role)]

    right = decisions(result)
    for s, k, i, p in np.ndindex(result.values.shape):
        a, b = (score_of(rule, L, s, k, result.exposures[i], p, role) for role in ("seen", "unseen"))
        assert result.values[s, k, i, p] == pytest.approx(b - a, abs=1e-12)
        assert right[s, k, i, p] == float(a < b)


def test_frozen_weights_are_exactly_half_right_under_every_calibrated_rule():
    pictures = np.random.default_rng(0).normal(size=(1, 1, 1, 50, 2))
    # Three seeds: a mean over references must not leave a trace of rounding.
    losses = np.concatenate([pictures, pictures[..., ::-1]]) * np.ones((2, 3, 4, 1, 1))
    group = group_of(losses, (0, 1, 2, 3))
    for rule in RULES[1:]:
        assert (decisions(margins(rule, group, "novel")) == 0.5).all(), rule
    raw = decisions(margins("raw", group, "novel"))
    assert (raw.mean(axis=0) == 0.5).all()  # what is simpler wins in both sets


def test_what_remembers_nothing_is_at_chance_under_every_rule():
    rng = np.random.default_rng(0)
    pairs = 4000
    pictures = rng.normal(size=(1, 1, 1, pairs, 2))
    drift = rng.normal(size=(1, 1, 4, 1, 1))  # all pictures get easier or harder together
    losses = np.concatenate([pictures, pictures[..., ::-1]]) + drift + 0.1 * rng.normal(size=(2, 3, 4, pairs, 2))
    group = group_of(losses, (0, 1, 2, 3))
    for rule in RULES:
        accuracy = decisions(margins(rule, group, "novel")).mean(axis=(0, 1, 3))
        assert np.abs(accuracy - 0.5).max() < 4 * 0.5 / np.sqrt(pairs * 2), rule


@pytest.mark.parametrize(
    ("rule", "exposures", "sets", "seeds", "swapped", "reason"),
    [
        ("calibrated", (1, 2), 2, 2, True, "no exposure 0 is in the table"),
        ("calibrated", (0,), 2, 2, True, "starts at exposure 1, and the table ends at 0"),
        ("drop_since_first", (0, 2, 3), 2, 2, True, "no exposure 1 is in the table"),
        ("drop_since_first", (0, 1), 2, 2, True, "starts at exposure 2, and the table ends at 1"),
        ("role_swapped", (1,), 1, 2, False, "needs two role-swapped study sets, and the table has 1"),
        ("role_swapped", (1,), 2, 2, False, "the two study sets do not hold the same pictures"),
        ("unstudied_reference", (1,), 3, 2, False, "and the table has 3"),
        ("unstudied_reference", (1,), 2, 1, True, "two or more seeds in each study set"),
    ],
)
def test_a_rule_that_the_table_does_not_allow_gives_its_reason(rule, exposures, sets, seeds, swapped, reason):
    group = group_of(np.random.default_rng(0).normal(size=(sets, seeds, len(exposures), 6, 2)), exposures, swapped)
    with pytest.raises(RuleNotDefined, match=reason):
        margins(rule, group, "novel")


def test_choices_have_no_reference():
    losses = np.stack([np.zeros((2, 2, 2, 6)), np.ones((2, 2, 2, 6))], axis=-1)
    group = group_of(losses, (0, 1))
    assert (decisions(margins("raw", group, "novel")) == 1).all()
    for rule in RULES[1:]:
        with pytest.raises(RuleNotDefined, match="choices between two pictures"):
            margins(rule, group, "novel")


def test_runs_without_a_partner_are_not_decided():
    losses = np.random.default_rng(0).normal(size=(2, 3, 2, 6, 2))
    losses[1, 2] = np.nan  # the second set lacks the third seed
    group = group_of(losses, (0, 1))
    assert margins("role_swapped", group, "novel").runs.tolist() == [[True, True, False]] * 2
    assert margins("unstudied_reference", group, "novel").runs.tolist() == [[True] * 3, [True, True, False]]
    assert np.isnan(decisions(margins("raw", group, "novel"))[1, 2]).all()
    losses[1, :2], losses[0, 2] = np.nan, np.nan
    losses[1, 2] = 0.0
    with pytest.raises(RuleNotDefined, match="no seed was run in both"):
        margins("role_swapped", group_of(losses, (0, 1)), "novel")
