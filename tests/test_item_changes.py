"""Catalogue changes: one order with the events, applied once, the same online and offline at every moment."""

import random
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.errors import UnavailableError
from feature_repo.event_log import read_item_changes
from feature_repo.events import stream_id_of
from feature_repo.ingest import IngestWorker
from feature_repo.ingest_log import LiveLog
from feature_repo.item_changes import ItemChange, change_table, changed, read_changes
from feature_repo.materialize import materialize
from feature_repo.online_keys import events_key, watermark_key
from feature_repo.online_reader import OnlineReader
from feature_repo.redis_scripts import connect
from feature_repo.stream import Append, append_events, decode_entries
from feature_repo.stream_reader import StreamReader
from feature_repo.views import CATALOG_FIELDS, DAY_US
from tests.live_shop import ITEMS, a_view, import_history, logged_seqs

CHANGES = st.builds(
    ItemChange,
    st.uuids().map(str),
    st.sampled_from([*ITEMS, "new", "néw"]),
    st.just(1),
    title=st.just("New title") | st.none(),
    category=st.sampled_from(["tea", "cups", None]),
    price=st.none() | st.integers(0, 2**53),
    tags=st.none() | st.lists(st.text(max_size=3), max_size=2),
    blocked=st.booleans(),
) | st.builds(ItemChange, st.uuids().map(str), st.sampled_from([*ITEMS, "new"]), st.just(1), available=st.booleans())


@pytest.fixture
def client(settings):
    with connect(settings, timeout_ms=5000) as client:
        yield client


def now_us() -> int:
    return time.time_ns() // 1000


def change(item_id: str, **sets) -> ItemChange:
    return ItemChange(f"{item_id}-{time.time_ns()}", item_id, now_us(), **sets)


def append(client, settings, *changes):
    return Append.of_changes(settings.project, changes).run(client)


def started(settings, client, **options) -> IngestWorker:
    worker = IngestWorker(settings, client, **options)
    worker.start()
    return worker


def drain(worker) -> None:
    while worker.step():
        pass


def online(client, settings, items) -> dict:
    _, entries = OnlineReader(client, settings.project).read_items(items)
    return {entry.item_id: entry for entry in entries if entry is not None}


def fields_of(entry) -> tuple:
    """An entry of either side in one form."""
    if isinstance(entry, dict):
        return tuple(entry[name] for name in CATALOG_FIELDS)
    return entry.title, entry.category, entry.price, entry.created_at, int(entry.available), int(entry.blocked)


def offline(settings, as_of_us: int) -> dict:
    return {row["item_id"]: fields_of(row) for row in AsOfReader(settings, as_of_us).catalog().to_pylist()}


