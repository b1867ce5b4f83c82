"""Item-to-item at serving time: a precomputed table of nearest items. PURE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.rows import UserRows
from serving.candidates.contract import F32, I32
from serving.candidates.vocabulary import Vocabulary, VocabularyQuery
from serving.cascade.items import ItemTable
from serving.cascade.kernels import neighbour_sums


@dataclass(frozen=True, eq=False)
class ItemToItem:
    """Neighbours of the items a user dealt with, summed with decayed weights.

    Attributes
    ----------
    neighbours, similarity
        Shapes (n_items, depth): the most similar items of each item, best first; -1 and 0 pad short rows.
    """

    vocabulary: Vocabulary
    neighbours: I32
    similarity: F32
    half_life_days: float
    name: str = "similar"

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> VocabularyQuery:
        """Sum the similarities to the user's recent items."""
        items, total = self.vocabulary.weights(user.recent, table, now_us, self.half_life_days)
        # The square root keeps one often repeated item from drowning all others.
        sums = neighbour_sums(items, np.sqrt(total), self.neighbours, self.similarity)
        return VocabularyQuery(sums, self.vocabulary, table)

    def similar(self, item_id: str, k: int) -> list[tuple[str, float]]:
        """Return the nearest items of one item with their similarity, best first; empty if it is unknown."""
        position = int(self.vocabulary.lookup([item_id])[0])
        if position < 0:
            return []
        near = self.neighbours[position]
        return [
            (self.vocabulary.ids[int(item)], float(value))
            for item, value in zip(near, self.similarity[position], strict=True)
            if item >= 0
        ][:k]
