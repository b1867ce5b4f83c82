"""One event on its way in: checked, completed with what the shop knows at this moment, ready for the stream. PURE."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from feature_repo.event_rules import ID_FIELDS, WHOLE_FIELDS, check_event, is_id, microseconds, normalise_id, shown
from feature_repo.events import MAX_ID_BYTES, EventType
from serving.cascade.items import ItemTable

#: What a client may say; category and time of receipt are ours to say.
FIELDS = frozenset(
    {
        "event_id", "user_id", "item_id", "event_type", "value", "price", "quantity", "event_timestamp", "session_id",
        "request_id", "rank", "context",
    }
)  # fmt: skip
#: Normalising takes quadratic time on hostile text, so length comes first; NFC shrinks to a third at most.
MAX_ID_CHARACTERS = 3 * MAX_ID_BYTES
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MONEY_TYPES = (EventType.purchase.name, EventType.cancel.name)


class RefusedEvent(Exception):  # noqa: N818 - it is an outcome the caller counts, not an error to show
    """An event that breaks a rule; the message is `<slug>: <detail>` with a slug of `event_rules.REASONS`."""


def prepare_event(sent: Mapping[str, Any], table: ItemTable, now_us: int, new_id: str) -> dict[str, Any]:
    """Check an event and bring it into the form of the stream.

    Times up to the tolerance ahead of now become now. Category and price are those of the item at this moment; a
    purchase or cancellation without a value gets price x quantity.

    Parameters
    ----------
    sent
        The event as decoded from JSON.
    table
        The items of this moment.
    now_us
        Time of receipt.
    new_id
        Its `event_id` if it has none. An impression that names its request gets an id made of request and item: it
        counts once however often it is sent.

    Returns
    -------
    dict
        Fields of `EVENT_SCHEMA`, times in µs.

    Raises
    ------
    RefusedEvent
        If it breaks a rule.
    """
    event = {name: value for name, value in sent.items() if value is not None}
    _require_known_fields(event)
    _require_short_ids(event)
    event["event_timestamp"] = _time(event.get("event_timestamp"), now_us)
    event["event_id"] = _event_id(event, new_id)
    if "context" in event:
        event["context"] = _context(event["context"])
    if (problem := check_event(event, now_us)) is not None:
        raise RefusedEvent(problem)
    time_us = microseconds(event["event_timestamp"])
    event |= {name: normalise_id(event[name]) for name in ID_FIELDS if name in event}
    event |= {name: int(event[name]) for name in WHOLE_FIELDS if name in event}
    event |= {"event_timestamp": min(time_us, now_us), "received_at": now_us}
    _enrich(event, table)
    return event


def is_bounded_id(text: str) -> bool:
    """Return whether the text can be an id; quick whatever the text is."""
    # Looked at in NFC: `is_id` reads the first 129 letters, and only in NFC that is all that can matter.
    return len(text) <= MAX_ID_CHARACTERS and is_id(normalise_id(text))


def _require_known_fields(event: Mapping[str, Any]) -> None:
    for name in event:
        if name not in FIELDS:
            raise RefusedEvent(f"unknown_field: {shown(name)}")


def _require_short_ids(event: Mapping[str, Any]) -> None:
    for name in ID_FIELDS:
        value = event.get(name)
        if isinstance(value, str) and not is_bounded_id(value):
            raise RefusedEvent(f"bad_id: {name} {shown(value)}")


def _time(sent: Any, now_us: int) -> datetime:
    """Return the time sent, or now."""
    if sent is None:
        return _EPOCH + timedelta(microseconds=now_us)
    try:
        return datetime.fromisoformat(sent)
    except (TypeError, ValueError):
        raise RefusedEvent(f"bad_type: event_timestamp must be an ISO 8601 time, not {shown(sent)}") from None


def _context(sent: Any) -> str:
    if not isinstance(sent, dict):
        raise RefusedEvent(f"bad_context: it must be a JSON object, not {shown(sent)}")
    return msgspec.json.encode(sent).decode()


def _event_id(event: Mapping[str, Any], new_id: str) -> Any:
    if event.get("event_type") == EventType.impression.name and "request_id" in event:
        text = f"{event['request_id']}\0{event.get('item_id')}"
        return f"impression-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"
    return event.get("event_id", new_id)


def _enrich(event: dict[str, Any], table: ItemTable) -> None:
    """Add category, price and value as of now."""
    index = table.index.get(event["item_id"])
    if index is not None:
        if table.category[index]:
            event["category"] = table.category[index]
        price = table.columns["item_price"][index]
        if "price" not in event and price == price:  # noqa: PLR0124 - NaN is unequal to itself
            event["price"] = int(price)
    if event["event_type"] in _MONEY_TYPES and "value" not in event and "price" in event:
        event["value"] = float(event["price"] * event.get("quantity", 1))
