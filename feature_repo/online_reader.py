"""Reads features of one user from Redis as NumPy arrays: one round trip per call, sync and async.

A row that is damaged or of another layout counts as missing and is counted in `malformed`; Redis away is an
`UnavailableError`. What to ask and how to decode it is in `_Queries`, shared by both readers.
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
from feature_repo.online_keys import changed_key, checked_project, row_key, row_keys, watermark_key
from feature_repo.packed_row import unpack_rows
from feature_repo.packed_tail import CatalogItem, unpack_catalog, unpack_recent
from feature_repo.rows import NO_RECENT_EVENTS, Rows, UserRows, null_rows, within_max_age
from feature_repo.views import CATALOG_VIEW, ITEM_STATS, RECENT_VIEW, USER_CATEGORY, USER_ITEM, USER_STATS, View

Command = tuple[Any, ...]
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

    def user(self, user_id: str) -> list[Command]:
        return [
            ("GET", row_key(self.project, USER_STATS.name, user_id)),
            ("HGETALL", row_key(self.project, USER_CATEGORY.name, user_id)),
            ("GET", row_key(self.project, RECENT_VIEW, user_id)),
        ]

    def decode_user(self, user_id: str, replies: list[Any], now_us: int) -> UserRows:
        stats, fields, recent = (self._expected(reply) for reply in replies)
        rows = dict(sorted(_pairs_of(fields)))
        affinities = self._rows(USER_CATEGORY, list(rows.values()), now_us)
        events = unpack_recent([recent], foreign="missing")[0]
        self.malformed += recent is not None and events is None
        return UserRows(
            user_id,
            self._rows(USER_STATS, [stats], now_us),
            [category.decode(errors="replace") for category in rows],
            affinities,
            events or NO_RECENT_EVENTS,
        )

    def pairs(self, user_id: str, item_ids: Sequence[str]) -> list[Command]:
        key = row_key(self.project, USER_ITEM.name, user_id)
        return [("HMGET", key, *item_ids)] if item_ids else []

    def decode_pairs(self, n: int, replies: list[Any], now_us: int) -> Rows:
        values = self._expected(replies[0]) if replies else None
        return self._rows(USER_ITEM, [None] * n if values is None else values, now_us)

    def items(self, item_ids: list[str]) -> list[Command]:
        stats = row_keys(self.project, ITEM_STATS.name, item_ids)
        catalog = row_keys(self.project, CATALOG_VIEW, item_ids)
        return [("MGET", *stats), ("MGET", *catalog)]

    def decode_items(self, item_ids: list[str], replies: list[Any]) -> tuple[Rows, list[CatalogItem | None]]:
        stats, catalog = (self._required(reply) for reply in replies)
        entries = unpack_catalog(item_ids, catalog, foreign="missing")
        self.malformed += sum(a is not None and b is None for a, b in zip(catalog, entries, strict=True))
        return self._rows(ITEM_STATS, stats, None), entries

    def changes(self, since_ms: int) -> list[Command]:
        return [("ZRANGEBYSCORE", changed_key(self.project), since_ms, "+inf", "WITHSCORES")]

    def decode_changes(self, since_ms: int, replies: list[Any]) -> ItemChanges:
        members = [(item, int(float(score))) for item, score in _scored(self._required(replies[0]))]
        return ItemChanges([item.decode() for item, _ in members], max((ms for _, ms in members), default=since_ms))

    def watermark(self) -> list[Command]:
        return [("GET", watermark_key(self.project))]

    def decode_watermark(self, replies: list[Any]) -> int:
        return int(self._required(replies[0]) or 0)

    def _rows(self, view: View, values: list[bytes | None], now_us: int | None) -> Rows:
        rows = unpack_rows(view, values, foreign="missing")
        self.malformed += len(values) - values.count(None) - int(np.count_nonzero(rows.present))
        if now_us is None or view.max_age_us is None:
            return rows
        alive = within_max_age(view, rows.time, now_us)
        if np.array_equal(alive, rows.present):
            return rows
        null = null_rows(view, len(rows))
        keep = alive[:, None]
        return Rows(view, np.where(keep, rows.ints, null.ints), np.where(keep, rows.floats, null.floats), alive)

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


def _pairs_of(reply: Any) -> list[tuple[bytes, bytes]]:
    """Normalise HGETALL's reply, which redis-py hands out as a dict."""
    return list(reply.items()) if reply else []


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

    def user(self, user_id: str, now_us: int) -> UserRows:
        """Read the user's row, affinities and recent events."""
        return self._queries.decode_user(user_id, self._run(self._queries.user(user_id)), now_us)

    def pairs(self, user_id: str, item_ids: list[str], now_us: int) -> Rows:
        """Read the rows of USER_ITEM for one user and some items, shape (len(item_ids),)."""
        return self._queries.decode_pairs(len(item_ids), self._run(self._queries.pairs(user_id, item_ids)), now_us)

    def read_items(self, item_ids: list[str]) -> tuple[Rows, list[CatalogItem | None]]:
        """Read ITEM_STATS and catalogue entries of items (None where the catalogue has none)."""
        parts = [self._read_items(chunk) for chunk in _chunks(item_ids)]
        return _joined(parts)

    def _read_items(self, item_ids: list[str]) -> tuple[Rows, list[CatalogItem | None]]:
        return self._queries.decode_items(item_ids, self._run(self._queries.items(item_ids)))

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
        if not commands:
            return []
        try:
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call] # redis-py has no types there
            return pipeline.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            _unavailable(error)


class AsyncOnlineReader:
    """Reads features without blocking the event loop; the twin of `OnlineReader`.

    Parameters
    ----------
    client
        `redis.asyncio` client with `decode_responses=False`.
    project
        Name of the project.
    """

    def __init__(self, client: redis.asyncio.Redis, project: str) -> None:
        self._client = client
        self._queries = _Queries(project)

    @property
    def malformed(self) -> int:
        """How many damaged or foreign rows were met so far (each counted as missing)."""
        return self._queries.malformed

    async def user(self, user_id: str, now_us: int) -> UserRows:
        """Read the user's row, affinities and recent events."""
        return self._queries.decode_user(user_id, await self._run(self._queries.user(user_id)), now_us)

    async def pairs(self, user_id: str, item_ids: list[str], now_us: int) -> Rows:
        """Read the rows of USER_ITEM for one user and some items, shape (len(item_ids),)."""
        replies = await self._run(self._queries.pairs(user_id, item_ids))
        return self._queries.decode_pairs(len(item_ids), replies, now_us)

    async def read_items(self, item_ids: list[str]) -> tuple[Rows, list[CatalogItem | None]]:
        """Read ITEM_STATS and catalogue entries of items (None where the catalogue has none)."""
        parts = [
            self._queries.decode_items(chunk, await self._run(self._queries.items(chunk)))
            for chunk in _chunks(item_ids)
        ]
        return _joined(parts)

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
        if not commands:
            return []
        try:
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)
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
