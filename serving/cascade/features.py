"""The feature matrix of a request: state rows and retrieval scores in the order the ranker was trained on. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_repo.request_features import INPUTS, compute
from feature_repo.rows import Rows, UserRows
from feature_repo.services import feature_list
from serving.candidates.contract import F32, I32, CandidateGenerator, Query
from serving.cascade.items import ItemTable

Mask = npt.NDArray[np.bool_]

#: Constant of reciprocal rank fusion, as published: how little the first ranks differ.
_FUSION = 60.0

_USER_INPUTS = tuple(n for n in INPUTS if n.startswith("user_"))
_PAIR_INPUTS = tuple(n for n in INPUTS if n.startswith("pair_"))
_AFFINITY_INPUTS = tuple(n for n in INPUTS if n.startswith("affinity_"))


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
    lists: tuple[I32, ...]

    def merge(self, limit: int, allowed: Mask | None = None) -> Candidates:
        """Merge the lists and keep `limit` distinct items (of the allowed ones, by item index), best first.

        Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): an item is worth the sum of 1 / (60 + rank) over
        the lists that hold it, so what several generators agree on goes before what one of them ranks high. Ties go to
        the smaller index.
        """
        items = np.concatenate([*self.lists, np.empty(0, np.int32)]).astype(np.int32)
        ranks = np.concatenate([np.empty(0, np.int64), *(np.arange(1, len(one) + 1) for one in self.lists)])
        sources = np.repeat(np.arange(len(self.lists)), [len(one) for one in self.lists])
        if allowed is not None:
            may = allowed[items]
            items, ranks, sources = items[may], ranks[may], sources[may]
        distinct, which = np.unique(items, return_inverse=True)
        worth = np.bincount(which, 1.0 / (_FUSION + ranks), len(distinct))
        kept = np.lexsort((distinct, -worth))[:limit]
        # The generator that ranked an item highest, the first of equals: written last, worst ranks first.
        source = np.empty(len(distinct), np.int8)
        order = np.lexsort((sources, ranks))[::-1]
        source[which[order]] = sources[order]
        return Candidates(distinct[kept], source[kept], self.features(distinct[kept]))

    def features(self, items: I32) -> F32:
        """Scores and ranks of any distinct items by every generator, shape (len(items), 2 * generators)."""
        out = np.full((len(items), 2 * len(self.queries)), np.nan, np.float32)
        order = np.argsort(items, kind="stable")
        ascending = items[order]
        for g, (query, ranked) in enumerate(zip(self.queries, self.lists, strict=True)):
            out[:, 2 * g] = query.scores(items)
            if len(items) and len(ranked):
                position = np.minimum(np.searchsorted(ascending, ranked), len(items) - 1)
                hit = ascending[position] == ranked
                out[order[position[hit]], 2 * g + 1] = np.flatnonzero(hit) + 1
        return out


def ask(
    generators: Sequence[CandidateGenerator], quotas: Sequence[int], user: UserRows, table: ItemTable, now_us: int
) -> Asked:
    """Ask every generator for a user's candidates; `quotas` says how many each contributes at most."""
    queries = tuple(g.query(user, table, now_us) for g in generators)
    return Asked(queries, tuple(q.top(quota) for q, quota in zip(queries, quotas, strict=True)))


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
        Shape (len(items), len(feature_list(service)) + r), C-contiguous.
    """
    names = feature_list(service)
    columns = {name: user.stats.column(name) for name in _USER_INPUTS}
    columns |= table.inputs_of(items)
    columns |= {name: pairs.column(name) for name in _PAIR_INPUTS}
    columns |= _affinity_columns(user, table, items)
    values = compute(columns, np.array([now_us], np.int64), names)
    out = np.empty((len(items), len(names) + retrieval.shape[1]), np.float32)
    for i, name in enumerate(names):
        out[:, i] = values[name]
    out[:, len(names) :] = retrieval
    return out


def _affinity_columns(user: UserRows, table: ItemTable, items: I32) -> dict[str, npt.NDArray[np.float64]]:
    """Columns of the user's affinity to each item's category; NaN where there is none."""
    row = {name: i for i, name in enumerate(user.categories)}
    # One extra row of NaN at the end stands for all categories the user never touched.
    by_category = np.fromiter((row.get(name, -1) for name in table.category_names), np.int64)
    which = by_category[table.category_code[items]]
    return {name: np.append(user.affinities.column(name), np.nan)[which] for name in _AFFINITY_INPUTS}
