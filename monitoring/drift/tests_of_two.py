"""Tests of two samples with fixed methods, corrected over columns, and the rule that makes an alarm of them. PURE.

Evidently's own tests change their method at 1,000 rows, leave missing values out, give one number only (p-value or
effect), and take rows for independent. Here every column has both numbers, always by the same method; a value that is
missing is a value; and rows of one user, or one item, count together as what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, fisher_exact, kstwo

F64 = npt.NDArray[np.float64]
Labels = npt.NDArray[np.object_]
Mask = npt.NDArray[np.bool_]

#: Categories with fewer rows than this in both samples together count as one.
RARE: Final = 10


#: How many independent rows the reference and the window are worth.
Sizes = tuple[float, float]


def effective_rows(cluster: Labels) -> float:
    """Return how many independent rows there are if those of a cluster are all alike (Kish 1965).

    A list of 300 users shows the same popular items to many of them: features of items are then seen far less than
    300 times. Where rows of a cluster differ, this is too few, and the test too careful.

    >>> effective_rows(np.array(["a", "b", "c", "d"], object)), effective_rows(np.array(["a", "a", "b", "b"], object))
    (4.0, 2.0)
    """
    if not len(cluster):
        return 0.0
    _, counts = np.unique(cluster.astype(str), return_counts=True)
    return float(counts.sum() ** 2 / (counts.astype(np.float64) ** 2).sum())


@dataclass(frozen=True, slots=True)
class Difference:
    """How two samples of one column differ.

    Attributes
    ----------
    effect
        0 (none) to 1: the share of rows that would have to have another value, by the method's reckoning.
    p_value
        Chance of such a difference between two samples of the same world.
    """

    effect: float
    p_value: float


def kolmogorov_smirnov(reference: F64, current: F64, sizes: Sizes | None = None) -> Difference:
    """Largest gap between two distribution functions (Kolmogorov 1933, Smirnov 1939); missing values lie below all.

    Ties, and so a share of missing values, make the p-value larger than it need be, never smaller.

    Parameters
    ----------
    reference, current
        NaN where missing, shapes (n,) and (m,).
    sizes
        Effective rows of both; None: all are independent.

    >>> kolmogorov_smirnov(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 4.0, 5.0, np.nan])).effect
    0.25
    """
    n, m = len(reference), len(current)
    if not n or not m:
        return Difference(0.0, 1.0)
    a, b = (np.sort(np.where(np.isnan(values), -np.inf, values)) for values in (reference, current))
    both = np.concatenate([a, b])
    gap = np.searchsorted(a, both, "right") / n - np.searchsorted(b, both, "right") / m
    effect = float(np.abs(gap).max())
    n_eff, m_eff = sizes or (n, m)
    both_eff = max(round(n_eff * m_eff / (n_eff + m_eff)), 1)
    return Difference(effect, float(np.clip(kstwo.sf(effect, both_eff), 0.0, 1.0)))


def chi_square(reference: Labels, current: Labels, sizes: Sizes | None = None) -> Difference:
    """Pearson's test of two columns of categories, rare ones together; the effect is the total variation distance.

    Of the distance, what two samples of the same world have on average is taken off: with many categories it is large.
    Rows that are not independent make the statistic smaller by as much (Rao and Scott 1981, first order).

    >>> tea, cups = np.array(["tea"] * 50, object), np.array(["cups"] * 50, object)
    >>> round(chi_square(tea, cups).effect, 2), chi_square(tea, tea).p_value
    (0.92, 1.0)
    """
    n, m = len(reference), len(current)
    if not n or not m:
        return Difference(0.0, 1.0)
    _, codes = np.unique(np.concatenate([reference, current]).astype(str), return_inverse=True)
    table = np.stack([np.bincount(part, minlength=codes.max() + 1) for part in (codes[:n], codes[n:])]).astype(float)
    rare = table.sum(0) < RARE
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(1)]) if rare.any() else table
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2:
        return Difference(0.0, 1.0)
    share = table.sum(0) / (n + m)
    expected = np.outer([n, m], share)
    n_eff, m_eff = sizes or (n, m)
    independent = n_eff * m_eff / (n_eff + m_eff) / (n * m / (n + m))
    statistic = float(((table - expected) ** 2 / expected).sum()) * independent
    distance = float(np.abs(table[0] / n - table[1] / m).sum()) / 2
    by_chance = float(np.sqrt(share * (1 - share) * (1 / n_eff + 1 / m_eff) * 2 / np.pi).sum()) / 2
    return Difference(max(distance - by_chance, 0.0), float(chi2.sf(statistic, table.shape[1] - 1)))


def two_shares(reference: F64, current: F64, sizes: Sizes | None = None) -> Difference:
    """Fisher's exact test of two columns of 0 and 1; the effect is the difference of their shares.

    >>> two_shares(np.repeat([0.0, 1.0], [90, 10]), np.repeat([0.0, 1.0], [60, 40])).effect
    0.3
    """
    n, m = len(reference), len(current)
    if not n or not m:
        return Difference(0.0, 1.0)
    hits = float(reference.sum()), float(current.sum())
    n_eff, m_eff = sizes or (n, m)
    table = np.array([[hits[0], n - hits[0]], [hits[1], m - hits[1]]]) * np.array([[n_eff / n], [m_eff / m]])
    return Difference(
        round(abs(hits[0] / n - hits[1] / m), 9), float(fisher_exact(np.rint(table).astype(np.int64)).pvalue)
    )


def benjamini_hochberg(p_values: Sequence[float]) -> F64:
    """Adjust p-values (Benjamini and Hochberg 1995): below q are as many that the share of false ones is at most q.

    With no drift in any column, a window has any find at all with chance q at most; so it has where columns are alike
    (Benjamini and Yekutieli 2001 say which dependence is harmless).

    >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.5]).round(4).tolist()
    [0.04, 0.0533, 0.0533, 0.5]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")[::-1]
    ranks = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.minimum.accumulate(p[order] * len(p) / ranks), 1.0)
    return adjusted


def persists(hits: Sequence[bool], needed: int, among: int) -> bool:
    """Whether the newest window is a hit, and at least `needed` of the newest `among` windows are.

    >>> [persists(hits, 2, 3) for hits in ([True], [True, False, True], [True, True, False])]
    [False, True, False]
    """
    return bool(hits) and hits[-1] and sum(hits[-among:]) >= needed
