"""How strong the memory is, beyond the share of right answers: traces against their spread, AUC, d', bits.

An accuracy near 100 % says no more than "enough". The margin of a pair (score of the foil minus score of the studied
picture) has a mean and a spread; their ratio keeps growing where the accuracy is full. The area under the ROC curve
asks a harder question than a pair does: whether one criterion for all pictures tells studied from unstudied ones, as a
person does who answers old or new. And bits say how much of the picture's own code study has saved.

`memory_figures` takes the raw rule apart where study sets are role-swapped. With D_s = loss_unseen - loss_seen of a
pair in set s, m = (D_1 + D_2) / 2 is what study did to the pair's pictures, and c = (D_1 - D_2) / 2 is by how much they
differ in complexity. The raw rule is right in set 1 where m + c > 0 and in set 2 where m - c > 0, so it shows memory
only where m is not small against the spread of c.
"""

import numpy as np
from scipy import special, stats

from headcam.recognition_memory.scoring.rules import decisions, margins
from headcam.recognition_memory.scoring.table import POOLED, Group


def robust_sd(values: np.ndarray) -> np.ndarray:
    """Over the last axis: the standard deviation of a normal distribution with the median absolute deviation of
    `values`, to which a few outliers do not matter."""
    deviations = np.abs(values - np.median(values, axis=-1, keepdims=True))
    return np.median(deviations, axis=-1) / stats.norm.ppf(0.75)


def spread_left(group: Group) -> float:
    """How much of the pictures' spread in loss `calibrated` leaves: SD of L(e) - L(0) over SD of L(e), unstudied ones.

    At the first exposure e, within conditions and runs. Near 0 where the losses before study already know which
    pictures are complex, as a pretrained model's do; near 1 where they know nothing, as those of random weights: the
    difference then still is the picture's complexity. NaN where there is no exposure 0, or all scores before study are
    equal (stores, changes of an embedding), which hides nothing.
    """
    later = [e for e, exposure in enumerate(group.exposures) if exposure > 0]
    if group.exposures[0] != 0 or not later:
        return float("nan")
    before, after = (
        np.concatenate([group.losses[c][:, :, e, :, 1][group.runs].ravel() for c in group.conditions])
        for e in (0, later[0])
    )
    if before.std() == 0 or after.std() == 0:
        return float("nan")
    pairs = [group.losses[c].shape[3] for c in group.conditions for _ in range(int(group.runs.sum()))]
    ends = np.cumsum(pairs)[:-1]
    parts = zip(np.split(after - before, ends), np.split(after, ends))
    left, whole = zip(*((difference.var(), losses.var()) for difference, losses in parts))
    return float(np.sqrt(np.mean(left) / np.mean(whole)))


def d_prime(share: np.ndarray | float, trials: int) -> np.ndarray:
    """d' = sqrt(2) z(share), for a share right in two-alternative choices, or an AUC (equal-variance normal scores).

    Shares of 0 and 1, at which z is infinite, become 1 / (2 trials) and 1 - 1 / (2 trials) (Macmillan and Creelman
    2005, "Detection theory", chapter 1): d' is then a lower bound that the number of trials sets.
    """
    return np.sqrt(2) * stats.norm.ppf(np.clip(share, 1 / (2 * trials), 1 - 1 / (2 * trials)))


def bits_2afc(share: np.ndarray) -> np.ndarray:
    """Bits that a two-alternative decision right in `share` of the cases carries about which picture was studied.

    1 - H2(share), the capacity of a binary symmetric channel; 0 at chance and below, where nothing useful is known.
    """
    share = np.clip(share, 0.5, 1)
    return 1 - stats.entropy(np.stack([share, 1 - share]), base=2, axis=0)


