"""The API over HTTP, with a real Redis and a real, tiny bundle: what each endpoint answers."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from feature_repo.online_keys import events_key, watermark_key
from feature_repo.rows import Rows, UserRows
from feature_repo.settings import Settings
from larder.services.ports import HOST
from larder.services.process import RunningService
from serving.answers import REASONS
from serving.bundle import load_bundle
from tests.running_api import RunningApi, open_shop, wait_until
from tests.tiny_bundle import CATEGORIES, SERVICE, Shop


@pytest.fixture(scope="module")
def client(redis_server: RunningService) -> Iterator[redis.Redis]:
    with redis.Redis(HOST, redis_server.port) as client:
        yield client


@pytest.fixture(scope="module")
def opened(
    redis_server: RunningService, client: redis.Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningApi, Shop, str]]:
    """One app for all tests of this file; tests that change features use users of their own."""
    settings = Settings(
        home=tmp_path_factory.mktemp("api"), project="api", redis_port=redis_server.port, redis_timeout_ms=1000
    )
    shop, bundle_id = open_shop(settings, client)
    with RunningApi(settings) as api:
        yield api, shop, bundle_id


@pytest.fixture
def api(opened: tuple[RunningApi, Shop, str]) -> RunningApi:
    return opened[0]


@pytest.fixture
def shop(opened: tuple[RunningApi, Shop, str]) -> Shop:
    return opened[1]


@pytest.fixture
def bundle_id(opened: tuple[RunningApi, Shop, str]) -> str:
    return opened[2]


class ShopReader:
    """What serving should read of the shop, without Redis."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    def user(self, user_id: str, now_us: int) -> UserRows:
        return self._shop.user(user_id)

    def pairs(self, user_id: str, item_ids: list[str], now_us: int) -> Rows:
        return self._shop.pair_rows(user_id, item_ids)


def test_an_answer_says_how_it_was_made(api: RunningApi, bundle_id: str) -> None:
    answer = api.recommend("u00003", k=7, request_id="page-1")
    assert answer["request_id"] == "page-1"
    assert answer["user_id"] == "u00003"
    assert (answer["bundle_id"], answer["model_version"], answer["arm"]) == (bundle_id, "1", "stable")
    assert (answer["level"], answer["reasons"]) == ("full", [])
    assert answer["feature_age_s"] > 0
    assert 0 <= answer["item_table_age_s"] < 10
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5, 6, 7]
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert {item["source"] for item in answer["items"]} <= {"history", "popular", "category", "als", "similar"}


def test_the_api_answers_what_the_cascade_answers_offline(api: RunningApi, shop: Shop, bundle_id: str) -> None:
    recommender = load_bundle(api.settings.bundles_dir / bundle_id).recommender
    for user_id in shop.user_ids[:10]:
        answer = api.recommend(user_id, k=10)
        slate = recommender.recommend(ShopReader(shop), shop.table(), user_id, time.time_ns() // 1000, k=10)
        # Both decay to their own "now", milliseconds apart: the order is the same, scores nearly.
        assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in slate.items]
        np.testing.assert_allclose(
            [item["score"] for item in answer["items"]], [item.score for item in slate.items], atol=1e-3
        )


def test_lists_are_personal(api: RunningApi, shop: Shop) -> None:
    lists = {tuple(item["item_id"] for item in api.recommend(user, k=5)["items"]) for user in shop.user_ids}
    assert len(lists) > len(shop.user_ids) / 2


def test_an_unknown_user_is_answered(api: RunningApi) -> None:
    answer = api.recommend("nobody", k=5)
    assert (answer["level"], answer["reasons"], len(answer["items"])) == ("full", ["unknown_user"], 5)
    assert api.recommend("nobody ☃", k=5)["items"] == answer["items"]


def test_k_over_the_catalogue_brings_every_available_item_once(api: RunningApi, shop: Shop) -> None:
    items = [item["item_id"] for item in api.recommend("u00003", k=1000)["items"]]
    assert sorted(items) == [entry.item_id for entry in shop.catalog if entry.available]


def test_excluded_and_unavailable_items_are_not_shown(api: RunningApi, shop: Shop) -> None:
    first = [item["item_id"] for item in api.recommend("u00003", k=5)["items"]]
    rest = api.recommend("u00003", k=1000, exclude=[*first, "no such item"])["items"]
    assert not {item["item_id"] for item in rest} & {*first, shop.item_ids[-1]}


