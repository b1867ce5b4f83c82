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


_EVENT: Final = "__event_us"
_KNOWN: Final = "__known_us"


@dataclass(frozen=True)
class Source:
    """Rows of one feature view.

    Attributes
    ----------
    files
        Parquet files, in the order in which they were written.
    entities
        Key columns.
    timestamp
        Column with the time of a row.
    created
        Column with the time a row arrived, for rows that may come late; None: with its time.
    folded
        Whether the rows are ours: `timestamp` is then the time from which a row counts, inclusive, 1 µs after its
        feature time, and two rows of an entity with one time have a different `tie_breaker`.
    tie_breaker
        Where two rows of one entity have one time, the one with the highest value here counts; None: there are none
        (if folded), or the one written last counts.
    max_age_us
        Rows whose feature time (of a user's own rows: `timestamp`) is older than this count as missing.
    """

    files: Sequence[Path]
    entities: Sequence[str]
    timestamp: str = VALID_FROM
    created: str | None = None
    folded: bool = True
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
    query = f"SELECT {', '.join(map(quoted, names))} FROM {_files(source)}"
    order = [quoted(source.tie_breaker)] if source.tie_breaker is not None else []
    if not source.folded:
        query += f" WHERE {quoted(source.timestamp)} IS NOT NULL"
        order = [_arrival(source), *_POSITION]
    if order:
        keys = ", ".join(map(quoted, [*source.entities, source.timestamp]))
        last = ", ".join(f"{column} DESC" for column in order)
        query += f" QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {last}) = 1"
    return query


#: Where a row was written: a later one counts among rows of the same times.
_POSITION: Final = ("filename", "file_row_number")


def _files(source: Source) -> str:
    files = ", ".join(_literal(path) for path in source.files)
    position = "" if source.folded else ", filename = true, file_row_number = true, union_by_name = true"
    return f"read_parquet([{files}], hive_partitioning = false{position})"


def _arrival(source: Source) -> str:
    """When a row came, µs: not known means with its time."""
    event = _microseconds(source.timestamp)
    return event if source.created is None else f"coalesce({_microseconds(source.created)}, {event})"


def _microseconds(column: str) -> str:
    """Return a column of times as µs; nanoseconds are rounded, days begin at midnight UTC."""
    return f"epoch_us({quoted(column)}::TIMESTAMPTZ)"


def known_sql(source: Source, columns: Sequence[str]) -> str:
    """Return a query of rows by the time from which they are known, with their entities and some columns.

    `__known_us` is that time (inclusive), `__event_us` the time whose age counts. At any time the last row known is the
    one with the greatest (time, arrival) of all that are known then: an older fact that comes late replaces nothing.
    """
    if source.folded:
        time = _microseconds(source.timestamp)
        return f"SELECT *, {time} AS {_KNOWN}, {time} - 1 AS {_EVENT} FROM ({rows_sql(source, columns)})"
    names = ", ".join(map(quoted, dict.fromkeys([*source.entities, *columns])))
    keys = ", ".join(map(quoted, source.entities))
    event, arrival = _microseconds(source.timestamp), _arrival(source)
    ranked = (
        f"SELECT {names}, {event} AS {_EVENT}, greatest({event}, {arrival}) + 1 AS {_KNOWN}, "
        f"row_number() OVER (PARTITION BY {keys} ORDER BY {event}, {arrival}, {', '.join(_POSITION)}) AS __rank "
        f"FROM {_files(source)} WHERE {quoted(source.timestamp)} IS NOT NULL"
    )
    # Rows known at the same moment are peers of one frame: the greatest of them is left alone.
    return f"SELECT * FROM ({ranked}) QUALIFY __rank = max(__rank) OVER (PARTITION BY {keys} ORDER BY {_KNOWN})"


def join_sql(source: Source, columns: dict[str, str], spine: str) -> str:
    """Return a query of each spine row's number and its features: the last row known at the spine's time.

    Parameters
    ----------
    source
        The feature view.
    columns
        Columns to return, by the name to return them under.
    spine
        Table with `ROW`, `TIME` (µs) and the entities.
    """
    keys = " AND ".join(f"spine.{quoted(name)} = feature.{quoted(name)}" for name in source.entities)
    value = "feature.{}"
    if source.max_age_us is not None:
        value = f"CASE WHEN spine.{TIME} - feature.{_EVENT} <= {source.max_age_us} THEN feature.{{}} END"
    selected = ", ".join(f"{value.format(quoted(name))} AS {quoted(out)}" for out, name in columns.items())
    known = known_sql(source, list(columns.values()))
    return (
        f"SELECT spine.{ROW}, {selected} FROM {spine} spine "
        f"ASOF LEFT JOIN ({known}) feature ON {keys} AND spine.{TIME} >= feature.{_KNOWN}"
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
        Table with `ROW`, `TIME` (µs) and user_id.
    """
    fields = "seq := seq, item_id := item_id, event_type := event_type, time := time"
    event = f"struct_pack(known := epoch_us(valid_from), {fields})"
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
    query = f"SELECT * FROM ({rows_sql(source, columns)}) "
    query += f"WHERE {_microseconds(source.timestamp)} BETWEEN {first} AND {last}"
    if latest:
        keys = ", ".join(map(quoted, source.entities))
        query += f" QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {known} DESC) = 1"
    return query
