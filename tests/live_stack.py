"""A shop with a history of its own, everything real: Redis, the ingest worker's process, the API, and a sender."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import redis

from feature_repo.backfill import backfill
from feature_repo.datasets import load_dataset, write_dataset
from feature_repo.event_log import read_events
from feature_repo.materialize import materialize
from feature_repo.settings import Settings
from feature_repo.store import apply
from larder.services.ports import HOST
from tests.running_api import RunningApi, plan_for, publish
from tests.tiny_bundle import make_bundle, make_shop


@contextlib.contextmanager
def worker_process(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """Run `larder ingest run`; ready when the context begins, ended in order when it ends."""
    options = ["-p", settings.project, "--home", str(settings.home)]
    environment = {"LARDER_REDIS_PORT": str(settings.redis_port), "PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "larder.cli", *options, "ingest", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith("ingest ready"), first + process.stdout.read()
            yield process
        finally:
            process.terminate()
            process.wait(20)


@dataclass
class Sender(contextlib.AbstractContextManager["Sender"]):
    """Sends events of random users through the API until the context ends."""

    base_url: str
    users: list[str]
    items: list[str]
    pause_s: float = 0.01
    sent: int = 0
    failure: BaseException | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Sender:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        assert self.failure is None, self.failure

    def _run(self) -> None:
        rng = random.Random(1)
        try:
            with httpx.Client(base_url=self.base_url, timeout=10.0) as http:
                while not self._stopping.wait(self.pause_s):
                    events = [self._event(rng) for _ in range(rng.randint(1, 5))]
                    answer = http.post("/v1/events", json={"events": events})
                    assert answer.status_code == 202, answer.text
                    self.sent += len(events)
        except BaseException as error:
            self.failure = error

    def _event(self, rng: random.Random) -> dict[str, Any]:
        user, item = rng.choice(self.users), rng.choice(self.items)
        kind = rng.choice(["view", "view", "cart", "purchase", "impression", "cancel"])
        return {"user_id": user, "item_id": item, "event_type": kind, "session_id": f"{user}-{time.time_ns() // 10**9}"}


def open_real_shop(settings: Settings, client: redis.Redis, n_events: int = 4_000) -> None:
    """Import a simulated history, fold it, fill Redis, and publish a fitted bundle over the same items."""
    options: dict[str, Any] = {"n_events": n_events, "end": datetime.now(UTC)}
    write_dataset(load_dataset("simulator", settings, **options), settings)
    backfill(settings)
    apply(settings)
    materialize(settings)
    shop = make_shop(time.time_ns() // 1000, n_items=300, n_users=60)
    publish(client, settings, plan_for(make_bundle(settings.bundles_dir, shop)))


def active_users(settings: Settings, number: int) -> list[str]:
    """Users with many events."""
    counts = read_events(settings, columns=["user_id"])["user_id"].value_counts().to_pylist()
    best = sorted(counts, key=lambda one: (-one["counts"], one["values"]))
    return [one["values"] for one in best[:number]]


def popular_items(settings: Settings, number: int) -> list[str]:
    """Items with many events."""
    counts = read_events(settings, columns=["item_id"])["item_id"].value_counts().to_pylist()
    best = sorted(counts, key=lambda one: (-one["counts"], one["values"]))
    return [one["values"] for one in best[:number]]


@contextlib.contextmanager
def live_service(settings: Settings) -> Iterator[RunningApi]:
    """A shop that is open: history in Redis and offline, worker and API running."""
    with redis.Redis(HOST, settings.redis_port) as client:
        open_real_shop(settings, client)
        with worker_process(settings), RunningApi(settings) as api:
            yield api
