"""The rules one event must pass, and the closed set of reasons for which it is refused. PURE."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from feature_repo.events import EVENT_SCHEMA, MAX_FUTURE_S, MAX_ID_BYTES, EventType

#: Why a row is in quarantine. A closed set: reports, metrics and docs/events.md list exactly these.
REASONS: dict[str, str] = {
    "missing_field": "A required field is absent or null (a rating also requires a value).",
    "unknown_field": "The event has a field that is not in the schema.",
    "bad_type": "A field has the wrong type, e.g. text where a number or a time is required, or a line is broken.",
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
    "too_long": "A text is longer than it may be (items: docs/events.md).",
    "no_change": "A change of an item names nothing to change.",
    "too_old": "The event happened more than 7 days ago: it goes into the history (docs/events.md).",
    "too_many_items": "The item is unknown, and there are as many items as `max_items` allows.",
    "not_shown": "Feedback on an item that was not in the list of its request (docs/feedback.md).",
    "rate_limited": "The user sent more events than one user may; not kept, send them again later.",
    "undecodable_payload": "An entry of the stream that Larder did not write.",
    "duplicate": "An earlier row of the same table has the same event_id.",
    "no_customer": "The line names no customer (Online Retail).",
    "non_product_code": "The code is not a product: postage, manual entries, discounts, fees, ... (Online Retail).",
    "zero_price": "The unit price is zero or rounds to zero: a gift, a stock correction, fuel (adapters).",
    "not_a_sale": "A quantity below 1 without a cancellation, or an accounting entry (Online Retail).",
}

ID_FIELDS = ("event_id", "user_id", "item_id", "session_id", "request_id", "category")
REQUIRED = ("event_id", "user_id", "item_id", "event_type", "event_timestamp")
WHOLE_FIELDS = ("quantity", "rank", "price")
TIME_FIELDS = ("event_timestamp", "received_at")
_FIELDS = frozenset(EVENT_SCHEMA.names)
EVENT_TYPES = frozenset(EventType.__members__)
_MAX_CONTEXT_BYTES = 4096
MAX_EXACT = 2**53
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


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
        if name not in _FIELDS:
            return f"unknown_field: {shown(name)}"
    for name in REQUIRED:
        if fields.get(name) is None:
            return f"missing_field: {name}"
    if fields["event_type"] == EventType.rating.name and fields.get("value") is None:
        return "missing_field: value of a rating"
    return _check_text(fields) or _check_numbers(fields) or _check_times(fields, now_us)


def _check_text(fields: Mapping[str, object]) -> str | None:
    for name in (*ID_FIELDS, "event_type", "context"):
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            return f"bad_type: {name} must be text, not {shown(value)}"
        if name == "event_type":
            if value not in EVENT_TYPES:
                return f"bad_event_type: {shown(value)}"
        elif name == "context":
            if not is_context(value):
                return f"bad_context: {shown(value)}"
        elif not is_id(value):
            return f"bad_id: {name} {shown(value)}"
    return None


def _check_numbers(fields: Mapping[str, object]) -> str | None:  # noqa: PLR0911 - one return per rule reads best
    for name in ("value", *WHOLE_FIELDS):
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"bad_type: {name} must be a number, not {shown(value)}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"not_finite: {name} {value}"
        if value < 0 and name != "rank":
            return f"negative: {name} {_amount(value)}"
        if abs(value) > MAX_EXACT:
            return f"too_large: {name} {_amount(value)}"
        if value != int(value) and not (name == "value" and fields["event_type"] == EventType.rating.name):
            return f"not_whole: {name} {value}"
        if name == "quantity" and value == 0:
            return "bad_quantity: 0"
        if name == "rank" and value < 1:
            return f"bad_rank: {value}"
    return None


def _check_times(fields: Mapping[str, object], now_us: int) -> str | None:
    limit = now_us + MAX_FUTURE_S * 1_000_000
    for name in reversed(TIME_FIELDS):  # the time of receipt first: it is the limit of the event's time
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, datetime):
            return f"bad_type: {name} must be a time, not {shown(value)}"
        if value.tzinfo is None or value.utcoffset() is None:
            return f"naive_time: {name} {value.isoformat()}"
        us = microseconds(value)
        if us < 0:
            return f"bad_time: {name} {value.isoformat()}"
        if us > limit:
            return f"future_time: {name} {value.isoformat()}"
        limit = min(us, now_us) + MAX_FUTURE_S * 1_000_000
    return None


def is_id(text: str) -> bool:
    """Return whether the text can be an id (after NFC)."""
    if text.isascii() and text.isprintable():
        return bool(text.strip()) and len(text) <= MAX_ID_BYTES
    # NFC at most thirds a text's length, and its cost grows with the square of it: long texts never get that far.
    if not text.strip() or len(text) > 3 * MAX_ID_BYTES:
        return False
    composed = normalise_id(text)
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in composed):
        return False
    return len(composed.encode("utf-8", "surrogatepass")) <= MAX_ID_BYTES


def is_context(text: str) -> bool:
    """Return whether the text is a JSON object of bounded size."""
    try:
        return len(text.encode("utf-8")) <= _MAX_CONTEXT_BYTES and isinstance(
            json.loads(text, parse_constant=_no_constant), dict
        )
    except (ValueError, RecursionError):  # UnicodeEncodeError (a lone surrogate) is a ValueError
        return False


def _amount(value: float) -> str:
    """Return a number for a person; Python refuses to print integers of thousands of digits."""
    huge = isinstance(value, int) and value.bit_length() > 64
    return f"about {'-' if value < 0 else ''}2^{int(value).bit_length()}" if huge else str(value)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def shown(value: object) -> str:
    """Return a value for a person: short, and printable whatever it holds."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}... ({len(text)} characters)"
