"""Takes batches of events: each is checked by itself, and acknowledged only once it is in the stream."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis

from feature_repo.errors import UnavailableError
from feature_repo.stream import append_events_async
from serving.answers import EventResult, EventResults
from serving.event_entry import RefusedEvent, prepare_event
from serving.metrics import Metrics
from serving.redis_client import BACKGROUND_TIMEOUT_S, RedisGuard
from serving.state import ServingState

#: Events per script: Redis answers nobody else while it runs.
_CHUNK = 200
_TOO_OLD = "too_old: events that happened more than 7 days ago go into the history (larder data import)"


class EventIntake:
    """The way in for live events."""

    def __init__(
        self,
        project: str,
        client: Redis,
        guard: RedisGuard,
        state: ServingState,
        metrics: Metrics,
        now_us: Callable[[], int],
    ) -> None:
        self._project = project
        self._client = client
        self._guard = guard
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
        now_us = self._now_us()
        results: dict[int, EventResult] = {}
        prepared: dict[int, dict[str, Any]] = {}
        for place, event in enumerate(sent):
            try:
                prepared[place] = prepare_event(event, table, now_us, uuid.uuid4().hex)
            except RefusedEvent as refusal:
                event_id = event.get("event_id")
                results[place] = EventResult(
                    event_id if isinstance(event_id, str) else None, "rejected", None, str(refusal)
                )
        places = list(prepared)
        for start in range(0, len(places), _CHUNK):
            await self._append(places[start : start + _CHUNK], prepared, now_us, results)
        counts = {"accepted": 0, "duplicate": 0, "rejected": 0}
        for result in results.values():
            counts[result.status] += 1
        for status, count in counts.items():
            self._metrics.events.labels(status).inc(count)
        return EventResults(
            counts["accepted"], counts["duplicate"], counts["rejected"], [results[place] for place in range(len(sent))]
        )

    async def _append(
        self, places: list[int], prepared: dict[int, dict[str, Any]], now_us: int, results: dict[int, EventResult]
    ) -> None:
        events = [prepared[place] for place in places]
        try:
            appended = await self._guard.call(
                lambda: append_events_async(self._client, self._project, events, now_us // 1000), BACKGROUND_TIMEOUT_S
            )
        except UnavailableError:
            self._metrics.redis_failures.labels("append").inc()
            raise
        for place, event, (status, seq) in zip(places, events, appended, strict=True):
            results[place] = (
                EventResult(event["event_id"], "rejected", None, _TOO_OLD)
                if status == "too_old"
                else EventResult(event["event_id"], status, seq, None)
            )
