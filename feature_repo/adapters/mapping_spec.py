"""What a YAML mapping may say: which column of a user's files is which field of an event or item.

docs/own-data.md explains it to people; docs/mappings/ has examples. Everything in a mapping is read as text, so that
`no`, `1` and `2020-01-01` mean what they say. PURE; mapping_file.py reads one.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from feature_repo.events import EventType, Repeats


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _from_column(value: Any) -> Any:
    """Let `user_id: client` be short for `user_id: {column: client}`; so may a list of columns be."""
    return {"column": value} if isinstance(value, str | list) else value


def _time_format(text: str) -> str:
    if text not in ("iso", "epoch_s", "epoch_ms", "epoch_us") and "%" not in text:
        raise ValueError("it must be iso, epoch_s, epoch_ms, epoch_us or a pattern such as '%d.%m.%Y %H:%M'")
    return text


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{text!r} is no time zone; write one such as Europe/Berlin or UTC") from None
    return text


def _encoding(text: str) -> str:
    try:
        codecs.lookup(text)
    except LookupError:
        raise ValueError(f"{text!r} is no encoding; write one such as utf-8 or cp1252") from None
    return text


Names = Annotated[list[str], BeforeValidator(_as_list)]
EventTypeName = Literal[
    "impression", "view", "cart", "purchase", "cancel", "like", "dislike", "rating", "confirm", "reject"
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """Where a field comes from: the first of some columns that is not empty, or the same text for every line."""

    column: Names | None = None
    constant: str | None = None

    def ways(self) -> list[str]:
        """Names of the keys that say where the field comes from, of which exactly one must be given."""
        return ["column", "constant"]

    @model_validator(mode="after")
    def _one_way(self) -> Source:
        given = [way for way in self.ways() if getattr(self, way) is not None]
        if len(given) != 1 or getattr(self, given[0]) == []:
            raise ValueError(f"name exactly one of {', '.join(self.ways())}")
        return self

    def columns(self) -> Iterator[tuple[str, str]]:
        """Yield each column that is read, with the key that names it."""
        for way in self.ways():
            if way != "constant" and getattr(self, way) is not None:
                yield from ((way, name) for name in getattr(self, way))


class Text(Source):
    """Text; also columns joined, or the hash of some; of a cell with several values (`split`) the first."""

    join: list[str] | None = None
    separator: str = "-"
    hash: list[str] | None = None
    split: str | None = None

    def ways(self) -> list[str]:
        """As of every field, and two more."""
        return ["column", "constant", "join", "hash"]


class Tags(Source):
    """A list of texts: of all the columns named, each split if `split` says so."""

    split: str | None = None


class Time(Source):
    """A time; what names no zone itself is in `zone`."""

    format: Annotated[str, AfterValidator(_time_format)] = "iso"
    zone: Annotated[str, AfterValidator(_zone)] | None = None

    @model_validator(mode="after")
    def _has_zone(self) -> Time:
        if "%" in self.format and "%z" not in self.format and self.zone is None:
            raise ValueError("a pattern without %z needs a zone, such as zone: Europe/Berlin")
        return self


class Number(Source):
    """A number as it stands."""


class Money(Source):
    """An amount of money: `minor` units (cents) as they are kept here, or `major` with so many decimals."""

    unit: Literal["minor", "major"] = "minor"
    decimals: int = 2


class Flag(Source):
    """true, false, 1 or 0."""


class Kind(Source):
    """The event type, or the user's own names for some."""

    values: dict[str, EventTypeName] | None = None

    @model_validator(mode="after")
    def _known_constant(self) -> Kind:
        if self.constant is not None and self.constant not in EventType.__members__:
            raise ValueError(f"{self.constant!r} is no event type; there are: {', '.join(EventType.__members__)}")
        return self


TextField = Annotated[Text, BeforeValidator(_from_column)]
TimeField = Annotated[Time, BeforeValidator(_from_column)]
NumberField = Annotated[Number, BeforeValidator(_from_column)]
MoneyField = Annotated[Money, BeforeValidator(_from_column)]
TagsField = Annotated[Tags, BeforeValidator(_from_column)]
FlagField = Annotated[Flag, BeforeValidator(_from_column)]
KindField = Annotated[Kind, BeforeValidator(_from_column)]


class EventFields(_Strict):
    """Fields of an event (docs/events.md)."""

    user_id: TextField
    item_id: TextField
    event_type: KindField
    event_timestamp: TimeField
    event_id: TextField | None = None
    value: MoneyField | None = None
    quantity: NumberField | None = None
    received_at: TimeField | None = None
    session_id: TextField | None = None
    request_id: TextField | None = None
    rank: NumberField | None = None
    context: TextField | None = None
    category: TextField | None = None
    price: MoneyField | None = None


class ItemFields(_Strict):
    """Fields of an item (docs/events.md)."""

    item_id: TextField
    title: TextField | None = None
    category: TextField | None = None
    price: MoneyField | None = None
    created_at: TimeField | None = None
    tags: TagsField | None = None
    description: TextField | None = None
    image: TextField | None = None
    available: FlagField | None = None


class _File(_Strict):
    """A file and how to read it."""

    file: str
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    encoding: Annotated[str, AfterValidator(_encoding)] = "utf-8"
    decimal: Literal[".", ","] = "."
    #: Cells that mean "nothing", beside empty ones.
    empty: Names = []


class EventFile(_File):
    """A file of events."""

    fields: EventFields


class ItemFile(_File):
    """A file of items; where an item has several lines, the first that says something counts, field by field."""

    fields: ItemFields


class MappingSpec(_Strict):
    """A whole mapping."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    target: EventTypeName = "purchase"
    repeats: Repeats = "keep"
    events: Annotated[list[EventFile], BeforeValidator(lambda value: [value] if isinstance(value, dict) else value)]
    items: ItemFile | None = None
