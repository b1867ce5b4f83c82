"""Takes batches of catalogue entries: each is checked by itself, and acknowledged once it is in the stream."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, Literal

from feature_repo.errors import UnavailableError
from feature_repo.item_changes import ItemChange
from feature_repo.settings import Settings
from feature_repo.stream import Append
from serving.answers import ItemResult, ItemResults
from serving.cascade.items import ItemTable
from serving.item_entry import RefusedItem, prepare_change
from serving.metrics import Metrics
from serving.state import ServingState
from serving.stream_entry import CHUNK, NewItems, StreamEntry


class ItemIntake:
    """The way in for the catalogue."""

    def __init__(
        self,
        settings: Settings,
        entry: StreamEntry,
        new_items: NewItems,
        state: ServingState,
        metrics: Metrics,
        now_us: Callable[[], int],
    ) -> None:
        self._project = settings.project
        self._max_items = settings.max_items
        self._entry = entry
        self._new_items = new_items
        self._state = state
        self._metrics = metrics
        self._now_us = now_us

    async def take(self, sent: Sequence[dict[str, Any]]) -> ItemResults:
        """Accept what is right and say of every entry what became of it.

        Raises
        ------
        UnavailableError
            If Redis did not confirm, or it is not known yet how many items there are; sending the same again is safe.
        """
        table = self._state.table
        if table is None:
            raise UnavailableError("the items have not been loaded yet; send them again")
        now_us = self._now_us()
        results: dict[int, ItemResult] = {}
        prepared: dict[int, ItemChange] = {}
        for place, entry in enumerate(sent):
            try:
                prepared[place] = self._checked(entry, table, now_us)
            except RefusedItem as refusal:
                item_id = entry.get("item_id")
                results[place] = ItemResult(
                    item_id if isinstance(item_id, str) else None, None, "rejected", None, str(refusal)
                )
        places = list(prepared)
        for start in range(0, len(places), CHUNK):
            chunk = places[start : start + CHUNK]
            changes = [prepared[place] for place in chunk]
            appended = await self._entry.append(Append.of_changes(self._project, changes, self._entry.max_entries))
            for place, change, result in zip(chunk, changes, appended, strict=True):
                status: Literal["accepted", "duplicate"] = "duplicate" if result.status == "duplicate" else "accepted"
                results[place] = ItemResult(change.item_id, change.change_id, status, result.seq, None)
        counts = {"accepted": 0, "duplicate": 0, "rejected": 0}
        for outcome in results.values():
            counts[outcome.status] += 1
        for name, count in counts.items():
            self._metrics.items.labels(name).inc(count)
        rejected = ((results[place].reason, entry) for place, entry in enumerate(sent))
        await self._entry.set_aside("items", [(reason, entry) for reason, entry in rejected if reason is not None])
        return ItemResults(
            counts["accepted"], counts["duplicate"], counts["rejected"], [results[place] for place in range(len(sent))]
        )

    def _checked(self, entry: dict[str, Any], table: ItemTable, now_us: int) -> ItemChange:
        change = prepare_change(entry, now_us, uuid.uuid4().hex)
        if not self._new_items.admit(table, change.item_id):
            raise RefusedItem(f"too_many_items: the item is unknown, and {self._max_items} items are known")
        return change
