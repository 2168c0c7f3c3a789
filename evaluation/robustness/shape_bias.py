"""Shape or texture: what a decider goes by where a picture has the shape of one thing and the texture of another.

Geirhos et al. (2019, "ImageNet-trained CNNs are biased towards texture; increasing shape bias improves accuracy and
robustness"). People answer with the shape in 96 of 100 cases in which they answer with either, networks that were
trained on labelled photographs mostly with the texture. The figures of people and of the authors' networks are in
`human_shape_bias.csv`, read by `reference_figures`.
"""

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
from scipy import stats

from headcam.evaluation.robustness.resampling import bootstrap_of_means
from headcam.statistics import Interval

CHANCE = 0.5  # of a decider that is blind to both cues: each is as likely as the other


@dataclass(frozen=True)
class ShapeBias:
    """What n decisions on pictures with conflicting cues were.

    Attributes:
        shape, texture, other: how many named the shape, the texture, neither (or nothing).
        bias: shape / (shape + texture) with its 95 % interval, fractions; its `n` is the number of pictures. None
            where no decision named either.
    """

    shape: int
    texture: int
    other: int
    bias: Interval | None


def shape_bias(
    decisions: np.ndarray, shapes: np.ndarray, textures: np.ndarray, *, rng: np.random.Generator
) -> ShapeBias:
    """Shape bias of decisions on pictures with conflicting cues.

    The interval is the percentile bootstrap over pictures of the ratio, numerator and denominator resampled together.
    Where all decisions between the two cues name the same one, each resample repeats that and would claim certainty;
    the exact binomial interval over those decisions is given instead.

    Args:
        decisions: (n,) int64, the category that was named, negative where none was.
        shapes, textures: (n,) int64, the categories of the picture's shape and texture.
        rng: where the resamples come from.
    Raises:
        ValueError: shapes of the arrays that differ, or a picture whose shape and texture agree.
    """
    if not (np.shape(decisions) == np.shape(shapes) == np.shape(textures)):
        raise ValueError(
            f"one decision, shape and texture a picture, got {np.shape(decisions)}, {np.shape(shapes)}, "
            f"{np.shape(textures)}"
        )
    same = np.flatnonzero(shapes == textures)
    if same.size:
        raise ValueError(f"picture {same[0]} has shape and texture {shapes[same[0]]}: leave such pictures out")
    hits = np.stack([decisions == shapes, decisions == textures], axis=1)
    shape, texture = (int(count) for count in hits.sum(axis=0))
    if shape + texture and not (shape and texture):
        exact = stats.binomtest(shape, shape + texture).proportion_ci(0.95, "exact")
        bias = Interval(float(shape > 0), float(exact.low), float(exact.high), len(hits))
    else:
        bias = bootstrap_of_means(hits, lambda means: means[:, 0] / means.sum(axis=1), rng=rng)
    return ShapeBias(shape, texture, len(hits) - shape - texture, bias)


@dataclass(frozen=True)
class ReferenceFigure:
    """A row of `human_shape_bias.csv`.

    Attributes:
        set: which pictures: "cue-conflict" (all 1,200), "cue-conflict-480", "edges" or "silhouettes".
        measure: "shape_bias", "shape_or_texture" (share of decisions that name either) or "top1"; of 16 categories.
        observer: "humans", or a network of the authors.
        value, sd: in percent; sd over observers, None for a network.
        observers: how many.
    """

    set: str
    measure: str
    observer: str
    value: float
    sd: float | None
    observers: int


@lru_cache
def reference_figures() -> tuple[ReferenceFigure, ...]:
    """What people and the networks of Geirhos et al. (2019) score, in the file's order."""
    text = files("headcam.evaluation.robustness").joinpath("human_shape_bias.csv").read_text("utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple(
        ReferenceFigure(
            row["set"],
            row["measure"],
            row["observer"],
            float(row["value"]),
            float(row["sd"]) if row["sd"] else None,
            int(row["observers"]),
        )
        for row in rows
    )
