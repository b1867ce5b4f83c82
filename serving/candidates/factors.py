"""Implicit ALS at serving time: item factors only, and the user folded in from recent events. PURE.

No user factor is stored: a user's vector is the least-squares solution given the item factors (Hu, Koren and Volinsky
2008, equation 4), so new users and fresh events count at once and a bundle does not grow with the users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_repo.rows import UserRows
from serving.candidates.contract import F32, I32, DenseQuery
from serving.candidates.history import interaction_weights, weight_per_item
from serving.candidates.vocabulary import Vocabulary
from serving.cascade.items import ItemTable

#: Multiplications of one product. OpenBLAS wakes its threads from 262,144 on, which takes milliseconds where the other
#: cores are busy: 100 x 100 cosines of 64 factors took 8 ms in one piece, 0.1 ms in three.
_BLOCK: Final = 200_000


def fold_in(
    factors: F32, gram: npt.NDArray[np.float64], items: npt.NDArray[np.int32], confidence: npt.NDArray[np.float64]
) -> F32:
    """Solve for a user's vector.

    Parameters
    ----------
    factors
        Item factors, shape (n_items, f).
    gram
        `factors.T @ factors + regularization * I`, shape (f, f).
    items
        Distinct items of the user, shape (m,).
    confidence
        Weight above that of an unseen item, shape (m,).

    Returns
    -------
    ndarray
        Shape (f,).
    """
    own = factors[items].astype(np.float64)
    a = gram + (own * confidence[:, None]).T @ own
    b = own.T @ (1.0 + confidence)
    return np.linalg.solve(a, b).astype(np.float32)


@dataclass(frozen=True, eq=False)
class ItemFactors:
    """ALS item factors with fold-in.

    Attributes
    ----------
    alpha
        Confidence of an interaction of weight w is `alpha * log1p(w)`.
    """

    vocabulary: Vocabulary
    factors: F32
    regularization: float
    alpha: float
    half_life_days: float
    name: str = "als"
    gram: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        wide = self.factors.astype(np.float64)
        object.__setattr__(self, "gram", wide.T @ wide + self.regularization * np.eye(wide.shape[1]))

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> DenseQuery:
        """Fold the user in and score every item of the vocabulary."""
        weights = interaction_weights(user.recent, now_us, self.half_life_days)
        items, total = weight_per_item(self.vocabulary.lookup(user.recent.item_ids), weights)
        if not len(items):
            return DenseQuery(np.zeros(len(table), np.float32))
        vector = fold_in(self.factors, self.gram, items, self.alpha * np.log1p(total))
        return DenseQuery(self.vocabulary.spread(self.factors @ vector, table))

    def similarity(self, items: I32, table: ItemTable) -> F32:
        """Cosine between the items' factors, shape (n, n); NaN for items that are not in the vocabulary."""
        at = self.vocabulary.lookup([table.ids[i] for i in items.tolist()])
        own = self.factors[at]
        own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
        own[at < 0] = np.nan
        out = np.empty((len(own), len(own)), np.float32)
        step = max(1, _BLOCK // max(own.size, 1))
        for first in range(0, len(own), step):
            np.matmul(own[first : first + step], own.T, out=out[first : first + step])
        return out
