"""Implicit ALS at serving time: item factors only, and the user folded in from recent events. PURE.

No user factor is stored: a user's vector is the least-squares solution given the item factors (Hu, Koren and Volinsky
2008, equation 4), so new users and fresh events count at once and a bundle does not grow with the users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from feature_repo.rows import UserRows
from serving.candidates.contract import F32, DenseQuery
from serving.candidates.history import interaction_weights, weight_per_item
from serving.candidates.vocabulary import Vocabulary
from serving.cascade.items import ItemTable

Confidence = Literal["linear", "log", "binary"]


def confidence_of(weights: npt.NDArray[np.float64], kind: Confidence) -> npt.NDArray[np.float64]:
    """Confidence of interactions by their weights (above 0), before `alpha`; shape as given."""
    if kind == "binary":
        return np.ones_like(weights)
    return weights if kind == "linear" else np.log1p(weights)


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
    alpha, confidence
        Confidence of an interaction of weight w is `alpha * confidence_of(w, confidence)`.
    """

    vocabulary: Vocabulary
    factors: F32
    regularization: float
    alpha: float
    half_life_days: float
    confidence: Confidence = "log"
    name: str = "als"
    gram: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        wide = self.factors.astype(np.float64)
        object.__setattr__(self, "gram", wide.T @ wide + self.regularization * np.eye(wide.shape[1]))

    def user_vector(self, user: UserRows, now_us: int) -> F32 | None:
        """Fold a user in, shape (f,); None for one who took no item of the vocabulary."""
        weights = interaction_weights(user.recent, now_us, self.half_life_days)
        items, total = weight_per_item(self.vocabulary.lookup(user.recent.item_ids), weights)
        if not len(items):
            return None
        return fold_in(self.factors, self.gram, items, self.alpha * confidence_of(total, self.confidence))

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> DenseQuery:
        """Fold the user in and score every item of the vocabulary."""
        vector = self.user_vector(user, now_us)
        if vector is None:
            return DenseQuery(np.zeros(len(table), np.float32))
        return DenseQuery(self.vocabulary.spread(self.factors @ vector, table))
