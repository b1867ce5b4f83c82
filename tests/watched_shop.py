"""A small shop with everything real: Redis, ingest worker, API, a canary that the controller watches, Prometheus."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import redis

from deployment.rollout.collector import collected_from_here
from deployment.rollout.moves import Moves
from deployment.store.control_store import ControlStore
from deployment.store.records import NewEntry
from feature_repo.backfill import backfill
from feature_repo.materialize import materialize
from feature_repo.settings import Settings
from feature_repo.views import DAY_US
from larder.services.ports import HOST, any_free_port, http_ok
from larder.services.process import Service
from larder.services.stack import project_service
from serving.plan import Arm, Plan
from serving.signature import signing_key
from tests.fault_processes import Shop, api_service, fault_settings, worker_service
from tests.live_shop import a_view, import_history
from tests.prometheus_tools import hurried
from tests.rollout_traffic import tiny_profile
from tests.tiny_bundle import make_bundle, make_shop
from training.run_metrics import write_run

USERS = [f"user{n}" for n in range(60)]


#: Windows of seconds, of 15 users (half of all are in the canary), compared with the champion's first ones.
HURRIED_DRIFT = {
    "drift_reference": "served", "drift_window_minutes": 0.15, "drift_sample": 15, "monitor_every_s": 1.0,
    "skew_every_minutes": 0.2,
}  # fmt: skip


def watched_settings(home: Path, **fields: Any) -> Settings:
    ports = {f"{name}_metrics_port": any_free_port() for name in ("ingest", "control", "monitor")} | HURRIED_DRIFT
    explored = {"exploration": "epsilon"}
    return fault_settings(home / "home", prometheus_port=any_free_port(), **(ports | explored | fields))


def controller_service(settings: Settings) -> Service:
    """`larder controller run`, without the gate: nobody trains here."""
    arguments = ["controller", "run", "--no-gate", "--no-api"]
    return project_service(
        settings, "controller", arguments, ready=lambda _port: http_ok("/metrics", settings.control_metrics_port)
    )


def monitor_service(settings: Settings) -> Service:
    """`larder monitor run`, without Evidently's reports: each takes longer than a window here."""
    return project_service(
        settings,
        "monitor",
        ["monitor", "run", "--no-report"],
        ready=lambda _port: http_ok("/metrics", settings.monitor_metrics_port),
    )


def open_watched_shop(shop: Shop) -> list[str]:
    """Import a history, commit a champion, start the rollout of a second model; returns the items."""
    settings = shop.settings
    past = make_shop(time.time_ns() // 1000)
    yesterday = time.time_ns() // 1000 - DAY_US
    views = [a_view(f"history-{n}", user, at_us=yesterday) for n, user in enumerate(USERS)]
    import_history(settings, views, items=["i1", *past.item_ids])
    backfill(settings)
    materialize(settings)
    first, second = (Arm(make_bundle(settings.bundles_dir, past, seed=seed), str(seed)) for seed in (1, 2))
    key, now = signing_key(settings), datetime.now(UTC)
    store = ControlStore(settings, key)
    entry = NewEntry("test", "promote", "the first", first.bundle_id, first.model_version)
    store.commit(lambda _: Plan(0, first, now), expected_epoch=0, entry=entry, now=now)
    # Two steps that no traffic here completes: the canary stays while it is looked at.
    steps = [{"weight": 5000, "requests": 10**6, "minutes": 60}]
    profile = tiny_profile(steps=steps, max_hold_minutes=600.0)
    Moves(settings, store, key).start(
        second, profile, collected_from_here(settings), who="test", why="try it", now=now, body={}
    )
    figures = {"ndcg_at_10": 0.3, "recall_at_20": 0.4, "auc": 0.9, "candidate_recall": 0.8}
    write_run(settings, "succeeded", 12.0, figures)
    return past.item_ids


@contextlib.contextmanager
def shoppers(settings: Settings, items: list[str], pause_s: float = 0.02) -> Iterator[None]:
    """People who ask for lists, click on some of them, and send an event that is none now and then."""
    stopping = threading.Event()

    def run() -> None:
        rng = random.Random(3)
        with httpx.Client(base_url=f"http://127.0.0.1:{settings.api_port}", timeout=5.0) as http:
            while not stopping.wait(pause_s):
                user = rng.choice([*USERS, f"new{rng.randrange(10**6)}"])
                with contextlib.suppress(httpx.HTTPError):
                    answer = http.post("/v1/recommendations", json={"user_id": user, "k": 10}).json()
                    events: list[dict[str, Any]] = [
                        {"user_id": user, "item_id": rng.choice(items), "event_type": "view"}
                    ]
                    if answer.get("items") and rng.random() < 0.4:
                        chosen = rng.choice(answer["items"])
                        clicked = {"request_id": answer["request_id"], "rank": chosen["rank"]}
                        events.append(events[0] | clicked | {"item_id": chosen["item_id"]})
                    if rng.random() < 0.1:
                        events.append(events[0] | {"event_timestamp": "2999-01-01T00:00:00Z"})
                    http.post("/v1/events", json={"events": events})
                    http.get("/v1/items/popular", params={"k": 5})

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(20)


@contextlib.contextmanager
def watched_shop(home: Path, **fields: Any) -> Iterator[tuple[Shop, list[str]]]:
    """Everything, ready."""
    settings = watched_settings(home, redis_timeout_ms=500, **fields)
    services = {"worker": worker_service, "api": api_service, "controller": controller_service}
    services |= {"monitor": monitor_service, "prometheus": hurried}
    shop = Shop(settings, **{name: make(settings) for name, make in services.items()})
    shop.services["prometheus"] = replace(shop.services["prometheus"], port=settings.prometheus_port)
    with shop, closing(redis.Redis(HOST, settings.redis_port)):
        items = open_watched_shop(shop)
        shop.start_all()
        yield shop, items
