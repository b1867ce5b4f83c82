"""Materialise: the offline store's end state in Redis, ingest going on after it, and what it refuses."""

import random
import time

import pytest

from feature_repo.backfill import backfill
from feature_repo.errors import BadInputError, ConflictError
from feature_repo.ingest import IngestWorker
from feature_repo.materialize import materialize
from feature_repo.online_reader import OnlineReader
from feature_repo.redis_scripts import connect
from feature_repo.stream import append_events
from feature_repo.views import DAY_US
from tests.live_shop import a_view, assert_online_equals_offline, import_history, random_event


@pytest.fixture
def client(settings):
    with connect(settings, timeout_ms=5000) as client:
        yield client


def now_us() -> int:
    return time.time_ns() // 1000


def append(client, settings, *events):
    return append_events(client, settings.project, list(events), now_us() // 1000)


def started(settings, client) -> IngestWorker:
    worker = IngestWorker(settings, client)
    worker.start()
    return worker


def drain(worker) -> None:
    while worker.step():
        pass


def history(settings, end_us: int, seed: int = 1) -> None:
    rng = random.Random(seed)
    events = [random_event(rng, f"h{k}", end_us - k * 3600_000_000) for k in range(40)]
    import_history(settings, [*events, a_view("last", "bob", at_us=end_us)])
    backfill(settings)


def test_materialize_is_idempotent_and_ingest_goes_on_after_it(settings, client):
    end_us = now_us() - DAY_US
    history(settings, end_us)
    first, again = materialize(settings), materialize(settings)
    assert first.rows == again.rows
    assert sum(first.rows.values()) == first.written > 20
    assert not first.rebuilt
    assert not again.rebuilt
    assert first.watermark == again.watermark == OnlineReader(client, settings.project).watermark()
    assert_online_equals_offline(settings, client, now_us())
    entry = OnlineReader(client, settings.project).read_items(["i3", "i1", "?"])[1]
    assert [e and (e.title, e.available) for e in entry] == [("Title i3", False), ("Title i1", True), None]
    worker = started(settings, client)
    append(client, settings, a_view("live"))
    drain(worker)
    worker.flush()
    later = materialize(settings)  # beside the worker: rows of live events are newer, and stay
    assert later.watermark == worker.status.watermark > first.watermark
    assert later.written < first.written
    append(client, settings, a_view("live2"))
    drain(worker)
    worker.flush()
    worker.close()
    assert_online_equals_offline(settings, client, now_us())


def test_another_history_replaces_all_rows_but_not_under_a_running_worker(settings, client):
    history(settings, now_us() - DAY_US)
    materialize(settings)
    history(settings, now_us() - 2 * DAY_US, seed=2)
    worker = started(settings, client)
    with pytest.raises(ConflictError, match="another ingest worker"):
        materialize(settings)
    worker.close()
    assert materialize(settings).rebuilt == "the imported history or a layout changed"
    assert_online_equals_offline(settings, client, now_us())


def test_events_folded_before_there_was_a_history_are_folded_again_on_it(settings, client):
    append(client, settings, a_view("early"))
    worker = started(settings, client)
    drain(worker)
    worker.flush()
    worker.close()
    history(settings, now_us() - DAY_US)
    append(client, settings, a_view("late"))
    assert "before there was a history" in materialize(settings).rebuilt
    worker = started(settings, client)
    drain(worker)
    worker.flush()
    worker.close()
    assert_online_equals_offline(settings, client, now_us())


def test_materialize_passes_over_no_accepted_event(settings, client):
    append(client, settings, a_view("waiting"))
    history(settings, now_us() + 60_000_000)
    with pytest.raises(ConflictError, match="wait in the stream"):
        materialize(settings)


def test_history_from_the_future_is_refused(settings):
    history(settings, now_us() + DAY_US)
    with pytest.raises(BadInputError, match="in the future"):
        materialize(settings)


def test_live_events_come_after_history_whatever_the_clock_says(settings, client):
    history(settings, now_us() + 60_000_000)
    watermark = materialize(settings).watermark
    assert append(client, settings, a_view("live"))[0].seq > watermark
