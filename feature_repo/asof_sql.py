"""The point-in-time join as DuckDB SQL over the parts of the offline store. PURE."""
# ruff: noqa: S608 - the SQL is made of quoted names and of numbers

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from feature_repo.offline_layout import VALID_FROM
from feature_repo.views import RECENT_EVENTS, RECENT_FIELDS

#: Columns of the events as the three parallel lists of `user_recent_items`.
RECENT_COLUMNS: Final = dict(zip(RECENT_FIELDS, ("item_id", "event_type", "time"), strict=True))
ROW: Final = "__row"
TIME: Final = "__time"


@dataclass(frozen=True)
class Source:
    """Rows of one feature view.

    Attributes
    ----------
    files
        Parquet files.
    entities
        Key columns.
    timestamp
        Column with the time from which a row counts (inclusive).
    tie_breaker
        Where two rows of one entity have one time, the one with the highest value here counts; None: there are none.
    max_age_us
        Rows whose feature time (1 µs before `timestamp`) is older than this count as missing.
    """

    files: Sequence[Path]
    entities: Sequence[str]
    timestamp: str = VALID_FROM
    tie_breaker: str | None = None
    max_age_us: int | None = None


def quoted(name: str) -> str:
    """Quote a name."""
    return '"' + name.replace('"', '""') + '"'


def _literal(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def rows_sql(source: Source, columns: Sequence[str]) -> str:
    """Return a query of all rows with their entities, timestamp and some columns, one per entity and time."""
    names = dict.fromkeys([*source.entities, source.timestamp, *columns])
    files = ", ".join(_literal(path) for path in source.files)
    query = f"SELECT {', '.join(map(quoted, names))} FROM read_parquet([{files}], hive_partitioning = false)"
    if source.tie_breaker is not None:
        keys = ", ".join(map(quoted, [*source.entities, source.timestamp]))
        query += f" QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {quoted(source.tie_breaker)} DESC) = 1"
    return query


def join_sql(source: Source, columns: dict[str, str], spine: str) -> str:
    """Return a query of each spine row's number and its features: the last row at or before the spine's time.

    Parameters
    ----------
    source
        The feature view.
    columns
        Columns to return, by the name to return them under.
    spine
        Table with `ROW`, `TIME` (timestamptz) and the entities.
    """
    keys = " AND ".join(f"spine.{quoted(name)} = feature.{quoted(name)}" for name in source.entities)
    known = f"feature.{quoted(source.timestamp)}"
    if source.max_age_us is None:
        value = "feature.{}"
    else:
        age = f"epoch_us(spine.{TIME}) - (epoch_us({known}) - 1)"
        value = f"CASE WHEN {age} <= {source.max_age_us} THEN feature.{{}} END"
    selected = ", ".join(f"{value.format(quoted(name))} AS {quoted(out)}" for out, name in columns.items())
    return (
        f"SELECT spine.{ROW}, {selected} FROM {spine} spine "
        f"ASOF LEFT JOIN ({rows_sql(source, list(columns.values()))}) feature ON {keys} AND spine.{TIME} >= {known}"
    )


def recent_sql(source: Source, columns: dict[str, str], spine: str) -> str:
    """Return a query of each spine row's number and its user's last events as parallel lists, oldest first.

    Parameters
    ----------
    source
        The log of events.
    columns
        Fields of `user_recent_items`, by the name to return them under.
    spine
        Table with `ROW`, `TIME` and user_id.
    """
    event = "struct_pack(known := valid_from, seq := seq, item_id := item_id, event_type := event_type, time := time)"
    rows = rows_sql(source, ["seq", *RECENT_COLUMNS.values()])
    users = f"SELECT user_id, list({event} ORDER BY seq) AS events FROM ({rows}) GROUP BY user_id"
    known = f"list_filter(feature.events, lambda e: e.known <= spine.{TIME})[-{RECENT_EVENTS}:]"
    selected = ", ".join(f"{_list_of(name)} AS {quoted(out)}" for out, name in columns.items())
    return (
        f"SELECT {ROW}, {selected} FROM (SELECT spine.{ROW}, {known} AS events FROM {spine} spine "
        f"LEFT JOIN ({users}) feature ON spine.user_id = feature.user_id)"
    )


def latest_recent_sql(source: Source, columns: Sequence[str], between: tuple[int, int]) -> str:
    """Return a query of the last events, as parallel lists, of the users whose last event lies in an interval (µs)."""
    first, last = between
    event = "struct_pack(item_id := item_id, event_type := event_type, time := time)"
    rows = rows_sql(source, ["seq", *RECENT_COLUMNS.values()])
    selected = ", ".join(f"{_list_of(name)} AS {quoted(name)}" for name in columns)
    return (
        f"SELECT user_id, valid_from, {selected} FROM ("
        f"SELECT user_id, max(valid_from) AS valid_from, list({event} ORDER BY seq)[-{RECENT_EVENTS}:] AS events "
        f"FROM ({rows}) WHERE valid_from <= make_timestamptz({last}) GROUP BY user_id) "
        f"WHERE valid_from >= make_timestamptz({first})"
    )


def _list_of(name: str) -> str:
    column = RECENT_COLUMNS[name]
    value = f"list_transform(events, lambda e: e.{column}{'::BIGINT' if column == 'event_type' else ''})"
    return f"CASE WHEN len(events) > 0 THEN {value} END"


def latest_sql(source: Source, columns: Sequence[str], between: tuple[int, int], *, latest: bool) -> str:
    """Return a query of the rows with a time in a closed interval (µs), only the last of each entity if `latest`."""
    first, last = between
    known = quoted(source.timestamp)
    query = (
        f"SELECT * FROM ({rows_sql(source, columns)}) "
        f"WHERE {known} BETWEEN make_timestamptz({first}) AND make_timestamptz({last})"
    )
    if latest:
        keys = ", ".join(map(quoted, source.entities))
        query += f" QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {known} DESC) = 1"
    return query
