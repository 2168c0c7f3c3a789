"""Probes of frozen features: the linear probe beside scikit-learn's, the nearest neighbours beside faiss's.

Generated features: 100 Gaussian classes, 50,000 x 384 float32 to learn from and 10,000 to test, the scale of directions
falling as rank^-0.5, and all of them mixed. The best classifier there can be is right on 71 % of the test rows.

`linear`: from features to test scores, everything that either side chooses included. Ours is the shipped protocol
`linear-whitened`: whiten, search over its learning rates on four fifths, fit on all. The peer is what a user runs:
standardise, LogisticRegression (lbfgs, 300 iterations at most) for each C of 0.01, 0.1 and 1 on the same four fifths,
fit on all at the C that is best on the rest. Ours has to be right on the test rows at least as often: what is compared
is the time to the peer's accuracy.

Beside it, without a bar: `linear_one_fit`, where the peer knows its C and only its last fit is timed, and all of ours;
`linear_white`, where the peer also whitens the features, by our code, and searches as before.

`knn`: the 20 nearest of 50,000 rows for 2,000 queries by cosine, beside faiss's IndexFlatIP, which is exact too;
lengths and, for faiss, the index are part of the work. Both have to find the same rows, or others just as near.

Each side of the three linear ratios runs once by default, ours before and after the peer; three times with `--full`.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from harness import Bench, Fidelity, Measured, NotApplicable, Result, main

from headcam.evaluation.heads.knn import nearest
from headcam.evaluation.heads.linear import in_top, linear_probe
from headcam.evaluation.heads.normalisation import Moments, Normalisation
from headcam.evaluation.labelled.sets import selection_mask
from headcam.evaluation.protocols import read_protocol
from headcam.randomness import stream

_CLASSES, _DIM, _TRAIN, _TEST = 100, 384, 50_000, 10_000
_APART = 0.158  # standard deviation of the class means, that of the rows around them being 1
_CS = (0.01, 0.1, 1.0)
_QUERIES, _K = 2000, 20
_ROUNDING = 2e-6  # of a sum of 384 products in float32
_PROTOCOL = Path(__file__).parents[1] / "configs" / "protocols" / "linear-whitened.yaml"
Found = TypeVar("Found")


@lru_cache
def generated(part: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, 384) float32 in the order of their classes, and labels (rows,) int64."""
    shape = stream(0, "benchmark probe", 0)
    means = _APART * shape.standard_normal((_CLASSES, _DIM))
    mixing = np.linalg.qr(shape.standard_normal((_DIM, _DIM)))[0]
    labels = np.sort(np.arange(rows) % _CLASSES)
    around = stream(0, f"benchmark probe, {part}", 0).standard_normal((rows, _DIM), dtype=np.float32)
    scaled = (means[labels] + around) * np.arange(1, _DIM + 1) ** -0.5
    return (scaled @ mixing).astype(np.float32), labels


@dataclass(frozen=True)
class Clocks:
    """Seconds that something took, by both clocks."""

    cpu: float
    wall: float

    def __add__(self, other: "Clocks") -> "Clocks":
        return Clocks(self.cpu + other.cpu, self.wall + other.wall)


def timed(work: Callable[[], Found]) -> tuple[Found, Clocks]:
    """What `work` returns, and how long it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    return found, Clocks(time.process_time() - cpu, time.perf_counter() - wall)


def ours() -> tuple[float, Clocks]:
    """Test accuracy of the shipped protocol."""
    (train, labels), (test, truth) = generated("train", _TRAIN), generated("test", _TEST)
    protocol, aside = read_protocol(_PROTOCOL), selection_mask(labels)
    found, clocks = timed(
        lambda: linear_probe(train, labels, aside, test, _CLASSES, protocol, seed=0, quiet=True).logits
    )
    return float(in_top(found, torch.from_numpy(truth), 1).double().mean()), clocks


def peer(whitened: bool, threads: int) -> tuple[float, Clocks, Clocks]:
    """Test accuracy of scikit-learn's best; time of all, and of standardising and the last fit."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    (train, labels), (test, truth) = generated("train", _TRAIN), generated("test", _TEST)
    aside = selection_mask(labels)

    def scaled() -> tuple[np.ndarray, np.ndarray]:
        if not whitened:
            scaler = StandardScaler().fit(train)
            return scaler.transform(train), scaler.transform(test)
        moments = Moments.of(train, np.arange(len(train)), products=True)
        norm = Normalisation.of(moments, read_protocol(_PROTOCOL))
        return norm(train)[:, :-1].numpy(), norm(test)[:, :-1].numpy()

    def fit(C: float, rows: np.ndarray) -> "LogisticRegression":
        return LogisticRegression(C=C, max_iter=300).fit(x[rows], labels[rows])

    def search() -> float:
        return max(_CS, key=lambda C: fit(C, ~aside).score(x[aside], labels[aside]))

    with threadpool_limits(threads):
        (x, x_test), scaling = timed(scaled)
        best, searching = timed(search)
        model, fitting = timed(lambda: fit(best, np.ones(len(x), dtype=bool)))
        return float(model.score(x_test, truth)), scaling + searching + fitting, scaling + fitting


