"""The scenarios, by name; Locust runs one as a process of its own (it patches sockets).

    LARDER_LOAD_SCENARIO=storm locust -f load_tests/scenarios.py --headless -u 50 -t 60s --host http://127.0.0.1:8099

`larder load-test` does that with the project's users, and says whether the objectives were met.
"""

from __future__ import annotations

import itertools
import os
from typing import ClassVar

from locust import LoadTestShape, task

from load_tests.shopper import PER_PERSON, Shopper

SCENARIO = "LARDER_LOAD_SCENARIO"
#: Rate asked for, and for how long; the spike's shape needs both.
RATE, SECONDS = "LARDER_LOAD_RATE", "LARDER_LOAD_SECONDS"


class Steady(Shopper):
    """Known people at a constant rate; every tenth list is answered by a click. A soak is the same for longer."""

    @task  # type: ignore[untyped-decorator] # Locust is not typed
    def come(self) -> None:
        """Ask for anybody."""
        self.visit(self.random.choice(self.users))


class Cold(Shopper):
    """Nobody is known; after a first click some are."""

    numbers = itertools.count()

    @task  # type: ignore[untyped-decorator] # Locust is not typed
    def come(self) -> None:
        """Ask as somebody new, click, and ask again."""
        user_id = f"load-{os.getpid()}-{next(self.numbers)}"
        answer = self.recommend(user_id)
        if answer is not None and answer.items:
            self.click(answer)
            self.recommend(user_id)


class Storm(Shopper):
    """Everybody looks at the same few popular items."""

    @task  # type: ignore[untyped-decorator] # Locust is not typed
    def come(self) -> None:
        """Ask for what is popular, and for what goes with the first of it."""
        popular = self.timed("popular", lambda: self.client.popular(20))
        if popular is not None and popular.items:
            first = popular.items[0].item_id
            self.timed("similar", lambda: self.client.similar(first))


class Events(Shopper):
    """Many events for each list."""

    click_share: ClassVar[float] = 1.0
    clicks = 5

    @task  # type: ignore[untyped-decorator] # Locust is not typed
    def come(self) -> None:
        """Ask, then click several times."""
        answer = self.recommend(self.random.choice(self.users))
        if answer is not None and answer.items:
            for _ in range(self.clicks):
                self.click(answer)


class Spike(Steady):
    """A third of the rate, then four times that for the middle third of the time, then a third again."""


PEOPLE: dict[str, type[Shopper]] = {
    "steady": Steady, "soak": Steady, "rollout": Steady, "cold": Cold, "storm": Storm, "events": Events, "spike": Spike,
}  # fmt: skip


def _choose(name: str) -> None:
    """Leave one class concrete: Locust runs every concrete class that a name of this file leads to."""
    for people in set(PEOPLE.values()):
        people.abstract = people is not PEOPLE[name]


_choose(os.environ.get(SCENARIO, "steady"))

if os.environ.get(SCENARIO) == "spike":

    class Shape(LoadTestShape):  # type: ignore[misc] # Locust is not typed
        """How many people there are at a time."""

        def tick(self) -> tuple[int, float] | None:
            """Return people and how many may come a second; None at the end."""
            seconds, rate = float(os.environ.get(SECONDS, "60")), float(os.environ.get(RATE, "30"))
            now = self.get_run_time()
            if now > seconds:
                return None
            calm = seconds / 3 > now or now > 2 * seconds / 3
            return max(round((rate / 3 if calm else 4 * rate / 3) / PER_PERSON), 1), 1_000.0
