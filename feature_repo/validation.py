"""Validation of tables of events: every row is either accepted or in quarantine with a reason. PURE.

The rules are written once, in event_rules.py (`check_event`). Here it is only found out, column by column, which rows
are certainly right; every other row goes through `check_event` by itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import BadInputError
from feature_repo.event_rules import (
    EVENT_TYPES,
    ID_FIELDS,
    MAX_EXACT,
    REASONS,
    REQUIRED,
    TIME_FIELDS,
    WHOLE_FIELDS,
    check_event,
    is_context,
    is_id,
    microseconds,
    normalise_id,
    shown,
)
from feature_repo.events import EVENT_SCHEMA, QUARANTINE_SCHEMA, TIMESTAMP, EventType

__all__ = ["REASONS", "check_event", "microseconds", "normalise_id", "quarantine_rows", "validate_events"]

#: Microseconds of the years 1 and 9999, the range of Python's datetime.
_DATETIME_RANGE_US = (-62_135_596_800_000_000, 253_402_300_799_000_000)


def validate_events(table: pa.Table, *, source: str, now: datetime, row_offset: int = 0) -> tuple[pa.Table, pa.Table]:
    """Split a table into events and quarantine; every row is in exactly one of the two.

    Ids are brought to NFC. A missing `received_at` becomes the event's time (history without arrival times). An
    event's time within the tolerance after its receipt is set to the receipt, so that feature time = received_at.

    Parameters
    ----------
    table
        Columns named as in `EVENT_SCHEMA`, any subset that holds the required ones, in any order.
    source
        Name written into the quarantine (a data set or a file).
    now
        Aware time; nothing can have happened later, but for the tolerance.
    row_offset
        Number of the table's first row in the source.

    Returns
    -------
    tuple of pa.Table
        Accepted rows in `EVENT_SCHEMA` and refused rows in `QUARANTINE_SCHEMA`, both in the order of the table.

    Raises
    ------
    BadInputError
        For unknown, repeated or missing columns, or a naive `now`.
    """
    _check_columns(table, source)
    if now.utcoffset() is None:
        raise BadInputError(f"now must have a time zone, got {now.isoformat()}")
    now_us = microseconds(now)
    raw = pa.table({name: _readable(table[name]) for name in table.column_names})
    columns = {field.name: _cast(raw, field) for field in EVENT_SCHEMA}
    ok = _certainly_right(raw, columns, now_us)
    reasons: dict[int, str] = {}
    doubtful = np.flatnonzero(~ok)
    for row, fields in zip(doubtful.tolist(), raw.take(pa.array(doubtful)).to_pylist(), strict=True):
        problem = check_event(fields, now_us)
        if problem is None:
            ok[row] = True
        else:
            reasons[row] = problem
    for name in ID_FIELDS:
        columns[name] = _normalised(columns[name])
    for row in _repeats(columns["event_id"], ok).tolist():
        ok[row] = False
        reasons[row] = f"duplicate: {shown(columns['event_id'][row].as_py())}"
    times = {name: columns[name].cast(pa.int64()) for name in TIME_FIELDS}
    received_us = pc.min_element_wise(pc.coalesce(times["received_at"], times["event_timestamp"]), now_us)
    columns["received_at"] = received_us.cast(TIMESTAMP)
    columns["event_timestamp"] = pc.min_element_wise(times["event_timestamp"], received_us).cast(TIMESTAMP)
    accepted = pa.table([columns[name] for name in EVENT_SCHEMA.names], names=EVENT_SCHEMA.names)
    return (
        accepted.filter(pa.array(ok)).combine_chunks().cast(EVENT_SCHEMA),
        quarantine_rows(raw, reasons, source=source, row_offset=row_offset),
    )


def quarantine_rows(table: pa.Table, reasons: Mapping[int, str], *, source: str, row_offset: int = 0) -> pa.Table:
    """Return the rows of `table` numbered in `reasons` ("slug: detail") as `QUARANTINE_SCHEMA`, raw row included."""
    rows = sorted(reasons)
    parts = [reasons[row].partition(": ") for row in rows]
    raw = [_jsonable(fields) for fields in table.take(pa.array(rows, pa.int64())).to_pylist()]
    return pa.table(
        [
            pa.array([source] * len(rows), pa.string()),
            pa.array([row + row_offset for row in rows], pa.int64()),
            pa.array([slug for slug, _, _ in parts], pa.string()),
            pa.array([detail for _, _, detail in parts], pa.string()),
            pa.array([json.dumps(fields, default=str, ensure_ascii=False) for fields in raw], pa.string()),
        ],
        schema=QUARANTINE_SCHEMA,
    )


def _jsonable(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the row with NaN and infinities as text: JSON has no such numbers."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }


def _check_columns(table: pa.Table, source: str) -> None:
    names = table.column_names
    if unknown := sorted(set(names) - set(EVENT_SCHEMA.names)):
        raise BadInputError(
            f"{source}: unknown columns {', '.join(map(repr, unknown))}; the columns of an event are: "
            f"{', '.join(EVENT_SCHEMA.names)}"
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise BadInputError(f"{source}: column {repeated[0]!r} occurs more than once")
    if missing := [name for name in REQUIRED if name not in names]:
        raise BadInputError(f"{source}: missing columns {', '.join(map(repr, missing))}")


def _readable(column: Any) -> Any:
    """Return the column so that `to_pylist` works: plain text, microseconds, times within Python's range."""
    kind = column.type
    try:
        if pa.types.is_dictionary(kind):
            return _readable(column.cast(kind.value_type))
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return column.cast(pa.string())
        if pa.types.is_timestamp(kind):
            utc = TIMESTAMP if kind.tz else pa.timestamp("us")
            us = column.cast(utc, safe=kind.unit != "ns").cast(pa.int64())
            low, high = _DATETIME_RANGE_US
            return pc.max_element_wise(pc.min_element_wise(us, high, skip_nulls=False), low, skip_nulls=False).cast(utc)
    except pa.ArrowInvalid as error:
        raise BadInputError(f"a column of type {kind} cannot be read: {error}") from None
    return column