@lru_cache
def rounds(whitened: bool, threads: int) -> list[tuple[Clocks, Clocks, Clocks, float]]:
    """(ours, peer, the peer's last fit, our accuracy less the peer's) of each round."""
    found, (_, before) = [], ours()
    for _ in range(3 if "--full" in sys.argv else 1):
        theirs, everything, one_fit = peer(whitened, threads)
        mine, after = ours()
        mean = Clocks((before.cpu + after.cpu) / 2, (before.wall + after.wall) / 2)
        found.append((mean, everything, one_fit, mine - theirs))
        before = after
    return found


def linear(bench: Bench, *, bar: float, whitened: bool = False, one_fit: bool = False) -> Result:
    """A ratio of the linear probe; see above."""
    try:
        found = rounds(whitened, bench.threads)
    except ImportError as missing:
        return NotApplicable(bar, f"needs {missing.name}: pip install -e '.[bench]'")
    pairs = [(mine, last if one_fit else everything) for mine, everything, last, _ in found]
    ratios = {clock: [getattr(b, clock) / getattr(a, clock) for a, b in pairs] for clock in ("cpu", "wall")}
    return Measured(
        bar=bar,
        clock=bench.clock,
        ours=statistics.median(getattr(mine, bench.clock) for mine, _ in pairs),
        peer=statistics.median(getattr(theirs, bench.clock) for _, theirs in pairs),
        ratios=ratios[bench.clock],
        other=ratios["wall" if bench.clock == "cpu" else "cpu"],
        unit="probe",
        fidelity={"test accuracy above the peer's": Fidelity(100 * min(row[3] for row in found), "points", least=0)},
    )


def knn(bench: Bench) -> Result:
    """Exact search beside faiss's."""
    try:
        import faiss
        from threadpoolctl import threadpool_limits
    except ImportError as missing:
        return NotApplicable(0.9, f"needs {missing.name}: pip install -e '.[bench]'")
    threadpool_limits(bench.threads)  # NumPy's and faiss's BLAS; for the rest of the process
    faiss.omp_set_num_threads(bench.threads)
    base, queries = generated("train", _TRAIN)[0], generated("test", _QUERIES)[0]

    def peer() -> tuple[np.ndarray, np.ndarray]:
        rows, asked = base.copy(), queries.copy()
        faiss.normalize_L2(rows)
        faiss.normalize_L2(asked)
        index = faiss.IndexFlatIP(_DIM)
        index.add(rows)
        return index.search(asked, _K)

    similarity, rows = (tensor.numpy() for tensor in nearest(base, queries, _K))
    theirs, their_rows = peer()
    apart = np.abs(similarity - theirs)
    return bench.compare(
        lambda: nearest(base, queries, _K),
        peer,
        bar=0.9,
        items=_QUERIES,
        unit="query",
        fidelity={
            "share of equal rows, or equally near": Fidelity(
                float(((rows == their_rows) | (apart < _ROUNDING)).mean()), "", least=1
            ),
            "difference of similarities": Fidelity(float(apart.max()), "", most=_ROUNDING),
        },
    )


if __name__ == "__main__":
    main(
        "probe",
        {
            "knn": knn,
            "linear": lambda bench: linear(bench, bar=5.0),
            "linear_one_fit": lambda bench: linear(bench, bar=0.0, one_fit=True),
            "linear_white": lambda bench: linear(bench, bar=0.0, whitened=True),
        },
        threads=1,
        packages=("scikit-learn", "faiss-cpu"),
    )
