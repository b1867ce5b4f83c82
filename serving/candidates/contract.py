"""The contract of a candidate generator: ask once per request, then take its best or its scores of any items. PURE."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from feature_repo.rows import UserRows
from serving.cascade.items import ItemTable

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]

_LARGEST: Final = 2**31 - 1
_INDEX: Final = 2**32 - 1
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
        return self._scores[items]


def top_k(scores: F32, k: int) -> I32:
    """Return the indices of the `k` largest positive scores, best first, ties to the smaller index.

    Parameters
    ----------
    scores
        Shape (n,), finite.
    k
        May exceed n.
    """
    if k <= 0:  # a generator that is switched off by its quota
        return np.empty(0, np.int32)
    # The bits of positive floats are ordered like the floats. With the index below them every key is another one, so
    # that ties are settled, and sorting integers is several times faster than sorting by two columns.
    bits = np.ascontiguousarray(scores, np.float32).view(np.int32)
    positive = np.flatnonzero(scores > 0)
    keys = ((_LARGEST - bits[positive].astype(np.int64)) << 32) | positive
    if len(keys) > k:
        keys = np.partition(keys, k - 1)[:k]
    keys.sort()
    return (keys & _INDEX).astype(np.int32)
