"""Popularity, recent, rated, and in the user's categories, from the live item table: nothing is fitted. PURE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_repo.rows import UserRows, block_names
from feature_repo.views import USER_CATEGORY
from serving.candidates.contract import F32, I32, DenseQuery, top_k
from serving.cascade.items import ItemTable
from serving.cascade.kernels import first_of_each, worth_in_category

F64 = npt.NDArray[np.float64]

#: Rows of purchases and views in a block of affinities.
_COUNTS = [block_names(USER_CATEGORY).index(f"affinity_{name}") for name in ("purchases", "views")]
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
        return _RankedQuery(table.popularity_score(self.window), table.most_popular(self.window)[:_DEPTH])


@dataclass(frozen=True)
class CategoryPopularity:
    """The most bought items of the categories a user likes: popularity x the user's share in the category."""

    window: str = "30d"
    name: str = "category"

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> _CategoryQuery:
        """Weight every category by the user's purchases and views in it."""
        counts = user.affinities.block()
        bought, seen = (np.where(np.isnan(counts[row]), 0.0, counts[row]) for row in _COUNTS)
        weights = bought + 0.2 * seen
        by_code = np.zeros(len(table.category_names))
        code = table.category_index
        for name, weight in zip(user.categories, (weights / max(float(weights.sum()), 1e-9)).tolist(), strict=True):
            if name in code:  # a category may have left the catalogue
                by_code[code[name]] = weight
        return _CategoryQuery(by_code, table, self.window)


class _CategoryQuery:
    """Looks at the best items of the user's categories only, not at all there are."""

    def __init__(self, by_code: F64, table: ItemTable, window: str) -> None:
        self._by_code, self._table, self._window = by_code, table, window

    def top(self, k: int) -> I32:
        order, begins = self._table.popular_by_category(self._window)
        items = first_of_each(order, begins, self._by_code, k)
        return top_k(self.scores(items), k, items)

    def scores(self, items: I32) -> F32:
        table = self._table
        return worth_in_category(items, table.popularity(self._window), self._by_code, table.category_code)


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
