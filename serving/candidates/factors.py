"""Implicit ALS at serving time: item factors only, and the user folded in from recent events. PURE.

No user factor is stored: a user's vector is the least-squares solution given the item factors (Hu, Koren and Volinsky
2008, equation 4), so new users and fresh events count at once and a bundle does not grow with the users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from feature_repo.rows import UserRows
from serving.candidates.contract import F32, I32, NOT_STORED, DenseQuery, Query, top_k
from serving.candidates.vocabulary import Vocabulary, VocabularyQuery
from serving.cascade.items import ItemTable

#: Multiplications of one product. OpenBLAS wakes its threads from 262,144 on, which takes milliseconds where the other
#: cores are busy: 100 x 100 cosines of 64 factors took 8 ms in one piece, 0.1 ms in three.
_BLOCK: Final = 200_000

#: Longer lists than that are scanned for exactly, as an index would have to look everywhere, too.
_INDEXED: Final = 1000

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


class NearestVectors(Protocol):
    """Finds the item factors of the largest inner product with a user's vector (serving/candidates/vector_index.py)."""

    def search(self, vector: F32, k: int) -> npt.NDArray[np.int64]:
        """Return at most `k` positions, best first."""
        ...


def no_centroids() -> F32:
    """Return the centroids of a catalogue that is scanned."""
    return np.empty((0, 0), np.float32)


def no_lists() -> I32:
    """Return the lists of a catalogue that is scanned."""
    return np.empty(0, np.int32)


@dataclass(frozen=True, eq=False)
class ItemFactors:
    """ALS item factors with fold-in.

    Attributes
    ----------
    alpha, confidence
        Confidence of an interaction of weight w is `alpha * confidence_of(w, confidence)`.
    centroids, lists
        Of the vector index of a large catalogue, shapes (n_lists, f) and (n_items,); empty for others.
    index
        Answers `top`, where there is one; scores are exact all the same.
    """

    vocabulary: Vocabulary
    factors: F32
    regularization: float
    alpha: float
    half_life_days: float
    confidence: Confidence = "log"
    name: str = "als"
    centroids: F32 = field(default_factory=no_centroids)
    lists: I32 = field(default_factory=no_lists)
    index: NearestVectors | None = field(default=None, repr=False, metadata=NOT_STORED)
    gram: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        wide = self.factors.astype(np.float64)
        object.__setattr__(self, "gram", wide.T @ wide + self.regularization * np.eye(wide.shape[1]))

    @property
    def searched(self) -> F32:
        """What the index searches, shape (n, f)."""
        return self.factors

    def user_vector(self, user: UserRows, table: ItemTable, now_us: int) -> F32 | None:
        """Fold a user in, shape (f,); None for one who took no item of the vocabulary."""
        items, total = self.vocabulary.weights(user.recent, table, now_us, self.half_life_days)
        if not len(items):
            return None
        return fold_in(self.factors, self.gram, items, self.alpha * confidence_of(total, self.confidence))

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> Query:
        """Fold the user in and score every item of the vocabulary."""
        vector = self.user_vector(user, table, now_us)
        if vector is None:
            return DenseQuery(np.zeros(len(table), np.float32))
        if self.index is not None:
            return _IndexedQuery(self, self.index, vector, table)
        return VocabularyQuery(self.factors @ vector, self.vocabulary, table)

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


class _IndexedQuery:
    """A query over a catalogue too large to score all of it for every user."""

    def __init__(self, model: ItemFactors, index: NearestVectors, vector: F32, table: ItemTable) -> None:
        self._model, self._index, self._vector, self._table = model, index, vector, table

    def top(self, k: int) -> I32:
        """Return the best items found by the index, ranked by their exact scores."""
        if k <= 0 or k > _INDEXED:
            return top_k(self.scores(np.arange(len(self._table), dtype=np.int32)), k)
        items = self._model.vocabulary.in_table(self._table)[self._index.search(self._vector, k)]
        items = items[items >= 0]
        scores = self.scores(items)
        order = np.lexsort((items, -scores))
        return items[order[scores[order] > 0]]

    def scores(self, items: I32) -> F32:
        """Return the exact scores of some items."""
        positions = self._model.vocabulary.of_table(self._table)[items]
        out = np.zeros(len(items), np.float32)
        known = positions >= 0
        # Unlike a matrix product, whose sums depend on how many rows there are, this gives an item its score whatever
        # the others are.
        out[known] = np.einsum("ij,j->i", self._model.factors[positions[known]], self._vector)
        return out
