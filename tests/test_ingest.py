"""Live events: in once, folded once, equal to the offline store bit for bit; the log complete; writers fenced."""

import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo import fold
from feature_repo.backfill import backfill
from feature_repo.errors import BadInputError, ConflictError, UnavailableError
from feature_repo.events import SEQ_COUNTER_BITS, seq_of, stream_id_of
from feature_repo.fold import Limits
from feature_repo.ingest import IngestWorker, read_status
from feature_repo.ingest_log import LiveLog, log_watermark
from feature_repo.materialize import materialize
from feature_repo.online_keys import events_key, row_key, watermark_key
from feature_repo.online_reader import OnlineReader
from feature_repo.redis_scripts import connect, connect_async
from feature_repo.stream import append_events, append_events_async, decode_entries
from feature_repo.stream_reader import StreamReader
from feature_repo.views import DAY_US, USER_STATS
from tests.live_shop import (
    a_view,
    assert_online_equals_offline,
    import_history,
    live_files,
    logged_seqs,
    random_event,
)


@pytest.fixture
def client(settings):
    with connect(settings, timeout_ms=5000) as client:
        yield client


def now_us() -> int:
    return time.time_ns() // 1000


def append(client, settings, *events):
    return append_events(client, settings.project, list(events), now_us() // 1000)


def started(settings, client, **options) -> IngestWorker:
    worker = IngestWorker(settings, client, **options)
    worker.start()
    return worker


def drain(worker) -> None:
    while worker.step():
        pass


@hypothesis_settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.randoms(use_true_random=False), st.booleans())
def test_online_equals_offline_after_any_history(settings, client, rng: random.Random, with_history):
    """History, then live events with duplicates, late ones, crashes between batches and replays of whole batches.

    Half of the shops have limits that the events reach; some history is so old that its rows have expired.
    """
    client.flushall()
    start_us = now_us() - 2 * DAY_US
    with tempfile.TemporaryDirectory() as home, ExitStack() as cleanup:
        shop = replace(settings, home=Path(home))
        if rng.random() < 0.5:
            patch = cleanup.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(fold, "LIMITS", Limits([None, None, DAY_US, DAY_US], [None, None, 2, 1]))
        if with_history:
            ages = [rng.choice([rng.randrange(40), 720, 735]) * DAY_US + rng.randrange(DAY_US) for _ in range(30)]
            past = [random_event(rng, f"h{k}", start_us - age) for k, age in enumerate(ages)]
            import_history(shop, [*past, random_event(rng, "h-ann", start_us) | {"user_id": "ann"},
                                  random_event(rng, "h-bob", start_us) | {"user_id": "bob"}])  # fmt: skip
            backfill(shop)
            materialize(shop)
        accepted: list[int] = []
        worker = started(shop, client, batch_events=rng.randint(1, 7))
        cleanup.callback(lambda: worker.close())  # noqa: PLW0108 - the last worker, not this one
        positions = [worker.status.watermark]
        last_us = start_us
        for k in range(rng.randint(1, 60)):
            # Times of several API processes need not ascend with seq.
            time_us = start_us + k * 60_000_000 + rng.choice([0, 0, -30_000_000, 90_000_000, DAY_US])
            last_us = max(last_us, time_us)
            event = random_event(rng, f"e{k}", time_us)
            (result,) = append(client, shop, event)
            assert result.status == "accepted"
            accepted.append(result.seq)
            for _ in range(rng.choice([0, 0, 0, 1, 2])):
                assert append(client, shop, event)[0] == ("duplicate", result.seq)
            if rng.random() < 0.3:
                worker.step()
                positions.append(worker.status.watermark)
            if rng.random() < 0.1:
                worker.flush()
            if rng.random() < 0.1:  # dies; a new one begins, sometimes at an older watermark than the rows
                worker.close()
                oldest_kept = client.xrange(events_key(shop.project), count=1)[0][0].decode()
                older = [p for p in positions if p >= seq_of(*map(int, oldest_kept.split("-"))) - 1]
                if older:
                    client.set(watermark_key(shop.project), rng.choice(older))
                worker = started(shop, client, batch_events=rng.randint(1, 7))
        drain(worker)
        worker.flush()
        worker.close()
        assert [seq for seq in logged_seqs(shop) if seq >= accepted[0]] == accepted
        assert_online_equals_offline(shop, client, last_us + DAY_US)


def test_an_event_changes_the_features_within_a_second_and_the_log_follows(settings, client):
    stop, ready = threading.Event(), threading.Event()
    worker = IngestWorker(settings, client)
    failures: list[BaseException] = []

    def work():
        try:
            worker.run(stop, lambda _: ready.set())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(60)
    with connect(settings) as own:
        reader = OnlineReader(own, settings.project)
        for k in range(5):
            (result,) = append(own, settings, a_view(f"e{k}"))
            deadline = time.monotonic() + 1.0
            while reader.watermark() < result.seq:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            rows = reader.user("ann", now_us()).stats
            assert rows.column("user_views").tolist() == [k + 1]
    stop.set()
    thread.join(10)
    assert not failures
    assert len(logged_seqs(settings)) == 5
    status = read_status(client, settings.project)
    assert status.events == 5
    assert status.watermark == status.log_watermark == result.seq