def _cast(raw: pa.Table, field: Any) -> Any:
    """Return the column in the type of the schema, null where that cannot be (such rows are not certainly right)."""
    if field.name not in raw.column_names:
        return pa.nulls(raw.num_rows, field.type)
    column = raw[field.name]
    kind = column.type
    if kind == field.type:
        return column
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and field.type in (pa.int64(), pa.float64()):
        bound = pc.less_equal(pc.abs(column.cast(pa.float64(), safe=False)), float(MAX_EXACT))
        return pc.if_else(bound, column, pa.scalar(None, kind)).cast(field.type, safe=False)
    return pa.nulls(raw.num_rows, field.type)


def _certainly_right(raw: pa.Table, columns: Mapping[str, Any], now_us: int) -> Any:
    """Return a mask of rows that pass every rule; False means "look closer"."""
    is_rating = pc.equal(columns["event_type"], EventType.rating.name)
    masks = [_text_right(columns[name], is_id, r"^[!-~]{1,128}$") for name in ID_FIELDS]
    masks.append(pc.is_in(columns["event_type"], pa.array(sorted(EVENT_TYPES))))
    masks.append(_text_right(columns["context"], is_context, r"^\{\}$"))
    masks += [pc.is_valid(columns[name]) for name in REQUIRED]
    masks.append(pc.or_(pc.invert(is_rating), pc.is_valid(columns["value"])))
    for name in ("value", *WHOLE_FIELDS):
        if name in raw.column_names:
            lowest = 0 if name in ("value", "price") else 1
            number = raw[name] if _is_number(raw[name].type) else columns[name]
            number = number.cast(pa.float64(), safe=False)
            inside = pc.and_(pc.greater_equal(number, lowest), pc.less(number, float(MAX_EXACT)))
            whole = pc.equal(number, pc.floor(number))
            masks.append(_or_null(pc.and_(inside, pc.or_(whole, is_rating) if name == "value" else whole)))
    times = [columns[name].cast(pa.int64()) for name in TIME_FIELDS]
    for us in times:
        masks.append(_or_null(pc.and_(pc.greater_equal(us, 0), pc.less_equal(us, now_us))))
    masks.append(_or_null(pc.less_equal(*times)))
    for name in raw.column_names:  # a value that was lost in the cast is not of the right type
        masks.append(pc.equal(pc.is_valid(raw[name]), pc.is_valid(columns[name])))
    ok = np.ones(raw.num_rows, dtype=bool)
    for mask in masks:
        ok &= pc.fill_null(mask, False).to_numpy(zero_copy_only=False).astype(bool)
    return ok


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _or_null(mask: Any) -> Any:
    return pc.fill_null(mask, True)


def _text_right(column: Any, rule: Callable[[str], bool], plain: str) -> Any:
    """Return the mask of texts that pass `rule` (null passes); plain ones by regex, each other distinct text once."""
    right = _or_null(pc.match_substring_regex(column, plain))
    others = pc.unique(pc.filter(column, pc.invert(right)))
    passing = pa.array([text for text in others.to_pylist() if rule(text)], pa.string())
    return pc.or_(right, pc.is_in(column, passing)) if len(passing) else right


def _normalised(column: Any) -> Any:
    """Return the ids in NFC; plain ASCII columns, nearly all, are returned as they are."""
    if pc.all(pc.string_is_ascii(column)).as_py() in (True, None):
        return column
    encoded = pc.dictionary_encode(column)
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    texts = pa.array([None if text is None else normalise_id(text) for text in encoded.dictionary.to_pylist()])
    return pc.take(texts, encoded.indices)


def _repeats(event_ids: Any, ok: Any) -> Any:
    """Return the rows whose id an earlier row that is `ok` has."""
    rows = np.flatnonzero(ok)
    codes = pc.dictionary_encode(pc.take(event_ids, pa.array(rows)))
    codes = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
    if len(codes.dictionary) == len(rows):
        return rows[:0]
    _, first = np.unique(codes.indices.to_numpy(), return_index=True)
    return np.delete(rows, first)
