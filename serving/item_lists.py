"""Lists that are the same for everybody: items similar to one item, and popular items. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Callable

from feature_repo.errors import UnavailableError
from serving.answers import ItemList, Level, Reason
from serving.candidates.item_to_item import ItemToItem
from serving.cascade.items import ItemTable
from serving.cascade.recommender import RankedItem
from serving.popular import popular_in_file, popular_in_table
from serving.request_id import made_request_id
from serving.state import Release, ServingState


class ItemListService:
    """Answers from the item table and the bundle's item-to-item generator; Redis is not asked."""

    def __init__(self, state: ServingState, now_us: Callable[[], int]) -> None:
        self._state = state
        self._now_us = now_us

    def similar(self, item_id: str, k: int) -> ItemList:
        """List the items most similar to an item; popular ones of its category, else of all, where none is known."""
        release, table = self._state.release, self._state.listed
        if table is None:
            return self._answer("popularity_file", *self._from_file(release, k, exclude=[item_id]), release)
        reasons: list[Reason] = []
        if release is None:
            reasons.append("no_bundle")
        else:
            items = _neighbours(release, table, item_id, k)
            if items:
                return self._answer("full", items, [], release)
        index = table.index.get(item_id)
        if index is None:
            reasons.append("unknown_item")
        elif release is not None:
            reasons.append("no_neighbours")
        category = table.category[index] if index is not None and table.category[index] else None
        items = popular_in_table(table, k, category=category, exclude=[item_id])
        if category is not None and not items:  # nothing else of its category can be shown
            items = popular_in_table(table, k, exclude=[item_id])
        return self._answer("popularity", items, reasons)

    def popular(self, k: int, category: str | None, window: str) -> ItemList:
        """List the most bought items, of one category if asked."""
        release, table = self._state.release, self._state.listed
        if table is None:
            items, reasons = self._from_file(release, k)
            # The file knows no categories: better nothing than items of another one.
            return self._answer("popularity_file", items if category is None else [], reasons, release)
        if category is not None and category not in table.category_names:
            return self._answer("full", [], ["unknown_category"])
        return self._answer("full", popular_in_table(table, k, window=window, category=category), [])

    def _from_file(
        self, release: Release | None, k: int, *, exclude: list[str] | None = None
    ) -> tuple[list[RankedItem], list[Reason]]:
        if release is None:
            raise UnavailableError("neither a model bundle nor the item table has been loaded yet; try again")
        return popular_in_file(release.bundle.popular, k, exclude=[*(exclude or []), *self._state.hidden]), [
            "no_item_table"
        ]

    def _answer(
        self, level: Level, items: list[RankedItem], reasons: list[Reason], used: Release | None = None
    ) -> ItemList:
        return ItemList(
            request_id=made_request_id(),
            model_version=used.model_version if used else None,
            bundle_id=used.bundle.bundle_id if used else None,
            arm="stable",
            level=level,
            reasons=reasons,
            feature_age_s=self._state.feature_age_s(self._now_us()),
            item_table_age_s=self._state.item_table_age_s,
            items=items,
        )


def _neighbours(release: Release, table: ItemTable, item_id: str, k: int) -> list[RankedItem]:
    """Available neighbours of an item by the bundle's first item-to-item generator; empty if there is none."""
    for generator in release.bundle.recommender.generators:
        if isinstance(generator, ItemToItem):
            near = generator.similar(item_id, len(generator.vocabulary.ids))
            indices = table.lookup([near_id for near_id, _ in near])
            shown = [pair for pair, i in zip(near, indices.tolist(), strict=True) if i >= 0 and table.available[i]][:k]
            return [
                RankedItem(near_id, rank, score, generator.name) for rank, (near_id, score) in enumerate(shown, start=1)
            ]
    return []
