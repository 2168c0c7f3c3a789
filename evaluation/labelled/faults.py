"""Faults of a labelled set that change what a score means, found by content and told by name.

A picture that is in training and test measures memory; the same bytes under two labels put a ceiling below 1; a set of
which much cannot be read is another set. None of these is mended: a score is of the set as it is, and says so.
Copies are exact ones, by SHA-256 of the bytes. What merely looks alike (neighbouring frames of a recording, crops of
one photograph) is kept apart by splitting rules, see `headcam.evaluation.labelled.known`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from headcam.errors import InputError
from headcam.evaluation.labelled.sets import LabelledSet

_MANY = 10  # fewer never stop anything, whatever their share, unless they are all
SHARE_UNREADABLE = 0.01  # of a part of a set: beyond it something is wrong with the copy, not with a few files


@dataclass(frozen=True)
class Contradiction:
    """One content under several labels: names of all its pictures, train first, and the class of each."""

    names: tuple[str, ...]
    classes: tuple[str, ...]


def cross_duplicates(data: LabelledSet) -> tuple[tuple[str, str, bool], ...]:
    """Test pictures whose very bytes are in the training part: (test name, train name, whether the labels agree).

    One row a test picture, in the order of the test part. Where several training pictures are equal to it, one that
    has its label is named, if there is one.
    """
    wanted = {p.sha256 for p in data.test}
    first: dict[str, str] = {}
    first_of_label: dict[tuple[str, int], str] = {}
    for p in data.train:
        if p.sha256 in wanted:
            first.setdefault(p.sha256, p.name)
            first_of_label.setdefault((p.sha256, p.label), p.name)
    found = []
    for p in data.test:
        if p.sha256 in first:
            same = first_of_label.get((p.sha256, p.label))
            found.append((p.name, same or first[p.sha256], same is not None))
    return tuple(found)


def contradictions(data: LabelledSet) -> tuple[Contradiction, ...]:
    """Contents that carry several labels, within a part or across, in the order of their first picture."""
    label_of: dict[str, int] = {}
    torn: dict[str, list] = {}
    for p in (*data.train, *data.test):
        if label_of.setdefault(p.sha256, p.label) != p.label:
            torn[p.sha256] = []
    for p in (*data.train, *data.test):
        if p.sha256 in torn:
            torn[p.sha256].append(p)
    ordered = (torn[sha256] for sha256 in label_of if sha256 in torn)
    return tuple(
        Contradiction(tuple(p.name for p in pictures), tuple(data.classes[p.label] for p in pictures))
        for pictures in ordered
    )


def too_many(unreadable: int, total: int, share: float = SHARE_UNREADABLE) -> bool:
    """Whether so much of a set cannot be read that the rest is another one: more than `share` of it and at least ten,
    or all."""
    return unreadable > 0 and (unreadable == total or (unreadable >= _MANY and unreadable > share * total))


def check_readable(
    unreadable: Sequence[tuple[str, str]], total: int, what: str, share: float = SHARE_UNREADABLE
) -> None:
    """Stop where so many pictures cannot be read that the rest is another set.

    Args:
        unreadable: name and reason of each.
        total: pictures that were tried.
        what: how the error calls them, such as "training pictures of imagenet".
        share: largest share of `total` that is passed over (named and counted elsewhere), see `too_many`.
    Raises:
        InputError: more than that cannot be read; count, share and the first three are named.
    """
    count = len(unreadable)
    if not too_many(count, total, share):
        return
    first = ", ".join(f"{name} ({reason})" for name, reason in unreadable[:3])
    raise InputError(
        f"{count} of the {total} {what} cannot be read, {count / total:.1%}, and {share:.1%} are passed over: {first}"
        f"{', ...' if count > 3 else ''}",
        "restore the files, or remove those that are no pictures",
    )
