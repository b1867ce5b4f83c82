"""How many events one user may send: a token bucket per user, for a bounded number of users. PURE."""

from __future__ import annotations

import math
from collections import OrderedDict

#: Users whose buckets are kept; the one not seen for longest is forgotten, and begins with a full bucket next time.
MAX_USERS = 100_000


class UserLimits:
    """Token buckets: each user has `burst` events at once, and `rate_per_s` more every second.

    Parameters
    ----------
    rate_per_s
        Events a second in the long run; 0 or less: no limit.
    burst
        Events at once.
    max_users
        Buckets kept.
    """

    def __init__(self, rate_per_s: float, burst: int, max_users: int = MAX_USERS) -> None:
        self._rate = rate_per_s
        self._burst = float(max(burst, 1))
        self._max_users = max_users
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, user_id: str, now_s: float) -> bool:
        """Take one event's token; False where there is none.

        Parameters
        ----------
        now_s
            Monotonic seconds.
        """
        if self._rate <= 0:
            return True
        tokens, then = self._buckets.get(user_id, (self._burst, now_s))
        tokens = min(tokens + (now_s - then) * self._rate, self._burst)
        allowed = tokens >= 1.0
        self._buckets[user_id] = (tokens - 1.0 if allowed else tokens, now_s)
        self._buckets.move_to_end(user_id)
        if len(self._buckets) > self._max_users:
            self._buckets.popitem(last=False)
        return allowed

    def seconds_for(self, events: int) -> int:
        """Return after how many whole seconds an emptied bucket has room for so many events (at most a burst)."""
        return max(math.ceil(min(events, self._burst) / self._rate), 1)
