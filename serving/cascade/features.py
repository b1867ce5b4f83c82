"""The feature matrix of a request: state rows and retrieval scores in the order the ranker was trained on. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from feature_repo.request_batch import RequestBatch, RowBlocks
from feature_repo.rows import PickedRows, Rows, UserRows, block_names
from feature_repo.services import feature_list
from feature_repo.views import USER_CATEGORY, USER_ITEM, USER_STATS
from serving.candidates.contract import F32, I32, CandidateGenerator, Query
from serving.cascade.fusion import Fusion
from serving.cascade.items import ITEM_INPUTS, ItemTable
from serving.cascade.kernels import fuse, ranks_in

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_NO_ITEMS = np.empty(0, np.int32)


def retrieval_columns(generators: Sequence[str]) -> tuple[str, ...]:
    """Names of the retrieval features: each generator's score and rank of the candidate."""
    return tuple(f"r_{name}_{kind}" for name in generators for kind in ("score", "rank"))


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the first stage brings.

    Attributes
    ----------
    items
        Item indices, shape (c,), distinct, best fused rank first.
    source
        Index of the generator that ranked each candidate highest, shape (c,).
    retrieval
        Score and rank per generator, shape (c, 2 * generators); rank is NaN where the generator's list lacks it.
    """

    items: I32
    source: npt.NDArray[np.int8]
    retrieval: F32

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True)
class Asked:
    """All generators, asked once for one user: their queries and their own best lists."""

    queries: tuple[Query, ...]
    lists: I32  #: all lists, one after the other, each best first
    ends: npt.NDArray[np.int64]  #: where each list ends
    size: int  #: items of the table

    @classmethod
    def of(cls, queries: Sequence[Query], quotas: Sequence[int], size: int) -> Asked:
        """Take each query's best; `quotas` says how many at most."""
        lists = [query.top(quota) for query, quota in zip(queries, quotas, strict=True)]
        ends = np.cumsum([len(one) for one in lists], dtype=np.int64)
        return cls(tuple(queries), np.concatenate([*lists, _NO_ITEMS]), ends, size)

    def merge(self, limit: int, allowed: Mask | None = None, fusion: Fusion | None = None) -> Candidates:
        """Merge the lists and keep `limit` distinct items (of the allowed ones, by item index), best first.

        Items are worth what the fusion says, by default that of reciprocal ranks; ties go to the smaller index.
        """
        may = np.ones(self.size, np.bool_) if allowed is None else allowed
        curves = (fusion or Fusion.reciprocal(len(self.queries))).curves
        items, source = fuse(self.lists, self.ends, may, curves, limit)
        return Candidates(items, source, self.features(items))

    def features(self, items: I32) -> F32:
        """Scores and ranks of any distinct items by every generator, shape (len(items), 2 * generators)."""
        out = np.empty((len(items), 2 * len(self.queries)), np.float32, order="F")
        for g, query in enumerate(self.queries):
            out[:, 2 * g] = query.scores(items)
        ranks_in(self.lists, self.ends, items, self.size, out[:, 1::2])
        return out


def ask(
    generators: Sequence[CandidateGenerator], quotas: Sequence[int], user: UserRows, table: ItemTable, now_us: int
) -> Asked:
    """Ask every generator for a user's candidates; `quotas` says how many each contributes at most."""
    return Asked.of([g.query(user, table, now_us) for g in generators], quotas, len(table))


def feature_matrix(
    service: str, user: UserRows, table: ItemTable, items: I32, pairs: Rows, retrieval: F32, now_us: int
) -> F32:
    """Assemble the ranker's input.

    Parameters
    ----------
    pairs
        USER_ITEM rows of the user and the items, in their order.
    retrieval
        Shape (len(items), r), appended after the service's features.

    Returns
    -------
    ndarray
        Shape (len(items), len(feature_list(service)) + r), Fortran-contiguous.
    """
    batch, count = _batch(service)
    pair_rows, pair_of = (pairs.base, pairs.which) if isinstance(pairs, PickedRows) else (pairs, _numbers(len(items)))
    affinities = user.affinities.block()
    blocks = RowBlocks(
        user.stats.block(), table.inputs, items, pair_rows.block(), pair_of, affinities, _categories(user, table, items)
    )
    # Feature by feature, as it is filled, and as the trees read it without a copy.
    out = np.empty((count + retrieval.shape[1], len(items)), np.float32)
    batch.compute(blocks, now_us, out[:count])
    out[count:] = retrieval.T
    return out.T


@cache
def _batch(service: str) -> tuple[RequestBatch, int]:
    """Return how a service's features are computed from the blocks of `feature_matrix`, and how many there are."""
    names = feature_list(service)
    columns = block_names(USER_STATS), ITEM_INPUTS, block_names(USER_ITEM), block_names(USER_CATEGORY)
    return RequestBatch(names, *columns), len(names)


def _categories(user: UserRows, table: ItemTable, items: I32) -> I32:
    """Return which of the user's categories each item is of, -1 for none of them, shape (len(items),)."""
    by_category = np.full(len(table.category_names), -1, np.int32)
    code = table.category_index
    for row, name in enumerate(user.categories):
        if name in code:  # a category may have left the catalogue
            by_category[code[name]] = row
    return by_category.take(table.category_code.take(items))


def _numbers(n: int) -> I32:
    return np.arange(n, dtype=np.int32)
