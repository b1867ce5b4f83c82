"""What this process showed lately: feedback on a list is checked against it without a look at the disk. PURE."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, TypeAlias

#: Requests remembered; 10 MB at k = 20 (tracemalloc), as ids are shared with the item table.
MAX_REQUESTS: Final = 20_000
#: Parts by hash. A table of all lists is built anew, 2 MB beside the old one, each time 24,000 more were remembered;
#: the process grew by .5 and 1.3 MB at the second and fourth time. Small tables take the places of those before.
BUCKETS: Final = 16
#: Longest list remembered; items further down count as unknown, not as not shown.
MAX_ITEMS: Final = 200
_Lists: TypeAlias = OrderedDict[tuple[str, str], tuple[tuple[str, ...], ...]]


class ShownLists:
    """The last lists of this process by (request, user), the oldest of a bucket forgotten first.

    Other processes of the API have lists of their own, so "unknown" says nothing against a request.
    """

    def __init__(self, max_requests: int = MAX_REQUESTS, buckets: int = BUCKETS) -> None:
        self._max = max_requests // buckets
        self._buckets: list[_Lists] = [OrderedDict() for _ in range(buckets)]

    def remember(self, request_id: str, user_id: str, items: Sequence[str]) -> None:
        """Note a list; a request that is asked again adds its list to the first."""
        key = (request_id, user_id)
        lists = self._bucket(key)
        lists[key] = (*lists.pop(key, ())[-3:], tuple(items[: MAX_ITEMS + 1]))
        if len(lists) > self._max:
            lists.popitem(last=False)

    def rank(self, request_id: str, user_id: str, item_id: str) -> int | None:
        """Return where an item stood, from 1: in the newest list that has it; 0: in none; None: not known here."""
        key = (request_id, user_id)
        lists = self._bucket(key).get(key)
        if lists is None:
            return None
        for items in reversed(lists):
            if item_id in items[:MAX_ITEMS]:
                return items.index(item_id) + 1
        return None if any(len(items) > MAX_ITEMS for items in lists) else 0

    def _bucket(self, key: tuple[str, str]) -> _Lists:
        return self._buckets[hash(key) % len(self._buckets)]
