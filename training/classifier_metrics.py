"""Metrics of binary classifiers on weighted rows, with bootstrap intervals over users. PURE.

Rows count with the number of pairs they stand for, so every figure is an estimate for the population, not for the
sample. scikit-learn has the same metrics (the tests compare); the bootstrap needs them a thousand times on one order
of the rows, which is sorted once here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Confusion:
    """Weighted counts at a threshold, and what is computed from them; NaN where a denominator is 0.

    Examples
    --------
    >>> Confusion(tp=3.0, fp=1.0, tn=5.0, fn=1.0).figures()["precision"]
    0.75
    """

    tp: float
    fp: float
    tn: float
    fn: float

    def figures(self) -> dict[str, float]:
        """Accuracy, precision, recall, specificity, F1 and the counts."""
        return {
            "accuracy": _share(self.tp + self.tn, self.fp + self.fn),
            "precision": _share(self.tp, self.fp),
            "recall": _share(self.tp, self.fn),
            "specificity": _share(self.tn, self.fp),
            "f1": _share(2 * self.tp, self.fp + self.fn),
            "tp": self.tp,
            "fp": self.fp,
            "tn": self.tn,
            "fn": self.fn,
        }


def _share(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest else float("nan")


@dataclass(frozen=True)
class Ordered:
    """Rows sorted by score, best first, for curves under many weightings.

    Attributes
    ----------
    order
        Rows by descending score, shape (n,).
    ends
        Position in `order` of the last row of each distinct score, shape (m,).
    label
        1 or 0 in that order, shape (n,).
    """

    order: I64
    ends: I64
    label: F64

    @classmethod
    def by(cls, score: F64, label: npt.ArrayLike) -> Ordered:
        """Sort rows by their score."""
        order = np.argsort(-score, kind="stable")
        last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
        return cls(order, last, np.asarray(label, np.float64)[order])

    def counts(self, weight: F64) -> tuple[F64, F64]:
        """Weighted true and false positives if each distinct score were the threshold, each shape (m,)."""
        mine = weight[self.order]
        positive = mine * self.label
        return np.cumsum(positive)[self.ends], np.cumsum(mine - positive)[self.ends]

    def areas(self, weight: F64) -> tuple[float, float]:
        """Average precision and ROC-AUC; NaN without a positive or a negative.

        Average precision is the sum of precision times the gain in recall, without interpolation (Davis and Goadrich
        2006); AUC counts ties half.

        Examples
        --------
        >>> Ordered.by(np.array([3.0, 2.0, 1.0]), [1, 0, 1]).areas(np.ones(3))
        (0.8333333333333333, 0.5)
        """
        tp, fp = self.counts(weight)
        if not (len(tp) and tp[-1] > 0 and fp[-1] > 0):
            return float("nan"), float("nan")
        precision = tp / np.maximum(tp + fp, 1e-300)  # a bootstrap may weigh the first rows with 0
        average = np.sum(np.diff(tp, prepend=0.0) * precision) / tp[-1]
        area = np.sum(np.diff(fp, prepend=0.0) * (tp + np.append(0.0, tp[:-1]))) / (2.0 * tp[-1] * fp[-1])
        return float(average), float(area)


def confusion(score: F64, label: npt.ArrayLike, weight: F64, threshold: float) -> Confusion:
    """Count what is at or above a threshold."""
    chosen, positive = score >= threshold, np.asarray(label) > 0
    return Confusion(
        tp=float(weight[chosen & positive].sum()),
        fp=float(weight[chosen & ~positive].sum()),
        tn=float(weight[~chosen & ~positive].sum()),
        fn=float(weight[~chosen & positive].sum()),
    )


def best_f1_threshold(score: F64, label: npt.ArrayLike, weight: F64) -> float:
    """Return the score at which F1 is largest; the highest of equals.

    Examples
    --------
    >>> float(best_f1_threshold(np.array([0.9, 0.8, 0.1]), [1, 1, 0], np.ones(3)))
    0.8
    """
    rows = Ordered.by(score, label)
    tp, fp = rows.counts(weight)
    f1 = 2.0 * tp / (tp + fp + tp[-1])
    return float(score[rows.order[rows.ends[int(np.argmax(f1))]]])


def bootstrap_areas(rows: Ordered, weight: F64, user: I64, *, seed: int, rounds: int) -> F64:
    """Average precision and AUC when users are drawn again with replacement, shape (rounds, 2).

    The draws depend on the seed and the number of users only: two models on the same rows are paired by round.

    Parameters
    ----------
    user
        Number of each row's user, 0 to users - 1, shape (n,).
    """
    rng = np.random.default_rng(seed)
    users = int(user.max()) + 1
    counts = rng.multinomial(users, np.full(users, 1.0 / users), size=rounds).astype(np.float64)
    return np.array([rows.areas(weight * count[user]) for count in counts])


def interval(draws: F64, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws, shape (rounds,); draws that have no value are left out."""
    tail = (1.0 - level) / 2.0
    low, high = np.nanquantile(draws, [tail, 1.0 - tail])
    return float(low), float(high)