@hypothesis_settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(CHANGES, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_online_equals_offline_after_any_changes(settings, client, changes, rng: random.Random):
    """Partial changes, repeated and replayed, beside events; offline at every moment what was true then."""
    client.flushall()
    start_us = now_us() - 2 * DAY_US
    with tempfile.TemporaryDirectory() as home, ExitStack() as cleanup:
        shop = replace(settings, home=Path(home))
        import_history(shop, [a_view("h1", "ann", at_us=start_us), a_view("h2", "bob", at_us=start_us)])
        backfill(shop)
        materialize(shop)
        worker = started(shop, client, batch_events=rng.randint(1, 5))
        cleanup.callback(lambda: worker.close())  # noqa: PLW0108 - the last worker, not this one
        known_before = worker.status.watermark
        moments: list[tuple[int, dict]] = []
        for k, sent in enumerate(changes):
            at_us = start_us + (k + 2) * 60_000_000 + rng.choice([0, 0, -90_000_000])  # clocks differ
            one = replace_times(sent, at_us)
            (result,) = append(client, shop, one)
            assert result.status == "accepted"
            assert append(client, shop, one) == [("duplicate", result.seq)]
            append_events(client, shop.project, [a_view(f"e{k}")], now_us() // 1000)
            drain(worker)
            moments.append((at_us, {i: fields_of(e) for i, e in online(client, shop, [*ITEMS, "new", "néw"]).items()}))
            if rng.random() < 0.2:
                worker.flush()
            if rng.random() < 0.2:  # dies; the next one begins at an older watermark than the rows
                worker.close()
                if client.xlen(events_key(shop.project)) == 2 * (k + 1):
                    client.set(watermark_key(shop.project), known_before)
                worker = started(shop, client, batch_events=rng.randint(1, 5))
        drain(worker)
        worker.flush()
        worker.close()
        assert [c.change_id for _, c in read_changes(read_item_changes(shop))] == [c.change_id for c in changes]
        backfill(shop)
        last = max(at for at, _ in moments)
        assert offline(shop, last + 10) == moments[-1][1]
        known = 0
        for k, (at_us, then) in enumerate(moments):
            known = max(known, at_us)
            if all(later > known for later, _ in moments[k + 1 :]):  # clocks agree on what came after
                assert offline(shop, known + 1) == then
        # Filling Redis from the offline store again undoes nothing, and brings back what is lost.
        assert materialize(shop).rebuilt == ""
        assert {i: fields_of(e) for i, e in online(client, shop, [*ITEMS, "new", "néw"]).items()} == moments[-1][1]
        for key in client.scan_iter(f"*{shop.project}*item_catalog*"):
            client.delete(key)
        materialize(shop)
        assert {i: fields_of(e) for i, e in online(client, shop, [*ITEMS, "new", "néw"]).items()} == moments[-1][1]


def replace_times(change: ItemChange, at_us: int) -> ItemChange:
    return ItemChange(
        change.change_id,
        change.item_id,
        at_us,
        **{
            name: getattr(change, name)
            for name in ("title", "category", "price", "tags", "available", "blocked")
            if type(getattr(change, name)).__name__ != "UnsetType"
        },
    )


@given(st.lists(CHANGES, max_size=5))
def test_changes_come_back_from_the_log(changes):
    numbered = list(enumerate(changes, start=7))
    assert list(read_changes(change_table(numbered))) == numbered


@given(st.lists(CHANGES, min_size=1, max_size=6), st.data())
def test_a_change_that_is_held_already_changes_nothing(changes, data):
    """Replaying any earlier part of the history over its end leaves the end."""
    state = None
    for seq, one in enumerate(changes, start=1):
        state = changed(state, one, seq)
    for seq in data.draw(st.lists(st.integers(1, len(changes)), max_size=6)):
        assert changed(state, changes[seq - 1], seq) is state


def test_materialise_does_not_undo_a_newer_change(settings, client):
    import_history(settings, [a_view("h1", "ann"), a_view("h2", "bob")])
    backfill(settings)
    materialize(settings)
    worker = started(settings, client)
    append(client, settings, change("i1", price=77))
    drain(worker)
    materialize(settings)  # the offline store does not know of the change
    assert online(client, settings, ["i1"])["i1"].price == 77
    assert online(client, settings, ["i1"])["i1"].title == "Title i1"
    assert "i1" in OnlineReader(client, settings.project).changed_items(0)
    worker.close()


def test_a_crash_between_the_two_logs_loses_neither_kind(settings, client):
    """The changes are written, the events' directory is in the way: the next start writes the events, nothing twice."""
    append(client, settings, change("i1", price=1))
    (event,) = append_events(client, settings.project, [a_view("e")], now_us() // 1000)
    append(client, settings, change("i1", price=2))
    entries = StreamReader(client, settings.project).after(0, 10)
    log = LiveLog(settings)
    blocker = settings.events_dir / f"day={time.strftime('%Y-%m-%d', time.gmtime())}"
    blocker.write_text("in the way")
    with pytest.raises(OSError, match="exists"):
        log.append(decode_entries(entries))
    log.close()
    blocker.unlink()
    worker = started(settings, client)
    assert worker.status.log_watermark == 0, "nothing is folded, and the log says it has no event"
    drain(worker)
    worker.flush()
    worker.close()
    assert read_item_changes(settings)["price"].to_pylist() == [1, 2]
    assert logged_seqs(settings) == [event.seq]
    assert client.xlen(events_key(settings.project)) <= len(entries)
    log = LiveLog(settings)
    log.close()
    assert log.watermark == event.seq


def test_changes_alone_are_trimmed_behind_their_log(settings, client):
    append(client, settings, *(change(f"i{n}", price=n) for n in range(300)))
    worker = started(settings, client)
    drain(worker)
    assert client.xlen(events_key(settings.project)) == 300
    worker.flush()
    assert client.xlen(events_key(settings.project)) < 200
    assert worker.status.item_changes == 300
    worker.close()


def test_a_full_stream_takes_nothing(settings, client):
    append_events(client, settings.project, [a_view("a"), a_view("b")], now_us() // 1000, 2)
    with pytest.raises(UnavailableError, match="STREAMFULL"):
        append_events(client, settings.project, [a_view("c")], now_us() // 1000, 2)
    with pytest.raises(UnavailableError, match="STREAMFULL"):
        Append.of_changes(settings.project, [change("i1", price=1)], 2).run(client)
    assert client.xlen(events_key(settings.project)) == 2
    worker = started(settings, client)
    drain(worker)
    worker.flush()
    worker.close()
    client.xtrim(events_key(settings.project), minid=stream_id_of(worker.status.watermark + 1), approximate=False)
    assert append_events(client, settings.project, [a_view("c")], now_us() // 1000, 2)[0].status == "accepted"
