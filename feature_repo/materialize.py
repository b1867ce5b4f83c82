"""Materialise: writes the end state of the offline store to Redis, so that ingest goes on where history ends.

Rows are written unless newer ones are there, so it can run beside ingest and be repeated. That holds only for rows
folded on the same history: where another history was imported (or a layout changed), the rows are removed first.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from redis.exceptions import RedisError

from feature_repo.errors import BadInputError, ConflictError, UnavailableError
from feature_repo.events import MAX_FUTURE_S, SEQ_COUNTER_BITS, stream_id_of
from feature_repo.ingest_log import LiveLog, log_watermark
from feature_repo.offline_layout import VALID_FROM, Manifest, read_manifest, state_of
from feature_repo.online_keys import (
    base_key,
    changed_key,
    checked_project,
    events_key,
    watermark_key,
)
from feature_repo.packed_row import pack_rows
from feature_repo.packed_tail import CatalogItem, pack_catalog, pack_recent_runs
from feature_repo.redis_scripts import both_connected, script_text
from feature_repo.row_index import delete_rows, refuse_earlier_rows
from feature_repo.row_scripts import ViewRows
from feature_repo.row_writer import write_rows
from feature_repo.settings import Settings
from feature_repo.stream_reader import continue_after
from feature_repo.views import CATALOG_FIELDS, CATALOG_VIEW, FOLD_VIEWS, RECENT_EVENTS, RECENT_VIEW, USER_STATS, View

#: Rows read, packed and written at a time.
_CHUNK_ROWS: Final = 20_000
#: Items per script that announces changes: Redis answers nobody else meanwhile.
_ANNOUNCED: Final = 500
_TIMEOUT_MS: Final = 30_000
_VIEWS: Final = (*(view.name for view in FOLD_VIEWS), RECENT_VIEW, CATALOG_VIEW)

_RECENT_SQL: Final = f"""
    SELECT user_id, item_id, event_type, time, seq FROM read_parquet(?)
    QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY seq DESC) <= {RECENT_EVENTS}
    ORDER BY user_id, seq
"""  # noqa: S608 - a constant of ours


_LATEST_ITEMS_SQL: Final = """
    SELECT * FROM read_parquet(?)
    QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY seq DESC, valid_from DESC) = 1 ORDER BY item_id
