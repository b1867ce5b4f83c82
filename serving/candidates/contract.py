"""The contract of a candidate generator: ask once per request, then take its best or its scores of any items. PURE."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from feature_repo.rows import UserRows
from serving.cascade.items import ItemTable
from serving.cascade.kernels import spread, top_k

__all__ = [
    "F32",
    "I32",
    "NOT_STORED",
    "CandidateGenerator",
    "DenseQuery",
    "ItemSimilarity",
    "Query",
    "SparseQuery",
    "top_k",
]

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]

#: Metadata of a generator's field that is built again after loading, and no part of the bundle.
NOT_STORED: Final = MappingProxyType({"stored": False})


class Query(Protocol):
    """One generator's answer for one user at one moment."""

    def top(self, k: int) -> I32:
        """Return at most `k` item indices with a score above 0, best first; ties go to the smaller index."""
        ...

    def scores(self, items: I32) -> F32:
        """Return the scores of any items, shape (len(items),); 0 where the generator has nothing to say."""
        ...


class CandidateGenerator(Protocol):
    """Retrieves candidates for a user. Deterministic: equal inputs give equal candidates."""

    @property
    def name(self) -> str:
        """Source tag in answers and prefix of the retrieval features."""
        ...

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> Query:
        """Prepare the answer for one user."""
        ...


@runtime_checkable
class ItemSimilarity(Protocol):
    """What a generator may also know: how similar any items are. Re-ranking uses the first one that does."""

    def similarity(self, items: I32, table: ItemTable) -> F32:
        """Return similarities of items, at most 1, shape (n, n); NaN where the generator does not know one of them."""
        ...


class DenseQuery:
    """A query whose scores are known for all items; serves generators whose catalogue fits a dense scan."""

    def __init__(self, scores: npt.NDArray[np.floating]) -> None:
        self._scores = scores.astype(np.float32, copy=False)

    def top(self, k: int) -> I32:
        """Return the best items with a positive score."""
        return top_k(self._scores, k)

    def scores(self, items: I32) -> F32:
        """Return the scores of some items."""
        return self._scores.take(items)


class SparseQuery:
    """A query whose scores are known for a few items; all others have none.

    Parameters
    ----------
    items, scores
        Distinct item indices, and their scores, shapes (m,).
    size
        Items of the table.
    """

    def __init__(self, items: I32, scores: npt.NDArray[np.floating], size: int) -> None:
        self._items, self._scores, self._size = items, scores.astype(np.float32), size

    def top(self, k: int) -> I32:
        """Return the best items with a positive score."""
        return top_k(self._scores, k, self._items)

    def scores(self, items: I32) -> F32:
        """Return the scores of some items."""
        return spread(self._items, self._scores, items, self._size)
