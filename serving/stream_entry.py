"""The last step of everything that comes in: append to the stream within bounds, and put aside what was refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

from feature_repo.errors import UnavailableError
from feature_repo.quarantine import MAX_RAW_BYTES, Refused, refuse_commands
from feature_repo.settings import Settings
from feature_repo.stream import Append, AppendResult
from serving.cascade.items import ItemTable
from serving.metrics import Metrics
from serving.redis_client import BACKGROUND_TIMEOUT_S, RedisGuard

_LOG = logging.getLogger(__name__)
#: Entries per script: Redis answers nobody else while it runs.
CHUNK = 200


class StreamEntry:
    """Appends to the project's stream; counts and keeps what was refused."""

    def __init__(self, settings: Settings, client: Redis, guard: RedisGuard, metrics: Metrics) -> None:
        self._project = settings.project
        self.max_entries = settings.stream_max_entries
        self._client = client
        self._guard = guard
        self._metrics = metrics

    async def append(self, batch: Append) -> list[AppendResult]:
        """Append one chunk, made with `max_entries`; what is in the answer is in the stream.

        Raises
        ------
        UnavailableError
            If Redis did not confirm.
        """
        try:
            return await self._guard.call(lambda: batch.run_async(self._client), BACKGROUND_TIMEOUT_S)
        except UnavailableError:
            self._metrics.redis_failures.labels("append").inc()
            raise

    async def set_aside(self, source: str, refused: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Put refused rows (problem, row as sent) into quarantine; without Redis the sender alone knows of them."""
        for problem, _ in refused:
            self._metrics.refused.labels(problem.partition(":")[0]).inc()
        rows = [Refused(source, problem, _encoded(row)) for problem, row in refused]
        if not rows:
            return

        async def write() -> None:
            pipeline = self._client.pipeline(transaction=False)
            for command in refuse_commands(self._project, rows):
                pipeline.execute_command(*command)
            await pipeline.execute()

        try:
            await self._guard.call(write, BACKGROUND_TIMEOUT_S)
        except UnavailableError as error:
            self._metrics.quarantine_lost.inc(len(rows))
            _LOG.warning("%d refused %s could not be kept: %s", len(rows), source, error)


class NewItems:
    """Items that were let in and are not in the item table yet, so that a flood of new ones stops at `max_items`."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._table: ItemTable | None = None
        self._waiting: set[str] = set()

    def admit(self, table: ItemTable, item_id: str) -> bool:
        """Let an item in if it is known or there is room for it."""
        if table is not self._table:
            self._table = table
            self._waiting = {waiting for waiting in self._waiting if waiting not in table.index}
        if item_id in table.index or item_id in self._waiting:
            return True
        if len(table) + len(self._waiting) >= self._max_items:
            return False
        self._waiting.add(item_id)
        return True


def _encoded(row: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(row)[: MAX_RAW_BYTES + 1]
    except (UnicodeEncodeError, TypeError, ValueError):
        return ascii(row).encode()[: MAX_RAW_BYTES + 1]
