"""Content-based retrieval: items whose title and category are like those of the user's recent items. PURE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.rows import UserRows
from serving.candidates.contract import DenseQuery
from serving.candidates.history import weight_per_item
from serving.candidates.text import TextEncoder, unit_rows
from serving.cascade.items import ItemTable


@dataclass(frozen=True, eq=False)
class Content:
    """Cosine between an item's text vector and the decayed mean of the user's.

    Knows every item of the live table that has words, those that entered it after the training included.
    """

    encoder: TextEncoder
    half_life_days: float
    name: str = "content"

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> DenseQuery:
        """Average the vectors of the user's recent items and compare all others with it."""
        items, total = weight_per_item(user.recent, table, now_us, self.half_life_days)
        if not len(items):
            return DenseQuery(np.zeros(len(table), np.float32))
        vectors = self.encoder.table(table)
        # The square root keeps one often repeated item from drowning all others.
        taste = unit_rows(np.sqrt(total / total.max())[None, :] @ vectors[items])[0]
        # What points away from the taste is unlike it, however much: one answer for all of them.
        return DenseQuery(np.maximum(vectors @ taste, 0.0))
