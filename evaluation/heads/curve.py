"""The linear probe against the number of labelled pictures a class: how many labels a representation saves.

Each point is a probe of its own on the labels of one draw: normalisation, choice of the learning rate and fit see those
pictures only. A fifth of each class of the draw is set aside for the choice, at least one picture; two labels a class
are therefore the least.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from headcam.errors import InputError
from headcam.evaluation.features.views import TableView
from headcam.evaluation.heads.linear import LinearResult, linear_probe
from headcam.evaluation.labelled.sets import selection_mask
from headcam.evaluation.protocols import LabelCurve


def label_curve(
    train: np.ndarray,
    train_labels: np.ndarray,
    draws_of: Callable[[int, int], np.ndarray],
    test: np.ndarray,
    num_classes: int,
    protocol: LabelCurve,
    *,
    points: tuple[int, ...],
    draws: int,
    seed: int,
    groups: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    description: str = "label curve",
    quiet: bool = False,
) -> Iterator[tuple[tuple[int, int], LinearResult]]:
    """A probe for each number of labels a class and each draw.

    Args:
        train: (n, D) features, may be memory-mapped; train_labels: (n,) int64.
        draws_of: (labels a class, number of the draw) -> rows of `train`, ascending.
        test: (m, D) features.
        points: numbers of labels a class, from `protocol.labels_per_class`: those that the smallest class has.
        draws: of each point, `protocol.draws` or fewer.
        seed: as in `linear_probe`.
        groups: of each training picture, see `selection_mask`.
    Yields:
        (labels a class, draw) and its result, one at a time: a result holds logits of all test pictures.
    Raises:
        InputError: no points, or one of fewer than two labels; and those of `linear_probe`.
    """
    if not points:
        raise InputError(
            f"{protocol.name}: no class has as few training pictures as the first point of the curve asks for "
            f"({min(protocol.labels_per_class)})",
            "add training pictures, or put smaller numbers into labels_per_class",
        )
    if min(points) < 2:
        raise InputError(
            f"{protocol.name}: with {min(points)} labels a class none is left to choose the learning rate on",
            "begin labels_per_class at 2",
        )
    for labels_per_class in points:
        for number in range(draws):
            rows = draws_of(labels_per_class, number)
            labels = train_labels[rows]
            yield (
                (labels_per_class, number),
                linear_probe(
                    TableView(train, rows),
                    labels,
                    selection_mask(labels, None if groups is None else [groups[row] for row in rows]),
                    test,
                    num_classes,
                    protocol.probe,
                    seed=seed,
                    device=device,
                    description=f"{description}, {labels_per_class} a class, draw {number}",
                    quiet=quiet,
                ),
            )
