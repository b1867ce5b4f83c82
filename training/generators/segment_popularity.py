"""Fits popularity per segment: who belongs where, and what each segment takes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import sparse

from serving.candidates.contract import top_k
from serving.candidates.segment_popularity import EVERYBODY, SEGMENT_EVENTS
from serving.candidates.segment_popularity import SegmentPopularity as Fitted
from serving.candidates.vocabulary import Vocabulary
from training.generators.contract import Past
from training.generators.interactions import FOREVER_DAYS, interactions
from training.split import Log


@dataclass(frozen=True)
class SegmentPopularity:
    """Settings of popularity per segment.

    Attributes
    ----------
    half_life_days
        Of an event's weight.
    min_users
        Smaller segments are answered as everybody.
    depth
        How many items of a segment are kept.
    """

    quota: int = 60
    half_life_days: float = 30.0
    min_users: int = 20
    depth: int = 500
    name: str = "segment"

    def fit(self, past: Past) -> Fitted:
        """Sum the decayed weights of each segment's users."""
        matrix, ids = interactions(past, self.half_life_days)
        segment = segments_of(past)
        names, members = np.unique(segment, return_counts=True)
        large = [str(name) for name, n in zip(names, members, strict=True) if n >= self.min_users]
        kept = [EVERYBODY, *(name for name in large if name != EVERYBODY)]
        items = np.full((len(kept), self.depth), -1, np.int32)
        weights = np.zeros((len(kept), self.depth), np.float32)
        for row, name in enumerate(kept):
            mine = matrix if name == EVERYBODY else matrix[segment == name]
            total = np.asarray(mine.sum(axis=0)).ravel()
            share = (total / max(float(total.max(initial=0.0)), 1e-12)).astype(np.float32)
            top = top_k(share, self.depth)
            items[row, : len(top)], weights[row, : len(top)] = top, share[top]
        return Fitted(Vocabulary(ids), np.array(kept), items, weights, self.name)


def segments_of(past: Past) -> np.typing.NDArray[np.str_]:
    """Return the segment of each user of the log, in the order of `interactions`, by the rule of `segment_of`."""
    log, table = past.log, past.table
    users = np.unique(log.user.astype(str))
    counted = np.isin(log.event_type, [code.name for code in SEGMENT_EVENTS])
    acts = Log(log.user[counted], log.item[counted], log.event_type[counted], log.time_us[counted])
    matrix, ids = interactions(Past(acts, table, past.now_us, past.seed, past.threads), FOREVER_DAYS)
    names = np.array(["", *table.category_names])
    code = np.append(table.category_code, -1)[table.lookup(ids)] + 1  # unknown items are at -1: the one appended
    placed = np.flatnonzero(names[code] != "")  # items without a category put nobody anywhere
    categories = sparse.csr_matrix((np.ones(len(placed)), (placed, code[placed])), shape=(len(ids), len(names)))
    by_category = sparse.csr_matrix(matrix @ categories)
    by_category.sort_indices()  # of equals, the first by name
    best = [
        by_category.indices[start + np.argmax(by_category.data[start:end])] if end > start else 0
        for start, end in pairwise(by_category.indptr)
    ]
    found = np.full(len(users), EVERYBODY, dtype=names.dtype)
    found[np.searchsorted(users, np.unique(acts.user.astype(str)))] = names[best]
    return found
