"""A real Prometheus watches a real shop: every panel's query has data, and alerts of each class fire when provoked."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from deployment.store.signals import SignalStore
from larder.benches.open_loop import open_loop, post, schedule
from larder.services.ports import HOST
from monitoring.dashboards import DESCRIPTION, dashboards
from tests.fault_processes import Shop
from tests.prometheus_tools import Asked
from tests.watched_shop import USERS, shoppers, watched_shop

pytestmark = pytest.mark.faults

DESCRIBED = yaml.safe_load(DESCRIPTION.read_text("utf-8"))
#: Nobody measures live quality here.
UNMEASURED = {
    (board["uid"], panel["title"])
    for board in DESCRIBED
    for row in board["rows"]
    for panel in row["panels"]
    if panel.get("empty") == "until the monitoring worker has measured it"
}
#: Without data here, for good reason: there is no shadow.
WITHOUT = UNMEASURED | {
    ("larder-models", "Items in common with what was served, mean"),
    ("larder-models", "p95 of the shadow"),
}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, list[str], Asked]]:
    open_shop = watched_shop(tmp_path_factory.mktemp("watched"), max_under_way=8)
    with open_shop as (shop, items), Asked(shop.settings.prometheus_port) as prometheus:
        yield shop, items, prometheus


def has_data(samples: list[dict[str, Any]]) -> bool:
    return any(math.isfinite(float(sample["value"][1])) for sample in samples)


def test_every_panel_has_data(watched: tuple[Shop, list[str], Asked]) -> None:
    shop, items, prometheus = watched
    queries = [
        ((uid, panel["title"]), target["expr"].replace("$project", "shop").replace("$__rate_interval", "30s"))
        for uid, model in dashboards(DESCRIBED).items()
        for panel in model["panels"]
        for target in panel.get("targets", ())
    ]
    assert len(queries) > 80

    def without_data() -> set[tuple[str, str]]:
        """Panels with a query that finds nothing; the past of a new Prometheus does not count."""
        asked = [(where, query) for where, query in queries if " offset " not in query]
        return {where for where, query in asked if not has_data(prometheus.query(query))}

    with shoppers(shop.settings, items):
        shop.wait_until("all is scraped", lambda: prometheus.value('count(up{project="shop"} == 1)') == 4)
        with contextlib.suppress(AssertionError):  # below it is said which ones
            shop.wait_until("every panel has data", lambda: without_data() == WITHOUT, 120)
    assert without_data() == WITHOUT
    assert not prometheus.firing() & {"LarderTargetDown", "LarderNoChampion", "LarderIngestAway", "LarderStaleFeatures"}


def test_prices_change(watched: tuple[Shop, list[str], Asked]) -> None:
    """Everything costs a hundred times as much: features drift, the alert fires, retraining finds the row."""
    shop, items, prometheus = watched
    url = f"http://127.0.0.1:{shop.settings.api_port}/v1/items"
    with shoppers(shop.settings, items):
        windows = "max(larder_drift_windows)"
        shop.wait_until("there is a baseline", lambda: (prometheus.value(windows) or 0) > 3, 120)
        for at in range(0, len(items), 50):
            dearer = [{"item_id": item, "price": 1_000_000} for item in items[at : at + 50]]
            assert httpx.post(url, json={"items": dearer}).status_code == 202
        store = SignalStore(shop.settings)

        def alarms() -> set[str]:
            return {row.subject for row in store.newest(1_000, "drift", alarms_only=True)}

        # People of a shop of minutes drift too: that alone would be an alarm, but not of the price.
        shop.wait_until("there is a row", lambda: "features/f_item_price" in alarms(), 120)
        shop.wait_until("it is told", lambda: "LarderDrift" in prometheus.firing(), 30)
        named = 'max(larder_drift_column_alarm{kind="features",column="f_item_price"})'
        shop.wait_until("by its name", lambda: prometheus.value(named) == 1, 30)
    assert prometheus.value('max(larder_drift_alarm{kind="features"})')
    assert prometheus.value('max(larder_open_signals{kind="drift"})')
    assert prometheus.value("sum(larder_skew_wrong)") == 0, "what was served is what the log says"


def test_redis_away(watched: tuple[Shop, list[str], Asked]) -> None:
    """Answers are degraded, features and items grow old, ingest says nothing; all is told, and is over by itself."""
    shop, items, prometheus = watched
    expected = {"LarderDegradedAnswers", "LarderStaleItemTable", "LarderIngestAway", "LarderBreakerOpen"}
    expected |= {"LarderStaleFeatures"}
    with shoppers(shop.settings, items):
        shop.stop("redis")
        shop.wait_until("all of it is told", lambda: expected <= prometheus.firing(), 120)
        shop.start("redis").wait()
        gone = {"LarderStaleItemTable", "LarderIngestAway", "LarderBreakerOpen", "LarderStaleFeatures"}
        shop.wait_until("it is over", lambda: not gone & prometheus.firing(), 60)


def test_overload(watched: tuple[Shop, list[str], Asked]) -> None:
    """What is refused uses up the error budget."""
    shop, _, prometheus = watched
    bodies = [json.dumps({"user_id": user, "k": 20}).encode() for user in USERS]
    requests = [post("/v1/recommendations", body) for body in bodies]
    expected = {"LarderShedding", "LarderErrorBudgetBurnFast"}
    port = shop.settings.api_port
    for seed in range(6):
        open_loop(HOST, port, requests, schedule(2000.0, 3.0, np.random.default_rng(seed)), connections=256)
        if expected <= prometheus.firing():
            break
    shop.wait_until("it is told", lambda: expected <= prometheus.firing(), 20)


def test_a_process_that_was_killed(watched: tuple[Shop, list[str], Asked]) -> None:
    shop, _, prometheus = watched
    shop.stopped.add("worker")
    process = shop.running["worker"]
    process.record.process().kill()  # type: ignore[union-attr] # it runs
    assert process._child is not None
    process._child.wait()
    shop.wait_until("it is told", lambda: {"LarderTargetDown", "LarderIngestAway"} <= prometheus.firing(), 90)
    process.stop()
    shop.start("worker")
    shop.wait_until("it is over", lambda: not {"LarderTargetDown", "LarderIngestAway"} & prometheus.firing(), 60)


def test_no_champion(tmp_path: Path, watched: tuple[Shop, list[str], Asked]) -> None:
    """The API starts anew without plan and bundles: it answers by popularity, and that is told."""
    shop, _, prometheus = watched
    settings = shop.settings
    for name in ("controller", "api"):
        shop.stop(name)
    shop.wait_until("the API is gone", lambda: prometheus.value('count(up{job="larder-api"})') is None, 60)
    settings.bundles_dir.rename(tmp_path / "bundles")
    shop.start("api")
    url = f"http://127.0.0.1:{settings.api_port}/readyz"
    shop.wait_until("it answers", lambda: shop.is_ready("api"), 60)
    assert httpx.get(url).status_code == 503
    shop.wait_until("it is told", lambda: {"LarderNoChampion", "LarderNotReady"} <= prometheus.firing(), 60)
