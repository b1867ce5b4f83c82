"""Intervals of ratios of means where rounds come in clusters: the bootstrap over users. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

import numpy as np

from deployment.off_policy.estimators import F64, I64, Terms

RESAMPLES: Final = 1000
#: Cells of counts that are drawn at once: 80 MB.
_CELLS: Final = 10_000_000
_NORMAL: Final = NormalDist()


def by_unit(unit: I64, columns: Sequence[F64]) -> F64:
    """Sum columns within units, shape (units, columns)."""
    _, place = np.unique(unit, return_inverse=True)
    return np.column_stack([np.bincount(place, weights=one) for one in columns])


def resampled(sums: F64, seed: int, resamples: int = RESAMPLES) -> F64:
    """Resample units with Poisson(1) counts (Hanley and MacGibbon 2006) and sum the columns.

    Parameters
    ----------
    sums
        Of each unit, shape (units, columns).

    Returns
    -------
    ndarray
        Shape (resamples, columns).
    """
    rng = np.random.default_rng(seed)
    # Units with the same sums are drawn together: where rewards are clicks and policies few, most are the same.
    different, count = np.unique(sums, axis=0, return_counts=True)
    rows = max(_CELLS // max(len(different), 1), 1)
    parts = [
        rng.poisson(count, (min(rows, resamples - start), len(count))) @ different
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


def intervals(
    terms: Sequence[Terms], unit: I64, *, seed: int = 0, level: float = 0.95, resamples: int = RESAMPLES
) -> F64:
    """Return intervals of several estimators from the same resamples, shape (len(terms), 2).

    Bias-corrected and accelerated (BCa; Efron 1987): clicks are rare and weights skewed, so the truth lies above a
    plain percentile interval more often than below.
    """
    sums = by_unit(unit, [column for one in terms for column in (one.above, one.below)])
    drawn = resampled(sums, seed, resamples)
    out = np.empty((len(terms), 2))
    for i in range(len(terms)):
        above, below = sums[:, 2 * i], sums[:, 2 * i + 1]
        enough = drawn[:, 2 * i + 1] > 0
        ratios = drawn[enough, 2 * i] / drawn[enough, 2 * i + 1]
        if not len(ratios) or not below.sum() > 0:
            out[i] = np.nan
            continue
        value = above.sum() / below.sum()
        influence = above - value * below
        spread = float((influence**2).sum()) ** 1.5
        acceleration = float((influence**3).sum()) / (6.0 * spread) if spread > 0 else 0.0
        out[i] = np.quantile(ratios, _levels(ratios, value, acceleration, (1.0 - level) / 2.0))
    return out


def _levels(ratios: F64, value: float, acceleration: float, tail: float) -> tuple[float, float]:
    """Return the quantiles of the resamples that bound a BCa interval."""
    share = float((ratios < value).mean() + (ratios <= value).mean()) / 2.0
    bias = _NORMAL.inv_cdf(min(max(share, 0.5 / len(ratios)), 1.0 - 0.5 / len(ratios)))
    low, high = (bias + _NORMAL.inv_cdf(at) for at in (tail, 1.0 - tail))
    first, last = (_NORMAL.cdf(bias + z / max(1.0 - acceleration * z, 0.1)) for z in (low, high))
    return first, last
