"""Strings and lists in the tail of a packed row, and the two views made of them: recent events and catalogue. PURE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from feature_repo.packed_row import Foreign, ForeignRowError, Layout, Table, pack_table, unpack_table
from feature_repo.rows import I64, RecentEvents
from feature_repo.views import CATALOG_FIELDS, CATALOG_VIEW, NULL_INT, RECENT_FIELDS, RECENT_VIEW

#: NumPy type of the elements of a list of numbers, as stored.
_ELEMENTS: Final = {
    "list[int8]": "<i1",
    "list[int32]": "<i4",
    "list[int64]": "<i8",
    "list[unix_timestamp]": "<i8",
    "list[bool]": "|b1",
    "list[float32]": "<f4",
    "list[float64]": "<f8",
}

RECENT_LAYOUT: Final = Layout(
    RECENT_VIEW,
    ("user_id",),
    tuple(zip(RECENT_FIELDS, ("list[string]", "list[int8]", "list[int64]"), strict=True)),
)
CATALOG_LAYOUT: Final = Layout(
    CATALOG_VIEW,
    ("item_id",),
    tuple(zip(CATALOG_FIELDS, ("string", "string", "int64", "int64", "bool"), strict=True)),
)


def encode_strings(values: Sequence[str]) -> bytes:
    """Encode a list of strings: count, end offset of each, UTF-8 text."""
    data = [value.encode() for value in values]
    ends = np.cumsum([len(values), *map(len, data)], dtype="<u4")
    ends[1:] -= len(values)
    return ends.astype("<u4").tobytes() + b"".join(data)


def decode_strings(data: bytes) -> list[str]:
    """Decode what `encode_strings` made."""
    count = int.from_bytes(data[:4], "little")
    ends = np.frombuffer(data, "<u4", count, 4).tolist()
    raw = data[4 + 4 * count :]
    starts = [0, *ends[:-1]]
    text = raw.decode()
    if len(text) == len(raw):  # all ASCII: byte offsets are character offsets
        return [text[start:end] for start, end in zip(starts, ends, strict=False)]
    return [raw[start:end].decode() for start, end in zip(starts, ends, strict=False)]


def tail_codec(kind: str) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """Return encoder and decoder of a tail kind.

    Raises
    ------
    KeyError
        For a kind that is none.
    """
    if kind == "string":
        return str.encode, bytes.decode
    if kind in ("bytes", "value"):  # "value": a serialised protobuf of a type that has no kind of its own
        return bytes, bytes
    if kind == "list[string]":
        return encode_strings, decode_strings
    dtype = np.dtype(_ELEMENTS[kind])
    return lambda values: np.asarray(values, dtype).tobytes(), lambda data: np.frombuffer(data, dtype)


def pack_recent(rows: Sequence[RecentEvents]) -> list[bytes]:
    """Pack the recent events of users; the feature time of a row is the time of its newest event."""
    n = len(rows)
    time = np.array([row.times[-1] if len(row.times) else NULL_INT for row in rows], dtype=np.int64)
    tails: list[list[bytes | None]] = [
        [encode_strings(row.item_ids) for row in rows],
        [row.types.astype("<i1").tobytes() for row in rows],
        [row.times.astype("<i8").tobytes() for row in rows],
    ]
    seq = np.array([row.seq for row in rows], dtype=np.int64)
    nothing = np.zeros((n, len(RECENT_FIELDS)), dtype=np.bool_)
    empty = np.empty((n, 0), dtype=np.int64)
    return pack_table(Table(RECENT_LAYOUT, time, seq, empty, empty.astype(float), nothing, tails, np.ones(n, np.bool_)))


def unpack_recent(values: Sequence[bytes | None], *, foreign: Foreign = "raise") -> list[RecentEvents | None]:
    """Unpack recent events; None where there is no row (or, on demand, a foreign one)."""
    table = unpack_table(RECENT_LAYOUT, values, foreign=foreign)
    rows: list[RecentEvents | None] = []
    for present, seq, *tails in zip(table.present.tolist(), table.seq.tolist(), *table.tails, strict=True):
        try:
            rows.append(_recent(seq, *tails) if present else None)
        except ValueError as error:
            if foreign == "raise":
                raise ForeignRowError(f"a stored row of {RECENT_VIEW} (seq {seq}) is damaged: {error}") from error
            rows.append(None)
    return rows


def _recent(seq: int, items: bytes | None, types: bytes | None, times: bytes | None) -> RecentEvents:
    if items is None or types is None or times is None:
        raise ValueError("a list is null")
    recent = RecentEvents(decode_strings(items), np.frombuffer(types, "<i1"), np.frombuffer(times, "<i8"), seq)
    if not len(recent.item_ids) == len(recent.types) == len(recent.times):
        raise ValueError("its lists differ in length")
    return recent


@dataclass(frozen=True, slots=True)
class CatalogItem:
    """What an item is today; money in minor units, `created_at` in µs since the epoch (UTC)."""

    item_id: str
    title: str | None = None
    category: str | None = None
    price: int | None = None
    created_at: int | None = None
    available: bool = True


def pack_catalog(items: Sequence[CatalogItem], time: I64) -> list[bytes]:
    """Pack catalogue rows; `time` is when each was learned (µs), shape (n,)."""
    n = len(items)
    numbers = [[item.price, item.created_at, int(item.available)] for item in items]
    ints = np.array([[NULL_INT if v is None else v for v in row] for row in numbers], dtype=np.int64).reshape(n, 3)
    tails = [[_utf8(item.title) for item in items], [_utf8(item.category) for item in items]]
    missing = np.array([[v is None for v in column] for column in tails], dtype=np.bool_).reshape(2, n).T
    nulls = np.concatenate([ints == NULL_INT, missing], axis=1)
    seq, floats = np.zeros(n, dtype=np.int64), np.empty((n, 0))
    return pack_table(Table(CATALOG_LAYOUT, time, seq, ints, floats, nulls, tails, np.ones(n, np.bool_)))


def unpack_catalog(
    item_ids: Sequence[str], values: Sequence[bytes | None], *, foreign: Foreign = "raise"
) -> list[CatalogItem | None]:
    """Unpack catalogue rows, one per item; None where the catalogue does not know the item."""
    table = unpack_table(CATALOG_LAYOUT, values, foreign=foreign)
    columns = zip(item_ids, table.present.tolist(), *table.tails, table.ints.tolist(), strict=True)
    return [
        CatalogItem(item_id, _text(title), _text(category), _number(price), _number(created_at), available != 0)
        if present
        else None
        for item_id, present, title, category, (price, created_at, available) in columns
    ]


def _utf8(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode()


def _number(value: int) -> int | None:
    return None if value == NULL_INT else value
