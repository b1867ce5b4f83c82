"""The rules an event must pass, once: for one event of the API and, vectorised, for whole tables. PURE.

`check_event` is the rule set. `validate_events` only finds out, column by column, which rows are certainly right; every
other row goes through `check_event` by itself. So there is one place where a rule is written down.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import BadInputError
from feature_repo.events import EVENT_SCHEMA, MAX_FUTURE_S, MAX_ID_BYTES, QUARANTINE_SCHEMA, TIMESTAMP, EventType

#: Why a row is in quarantine. A closed set: reports, metrics and docs/events.md list exactly these.
REASONS: dict[str, str] = {
    "missing_field": "A required field is absent or null (a rating also requires a value).",
    "unknown_field": "The event has a field that is not in the schema.",
    "bad_type": "A field has the wrong type, e.g. a number where text is required or text where a time is required.",
    "bad_id": "An id is empty, longer than 128 UTF-8 bytes, or contains control characters or lone surrogates.",
    "bad_event_type": "The event type is not one of the closed set.",
    "bad_context": "The context is not a JSON object of at most 4,096 bytes.",
    "not_finite": "A number is NaN or infinite.",
    "not_whole": "An amount of money, a price, a quantity or a rank is not a whole number.",
    "negative": "A price, a value or a quantity is below zero (a cancel carries positive numbers).",
    "too_large": "A number is above 2^53 and cannot be kept exactly.",
    "bad_quantity": "The quantity is zero.",
    "bad_rank": "The rank is below 1.",
    "naive_time": "A time has no time zone.",
    "bad_time": "A time lies before 1970-01-01.",
    "future_time": "A time lies further in the future than the tolerance for clocks.",
    "duplicate": "An earlier row of the same table has the same event_id.",
    "no_customer": "The line names no customer (Online Retail).",
    "non_product_code": "The code is not a product: postage, manual entries, discounts, fees, ... (Online Retail).",
    "zero_price": "The unit price is zero or rounds to zero: a gift or a stock correction (Online Retail).",
    "not_a_sale": "A quantity below 1 without a cancellation, or an accounting entry (Online Retail).",
}

_ID_FIELDS = ("event_id", "user_id", "item_id", "session_id", "request_id", "category")
_REQUIRED = ("event_id", "user_id", "item_id", "event_type", "event_timestamp")
_WHOLE_FIELDS = ("quantity", "rank", "price")
_TIME_FIELDS = ("event_timestamp", "received_at")
_EVENT_TYPES = frozenset(EventType.__members__)
_MAX_CONTEXT_BYTES = 4096
_MAX_EXACT = 2**53
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
#: Microseconds of the years 1 and 9999, the range of Python's datetime.
_DATETIME_RANGE_US = (-62_135_596_800_000_000, 253_402_300_799_000_000)


def microseconds(time: datetime) -> int:
    """Return an aware time as whole microseconds since 1970 (exact, unlike `timestamp()`)."""
    return (time - _EPOCH) // _MICROSECOND


def normalise_id(text: str) -> str:
    """Return the id in Unicode NFC, the one form in which ids are stored and compared."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def check_event(fields: Mapping[str, object], now_us: int) -> str | None:
    """Check one event.

    Times up to `MAX_FUTURE_S` ahead of the time of receipt are a wrong clock and pass; the caller sets them to
    the time of receipt (so that feature time = received_at), as `validate_events` does.

    Parameters
    ----------
    fields
        The event by field names of `EVENT_SCHEMA`; times as aware datetimes. `received_at` may be absent.
    now_us
        Now, in microseconds since 1970.

    Returns
    -------
    str or None
        None for a right event, else `"<slug>: <detail>"` with a slug of `REASONS`.
    """
    for name in fields:
        if name not in EVENT_SCHEMA.names:
            return f"unknown_field: {name!r}"
    for name in _REQUIRED:
        if fields.get(name) is None:
            return f"missing_field: {name}"
    if fields["event_type"] == EventType.rating.name and fields.get("value") is None:
        return "missing_field: value of a rating"
    return _check_text(fields) or _check_numbers(fields) or _check_times(fields, now_us)


def _check_text(fields: Mapping[str, object]) -> str | None:
    for name in (*_ID_FIELDS, "event_type", "context"):
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            return f"bad_type: {name} must be text, not {_shown(value)}"
        if name == "event_type":
            if value not in _EVENT_TYPES:
                return f"bad_event_type: {_shown(value)}"
        elif name == "context":
            if not _is_context(value):
                return f"bad_context: {_shown(value)}"
        elif not _is_id(value):
            return f"bad_id: {name} {_shown(value)}"
    return None


