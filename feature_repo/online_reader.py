"""Reads features from Redis as NumPy arrays: rows of any views in one round trip per call, sync and async.

A row that is damaged or of another layout counts as missing and is counted in `malformed`; Redis away is an
`UnavailableError`. What to ask and how to decode it is in `ReadPlan` and `_Queries`, shared by both readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import redis
import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from feature_repo.errors import UnavailableError
from feature_repo.online_keys import changed_key, checked_project, watermark_key
from feature_repo.packed_commands import ask, ask_async
from feature_repo.packed_row import Layout, PackedRows, read_rows
from feature_repo.packed_tail import CATALOG_LAYOUT, RECENT_LAYOUT, CatalogItem, catalog_items, recent_events
from feature_repo.read_request import (
    AllOf,
    Command,
    ReadPlan,
    ReadRows,
    Request,
    RowsOf,
    Stored,
    layout_of_request,
)
from feature_repo.redis_pipe import RedisPipe
from feature_repo.rows import NO_RECENT_EVENTS, AllPairs, Rows, UserRows, null_rows, within_max_age
from feature_repo.user_read import UserRead
from feature_repo.views import ITEM_STATS, USER_CATEGORY, USER_ITEM, USER_STATS

#: Rows per MGET of `read_items`: Redis answers nobody else meanwhile.
ITEMS_PER_READ = 1_000


@dataclass(frozen=True, slots=True)
class ItemChanges:
    """Items whose rows changed, and the millisecond (Redis' clock) to ask from next time."""

    item_ids: list[str]
    cursor_ms: int


class _Queries:
    """What to ask Redis and how to decode the answers."""

    def __init__(self, project: str) -> None:
        self.project = checked_project(project)
        self.malformed = 0

    def decode(self, plan: ReadPlan, replies: list[Any], now_us: int) -> list[ReadRows]:
        return [
            ReadRows(entities, self._rows(request, stored, now_us), now_us)
            for request, entities, stored in plan.stored([self._expected(reply) for reply in replies])
        ]

    def _rows(self, request: Request, stored: Stored, now_us: int) -> PackedRows:
        rows = read_rows(layout_of_request(request), stored, foreign="missing")
        if absent := len(stored) - int(np.count_nonzero(rows.present)):
            self.malformed += absent - stored.count(None)
        max_age_us = request.max_age_us if isinstance(request.view, Layout) else request.view.max_age_us
        return rows if max_age_us is None else rows.only(within_max_age(max_age_us, rows.time, now_us))

    def user_rows(
        self, user_id: str, stats: ReadRows, affinities: ReadRows, recent: ReadRows, pairs: ReadRows | None = None
    ) -> UserRows:
        events = recent_events(recent.packed, foreign="missing")[0]
        self.malformed += bool(recent.present[0]) and events is None
        return UserRows(
            user_id,
            stats.rows(USER_STATS),
            list(affinities.entities),
            affinities.rows(USER_CATEGORY),
            events or NO_RECENT_EVENTS,
            None if pairs is None else AllPairs(pairs.entities, pairs.rows(USER_ITEM)),
        )

    def item_rows(self, stats: ReadRows, catalog: ReadRows) -> tuple[Rows, list[CatalogItem | None]]:
        entries = catalog_items(catalog.entities, catalog.packed, foreign="missing")
        self.malformed += int(np.count_nonzero(catalog.present)) - len(entries) + entries.count(None)
        return stats.rows(ITEM_STATS), entries

    def changes(self, since_ms: int) -> list[Command]:
        return [("ZRANGEBYSCORE", changed_key(self.project), since_ms, "+inf", "WITHSCORES")]

    def decode_changes(self, since_ms: int, replies: list[Any]) -> ItemChanges:
        members = [(item, int(float(score))) for item, score in _scored(self._required(replies[0]))]
        return ItemChanges([item.decode() for item, _ in members], max((ms for _, ms in members), default=since_ms))

    def watermark(self) -> list[Command]:
        return [("GET", watermark_key(self.project))]

    def decode_watermark(self, replies: list[Any]) -> int:
        return int(self._required(replies[0]) or 0)

    def _expected(self, reply: Any) -> Any:
        """Pass a reply on; a key of another type is a malformed row, any other error is Redis refusing to work."""
        if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
            self.malformed += 1
            return None
        return self._required(reply)

    @staticmethod
    def _required(reply: Any) -> Any:
        if isinstance(reply, Exception):
            _unavailable(reply)
        return reply


def user_requests(user_id: str, with_pairs: bool = False) -> list[Request]:
    """Return the first read of a recommendation: the user's row, all affinities and the recent events, or all pairs."""
    rows: list[Request] = [
        RowsOf(USER_STATS, [user_id]),
        AllOf(USER_CATEGORY, user_id),
        RowsOf(RECENT_LAYOUT, [user_id]),
    ]
    return [*rows, AllOf(USER_ITEM, user_id)] if with_pairs else rows


def _item_requests(item_ids: Sequence[str]) -> list[Request]:
    return [RowsOf(ITEM_STATS, item_ids), RowsOf(CATALOG_LAYOUT, item_ids)]


def _scored(reply: Any) -> list[tuple[bytes, float]]:
    """Normalise ZRANGEBYSCORE … WITHSCORES: pairs (RESP3) or a flat list (RESP2)."""
    if reply and isinstance(reply[0], bytes):
        return list(zip(reply[::2], reply[1::2], strict=True))
    return [(member, score) for member, score in reply]


def _unavailable(error: BaseException) -> NoReturn:
    raise UnavailableError(f"Redis did not answer: {type(error).__name__}: {error}") from error


class OnlineReader:
    """Reads features synchronously; implements `rows.FeatureReader`.

    Parameters
    ----------
    client
        Redis client with `decode_responses=False`.
    project
        Name of the project.
    """

    def __init__(self, client: redis.Redis, project: str) -> None:
        self._client = client
        self._queries = _Queries(project)

    @property
    def malformed(self) -> int:
        """How many damaged or foreign rows were met so far (each counted as missing)."""
        return self._queries.malformed

    def read(self, requests: Sequence[Request], now_us: int) -> list[ReadRows]:
        """Read rows of any views in one round trip.

        Parameters
        ----------
        requests
            Which rows of which views.
        now_us
            Time of the request (µs): rows past their view's maximal age are missing, and ages are counted to it.

        Returns
        -------
        list of ReadRows
            One per request.

        Raises
        ------
        UnavailableError
            If Redis does not answer.
        """
        plan = ReadPlan(self._queries.project, requests)
        return self._queries.decode(plan, self._run(plan.commands), now_us)

    def user(self, user_id: str, now_us: int) -> UserRows:
        """Read the user's row, affinities and recent events."""
        return self._queries.user_rows(user_id, *self.read(user_requests(user_id), now_us))

    def pairs(self, user_id: str, item_ids: list[str], now_us: int) -> Rows:
        """Read the rows of USER_ITEM for one user and some items, shape (len(item_ids),)."""
        (pairs,) = self.read([RowsOf(USER_ITEM, user_id, item_ids)], now_us)
        return pairs.rows(USER_ITEM)

    def read_items(self, item_ids: list[str]) -> tuple[Rows, list[CatalogItem | None]]:
        """Read ITEM_STATS and catalogue entries of items (None where the catalogue has none)."""
        parts = [self.read(_item_requests(chunk), 0) for chunk in _chunks(item_ids)]
        return _joined([self._queries.item_rows(*part) for part in parts])

    def changes(self, since_ms: int) -> ItemChanges:
        """Read which items changed at or after a millisecond of Redis' clock; 0 brings all items there are."""
        return self._queries.decode_changes(since_ms, self._run(self._queries.changes(since_ms)))

    def changed_items(self, since_ms: int) -> list[str]:
        """Read which items changed at or after a millisecond of Redis' clock."""
        return self.changes(since_ms).item_ids

    def watermark(self) -> int:
        """Read the `seq` of the last event folded; 0 before the first."""
        return self._queries.decode_watermark(self._run(self._queries.watermark()))

    def _run(self, commands: list[Command]) -> list[Any]:
        try:
            return ask(self._client, commands, raise_on_error=False)
        except (RedisError, OSError) as error:
            _unavailable(error)


class AsyncOnlineReader:
    """Reads features without blocking the event loop; the twin of `OnlineReader`.

    Parameters
    ----------
    client
        `redis.asyncio` client with `decode_responses=False`, or the connection that all requests share.
    project
        Name of the project.
    """

    def __init__(self, client: redis.asyncio.Redis | RedisPipe, project: str) -> None:
        self._client = client
        self._queries = _Queries(project)
        self._user_read = UserRead(project)

    @property
    def malformed(self) -> int:
        """How many damaged or foreign rows were met so far (each counted as missing)."""
        return self._queries.malformed

    async def read(self, requests: Sequence[Request], now_us: int) -> list[ReadRows]:
        """Read rows of any views in one round trip.

        Parameters
        ----------
        requests
            Which rows of which views.
        now_us
            Time of the request (µs): rows past their view's maximal age are missing, and ages are counted to it.

        Returns
        -------
        list of ReadRows
            One per request.

        Raises
        ------
        UnavailableError
            If Redis does not answer.
        """
        plan = ReadPlan(self._queries.project, requests)
        return self._queries.decode(plan, await self._run(plan.commands), now_us)

    async def user(self, user_id: str, now_us: int, *, with_pairs: bool = False) -> UserRows:
        """Read the user's row, affinities and recent events, and all pair rows of the user if wanted."""
        if not isinstance(self._client, RedisPipe):
            return self._queries.user_rows(user_id, *(await self.read(user_requests(user_id, with_pairs), now_us)))
        message, count = self._user_read.message(user_id, with_pairs=with_pairs)
        try:
            replies = await self._client.ask_packed(message, count)
        except (RedisError, OSError) as error:
            _unavailable(error)
        user = self._user_read.decoded(user_id, replies, now_us)
        if user is not None:
            return user
        plan = ReadPlan(self._queries.project, user_requests(user_id, with_pairs))
        return self._queries.user_rows(user_id, *self._queries.decode(plan, replies, now_us))

    async def pairs(self, user_id: str, item_ids: list[str], now_us: int) -> Rows:
        """Read the rows of USER_ITEM for one user and some items, shape (len(item_ids),)."""
        (pairs,) = await self.read([RowsOf(USER_ITEM, user_id, item_ids)], now_us)
        return pairs.rows(USER_ITEM)

    async def read_items(self, item_ids: list[str]) -> tuple[Rows, list[CatalogItem | None]]:
        """Read ITEM_STATS and catalogue entries of items (None where the catalogue has none)."""
        parts = [await self.read(_item_requests(chunk), 0) for chunk in _chunks(item_ids)]
        return _joined([self._queries.item_rows(*part) for part in parts])

    async def changes(self, since_ms: int) -> ItemChanges:
        """Read which items changed at or after a millisecond of Redis' clock; 0 brings all items there are."""
        return self._queries.decode_changes(since_ms, await self._run(self._queries.changes(since_ms)))

    async def changed_items(self, since_ms: int) -> list[str]:
        """Read which items changed at or after a millisecond of Redis' clock."""
        return (await self.changes(since_ms)).item_ids

    async def watermark(self) -> int:
        """Read the `seq` of the last event folded; 0 before the first."""
        return self._queries.decode_watermark(await self._run(self._queries.watermark()))

    async def _run(self, commands: list[Command]) -> list[Any]:
        client = self._client
        try:
            if isinstance(client, RedisPipe):
                return await client.ask(commands)
            return await ask_async(client, commands, raise_on_error=False)
        except (RedisError, OSError) as error:
            _unavailable(error)


def _chunks(item_ids: list[str]) -> list[list[str]]:
    return [item_ids[i : i + ITEMS_PER_READ] for i in range(0, len(item_ids), ITEMS_PER_READ)]


def _joined(parts: list[tuple[Rows, list[CatalogItem | None]]]) -> tuple[Rows, list[CatalogItem | None]]:
    if not parts:
        return null_rows(ITEM_STATS, 0), []
    rows = [rows for rows, _ in parts]
    joined = Rows(
        ITEM_STATS,
        np.concatenate([r.ints for r in rows]),
        np.concatenate([r.floats for r in rows]),
        np.concatenate([r.present for r in rows]),
    )
    return joined, [entry for _, entries in parts for entry in entries]
