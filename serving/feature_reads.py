"""The two reads of a request, each bounded: rows, or None where Redis did not bring them in time."""

from __future__ import annotations

from feature_repo.errors import UnavailableError
from feature_repo.online_reader import AsyncOnlineReader
from feature_repo.rows import NO_RECENT_EVENTS, Rows, UserRows, null_rows
from feature_repo.views import USER_CATEGORY, USER_STATS
from serving.metrics import Metrics
from serving.redis_client import RedisGuard


class FeatureReads:
    """Reads features of one user through the guard and counts what failed."""

    def __init__(self, reader: AsyncOnlineReader, guard: RedisGuard, metrics: Metrics) -> None:
        self._reader = reader
        self._guard = guard
        self._failures = metrics.redis_failures

    async def user(self, user_id: str, now_us: int) -> UserRows | None:
        """First read: the user's row, affinities and recent events."""
        try:
            return await self._guard.call(lambda: self._reader.user(user_id, now_us))
        except UnavailableError:
            self._failures.labels("user_read").inc()
            return None

    async def pairs(self, user_id: str, item_ids: list[str], now_us: int) -> Rows | None:
        """Second read: what the user did with some items."""
        try:
            return await self._guard.call(lambda: self._reader.pairs(user_id, item_ids, now_us))
        except UnavailableError:
            self._failures.labels("pair_read").inc()
            return None

    @staticmethod
    def nothing_known(user_id: str) -> UserRows:
        """Rows of a user of whom nothing is known, or could be read."""
        return UserRows(user_id, null_rows(USER_STATS, 1), [], null_rows(USER_CATEGORY, 0), NO_RECENT_EVENTS)
