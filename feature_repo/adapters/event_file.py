"""A file of events in the contract of docs/events.md (Parquet, CSV or JSON lines) as a data set."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.json as pjson
import pyarrow.parquet as pq

from feature_repo.datasets import Dataset, make_dataset
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.events import EVENT_SCHEMA, TIMESTAMP
from feature_repo.validation import validate_events

_TYPES: Final = {field.name: field.type for field in EVENT_SCHEMA}

_LINES: Final = pa.schema([field.with_nullable(True) for field in EVENT_SCHEMA])


def load(path: Path, items: pa.Table, *, before: datetime | None = None) -> Dataset:
    """Load a file of events as a data set.

    Parameters
    ----------
    path
        Columns named as in `EVENT_SCHEMA`. Rows without `event_id` get one of the file's content and their place, the
        same that `larder events load` gives them.
    items
        The catalogue (`ITEM_SCHEMA`).
    before
        Only events that happened before this aware time, e.g. those too old to be loaded live.

    Raises
    ------
    NotFoundError
        If there is no such file.
    BadInputError
        If it cannot be read, or has unknown or missing columns.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    try:
        table = _read(path)
    except pa.ArrowException as error:
        raise BadInputError(f"{path.name} cannot be read: {error}") from None
    table = _with_ids(table, path)
    if before is not None and "event_timestamp" in table.column_names:
        early = pc.less(table["event_timestamp"].cast(TIMESTAMP), pa.scalar(before.astimezone(UTC), TIMESTAMP))
        table = table.filter(pc.fill_null(early, fill_value=True))  # a row without a time goes to quarantine
    events, quarantine = validate_events(table, source=path.name, now=datetime.now(UTC))
    return make_dataset(path.stem, events, items, quarantine)


def _read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    if path.suffix == ".csv":
        options = pcsv.ConvertOptions(column_types=_TYPES, strings_can_be_null=True)
        return pcsv.read_csv(path, convert_options=options)
    if path.suffix in (".jsonl", ".ndjson"):
        options = pjson.ParseOptions(explicit_schema=_LINES, unexpected_field_behavior="error")
        found = pjson.read_json(path, parse_options=options)
        return found.select([name for name in found.column_names if found[name].null_count < found.num_rows])
    raise BadInputError(f"{path.name}: the file must be Parquet (.parquet), CSV (.csv) or JSON lines (.jsonl)")


def _with_ids(table: pa.Table, path: Path) -> pa.Table:
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    made: Any = pa.array([f"load-{digest}-{row}" for row in range(table.num_rows)], pa.string())
    if "event_id" not in table.column_names:
        return table.append_column("event_id", made)
    index = table.schema.get_field_index("event_id")
    if not table["event_id"].null_count:
        return table
    return table.set_column(index, "event_id", pc.coalesce(table["event_id"].cast(pa.string()), made))
