"""What this process showed lately: feedback on a list is checked against it without a look at the disk. PURE."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

#: Requests remembered; 10 MB at k = 20 (tracemalloc), as ids are shared with the item table.
MAX_REQUESTS: Final = 20_000
#: Longest list remembered; items further down count as unknown, not as not shown.
MAX_ITEMS: Final = 200


class ShownLists:
    """The last lists of this process by (request, user), the oldest forgotten first.

    Other processes of the API have lists of their own, so "unknown" says nothing against a request.
    """

    def __init__(self, max_requests: int = MAX_REQUESTS) -> None:
        self._max = max_requests
        self._lists: OrderedDict[tuple[str, str], tuple[tuple[str, ...], ...]] = OrderedDict()

    def remember(self, request_id: str, user_id: str, items: Sequence[str]) -> None:
        """Note a list; a request that is asked again adds its list to the first."""
        key = (request_id, user_id)
        kept = tuple(items[: MAX_ITEMS + 1])
        self._lists[key] = (*self._lists.pop(key, ())[-3:], kept)
        if len(self._lists) > self._max:
            self._lists.popitem(last=False)

    def rank(self, request_id: str, user_id: str, item_id: str) -> int | None:
        """Return where an item stood, from 1: in the newest list that has it; 0: in none; None: not known here."""
        lists = self._lists.get((request_id, user_id))
        if lists is None:
            return None
        for items in reversed(lists):
            if item_id in items[:MAX_ITEMS]:
                return items.index(item_id) + 1
        return None if any(len(items) > MAX_ITEMS for items in lists) else 0
