"""Kills API, worker and Redis at random moments: every acknowledged event counts exactly once."""

from __future__ import annotations

import os
import random
import time

import pytest
import redis

from feature_repo.backfill import backfill
from feature_repo.materialize import materialize
from feature_repo.online_keys import events_key, watermark_key
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from feature_repo.stream import seq_from
from feature_repo.views import DAY_US
from tests.fault_checker import findings
from tests.fault_clients import ITEMS, Customer, Told, Way, over_http, together
from tests.fault_processes import Shop, api_service, fault_settings, worker_service
from tests.live_shop import a_view, import_history

pytestmark = pytest.mark.faults

KILLS = 50
SEED = int(os.environ.get("LARDER_FAULTS_SEED", "7"))


def now_us() -> int:
    return time.time_ns() // 1000


def open_shop(settings: Settings) -> None:
    """Give the shop a catalogue and two visitors of the past."""
    past = [
        a_view(f"history-{n}", user, at_us=now_us() - DAY_US, item_id=ITEMS[n]) for n, user in enumerate(["ann", "bob"])
    ]
    import_history(settings, past, items=ITEMS)
    backfill(settings)
    materialize(settings)


def schedule(rng: random.Random, kills: int) -> list[tuple[str, bool, float]]:
    """Return (whom, whether it is up by then, pause before) of each kill: every one about as often."""
    victims = (["api", "worker", "redis"] * kills)[:kills]
    rng.shuffle(victims)
    plan = []
    for victim in victims:
        up = rng.random() < 0.7  # else perhaps while it starts
        plan.append((victim, up, rng.uniform(0.0, 1.0 if up else 2.0)))
    return plan


def run_kills(shop: Shop, seed: int, kills: int, way: Way = over_http) -> Told:
    """Stream events from three clients while processes are killed; return what the clients know at the end."""
    rng = random.Random(seed)
    customers = [
        Customer(f"client{n}", way(shop.settings), rng.random(), keeper=n == 0 and way is over_http) for n in range(3)
    ]
    for customer in customers:
        customer.start()
    try:
        for victim, up, pause_s in schedule(rng, kills):
            if up:
                shop.wait_ready(victim)
            shop.pause(pause_s)
            shop.kill(victim)
        shop.wait_ready("redis", "worker", "api")
        shop.pause(1.0)
        for customer in customers:
            customer.stop()
        shop.wait_until("the clients end", lambda: not any(customer.is_alive() for customer in customers), 120)
    finally:
        told = together(customers)
    with connect(shop.settings, timeout_ms=5000) as client:
        shop.wait_until("the worker folds what is left", lambda: all_folded(client, shop.settings))
    shop.stop("worker")
    return told


def all_folded(client: redis.Redis, settings: Settings) -> bool:
    last = client.xinfo_stream(events_key(settings.project))["last-generated-id"]
    return int(client.get(watermark_key(settings.project)) or 0) >= seq_from(last)


def test_fifty_kills_lose_and_double_nothing(tmp_path):
    print(f"seed {SEED} (LARDER_FAULTS_SEED)")
    settings = fault_settings(tmp_path / "home", redis_timeout_ms=1000)
    began = time.monotonic()
    with Shop(settings, worker=worker_service(settings), api=api_service(settings)) as shop:
        open_shop(settings)
        shop.start_all()
        told = run_kills(shop, SEED, KILLS)
        print(f"acknowledged {len(told.acknowledged)}, refused {told.refused}, given up {len(told.given_up)}")
        print(f"starts {shop.starts}, {time.monotonic() - began:.0f} s")
        with connect(settings, timeout_ms=5000) as client:
            found = findings(settings, client, told, now_us() + DAY_US)
    assert not found, f"seed {SEED}: " + "\n".join(found[:20])
    assert told.refused > 0
