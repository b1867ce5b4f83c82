"""Users of canary and baseline with what they clicked and bought, in memory. PURE.

It is not kept durable: after a restart the logs are read once more up to where they had been read.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

Outcome = Literal["click", "conversion"]
#: Arms that are compared.
ARMS: Final = ("canary", "baseline")
#: Requests that clicks can still be joined to, and clicks that came before their request was read.
MAX_REQUESTS: Final = 200_000
MAX_WAITING: Final = 50_000


@dataclass(slots=True)
class User:
    """One user of an arm: the step at which they were first seen in it, which is their stratum, and their counts."""

    step: int
    requests: int = 0
    clicks: int = 0
    conversions: int = 0


class _Request(NamedTuple):
    user: User
    time_us: int


class Sums(NamedTuple):
    """Of one value per user: number of users, sum and sum of squares."""

    users: int
    total: float
    squares: float


@dataclass(slots=True)
class UserTable:
    """Joins clicks and purchases to the recommendations they answer.

    Attributes
    ----------
    horizon_us
        A click or purchase counts so long after its recommendation.
    users
        By arm and user id.
    """

    horizon_us: int
    users: dict[str, dict[str, User]] = field(default_factory=lambda: {arm: {} for arm in ARMS})
    _requests: OrderedDict[str, _Request] = field(default_factory=OrderedDict)
    _waiting: OrderedDict[str, list[tuple[Outcome, int]]] = field(default_factory=OrderedDict)

    def serve(self, request_id: str, user_id: str, arm: str, step: int, time_us: int) -> bool:
        """Take in a recommendation; return whether the user is new in the arm."""
        mine = self.users[arm]
        user = mine.get(user_id)
        is_new = user is None
        if user is None:
            user = mine[user_id] = User(step)
        user.requests += 1
        self._requests[request_id] = request = _Request(user, time_us)
        for outcome, at_us in self._waiting.pop(request_id, ()):
            self._count(request, outcome, at_us)
        self._forget(time_us)
        return is_new

    def answer(self, request_id: str, outcome: Outcome, at_us: int) -> None:
        """Take in a click or purchase; it waits where the recommendation has not been read yet."""
        request = self._requests.get(request_id)
        if request is not None:
            self._count(request, outcome, at_us)
            return
        # Most answer recommendations of no arm that is compared and are never asked for: the oldest go.
        self._waiting.setdefault(request_id, []).append((outcome, at_us))
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popitem(last=False)

    def sums(self, arm: str, outcome: Outcome) -> dict[int, Sums]:
        """Return the sums of a value per user, by stratum."""
        found: dict[int, list[float]] = {}
        for user in self.users[arm].values():
            value = user.clicks if outcome == "click" else user.conversions
            sums = found.setdefault(user.step, [0, 0.0, 0.0])
            sums[0] += 1
            sums[1] += value
            sums[2] += value * value
        return {step: Sums(int(n), total, squares) for step, (n, total, squares) in sorted(found.items())}

    def count(self, arm: str) -> tuple[int, int, int]:
        """Return an arm's users, clicks and conversions."""
        users = self.users[arm].values()
        return len(users), sum(user.clicks for user in users), sum(user.conversions for user in users)

    def _count(self, request: _Request, outcome: Outcome, at_us: int) -> None:
        if abs(at_us - request.time_us) > self.horizon_us:
            return
        if outcome == "click":
            request.user.clicks += 1
        else:
            request.user.conversions += 1

    def _forget(self, now_us: int) -> None:
        while self._requests:
            oldest = next(iter(self._requests.values()))
            if len(self._requests) <= MAX_REQUESTS and now_us - oldest.time_us <= self.horizon_us:
                break
            self._requests.popitem(last=False)
