"""What a classifier said of each test picture, in the few numbers that all scores follow from.

A table of scores (n, K) becomes, for each picture, the rank of its true class, the five best classes and the
probability of the true one: enough for top-1, top-5, multi-label accuracy, accuracy by class, confusions and paired
differences, at 30 bytes a picture.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from headcam.errors import InputError
from headcam.evaluation.labelled.sets import Picture

TOP = 5  # best classes that are kept
_ROWS = 4096  # pictures at a time
_VAL_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True)
class Guesses:
    """Of n test pictures.

    Attributes:
        rank: (n,) int32, of the true class among all, 1 = best; ties count against the classifier, and so does NaN.
        top: (n, min(5, K)) int32, the best classes, best first.
        p: (n,) float32, probability of the true class.
    """

    rank: np.ndarray
    top: np.ndarray
    p: np.ndarray

    def right(self, k: int) -> np.ndarray:
        """(n,) bool: the true class is among the `k` best."""
        return self.rank <= k


def guesses(scores: torch.Tensor, labels: np.ndarray, *, votes: bool = False) -> Guesses:
    """From scores (n, K), higher is likelier, and true classes (n,).

    Args:
        votes: the scores are weights of classes from 0 on (kNN), not logits: probabilities are shares of them.
    """
    truth = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    rank, top, p = [], [], []
    for start in range(0, len(scores), _ROWS):
        block, true = scores[start : start + _ROWS].float(), truth[start : start + _ROWS, None]
        own = block.gather(1, true)
        rank.append((~(block < own)).sum(dim=1))
        top.append(block.topk(min(TOP, block.shape[1]), dim=1).indices)
        shares = block / block.sum(dim=1, keepdim=True) if votes else block.softmax(dim=1)
        p.append(shares.gather(1, true).squeeze(1).nan_to_num(0.0))
    return Guesses(
        torch.cat(rank).numpy().astype(np.int32),
        torch.cat(top).numpy().astype(np.int32),
        torch.cat(p).numpy().astype(np.float32),
    )


def multilabel_right(found: Guesses, truths: Sequence[frozenset[int]]) -> np.ndarray:
    """Whether the best class is one of a picture's labels; only of pictures that have any: (m,) bool, m <= n."""
    return np.array([best in truth for best, truth in zip(found.top[:, 0].tolist(), truths) if truth], dtype=bool)


def read_multilabels(
    file: str | os.PathLike, pictures: Sequence[Picture], classes: Sequence[str]
) -> list[frozenset[int]]:
    """Which classes are right for each test picture, for multi-label accuracy.

    Two forms are read: a JSON list of 50,000 lists of class numbers in the order of ImageNet's validation pictures
    (`real.json` of Beyer et al. 2020, "Are we done with ImageNet?"; pictures are matched by the number in their names),
    and a JSON object of picture name -> list of class numbers or names. A picture with an empty list is left out.

    Raises:
        InputError: no such file, another form, pictures that it does not know, or classes that are not there.
    """
    file = Path(file)
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"multi-label file {file} cannot be read: {error}", "give a JSON file") from error
    number = {name: k for k, name in enumerate(classes)}
    if isinstance(found, list):
        by_number = {f"{k:08d}": labels for k, labels in enumerate(found, start=1)}
        keys = [match.group(1) if (match := _VAL_NUMBER.search(p.name)) else "" for p in pictures]
        named = by_number
    elif isinstance(found, dict):
        named = {**{Path(name).name: labels for name, labels in found.items()}, **found}
        keys = [p.name if p.name in named else Path(p.name).name for p in pictures]
    else:
        raise InputError(f"{file} holds a {type(found).__name__}", "give a list or an object of lists of classes")
    missing = [p.name for p, key in zip(pictures, keys) if key not in named]
    if missing:
        raise InputError(
            f"{file} has no labels for {len(missing)} of {len(pictures)} test pictures, such as {missing[0]}",
            "give the file that was made for these pictures",
        )
    out = []
    for picture, key in zip(pictures, keys):
        labels = [number.get(label, label) for label in named[key]]
        if not all(isinstance(label, int) and 0 <= label < len(classes) for label in labels):
            raise InputError(
                f"{file}: labels {named[key]} of {picture.name} are none of the {len(classes)} classes",
                "give class numbers in the set's order, or class names",
            )
        out.append(frozenset(labels))
    if not any(out):
        raise InputError(f"{file} has not one label for these test pictures", "give the file made for them")
    return out
