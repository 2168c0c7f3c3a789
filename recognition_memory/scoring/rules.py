"""Which picture of a pair was studied? The rules that answer from losses, and what each is allowed to know.

Every rule gives each picture a score, lower for more familiar, and takes the picture with the lower one. They differ in
the reference that is subtracted from a picture's loss L. A is the studied picture of a pair, B its foil, s the study
set, k the seed, e the number of exposures:

| rule                  | score of A                            | score of B                              | from |
|-----------------------|---------------------------------------|-----------------------------------------|------|
| `raw`                 | L(e), as published                    | L(e)                                    | 0    |
| `calibrated`          | L(e) - L(0)                           | L(e) - L(0)                             | 1    |
| `drop_since_first`    | L(e) - L(1)                           | L(e) - L(1)                             | 2    |
| `unstudied_reference` | L - mean of A's L in the other set    | L - mean of B's L in other seeds of s   | 1    |
| `role_swapped`        | L - A's L in the other set, same seed | L - B's L in the other set, same seed   | 1    |

`raw` mostly asks which picture is simpler: pictures differ in loss by far more than one exposure changes. The others
take that out. `calibrated` needs one model only and nothing of anybody's roles: it is the primary score. Its weaker
form `drop_since_first` serves where nothing was stored before study; its reference holds one exposure already.
`unstudied_reference` compares with runs none of which studied the picture, so it shows one trace; it has to know which
run studied what, and as the references of A and B are different runs, what distinguishes whole runs (the drift of an
untrained model) does not cancel in it as it does in the others. In `role_swapped` B's reference has *studied* B: its
margin is the sum of two traces, an upper bound for one memory, and both runs of a pair always decide alike.
"""

from dataclasses import dataclass

import numpy as np

from headcam.recognition_memory.scoring.table import Group

RULES = ("raw", "calibrated", "drop_since_first", "unstudied_reference", "role_swapped")


class RuleNotDefined(Exception):
    """A rule that this table does not allow; the text is the reason."""


@dataclass(frozen=True)
class Margins:
    """A rule applied to one condition.

    Attributes:
        scores: (sets, seeds, exposures', pairs, 2) float64, lower is more familiar; [..., 0] of the studied picture.
            NaN where there is no such run, or no run to compare it with.
        exposures: the exposures' for which the rule is defined.
    """

    rule: str
    scores: np.ndarray
    exposures: tuple[int, ...]

    @property
    def values(self) -> np.ndarray:
        """(sets, seeds, exposures', pairs): score of the foil minus score of the studied picture; above 0 is right."""
        return self.scores[..., 1] - self.scores[..., 0]

    @property
    def runs(self) -> np.ndarray:
        """(sets, seeds) bool: the runs that the rule decides for."""
        return ~np.isnan(self.scores[:, :, 0, 0, 0])


def margins(rule: str, group: Group, condition: str) -> Margins:
    """Apply one of `RULES` to the pairs of `condition`.

    Raises:
        RuleNotDefined: the table lacks what the rule needs; the message says what.
    """
    losses = group.losses[condition]
    if rule == "raw":
        return Margins(rule, losses, group.exposures)
    if group.choices:
        raise RuleNotDefined(
            "its rows are choices between two pictures, no losses from which a reference could be taken"
        )
    if rule == "calibrated":
        if group.exposures[0] != 0:
            raise RuleNotDefined(
                "no exposure 0 is in the table; measure every test picture before study to have it"
                " (`headcam memory run` does)"
            )
        after, exposures = _from(group, losses, 1)
        return Margins(rule, after - losses[:, :, :1], exposures)
    if rule == "drop_since_first":
        if 1 not in group.exposures:
            raise RuleNotDefined("no exposure 1 is in the table")
        after, exposures = _from(group, losses, 2)
        return Margins(rule, after - losses[:, :, [group.exposures.index(1)]], exposures)
    after, exposures = _from(group, losses, 1)
    if rule == "role_swapped":
        return Margins(rule, _role_swapped(group, after), exposures)
    if rule == "unstudied_reference":
        return Margins(rule, _unstudied_reference(group, after), exposures)
    raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")


def decisions(margins: Margins) -> np.ndarray:
    """1 where the studied picture has the strictly lower score, 0 where the foil has, 0.5 for an exact tie.

    Returns:
        (sets, seeds, exposures', pairs) float64, NaN where the rule does not decide for a run.
    """
    seen, unseen = margins.scores[..., 0], margins.scores[..., 1]
    return np.where(np.isnan(seen), np.nan, (seen < unseen) + 0.5 * (seen == unseen))


def _from(group: Group, losses: np.ndarray, first: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Losses and numbers of the exposures from `first` on."""
    exposures = tuple(e for e in group.exposures if e >= first)
    if not exposures:
        raise RuleNotDefined(f"it starts at exposure {first}, and the table ends at {group.exposures[-1]}")
    return losses[:, :, len(group.exposures) - len(exposures) :], exposures


def _need_swapped_sets(group: Group) -> None:
    if len(group.study_sets) != 2:
        raise RuleNotDefined(f"it needs two role-swapped study sets, and the table has {len(group.study_sets)}")
    if not group.role_swapped:
        raise RuleNotDefined(
            "by their losses, the two study sets do not hold the same pictures with their roles swapped"
        )


def _role_swapped(group: Group, losses: np.ndarray) -> np.ndarray:
    _need_swapped_sets(group)
    scores = losses - losses[::-1, ..., ::-1]  # the same pictures in the other set, where their roles are exchanged
    if np.isnan(scores).all():
        raise RuleNotDefined("no seed was run in both study sets")
    return scores


def _unstudied_reference(group: Group, losses: np.ndarray) -> np.ndarray:
    _need_swapped_sets(group)
    runs = group.runs
    if (runs.sum(axis=1) < 2).any():
        raise RuleNotDefined("it needs two or more seeds in each study set, and the table has fewer")
    scores = np.full_like(losses, np.nan)
    for s, k in np.argwhere(runs):
        # The mean of differences, not the difference to a mean: exactly 0 where nothing was learned.
        others = [j for j in np.flatnonzero(runs[s]) if j != k]
        other_set = np.flatnonzero(runs[1 - s])
        scores[s, k, ..., 0] = np.mean([losses[s, k, ..., 0] - losses[1 - s, j, ..., 1] for j in other_set], axis=0)
        scores[s, k, ..., 1] = np.mean([losses[s, k, ..., 1] - losses[s, j, ..., 1] for j in others], axis=0)
    return scores
