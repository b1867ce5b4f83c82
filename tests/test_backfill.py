"""Backfill: what the offline store holds, going on from the last run, crashes, and histories that are replaced."""

import fcntl
import hashlib
import multiprocessing
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo import backfill as backfill_module
from feature_repo import offline_layout
from feature_repo.asof_sql import Source, rows_sql
from feature_repo.backfill import backfill
from feature_repo.datasets import make_dataset, write_dataset
from feature_repo.errors import ConflictError, NotFoundError
from feature_repo.events import EVENT_SCHEMA, QUARANTINE_SCHEMA
from feature_repo.offline_layout import VALID_FROM, read_manifest, write_manifest
from feature_repo.settings import Settings
from feature_repo.views import CATALOG_VIEW, FOLD_VIEWS, RECENT_VIEW
from tests.event_tables import (
    HOUR,
    START,
    event,
    event_table,
    histories,
    item_table,
    ordered_histories,
    purchase,
    us,
    write_log,
)
from tests.fold_oracle import oracle


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, project="shop")


def rows(settings: Settings, view: str, keys: list[str]) -> list[dict[str, Any]]:
    """All rows of a view as readers see them, by entity and time."""
    manifest = read_manifest(settings.offline_dir)
    files = manifest.files(settings.offline_dir, view)
    if not files:
        return []
    seq = next((v.seq_column for v in FOLD_VIEWS if v.name == view and manifest.superseding(view)), None)
    names = [name for name in pq.read_schema(files[0]).names if name not in keys]
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        query = rows_sql(Source(files, keys, tie_breaker=seq), names)
        return connection.sql(f"{query} ORDER BY ALL").to_arrow_table().to_pylist()


