"""Bulk loading: every row counted once, bad lines set aside, safe to repeat, and clear about a Redis that goes away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo.adapters.event_file import load as load_history
from feature_repo.errors import BadInputError, NotFoundError, UnavailableError
from feature_repo.events import EVENT_SCHEMA, ITEM_SCHEMA
from feature_repo.ingest import IngestWorker
from feature_repo.online_keys import events_key
from feature_repo.online_reader import OnlineReader
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from feature_repo.stream import decode_entries
from feature_repo.stream_reader import StreamReader
from larder.loading.files import RowFile
from larder.loading.load import load_events, load_items
from larder.services.ports import any_free_port
from larder.services.process import start
from larder.services.redis_server import redis_service
from tests.live_shop import logged_seqs


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with connect(settings, timeout_ms=5000) as client:
        yield client


def ago(**fields: float) -> datetime:
    return datetime.now(UTC) - timedelta(**fields)


def view(number: int, **fields: Any) -> dict[str, Any]:
    return (
        {"user_id": f"u{number % 7}", "item_id": f"i{number % 5}", "event_type": "view"}
        | {"event_timestamp": ago(hours=1).isoformat()}
        | fields
    )


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def stream(client: redis.Redis, settings: Settings) -> pa.Table:
    return decode_entries(StreamReader(client, settings.project).after(0, 100_000)).table


def test_every_row_is_counted_and_a_repeat_brings_nothing(
    settings: Settings, client: redis.Redis, tmp_path: Path
) -> None:
    rows = [view(n) for n in range(2_500)]
    bad = [
        "not json",
        "[1]",
        view(1, event_type="wink"),
        view(1, event_timestamp=None),
        view(1, event_timestamp=ago(days=8).isoformat()),
        view(1, event_timestamp=(ago() + timedelta(hours=1)).isoformat()),
        view(1, surprise=1),
    ]
    path = write_lines(tmp_path / "events.jsonl", [*rows[:1000], *bad, *rows[1000:], view(1, event_id="given")])
    calls: list[int] = []
    first = load_events(settings, path, on_rows=calls.append)
    assert (first.rows, first.accepted, first.duplicates) == (2_508, 2_501, 0)
    assert first.quarantined == {
        "bad_type": 2, "bad_event_type": 1, "missing_field": 1, "too_old": 1, "future_time": 1, "unknown_field": 1,
    }  # fmt: skip
    assert sum(calls) == first.rows == first.accepted + first.duplicates + first.quarantined.total()
    assert first.oldest is not None
    aside = pq.read_table(first.quarantine_file).to_pylist()
    assert sorted(row["row"] for row in aside) == list(range(1000, 1007))
    again = load_events(settings, path)
    assert (again.accepted, again.duplicates, again.quarantined) == (0, 2_501, first.quarantined)
    assert client.xlen(events_key(settings.project)) == 2_501
    copy = write_lines(tmp_path / "another name.jsonl", path.read_text("utf-8").splitlines())
    assert load_events(settings, copy).duplicates == 2_501, "ids come from the content, not from the name"


def test_what_was_loaded_is_folded_like_any_event(settings: Settings, client: redis.Redis, tmp_path: Path) -> None:
    entries = [{"item_id": "i1", "title": "Tea", "category": "tea", "price": 250}, {"item_id": "i2", "price": -1}]
    report = load_items(settings, write_lines(tmp_path / "items.jsonl", entries))
    assert (report.accepted, report.quarantined) == (1, {"negative": 1})
    worker = IngestWorker(settings, client)
    worker.start()
    while worker.step():
        pass
    rows = [view(1, event_type="purchase", quantity=2), view(1, category="as the file says", price=99)]
    assert load_events(settings, write_lines(tmp_path / "events.jsonl", rows)).accepted == 2
    while worker.step():
        pass
    worker.flush()
    worker.close()
    user = OnlineReader(client, settings.project).user("u1", time.time_ns() // 1000)
    assert user.stats.column("user_spend").tolist() == [500], "enriched from the catalogue that was loaded"
    assert user.categories == ["as the file says", "tea"]
    assert len(logged_seqs(settings)) == 2


@hypothesis_settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {"user_id": st.sampled_from(["ann", "çem"]), "item_id": st.just("i"), "event_type": st.just("purchase")},
            optional={"price": st.integers(0, 9), "quantity": st.integers(1, 3), "session_id": st.just("s"),
                      "context": st.just('{"a": [1, "x,y"]}')},
        ),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_every_format_brings_the_same_events(
    settings: Settings, client: redis.Redis, tmp_path: Path, rows: Any
) -> None:
    client.flushall()
    at = ago(hours=2).replace(microsecond=1234)
    table = pa.table(
        {
            name: pa.array([row.get(name) for row in rows], EVENT_SCHEMA.field(name).type)
            for name in ("user_id", "item_id", "event_type", "price", "quantity", "session_id", "context")
        }
    ).append_column("event_timestamp", pa.array([at] * len(rows), EVENT_SCHEMA.field("event_timestamp").type))
    pq.write_table(table, tmp_path / "events.parquet")
    pcsv.write_csv(
        table.set_column(7, "event_timestamp", pa.array([at.isoformat()] * len(rows))), tmp_path / "events.csv"
    )
    lines = [row | {"event_timestamp": at.isoformat()} for row in rows]
    lines = [line | ({"context": json.loads(line["context"])} if "context" in line else {}) for line in lines]
    write_lines(tmp_path / "events.jsonl", lines)
    found = []
    for name in ("events.parquet", "events.csv", "events.jsonl"):
        report = load_events(settings, tmp_path / name)
        assert (report.accepted, report.quarantined) == (len(rows), {})
        found.append(stream(client, settings).drop_columns(["seq", "event_id", "received_at"]).to_pylist())
        client.flushall()
    for events in found:
        for event in events:
            event["context"] = event["context"] and json.loads(event["context"])
    assert found[0] == found[1] == found[2]


def test_damaged_tables_are_set_aside_or_refused(settings: Settings, tmp_path: Path) -> None:
    csv = tmp_path / "events.csv"
    now = ago(minutes=1).isoformat()
    csv.write_bytes(
        b"user_id,item_id,event_type,price,event_timestamp\n"
        b"ann,i1,view,5," + now.encode() + b"\nann,i1,view\nann,i1,view,x," + now.encode() + b"\n"
        b"a\xff,i1,view,," + now.encode() + b"\nann,i1,view,,,,,\n"
    )
    report = load_events(settings, csv)
    assert (report.rows, report.accepted) == (5, 1)
    assert report.quarantined == {"bad_type": 2, "missing_field": 1, "bad_id": 1}
    (tmp_path / "events.parquet").write_text("no")
    with pytest.raises(BadInputError, match="no Parquet"):
        RowFile.open(tmp_path / "events.parquet")
    (tmp_path / "events.xls").write_text("no")
    with pytest.raises(BadInputError, match=r"one of .parquet"):
        RowFile.open(tmp_path / "events.xls")
    with pytest.raises(NotFoundError):
        RowFile.open(tmp_path / "nothing.csv")


def test_unknown_items_stop_at_the_bound(settings: Settings, client: redis.Redis, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "events.jsonl", [view(n, item_id=f"x{n}") for n in range(20)])
    report = load_events(replace(settings, max_items=5), path)
    assert (report.accepted, report.quarantined) == (5, {"too_many_items": 15})


def test_a_redis_that_goes_away_half_way_is_said_and_a_repeat_completes(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", project="shop", redis_port=any_free_port())
    running = start(redis_service(settings), settings.home).wait()
    path = write_lines(tmp_path / "events.jsonl", [view(n) for n in range(3_000)])
    done: list[int] = []
    stopped = threading.Event()

    def stop_half_way(rows: int) -> None:
        done.append(rows)
        if sum(done) >= 1_000 and not stopped.is_set():
            stopped.set()
            running.stop()

    with pytest.raises(UnavailableError, match=r"stopped after 1,000 rows .* run the same command again"):
        load_events(settings, path, patience_s=0.5, on_rows=stop_half_way)
    running = start(redis_service(settings), settings.home).wait()
    try:
        report = load_events(replace(settings, redis_port=running.port), path)
        assert (report.duplicates, report.accepted) == (1_000, 2_000), "what was reported was in, what was not comes in"
    finally:
        running.stop()


def test_the_rate_is_kept(settings: Settings, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "events.jsonl", [view(n) for n in range(2_000)])
    began = time.monotonic()
    load_events(settings, path, rate=2_000)
    assert time.monotonic() - began >= 0.95


def test_a_file_is_a_history_too(tmp_path: Path) -> None:
    old, new = ago(days=30), ago(days=1)
    rows = [view(n, event_timestamp=old.isoformat()) for n in range(4)] + [view(5, event_timestamp=new.isoformat())]
    dataset = load_history(write_lines(tmp_path / "h.jsonl", rows), ITEM_SCHEMA.empty_table(), before=ago(days=7))
    assert dataset.events.num_rows == 4
    digest = RowFile.open(tmp_path / "h.jsonl").digest
    assert set(dataset.events["event_id"].to_pylist()) == {f"load-{digest}-{n}" for n in range(4)}
    with pytest.raises(BadInputError, match="cannot be read"):
        load_history(write_lines(tmp_path / "x.jsonl", ["{"]), ITEM_SCHEMA.empty_table())
