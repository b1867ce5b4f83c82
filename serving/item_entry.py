"""One catalogue entry on its way in: checked, in the form of the stream. PURE."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from feature_repo.event_rules import MAX_EXACT, microseconds, normalise_id, shown
from feature_repo.events import MAX_FUTURE_S
from feature_repo.item_changes import CHANGE_FIELDS, ItemChange
from serving.event_entry import is_bounded_id

FIELDS: Final = frozenset({"change_id", "item_id", *CHANGE_FIELDS})
MAX_TITLE: Final = 1_000
MAX_DESCRIPTION: Final = 10_000
MAX_IMAGE: Final = 2_000
MAX_TAGS: Final = 100
#: May be set to null, which says that it is not known (any more).
_NULLABLE: Final = frozenset(CHANGE_FIELDS) - {"available", "blocked"}


class RefusedItem(Exception):  # noqa: N818 - it is an outcome the caller counts, not an error to show
    """An entry that breaks a rule; the message is `<slug>: <detail>` with a slug of `event_rules.REASONS`."""


def prepare_change(sent: Mapping[str, Any], now_us: int, new_id: str) -> ItemChange:
    """Check an entry of the catalogue and bring it into the form of the stream.

    Parameters
    ----------
    sent
        The entry as decoded from JSON: `item_id`, and what is to be set.
    now_us
        Time of receipt.
    new_id
        Its `change_id` if it has none.

    Raises
    ------
    RefusedItem
        If it breaks a rule.
    """
    for name in sent:
        if name not in FIELDS:
            raise RefusedItem(f"unknown_field: {shown(name)}")
    if sent.get("item_id") is None:
        raise RefusedItem("missing_field: item_id")
    change_id = sent.get("change_id")
    sets = {name: _checked(name, sent[name], now_us) for name in CHANGE_FIELDS if name in sent}
    if not sets:
        raise RefusedItem(f"no_change: say what is to be set: {', '.join(CHANGE_FIELDS)}")
    return ItemChange(
        new_id if change_id is None else _id("change_id", change_id), _id("item_id", sent["item_id"]), now_us, **sets
    )


def _checked(name: str, value: Any, now_us: int) -> Any:
    if value is None and name in _NULLABLE:
        return None
    return _RULES[name](name, value, now_us)


def _id(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RefusedItem(f"bad_type: {name} must be text, not {shown(value)}")
    if not is_bounded_id(value):
        raise RefusedItem(f"bad_id: {name} {shown(value)}")
    return normalise_id(value)


def _text(longest: int) -> Callable[[str, Any, int], str]:
    def check(name: str, value: Any, _: int) -> str:
        if not isinstance(value, str):
            raise RefusedItem(f"bad_type: {name} must be text, not {shown(value)}")
        if len(value) > longest:
            raise RefusedItem(f"too_long: {name} has {len(value)} characters; {longest} are allowed")
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise RefusedItem(f"bad_type: {name} holds lone surrogates")
        return value

    return check


def _category(name: str, value: Any, _: int) -> str:
    return _id(name, value)


def _tags(name: str, value: Any, _: int) -> list[str]:
    if not isinstance(value, list):
        raise RefusedItem(f"bad_type: {name} must be a list of texts, not {shown(value)}")
    if len(value) > MAX_TAGS:
        raise RefusedItem(f"too_long: {name} has {len(value)} entries; {MAX_TAGS} are allowed")
    return [_id("a tag", tag) for tag in value]


def _price(name: str, value: Any, _: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedItem(f"bad_type: {name} must be a number, not {shown(value)}")
    if not math.isfinite(value):
        raise RefusedItem(f"not_finite: {name} {value}")
    if value < 0:
        raise RefusedItem(f"negative: {name} {shown(value)}")
    if value > MAX_EXACT:
        raise RefusedItem(f"too_large: {name} is above 2^53")
    if value != int(value):
        raise RefusedItem(f"not_whole: {name} {value}; it is in minor units")
    return int(value)


def _flag(name: str, value: Any, _: int) -> bool:
    if not isinstance(value, bool):
        raise RefusedItem(f"bad_type: {name} must be true or false, not {shown(value)}")
    return value


def _created_at(name: str, value: Any, now_us: int) -> int:
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise RefusedItem(f"bad_type: {name} must be an ISO 8601 time, not {shown(value)}") from None
    if time.utcoffset() is None:
        raise RefusedItem(f"naive_time: {name} {time.isoformat()}")
    us = microseconds(time)
    if us < 0:
        raise RefusedItem(f"bad_time: {name} {time.isoformat()}")
    if us > now_us + MAX_FUTURE_S * 1_000_000:
        raise RefusedItem(f"future_time: {name} {time.isoformat()}")
    return min(us, now_us)


_RULES: Final[Mapping[str, Callable[[str, Any, int], Any]]] = {
    "title": _text(MAX_TITLE),
    "category": _category,
    "price": _price,
    "created_at": _created_at,
    "tags": _tags,
    "description": _text(MAX_DESCRIPTION),
    "image": _text(MAX_IMAGE),
    "available": _flag,
    "blocked": _flag,
}
