"""Candidates from the last few events: what the user is after right now, by an item-to-item table. PURE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.rows import UserRows
from serving.candidates.contract import F32, I32
from serving.candidates.history import TYPE_WEIGHT
from serving.candidates.vocabulary import Vocabulary, VocabularyQuery
from serving.cascade.items import ItemTable
from serving.cascade.kernels import neighbour_sums


@dataclass(frozen=True, eq=False)
class LastEvents:
    """Neighbours of the last distinct items a user dealt with, the latest counting most.

    `ItemToItem` sums over all that is known of a user, however long ago; this one goes by the order of events alone,
    so that five clicks of the running session outweigh a year of history.

    Attributes
    ----------
    neighbours, similarity
        As in `ItemToItem`, shapes (n_items, depth).
    items
        How many distinct items back it looks.
    decay
        Weight of an item relative to the next later one.
    """

    vocabulary: Vocabulary
    neighbours: I32
    similarity: F32
    items: int
    decay: float
    name: str = "recent"

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> VocabularyQuery:
        """Sum the similarities to the last items by their position."""
        liked = TYPE_WEIGHT[user.recent.types] > 0
        latest = dict.fromkeys(item for item, keep in zip(user.recent.item_ids[::-1], liked[::-1], strict=True) if keep)
        last = self.vocabulary.lookup(list(latest)[: self.items])
        weight, known = np.power(self.decay, np.arange(len(last), dtype=np.float64)), last >= 0
        sums = neighbour_sums(last[known], weight[known], self.neighbours, self.similarity)
        return VocabularyQuery(sums, self.vocabulary, table)
