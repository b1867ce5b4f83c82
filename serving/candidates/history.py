"""The user's own history: what somebody bought or looked at is often what they want again. PURE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_repo.events import EventType
from feature_repo.rows import RecentEvents, UserRows
from feature_repo.views import DAY_US
from serving.candidates.contract import DenseQuery
from serving.cascade.items import ItemTable

#: How much an event says about liking, by event type code; negative feedback and cancellations say nothing here.
TYPE_WEIGHT: npt.NDArray[np.float64] = np.zeros(len(EventType))
TYPE_WEIGHT[EventType.view] = 1.0
TYPE_WEIGHT[EventType.cart] = 3.0
TYPE_WEIGHT[EventType.purchase] = 5.0
TYPE_WEIGHT[EventType.like] = 3.0
TYPE_WEIGHT[EventType.confirm] = 3.0
TYPE_WEIGHT[EventType.rating] = 2.0


def interaction_weights(recent: RecentEvents, now_us: int, half_life_days: float) -> npt.NDArray[np.float64]:
    """Weight of each recent event: its type's weight, halved every `half_life_days`; shape (n,)."""
    age_days = np.maximum(now_us - recent.times, 0) / DAY_US
    weights: npt.NDArray[np.float64] = TYPE_WEIGHT[recent.types] * np.exp2(-age_days / half_life_days)
    return weights


def weight_per_item(
    recent: RecentEvents, table: ItemTable, now_us: int, half_life_days: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Sum the weights of a user's recent events per item of the table, dropping items without weight.

    Returns
    -------
    tuple
        Distinct item indices, ascending, and their total weights.
    """
    taken = table.taken_by(recent)
    weights = interaction_weights(recent, now_us, half_life_days)[taken.events]
    total = np.bincount(taken.which, weights=weights, minlength=len(taken.items)).astype(np.float64, copy=False)
    liked = total > 0
    return taken.items[liked], total[liked]


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

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> DenseQuery:
        """Sum the weights of the recent events per item and multiply by popularity."""
        items, total = weight_per_item(user.recent, table, now_us, self.half_life_days)
        popularity = table.popularity(self.window)
        scores = np.zeros(len(table))
        scores[items] = total * (
            self.popularity_floor + popularity[items] / max(float(popularity.max(initial=0.0)), 1e-9)
        )
        return DenseQuery(scores)
