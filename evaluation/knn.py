"""k-nearest-neighbour classification of frozen features: weighted votes, exact search, nothing to tune.

Wu et al. (2018), "Unsupervised feature learning via non-parametric instance discrimination", section 3.4, with the
settings that DINO's evaluation made usual (Caron et al. 2021). The k training pictures nearest to a test picture in
cosine vote for their class with weight exp(similarity / temperature).

The search is exact: blocks of queries against blocks of the training set, one matrix product each, and the k best so
far are merged. Memory is bounded by the blocks, not by the training set.
"""

import numpy as np
import torch
from torch.nn.functional import normalize

from headcam.errors import InputError
from headcam.evaluation.protocols import KNN

_QUERIES = 512
_BASE = 65_536  # rows; 512 x 65,536 float32 similarities are 128 MiB


@torch.inference_mode()
def nearest(
    base: np.ndarray, queries: np.ndarray, k: int, device: str | torch.device = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` rows of `base` nearest to each query in cosine similarity, nearest first.

    Args:
        base: (n, D) features, any float type, may be memory-mapped.
        queries: (m, D) features.
        k: 1 to n.
    Returns:
        similarities (m, k) float32 and rows of `base` (m, k) int64, on `device`.
    """
    similarities, rows = [], []
    for start in range(0, len(queries), _QUERIES):
        query = _unit(queries[start : start + _QUERIES], device)  # (q, D)
        best = torch.empty(len(query), 0, device=device)
        best_rows = torch.empty(len(query), 0, dtype=torch.int64, device=device)
        for first in range(0, len(base), _BASE):
            similarity = query @ _unit(base[first : first + _BASE], device).T  # (q, b)
            top, index = similarity.topk(min(k, similarity.shape[1]), dim=1)
            best, merged = torch.cat([best, top], dim=1).topk(min(k, best.shape[1] + top.shape[1]), dim=1)
            best_rows = torch.cat([best_rows, index + first], dim=1).gather(1, merged)
        similarities.append(best)
        rows.append(best_rows)
    return torch.cat(similarities), torch.cat(rows)


@torch.inference_mode()
def knn_votes(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    protocol: KNN,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Votes for each class, of the neighbours of each test picture.

    Args:
        train: (n, D) features; train_labels: (n,) class numbers.
        test: (m, D) features.
    Returns:
        (m, num_classes) float32 on the CPU; 0 for a class without a neighbour.
    Raises:
        InputError: fewer training pictures than neighbours.
    """
    if len(train) < protocol.k:
        raise InputError(
            f"the training set has {len(train)} pictures, and the vote is of {protocol.k} neighbours",
            f"give at least {protocol.k} training pictures",
        )
    similarity, rows = nearest(train, test, protocol.k, device)
    labels = torch.as_tensor(np.asarray(train_labels), device=device)[rows]  # (m, k)
    votes = torch.zeros(len(test), num_classes, device=device)
    return votes.scatter_add_(1, labels, (similarity / protocol.temperature).exp()).cpu()


def _unit(features: np.ndarray, device: str | torch.device) -> torch.Tensor:
    return normalize(torch.from_numpy(np.asarray(features, dtype=np.float32)).to(device), dim=1)