def test_repeats_can_be_dropped(api: RunningApi, shop: Shop) -> None:
    seen = set(shop.recent[3].item_ids)
    kept = api.recommend("u00003", k=20, repeats="keep")["items"]
    dropped = api.recommend("u00003", k=20, repeats="drop")["items"]
    assert seen & {item["item_id"] for item in kept}
    assert not seen & {item["item_id"] for item in dropped}


def test_a_request_may_ask_for_diversity(api: RunningApi, shop: Shop) -> None:
    def categories(**wish: Any) -> list[str | None]:
        shown = [item["item_id"] for item in api.recommend("u00003", k=12, **wish)["items"]]
        return [shop.catalog[shop.item_ids.index(item)].category for item in shown]

    assert max(Counter(categories()).values()) > 3  # the policy of the bundle is off
    assert categories(diversity="off") == categories() == categories(diversity=None)
    assert max(Counter(categories(diversity="category_cap")).values()) == 3
    assert categories(diversity="mmr") != categories()


def test_what_was_served_is_in_the_impression_log(api: RunningApi, shop: Shop, bundle_id: str) -> None:
    answer = api.recommend("u00007", k=3, request_id="logged-once")

    def record() -> dict[str, Any] | None:
        lines = [
            line
            for path in api.settings.impressions_dir.glob("*/*.jsonl")
            for line in path.read_text("utf-8").splitlines()
        ]
        return next((one for one in map(json.loads, lines) if one["request_id"] == "logged-once"), None)

    found = wait_until(record)
    assert found["items"] == answer["items"]
    assert (found["user_id"], found["k"], found["level"]) == ("u00007", 3, "full")
    assert (found["assigned_arm"], found["served_bundle"]) == ("stable", bundle_id)
    assert found["user_seq"] == shop.user("u00007").stats.seq[0]
    assert found["recent_seq"] == shop.recent[7].seq
    assert found["seen"]["service"] == SERVICE
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", next(api.settings.impressions_dir.iterdir()).name)


def test_similar_items_come_from_the_model(api: RunningApi, shop: Shop) -> None:
    answer = api.http.get(f"/v1/items/{shop.item_ids[5]}/similar", params={"k": 4}).json()
    assert (answer["level"], answer["reasons"], len(answer["items"])) == ("full", [], 4)
    assert {item["source"] for item in answer["items"]} == {"similar"}
    assert shop.item_ids[5] not in [item["item_id"] for item in answer["items"]]


@pytest.mark.parametrize("item_id", ["unknown", "a%2Fb", "%E2%98%83", "i1/similar"])
def test_similar_to_an_unknown_item_is_popular(api: RunningApi, item_id: str) -> None:
    answer = api.http.get(f"/v1/items/{item_id}/similar?k=3").json()
    assert (answer["level"], answer["reasons"], len(answer["items"])) == ("popularity", ["unknown_item"], 3)
    assert {item["source"] for item in answer["items"]} == {"popular"}


def test_popular_items(api: RunningApi, shop: Shop) -> None:
    purchases = shop.table().popularity("all")
    answer = api.http.get("/v1/items/popular", params={"k": 1000, "window": "all"}).json()
    found = [purchases[shop.item_ids.index(item["item_id"])] for item in answer["items"]]
    assert len(found) == len(shop.item_ids) - 1
    assert found == sorted(found, reverse=True)
    tea = api.http.get("/v1/items/popular", params={"category": CATEGORIES[3]}).json()["items"]
    assert {shop.catalog[shop.item_ids.index(item["item_id"])].category for item in tea} == {CATEGORIES[3]}
    nothing = api.http.get("/v1/items/popular", params={"category": "no such category"}).json()
    assert (nothing["items"], nothing["reasons"]) == ([], ["unknown_category"])


def test_scores_are_those_of_the_lists(api: RunningApi) -> None:
    shown = api.recommend("u00003", k=5)["items"]
    pairs = [{"user_id": "u00003", "item_id": item["item_id"]} for item in shown]
    pairs.insert(2, {"user_id": "nobody", "item_id": "no such item"})
    pairs.append(pairs[0])  # the same pair twice
    shown.append(shown[0])
    answer = api.http.post("/v1/score", json={"pairs": pairs}).json()
    assert [{k: s[k] for k in ("user_id", "item_id")} for s in answer["scores"]] == pairs
    stranger = answer["scores"].pop(2)
    assert stranger["reasons"] == ["unknown_user", "unknown_item"]
    assert 0 <= stranger["probability"] <= 1
    np.testing.assert_allclose(
        [s["probability"] for s in answer["scores"]], [item["score"] for item in shown], atol=1e-3
    )


