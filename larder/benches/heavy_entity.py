"""Two shops, one with a user and an item of 200,000 events each: what batches and reads of all others cost in both."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import redis

from feature_repo.backfill import backfill
from feature_repo.datasets import make_dataset, write_dataset
from feature_repo.events import EVENT_SCHEMA, ITEM_SCHEMA, QUARANTINE_SCHEMA
from feature_repo.ingest import IngestWorker
from feature_repo.materialize import materialize
from feature_repo.online_reader import OnlineReader
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from feature_repo.stream import append_events
from larder.progress import progress
from larder.services.ports import any_free_port
from larder.services.process import start
from larder.services.redis_server import redis_service

HEAVY_EVENTS = 200_000
_OTHER_EVENTS = 100_000
_USERS, _ITEMS, _CATEGORIES = 2_000, 5_000, 300
_BATCH, _ROUNDS = 250, 60
_TIMEOUT_MS = 10_000


def run(settings: Settings) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
    """Measure, in a Redis of its own; batches of both shops take turns."""
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as work, ExitStack() as cleanup:
        own = replace(settings, home=Path(work), redis_host="127.0.0.1", redis_port=any_free_port())
        server = start(redis_service(own), own.home).wait()
        cleanup.callback(server.stop)
        client = cleanup.enter_context(closing(connect(own, timeout_ms=_TIMEOUT_MS)))
        kinds = (("plain", 0), ("heavy", HEAVY_EVENTS))
        shops = [_Shop(replace(own, project=name), client, heavy) for name, heavy in kinds]
        for shop in shops:
            cleanup.callback(shop.worker.close)
        figures = _measure(*shops)
    targets = {"others_batch_ratio": ("<", 1.25), "batch_with_heavy_ratio": ("<", 1.5)}
    return figures, targets


class _Shop:
    """One shop with its worker."""

    def __init__(self, settings: Settings, client: redis.Redis, heavy: int) -> None:
        with progress(f"shop {settings.project}"):
            _import(settings, heavy)
            backfill(settings)
            materialize(settings)
        self.settings, self.client, self.number = settings, client, 0
        self.worker = IngestWorker(settings, client, batch_events=_BATCH)
        self.worker.start()

    def batch_s(self, rng: np.random.Generator, special: int = 0) -> float:
        """Append one batch, `special` events of it by the heavy user and on the hot item each; return its fold time."""
        now_us = time.time_ns() // 1000
        users = [f"u{n}" for n in rng.integers(0, _USERS, _BATCH)]
        items = rng.integers(0, _ITEMS, _BATCH).tolist()
        events: list[dict[str, Any]] = [
            {"event_id": f"e{self.number + k}", "user_id": user, "item_id": f"i{item}", "event_type": "view",
             "category": f"c{item % _CATEGORIES}", "event_timestamp": now_us, "received_at": now_us}
            for k, (user, item) in enumerate(zip(users, items, strict=True))
        ]  # fmt: skip
        for event in events[:special]:
            event["user_id"] = "heavy"
        for event in events[special : 2 * special]:
            event["item_id"] = "hot"
        self.number += _BATCH
        append_events(self.client, self.settings.project, events, now_us // 1000)
        began = time.perf_counter()
        self.worker.step()
        return time.perf_counter() - began


def _import(settings: Settings, heavy: int) -> None:
    """Make a history: the others' events, and half of the further ones by one user, half on one item."""
    rng = np.random.default_rng(1)
    total = _OTHER_EVENTS + 2 * heavy
    user = rng.integers(0, _USERS, total).astype(str).astype(object)
    item = rng.integers(0, _ITEMS, total)
    users, items = "u" + user, "i" + item.astype(str).astype(object)
    users[_OTHER_EVENTS : _OTHER_EVENTS + heavy] = "heavy"
    items[_OTHER_EVENTS + heavy :] = "hot"
    end = datetime.now(UTC) - timedelta(hours=1)
    at = int(end.timestamp() * 1e6) - rng.integers(0, 30 * 86_400_000_000, total)
    columns: dict[str, Any] = {
        "event_id": [f"h{n}" for n in range(total)],
        "user_id": users.tolist(),
        "item_id": items.tolist(),
        "event_type": ["view"] * total,
        "event_timestamp": at,
        "received_at": at,
        "category": [f"c{n % _CATEGORIES}" for n in item.tolist()],
    }
    arrays = [pa.array(columns.get(field.name, [None] * total), field.type) for field in EVENT_SCHEMA]
    events = pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)
    write_dataset(make_dataset("heavy", events, ITEM_SCHEMA.empty_table(), QUARANTINE_SCHEMA.empty_table()), settings)


def _measure(plain: _Shop, heavy: _Shop) -> dict[str, float]:
    rng = np.random.default_rng(2)
    times: dict[str, list[float]] = {"plain": [], "others": [], "with": []}
    for _ in range(_ROUNDS):
        times["plain"].append(plain.batch_s(rng))
        times["others"].append(heavy.batch_s(rng))
        times["with"].append(heavy.batch_s(rng, special=2))
    median = {name: float(np.median(values)) for name, values in times.items()}
    reader, now_us = OnlineReader(heavy.client, heavy.settings.project), time.time_ns() // 1000
    found = reader.user("heavy", now_us)
    reads = {who: _median(lambda who=who: reader.user(who, now_us)) for who in ("u1", "heavy")}  # type: ignore[misc] # mypy cannot see the default's type
    return {
        "batch_plain_shop_ms": median["plain"] * 1e3,
        "batch_others_ms": median["others"] * 1e3,
        "batch_with_heavy_ms": median["with"] * 1e3,
        "others_batch_ratio": median["others"] / median["plain"],
        "batch_with_heavy_ratio": median["with"] / median["plain"],
        "heavy_user_events": float(found.stats.column("user_views")[0]),
        "heavy_user_recent": float(len(found.recent.item_ids)),
        "heavy_user_categories": float(len(found.categories)),
        "heavy_user_read_ratio": reads["heavy"] / reads["u1"],
    }


def _median(call: Callable[[], object]) -> float:
    times = []
    for _ in range(50):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))
