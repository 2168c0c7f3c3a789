"""Error consistency: whether two deciders are right and wrong on the same pictures, beyond what their accuracies imply.

Two observers that are each right on 90 % of the pictures agree on at least 80 % of them whatever they do. Geirhos,
Meding and Wichmann (2020, "Beyond accuracy: quantifying trial-by-trial behaviour of CNNs and humans by measuring error
consistency", equations 1 and 3) therefore measure Cohen's kappa of right and wrong.
"""

import numpy as np

from headcam.evaluation.robustness.resampling import bootstrap_of_means
from headcam.statistics import Interval


def error_consistency(hits_a: np.ndarray, hits_b: np.ndarray, *, rng: np.random.Generator) -> Interval | None:
    """Cohen's kappa of right and wrong of two deciders on the same pictures, with its 95 % interval over pictures.

    kappa = (observed - expected) / (1 - expected), observed: the share of pictures on which both are right or both are
    wrong, expected: p_a p_b + (1 - p_a)(1 - p_b), that share for independent deciders of the same accuracies.
    1: the same pictures are wrong; 0: no more overlap than by chance; below 0: less. Its lowest and highest possible
    values depend on the two accuracies, so compare kappas of pairs of similar accuracy only.

    Args:
        hits_a, hits_b: (n,) bool, whether each decider is right; entry i of both is about picture i.
        rng: where the resamples come from.
    Returns:
        kappa; None where both are always right, or both always wrong, and nothing is known of their errors. Two
        deciders that agree everywhere have an interval without width.
    Raises:
        ValueError: shapes that differ, or no pictures.

    >>> error_consistency(np.arange(100) < 50, np.arange(100) % 2 == 0, rng=np.random.default_rng(0)).estimate
    0.0
    """
    hits_a, hits_b = np.asarray(hits_a, dtype=bool), np.asarray(hits_b, dtype=bool)
    if hits_a.shape != hits_b.shape or hits_a.ndim != 1 or hits_a.size == 0:
        raise ValueError(
            f"hits must be about the same pictures, one or more; got shapes {hits_a.shape} and {hits_b.shape}"
        )
    return bootstrap_of_means(np.stack([hits_a, hits_b, hits_a == hits_b], axis=1), _kappa, rng=rng)


def _kappa(means: np.ndarray) -> np.ndarray:
    """(r, 3): accuracy of a, accuracy of b, observed agreement; to (r,)."""
    a, b, observed = means.T
    expected = a * b + (1 - a) * (1 - b)
    return (observed - expected) / (1 - expected)
