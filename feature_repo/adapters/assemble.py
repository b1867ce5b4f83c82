"""What every adapter ends with: lines of files become events or quarantine, and events complete the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.adapters.text_table import LINE, ROW, TextTable
from feature_repo.events import EVENT_SCHEMA, ITEM_SCHEMA, QUARANTINE_SCHEMA
from feature_repo.validation import quarantine_rows, validate_events

#: What nobody says of an item its first event does: since when it is there, its category, its price. An item without
#: events came after all of them, as far as anybody can tell.
_CATALOGUE = """
SELECT item_id, k.title, coalesce(k.category, e.category) AS category, coalesce(k.price, e.price) AS price,
    coalesce(k.created_at, e.first_time, (SELECT max(event_timestamp) FROM event)) AS created_at,
    k.tags, k.description, k.image, coalesce(k.available, true) AS available
FROM known k
FULL JOIN (
    SELECT item_id, min(event_timestamp) AS first_time,
        arg_min(category, (event_timestamp, number)) AS category, arg_min(price, (event_timestamp, number)) AS price
    FROM (SELECT *, row_number() OVER () AS number FROM event) GROUP BY item_id
) e USING (item_id)
ORDER BY item_id
"""


@dataclass(frozen=True)
class Lines:
    """The lines of one file, and what they say.

    Attributes
    ----------
    source
        Name of the file or data set, for the quarantine.
    raw
        The lines as they stand, each with its place in `ROW` (ascending) and, if it has one, `LINE`.
    events
        What the lines without a problem say: columns of `EVENT_SCHEMA`, any subset with the required ones, and `ROW`.
    problems
        Row to `"slug: detail"` of the other lines.
    broken
        Lines that are not even lines of a table (`QUARANTINE_SCHEMA`); not in `raw`.
    """

    source: str
    raw: pa.Table
    events: pa.Table
    problems: Mapping[int, str]
    broken: pa.Table = field(default_factory=QUARANTINE_SCHEMA.empty_table)


def judged(text: TextTable, source: str, lines: str, events: str) -> Lines:
    """Run an adapter's two queries over a file.

    Parameters
    ----------
    source
        Name of the file or data set, for the quarantine.
    lines
        A query on the table `cell` (the file's columns as text, and `ROW`) that returns `ROW`, what the events
        need, and `problem`: `"slug: detail"` of a line that cannot be an event, else null.
    events
        Query on its result, the table `line`, for the columns of `Lines.events`; times as timestamps with zone or µs.
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("cell", text.cells)
        connection.execute(f"CREATE TEMP TABLE line AS {lines}")
        refused = connection.sql('SELECT "#row", problem FROM line WHERE problem IS NOT NULL').to_arrow_table()
        found = connection.sql(events).to_arrow_table()
    problems = dict(zip(refused[ROW].to_pylist(), refused["problem"].to_pylist(), strict=True))
    return Lines(source, text.cells, found, problems, text.broken)


def accept(parts: Sequence[Lines], *, now: datetime | None = None) -> tuple[pa.Table, pa.Table]:
    """Run the common rules over the lines of all files of a data set.

    Parameters
    ----------
    parts
        One or more files; an `event_id` counts once in all of them.
    now
        Aware time after which nothing can have happened; None: the last event's, for data of the past.

    Returns
    -------
    tuple of pa.Table
        Accepted events (`EVENT_SCHEMA`) in the order of the lines, and refused lines (`QUARANTINE_SCHEMA`) by file and
        row, each with its line as it stands.
    """
    tables = [in_schema(part.events, EVENT_SCHEMA, nullable=True) for part in parts]
    events = pa.concat_tables(tables, promote_options="permissive")  # a number may be whole in one file only
    problems = [dict(part.problems) for part in parts]
    if not events.num_rows:
        return events.cast(EVENT_SCHEMA), _quarantine(parts, problems)
    if now is None:
        last = pc.max(events["event_timestamp"]).as_py()
        now = (last or datetime.now(UTC)) + timedelta(seconds=1)
    accepted, refused = validate_events(events, source="", now=now)
    starts = np.cumsum([0, *(table.num_rows for table in tables)])
    rows = [part.events[ROW].to_numpy() for part in parts]
    for at, reason, detail in zip(*(refused[name].to_pylist() for name in ("row", "reason", "detail")), strict=True):
        part = int(np.searchsorted(starts, at, "right")) - 1
        problems[part][int(rows[part][at - starts[part]])] = f"{reason}: {detail}"
    return accepted, _quarantine(parts, problems)


def catalogue(events: pa.Table, known: pa.Table) -> pa.Table:
    """Return the catalogue of a data set: what a catalogue file says, completed by what the first events say.

    It holds what was known when an item came in. Today's price or "sold lately" would tell a model of the past what
    came after.

    Parameters
    ----------
    events
        Accepted events (`EVENT_SCHEMA`) in the order of their lines.
    known
        Any columns of `ITEM_SCHEMA` with `item_id`, one row per item.
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("event", events)
        connection.register("known", in_schema(known, ITEM_SCHEMA, nullable=True))
        return in_schema(connection.sql(_CATALOGUE).to_arrow_table(), ITEM_SCHEMA)


def with_categories(events: pa.Table, items: pa.Table) -> pa.Table:
    """Give events without a category that of their item."""
    found = pc.take(items["category"], pc.index_in(events["item_id"], items["item_id"]))
    index = events.schema.get_field_index("category")
    return events.set_column(index, EVENT_SCHEMA.field(index), pc.coalesce(events["category"], found))


def in_schema(table: pa.Table, schema: pa.Schema, *, nullable: bool = False) -> pa.Table:
    """Return the columns of the schema in its order and types; absent ones are null, others are left out.

    Parameters
    ----------
    nullable
        Allow nulls everywhere, for tables that are still to be validated. Numbers keep their type then: what is not
        whole is for the rules to say.
    """
    fields, arrays = [], []
    for wanted in schema:
        if wanted.name not in table.column_names:
            column: Any = pa.nulls(table.num_rows, wanted.type)
        else:
            column = table[wanted.name]
            if not (nullable and pa.types.is_floating(column.type)):
                column = column.cast(wanted.type)
        arrays.append(column)
        fields.append(pa.field(wanted.name, column.type, nullable=nullable or wanted.nullable))
    return pa.table(arrays, schema=pa.schema(fields))


def _quarantine(parts: Sequence[Lines], problems: Sequence[Mapping[int, str]]) -> pa.Table:
    refused = []
    for part, reasons in zip(parts, problems, strict=True):
        rows = np.array(sorted(reasons), np.int64)
        raw = part.raw.take(pa.array(np.searchsorted(part.raw[ROW].to_numpy(), rows)))
        lines = raw[LINE].to_pylist() if LINE in raw.column_names else [None] * len(rows)
        placed = [_placed(reasons[row], part.source, line) for row, line in zip(rows.tolist(), lines, strict=True)]
        cells = raw.drop([name for name in (ROW, LINE) if name in raw.column_names])
        table = quarantine_rows(cells, dict(enumerate(placed)), source=part.source)
        table = table.set_column(1, table.schema.field("row"), pa.array(rows))
        refused.append(pa.concat_tables([table, part.broken]).sort_by("row"))
    return pa.concat_tables(refused)


def _placed(problem: str, source: str, line: int | None) -> str:
    """Put the place of the line before the detail: "missing_field: orders.csv line 17, column 'user' is empty"."""
    if line is None:
        return problem
    slug, _, detail = problem.partition(": ")
    return f"{slug}: {source} line {line}{', ' if detail.startswith('column ') else ': '}{detail}"
