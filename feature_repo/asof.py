"""Reads features as they were at one instant, from the offline store: evaluation runs the production code over it."""
# ruff: noqa: S608 - the SQL is made of names of ours and of numbers

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import BadInputError
from feature_repo.fold import I8, State
from feature_repo.offline_layout import (
    CATALOG_SCHEMA,
    RECENT_SCHEMA,
    VALID_FROM,
    read_manifest,
    state_of,
)
from feature_repo.rows import I64, NO_RECENT_EVENTS, RecentEvents, Rows, UserRows, null_rows, within_max_age
from feature_repo.settings import Settings
from feature_repo.views import (
    CATALOG_VIEW,
    ITEM_STATS,
    NULL_INT,
    RECENT_EVENTS,
    RECENT_VIEW,
    USER_CATEGORY,
    USER_ITEM,
    USER_STATS,
    View,
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(time: datetime | int) -> int:
    """Return an instant as µs since the epoch.

    Raises
    ------
    BadInputError
        For a time without zone.
    """
    if isinstance(time, int):
        return time
    if time.utcoffset() is None:
        raise BadInputError(f"as_of must have a time zone, got {time.isoformat()}")
    return (time - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class _Table:
    """The latest row of every entity of a view, sorted by entity."""

    view: View
    state: State
    columns: dict[str, pa.Array]  # the entity columns

    def take(self, rows: I64, now_us: int) -> Rows:
        """Return some rows; -1 and rows beyond their maximal age come back as missing."""
        if not len(self.state.ints):
            return null_rows(self.view, len(rows))
        ints, floats = self.state.ints[rows], self.state.floats[rows]
        present = (rows >= 0) & within_max_age(self.view.max_age_us, ints[:, 0], now_us)
        if not present.all():
            ints[~present], floats[~present] = NULL_INT, np.nan
        return Rows(self.view, ints, floats, present)


class AsOfReader:
    """A `rows.FeatureReader` over the offline store as of one instant; everything is in memory after loading.

    Parameters
    ----------
    source
        Settings, or the directory of an offline store.
    as_of
        Aware time or µs. Events at or after it are not seen (events before it are).

    Raises
    ------
    NotFoundError
        If nothing was backfilled yet.
    BadInputError
        For a time without zone.
    """

    def __init__(self, source: Settings | Path, as_of: datetime | int) -> None:
        self.as_of_us = microseconds(as_of)
        directory = source.offline_dir if isinstance(source, Settings) else source
        with duckdb.connect() as connection:
            loader = _Loader(connection, directory, self.as_of_us)
            self._users, self._items = loader.view(USER_STATS), loader.view(ITEM_STATS)
            self._pairs, self._affinities = loader.view(USER_ITEM), loader.view(USER_CATEGORY)
            self._recent, self._catalog = loader.recent(), loader.catalog()
        self._user_rows = _positions(self._users.columns["user_id"])
        self._pair_ranges = _ranges(self._pairs.columns["user_id"])
        self._affinity_ranges = _ranges(self._affinities.columns["user_id"])
        # Items of pairs as numbers, sorted within each user: a request of 300 pairs is one binary search.
        self._pair_item_codes, self._pair_items = _codes(self._pairs.columns["item_id"])
        self._recent_ranges = _ranges(self._recent["user_id"])

    def users(self) -> list[str]:
        """Return all users with a row, sorted."""
        return list(self._user_rows)

    def item_rows(self) -> tuple[list[str], Rows]:
        """Return all items with a row, sorted, and their rows of `ITEM_STATS`."""
        ids: list[str] = self._items.columns["item_id"].to_pylist()
        return ids, self._items.take(np.arange(len(ids)), self.as_of_us)

    def catalog(self) -> pa.Table:
        """Return the catalogue as it was known (`offline_layout.CATALOG_SCHEMA`), sorted by item."""
        return self._catalog

    def user(self, user_id: str, now_us: int) -> UserRows:
        """Read the user's row, affinities and recent events."""
        first, last = self._affinity_ranges.get(user_id, (0, 0))
        affinities = self._affinities.take(np.arange(first, last), now_us)
        return UserRows(
            user_id,
            self._users.take(np.array([self._user_rows.get(user_id, -1)]), now_us),
            self._affinities.columns["category"][first:last].to_pylist(),
            affinities,
            self._recent_events(user_id),
        )

    def pairs(self, user_id: str, item_ids: list[str], now_us: int) -> Rows:
        """Read the rows of USER_ITEM for one user and some items."""
        first, last = self._pair_ranges.get(user_id, (0, 0))
        wanted = np.array([self._pair_item_codes.get(item_id, -1) for item_id in item_ids], np.int64)
        if first == last:
            return null_rows(USER_ITEM, len(item_ids))
        items = self._pair_items[first:last]
        at = np.minimum(np.searchsorted(items, wanted), len(items) - 1)
        return self._pairs.take(np.where(items[at] == wanted, first + at, -1), now_us)

    def _recent_events(self, user_id: str) -> RecentEvents:
        if user_id not in self._recent_ranges:
            return NO_RECENT_EVENTS
        first, last = self._recent_ranges[user_id]
        rows = {name: column[first:last] for name, column in self._recent.items()}
        types: I8 = rows["event_type"].to_numpy(zero_copy_only=False)
        return RecentEvents(rows["item_id"].to_pylist(), types, rows["time"].to_numpy(), rows["seq"][-1].as_py())


class _Loader:
    """Reads the latest row per entity with DuckDB."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, directory: Path, as_of_us: int) -> None:
        self._connection, self._directory, self._manifest = connection, directory, read_manifest(directory)
        connection.execute("SET TimeZone = 'UTC'")
        # Parquet keeps min and max of valid_from: parts after the instant are not read at all.
        self._known = f"{VALID_FROM} <= make_timestamptz({as_of_us})"

    def view(self, view: View) -> _Table:
        """Load one view of the fold; as a row's `valid_from` never falls, its last `seq` is its latest state."""
        keys, seq = ", ".join(view.entities), view.seq_column
        table = self._read(
            view.name,
            f"SELECT * EXCLUDE {VALID_FROM} FROM rows SEMI JOIN (SELECT max({seq}) AS {seq} FROM rows GROUP BY {keys}) "
            f"USING ({seq}) ORDER BY {keys}",
        )
        if table is None:
            empty = {name: pa.array([], pa.string()) for name in view.entities}
            rows = null_rows(view, 0)
            return _Table(view, State(rows.ints, rows.floats), empty)
        return _Table(view, state_of(view, table), {name: table[name].combine_chunks() for name in view.entities})

    def recent(self) -> dict[str, pa.Array]:
        """Load the last events of all users, sorted by user and `seq`."""
        table = self._read(
            RECENT_VIEW,
            "SELECT * FROM rows QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY seq DESC) "
            f"<= {RECENT_EVENTS} ORDER BY user_id, seq",
        )
        table = RECENT_SCHEMA.empty_table() if table is None else table
        return {name: table[name].combine_chunks() for name in ("user_id", "item_id", "event_type", "time", "seq")}

    def catalog(self) -> pa.Table:
        """Load the last row of every item known at the instant."""
        table = self._read(
            CATALOG_VIEW,
            f"SELECT * FROM rows QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY {VALID_FROM} DESC) = 1 "
            "ORDER BY item_id",
        )
        return CATALOG_SCHEMA.empty_table() if table is None else table.cast(CATALOG_SCHEMA)

    def _read(self, view: str, query: str) -> pa.Table | None:
        files = [str(path) for path in self._manifest.files(self._directory, view)]
        if not files:
            return None
        source = f"WITH rows AS (SELECT * FROM read_parquet(?) WHERE {self._known}) {query}"
        return self._connection.sql(source, params=[files]).to_arrow_table()


def _positions(ids: pa.Array) -> dict[str, int]:
    return {text: row for row, text in enumerate(ids.to_pylist())}


def _ranges(ids: pa.Array) -> dict[str, tuple[int, int]]:
    """Return the (first, behind last) row of each id in a sorted column."""
    runs: Any = pc.run_end_encode(ids)
    ends = runs.run_ends.to_pylist()
    return dict(zip(runs.values.to_pylist(), zip([0, *ends][: len(ends)], ends, strict=True), strict=True))


def _codes(ids: pa.Array) -> tuple[dict[str, int], I64]:
    """Return the rank of every id among the different ids, by id and by row."""
    encoded = ids.dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    order = {text: code for code, text in enumerate(sorted(texts, key=lambda text: text.encode()))}
    by_appearance = np.array([order[text] for text in texts], np.int64)
    return order, by_appearance[encoded.indices.to_numpy(zero_copy_only=False)]
