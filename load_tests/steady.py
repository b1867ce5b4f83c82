"""A steady load for Locust: recommendations at a constant rate per user, every tenth answered by a click.

Run it as a process of its own (Locust patches sockets), against a running API:

    locust -f load_tests/steady.py --headless -u 20 -t 60s --host http://127.0.0.1:8099
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from locust import User, constant_throughput, task

from larder_client.answers import Event
from larder_client.calls import ApiError
from larder_client.client import LarderClient

#: Ids asked for; most are unknown to the shop, which must be answered as well.
USERS = 5_000
REQUESTS_PER_USER_PER_S = 1.0


class Shopper(User):  # type: ignore[misc] # Locust is not typed
    """Asks for recommendations and sometimes clicks one."""

    wait_time = constant_throughput(REQUESTS_PER_USER_PER_S)

    def on_start(self) -> None:
        self.client = LarderClient(self.host)
        self.random = random.Random()

    def on_stop(self) -> None:
        self.client.close()

    @task  # type: ignore[untyped-decorator]
    def visit(self) -> None:
        user_id = f"u{self.random.randrange(USERS)}"
        answer = self.timed("recommend", lambda: self.client.recommend(user_id))
        if answer is not None and answer.items and self.random.random() < 0.1:
            item = self.random.choice(answer.items)
            click = Event(
                user_id=user_id,
                item_id=item.item_id,
                event_type="view",
                request_id=answer.request_id,
                rank=item.rank,
            )
            self.timed("send", lambda: self.client.send([click]))

    def timed(self, name: str, call: Callable[[], Any]) -> Any:
        """Make a call and report its time and error to Locust."""
        began, answer, error = time.perf_counter(), None, None
        try:
            answer = call()
        except ApiError as caught:
            error = caught
        self.environment.events.request.fire(
            request_type="larder",
            name=name,
            response_time=(time.perf_counter() - began) * 1000,
            response_length=0,
            exception=error,
        )
        return answer
