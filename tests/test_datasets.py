"""Data sets: shifting, importing all or nothing, and reading the log back."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo import event_log
from feature_repo.datasets import (
    WEEK,
    Dataset,
    load_dataset,
    make_dataset,
    read_events,
    read_items,
    shift_to,
    write_dataset,
)
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.events import EVENT_SCHEMA, ITEM_SCHEMA, LOG_SCHEMA, QUARANTINE_SCHEMA, SEQ_COUNTER_BITS
from feature_repo.settings import Settings

START = datetime(2024, 2, 28, 23, 59, 59, tzinfo=UTC)


@pytest.fixture
def project(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, project="p")


def tiny(seconds: tuple[float, ...] = (0, 0, 0.0005, 2, 86_400), *, users: int = 2, name: str = "tiny") -> Dataset:
    rows = [
        {
            "event_id": f"e{9 - i}",
            "user_id": f"u{i % users}",
            "item_id": "i1",
            "event_type": "purchase",
            "event_timestamp": START + timedelta(seconds=s),
            "received_at": START + timedelta(seconds=s),
            "value": 100.0,
        }
        for i, s in enumerate(seconds)
    ]
    items = [{"item_id": "i1", "title": "Lamp", "created_at": START, "tags": ["a"], "available": True}]
    refused = [{"source": name, "row": 5, "reason": "no_customer", "detail": "", "raw": "{}"}]
    return make_dataset(
        name,
        pa.Table.from_pylist(rows, schema=EVENT_SCHEMA),
        pa.Table.from_pylist(items, schema=ITEM_SCHEMA),
        pa.Table.from_pylist(refused, schema=QUARANTINE_SCHEMA),
    )


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_shift_keeps_weekday_hour_and_differences_and_the_hash():
    dataset = tiny()
    end = datetime(2026, 11, 21, 6, tzinfo=UTC)
    moved = shift_to(dataset, end)
    assert end - WEEK < moved.last_time <= end
    delta = moved.last_time - dataset.last_time
    assert delta == moved.shift_weeks * WEEK
    for name in ("event_timestamp", "received_at"):
        before, after = dataset.events[name].to_pylist(), moved.events[name].to_pylist()
        assert [later - earlier for earlier, later in zip(before, after, strict=True)] == [delta] * 5
    assert moved.items["created_at"][0].as_py() - START == delta
    assert moved.data_hash() == dataset.data_hash()
    back = shift_to(moved, dataset.last_time)
    assert (back.shift_weeks, back.events, back.items) == (0, dataset.events, dataset.items)


def test_the_hash_sees_every_change():
    dataset = tiny()
    hashes = {dataset.data_hash(), tiny((0, 0, 0.0005, 3, 86_400)).data_hash()}
    for name, value in (("user_id", "u9"), ("session_id", "s"), ("rank", 1), ("value", None)):
        rows = dataset.events.to_pylist()
        rows[1][name] = value
        hashes.add(
            make_dataset("t", pa.Table.from_pylist(rows, EVENT_SCHEMA), dataset.items, dataset.quarantine).data_hash()
        )
    items = dataset.items.set_column(5, ITEM_SCHEMA.field("tags"), pa.array([["b"]]))
    hashes.add(make_dataset("t", dataset.events, items, dataset.quarantine).data_hash())
    assert len(hashes) == 7


def test_seq_follows_time_then_id_and_packs_the_millisecond(project):
    write_dataset(tiny(), project)
    log = read_events(project)
    assert log.schema.equals(LOG_SCHEMA)
    assert log["event_id"].to_pylist() == ["e8", "e9", "e7", "e6", "e5"]
    ms = round(START.timestamp() * 1000)
    seq = log["seq"].to_pylist()
    assert [s >> SEQ_COUNTER_BITS for s in seq] == [ms, ms, ms, ms + 2000, ms + 86_400_000]
    assert [s & ((1 << SEQ_COUNTER_BITS) - 1) for s in seq] == [0, 1, 2, 0, 0]


def test_the_log_is_partitioned_by_day_and_the_report_adds_up(project):
    report = write_dataset(tiny(), project)
    days = sorted(path.parent.name for path in project.events_dir.rglob("history.parquet"))
    assert days == ["day=2024-02-28", "day=2024-02-29"]
    assert report.rows_read == report.accepted + sum(report.quarantined.values()) == 6
    assert json.loads((project.root / "dataset.json").read_text("utf-8"))["quarantined"] == {"no_customer": 1}
    assert event_log.read_report(project) == report
    assert pq.read_table(project.quarantine_dir / "tiny.parquet").num_rows == 1
    assert read_items(project).equals(tiny().items)
    assert report.last_seq == pc.max(read_events(project)["seq"]).as_py()


def test_the_same_data_give_the_same_bytes_and_other_data_replace_them(project):
    write_dataset(tiny(), project)
    first = contents(project.root)
    write_dataset(tiny(), project)
    assert contents(project.root) == first
    write_dataset(tiny((0, 1)), project)
    assert read_events(project)["event_id"].to_pylist() == ["e9", "e8"]
    assert len(list(project.events_dir.rglob("history.parquet"))) == 2


def test_files_of_live_events_survive_an_import(project):
    write_dataset(tiny(), project)
    live = read_events(project).slice(4, 1)
    seq = pa.array([live["seq"][0].as_py() + 7])
    live = live.set_column(0, LOG_SCHEMA.field("seq"), seq).set_column(
        1, LOG_SCHEMA.field("event_id"), pa.array(["live"])
    )
    pq.write_table(live, project.events_dir / "day=2024-02-28" / "live-1.parquet")
    write_dataset(tiny((0, 1)), project)
    assert read_events(project)["event_id"].to_pylist() == ["e9", "e8", "live"]


def test_reading_a_part(project):
    write_dataset(tiny(), project)
    log = read_events(project)
    seq = log["seq"].to_pylist()
    assert read_events(project, since_seq=seq[1])["seq"].to_pylist() == seq[2:]
    until = START + timedelta(seconds=2)
    assert read_events(project, until=until, columns=["event_id"]).to_pydict() == {"event_id": ["e8", "e9", "e7"]}
    assert read_events(project, since_seq=seq[-1]).num_rows == 0
    with pytest.raises(BadInputError, match="'colour'"):
        read_events(project, columns=["colour"])
    with pytest.raises(BadInputError, match="time zone"):
        read_events(project, until=datetime(2024, 1, 1))  # noqa: DTZ001 - naive is the point


def test_until_leaves_out_what_was_not_yet_known(project):
    rows = tiny().events.to_pylist()
    rows[0]["received_at"] += timedelta(days=9)
    late = make_dataset("late", pa.Table.from_pylist(rows, EVENT_SCHEMA), tiny().items, tiny().quarantine)
    write_dataset(late, project)
    assert read_events(project, until=START + timedelta(days=2))["event_id"].to_pylist() == ["e9", "e7", "e6", "e5"]


@pytest.mark.parametrize("crash_at", range(9))
def test_a_crash_at_any_step_leaves_the_old_state_or_the_new(project, monkeypatch, crash_at):
    old, new = tiny(), tiny((0, 1, 7 * 86_400), name="tiny")
    write_dataset(new, project)
    after = contents(project.root)
    write_dataset(old, project)
    before = contents(project.root)
    steps = 0

    def crashing(original):
        def step(self, target):
            nonlocal steps
            if steps == crash_at:
                raise KeyboardInterrupt
            steps += 1
            return original(self, target)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crashing(Path.rename))
        patch.setattr(Path, "replace", crashing(Path.replace))
        try:
            write_dataset(new, project)
        except KeyboardInterrupt:
            assert steps == crash_at
    ids = read_events(project)["event_id"].to_pylist()  # a reader finishes what became valid
    assert ids == (["e8", "e9", "e7", "e6", "e5"] if crash_at == 0 else ["e9", "e8", "e7"])
    assert contents(project.root) == (before if crash_at == 0 else after)
    write_dataset(new, project)
    assert contents(project.root) == after


def test_nothing_imported_yet_is_said_and_no_directory_appears(project):
    for read in (read_events, read_items, event_log.read_report):
        with pytest.raises(NotFoundError, match="no data"):
            read(project)
    assert not project.root.exists()


def test_unknown_names_and_options_are_named(project):
    known = "complete_journey, movielens, online_retail, rees46, simulator"
    with pytest.raises(BadInputError, match=rf"'netflix'.*{known}"):
        load_dataset("netflix", project)
    with pytest.raises(BadInputError, match=r"'n_event'.*n_events"):
        load_dataset("simulator", project, n_event=5)
    for name in ("online_retail", "movielens", "rees46", "complete_journey"):
        with pytest.raises(BadInputError, match=f"{name} has no option 'n_events'"):
            load_dataset(name, project, n_events=5)


def test_one_user_is_no_data_set():
    with pytest.raises(BadInputError, match="at least two users"):
        tiny(users=1)


def test_the_simulator_by_name_uses_the_settings_seed(project):
    options = {"n_users": 40, "n_items": 60, "n_events": 500}
    dataset = load_dataset("simulator", project, **options)
    assert dataset.events.num_rows == 500
    assert dataset.data_hash() == load_dataset("simulator", project, seed=project.seed, **options).data_hash()
    assert dataset.data_hash() != load_dataset("simulator", project, seed=8, **options).data_hash()
