"""The metrics of `metrics.py` for many users at once: lists are rows of a matrix of item numbers. PURE.

Metrics of users (nDCG, recall, ...) are one value per user, and get their intervals by bootstrap. Metrics of all lists
together (coverage, Gini, novelty, tail share) are no means of users; their intervals come from the jackknife: the
figure again without each user (Efron and Stein 1981: its variance is, if anything, too large).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from training.metrics import gini, head_items, self_information

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

#: Lists are graded at these lengths.
KS: Final = (5, 10, 20)
USER_METRICS: Final = ("ndcg", "recall", "precision", "map", "mrr", "hr")
LIST_METRICS: Final = ("coverage", "gini", "novelty", "tail_share")
#: 97.5 % quantile of the normal distribution.
_Z: Final = 1.959963984540054


def user_metrics(hits: Mask, n_targets: I64, ks: Sequence[int] = KS) -> dict[str, F64]:
    """Grade every user's list.

    Parameters
    ----------
    hits
        Which places hold a target, shape (n_users, depth), depth >= max(ks).
    n_targets
        Targets of each user, also those no model could know, shape (n_users,), all > 0.

    Returns
    -------
    dict
        `ndcg@k`, `recall@k`, `precision@k`, `map@k`, `mrr@k`, `hr@k` for each k, shape (n_users,).

    Examples
    --------
    >>> values = user_metrics(np.array([[False, True, True]]), np.array([4]), ks=[2])
    >>> [(name, round(float(value[0]), 4)) for name, value in values.items()]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('ndcg@2', 0.3869), ('recall@2', 0.25), ('precision@2', 0.5), ('map@2', 0.25), ('mrr@2', 0.5), ('hr@2', 1.0)]
    """
    depth = hits.shape[1]
    rank = np.arange(1, depth + 1)
    # One logarithm at a time, as in metrics.py: the vectorised one may differ in the last bit.
    discount = np.array([1.0 / np.log2(r + 1) for r in rank.tolist()])
    ideal = np.cumsum(discount)
    count = np.cumsum(hits, axis=1)
    gain = np.cumsum(np.where(hits, discount, 0.0), axis=1)
    precise = np.cumsum(np.where(hits, count / rank, 0.0), axis=1)
    first = np.where(hits.any(axis=1), hits.argmax(axis=1), depth) + 1  # rank of the first hit
    found: dict[str, F64] = {}
    for k in ks:
        possible = np.minimum(k, n_targets)
        found |= {
            f"ndcg@{k}": gain[:, k - 1] / ideal[possible - 1],
            f"recall@{k}": count[:, k - 1] / n_targets,
            f"precision@{k}": count[:, k - 1] / k,
            f"map@{k}": precise[:, k - 1] / possible,
            f"mrr@{k}": np.where(first <= k, 1.0 / first, 0.0),
            f"hr@{k}": (first <= k).astype(np.float64),
        }
    return found


@dataclass(frozen=True, slots=True)
class Jackknifed:
    """A figure of all lists together, and the same without each user, shape (n_users,)."""

    value: float
    without: F64

    def __sub__(self, other: Jackknifed) -> Jackknifed:
        """Paired difference: both without the same user."""
        return Jackknifed(self.value - other.value, self.without - other.without)

    def interval(self) -> tuple[float, float]:
        """95 % interval (normal, jackknife variance); NaN for fewer than two users."""
        n = len(self.without)
        if n < 2:
            return float("nan"), float("nan")
        error = float(np.sqrt((n - 1) / n * np.sum((self.without - self.without.mean()) ** 2)))
        return self.value - _Z * error, self.value + _Z * error


def list_metrics(slates: I32, interactions: F64, ks: Sequence[int] = KS) -> dict[str, Jackknifed]:
    """Grade what is shown to all users together.

    Parameters
    ----------
    slates
        Item numbers, best first, -1 where a list has ended, shape (n_users, depth).
    interactions
        Training interactions of each item of the catalogue, shape (n_items,); every number in `slates` is below
        n_items.

    Returns
    -------
    dict
        `coverage@k`, `gini@k`, `novelty@k`, `tail_share@k`; the last two only where there are interactions, and all
        but coverage only where something is shown.
    """
    found: dict[str, Jackknifed] = {}
    known = bool(interactions.sum() > 0)
    bits = self_information(interactions) if known else interactions
    tail = (~head_items(interactions)).astype(np.float64)
    for k in ks:
        shown = slates[:, :k]
        exposure = exposure_of(shown, len(interactions))
        found[f"coverage@{k}"] = _coverage(shown, exposure)
        if exposure.any():
            found[f"gini@{k}"] = _gini(shown, exposure)
            if known:
                found[f"novelty@{k}"] = _mean(shown, bits)
                found[f"tail_share@{k}"] = _mean(shown, tail)
    return found


def exposure_of(slates: I32, n_items: int) -> I64:
    """Places each item holds, shape (n_items,)."""
    return np.bincount(slates[slates >= 0], minlength=n_items)


def _per_user(slates: I32, values: F64) -> F64:
    """Sum of an item's value over each list; ended lists (-1) add 0."""
    return np.asarray(np.append(values, 0.0)[slates].sum(axis=1))


def _coverage(slates: I32, exposure: I64) -> Jackknifed:
    size = max(len(exposure), 1)
    value = float(np.count_nonzero(exposure)) / size
    return Jackknifed(value, value - _per_user(slates, (exposure == 1).astype(np.float64)) / size)


def _gini(slates: I32, exposure: I64) -> Jackknifed:
    """Gini with its linearised jackknife: without a user, it changes by the derivative to the user's places."""
    value = gini(exposure.astype(np.float64))
    n, total = len(exposure), float(exposure.sum())
    ordered = np.sort(exposure)
    # Twice the mean rank of equal items.
    twice = np.searchsorted(ordered, exposure, "left") + np.searchsorted(ordered, exposure, "right") + 1.0
    slope = ((twice - n - 1.0) / n - value) / total
    return Jackknifed(value, value - _per_user(slates, slope))


def _mean(slates: I32, values: F64) -> Jackknifed:
    """Mean value of what is shown."""
    sums, counts = _per_user(slates, values), (slates >= 0).sum(axis=1)
    total, places = float(sums.sum()), int(counts.sum())
    rest = np.maximum(places - counts, 1)  # a user who alone is shown anything: without them there is no figure, 0
    return Jackknifed(total / places, (total - sums) / rest)
