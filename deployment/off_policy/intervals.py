"""Intervals of ratios of means where rounds come in clusters: the bootstrap over users. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from deployment.off_policy.estimators import F64, I64, Terms

RESAMPLES: Final = 1000
#: Cells of counts that are drawn at once: 80 MB.
_CELLS: Final = 10_000_000


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
) -> npt.NDArray[np.float64]:
    """Return percentile intervals of several estimators from the same resamples, shape (len(terms), 2)."""
    columns = [column for one in terms for column in (one.above, one.below)]
    sums = resampled(by_unit(unit, columns), seed, resamples)
    below = sums[:, 1::2]
    ratios = np.divide(sums[:, 0::2], below, out=np.full(below.shape, np.nan), where=below > 0)
    tail = (1.0 - level) / 2.0
    return np.asarray(np.nanquantile(ratios, [tail, 1.0 - tail], axis=0).T)
