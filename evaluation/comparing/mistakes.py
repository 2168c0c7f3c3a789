"""Where models differ: pictures, confusions and classes, and whether they err on the same pictures."""

import hashlib
import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from headcam.errors import InputError
from headcam.evaluation.comparing.columns import Row, readable
from headcam.evaluation.comparing.look import MISSING, points
from headcam.evaluation.comparing.pairs import (
    Example,
    class_differences,
    confusions,
    examples,
    model_pairs,
    paired_hits,
)
from headcam.evaluation.labelled.sets import LabelledSet, read_labelled
from headcam.evaluation.robustness.consistency import error_consistency
from headcam.pages import Estimate, Page
from headcam.randomness import stream

if TYPE_CHECKING:
    from headcam.evaluation.compare import Comparison

_EXAMPLES = 6
_MODELS_ABREAST = 4  # of more, who is right and who is wrong is said in words
_AGAINST_FIRST = 3  # models whose errors are set against those of the first
_ROWS = 5  # confusions and classes of each such pair
_TILE = 160  # pixels


def mistakes(page: Page, c: "Comparison") -> None:
    """Pictures, confusions, classes, error consistency: of the metric that the page is about."""
    rows = [row for row in c.grid.trained_in(c.main) if row.guesses(c.main) is not None]
    _examples(page, c, rows)
    pairs = [(row, rows[0]) for row in rows[1 : 1 + _AGAINST_FIRST]]
    _confusions(page, c, pairs)
    _classes(page, c, pairs)
    _consistency(page, c)


def _examples(page: Page, c: "Comparison", rows: list[Row]) -> None:
    found, total = examples(rows, c.main, _EXAMPLES)
    if not rows or (not found and total == 0 and len(rows) < 2):
        return
    n = len(rows[0].origin[c.main].items.labels)
    page.section(
        "Pictures on which they differ",
        f"At least one model is right and at least one is wrong on {total:,} of {n:,} test pictures "
        f"({readable(c.main.metric)}). Shown are the first {len(found)} of them by a hash of their content: nobody "
        "chose them, and they are too few to judge by."
        if found
        else f"There is no test picture of these {n:,} that one of the models has right and another wrong, or they "
        "were not tested on the same ones.",
    )
    if not found:
        return
    if c.labelled is not None and c.media == "pictures":
        if page.frames:
            page.tiles([("", [_tile(c.labelled, example) for example in found])], "From left to right, 1 to the last.")
        else:
            page.tiles([("", [])], "")
    columns, cells = _who_said_what(rows, found)
    page.table(
        columns,
        cells,
        "The best class of each model; ✓ marks the true one."
        + (" Give --labelled DIR to see the pictures themselves." if _could_be_shown(page, c) else ""),
    )


def _could_be_shown(page: Page, c: "Comparison") -> bool:
    return page.frames and c.labelled is None and c.media == "pictures"


def _who_said_what(rows: list[Row], found: list[Example]) -> tuple[list[str], list[list[str]]]:
    if len(rows) <= _MODELS_ABREAST:
        return ["picture", "true class", *(row.name for row in rows)], [
            [str(k), e.true, *("✓" if right else said for said, right in e.said)] for k, e in enumerate(found, start=1)
        ]
    cells = []
    for k, example in enumerate(found, start=1):
        right = [row.name for row, (_, hit) in zip(rows, example.said) if hit]
        wrong = [f"{row.name}: {said}" for row, (said, hit) in zip(rows, example.said) if not hit]
        cells.append([str(k), example.true, ", ".join(right), "; ".join(wrong)])
    return ["picture", "true class", "right", "wrong, and what they said"], cells


def _tile(labelled: Path, example: Example) -> np.ndarray:
    """The middle square of a picture of the user's folder, `_TILE` pixels wide."""
    with Image.open(io.BytesIO(_content(labelled, example))) as image:
        image = image.convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        scale = Image.Resampling.BICUBIC if side < _TILE else Image.Resampling.LANCZOS
        return np.asarray(image.resize((_TILE, _TILE), scale, box=box))


