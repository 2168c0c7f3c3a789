"""k-nearest-neighbour classification of frozen features: weighted votes, exact search.

Wu et al. (2018), "Unsupervised feature learning via non-parametric instance discrimination", section 3.4, with the
settings that DINO's evaluation made usual (Caron et al. 2021). The k training pictures nearest to a test picture in
cosine vote for their class with weight exp(similarity / temperature).

Where a protocol names several k or temperatures, they are compared on the pictures set aside, whose neighbours are
sought among the other training pictures, once, for the largest k; then all training pictures vote at the pair that was
right most often.

The search is exact: a block of queries against one block of the training set after the other. Most blocks hold nothing
nearer than what a query has found already; the largest similarity of each group of rows tells so without a look at the
rest. Memory is bounded by the blocks and the result, not by the training set.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import normalize

from headcam.errors import InputError
from headcam.evaluation.heads.linear import in_top
from headcam.evaluation.heads.normalisation import as_tensor
from headcam.evaluation.protocols import KNN

_BAND = 8192  # queries for which a block of the base is normalised once
_QUERIES = 512
_BASE = {"cpu": 2048, "cuda": 65_536}  # rows; on a CPU 512 x 2,048 similarities stay in the cache
_GROUP = 64  # rows of which the largest similarity is looked at first


@dataclass(frozen=True)
class KNNResult:
    """What the neighbours said.

    Attributes:
        scores: (m, num_classes) float32 votes for the test pictures, on the CPU, as multiples of the nearest
            neighbour's; 0 for a class without a neighbour.
        k, temperature: that the votes were taken with.
        selection_top1: (k, temperature) -> fraction right of the pictures set aside; empty where there was no choice.
    """

    scores: torch.Tensor
    k: int
    temperature: float
    selection_top1: dict[tuple[int, float], float] = field(default_factory=dict)


def knn_scores(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    protocol: KNN,
    *,
    selection: np.ndarray,
    device: str | torch.device = "cpu",
) -> KNNResult:
    """Votes for each class, of the neighbours of each test picture.

    Args:
        train: (n, D) features, may be memory-mapped; train_labels: (n,) int64.
        test: (m, D) features.
        selection: (n,) bool, True where a training picture is set aside for the choice of k and temperature.
    Raises:
        InputError: fewer training pictures than neighbours, or features that are not finite or all alike.
    """
    pairs = [(k, temperature) for k in protocol.k for temperature in protocol.temperature]
    everything, found = np.arange(len(train)), {}
    if len(pairs) > 1:
        voters, aside = np.flatnonzero(~selection), np.flatnonzero(selection)
        _check_count(len(voters), max(protocol.k), " less those set aside")
        neighbours = nearest(train, train, max(protocol.k), device, base_rows=voters, query_rows=aside)
        truth = torch.from_numpy(train_labels[aside])
        for k, temperature in pairs:
            votes = _votes(*neighbours, train_labels, num_classes, k, temperature)
            found[k, temperature] = in_top(votes, truth, 1).double().mean().item()
        pairs.sort(key=lambda pair: (-found[pair], pair))  # the smaller k where two are equal
    k, temperature = pairs[0]
    _check_count(len(train), k)
    neighbours = nearest(train, test, k, device, base_rows=everything)
    return KNNResult(_votes(*neighbours, train_labels, num_classes, k, temperature), k, temperature, found)


@torch.inference_mode()
def nearest(
    base: np.ndarray,
    queries: np.ndarray,
    k: int,
    device: str | torch.device = "cpu",
    *,
    base_rows: np.ndarray | None = None,
    query_rows: np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` rows of `base` nearest to each query in cosine similarity, nearest first.

    Args:
        base: (n, D) features, any float type, may be memory-mapped.
        queries: (m, D) features.
        k: 1 to the number of rows that are searched.
        base_rows: (b,) ascending rows of `base` to search, None: all; query_rows: rows of `queries` to ask for.
    Returns:
        similarities (m, k) float32 and rows of `base` (m, k) int64, on the CPU.
    Raises:
        InputError: features that are not finite, or a base whose rows are all alike.
    """
    base_rows = np.arange(len(base)) if base_rows is None else base_rows
    query_rows = np.arange(len(queries)) if query_rows is None else query_rows
    step = _BASE["cuda" if torch.device(device).type == "cuda" else "cpu"]
    similarities, rows, differ = [], [], False
    memory = torch.empty(min(_QUERIES, len(query_rows)) * step, device=device)
    for start in range(0, len(query_rows), _BAND):
        band = _unit(queries, query_rows[start : start + _BAND], device)
        best: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * -(-len(band) // _QUERIES)
        first = None
        for offset in range(0, len(base_rows), step):
            block = _unit(base, base_rows[offset : offset + step], device)
            first = block[:1] if first is None else first
            differ = differ or bool((block != first).any())
            for i, query in enumerate(band.split(_QUERIES)):
                similarity = memory[: len(query) * len(block)].view(len(query), len(block))
                best[i] = _merged(best[i], _products(query, block, similarity), offset, k)
        for values, places in best:
            values, order = values.sort(dim=1, descending=True)
            similarities.append(values.cpu())
            rows.append(torch.from_numpy(base_rows)[places.gather(1, order).cpu()])
    if not differ and len(base_rows) > 1:
        raise InputError(
            f"features do not differ between the {len(base_rows)} pictures: none is nearer than another",
            "check the encoder's weights and that the pictures differ",
        )
    return torch.cat(similarities), torch.cat(rows)


def _products(query: torch.Tensor, block: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """All inner products, (q, b), in memory that is used again: fresh pages cost a fifth more."""
    if out.device.type != "cpu":
        return torch.mm(query, block.T, out=out)
    # NumPy's BLAS: of products as small as these it makes a tenth more than torch's on an AMD processor.
    np.matmul(query.numpy(), block.numpy().T, out=out.numpy())
    return out


def _merged(
    best: tuple[torch.Tensor, torch.Tensor] | None, similarity: torch.Tensor, offset: int, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest so far, (q, k) in no order, and their places, with those of another block (q, b) of the base."""
    count, width = similarity.shape
    if best is None or best[0].shape[1] < k or width % _GROUP:  # the first block, or a last one of another size
        values, places = similarity.topk(min(k, width), dim=1)
        return _best_of(best, values, places + offset, k)
    least = best[0].amin(dim=1)
    groups = similarity.view(-1, _GROUP)
    hit = (groups.amax(dim=1).view(count, -1) > least[:, None]).view(-1).nonzero().squeeze(1)
    if len(hit) == 0:
        return best
    candidates, row = groups.index_select(0, hit), hit // (width // _GROUP)
    nearer = candidates > least[row, None]
    found, inside = nearer.nonzero(as_tuple=True)  # in the order of the queries
    row, column = row[found], hit[found] % (width // _GROUP) * _GROUP + inside
    # Each query has found another number: give each of its finds a column of a table, the rest of which is empty.
    number = torch.bincount(row, minlength=count)
    slot = torch.arange(len(row), device=row.device) - (number.cumsum(0) - number)[row]
    values = similarity.new_full((count, int(number.max())), -torch.inf)
    places = torch.zeros(values.shape, dtype=torch.int64, device=row.device)
    values[row, slot] = candidates[nearer]
    places[row, slot] = column + offset
    return _best_of(best, values, places, k)


def _best_of(
    best: tuple[torch.Tensor, torch.Tensor] | None, values: torch.Tensor, places: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest, or all where there are fewer, of what was found before and now."""
    if best is not None:
        values, places = torch.cat([best[0], values], dim=1), torch.cat([best[1], places], dim=1)
    values, kept = values.topk(min(k, values.shape[1]), dim=1)
    return values, places.gather(1, kept)


def _votes(
    similarity: torch.Tensor, rows: torch.Tensor, labels: np.ndarray, num_classes: int, k: int, temperature: float
) -> torch.Tensor:
    """Votes (m, num_classes) of the first k neighbours; that of the nearest is 1, so that none overflows."""
    votes = torch.zeros(len(rows), num_classes)
    weights = ((similarity[:, :k] - similarity[:, :1]) / temperature).exp()
    return votes.scatter_add_(1, torch.from_numpy(labels)[rows[:, :k]], weights)


def _unit(features: np.ndarray, rows: np.ndarray, device: str | torch.device) -> torch.Tensor:
    """Rows of a table, float32, of length 1."""
    contiguous = len(rows) == rows[-1] - rows[0] + 1
    x = as_tensor(features[rows[0] : rows[-1] + 1] if contiguous else features[rows], torch.float32, device)
    if not torch.isfinite(x.sum()):
        raise InputError(
            f"features of pictures {rows[0]} to {rows[-1]} are not all finite (NaN or infinity)",
            "check the weights for NaN, and remove the cached features",
        )
    return normalize(x, dim=1)


def _check_count(n: int, k: int, which: str = "") -> None:
    if n < k:
        raise InputError(
            f"the training set{which} has {n} pictures, and the vote is of {k} neighbours",
            f"give at least {k} training pictures",
        )
