"""Loads a file of events or items into the stream: checked as by the API, counted only as Redis confirmed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import redis

from feature_repo.errors import UnavailableError
from feature_repo.event_rules import normalise_id, shown
from feature_repo.events import QUARANTINE_SCHEMA
from feature_repo.item_changes import ItemChange
from feature_repo.online_reader import OnlineReader
from feature_repo.redis_scripts import both_connected
from feature_repo.settings import Settings
from feature_repo.stream import SEEN_S, Append, AppendResult, run_appends
from larder.loading.files import Row, RowFile
from serving.cascade.items import ItemTable, build_item_table, catalog_entry
from serving.event_entry import RefusedEvent, is_bounded_id, prepare_event
from serving.item_entry import RefusedItem, prepare_change
from serving.stream_entry import CHUNK, NewItems

#: Scripts per round trip.
_SCRIPTS: Final = 5
_TIMEOUT_MS: Final = 10_000
#: How long a load waits for a Redis that is away, or a stream that is full, before it stops.
PATIENCE_S: Final = 30.0
_PAUSE_S: Final = 0.5
#: Columns of the event contract that are ours to say: when we learned of it is now.
_OURS: Final = "received_at"


@dataclass
class LoadReport:
    """What became of a file: `rows` = `accepted` + `duplicates` + the sum of `quarantined`."""

    rows: int = 0
    accepted: int = 0
    duplicates: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    quarantine_file: Path | None = None
    oldest: datetime | None = None
    """What happened before this is too old for the stream; None where nothing was."""


class _Aside:
    """The quarantine file of a load; memory does not grow with it."""

    def __init__(self, path: Path, source: str, report: LoadReport) -> None:
        self._path, self._source, self._report = path, source, report
        self._temporary = path.with_name(f".{path.name}")
        self._writer: pq.ParquetWriter | None = None
        path.unlink(missing_ok=True)

    def add(self, refused: Sequence[tuple[Row, str]]) -> None:
        if not refused:
            return
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._temporary, QUARANTINE_SCHEMA, compression="zstd")
        rows = []
        for row, problem in refused:
            reason, _, detail = problem.partition(": ")
            self._report.quarantined[reason] += 1
            raw = json.dumps(row.fields, default=str)
            rows.append({"source": self._source, "row": row.number, "reason": reason, "detail": detail, "raw": raw})
        self._writer.write_table(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._temporary.replace(self._path)
            self._report.quarantine_file = self._path


class _Load:
    """One load: takes prepared rows to Redis in their order, and keeps the counts."""

    def __init__(self, settings: Settings, client: redis.Redis, file: RowFile, rate: float, patience_s: float) -> None:
        self.settings, self.client, self.file = settings, client, file
        self.report = LoadReport()
        self.aside = _Aside(settings.quarantine_dir / f"load-{file.digest}.parquet", file.path.name, self.report)
        self._rate, self._patience_s, self._began = rate, patience_s, time.monotonic()

    def send(
        self, prepared: Sequence[tuple[Row, Any]], make: Callable[[list[Any]], Append], on_rows: Callable[[int], None]
    ) -> None:
        """Append rows; what is refused as too old is put aside."""
        rows = iter(prepared)
        while part := list(islice(rows, CHUNK * _SCRIPTS)):
            values = [value for _, value in part]
            appends = [make(values[at : at + CHUNK]) for at in range(0, len(values), CHUNK)]
            results = self._confirmed(appends)
            self.report.accepted += sum(result.status == "accepted" for result in results)
            self.report.duplicates += sum(result.status == "duplicate" for result in results)
            old = [row for (row, _), result in zip(part, results, strict=True) if result.status == "too_old"]
            if old:
                self.report.oldest = datetime.now(UTC) - timedelta(seconds=SEEN_S)
                self.aside.add([(row, "too_old: it happened more than 7 days ago: history") for row in old])
            on_rows(len(part))
            if self._rate > 0:
                done = self.report.accepted + self.report.duplicates
                time.sleep(max(done / self._rate - (time.monotonic() - self._began), 0.0))

    def _confirmed(self, appends: list[Append]) -> list[AppendResult]:
        """Append until Redis confirms all; repeating is safe, as every row has an id."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return run_appends(self.client, appends)
            except UnavailableError as error:
                if time.monotonic() >= deadline:
                    done = self.report.accepted + self.report.duplicates + self.report.quarantined.total()
                    raise UnavailableError(
                        f"stopped after {done:,} rows of {self.file.path.name} ({self.report.accepted:,} accepted, "
                        f"{self.report.duplicates:,} known before): {error}; when Redis is back run the same command "
                        "again: what is in counts as known, nothing counts twice"
                    ) from error
                time.sleep(_PAUSE_S)


