"""A Redis of its own for what comes in: the stream there, rows and watermark with the features, each may go alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from feature_repo.backfill import backfill
from feature_repo.ingest import IngestWorker
from feature_repo.materialize import materialize
from feature_repo.online_reader import OnlineReader
from feature_repo.quarantine import refused_counts
from feature_repo.redis_scripts import both_connected, connect_events
from feature_repo.settings import Settings
from feature_repo.stream import append_events
from larder.loading.load import load_events
from larder.services.ports import HOST, any_free_port
from larder.services.process import RunningService, start
from larder.services.redis_server import redis_service
from serving.app import now_us
from tests.live_shop import a_view, assert_online_equals_offline, import_history
from tests.running_api import RunningApi, open_shop, wait_until


@pytest.fixture
def second(tmp_path: Path) -> Iterator[RunningService]:
    """A second redis-server, which a test may stop."""
    home = tmp_path / "events-redis"
    running = start(redis_service(Settings(home=home, redis_port=any_free_port())), home).wait()
    yield running
    running.stop()


@pytest.fixture
def split(settings: Settings, second: RunningService) -> Settings:
    return replace(settings, events_redis_host=HOST, events_redis_port=second.port)


@pytest.fixture
def clients(split: Settings) -> Iterator[tuple[redis.Redis, redis.Redis]]:
    with both_connected(split, timeout_ms=5000) as both:
        yield both


def worked(settings: Settings, clients: tuple[redis.Redis, redis.Redis]) -> IngestWorker:
    """Fold and log what waits."""
    worker = IngestWorker(settings, clients[0], events=clients[1])
    worker.start()
    while worker.step():
        pass
    worker.flush()
    worker._publish()
    worker.close()
    return worker


def names(client: redis.Redis) -> set[str]:
    """Kinds of keys there are."""
    return {key.decode().replace("{", "").replace("}", "").split(":")[1] for key in client.scan_iter()}


def test_each_redis_has_its_own_keys_and_the_features_are_right(split: Settings, clients) -> None:
    features, events = clients
    import_history(split, [a_view("h1", at_us=now_us() - 10**9), a_view("h2", "bob", at_us=now_us() - 10**9)])
    backfill(split)
    materialize(split)
    results = append_events(events, split.project, [a_view(f"e{n}", f"u{n % 3}") for n in range(30)], now_us() // 1000)
    worker = worked(split, clients)
    assert worker.status.watermark == OnlineReader(features, split.project).watermark() == results[-1].seq
    assert names(events) == {"events", "seen"}
    assert names(features) == {"fs", "fi", "base", "items", "watermark", "ingest"}
    assert worker.status.events_redis_used_bytes > 1e5
    assert_online_equals_offline(split, features, now_us())


def test_events_come_after_history_and_after_a_lost_stream(split: Settings, clients) -> None:
    """History ends a minute from now: the stream's ids must come after it, also where the stream was lost since."""
    features, events = clients
    later = now_us() + 60_000_000
    import_history(split, [a_view("h1", at_us=later), a_view("h2", "bob", at_us=later)])
    backfill(split)
    watermark = materialize(split).watermark
    [live] = append_events(events, split.project, [a_view("live")], now_us() // 1000)
    assert live.seq > watermark
    assert worked(split, clients).status.events == 1
    events.flushall()
    worked(split, clients)
    [after] = append_events(events, split.project, [a_view("after")], now_us() // 1000)
    assert after.seq > live.seq
    assert worked(split, clients).status.events == 1
    assert_online_equals_offline(split, features, later + 10**6)


def test_a_file_is_loaded_into_the_stream(split: Settings, clients, tmp_path: Path) -> None:
    features, events = clients
    open_shop(split, features)
    at = datetime.now(UTC).isoformat()
    rows = [{"user_id": f"u{n}", "item_id": "i00001", "event_type": "view", "event_timestamp": at} for n in range(5)]
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert load_events(split, path).accepted == 5
    assert "events" in names(events)
    assert "events" not in names(features)


def test_without_the_events_redis_lists_are_whole_and_events_are_refused(
    split: Settings, clients, second: RunningService
) -> None:
    open_shop(split, clients[0])
    one = {"user_id": "u00001", "item_id": "i00001", "event_type": "view"}
    with RunningApi(split) as api:
        wrong = {**one, "event_type": "no such type"}
        answer = api.http.post("/v1/events", json={"events": [one, wrong]})
        assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
        with connect_events(split) as client:
            assert sum(refused_counts(client, split.project).values()) == 1
        assert names(clients[0]) & {"events", "quarantine"} == set()
        second.stop()
        for _ in range(4):
            assert api.http.post("/v1/events", json={"events": [one]}).status_code == 503
        assert api.recommend("u00001")["level"] == "full"
        problems = " ".join(api.ready()["problems"])
        assert "takes no events" in problems
        assert "does not answer" not in problems


def test_without_the_features_redis_events_are_taken(split: Settings, clients, tmp_path: Path) -> None:
    home = tmp_path / "features-redis"
    own = start(redis_service(Settings(home=home, redis_port=any_free_port())), home).wait()
    shop = replace(split, redis_port=own.port, redis_timeout_ms=200)
    with redis.Redis(HOST, own.port) as client:
        open_shop(shop, client)
    with RunningApi(shop) as api:
        wait_until(lambda: api.ready()["status"] == "ready")
        own.stop()
        one = {"user_id": "u00001", "item_id": "i00001", "event_type": "view"}
        answer = api.http.post("/v1/events", json={"events": [one]})
        assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
        assert api.recommend("u00001")["level"] != "full"