"""


@dataclass(frozen=True)
class MaterializeReport:
    """What a materialisation did.

    Attributes
    ----------
    rows
        Rows per view in the offline store.
    written
        Rows written; the others were there already, newer.
    rebuilt
        Why all rows were removed first; empty where they were not.
    watermark
        `seq` after which ingest goes on.
    """

    rows: dict[str, int]
    written: int
    seconds: float
    rebuilt: str
    watermark: int

    @property
    def rows_per_s(self) -> float:
        """Rows dealt with per second."""
        return sum(self.rows.values()) / self.seconds if self.seconds else 0.0


def materialize(settings: Settings, on_progress: Callable[[int, int], None] | None = None) -> MaterializeReport:
    """Bring the online rows up to the end of the offline store. Idempotent; may run beside ingest.

    Parameters
    ----------
    settings
        Reads `offline_dir`, writes to the project's Redis.
    on_progress
        Called with (rows done, rows in total or the best guess).

    Raises
    ------
    NotFoundError
        If nothing was backfilled yet.
    BadInputError
        If history ends in the future.
    ConflictError
        If the rows must be rebuilt while ingest runs, accepted events would be passed over, or an earlier version
        wrote rows without an index.
    UnavailableError
        If Redis fails; repeating is safe.
    """
    project, began = checked_project(settings.project), time.monotonic()
    manifest = read_manifest(settings.offline_dir)
    _check_past(manifest)
    base = hashlib.sha256(f"{manifest.history}|{sorted(manifest.layouts.items())}".encode()).hexdigest()[:16]
    try:
        with both_connected(settings, timeout_ms=_TIMEOUT_MS) as (client, events):
            refuse_earlier_rows(client, project)
            reason = _rebuild_reason(client, project, base)
            alone: AbstractContextManager[Any] = closing(LiveLog(settings)) if reason else nullcontext()
            with alone:
                _check_nothing_passed_over((client, events), settings, manifest, rebuild=bool(reason))
                if reason:
                    client.set(base_key(project), "rebuilding")
                    for view in _VIEWS:
                        delete_rows(client, project, view)
                    client.delete(changed_key(project))
                rows, written = _write_all(client, settings, manifest, on_progress)
                # The stream first: an event that comes in between is after the watermark, wherever that stands.
                continue_after(events, events_key(project), manifest.last_seq)
                advance = client.register_script(script_text("watermark_advance"))
                watermark = advance(keys=[watermark_key(project)], args=[manifest.last_seq, int(bool(reason))])
                client.set(base_key(project), base)
    except (RedisError, OSError) as error:
        raise UnavailableError(f"materialise failed, repeat it: {type(error).__name__}: {error}") from error
    return MaterializeReport(rows, written, time.monotonic() - began, reason, int(watermark))


def _rebuild_reason(client: redis.Redis, project: str, base: str) -> str:
    found: Any = client.get(base_key(project))
    if found is None:
        return "events were folded before there was a history" if client.exists(watermark_key(project)) else ""
    if found == b"rebuilding":
        return "an earlier materialisation was interrupted"
    return "" if found.decode() == base else "the imported history or a layout changed"


def _check_past(manifest: Manifest) -> None:
    ahead_s = (manifest.last_seq >> SEQ_COUNTER_BITS) / 1000 - time.time()
    if ahead_s > MAX_FUTURE_S:
        raise BadInputError(
            f"history ends {ahead_s / 3600:.1f} hours in the future: live events would come before it; "
            "import the data with an earlier end"
        )


def _check_nothing_passed_over(
    clients: tuple[redis.Redis, redis.Redis], settings: Settings, manifest: Manifest, *, rebuild: bool
) -> None:
    """Refuse where an accepted event is neither in the offline store nor folded by ingest afterwards."""
    logged, last = log_watermark(settings.events_dir), manifest.last_seq
    if rebuild and (logged > last or log_watermark(settings.item_changes_dir) > manifest.item_seq):
        raise ConflictError(
            "the event log reaches further than the offline store; run `larder features backfill`, then materialise"
        )
    features, events = clients
    folded: Any = features.get(watermark_key(settings.project))
    done = max(logged, 0 if rebuild else int(folded or 0))
    if done < last and events.xrange(
        events_key(settings.project), f"({stream_id_of(done)}", stream_id_of(last), count=1
    ):
        raise ConflictError(
            "accepted events that are older than the end of history wait in the stream; let `larder ingest run` log "
            "them and run `larder features backfill --full`, then materialise"
        )


def _write_all(
    client: redis.Redis, settings: Settings, manifest: Manifest, on_progress: Callable[[int, int], None] | None
) -> tuple[dict[str, int], int]:
    rows, written = dict.fromkeys(_VIEWS, 0), 0
    users, catalog = manifest.end_state.get(USER_STATS.name), manifest.parts.get(CATALOG_VIEW, [])
    # Every user has one row of recent events, too (few have none).
    total = sum(part.rows for part in [*manifest.end_state.values(), *([users] if users else []), *catalog])
    for batch in _all_rows(settings, manifest):
        written += write_rows(client, settings.project, batch)
        rows[batch.view] += len(batch.rows)
        if on_progress is not None:
            on_progress(sum(rows.values()), max(total, sum(rows.values())))
        if batch.view in (FOLD_VIEWS[1].name, CATALOG_VIEW):
            # Into the change feed, so that item tables read them again.
            announce = client.register_script(script_text("announce"))
            for start in range(0, len(batch.first), _ANNOUNCED):
                announce(keys=[changed_key(settings.project)], args=batch.first[start : start + _ANNOUNCED])
    return rows, written


def _all_rows(settings: Settings, manifest: Manifest) -> Iterator[ViewRows]:
    """Yield packed rows in the order the fold needs: users and items before their pairs."""
    directory = settings.offline_dir
    for view in FOLD_VIEWS:
        if part := manifest.end_state.get(view.name):
            for table in _chunks(directory / part.path):
                yield _state_rows(view, table)
    if files := manifest.files(directory, RECENT_VIEW):
        for table in _whole_users(files):
            yield _recent_rows(table)
    if files := manifest.files(directory, CATALOG_VIEW):
        for table in _latest_items(files):
            yield _catalog_rows(table)


def _chunks(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_CHUNK_ROWS):
            yield pa.Table.from_batches([batch])


def _state_rows(view: View, table: pa.Table) -> ViewRows:
    state = state_of(view, table)
    first, *second = (table[name].to_pylist() for name in view.entities)
    return ViewRows(view.name, first, pack_rows(view, state.ints, state.floats), *second)


def _whole_users(files: list[Path]) -> Iterator[pa.Table]:
    """Yield the last events of users, each user's whole in one table, ordered by (user, seq)."""
    with duckdb.connect() as connection:
        query: Any = connection.sql(_RECENT_SQL, params=[[str(path) for path in files]])
        rest: pa.Table | None = None
        for batch in query.to_arrow_reader(_CHUNK_ROWS * 10):
            table = pa.Table.from_batches([batch])
            if rest is not None:
                table = pa.concat_tables([rest, table])
            starts = _user_starts(table)
            yield table.slice(0, starts[-1])
            rest = table.slice(starts[-1])
        if rest is not None:
            yield rest


def _user_starts(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return where each user's events begin."""
    codes = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    starts: np.ndarray[tuple[int], np.dtype[np.int64]] = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    return starts


def _recent_rows(table: pa.Table) -> ViewRows:
    if not table.num_rows:
        return ViewRows(RECENT_VIEW, [], [])
    starts = _user_starts(table)
    rows = pack_recent_runs(
        table["item_id"].cast(pa.string()).combine_chunks(),
        table["event_type"].to_numpy().astype(np.int8).tobytes(),
        table["time"].to_numpy(),
        table["seq"].to_numpy(),
        starts,
    )
    return ViewRows(RECENT_VIEW, table["user_id"].take(pa.array(starts)).to_pylist(), rows)


def _latest_items(files: list[Path]) -> Iterator[pa.Table]:
    with duckdb.connect() as connection:
        query: Any = connection.sql(_LATEST_ITEMS_SQL, params=[[str(path) for path in files]])
        for batch in query.to_arrow_reader(_CHUNK_ROWS):
            yield pa.Table.from_batches([batch])


def _catalog_rows(table: pa.Table) -> ViewRows:
    columns = [table[name].to_pylist() for name in ("item_id", *CATALOG_FIELDS)]
    columns[-2:] = ([flag != 0 for flag in column] for column in columns[-2:])
    items = [CatalogItem(*row) for row in zip(*columns, strict=True)]
    seq = table["seq"].to_numpy()
    time = table[VALID_FROM].cast(pa.int64()).to_numpy() - (seq > 0)  # as ingest has it
    return ViewRows(CATALOG_VIEW, columns[0], pack_catalog(items, time, seq))