def load_events(
    settings: Settings,
    path: Path,
    *,
    rate: float = 0.0,
    patience_s: float = PATIENCE_S,
    on_rows: Callable[[int], None] = lambda _: None,
) -> LoadReport:
    """Load a file of events (the fields of docs/events.md).

    A row without `event_id` gets one of the file's content and its place: the same file brings the same ids, so a load
    may be repeated. `received_at` is now, whatever the file says.

    Parameters
    ----------
    rate
        Events a second at most; 0: as fast as Redis takes them.
    patience_s
        How long to wait for a Redis that is away or a stream that is full.
    on_rows
        Called with how many rows were dealt with since the last call.

    Raises
    ------
    UnavailableError
        If Redis stayed away; what was confirmed until then is in the message.
    """
    file = RowFile.open(path)
    with both_connected(settings, timeout_ms=_TIMEOUT_MS) as (features, client):
        table, new_items = _table(features, settings), NewItems(settings.max_items)

        def prepare(row: Row, now_us: int) -> dict[str, Any]:
            event = _event(row.fields, table, now_us, f"load-{file.digest}-{row.number}")
            if not new_items.admit(table, event["item_id"]):
                raise RefusedEvent(f"too_many_items: the item is unknown, and {settings.max_items} items are known")
            return event

        def make(events: list[dict[str, Any]]) -> Append:
            now_ms = time.time_ns() // 1_000_000
            return Append.of_events(settings.project, events, now_ms, settings.stream_max_entries)

        return _run(_Load(settings, client, file, rate, patience_s), prepare, make, on_rows)


def load_items(
    settings: Settings,
    path: Path,
    *,
    rate: float = 0.0,
    patience_s: float = PATIENCE_S,
    on_rows: Callable[[int], None] = lambda _: None,
) -> LoadReport:
    """Load a file of catalogue entries; the parameters are those of `load_events`."""
    file = RowFile.open(path)
    with both_connected(settings, timeout_ms=_TIMEOUT_MS) as (features, client):
        table, new_items = _table(features, settings), NewItems(settings.max_items)

        def prepare(row: Row, now_us: int) -> ItemChange:
            change = prepare_change(row.fields, now_us, f"load-{file.digest}-{row.number}")
            if not new_items.admit(table, change.item_id):
                raise RefusedItem(f"too_many_items: the item is unknown, and {settings.max_items} items are known")
            return change

        def make(changes: list[ItemChange]) -> Append:
            return Append.of_changes(settings.project, changes, settings.stream_max_entries)

        return _run(_Load(settings, client, file, rate, patience_s), prepare, make, on_rows)


def _run(
    load: _Load,
    prepare: Callable[[Row, int], Any],
    make: Callable[[list[Any]], Append],
    on_rows: Callable[[int], None],
) -> LoadReport:
    try:
        for batch in load.file.batches():
            now_us = time.time_ns() // 1000
            prepared: list[tuple[Row, Any]] = []
            refused: list[tuple[Row, str]] = []
            for row in batch:
                if row.problem is not None:
                    refused.append((row, row.problem))
                    continue
                try:
                    prepared.append((row, prepare(row, now_us)))
                except (RefusedEvent, RefusedItem) as refusal:
                    refused.append((row, str(refusal)))
            load.aside.add(refused)
            on_rows(len(refused))
            load.send(prepared, make, on_rows)
            load.report.rows += len(batch)
    finally:
        load.aside.close()
    return load.report


def _event(fields: Mapping[str, Any], table: ItemTable, now_us: int, new_id: str) -> dict[str, Any]:
    """Check an event of a file: as the API does, but its time must be given, and its category may be."""
    sent = {name: value for name, value in fields.items() if name not in (_OURS, "category")}
    if sent.get("event_timestamp") is None:
        raise RefusedEvent("missing_field: event_timestamp")
    event = prepare_event(sent, table, now_us, new_id)
    category = fields.get("category")
    if category is not None:
        if not isinstance(category, str) or not is_bounded_id(category):
            raise RefusedEvent(f"bad_id: category {shown(category)}")
        event["category"] = normalise_id(category)
    return event


def _table(client: redis.Redis, settings: Settings) -> ItemTable:
    """Load the items once, to enrich events and to know how many there are."""
    reader = OnlineReader(client, settings.project)
    item_ids = reader.changed_items(0)
    stats, entries = reader.read_items(item_ids)
    catalog = [catalog_entry(item_id, entry) for item_id, entry in zip(item_ids, entries, strict=True)]
    return build_item_table(catalog, stats, time.time_ns() // 1000)


def lines_of(report: LoadReport, path: Path) -> Iterator[str]:
    """Say what became of a file."""
    yield f"  {report.rows:>9,} rows read"
    yield f"  {report.accepted:>9,} accepted: they are in the stream"
    yield f"  {report.duplicates:>9,} known before"
    yield f"  {report.quarantined.total():>9,} in quarantine"
    for reason, count in report.quarantined.most_common():
        yield f"  {count:>11,} {reason}"
    if report.quarantine_file is not None:
        yield f"  quarantine: {report.quarantine_file}"
    if report.oldest is not None:
        before = report.oldest.replace(microsecond=0).isoformat().replace("+00:00", "Z")
        yield "  What is too old for the stream belongs to the history, which an import replaces as a whole:"
        yield f"    larder data import --file {path} --before {before}"
        yield "    larder features backfill --full && larder features materialize"