def everything(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    views = {view.name: list(view.entities) for view in FOLD_VIEWS} | {RECENT_VIEW: ["user_id"]}
    return {name: rows(settings, name, keys) for name, keys in views.items()}


def contents(directory: Path) -> dict[str, str]:
    """Hash of every file."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@given(ordered_histories)
@hypothesis_settings(max_examples=25, deadline=None)
def test_rows_are_the_states_after_each_feature_time(history: list[dict[str, Any]]) -> None:
    """Every row of every view equals the slow fold of all events up to its time."""
    table = event_table(history)
    times = [max(us(e["event_timestamp"]), us(e["received_at"])) for e in history]
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), project="shop")
        write_log(settings, table)
        backfill(settings, chunk_events=7)
        for view in FOLD_VIEWS:
            expected = []
            for time in sorted(set(times)):
                state = oracle(table.filter(pa.array([t <= time for t in times])))[view.name]
                for entity, row in state.items():
                    if row[view.time_column] == time:
                        expected.append((entity, time, row))
            found = rows(settings, view.name, list(view.entities))
            actual = [
                (
                    tuple(r.pop(e) for e in view.entities),
                    us(r.pop(VALID_FROM)) - 1,
                    {name: r[name] for name in (c.name for c in view.columns)},
                )
                for r in found
            ]
            assert sorted(actual, key=lambda row: row[:2]) == sorted(expected, key=lambda row: row[:2])


@given(histories, st.data())
@hypothesis_settings(max_examples=25, deadline=None)
def test_going_on_equals_folding_at_once_bit_for_bit(history: list[dict[str, Any]], data: st.DataObject) -> None:
    table = event_table(history)
    cut = data.draw(st.integers(0, len(history)))
    with tempfile.TemporaryDirectory() as home:
        once, twice = (Settings(home=Path(home), project=name) for name in ("once", "twice"))
        write_log(once, table)
        backfill(once)
        if cut:
            write_log(twice, table.slice(0, cut), name="a")
            backfill(twice, chunk_events=data.draw(st.integers(1, 9)))
        if cut < len(history):
            write_log(twice, table.slice(cut), name="b")
            backfill(twice, chunk_events=data.draw(st.integers(1, 9)))
        assert everything(once) == everything(twice)
        ends = [read_manifest(s.offline_dir).end_state for s in (once, twice)]
        for view in FOLD_VIEWS:
            one, two = (
                (s.offline_dir / end[view.name].path).read_bytes() for s, end in zip((once, twice), ends, strict=True)
            )
            assert one == two


def test_recent_items_are_the_log_without_impressions(settings: Settings) -> None:
    write_log(
        settings, event_table([event("u", "i", "view", 0), event("u", "j", "impression", 1), purchase("u", "j", 2)])
    )
    backfill(settings)
    found = rows(settings, RECENT_VIEW, ["user_id"])
    assert [(r["seq"], r["item_id"], r["event_type"]) for r in found] == [(1, "i", 1), (3, "j", 3)]
    assert found[0]["time"] == us(START)
    assert us(found[0][VALID_FROM]) == us(START) + 1


def test_a_late_event_is_known_from_its_arrival(settings: Settings) -> None:
    write_log(settings, event_table([event("u", "i", "view", 0, late=5)]))
    backfill(settings)
    assert us(rows(settings, "user_stats", ["user_id"])[0][VALID_FROM]) == us(START) + 5 * HOUR + 1


def test_items_are_known_from_their_creation_or_the_start_of_history(settings: Settings) -> None:
    items = item_table({"i": "toys", "j": "books"})
    created = pa.array([START.replace(month=2), None], items.schema.field("created_at").type)
    items = items.set_column(items.schema.get_field_index("created_at"), items.schema.field("created_at"), created)
    write_log(settings, event_table([event("u", "i", "view", 3)]), items)
    backfill(settings)
    catalog = rows(settings, CATALOG_VIEW, ["item_id"])
    assert [(r["item_id"], us(r[VALID_FROM])) for r in catalog] == [
        ("i", us(START.replace(month=2))),
        ("j", us(START) + 3 * HOUR),
    ]
    assert [r["item_created_at"] for r in catalog] == [us(START.replace(month=2)), None]
    assert [r["item_available"] for r in catalog] == [1, 1]


def test_nothing_new_does_nothing(settings: Settings) -> None:
    write_log(settings, event_table([purchase("u", "i")]), item_table({"i": "toys"}))
    first = backfill(settings)
    assert (first.events, first.rebuilt) == (1, "there was none yet")
    before = {path: path.stat().st_mtime_ns for path in settings.offline_dir.rglob("*.*")}
    second = backfill(settings)
    assert (second.events, second.last_seq, second.rebuilt) == (0, 1, "")
    assert {path: path.stat().st_mtime_ns for path in settings.offline_dir.rglob("*.*")} == before


def test_a_changed_catalogue_is_written_without_new_events(settings: Settings) -> None:
    write_log(settings, event_table([purchase("u", "i")]), item_table({"i": "toys"}))
    backfill(settings)
    pq.write_table(item_table({"i": "games"}), settings.items_path)
    assert backfill(settings).events == 0
    assert [r["item_category"] for r in rows(settings, CATALOG_VIEW, ["item_id"])] == ["games"]


def test_an_event_logged_twice_counts_once(settings: Settings) -> None:
    table = event_table([purchase("u", "i", 0), purchase("u", "i", 1)])
    write_log(settings, table, name="a")
    write_log(settings, table, name="b")
    report = backfill(settings)
    assert report.events == 2
    assert report.rows[RECENT_VIEW] == 2


def test_lines_of_one_invoice_are_never_parted(settings: Settings) -> None:
    write_log(settings, event_table([purchase("u", f"i{n}", 0) for n in range(10)] + [purchase("u", "i0", 1)]))
    backfill(settings, chunk_events=3)
    assert [r["user_purchases"] for r in rows(settings, "user_stats", ["user_id"])] == [10, 11]
    assert not read_manifest(settings.offline_dir).superseding("user_stats")


def _die_in_the_middle(settings: Settings, after: int) -> None:
    """Run a backfill that is killed while it writes its nth file, at the latest when it commits."""
    written, write = 0, offline_layout.write_part

    def write_or_die(*arguments: Any, **options: Any) -> Any:
        nonlocal written
        written += 1
        if written > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*arguments, **options)

    offline_layout.write_part = write_or_die
    backfill_module.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    backfill(settings, chunk_events=2)


@pytest.mark.parametrize("after", [0, 7, 99])
def test_a_run_after_a_crash_writes_the_same_bytes(settings: Settings, after: int) -> None:
    first = event_table([purchase("u", "i", 0), event("v", "i", "view", 1)])
    more = event_table([event("u", f"i{n % 3}", "view", 2 + n, category="toys") for n in range(6)], first_seq=3)
    calm = replace(settings, project="calm")
    for project in (settings, calm):
        write_log(project, first, item_table({"i": "toys"}))
        backfill(project)
        write_log(project, more, name="b")
    committed = contents(settings.offline_dir)
    process = multiprocessing.get_context("spawn").Process(target=_die_in_the_middle, args=(settings, after))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = contents(settings.offline_dir)
    assert {name: left[name] for name in committed} == committed, "what was there still is"
    backfill(settings, chunk_events=2)
    backfill(calm, chunk_events=2)
    for project in (settings, calm):
        backfill(project)  # tidies up
    assert contents(settings.offline_dir) == contents(calm.offline_dir)


def test_a_changed_layout_rebuilds_everything(settings: Settings) -> None:
    write_log(settings, event_table([purchase("u", "i")]))
    backfill(settings)
    before, manifest = everything(settings), read_manifest(settings.offline_dir)
    write_manifest(settings.offline_dir, replace(manifest, layouts=manifest.layouts | {"item_stats": "old"}))
    report = backfill(settings)
    assert report.rebuilt == "the layout of item_stats changed"
    assert report.events == 1
    assert everything(settings) == before
    assert backfill(settings, full=True).rebuilt == "asked for"
    write_manifest(settings.offline_dir, replace(read_manifest(settings.offline_dir), format=offline_layout.FORMAT - 1))
    assert "format" in backfill(settings).rebuilt


def test_another_import_rebuilds_everything(settings: Settings) -> None:
    def shop(price: int) -> None:
        events = event_table([purchase("u", "i", 0, price=price), purchase("v", "i", 1, price=price)])
        empty = QUARANTINE_SCHEMA.empty_table()
        write_dataset(
            make_dataset("shop", events.select(EVENT_SCHEMA.names), item_table({"i": "toys"}), empty), settings
        )

    shop(100)
    backfill(settings)
    shop(300)
    assert backfill(settings).rebuilt == "the imported history changed"
    assert [r["user_spend"] for r in rows(settings, "user_stats", ["user_id"])] == [600, 600]


def test_progress_counts_up_to_the_total(settings: Settings) -> None:
    write_log(settings, event_table([event("u", "i", "view", n) for n in range(7)]))
    seen: list[tuple[int, int]] = []
    backfill(settings, chunk_events=3, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_without_events_there_is_one_clear_error(settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="project 'shop' has no events"):
        backfill(settings)
    assert not settings.root.exists()
    with pytest.raises(NotFoundError, match="larder features backfill"):
        read_manifest(settings.offline_dir)


def test_two_backfills_at_once_are_refused(settings: Settings) -> None:
    write_log(settings, event_table([purchase("u", "i")]))
    backfill(settings)
    with (settings.offline_dir / ".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="another backfill"):
            backfill(settings)
