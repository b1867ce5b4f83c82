"""Redis gone, half-open, slow, full, read-only, its disk full: no false acknowledgement, lists go on, all recovers."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from feature_repo.backfill import backfill
from feature_repo.materialize import materialize
from feature_repo.views import DAY_US
from larder.services.ports import HOST, any_free_port
from tests.fault_checker import findings
from tests.fault_clients import Told
from tests.fault_processes import Shop, api_service, fault_settings, worker_service
from tests.fault_proxy import Proxy
from tests.live_shop import a_view, import_history
from tests.running_api import plan_for, publish
from tests.test_faults_kills import all_folded, now_us
from tests.tiny_bundle import make_bundle, make_shop

pytestmark = pytest.mark.faults

#: An answer that takes longer is a hang: events wait 2 s for Redis, and a request for 0.05 s twice.
_EVENTS_BOUND_S = 4.0
_LISTS_P99_S = 0.3
_FAULT_S = 5.0


class Town:
    """A shop with a model, whose processes reach Redis through a proxy; and what its one customer knows."""

    def __init__(self, shop: Shop, proxy: Proxy, client: redis.Redis, http: httpx.Client, items: list[str]) -> None:
        self.shop, self.proxy, self.client, self.http, self.items = shop, proxy, client, http, items
        self.told = Told()
        self._number = 0

    def send_event(self) -> tuple[httpx.Response, float]:
        """Send one event, once, and note whether it was acknowledged; return the answer and its seconds."""
        event = {"user_id": f"user {self._number % 5}", "item_id": self._item(), "event_type": "view"}
        return self._send("events", "event_id", event)

    def send_item(self) -> tuple[httpx.Response, float]:
        """Send one change of the catalogue likewise."""
        return self._send("items", "change_id", {"item_id": self._item(), "price": self._number})

    def _item(self) -> str:
        return self.items[self._number % len(self.items)]

    def _send(self, kind: str, name: str, entry: dict[str, Any]) -> tuple[httpx.Response, float]:
        self._number += 1
        entry[name] = f"{kind}-{self._number}"
        began = time.monotonic()
        response = self.http.post(f"/v1/{kind}", json={kind: [entry]})
        if response.status_code == 202:
            result = response.json()["results"][0]
            assert result["status"] == "accepted", result
            self.told.acknowledged[entry[name]] = result["seq"]
        else:
            self.told.given_up.add(entry[name])
        return response, time.monotonic() - began

    def recommend(self) -> tuple[dict[str, Any], float]:
        began = time.monotonic()
        response = self.http.post("/v1/recommendations", json={"user_id": "user 1", "k": 10})
        assert response.status_code == 200, response.text
        return response.json(), time.monotonic() - began

    def problems(self) -> list[str]:
        return self.http.get("/readyz").json()["problems"]

    def healthy(self) -> bool:
        return (
            self.send_event()[0].status_code == 202
            and self.recommend()[0]["level"] == "full"
            and not self.problems()
            and all_folded(self.client, self.shop.settings)
        )


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    home = tmp_path_factory.mktemp("town")
    port = any_free_port()
    with Proxy(port) as proxy:
        settings = fault_settings(home / "home", redis_port=proxy.port)
        shop = Shop(settings, redis_port=port, worker=worker_service(settings), api=api_service(settings))
        with shop, closing(redis.Redis(HOST, port)) as client:
            past = make_shop(now_us())
            views = [a_view(f"history-{n}", user, at_us=now_us() - DAY_US) for n, user in enumerate(["ann", "bob"])]
            import_history(settings, views, items=["i1", *past.item_ids])
            backfill(settings)
            materialize(settings)
            publish(client, settings, plan_for(make_bundle(settings.bundles_dir, past)))
            shop.start_all()
            with httpx.Client(base_url=f"http://127.0.0.1:{settings.api_port}", timeout=20.0) as http:
                yield Town(shop, proxy, client, http, past.item_ids)


@contextmanager
def stopped(town: Town) -> Iterator[None]:
    town.proxy.mode = "refuse"
    town.shop.stop("redis")
    yield
    town.shop.start("redis").wait()
    town.proxy.mode = "pass"


@contextmanager
def half_open(town: Town) -> Iterator[None]:
    town.proxy.mode = "swallow"
    yield
    town.proxy.mode = "pass"


@contextmanager
def slow(town: Town) -> Iterator[None]:
    town.proxy.mode = "slow"
    yield
    town.proxy.mode = "pass"


@contextmanager
def out_of_memory(town: Town) -> Iterator[None]:
    town.client.config_set("maxmemory", 1)
    yield
    town.client.config_set("maxmemory", 0)


@contextmanager
def read_only(town: Town) -> Iterator[None]:
    town.client.replicaof("127.0.0.1", 9)  # nobody is there: a failover that went wrong
    yield
    town.client.replicaof("NO", "ONE")


@contextmanager
def disk_full(town: Town) -> Iterator[None]:
    """The append-only file cannot grow: the system refuses with EFBIG, as it would with ENOSPC."""
    pid, unlimited = town.shop.running["redis"].pid, resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, unlimited))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))


Fault = Callable[[Town], AbstractContextManager[None]]


@pytest.mark.parametrize("fault", [stopped, half_open, slow, out_of_memory, read_only, disk_full])
def test_events_are_refused_or_kept_and_lists_go_on(town: Town, fault: Fault) -> None:
    shop = town.shop
    shop.wait_until("all is well", town.healthy, 60)
    starts, memory, cpu, began = dict(shop.starts), *usage(shop), time.monotonic()
    events: list[tuple[httpx.Response, float]] = []
    lists: list[tuple[dict[str, Any], float]] = []
    told: list[str] = []
    with fault(town):
        while time.monotonic() - began < _FAULT_S or len(lists) < 100:
            events += [send() for send in (town.send_event, town.send_item) * 2]
            lists += [town.recommend() for _ in range(10)]
            told = town.problems()
        busy = {name: seconds - cpu[name] for name, seconds in usage(shop)[1].items()}
        elapsed = time.monotonic() - began
    shop.wait_until("all is well again", town.healthy, 60)

    for response, seconds in events:
        assert seconds < _EVENTS_BOUND_S
        assert response.status_code in (202, 503)
        assert response.status_code == 202 or int(response.headers["Retry-After"]) >= 1, response.text
    accepted = sum(response.status_code == 202 for response, _ in events)
    if fault is slow:
        assert accepted > 0
    else:
        assert accepted <= 2 * (fault is disk_full), "only what the disk's trouble has not reached yet"
    assert np.quantile([seconds for _, seconds in lists], 0.99) < _LISTS_P99_S
    levels = [answer["level"] for answer, _ in lists]
    if fault in (stopped, half_open, slow):
        assert set(levels[10:]) == {"item_side"}
        assert all(answer["reasons"] == ["user_features_unavailable"] for answer, _ in lists[10:])
    else:
        assert levels.count("full") > 0.9 * len(levels), "refused writes do not stop reads"
    expected = "Redis does not answer" if fault is slow else "Redis takes no events"
    assert any(problem.startswith(expected) for problem in told), told

    assert {name: n - starts[name] for name, n in shop.starts.items() if name != "redis"} == {"worker": 0, "api": 0}, (
        shop.previous_log("worker")
    )
    assert busy["worker"] < 0.3 * elapsed + 0.5, "it waits, and does not spin"
    assert all(megabytes - memory[name] < 50 for name, megabytes in usage(shop)[0].items())


def usage(shop: Shop) -> tuple[dict[str, float], dict[str, float]]:
    """Return memory (MB) and processor time (s) of worker and API."""
    names = ("worker", "api")
    return {name: shop.memory_mb(name) for name in names}, {name: shop.cpu_s(name) for name in names}


def test_after_all_of_it_exactly_the_acknowledged_events_count(town: Town) -> None:
    shop = town.shop
    shop.wait_until("all is well", town.healthy, 60)
    shop.wait_until("all is folded", lambda: all_folded(town.client, shop.settings))
    shop.stop("worker")
    try:
        assert not findings(shop.settings, town.client, town.told, now_us() + DAY_US)
    finally:
        shop.start("worker")
