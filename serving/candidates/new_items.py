"""New items: factors of items nobody has taken yet, mapped from what their title and category say. PURE.

ALS knows an item by who took it. Of a new one only the content is known; a ridge regression learned on the others what
factors an item of such content has, so that a user folded in by ALS can be matched with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.rows import UserRows
from serving.candidates.contract import F32, DenseQuery
from serving.candidates.factors import ItemFactors
from serving.candidates.text import TextEncoder
from serving.cascade.items import ItemTable, Mask


@dataclass(frozen=True, eq=False)
class NewItems:
    """Content-to-embedding mapping; brings new items only.

    Attributes
    ----------
    als
        Factors of the items that have been taken, and how users are folded in.
    mapping, offset
        Ridge regression from a text vector to factors of length 1, shapes (d, f) and (f,).
    max_takers
        An item is new while it was taken no more often (`ItemTable.takers`), or while ALS has not seen it.
    window, popularity_floor
        Scores are multiplied with popularity among the new items, of which one that nobody took keeps the floor: the
        first purchases say more of a new item than its title does (docs/models.md has the figures).
    """

    encoder: TextEncoder
    als: ItemFactors
    mapping: F32
    offset: F32
    max_takers: int
    window: str = "30d"
    popularity_floor: float = 0.02
    name: str = "new_items"

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> DenseQuery:
        """Fold the user in and score the new items."""
        scores = np.zeros(len(table), np.float32)
        vector = self.als.user_vector(user, table, now_us)
        if vector is not None:
            new = np.flatnonzero(self.new(table))
            # A text without a known word is a vector of zeros: of that item nothing is known at all.
            vectors = self.encoder.table(table)[new]
            said = vectors.any(axis=1)
            match = np.maximum((vectors[said] @ self.mapping + self.offset) @ vector, 0.0)
            recent = table.popularity(self.window)[new[said]]
            rising = self.popularity_floor + recent / max(float(recent.max(initial=0.0)), 1e-9)
            scores[new[said]] = match * rising
        return DenseQuery(scores)

    def new(self, table: ItemTable) -> Mask:
        """Which items of the table are new, shape (len(table),)."""
        unknown: Mask = self.als.vocabulary.of_table(table) < 0
        return unknown | (table.takers <= self.max_takers)
