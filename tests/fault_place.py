"""A running shop whose Redis is reached through a proxy: for faults under load."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import redis

from feature_repo.backfill import backfill
from feature_repo.materialize import materialize
from feature_repo.views import DAY_US
from larder.services.ports import HOST, any_free_port
from tests.fault_processes import Shop, api_service, fault_settings
from tests.fault_proxy import Proxy
from tests.live_shop import a_view, import_history
from tests.running_api import plan_for, publish, wait_until
from tests.tiny_bundle import make_bundle, make_shop

USERS = [f"user{n}" for n in range(40)]
#: Of whom nothing was heard for ten days.
OLD_USER = "long ago"


@dataclass(frozen=True)
class Place:
    """A running shop, reached by its API's port; `client` goes to Redis itself."""

    shop: Shop
    client: redis.Redis
    proxy: Proxy

    @property
    def port(self) -> int:
        return self.shop.settings.api_port

    @property
    def api(self) -> psutil.Process:
        return psutil.Process(self.shop.running["api"].pid)

    def level(self) -> str:
        body = {"user_id": USERS[0], "k": 5}
        said = httpx.post(f"http://{HOST}:{self.port}/v1/recommendations", json=body, timeout=5.0)
        assert said.status_code == 200, said.text
        return str(said.json()["level"])

    def healthy_within(self, seconds: float) -> float:
        began = time.monotonic()
        wait_until(lambda: self.level() == "full", timeout_s=seconds)
        return time.monotonic() - began


@contextmanager
def open_place(home: Path) -> Iterator[Place]:
    """Make history and a model, and start Redis and the API."""
    port = any_free_port()
    with Proxy(port) as proxy:
        settings = fault_settings(home / "home", redis_port=proxy.port, request_budget_ms=0)
        shop = Shop(settings, redis_port=port, api=api_service(settings))
        with shop, closing(redis.Redis(HOST, port)) as client:
            now = time.time_ns() // 1000
            past = make_shop(now)
            views = [
                a_view(f"history-{n}", USERS[n % 40], item_id=past.item_ids[n % 9], at_us=now - DAY_US)
                for n in range(120)
            ]
            views += [a_view("old", OLD_USER, item_id=past.item_ids[0], at_us=now - 10 * DAY_US)]
            import_history(settings, views, items=past.item_ids)
            backfill(settings)
            materialize(settings)
            publish(client, settings, plan_for(make_bundle(settings.bundles_dir, past)))
            shop.start_all()
            here = Place(shop, client, proxy)
            here.healthy_within(30)
            yield here
