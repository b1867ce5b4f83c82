"""Takes batches of events: each is checked by itself, and acknowledged only once it is in the stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from feature_repo.errors import UnavailableError
from feature_repo.event_rules import normalise_id
from feature_repo.settings import Settings
from feature_repo.stream import Append
from serving.answers import EventResult, EventResults
from serving.cascade.items import ItemTable
from serving.event_entry import RefusedEvent, is_bounded_id, prepare_event
from serving.metrics import Metrics
from serving.rate_limit import UserLimits
from serving.state import ServingState
from serving.stream_entry import CHUNK, NewItems, StreamEntry

TOO_OLD = "too_old: events that happened more than 7 days ago go into the history (larder data import)"


class EventIntake:
    """The way in for live events."""

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
        self._limits = UserLimits(settings.user_events_per_s, settings.user_events_burst)
        self._max_items = settings.max_items
        self._entry = entry
        self._new_items = new_items
        self._state = state
        self._metrics = metrics
        self._now_us = now_us

    async def take(self, sent: Sequence[dict[str, Any]]) -> EventResults:
        """Accept what is right and say of every event what became of it.

        Raises
        ------
        UnavailableError
            If Redis did not confirm, or no item table is there to enrich with; sending the same `event_id` again is
            safe.
        """
        table = self._state.table
        if table is None:
            raise UnavailableError("the items have not been loaded yet, so events cannot be completed; send them again")
        now_us, now_s = self._now_us(), time.monotonic()
        results: dict[int, EventResult] = {}
        prepared: dict[int, dict[str, Any]] = {}
        limited: dict[str, int] = {}
        for place, event in enumerate(sent):
            user = _limited_as(event.get("user_id"))
            if not self._limits.take(user, now_s):
                limited[user] = limited.get(user, 0) + 1
                results[place] = _rejected(event, "rate_limited: the user sent too many events; send it again later")
                continue
            try:
                prepared[place] = self._checked(event, table, now_us)
            except RefusedEvent as refusal:
                results[place] = _rejected(event, str(refusal))
        places = list(prepared)
        for start in range(0, len(places), CHUNK):
            await self._append(places[start : start + CHUNK], prepared, now_us, results)
        counts = {"accepted": 0, "duplicate": 0, "rejected": 0}
        refused: list[tuple[str, dict[str, Any]]] = []
        for place, event in enumerate(sent):
            result = results[place]
            counts[result.status] += 1
            if result.reason is not None and not result.reason.startswith("rate_limited"):
                refused.append((result.reason, event))
        for status, count in counts.items():
            self._metrics.events.labels(status).inc(count)
        self._metrics.refused.labels("rate_limited").inc(sum(limited.values()))
        await self._entry.set_aside("events", refused)
        return EventResults(
            counts["accepted"],
            counts["duplicate"],
            counts["rejected"],
            max((self._limits.seconds_for(count) for count in limited.values()), default=None),
            [results[place] for place in range(len(sent))],
        )

    async def refuse(self, refused: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Count and set aside what never became an event: (reason, as sent)."""
        if refused:
            self._metrics.events.labels("rejected").inc(len(refused))
            await self._entry.set_aside("events", list(refused))

    def _checked(self, event: dict[str, Any], table: ItemTable, now_us: int) -> dict[str, Any]:
        prepared = prepare_event(event, table, now_us, uuid.uuid4().hex)
        if not self._new_items.admit(table, prepared["item_id"]):
            raise RefusedEvent(f"too_many_items: the item is unknown, and {self._max_items} items are known")
        return prepared

    async def _append(
        self, places: list[int], prepared: dict[int, dict[str, Any]], now_us: int, results: dict[int, EventResult]
    ) -> None:
        events = [prepared[place] for place in places]
        batch = Append.of_events(self._project, events, now_us // 1000, self._entry.max_entries)
        appended = await self._entry.append(batch)
        for place, event, (status, seq) in zip(places, events, appended, strict=True):
            results[place] = (
                EventResult(event["event_id"], "rejected", None, TOO_OLD)
                if status == "too_old"
                else EventResult(event["event_id"], status, seq, None)
            )


def _limited_as(user_id: Any) -> str:
    """Return whose bucket an event counts in; all that name no user share one."""
    return normalise_id(user_id) if isinstance(user_id, str) and is_bounded_id(user_id) else ""


def _rejected(event: dict[str, Any], reason: str) -> EventResult:
    event_id = event.get("event_id")
    return EventResult(event_id if isinstance(event_id, str) else None, "rejected", None, reason)
