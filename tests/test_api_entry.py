"""The way in over HTTP with a real worker: catalogue entries reach every list, floods are bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest
import redis
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo.event_rules import REASONS
from feature_repo.ingest import IngestWorker, read_status
from feature_repo.item_changes import ROW_FIELDS, ItemChange
from feature_repo.item_changes import given as sets_of
from feature_repo.online_keys import events_key, quarantine_key
from feature_repo.quarantine import MAX_WAITING, Refused, refuse_commands, refused_counts
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from larder.services.ports import HOST, any_free_port
from serving.hidden_items import load_hidden
from serving.item_entry import FIELDS, RefusedItem, prepare_change
from serving.rate_limit import UserLimits
from tests.running_api import RunningApi, open_shop, wait_until

NOW_US = 1_790_000_000_000_000


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis(HOST, settings.redis_port) as client:
        yield client


@contextmanager
def working(settings: Settings) -> Iterator[IngestWorker]:
    """A worker in a thread; what it did is complete when the context ends."""
    stop, ready = threading.Event(), threading.Event()
    with connect(settings, timeout_ms=5000) as own:
        worker = IngestWorker(settings, own)
        thread = threading.Thread(target=worker.run, args=(stop, lambda _: ready.set()))
        thread.start()
        try:
            assert ready.wait(60)
            yield worker
        finally:
            stop.set()
            thread.join(20)


def entries(api: RunningApi, *sent: dict[str, Any]) -> dict[str, Any]:
    response = api.http.post("/v1/items", json={"items": list(sent)})
    assert response.status_code == 202, response.text
    return response.json()


def events(api: RunningApi, *sent: dict[str, Any]) -> Any:
    return api.http.post("/v1/events", json={"events": list(sent)})


def view(user: str, item: str = "i00001", **fields: Any) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "event_type": "view"} | fields


def shown(api: RunningApi) -> dict[str, set[str]]:
    """What every list holds."""
    lists = {
        "recommended": api.recommend("u00001", k=1000)["items"],
        "to a stranger": api.recommend("nobody", k=1000)["items"],
        "popular": api.http.get("/v1/items/popular?k=1000").json()["items"],
        "similar": api.http.get("/v1/items/i00005/similar?k=1000").json()["items"],
    }
    return {name: {item["item_id"] for item in items} for name, items in lists.items()}


def test_the_catalogue_reaches_every_list_and_the_next_event(settings: Settings, client: redis.Redis) -> None:
    """New, blocked, unavailable and repriced items, end to end; then again on the rung without Redis."""
    _, bundle_id = open_shop(settings, client)
    with RunningApi(settings) as api, working(settings):
        before = shown(api)
        near = sorted(before["similar"])[:2]
        answer = entries(
            api,
            {"item_id": "new", "title": "New", "category": "jam", "price": 1250},
            {"item_id": near[0], "blocked": True, "change_id": "recall"},
            {"item_id": near[1], "available": False},
            {"item_id": "i00003", "price": 77},
            {"item_id": "i00003", "price": -1},
        )
        assert (answer["accepted"], answer["rejected"]) == (4, 1)
        assert answer["results"][4]["reason"].startswith("negative")
        sent = time.monotonic()
        wait_until(lambda: "new" in shown(api)["recommended"])
        print(f"a new item is in the lists after {(time.monotonic() - sent) * 1000:.0f} ms")
        after = shown(api)
        assert "new" in after["popular"] & after["to a stranger"]
        for name, items in after.items():
            assert not items & set(near), name
            assert items - {"new"} == before[name] - set(near), name
        events(api, view("buyer", "i00003", event_type="purchase"), view("buyer", "new", event_type="purchase"))
        spent = wait_until(lambda: (features(api, "buyer")["user_stats"] or {}).get("user_spend"))
        assert spent == 77 + 1250, "enriched with the prices of that moment"
        # A user's row is written before its affinities.
        wait_until(lambda: "jam" in {one["category"] for one in features(api, "buyer")["categories"]})
        # The same entry again counts once; a block is taken back, and the rest of the row is as it was.
        again = entries(api, {"item_id": near[0], "blocked": True, "change_id": "recall"})
        assert again["results"][0]["status"] == "duplicate"
        entries(api, {"item_id": near[0], "blocked": False})
        wait_until(lambda: near[0] in shown(api)["similar"])
        for answer in (
            api.recommend("u00001"),
            api.http.get("/v1/items/popular").json(),
            api.http.get("/v1/items/i00005/similar").json(),
            api.http.post("/v1/score", json={"pairs": [{"user_id": "u", "item_id": "new"}]}).json(),
        ):
            assert 0 <= answer["item_table_age_s"] < 5
        popular = shop_popular(api)
        entries(api, {"item_id": popular[0], "blocked": True})
        wait_until(lambda: popular[0] in load_hidden(settings.hidden_items_path))
    with RunningApi(replace(settings, redis_port=any_free_port(), redis_timeout_ms=100)) as api:
        answer = api.recommend("u00001", k=1000)
        assert (answer["level"], answer["bundle_id"]) == ("popularity_file", bundle_id)
        assert popular[0] not in {item["item_id"] for item in answer["items"]}
        assert popular[1] in {item["item_id"] for item in answer["items"]}
        assert popular[0] not in {i["item_id"] for i in api.http.get("/v1/items/popular?k=1000").json()["items"]}


def features(api: RunningApi, user: str) -> dict[str, Any]:
    found: dict[str, Any] = api.http.get(f"/admin/users/{user}/features").json()
    return found


def shop_popular(api: RunningApi) -> list[str]:
    release = api.app.state.serving.release
    return [item for item in release.bundle.popular if item in shown(api)["popular"]]


def test_what_is_refused_is_kept_and_counted(settings: Settings, client: redis.Redis) -> None:
    open_shop(settings, client)
    with RunningApi(settings) as api, working(settings):
        answer = events(
            api,
            view("ann", event_timestamp="2999-01-01T00:00:00Z"),
            view("ann", event_timestamp="2021-01-01T00:00:00Z", event_id="old"),
            view("ann", colour="é"),
            view("ann", context={"x": "y" * 20_000}),
            view("ann", event_id="right"),
        ).json()
        assert (answer["accepted"], answer["rejected"]) == (1, 4)
        assert api.http.post("/v1/items", json={"items": [{"item_id": "i", "price": 1.5}]}).status_code == 422
        counts = refused_counts(client, settings.project)
        assert counts == dict.fromkeys(["future_time", "too_old", "unknown_field", "bad_context", "not_whole"], 1)
        assert api.metric('larder_refused_total{reason="future_time"}') == 1
        wait_until(lambda: read_status(client, settings.project).quarantine_waiting == 5)
        wait_until(lambda: api.metric("larder_quarantine_waiting_rows") == 5)
    (file,) = settings.quarantine_dir.glob("refused-*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert [row["reason"] for row in rows] == ["future_time", "too_old", "unknown_field", "bad_context", "not_whole"]
    assert {row["source"] for row in rows} == {f"{settings.project}:events", f"{settings.project}:items"}
    assert '"colour":"é"' in rows[2]["raw"]
    assert len(rows[3]["raw"]) < 10_000, "cut"
    assert client.xlen(quarantine_key(settings.project)) == 0


def test_a_flood_of_garbage_stays_bounded(settings: Settings, client: redis.Redis) -> None:
    for start in range(0, 3 * MAX_WAITING, 2_000):
        pipeline = client.pipeline(transaction=False)
        rows = [Refused("events", "bad_id: x", b"{}") for _ in range(start, start + 2_000)]
        for command in refuse_commands(settings.project, rows):
            pipeline.execute_command(*command)
        pipeline.execute()
    assert client.xlen(quarantine_key(settings.project)) < 1.1 * MAX_WAITING
    assert refused_counts(client, settings.project) == {"bad_id": 3 * MAX_WAITING}, "all are counted"


def test_one_users_flood_is_limited_and_nobody_elses(settings: Settings, client: redis.Redis) -> None:
    open_shop(settings, client)
    with RunningApi(replace(settings, user_events_per_s=1, user_events_burst=10)) as api:
        mixed = events(api, *(view("flood") for _ in range(15)), view("calm")).json()
        assert (mixed["accepted"], mixed["rejected"]) == (11, 5)
        assert mixed["results"][-1]["status"] == "accepted"
        assert mixed["results"][12]["reason"].startswith("rate_limited")
        assert mixed["retry_after_s"] == 5
        refused = events(api, *(view("flood") for _ in range(3)))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
        assert int(refused.headers["Retry-After"]) == 3
        assert events(api, view("calm")).status_code == 202
        assert client.xlen(events_key(settings.project)) == 12
        assert "rate_limited" not in refused_counts(client, settings.project), "a flood is counted, not kept"
        assert api.metric('larder_refused_total{reason="rate_limited"}') == 8


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 5)), max_size=60), st.integers(1, 20), st.integers(1, 30))
def test_a_bucket_lets_through_a_burst_and_the_rate(steps: list[tuple[int, float]], rate: int, burst: int) -> None:
    limits, now, passed, pauses = UserLimits(rate, burst), 0.0, 0, 0.0
    for asked, pause in steps:
        passed += sum(limits.take("u", now) for _ in range(asked))
        assert passed <= burst + rate * pauses + 1e-6
        now, pauses = now + pause, pauses + pause
    fresh = sum(limits.take("other", now) for _ in range(burst + 5))
    assert fresh == burst, "one user's flood takes nothing from another"


def test_buckets_are_bounded() -> None:
    limits = UserLimits(1, 1, max_users=100)
    for n in range(1_000):
        assert limits.take(f"u{n}", 0.0)
    assert len(limits) == 100
    assert not limits.take("u999", 0.0)
    assert UserLimits(0, 1).take("u", 0.0), "0: no limit"


def test_unknown_items_cannot_grow_the_table_without_bound(settings: Settings, client: redis.Redis) -> None:
    shop, _ = open_shop(settings, client)
    room = 3
    with RunningApi(replace(settings, max_items=len(shop.item_ids) + room)) as api, working(settings):
        first = events(api, *(view("ann", f"x{n}") for n in range(10)), view("ann", shop.item_ids[0])).json()
        assert (first["accepted"], first["rejected"]) == (room + 1, 10 - room)
        assert first["results"][room]["reason"].startswith("too_many_items")
        wait_until(lambda: api.ready()["items"] == len(shop.item_ids) + room)
        assert events(api, view("ann", "another")).status_code == 422
        assert events(api, view("ann", "x0")).status_code == 202
        refused = api.http.post("/v1/items", json={"items": [{"item_id": "another", "price": 1}]})
        assert (refused.status_code, "too_many_items" in refused.text) == (422, True)
        entries(api, {"item_id": "x0", "price": 1})


def test_a_full_stream_is_a_503_and_no_false_acknowledgement(settings: Settings, client: redis.Redis) -> None:
    open_shop(settings, client)
    with RunningApi(replace(settings, stream_max_entries=5)) as api:
        assert events(api, *(view("ann") for _ in range(5))).status_code == 202
        for refused in (
            events(api, view("ann", event_id="more")),
            api.http.post("/v1/items", json={"items": [{"item_id": "i00001", "price": 1}]}),
        ):
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert "STREAMFULL" in refused.json()["error"]["message"]
        assert client.xlen(events_key(settings.project)) == 5
        assert api.recommend("u00001")["level"] == "full"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*sorted(FIELDS), "other"]), json_values, max_size=6))
@hypothesis_settings(max_examples=300, deadline=None)
def test_any_json_is_a_right_entry_or_refused_with_a_known_reason(sent: dict[str, Any]) -> None:
    try:
        change = prepare_change({"item_id": "i"} | sent, NOW_US, "made-up")
    except RefusedItem as refusal:
        assert str(refusal).partition(":")[0] in REASONS
        return
    assert isinstance(change, ItemChange)
    assert set(sets_of(change)) == set(sent) - {"item_id", "change_id"}
    assert set(ROW_FIELDS) <= FIELDS
