"""What every scenario is made of: people who ask, sometimes click, and note how well they were served.

Locust is closed-loop: a percentile counts only where the achieved rate is the one asked for (load_tests/slo.py checks).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from locust import User

from larder_client.answers import Event, Recommendations
from larder_client.calls import ApiError
from larder_client.client import LarderClient
from load_tests.slo import USERS_FILE

#: Requests of one simulated person a second.
PER_PERSON = 1.0


def known_users() -> list[str]:
    """Return the ids to ask for; made-up ones where no file says."""
    path = os.environ.get(USERS_FILE)
    return Path(path).read_text("utf-8").split() if path else [f"u{n:05d}" for n in range(5_000)]


class Shopper(User):  # type: ignore[misc] # Locust is not typed
    """Asks for recommendations; scenarios say for whom, and how often a click follows."""

    abstract = True
    click_share: ClassVar[float] = 0.1
    users: ClassVar[list[str]] = []

    def on_start(self) -> None:
        """Connect."""
        if not Shopper.users:
            Shopper.users = known_users()
        self.client = LarderClient(self.host, timeout_s=5.0, patience_s=0.0)
        self.random = random.Random()
        self.came, self.visits = time.monotonic(), 0
        time.sleep(self.wait_time())  # Locust's own: others go on

    def wait_time(self) -> float:
        """Return how long to wait for the next visit: one in each interval, at any moment of it.

        All people come at once, and at a constant pace they would go on asking in salvos, which nobody's shop sees. Who
        is late asks at once, so that the rate is kept.
        """
        due = self.came + (self.visits + self.random.random()) / PER_PERSON
        self.visits += 1
        return max(due - time.monotonic(), 0.0)

    def on_stop(self) -> None:
        """Disconnect."""
        self.client.close()

    def recommend(self, user_id: str, k: int = 20) -> Recommendations | None:
        """Ask for a list; an answer below the full level is noted as degraded."""
        answer: Recommendations | None = self.timed("recommend", lambda: self.client.recommend(user_id, k))
        if answer is not None and answer.level != "full":
            self.note("degraded", 0.0, None)
        return answer

    def click(self, answer: Recommendations) -> None:
        """Click one item of a list."""
        item = self.random.choice(answer.items)
        event = Event(
            user_id=answer.user_id,
            item_id=item.item_id,
            event_type="view",
            request_id=answer.request_id,
            rank=item.rank,
        )
        self.timed("send", lambda: self.client.send([event]))

    def visit(self, user_id: str) -> None:
        """Ask, and click as often as the scenario says."""
        answer = self.recommend(user_id)
        if answer is not None and answer.items and self.random.random() < self.click_share:
            self.click(answer)

    def timed(self, name: str, call: Callable[[], Any]) -> Any:
        """Make a call and report its time and error to Locust."""
        began, answer, error = time.perf_counter(), None, None
        try:
            answer = call()
        except ApiError as caught:
            error = caught
        self.note(name, (time.perf_counter() - began) * 1000, error)
        return answer

    def note(self, name: str, milliseconds: float, error: Exception | None) -> None:
        """Report one happening to Locust."""
        self.environment.events.request.fire(
            request_type="larder", name=name, response_time=milliseconds, response_length=0, exception=error
        )
