"""What changes under a running API: new plans, damaged bundles, items, and a Redis that goes away."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis

from feature_repo.online_keys import changed_key, row_key
from feature_repo.packed_tail import CatalogItem, pack_catalog
from feature_repo.settings import Settings
from feature_repo.views import CATALOG_VIEW
from larder.services.ports import HOST, any_free_port
from larder.services.process import RunningService, start
from larder.services.redis_server import redis_service
from serving.bundle import load_bundle
from serving.hidden_items import load_hidden
from serving.plan import load_plan, save_plan
from serving.signature import signing_key
from tests.running_api import RunningApi, open_shop, plan_for, publish, wait_until
from tests.tiny_bundle import Shop, make_bundle, make_shop, write_shop


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis(HOST, settings.redis_port) as client:
        yield client


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shop, str, str]:
    """A shop and two different bundles of it, fitted once."""
    directory = tmp_path_factory.mktemp("bundles")
    shop = make_shop(time.time_ns() // 1000)
    return directory, shop, make_bundle(directory, shop), make_bundle(directory, shop, seed=11)


@pytest.fixture
def shop(settings: Settings, client: redis.Redis, bundles: tuple[Path, Shop, str, str]) -> tuple[Shop, str, str]:
    """The shop in Redis, both bundles in the content store; no plan."""
    directory, shop, first, second = bundles
    write_shop(shop, client, settings.project)
    shutil.copytree(directory, settings.bundles_dir)
    return shop, first, second


def test_a_new_plan_is_followed_without_a_restart_or_a_failed_request(
    settings: Settings, client: redis.Redis, shop: tuple[Shop, str, str]
) -> None:
    _, first, second = shop
    publish(client, settings, plan_for(first))
    with RunningApi(settings) as api:
        seen: list[tuple[str, str, str]] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answer = api.recommend("u00001", k=5)
                seen.append((answer["bundle_id"], answer["model_version"], answer["level"]))

        thread = threading.Thread(target=ask)
        thread.start()
        publish(client, settings, plan_for(second, epoch=2))
        wait_until(lambda: api.ready()["epoch"] == 2)
        stop.set()
        thread.join(10)
        api.recommend("u00001")
        # Plan, version and bundle are swapped together; every request was answered in full by one of the two.
        assert set(seen) <= {(first, "1", "full"), (second, "2", "full")}
        assert seen[0][0] == first
        assert api.recommend("u00001")["bundle_id"] == second
        assert api.metric("larder_model_info{") == 1, "only the bundle in use is named"
        kept = load_plan(settings.plan_path, signing_key(settings))
        assert kept is not None and kept.epoch == 2, "for a start without Redis"


def test_an_older_epoch_is_refused(settings: Settings, client: redis.Redis, shop: tuple[Shop, str, str]) -> None:
    _, first, second = shop
    publish(client, settings, plan_for(first, epoch=5))
    with RunningApi(settings) as api:
        for epoch, reason in ((4, "older_epoch"), (5, "conflicting_epoch")):
            publish(client, settings, plan_for(second, epoch=epoch))
            name = f'larder_plans_refused_total{{reason="{reason}"}}'
            wait_until(lambda name=name: api.metric(name) == 1)
        assert (api.ready()["epoch"], api.recommend("u00001")["bundle_id"]) == (5, first)


def damage_a_file(bundle: Path) -> None:
    data = bytearray((bundle / "ranker.cbm").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "ranker.cbm").write_bytes(data)


def change_the_manifest(bundle: Path) -> None:
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"repeats": "keep"', '"repeats": "drop"'), "utf-8")


def remove_the_bundle(bundle: Path) -> None:
    shutil.rmtree(bundle)


@pytest.mark.parametrize("damage", [damage_a_file, change_the_manifest, remove_the_bundle])
def test_a_bad_bundle_is_refused_and_the_old_one_serves(
    settings: Settings, client: redis.Redis, shop: tuple[Shop, str, str], damage: object
) -> None:
    _, first, second = shop
    assert callable(damage)
    damage(settings.bundles_dir / second)
    publish(client, settings, plan_for(first))
    with RunningApi(settings) as api:
        publish(client, settings, plan_for(second, epoch=2))
        wait_until(lambda: api.metric("larder_bundle_load_failures_total") == 1)
        ready = api.ready()
        assert (ready["status"], ready["epoch"], ready["bundle_id"]) == ("degraded", 1, first)
        assert second in ready["problems"][0]
        assert api.recommend("u00001")["bundle_id"] == first
        # A good plan afterwards is followed.
        publish(client, settings, plan_for(first, epoch=3, version="9"))
        wait_until(lambda: api.ready()["epoch"] == 3)
        assert api.ready()["status"] == "ready"
        assert api.recommend("u00001")["model_version"] == "9"


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", b'{"epoch": "1"}', b"[" * 5000])
def test_a_plan_that_is_none_is_refused(
    settings: Settings, client: redis.Redis, shop: tuple[Shop, str, str], text: bytes
) -> None:
    publish(client, settings, plan_for(shop[1]))
    with RunningApi(settings) as api:
        client.set(f"{settings.project}:plan", text)
        wait_until(lambda: api.ready()["status"] == "degraded")
        assert "plan in Redis was refused" in api.ready()["problems"][0]
        assert api.recommend("u00001")["level"] == "full"


def test_without_a_plan_popular_items_are_answered(
    settings: Settings, client: redis.Redis, shop: tuple[Shop, str, str]
) -> None:
    with RunningApi(settings) as api:
        response = api.http.get("/readyz")
        assert (response.status_code, response.json()["status"]) == (503, "not_ready")
        answer = api.recommend("u00001", k=3, exclude=["i00001"])
        assert (answer["level"], answer["reasons"], answer["bundle_id"]) == ("popularity", ["no_bundle"], None)
        assert len(answer["items"]) == 3
        assert api.http.get("/v1/items/i00001/similar").json()["reasons"] == ["no_bundle"]
        score = api.http.post("/v1/score", json={"pairs": [{"user_id": "a", "item_id": "b"}]})
        assert (score.status_code, score.json()["error"]["code"]) == (503, "unavailable")
        assert score.headers["Retry-After"] == "1"
        publish(client, settings, plan_for(shop[1]))
        wait_until(lambda: api.ready()["status"] == "ready")


def test_a_store_without_items_is_answered_from_the_file(
    settings: Settings, shop: tuple[Shop, str, str], client: redis.Redis
) -> None:
    client.flushall()
    publish(client, settings, plan_for(shop[1]))
    with RunningApi(settings) as api:
        assert api.ready()["items"] == 0
        answer = api.recommend("u00001", k=5)
        assert answer | {"request_id": "", "item_table_age_s": 0.0, "items": []} == {
            "request_id": "", "user_id": "u00001", "model_version": "1", "bundle_id": shop[1], "arm": "stable",
            "level": "popularity_file", "reasons": ["no_item_table"], "feature_age_s": None, "item_table_age_s": 0.0,
            "items": [],
        }  # fmt: skip
        assert len(answer["items"]) == 5
        assert api.http.get("/v1/items/popular?k=5").json()["items"] == answer["items"]
        assert "the item table is empty; lists are the popularity file of the model" in api.ready()["problems"]


def test_an_item_that_was_hidden_stays_so_when_the_store_is_lost(
    settings: Settings, shop: tuple[Shop, str, str], client: redis.Redis
) -> None:
    publish(client, settings, plan_for(shop[1]))
    with RunningApi(settings):
        first = load_bundle(settings.bundles_dir / shop[1]).popular[0]
        hide(client, settings, first)
        wait_until(lambda: first in load_hidden(settings.hidden_items_path))
    client.flushall()
    publish(client, settings, plan_for(shop[1]))
    with RunningApi(settings) as api:
        assert api.ready()["items"] == 0
        assert first not in {item["item_id"] for item in api.recommend("u00001", k=20)["items"]}


def hide(client: redis.Redis, settings: Settings, item_id: str) -> None:
    """Say that an item is not available."""
    now_us = time.time_ns() // 1000
    row = pack_catalog([CatalogItem(item_id, "Gone", "bread", 100, None, False)], np.full(1, now_us))[0]
    client.set(row_key(settings.project, CATALOG_VIEW, item_id), row)
    client.zadd(changed_key(settings.project), {item_id: now_us // 1000})


def test_new_and_changed_items_reach_the_item_table(
    settings: Settings, client: redis.Redis, shop: tuple[Shop, str, str]
) -> None:
    publish(client, settings, plan_for(shop[1]))
    with RunningApi(settings) as api:
        items = [CatalogItem("new", "New", "bread", 100), CatalogItem("i00001", "Gone", "bread", 100, None, False)]
        now_us = time.time_ns() // 1000
        for item, row in zip(items, pack_catalog(items, np.full(2, now_us)), strict=True):
            client.set(row_key(settings.project, CATALOG_VIEW, item.item_id), row)
            client.zadd(changed_key(settings.project), {item.item_id: now_us // 1000})
        wait_until(lambda: api.ready()["items"] == len(shop[0].item_ids) + 1)
        shown = {item["item_id"] for item in api.recommend("u00001", k=1000)["items"]}
        assert "new" in shown
        assert "i00001" not in shown


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RunningService]:
    """A Redis that a test may stop."""
    home = tmp_path / "redis"
    running = start(redis_service(Settings(home=home, redis_port=any_free_port())), home).wait()
    yield running
    running.stop()


def test_redis_stops_and_answers_go_on_marked(tmp_path: Path, own_redis: RunningService) -> None:
    settings = Settings(home=tmp_path / "home", project="away", redis_port=own_redis.port, redis_timeout_ms=200)
    with redis.Redis(HOST, own_redis.port) as client:
        _, bundle_id = open_shop(settings, client)
    with RunningApi(settings) as api:
        assert api.recommend("u00001")["level"] == "full"
        own_redis.stop()
        for _ in range(10):
            answer = api.recommend("u00001", k=5, repeats="drop")
            assert (answer["level"], answer["bundle_id"], len(answer["items"])) == ("item_side", bundle_id, 5)
            assert answer["reasons"] == ["user_features_unavailable", "repeats_not_known"]
        assert api.http.get("/v1/items/popular").json()["level"] == "full"
        scores = api.http.post("/v1/score", json={"pairs": [{"user_id": "u00001", "item_id": "i00001"}]}).json()
        assert (scores["level"], scores["reasons"]) == ("item_side", ["user_features_unavailable"])
        event = {"user_id": "u", "item_id": "i00001", "event_type": "view", "event_id": "e"}
        refused = api.http.post("/v1/events", json={"events": [event]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert refused.headers["Retry-After"] == "1"
        assert api.http.get("/admin/users/u00001/features").status_code == 503
        ready = api.http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        back = start(redis_service(Settings(home=tmp_path / "redis", redis_port=own_redis.port)), tmp_path / "redis")
        try:
            back.wait()
            assert back.port == own_redis.port
            wait_until(lambda: api.recommend("u00001")["level"] == "full")
            assert wait_until(lambda: api.ready()["status"] == "ready")
            assert api.http.post("/v1/events", json={"events": [event]}).status_code == 202
        finally:
            back.stop()


def test_redis_stalls_and_answers_stay_quick(tmp_path: Path, own_redis: RunningService) -> None:
    settings = Settings(home=tmp_path / "home", project="stalled", redis_port=own_redis.port, redis_timeout_ms=100)
    with redis.Redis(HOST, own_redis.port) as client:
        open_shop(settings, client)
    with RunningApi(settings) as api:
        before = {user: api.recommend(user, k=5)["items"] for user in ("u00001", "u00002", "u00003")}
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            times = []
            for _ in range(30):
                start_s = time.monotonic()
                assert api.recommend("u00001", k=5)["level"] == "item_side"
                times.append(time.monotonic() - start_s)
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        # A few wait for the timeout, then Redis is left alone but for one try a second.
        assert sum(t > 0.09 for t in times) <= 8, times
        assert np.median(times) < 0.05
        assert max(times) < 0.6, times
        wait_until(lambda: api.recommend("u00001", k=5)["level"] == "full")
        # No late answer to an abandoned read may be taken for the answer to another.
        for _ in range(20):
            for user, items in before.items():
                answer = api.recommend(user, k=5)
                assert [i["item_id"] for i in answer["items"]] == [i["item_id"] for i in items]


def test_a_start_without_redis_serves_the_popularity_file(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, project="alone", redis_port=any_free_port(), redis_timeout_ms=100)
    shop = make_shop(time.time_ns() // 1000)
    with RunningApi(settings) as api:
        nothing = api.http.post("/v1/recommendations", json={"user_id": "u"})
        assert (nothing.status_code, nothing.json()["error"]["code"]) == (503, "unavailable")
    bundle_id = make_bundle(settings.bundles_dir, shop)
    save_plan(plan_for(bundle_id, epoch=3), settings.plan_path, signing_key(settings))
    with RunningApi(replace(settings, redis_port=any_free_port())) as api:
        answer = api.recommend("u00001", k=5)
        assert (answer["level"], answer["reasons"]) == ("popularity_file", ["no_item_table"])
        assert answer["bundle_id"] == bundle_id
        assert len(answer["items"]) == 5
        excluded = answer["items"][0]["item_id"]
        assert excluded not in {item["item_id"] for item in api.recommend("u00001", exclude=[excluded])["items"]}
        assert api.http.get("/v1/items/popular?k=3").json()["level"] == "popularity_file"
        assert api.http.get("/v1/items/i00001/similar?k=3").json()["level"] == "popularity_file"
        assert api.http.get("/readyz").status_code == 503
        assert api.http.get("/livez").status_code == 200