def test_many_pairs_of_many_users(api: RunningApi, shop: Shop) -> None:
    pairs = [{"user_id": u, "item_id": i} for u in shop.user_ids[:20] for i in [*shop.item_ids[:48], "x", "y"]]
    answer = api.http.post("/v1/score", json={"pairs": pairs}).json()
    assert len(answer["scores"]) == 1000
    assert sum(score["reasons"] == ["unknown_item"] for score in answer["scores"]) == 40


def event(**fields: Any) -> dict[str, Any]:
    return {"user_id": "sender", "item_id": "i00001", "event_type": "view"} | fields


def send(api: RunningApi, *events: dict[str, Any]) -> httpx.Response:
    return api.http.post("/v1/events", json={"events": list(events)})


def test_events_are_acknowledged_one_by_one(api: RunningApi, client: redis.Redis) -> None:
    before = client.xlen(events_key("api"))
    response = send(
        api,
        event(event_id="a-1", quantity=2.0, context={"page": "home"}),
        event(event_id="a-1"),
        event(event_type="wink"),
        event(event_timestamp="2021-01-01T00:00:00Z"),
        event(event_id="a-2", event_timestamp="2999-01-01T00:00:00"),
        event(colour="blue"),
        event(event_id="x" * 10_000),
        event(event_id="a" + "\u0301\u0323" * 100_000),
        event(context="text"),
        event(price=1.5),
        event(value=-1),
    )
    assert response.status_code == 202
    answer = response.json()
    assert (answer["accepted"], answer["duplicates"], answer["rejected"]) == (1, 1, 9)
    first, again, *others = answer["results"]
    assert (first["status"], again["status"]) == ("accepted", "duplicate")
    assert first["seq"] == again["seq"] > 0
    assert [(one["reason"] or "").partition(":")[0] for one in others] == [
        "bad_event_type", "too_old", "naive_time", "unknown_field", "bad_id", "bad_id", "bad_context", "not_whole",
        "negative",
    ]  # fmt: skip
    assert client.xlen(events_key("api")) == before + 1


def test_a_batch_without_a_usable_event_is_an_error(api: RunningApi) -> None:
    response = send(api, event(event_type="wink"), event(item_id=""))
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["code"] == "bad_input"
    assert "bad_event_type" in error["message"]


def test_an_impression_counts_once_per_request_and_item(api: RunningApi) -> None:
    shown = event(event_type="impression", request_id="r-1", rank=1)
    answer = send(api, shown | {"event_id": "one"}, shown | {"event_id": "two"}, shown | {"item_id": "i00002"}).json()
    assert [one["status"] for one in answer["results"]] == ["accepted", "duplicate", "accepted"]


def test_a_large_batch(api: RunningApi) -> None:
    answer = send(api, *(event(event_id=f"large-{n % 900}", user_id=f"large-{n % 9}") for n in range(1000))).json()
    assert (answer["accepted"], answer["duplicates"], len(answer["results"])) == (900, 100, 1000)


def test_events_change_the_features_and_the_next_answer(api: RunningApi, client: redis.Redis, shop: Shop) -> None:
    from feature_repo.ingest import IngestWorker

    stop = threading.Event()
    worker = IngestWorker(api.settings, client)
    worker.start()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        before = api.recommend("newcomer", k=10)
        assert before["reasons"] == ["unknown_user"]
        wanted = [shop.item_ids[i] for i in (40, 41, 42)]
        clicked = [event(user_id="newcomer", item_id=item, request_id="r", rank=1) for item in wanted]
        bought = event(user_id="newcomer", item_id=wanted[0], event_type="purchase", quantity=3)
        last = send(api, *clicked, bought).json()["results"][-1]["seq"]
        answered = time.monotonic()

        def features() -> dict[str, Any] | None:
            # A user's row is written before its pairs and affinities; all are there when the watermark has moved.
            folded = int(client.get(watermark_key(api.settings.project)) or 0) >= last
            found = api.http.get("/admin/users/newcomer/features").json()
            return found if folded and found["user_stats"]["user_seq"] == last else None

        known = wait_until(features)
        print(f"features changed after {(time.monotonic() - answered) * 1000:.0f} ms")
        price = shop.catalog[40].price
        assert price is not None
        assert (known["user_stats"]["user_views"], known["user_stats"]["user_purchases"]) == (3, 1)
        # Enriched on entry: price and category of the catalogue, value = price x quantity.
        assert (known["user_stats"]["user_price_sum"], known["user_stats"]["user_spend"]) == (price, 3 * price)
        assert {one["category"] for one in known["categories"]} == {shop.catalog[i].category for i in (40, 41, 42)}
        assert [one["item_id"] for one in known["recent"]] == [*wanted, wanted[0]]
        assert [one["event_type"] for one in known["recent"]] == ["view", "view", "view", "purchase"]
        after = api.recommend("newcomer", k=10)
        assert (after["level"], after["reasons"]) == ("full", [])
        assert after["items"] != before["items"]
        assert "history" in {item["source"] for item in after["items"]}
        # The item's own row changed too, and reaches the item table with its next refresh.
        assert wait_until(lambda: api.recommend("x")["feature_age_s"] < 5)
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()


