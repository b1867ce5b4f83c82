"""Users of canary and baseline, step by step: who was seen, who met a failure, who clicked and bought. PURE.

It is in memory only: after a restart the logs are read once more up to where they had been counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from deployment.rollout.profile import GUARDRAILS

Outcome = Literal["click", "conversion"]
#: Arms that are compared.
ARMS: Final = ("canary", "baseline")
#: Requests that clicks can still be joined to, and requests whose clicks came before they were read.
MAX_REQUESTS: Final = 200_000
MAX_WAITING: Final = 50_000
#: What is known of a user in a step: a bit each.
_BITS: Final = {name: 1 << n for n, name in enumerate((*GUARDRAILS, "click", "conversion"))}


@dataclass(slots=True)
class ArmUsers:
    """Users of one arm in one step; `by_name` counts those who ever failed a guardrail, clicked, bought."""

    known: dict[str, int] = field(default_factory=dict)
    by_name: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_BITS, 0))

    def see(self, user_id: str) -> None:
        """Note that a user was there."""
        self.known.setdefault(user_id, 0)

    def note(self, user_id: str, name: str) -> None:
        """Note what a user met or did; once is enough."""
        bits = self.known.get(user_id, 0)
        if not bits & _BITS[name]:
            self.known[user_id] = bits | _BITS[name]
            self.by_name[name] += 1


class _Request(NamedTuple):
    arm: ArmUsers
    user_id: str
    time_us: int


@dataclass(slots=True)
class UserTable:
    """Counts every user once per step, and joins clicks and purchases to the recommendations they answer.

    Attributes
    ----------
    horizon_us
        A click or purchase counts so long after its recommendation.
    steps
        By step and arm.
    distinct
        Users of each arm over all steps.
    """

    horizon_us: int
    steps: dict[int, dict[str, ArmUsers]] = field(default_factory=dict)
    distinct: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ARMS, 0))
    _requests: OrderedDict[str, _Request] = field(default_factory=OrderedDict)
    _waiting: OrderedDict[str, list[tuple[Outcome, int]]] = field(default_factory=OrderedDict)

    def of(self, step: int) -> dict[str, ArmUsers]:
        """Return a step's users by arm."""
        return self.steps.setdefault(step, {arm: ArmUsers() for arm in ARMS})

    def serve(
        self, request_id: str, user_id: str, arm: str, step: int, time_us: int, failed: Iterable[str] = ()
    ) -> None:
        """Take in a recommendation and the guardrails it failed."""
        users = self.of(step)[arm]
        if not any(user_id in arms[arm].known for arms in self.steps.values()):
            self.distinct[arm] += 1
        users.see(user_id)
        for name in failed:
            users.note(user_id, name)
        self._requests[request_id] = request = _Request(users, user_id, time_us)
        for outcome, at_us in self._waiting.pop(request_id, ()):
            self._count(request, outcome, at_us)
        self._forget(time_us)

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

    def strata(self, arm: str, outcome: Outcome) -> dict[str, tuple[int, int]]:
        """Return, by step, users and those of them who did it."""
        return {str(step): (len(arms[arm].known), arms[arm].by_name[outcome]) for step, arms in self.steps.items()}

    def _count(self, request: _Request, outcome: Outcome, at_us: int) -> None:
        if abs(at_us - request.time_us) <= self.horizon_us:
            request.arm.note(request.user_id, outcome)

    def _forget(self, now_us: int) -> None:
        while self._requests:
            oldest = next(iter(self._requests.values()))
            if len(self._requests) <= MAX_REQUESTS and now_us - oldest.time_us <= self.horizon_us:
                break
            self._requests.popitem(last=False)
