"""Learns how the generators' lists become one: what each rank in each list says of an item being taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from serving.cascade.features import Asked
from serving.cascade.fusion import DEPTH, Fusion
from serving.cascade.kernels import ranks_in

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

#: A curve is a sum of c / (c + rank) over these, and a constant: steep at the top, flat below, nothing else.
_SCALES: Final = (10.0, 60.0, 240.0)
#: Items drawn of each user's lists that were not taken.
NEGATIVES: Final = 60
#: With fewer taken items nothing is learned.
_LEAST_TAKEN: Final = 200


@dataclass(frozen=True)
class ListRanks:
    """Where items stood in one user's lists.

    Attributes
    ----------
    ranks
        1-based, NaN where a list lacks the item, shape (n, generators).
    taken
        Whether the user took the item afterwards, shape (n,).
    weight
        How many items of the lists each row stands for, shape (n,).
    """

    ranks: F32
    taken: npt.NDArray[np.bool_]
    weight: F64


def list_ranks(asked: Asked, positive: npt.NDArray[np.int32], rng: np.random.Generator) -> ListRanks:
    """Return the ranks of what a user took and of some other items of the lists.

    Parameters
    ----------
    positive
        Item indices of what the user took, shape (m,).
    """
    listed = np.unique(asked.lists)
    found = np.intersect1d(listed, positive)
    others = np.setdiff1d(listed, found)
    drawn = rng.choice(others, NEGATIVES, replace=False) if len(others) > NEGATIVES else others
    items = np.concatenate([found, drawn]).astype(np.int32)
    weight = np.concatenate([np.ones(len(found)), np.full(len(drawn), len(others) / max(len(drawn), 1))])
    return ListRanks(ranks_in(asked.lists, asked.ends, items, asked.size), np.arange(len(items)) < len(found), weight)


def fit_fusion(rows: list[ListRanks]) -> Fusion | None:
    """Fit the curves by a logistic regression that adds up over lists.

    Returns
    -------
    Fusion or None
        None where too little was taken to learn from.
    """
    from sklearn.linear_model import LogisticRegression

    taken = np.concatenate([one.taken for one in rows])
    if taken.sum() < _LEAST_TAKEN or taken.all():
        return None
    ranks = np.concatenate([one.ranks for one in rows])
    weight = np.concatenate([one.weight for one in rows])
    # Square roots of the weights, as the ranker's rows: a few heavy rows would rule.
    model = LogisticRegression(max_iter=300).fit(_terms(ranks), taken, sample_weight=np.sqrt(weight))
    coefficient = model.coef_[0].reshape(len(_SCALES) + 1, ranks.shape[1])
    shape = np.array([scale / (scale + np.arange(1.0, DEPTH + 1)) for scale in _SCALES] + [np.ones(DEPTH)])
    return Fusion(coefficient.T @ shape)


def _terms(ranks: F32) -> F32:
    """Return what the worth of an item is a sum of, shape (n, (scales + 1) * generators)."""
    listed = ~np.isnan(ranks)
    near = np.where(listed, ranks, np.inf)
    return np.hstack([scale / (scale + near) for scale in _SCALES] + [listed]).astype(np.float32)