def test_health_and_metrics(api: RunningApi, shop: Shop, bundle_id: str) -> None:
    assert api.http.get("/livez").json() == {"status": "live"}
    ready = api.http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["status"] == "ready"
    assert (ready.json()["bundle_id"], ready.json()["epoch"]) == (bundle_id, 1)
    assert ready.json()["items"] >= len(shop.item_ids)
    api.recommend("u00001")
    served = api.metric('larder_requests_total{arm="stable",level="full",route="/v1/recommendations",status="200"}')
    api.recommend("u00001")
    assert (
        api.metric('larder_requests_total{arm="stable",level="full",route="/v1/recommendations",status="200"}')
        == served + 1
    )
    assert api.metric(f'larder_model_info{{arm="stable",bundle_id="{bundle_id}",model_version="1"}}') == 1
    api.http.get("/no/such/route")
    assert api.metric('larder_requests_total{arm="none",level="none",route="unmatched",status="404"}') >= 1
    assert api.metric('larder_stage_seconds_count{stage="rank"}') > 0
    assert api.metric('larder_candidates_total{source="similar"}') > 0
    # Labels come from closed sets: no id of a user, an item or a request is in any of them.
    text = api.http.get("/metrics").text
    assert not [value for value in ("u00001", "i00001", "page-1", "newcomer") if value in text]


def test_openapi_is_complete(api: RunningApi) -> None:
    document = api.http.get("/openapi.json").json()
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) == {
        "POST /v1/recommendations", "GET /v1/items/popular", "GET /v1/items/{item_id}/similar", "POST /v1/score",
        "POST /v1/events", "POST /v1/items", "POST /v1/feedback", "GET /admin/users/{user_id}/features",
        "GET /admin/rollout/status.json", "GET /livez", "GET /readyz",
        "GET /metrics",
    }  # fmt: skip
    for name, operation in operations.items():
        assert operation["summary"] and operation["description"], name
        success = operation["responses"].get("202" if "202" in operation["responses"] else "200")
        assert success["content"], name
    schemas = document["components"]["schemas"]
    for name in ("RecommendationRequest", "ScoreRequest", "EventsRequest", "ItemsRequest", "FeedbackRequest"):
        assert schemas[name]["examples"], name
        assert schemas[name]["additionalProperties"] is False
    assert set(schemas["Recommendations"]["properties"]["reasons"]["items"]["enum"]) == set(REASONS)
    assert api.http.get("/docs").status_code == 200


def test_the_examples_of_the_documentation_work(api: RunningApi) -> None:
    schemas = api.http.get("/openapi.json").json()["components"]["schemas"]
    for path, name in (
        ("recommendations", "RecommendationRequest"),
        ("score", "ScoreRequest"),
        ("events", "EventsRequest"),
        ("items", "ItemsRequest"),
    ):
        for example in schemas[name]["examples"]:
            assert api.http.post(f"/v1/{path}", json=example).is_success


def test_admin_is_for_this_machine_only(api: RunningApi) -> None:
    path = "/admin/users/u00001/features"
    assert api.http.get(path).status_code == 200
    rebound = api.http.get(path, headers={"Host": "evil.example"})
    forwarded = api.http.get(path, headers={"X-Forwarded-For": "203.0.113.7"})
    assert [r.status_code for r in (rebound, forwarded)] == [403, 403]
    assert rebound.json()["error"]["code"] == "forbidden"


def test_the_page_of_the_api_needs_no_internet(api: RunningApi) -> None:
    """Every script and style of `/docs` comes from this process."""
    page = api.http.get("/docs").text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(assets) >= 3
    assert not [link for link in assets if "://" in link]
    assert [api.http.get(link).status_code for link in assets] == [200] * len(assets)