def _check_numbers(fields: Mapping[str, object]) -> str | None:  # noqa: PLR0911 - one return per rule reads best
    for name in ("value", *_WHOLE_FIELDS):
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"bad_type: {name} must be a number, not {_shown(value)}"
        if not math.isfinite(value):
            return f"not_finite: {name} {value}"
        if value < 0 and name != "rank":
            return f"negative: {name} {value}"
        if abs(value) > _MAX_EXACT:
            return f"too_large: {name} {value}"
        if value != int(value) and not (name == "value" and fields["event_type"] == EventType.rating.name):
            return f"not_whole: {name} {value}"
        if name == "quantity" and value == 0:
            return "bad_quantity: 0"
        if name == "rank" and value < 1:
            return f"bad_rank: {value}"
    return None


def _check_times(fields: Mapping[str, object], now_us: int) -> str | None:
    limit = now_us + MAX_FUTURE_S * 1_000_000
    for name in reversed(_TIME_FIELDS):  # the time of receipt first: it is the limit of the event's time
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, datetime):
            return f"bad_type: {name} must be a time, not {_shown(value)}"
        if value.tzinfo is None or value.utcoffset() is None:
            return f"naive_time: {name} {value.isoformat()}"
        us = microseconds(value)
        if us < 0:
            return f"bad_time: {name} {value.isoformat()}"
        if us > limit:
            return f"future_time: {name} {value.isoformat()}"
        limit = min(us, now_us) + MAX_FUTURE_S * 1_000_000
    return None


def _is_id(text: str) -> bool:
    if text.isascii() and text.isprintable():
        return bool(text.strip()) and len(text) <= MAX_ID_BYTES
    if not text.strip() or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text[: MAX_ID_BYTES + 1]):
        return False
    return len(normalise_id(text).encode("utf-8", "surrogatepass")) <= MAX_ID_BYTES


def _is_context(text: str) -> bool:
    try:
        return len(text.encode("utf-8")) <= _MAX_CONTEXT_BYTES and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):  # UnicodeEncodeError (a lone surrogate) is a ValueError
        return False


def _shown(value: object) -> str:
    """Return a value for a person: short, and printable whatever it holds."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}... ({len(text)} characters)"


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
    for name in _ID_FIELDS:
        columns[name] = _normalised(columns[name])
    for row in _repeats(columns["event_id"], ok).tolist():
        ok[row] = False
        reasons[row] = f"duplicate: {_shown(columns['event_id'][row].as_py())}"
    times = {name: columns[name].cast(pa.int64()) for name in _TIME_FIELDS}
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
    raw = table.take(pa.array(rows, pa.int64())).to_pylist()
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


def _check_columns(table: pa.Table, source: str) -> None:
    names = table.column_names
    if unknown := sorted(set(names) - set(EVENT_SCHEMA.names)):
        raise BadInputError(
            f"{source}: unknown columns {', '.join(map(repr, unknown))}; the columns of an event are: "
            f"{', '.join(EVENT_SCHEMA.names)}"
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise BadInputError(f"{source}: column {repeated[0]!r} occurs more than once")
    if missing := [name for name in _REQUIRED if name not in names]:
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
        bound = pc.less_equal(pc.abs(column.cast(pa.float64(), safe=False)), float(_MAX_EXACT))
        return pc.if_else(bound, column, pa.scalar(None, kind)).cast(field.type, safe=False)
    return pa.nulls(raw.num_rows, field.type)


def _certainly_right(raw: pa.Table, columns: Mapping[str, Any], now_us: int) -> Any:
    """Return a mask of rows that pass every rule; False means "look closer"."""
    is_rating = pc.equal(columns["event_type"], EventType.rating.name)
    masks = [_text_right(columns[name], _is_id, r"^[!-~]{1,128}$") for name in _ID_FIELDS]
    masks.append(pc.is_in(columns["event_type"], pa.array(sorted(_EVENT_TYPES))))
    masks.append(_text_right(columns["context"], _is_context, r"^\{\}$"))
    masks += [pc.is_valid(columns[name]) for name in _REQUIRED]
    masks.append(pc.or_(pc.invert(is_rating), pc.is_valid(columns["value"])))
    for name in ("value", *_WHOLE_FIELDS):
        if name in raw.column_names:
            lowest = 0 if name in ("value", "price") else 1
            number = raw[name] if _is_number(raw[name].type) else columns[name]
            number = number.cast(pa.float64(), safe=False)
            inside = pc.and_(pc.greater_equal(number, lowest), pc.less_equal(number, float(_MAX_EXACT)))
            whole = pc.equal(number, pc.floor(number))
            masks.append(_or_null(pc.and_(inside, pc.or_(whole, is_rating) if name == "value" else whole)))
    times = [columns[name].cast(pa.int64()) for name in _TIME_FIELDS]
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


def _text_right(column: Any, rule: Any, plain: str) -> Any:
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
