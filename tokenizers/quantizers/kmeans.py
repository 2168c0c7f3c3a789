"""k-means: where a codebook or a palette starts from.

Lloyd's iterations (1982, "Least squares quantization in PCM") from a random or a k-means++ start (Arthur and
Vassilvitskii 2007, "k-means++: the advantages of careful seeding"). Every random choice comes from a keyed stream, so
the same points give the same centres whenever and in whichever process they are computed. A cluster that runs empty
moves to the point that is worst represented, so no centre is lost on the way.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.tokenizers.quantizers.nearest import nearest_code


class Clusters(NamedTuple):
    """What k-means found.

    Attributes:
        centres: (k, D) float32.
        counts: (k,) int64, points of each; their sum is the number of points.
    """

    centres: Tensor
    counts: Tensor


@torch.no_grad()
def kmeans(
    points: Tensor,
    k: int,
    *,
    seed: int = 0,
    start: Literal["k-means++", "random"] = "k-means++",
    iterations: int = 10,
) -> Clusters:
    """Centres of `points`.

    Args:
        points: (M, D) of any float type; computed in float32.
        k: number of centres, at most M.
        seed: of the start.
        start: `k-means++` takes k passes over the points and finds rare ones; `random` takes points as they come,
            which is as good for a codebook that goes on learning, and much faster for a large k.
        iterations: of Lloyd's, fewer where no point changes its cluster any more.
    Raises:
        InputError: fewer points than centres.
    """
    points = points.float()
    if not 1 <= k <= len(points):
        raise InputError(
            f"k-means of {len(points)} points cannot have {k} centres", "give more points or fewer centres"
        )
    if start == "k-means++":
        centres = _spread(points, k, seed)
    else:
        chosen = stream(seed, "k-means start", 0).permutation(len(points))[:k]
        centres = points[torch.from_numpy(chosen).to(points.device)]

    nearest = nearest_code(points, centres)
    for _ in range(iterations):
        counts = torch.bincount(nearest, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        means = sums / counts.clamp(min=1)[:, None]
        errors = (points - centres[nearest]).square().sum(1)
        worst = errors.topk(k).indices  # enough for any number of empty clusters
        empty = counts == 0
        centres = torch.where(empty[:, None], points[worst[(empty.cumsum(0) - 1).clamp(min=0)]], means)
        before, nearest = nearest, nearest_code(points, centres)
        if torch.equal(before, nearest):
            break
    return Clusters(centres, torch.bincount(nearest, minlength=k))


def _spread(points: Tensor, k: int, seed: int) -> Tensor:
    """k-means++: each further centre is drawn in proportion to the squared distance to the nearest one so far."""
    numbers = torch.from_numpy(stream(seed, "k-means++", 0).random(k)).to(points.device)  # float64
    centres = points.new_empty(k, points.shape[1])
    centres[0] = points[(numbers[0] * len(points)).long()]
    distances = (points - centres[0]).square().sum(1)
    for i in range(1, k):
        sums = distances.double().cumsum(0)
        at = torch.searchsorted(sums, numbers[i : i + 1] * sums[-1], right=True).clamp(max=len(points) - 1)
        centres[i] = points[at[0]]
        distances = torch.minimum(distances, (points - centres[i]).square().sum(1))
    return centres