def auc_components(scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of absolute judgements (studied or not, one criterion for all pictures), pair by pair.

    AUC is the share of all (studied, unstudied) comparisons, of any two pairs, in which the studied picture has the
    lower score, ties counting 1/2. A pair enters it with its studied and with its unstudied picture; its component is
    V10 + V01 - AUC, the structural components of DeLong et al. 1988 (Biometrics 44). Components average to the AUC, and
    a mean over resampled pairs is the AUC of the resample up to terms of order 1 / pairs, so the crossed bootstrap
    applies to them as it does to decisions.

    Args:
        scores: (..., pairs, 2), lower is more familiar; [..., 0] of the studied picture.
    Returns:
        (..., pairs) float64.
    """
    seen, unseen = scores[..., 0], scores[..., 1]
    pairs = scores.shape[-2]
    # A picture's midrank among all, less that among its own kind, counts those of the other kind below it.
    ranks = stats.rankdata(np.concatenate([seen, unseen], axis=-1), axis=-1)
    above = pairs - (ranks[..., :pairs] - stats.rankdata(seen, axis=-1))  # unstudied pictures above each studied one
    below = ranks[..., pairs:] - stats.rankdata(unseen, axis=-1)
    return (above + below - above.mean(axis=-1, keepdims=True)) / pairs


def margin_figures(values: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, spread and their ratio of margins, by exposure.

    Args:
        values: (sets, seeds, exposures, pairs), NaN where there is no run.
    Returns:
        `mean`, `sd` (divisor n, over pairs and runs), `robust_sd`, `mean_over_sd` (NaN where there is no spread), each
        (exposures,).
    """
    flat = np.moveaxis(values, 2, 0).reshape(values.shape[2], -1)
    flat = flat[:, ~np.isnan(flat[0])]
    mean, sd = flat.mean(axis=1), flat.std(axis=1)
    return {
        "mean": mean,
        "sd": sd,
        "robust_sd": robust_sd(flat),
        "mean_over_sd": _ratio(mean, sd),
    }


def memory_figures(group: Group) -> list[dict[str, float | int | str]]:
    """Memory m against complexity c by condition (`pooled` too) and exposure, of a group of role-swapped study sets.

    Seeds that were run in both sets enter, separately. In the unit of the losses:
        mean_m, sd_m, robust_sd_m, mean_over_sd_m: of m over pairs and seeds (divisor n).
        sd_c, m_over_sd_c: spread of the complexity difference, and mean of m in units of it.
        predicted_raw: accuracy of the raw rule if m and c were normal and independent and c had mean 0,
            Phi(mean m / sqrt(var m + var c)); pooled: mean over conditions, weighted by pairs.
        opposite: share of pairs in which the raw rule prefers the same picture in both sets, whichever was studied.
        seeds_agree: share of equal raw decisions of two seeds of a set, over all pairs of seeds; NaN with one seed.
    """
    both = group.runs.all(axis=0)
    if not both.any():
        return []
    raw = {c: decisions(margins("raw", group, c)) for c in group.conditions}
    differences = {c: (losses[..., 1] - losses[..., 0])[:, both] for c, losses in group.losses.items()}
    m = {c: (first + second) / 2 for c, (first, second) in differences.items()}  # (seeds, exposures, pairs)
    c = {condition: (first - second) / 2 for condition, (first, second) in differences.items()}
    rows = []
    for condition in (*group.conditions, POOLED):
        parts = group.conditions if condition == POOLED else (condition,)
        weights = [group.pairs[part].size for part in parts]
        for e, exposure in enumerate(group.exposures):
            traces = np.concatenate([m[part][:, e].ravel() for part in parts])
            complexities = np.concatenate([c[part][:, e].ravel() for part in parts])
            mean, sd_m, sd_c = traces.mean(), traces.std(), complexities.std()
            predicted = [_predicted_raw(m[part][:, e], c[part][:, e]) for part in parts]
            opposite = [np.abs(np.diff(raw[part][:, both][:, :, e], axis=0)).mean() for part in parts]
            agree = [_agreement(raw[part][:, :, e]) for part in parts]
            rows.append(
                {
                    "condition": condition,
                    "exposures": exposure,
                    "mean_m": mean,
                    "sd_m": sd_m,
                    "robust_sd_m": robust_sd(traces),
                    "mean_over_sd_m": float(_ratio(mean, sd_m)),
                    "sd_c": sd_c,
                    "m_over_sd_c": float(_ratio(mean, sd_c)),
                    "predicted_raw": np.average(predicted, weights=weights),
                    "opposite": np.average(opposite, weights=weights),
                    "seeds_agree": np.average(agree, weights=weights),
                }
            )
    return rows


def _predicted_raw(m: np.ndarray, c: np.ndarray) -> float:
    spread = np.hypot(m.std(), c.std())
    return float(special.ndtr(m.mean() / spread)) if spread else 0.5 + 0.5 * float(np.sign(m.mean()))


def _agreement(raw: np.ndarray) -> float:
    """Share of equal decisions between two seeds of a set; `raw` is (sets, seeds, pairs) with NaN for absent runs."""
    equal = [
        raw[s, i] == raw[s, j]
        for s in range(raw.shape[0])
        for i in range(raw.shape[1])
        for j in range(i)
        if not np.isnan(raw[s, [i, j], 0]).any()
    ]
    return float(np.mean(equal)) if equal else np.nan


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    top, bottom = np.broadcast_arrays(np.asarray(top, float), np.asarray(bottom, float))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