def test_the_stream_is_trimmed_behind_the_log_only(settings, client):
    append(client, settings, *(a_view(f"e{k}") for k in range(500)))
    worker = started(settings, client)
    drain(worker)
    assert client.xlen(events_key(settings.project)) == 500
    worker.flush()
    worker.close()
    assert client.xlen(events_key(settings.project)) < 200  # Redis trims whole nodes of a hundred


async def test_async_append_agrees_with_sync(settings, client):
    async with connect_async(settings) as own:
        events = [a_view("a"), a_view("b"), a_view("a")]
        results = await append_events_async(own, settings.project, events, now_us() // 1000)
    assert [r.status for r in results] == ["accepted", "accepted", "duplicate"]
    assert results[2].seq == results[0].seq < results[1].seq
    await asyncio.to_thread(lambda: append(client, settings, a_view("b"))[0].status == "duplicate")


def test_events_that_cannot_be_are_refused_as_a_whole(settings, client):
    bad = [
        a_view("x", surprise=1),
        a_view("x", price="much"),
        a_view("x", quantity=2**64),
        a_view("x", event_type="stare"),
        a_view("x", at_us=-5),
        a_view("x") | {"user_id": None},
        a_view("x\ud800"),
    ]
    for event in bad:
        with pytest.raises(BadInputError):
            append(client, settings, a_view("good"), event)
    assert client.xlen(events_key(settings.project)) == 0


def test_events_older_than_the_memory_of_ids_are_left_to_backfill(settings, client):
    old = a_view("old") | {"event_timestamp": now_us() - 7 * DAY_US - 1_000_000}
    results = append(client, settings, old, a_view("new"))
    assert [r.status for r in results] == ["too_old", "accepted"]
    assert client.xlen(events_key(settings.project)) == 1


def test_no_acknowledgement_without_redis(settings):
    with (
        connect(replace(settings, redis_port=9, redis_timeout_ms=200)) as away,
        pytest.raises(UnavailableError, match="did not confirm"),
    ):
        append(away, settings, a_view("x"))


def test_no_acknowledgement_when_redis_is_full(settings, client):
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(UnavailableError, match="OOM"):
            append(client, settings, a_view("x"))
    finally:
        client.config_set("maxmemory", 0)
    assert append(client, settings, a_view("x"))[0].status == "accepted"


def test_seq_ascends_when_the_clock_stands_still(settings, client):
    """A million events in one millisecond do not fit a seq; the stream goes on a millisecond later."""
    ms = now_us() // 1000 + 100_000
    client.xadd(events_key(settings.project), {"e": b"?"}, id=f"{ms}-{(1 << SEQ_COUNTER_BITS) - 2}")
    results = append(client, settings, *(a_view(f"e{k}") for k in range(3)))
    assert [stream_id_of(r.seq) for r in results] == [
        f"{ms}-{(1 << SEQ_COUNTER_BITS) - 1}",
        f"{ms + 1}-0",
        f"{ms + 1}-1",
    ]
    assert client.xlen(events_key(settings.project)) == 4


def test_a_second_writer_is_fenced_and_writes_nothing(settings, client, tmp_path):
    other = replace(settings, home=tmp_path / "another machine")
    first, second = started(settings, client), started(other, client)
    append(client, settings, *(a_view(f"e{k}") for k in range(3)))
    assert first.step() == 3
    before = client.get(row_key(settings.project, USER_STATS.name, "ann"))
    with pytest.raises(ConflictError, match="another writer moved the watermark"):
        second.step()
    assert client.get(row_key(settings.project, USER_STATS.name, "ann")) == before
    append(client, settings, a_view("e3"))
    assert first.step() == 1
    first.flush()
    assert logged_seqs(other) == [] if live_files(other) else True
    first.close()
    second.close()


def test_one_machine_runs_one_worker(settings, client):
    first = started(settings, client)
    with pytest.raises(ConflictError, match="another ingest worker"):
        started(settings, client)
    first.close()
    started(settings, client).close()


def test_a_stream_of_nothing_but_junk_stops_nobody(settings, client):
    client.xadd(events_key(settings.project), {"e": b"junk"})
    worker = started(settings, client)
    drain(worker)
    worker.flush()
    worker.close()
    assert (worker.status.events, worker.status.malformed) == (0, 1)
    assert worker.status.log_watermark == worker.status.watermark > 0
    assert len(list(settings.quarantine_dir.glob("*.parquet"))) == 1


def test_what_is_no_event_is_set_aside_and_stops_nobody(settings, client):
    append(client, settings, a_view("a"))
    junk = seq_of(*map(int, client.xadd(events_key(settings.project), {"e": b"\xc1junk"}).decode().split("-")))
    client.xadd(events_key(settings.project), {"other": b""})
    append(client, settings, a_view("b"))
    worker = started(settings, client)
    drain(worker)
    worker.flush()
    worker.close()
    assert (worker.status.events, worker.status.malformed) == (2, 2)
    (file,) = settings.quarantine_dir.glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert [row["reason"] for row in rows] == ["undecodable_payload"] * 2
    assert rows[0]["row"] == junk
    assert "c16a756e6b" in rows[0]["raw"]
    assert len(logged_seqs(settings)) == 2


def test_the_log_waits_for_its_disk_and_repeats_nothing(settings, client):
    """The second day's directory cannot be made at first: the first day's file is there, and is not written again."""
    yesterday, today = now_us() - DAY_US, now_us()
    results = append(client, settings, a_view("a", at_us=yesterday), a_view("b", at_us=today))
    worker = started(settings, client)
    drain(worker)
    days = [f"day={time.strftime('%Y-%m-%d', time.gmtime(us / 1e6))}" for us in (yesterday, today)]
    blocker = settings.events_dir / days[1]
    blocker.write_text("in the way")
    with pytest.raises(OSError, match="exists"):
        worker.flush()
    assert log_watermark(settings.events_dir) == results[0].seq
    assert client.xlen(events_key(settings.project)) == 2
    blocker.unlink()
    worker.close()
    worker = started(settings, client)  # completes the log
    worker.close()
    assert logged_seqs(settings) == [r.seq for r in results]
    assert [path.parent.name for path in live_files(settings)] == days


def test_a_batch_appended_to_the_log_again_is_written_once(settings, client):
    append(client, settings, *(a_view(f"e{k}") for k in range(4)))
    entries = StreamReader(client, settings.project).after(0, 10)
    log = LiveLog(settings)
    log.append(decode_entries(entries[:2]))
    log.append(decode_entries(entries))
    log.append(decode_entries(entries))
    log.close()
    assert len(live_files(settings)) == 2
    assert len(logged_seqs(settings)) == 4


def test_files_of_the_log_that_overlap_are_dropped_or_refused(settings, client):
    append(client, settings, *(a_view(f"e{k}") for k in range(3)))
    worker = started(settings, client)
    drain(worker)
    worker.flush()
    worker.close()
    (file,) = live_files(settings)
    _, first, last = file.stem.split("-")
    contained = file.with_name(f"live-{first}-{int(last) - 1}.parquet")
    contained.write_bytes(file.read_bytes())
    (file.parent / ".live-1-2.tmp").write_text("half a file")
    started(settings, client).close()
    assert live_files(settings) == [file]
    assert not list(file.parent.glob(".live*"))
    file.with_name(f"live-{last}-{int(last) + 5}.parquet").write_bytes(file.read_bytes())
    with pytest.raises(ConflictError, match="two writers"):
        started(settings, client)


def test_rows_of_another_layout_stop_the_worker_before_it_writes(settings, client):
    key = row_key(settings.project, USER_STATS.name, "ann")
    client.set(key, b"of another version")
    append(client, settings, a_view("a"))
    worker = started(settings, client)
    with pytest.raises(ConflictError, match="has not the layout"):
        worker.step()
    worker.close()
    assert client.get(key) == b"of another version"
    assert client.get(watermark_key(settings.project)) is None


def test_the_command_runs_until_sigterm_and_completes_the_log(settings, client):
    command = [
        sys.executable,
        "-m",
        "larder.cli",
        "-p",
        settings.project,
        "--home",
        str(settings.home),
        "ingest",
        "run",
    ]
    environment = {"LARDER_REDIS_PORT": str(settings.redis_port), "PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout.readline().startswith(f"ingest ready: project {settings.project}")
            (result,) = append(client, settings, a_view("a"))
            deadline = time.monotonic() + 5
            while OnlineReader(client, settings.project).watermark() < result.seq:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert "ingest stopped: 1 events" in process.stdout.read()
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert logged_seqs(settings) == [result.seq]


def test_redis_errors_are_waited_out(settings, client):
    """A write that fails leaves no trace, one whose answer is lost is not repeated."""
    worker = started(settings, client)
    append(client, settings, a_view("a"))
    client.config_set("maxmemory", 1)
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    time.sleep(0.3)
    assert worker.status.redis_errors > 0
    client.config_set("maxmemory", 0)
    deadline = time.monotonic() + 5
    while worker.status.events < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop.set()
    thread.join(10)
    rows = OnlineReader(client, settings.project).user("ann", now_us()).stats
    assert rows.column("user_views").tolist() == [1]
