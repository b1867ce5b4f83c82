"""Clients of a shop in trouble: they send events and catalogue changes, and again what was not acknowledged."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from feature_repo.errors import UnavailableError
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from feature_repo.stream import append_events
from larder_client.answers import Event, Feedback, Item, Recommendations
from larder_client.calls import ApiError
from larder_client.client import LarderClient
from tests.live_shop import random_event

USERS = [f"user {n}" for n in range(12)]
ITEMS = [f"item-{n}" for n in range(24)]
#: Sends a batch of one kind and returns (id, seq) of each, or raises UnavailableError: then it may be sent again.
Send = Callable[[list[dict]], list[tuple[str, int]]]
#: How a client gets there.
Way = Callable[[Settings], AbstractContextManager[Send]]


@contextmanager
def over_http(settings: Settings) -> Iterator[Send]:
    """Send to `POST /v1/events` or `POST /v1/items` by the typed client."""
    ours = ("received_at", "category")  # the API says these

    def deliver(batch: list[dict]) -> Any:
        if "change_id" in batch[0]:
            return client.upsert_items([Item(**change) for change in batch])
        events = [
            Event(**{name: value for name, value in event.items() if name not in (*ours, "event_timestamp")},
                  event_timestamp=datetime.fromtimestamp(event["event_timestamp"] / 1e6, UTC))
            for event in batch
        ]  # fmt: skip
        return client.send(events)

    def send(batch: list[dict]) -> list[tuple[str, int]]:
        try:
            answer = deliver(batch)
        except ApiError as error:
            if error.status in (0, 503):
                raise UnavailableError(str(error)) from error
            raise
        assert answer.rejected == 0, answer
        name = "change_id" if "change_id" in batch[0] else "event_id"
        return [(getattr(result, name), result.seq) for result in answer.results]

    with LarderClient(f"http://127.0.0.1:{settings.api_port}", timeout_s=5.0) as client:
        yield send


@contextmanager
def as_feedback(settings: Settings) -> Iterator[Send]:
    """Send verdicts on lists to `POST /v1/feedback`; an event's id is its verdict's.

    Every other batch is on a list of some time ago, whose process may be gone; one for which no list could be had is on
    a list that was never given: the API cannot know either at the door.
    """
    said: dict[str, Feedback] = {}
    lists: deque[Recommendations] = deque(maxlen=40)

    def on_a_list(batch: list[dict]) -> list[Feedback]:
        user, items, request_id = batch[0]["user_id"], ITEMS, f"none-{batch[0]['event_id']}"
        with suppress(ApiError):
            lists.append(client.recommend(user, k=len(ITEMS), request_id=f"list-{batch[0]['event_id']}"))
            answer = lists[-(len(said) % 2)]  # 0: the oldest; -1: this one
            user, items, request_id = answer.user_id, [item.item_id for item in answer.items], answer.request_id
        return [
            Feedback(request_id=request_id, user_id=user, item_id=items[n % len(items)],
                     verdict="confirm" if n % 3 else "reject", feedback_id=event["event_id"])
            for n, event in enumerate(batch)
        ]  # fmt: skip

    def send(batch: list[dict]) -> list[tuple[str, int]]:
        new = [event for event in batch if event["event_id"] not in said]
        if new:
            said.update((one.feedback_id, one) for one in on_a_list(new))
        try:
            answer = client.give_feedback([said[event["event_id"]] for event in batch])
        except ApiError as error:
            if error.status in (0, 503):
                raise UnavailableError(str(error)) from error
            raise
        assert answer.rejected == 0, answer
        return [(result.feedback_id, result.seq) for result in answer.results]

    with LarderClient(f"http://127.0.0.1:{settings.api_port}", timeout_s=5.0) as client:
        yield send


@contextmanager
def into_stream(settings: Settings) -> Iterator[Send]:
    """Append as the API does, without it."""

    def send(batch: list[dict]) -> list[tuple[str, int]]:
        results = append_events(client, settings.project, batch, time.time_ns() // 1_000_000)
        return [(event["event_id"], result.seq) for event, result in zip(batch, results, strict=True)]

    with closing(connect(settings, timeout_ms=2000)) as client:
        yield send


@dataclass
class Told:
    """What clients know of their events."""

    acknowledged: dict[str, int] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)
    refused: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, other: Told) -> None:
        self.acknowledged |= other.acknowledged
        self.given_up |= other.given_up
        self.refused += other.refused
        self.findings += other.findings


class Customer(threading.Thread):
    """Sends random batches until stopped, some twice; a few that fail it gives up. A keeper changes items too."""

    def __init__(
        self,
        name: str,
        way: AbstractContextManager[Send],
        seed: float,
        *,
        pause_s: float = 0.05,
        largest: int = 12,
        keeper: bool = False,
        patience_s: float = 90.0,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.told = Told()
        self._way, self._rng, self._pause_s, self._patience_s = way, random.Random(seed), pause_s, patience_s
        self._largest, self._keeper = largest, keeper
        self._stopping = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            with self._way as send:
                self._serve(send)
        except BaseException as error:
            self._failure = error

    def _serve(self, send: Send) -> None:
        number = 0
        while not self._stopping.is_set():
            batch = [self._event(number + k) for k in range(self._rng.randint(1, self._largest))]
            number += len(batch)
            self._deliver(send, batch)
            if self._keeper and self._rng.random() < 0.3:
                self._deliver(send, [self._change(f"{self.name}-c{number}")])
            if self._rng.random() < 0.2:
                self._deliver(send, self._rng.choices(batch, k=3))
            time.sleep(self._rng.uniform(0, 2 * self._pause_s))

    def _event(self, number: int) -> dict:
        event = random_event(self._rng, f"{self.name}-{number}", time.time_ns() // 1000, users=USERS, items=ITEMS)
        if event["event_type"] == "impression":
            event["request_id"] = None  # with one, its id is made of it
        return event

    def _change(self, change_id: str) -> dict:
        choices = {
            "title": ["A", "Ä", None], "category": ["tea", "cups", None], "price": [199, 250, None],
            "available": [True, False], "blocked": [True, False],
        }  # fmt: skip
        names = self._rng.sample(sorted(choices), self._rng.randint(1, 3))
        fields = {name: self._rng.choice(choices[name]) for name in names}
        return {"change_id": change_id, "item_id": self._rng.choice(ITEMS)} | fields

    def _deliver(self, send: Send, batch: list[dict]) -> None:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                results = send(batch)
                break
            except UnavailableError:
                self.told.refused += 1
            if not self._rng.randrange(40):
                self.told.given_up.update(entry.get("event_id") or entry["change_id"] for entry in batch)
                return
            assert time.monotonic() < deadline, f"{self.name} was refused for {self._patience_s:.0f} s"
            time.sleep(0.05)
        for event_id, seq in results:
            before = self.told.acknowledged.setdefault(event_id, seq)
            if before != seq:
                self.told.findings.append(f"acknowledged twice: {event_id} as seq {before} and as seq {seq}")

    def stop(self) -> None:
        self._stopping.set()

    def finish(self) -> Told:
        """Return what it knows when its last batch is acknowledged."""
        self.stop()
        self.join(self._patience_s + 30)
        assert not self.is_alive(), f"{self.name} does not end"
        if self._failure is not None:
            raise self._failure
        return self.told


def together(customers: list[Customer]) -> Told:
    """Stop the customers and return what they know."""
    told = Told()
    for customer in customers:
        customer.stop()
    for customer in customers:
        told.add(customer.finish())
    return told
