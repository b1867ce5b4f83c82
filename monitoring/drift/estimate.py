"""What quality can be expected without labels, from the model's own calibrated probabilities. PURE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected precision of the first places, with a 95 % interval over requests."""

    precision: float
    low: float
    high: float
    requests: int


def expected_precision(scores: list[F64], *, seed: int = 0, draws: int = 400) -> Estimate:
    """Mean probability of the items in the first places: the precision to expect if the model is calibrated.

    This is confidence-based performance estimation (NannyML's CBPE) for lists. It assumes that an item with
    probability p is still taken with probability p. Of other users, items and features (covariate shift) and of a
    changed taste (concept shift) it sees the sign, and seldom the size (`larder bench quality_estimate`).

    Parameters
    ----------
    scores
        Calibrated probabilities of the first places of each request.

    >>> expected_precision([np.array([0.5, 0.1]), np.array([0.2, 0.2])]).precision
    0.25
    """
    if not scores:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    per_request = np.array([float(one.mean()) for one in scores])
    rng = np.random.default_rng(seed)
    means = per_request[rng.integers(0, len(per_request), (draws, len(per_request)))].mean(1)
    low, high = (float(q) for q in np.quantile(means, [0.025, 0.975]))
    return Estimate(float(per_request.mean()), low, high, len(per_request))


def expected_auc(probability: F64) -> float:
    """Return the AUC to expect of ranking by calibrated probabilities: how often a taken row is above an untaken one.

    NaN where all is certain to be taken, or nothing.

    >>> round(expected_auc(np.array([0.9, 0.1])), 4)
    0.9878
    """
    p = np.sort(probability)
    taken, left = p.sum(), (1 - p).sum()
    if taken <= 0 or left <= 0:
        return float("nan")
    values, first, counts = np.unique(p, return_index=True, return_counts=True)
    below = np.concatenate([[0.0], np.cumsum(1 - p)])[first]
    ties = counts * (1 - values)
    # Pairs of a row with itself are not pairs.
    wins = (counts * values * (below + ties / 2)).sum() - (p * (1 - p)).sum() / 2
    return float(wins / (taken * left - (p * (1 - p)).sum()))
