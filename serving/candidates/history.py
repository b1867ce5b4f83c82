"""The user's own history: what somebody bought or looked at is often what they want again. PURE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_repo.events import EventType
from feature_repo.rows import RecentEvents, UserRows
from serving.candidates.contract import I32, SparseQuery
from serving.cascade.items import ItemTable
from serving.cascade.kernels import NO_MAPPING, decayed_sums

#: How much an event says about liking, by event type code; negative feedback and cancellations say nothing here.
TYPE_WEIGHT: npt.NDArray[np.float64] = np.zeros(len(EventType))
TYPE_WEIGHT[EventType.view] = 1.0
TYPE_WEIGHT[EventType.cart] = 3.0
TYPE_WEIGHT[EventType.purchase] = 5.0
TYPE_WEIGHT[EventType.like] = 3.0
TYPE_WEIGHT[EventType.confirm] = 3.0
TYPE_WEIGHT[EventType.rating] = 2.0


def weight_per_item(
    recent: RecentEvents, table: ItemTable, now_us: int, half_life_days: float, place: I32 = NO_MAPPING
) -> tuple[I32, npt.NDArray[np.float64]]:
    """Sum the decayed weights of a user's recent events per item of the table, dropping items without weight.

    Parameters
    ----------
    place
        Position wanted for each item of the table, -1 for those to drop; by default the item's index.

    Returns
    -------
    tuple
        Distinct positions, in the order of the items, and their total weights; read-only, as others may get the same.
    """
    taken = table.taken_by(recent)
    key = now_us, half_life_days, id(place)
    known = taken.weights.get(key)
    if known is None or known[0] is not place:
        types, times = recent.types, recent.times
        found = decayed_sums(
            taken.items, taken.which, taken.events, types, times, TYPE_WEIGHT, now_us, half_life_days, place
        )
        known = taken.weights[key] = (place, *found)
    return known[1], known[2]


@dataclass(frozen=True)
class OwnHistory:
    """Items of the user's recent events: decayed weight x current popularity.

    What a user took often and lately comes back, the more so while others take it, too: on Online Retail the product
    ranks far better than either factor (docs/models.md has the figures).

    Attributes
    ----------
    popularity_floor
        What an item nobody takes any more keeps, relative to the most popular one.
    """

    half_life_days: float = 120.0
    window: str = "30d"
    popularity_floor: float = 0.05
    name: str = "history"

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> SparseQuery:
        """Sum the weights of the recent events per item and multiply by popularity."""
        items, total = weight_per_item(user.recent, table, now_us, self.half_life_days)
        popularity, order = table.popularity(self.window), table.most_popular(self.window)
        most = float(popularity[order[0]]) if len(order) else 0.0
        return SparseQuery(items, total * (self.popularity_floor + popularity[items] / max(most, 1e-9)), len(table))