def _content(labelled: Path, example: Example) -> bytes:
    """The bytes of a picture that was tested, checked by hash."""
    plain = labelled / example.name
    if plain.is_file():
        content = plain.read_bytes()
        if hashlib.sha256(content).hexdigest() == example.sha256:
            return content
    else:  # inside of an archive, or under another name
        for picture in _listed(labelled).test:
            if picture.sha256 == example.sha256:
                with picture.open() as file:
                    return file.read()
    raise InputError(
        f"test picture {example.name} of the probes is not in {labelled}, or is another one there",
        "give the folder that was probed as --labelled, or leave it out",
    )


@lru_cache(maxsize=1)
def _listed(labelled: Path) -> LabelledSet:
    return read_labelled(labelled)


def _confusions(page: Page, c: "Comparison", pairs: list[tuple[Row, Row]]) -> None:
    cells = [
        [row.name if k == 0 else "", f.true, f.said, f.n, f.first, f.second]
        for row, first in pairs
        for k, f in enumerate(confusions(row, first, c.main, _ROWS))
    ]
    if not cells:
        return
    first = pairs[0][1].name
    page.section(
        "Confusions that one makes and the other does not",
        f"How often pictures of one class were taken for another, in each model and in {first}: those "
        f"whose number differs most ({readable(c.main.metric)}). They were looked for among all pairs of classes, so "
        "part of each difference is chance.",
    )
    page.table(
        ["model", "true class", "taken for", "pictures", "times in the model", f"times in {first}"],
        cells,
        f"The {_ROWS} largest differences of each model to {first}; “pictures”: test pictures of the true class.",
    )


def _classes(page: Page, c: "Comparison", pairs: list[tuple[Row, Row]]) -> None:
    cells = []
    for row, first in pairs:
        for k, d in enumerate(class_differences(row, first, c.main, _ROWS)):
            name = row.name if k == 0 else ""
            cells.append(
                [
                    name,
                    d.name,
                    Estimate(d.first),
                    Estimate(d.second),
                    points(d.interval),
                    "yes" if d.stands else "no",
                ]
            )
    if not cells:
        return
    first, classes = pairs[0][1].name, len(pairs[0][1].origin[c.main].items.classes)
    page.section(
        "Classes on which they differ most",
        f"The largest differences among {classes:,} classes are large partly by chance, and would mostly be smaller on "
        "new pictures; the intervals do not know that they were picked. The last column does: it says whether the "
        "exact sign test, corrected for all classes (Bonferroni), leaves a difference.",
    )
    page.table(
        ["model", "class", "% right", f"% right in {first}", "points", "beyond selection"],
        cells,
        f"The {_ROWS} classes with the largest differences of each model to {first}; {readable(c.main.metric)}.",
    )


def _consistency(page: Page, c: "Comparison") -> None:
    cells = []
    for a, b in model_pairs(c.grid.trained_in(c.main)):
        hits = paired_hits(a, b, c.main)
        if hits is None or len(hits[0]) != 1:
            continue
        (first,), (second,) = hits
        kappa = error_consistency(first, second, rng=stream(0, f"compare: kappa of {a.name} and {b.name}", 0))
        both = [100 * float(((first == x) & (second == y)).mean()) for x, y in ((1, 1), (1, 0), (0, 1), (0, 0))]
        shown = MISSING if kappa is None else Estimate(kappa.estimate, kappa.low, kappa.high, digits=2)
        cells.append([f"{a.name} and {b.name}", shown, *map(Estimate, both)])
    if not cells:
        return
    page.section(
        "Do they err on the same pictures?",
        "Error consistency (Geirhos et al. 2020) is Cohen's kappa of right and wrong: 1 where two models have the same "
        "pictures wrong, 0 where no more than their accuracies imply. Compare only pairs of similar accuracy.",
    )
    page.table(
        ["models", "kappa", "% both right", "% only the first", "% only the second", "% both wrong"],
        cells,
        f"{readable(c.main.metric)}; kappa with 95 % intervals over test pictures.",
    )
