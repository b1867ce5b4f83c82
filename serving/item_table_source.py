"""Keeps the item table fresh: everything once, then only what changed, read from Redis (cascade/items.py)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from feature_repo.online_reader import AsyncOnlineReader
from feature_repo.packed_tail import CatalogItem
from feature_repo.rows import Rows
from serving.cascade.item_changes import apply_changes
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table, catalog_entry


@dataclass(frozen=True, slots=True)
class TableChange:
    """One refresh: whoever applies it to the table before has the table after, index for index."""

    before: ItemTable | None
    after: ItemTable
    catalog: list[CatalogEntry]
    stats: Rows


class ItemTableSource:
    """Builds the next table from the changes since the last look.

    Parameters
    ----------
    reader
        Reader of the project's online store.
    now_us
        Wall clock, µs since the epoch.

    Attributes
    ----------
    listeners
        Called with every change, on the event loop, in the moment the table is swapped.
    """

    def __init__(self, reader: AsyncOnlineReader, now_us: Callable[[], int]) -> None:
        self._reader = reader
        self._now_us = now_us
        self._cursor_ms = 0
        self._table: ItemTable | None = None
        self._checked_at: float | None = None
        self.listeners: list[Callable[[TableChange], None]] = []

    @property
    def table(self) -> ItemTable | None:
        """The last good table; None before the first load. An empty shop has an empty table."""
        return self._table

    @property
    def age_s(self) -> float:
        """Seconds since Redis was last looked at successfully; infinite before the first time."""
        return float("inf") if self._checked_at is None else time.monotonic() - self._checked_at

    async def refresh(self) -> bool:
        """Read what changed and swap the table.

        Returns
        -------
        bool
            Whether there is a new table.

        Raises
        ------
        UnavailableError
            If Redis is away; the last table stays.
        """
        looked_at = time.monotonic()
        changes = await self._reader.changes(self._cursor_ms)
        changed = bool(changes.item_ids) or self._table is None
        if changed:
            as_of_us = self._now_us()
            # Sorted, so that a freshly loaded table orders its items (and breaks ties) like an offline one.
            item_ids = sorted(changes.item_ids)
            stats, entries = await self._reader.read_items(item_ids)
            change = await asyncio.to_thread(_next, self._table, item_ids, stats, entries, as_of_us)
            self._table = change.after
            for listener in tuple(self.listeners):
                listener(change)
        # An item may change again in the very millisecond of the last change seen: look at that millisecond once
        # more, and only when it brought nothing newer start behind it.
        repeated = changes.cursor_ms == self._cursor_ms and changes.cursor_ms > 0
        self._cursor_ms = changes.cursor_ms + 1 if repeated and changes.item_ids else changes.cursor_ms
        self._checked_at = looked_at
        return changed


def _next(
    table: ItemTable | None, item_ids: list[str], stats: Rows, entries: list[CatalogItem | None], as_of_us: int
) -> TableChange:
    catalog = [catalog_entry(item_id, entry) for item_id, entry in zip(item_ids, entries, strict=True)]
    return TableChange(table, next_table(table, catalog, stats, as_of_us), catalog, stats)


def next_table(table: ItemTable | None, catalog: list[CatalogEntry], stats: Rows, as_of_us: int) -> ItemTable:
    """Return the table after a change, with what requests ask of it derived already."""
    following = (
        build_item_table(catalog, stats, as_of_us) if table is None else apply_changes(table, catalog, stats, as_of_us)
    )
    # Derived here, in a thread, and not by the next request.
    _ = following.index, following.category_names, following.category_code
    if table is not None:
        following.rank_as(table)
    return following
