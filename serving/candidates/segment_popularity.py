"""What people of the user's segment take; the segment is the category they deal with most. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_repo.events import EventType
from feature_repo.rows import UserRows
from serving.candidates.contract import F32, I32
from serving.candidates.history import TYPE_WEIGHT
from serving.candidates.vocabulary import Vocabulary, VocabularyQuery
from serving.cascade.items import ItemTable

#: Events by which a user belongs to a category, with the column that counts them; weighed as everywhere else.
SEGMENT_EVENTS: Final = {
    EventType.view: "affinity_views",
    EventType.cart: "affinity_carts",
    EventType.purchase: "affinity_purchases",
}
#: The segment of those who belong to none.
EVERYBODY: Final = ""


def segment_of(user: UserRows) -> str:
    """Return the category a user views, carts and buys most, the first by name of equals; `EVERYBODY` without.

    Users' rows tell nothing else they could be told apart by before they acted: no country, no device.
    """
    weight = np.zeros(len(user.categories))
    for code, column in SEGMENT_EVENTS.items():
        weight += TYPE_WEIGHT[code] * np.nan_to_num(user.affinities.column(column))
    return user.categories[int(np.argmax(weight))] if weight.any() else EVERYBODY


@dataclass(frozen=True, eq=False)
class SegmentPopularity:
    """The most taken items of each segment.

    Attributes
    ----------
    segments
        Names, shape (n_segments,); the first is `EVERYBODY`, whose row also answers for segments that are missing.
    items, weights
        Positions in the vocabulary, most taken first, and their share of the segment's first, shapes
        (n_segments, depth); -1 and 0 pad short rows.
    """

    vocabulary: Vocabulary
    segments: npt.NDArray[np.str_]
    items: I32
    weights: F32
    name: str = "segment"

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> VocabularyQuery:
        """Answer alike for everybody of a segment."""
        found = np.flatnonzero(self.segments == segment_of(user))
        row = int(found[0]) if len(found) else 0
        scores = np.zeros(len(self.vocabulary.ids), np.float32)
        filled = self.items[row] >= 0
        scores[self.items[row][filled]] = self.weights[row][filled]
        return VocabularyQuery(scores, self.vocabulary, table)
