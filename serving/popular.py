"""Popular items without a model: the lower rungs of the ladder, and the list that is the same for everybody. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from serving.cascade.items import ItemTable
from serving.cascade.recommender import RankedItem

WINDOWS: Final = ("1d", "7d", "30d", "90d", "all")


def popular_in_table(
    table: ItemTable, k: int, *, window: str = "7d", category: str | None = None, exclude: Sequence[str] = ()
) -> list[RankedItem]:
    """Rank the available items by popularity, ties by popularity over all time, then by index.

    Parameters
    ----------
    window
        One of `WINDOWS`.
    category
        Only items of this category.
    exclude
        Items that must not be shown.
    """
    allowed = table.available.copy()
    blocked = table.lookup(exclude)
    allowed[blocked[blocked >= 0]] = False
    if category is not None:
        if category not in table.category_names:
            return []
        allowed &= table.category_code == table.category_names.index(category)
    scores = table.popularity(window)
    items = np.flatnonzero(allowed)
    order = np.lexsort((items, -table.popularity("all")[items], -scores[items]))[:k]
    return [
        RankedItem(table.ids[i], rank, float(scores[i]), "popular") for rank, i in enumerate(items[order].tolist(), 1)
    ]


def popular_in_file(popular: Sequence[str], k: int, *, exclude: Sequence[str] = ()) -> list[RankedItem]:
    """Take the list of a bundle's `popular.json`; its scores are not known any more and 0."""
    blocked = set(exclude)
    kept = [item_id for item_id in popular if item_id not in blocked][:k]
    return [RankedItem(item_id, rank, 0.0, "popular_file") for rank, item_id in enumerate(kept, 1)]
