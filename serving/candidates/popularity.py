"""Popularity, recent, rated, and in the user's categories, from the live item table: nothing is fitted. PURE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.rows import UserRows
from serving.candidates.contract import F32, I32, DenseQuery
from serving.cascade.items import ItemTable

#: Long enough for every list a request may ask for.
_DEPTH = 1000


class _RankedQuery(DenseQuery):
    """A query whose order is shared by all users and computed once per table."""

    def __init__(self, scores: F32, ranking: I32) -> None:
        super().__init__(scores)
        self._ranking = ranking

    def top(self, k: int) -> I32:
        return self._ranking[:k] if k <= _DEPTH else super().top(k)


@dataclass(frozen=True)
class Popularity:
    """The most bought items, decayed with a half-life (`1d`, `7d`, `30d`, `90d`) or over all time (`all`)."""

    window: str = "7d"
    name: str = "popular"

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> _RankedQuery:
        """Answer alike for every user.

        `now_us` is not needed: from the table's moment on, all items decay by the same factor.
        """
        scores = table.popularity(self.window).astype(np.float32)
        return _RankedQuery(scores, table.most_popular(self.window)[:_DEPTH])


@dataclass(frozen=True)
class CategoryPopularity:
    """The most bought items of the categories a user likes: popularity x the user's share in the category."""

    window: str = "30d"
    name: str = "category"

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> DenseQuery:
        """Weight every category by the user's purchases and views in it."""
        if not user.categories:
            return DenseQuery(np.zeros(len(table), np.float32))
        weights = np.nan_to_num(user.affinities.column("affinity_purchases")) + 0.2 * np.nan_to_num(
            user.affinities.column("affinity_views")
        )
        weight = dict(zip(user.categories, weights / max(float(weights.sum()), 1e-9), strict=True))
        by_code = np.array([weight.get(name, 0.0) for name in table.category_names])
        return DenseQuery(table.popularity(self.window) * by_code[table.category_code])


@dataclass(frozen=True)
class RatedPopularity:
    """What is rated well and often: `rating_weight` x mean rating + `count_weight` x log(1 + ratings).

    Items nobody rated have no score; a shop without ratings gets no candidates from here.
    """

    rating_weight: float = 1.0
    count_weight: float = 1.0
    name: str = "rated"

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> DenseQuery:
        """Answer alike for every user."""
        ratings, total = (np.nan_to_num(table.columns[name]) for name in ("item_ratings", "item_rating_sum"))
        value = self.rating_weight * total / np.maximum(ratings, 1.0) + self.count_weight * np.log1p(ratings)
        return DenseQuery(np.where(ratings > 0, np.maximum(value, 0.0), 0.0))
