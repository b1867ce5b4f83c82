"""The reads of a request, each bounded: rows, or None where Redis did not bring them in time.

Nearly always there is one: the user's rows, with all of the user's pairs. Who dealt with very many items is asked for
the pairs of the candidates in a second one.
"""

from __future__ import annotations

import math
from typing import Final

from feature_repo.errors import UnavailableError
from feature_repo.online_reader import AsyncOnlineReader
from feature_repo.rows import NO_RECENT_EVENTS, Rows, UserRows, null_rows
from feature_repo.views import USER_CATEGORY, USER_STATS
from serving.cascade.recommender import Draft
from serving.metrics import Metrics
from serving.redis_client import RedisGuard

#: Reading the pairs of hundreds of candidates takes as long as reading about so many rows at once.
MANY_PAIRS: Final = 500
_REMEMBERED: Final = 100_000


class FeatureReads:
    """Reads features of one user through the guard and counts what failed."""

    def __init__(self, reader: AsyncOnlineReader, guard: RedisGuard, metrics: Metrics) -> None:
        self._many: dict[str, None] = {}
        self._reader = reader
        self._guard = guard
        self._failures = metrics.redis_failures

    async def user(self, user_id: str, now_us: int, *, within_s: float = math.inf) -> UserRows | None:
        """Read the user's row, affinities, recent events, and all pairs unless they are known to be many.

        Parameters
        ----------
        within_s
            What is left of the request's time.
        """
        few = user_id not in self._many
        try:
            user = await self._guard.call(lambda: self._reader.user(user_id, now_us, with_pairs=few), within_s=within_s)
        except UnavailableError:
            self._failures.labels("user_read").inc()
            return None
        if user.pairs is not None and len(user.pairs) > MANY_PAIRS:
            self._remember(user_id)
        return user

    async def pairs(
        self, user: UserRows, item_ids: list[str], now_us: int, *, within_s: float = math.inf
    ) -> Rows | None:
        """Return what the user did with some items: from the first read, or a second one."""
        if user.pairs is not None:
            return user.pairs.of(item_ids)
        try:
            return await self._guard.call(lambda: self._reader.pairs(user.user_id, item_ids, now_us), within_s=within_s)
        except UnavailableError:
            self._failures.labels("pair_read").inc()
            return None

    async def drafted(self, draft: Draft, *, within_s: float = math.inf) -> Rows | None:
        """Return what the user did with a draft's candidates; as `pairs`, without naming them where it can."""
        known, table = draft.user.pairs, draft.table
        if known is None:
            return await self.pairs(draft.user, draft.item_ids, draft.now_us, within_s=within_s)
        return known.at(table.lookup(known.item_ids), draft.candidates.items, len(table))

    def _remember(self, user_id: str) -> None:
        if len(self._many) >= _REMEMBERED:
            del self._many[next(iter(self._many))]
        self._many[user_id] = None

    @staticmethod
    def nothing_known(user_id: str) -> UserRows:
        """Rows of a user of whom nothing is known, or could be read."""
        return UserRows(user_id, null_rows(USER_STATS, 1), [], null_rows(USER_CATEGORY, 0), NO_RECENT_EVENTS)
