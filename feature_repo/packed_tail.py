"""Strings and lists in the tail of a packed row, and the two views made of them: recent events and catalogue. PURE."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.packed_row import (
    Foreign,
    ForeignRowError,
    Layout,
    PackedRows,
    Table,
    pack_table,
    read_rows,
    unpack_table,
)
from feature_repo.rows import I64, RecentEvents
from feature_repo.views import CATALOG_FIELDS, CATALOG_VIEW, NULL_INT, RECENT_EVENTS, RECENT_FIELDS, RECENT_VIEW

#: NumPy type of the elements of a list of numbers, as stored.
ELEMENTS: Final = {
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
    tuple(zip(CATALOG_FIELDS, ("string", "string", "int64", "int64", "int64", "int64"), strict=True)),
)


def encode_strings(values: Sequence[str]) -> bytes:
    """Encode a list of strings: count, length of each in bytes, UTF-8 text."""
    data = [value.encode() for value in values]
    return b"".join([struct.pack(f"<{len(data) + 1}I", len(data), *map(len, data)), *data])


def decode_strings(data: bytes) -> list[str]:
    """Decode what `encode_strings` made.

    Raises
    ------
    ValueError
        If the data are damaged.
    """
    lengths, raw = _string_parts(data)
    text = raw.decode()
    if len(text) == len(raw):  # all ASCII: byte offsets are character offsets
        return [text[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]
    return [part.decode() for part in split_strings(data)]


def split_strings(data: bytes) -> list[bytes]:
    """Split what `encode_strings` made into the texts' bytes.

    Raises
    ------
    ValueError
        If the data are damaged.
    """
    lengths, raw = _string_parts(data)
    return [raw[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]


def _string_parts(data: bytes) -> tuple[tuple[int, ...], bytes]:
    """Return the lengths and the text of an encoded list of strings."""
    count = int.from_bytes(data[:4], "little")
    if len(data) < 4 + 4 * count:
        raise ValueError("a list of strings is cut off")
    lengths, raw = struct.unpack_from(f"<{count}I", data, 4), data[4 + 4 * count :]
    if sum(lengths) != len(raw):
        raise ValueError("the lengths of a list of strings do not fit its text")
    return lengths, raw


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
    dtype = np.dtype(ELEMENTS[kind])
    return lambda values: np.asarray(values, dtype).tobytes(), lambda data: np.frombuffer(data, dtype)


def pack_recent(rows: Sequence[RecentEvents]) -> list[bytes]:
    """Pack the recent events of users; the feature time of a row is the time of its newest event."""
    time = np.array([row.times[-1] if len(row.times) else NULL_INT for row in rows], dtype=np.int64)
    tails: list[list[bytes | None]] = [
        [encode_strings(row.item_ids) for row in rows],
        [row.types.astype("<i1").tobytes() for row in rows],
        [row.times.astype("<i8").tobytes() for row in rows],
    ]
    return _pack_recent(time, np.array([row.seq for row in rows], dtype=np.int64), tails)


def _pack_recent(time: I64, seq: I64, tails: list[list[bytes | None]]) -> list[bytes]:
    n = len(time)
    ints, floats = np.empty((n, 0), np.int64), np.empty((n, 0), np.float64)
    nothing = np.zeros((n, len(RECENT_FIELDS)), dtype=np.bool_)
    return pack_table(Table(RECENT_LAYOUT, time, seq, ints, floats, nothing, tails, np.ones(n, np.bool_)))


def unpack_recent(values: Sequence[bytes | None], *, foreign: Foreign = "raise") -> list[RecentEvents | None]:
    """Unpack recent events; None where there is no row (or, on demand, a foreign one)."""
    return recent_events(read_rows(RECENT_LAYOUT, values, foreign=foreign), foreign=foreign)


def recent_events(rows: PackedRows, *, foreign: Foreign = "raise") -> list[RecentEvents | None]:
    """Decode rows of `RECENT_LAYOUT`; None where there is no row (or, on demand, a damaged one)."""
    events: list[RecentEvents | None] = []
    for present, seq, *tails in zip(rows.present.tolist(), rows.seq.tolist(), *rows.tails, strict=True):
        try:
            events.append(_recent(seq, *tails) if present else None)
        except ValueError as error:
            if foreign == "raise":
                raise ForeignRowError(f"a stored row of {RECENT_VIEW} (seq {seq}) is damaged: {error}") from error
            events.append(None)
    return events


def _recent(seq: int, items: bytes | None, types: bytes | None, times: bytes | None) -> RecentEvents:
    if items is None or types is None or times is None:
        raise ValueError("a list is null")
    recent = RecentEvents(decode_strings(items), np.frombuffer(types, "<i1"), np.frombuffer(times, "<i8"), seq)
    if not len(recent.item_ids) == len(recent.types) == len(recent.times):
        raise ValueError("its lists differ in length")
    return recent


def pack_recent_runs(items: pa.StringArray, types: bytes, times: I64, seqs: I64, starts: I64) -> list[bytes]:
    """Pack the recent events of many users that stand one after the other, each user's in `seq` order.

    Parameters
    ----------
    items
        Items of all events, length m, without nulls.
    types
        Event type codes, one byte each.
    times, seqs
        Feature times (µs) and `seq`, shapes (m,).
    starts
        Where each user's events begin, shape (n,); at most `RECENT_EVENTS` events each.
    """
    offsets, text = _text_of(items)
    lengths, moments = np.diff(offsets).astype("<u4").tobytes(), times.astype("<i8").tobytes()
    ends = np.append(starts[1:], len(items))
    tails: list[list[bytes | None]] = [[], [], []]
    cuts = zip(starts.tolist(), ends.tolist(), offsets[starts].tolist(), offsets[ends].tolist(), strict=True)
    for start, end, first, last in cuts:
        tails[0].append((end - start).to_bytes(4, "little") + lengths[4 * start : 4 * end] + text[first:last])
        tails[1].append(types[start:end])
        tails[2].append(moments[8 * start : 8 * end])
    return _pack_recent(times[ends - 1], seqs[ends - 1], tails)


def append_recent(
    rows: Sequence[bytes | None],
    owners: I64,
    item_ids: pa.StringArray,
    types: npt.NDArray[np.int8],
    times: I64,
    seqs: I64,
) -> list[bytes]:
    """Append events to packed rows of recent events, dropping the oldest over `RECENT_EVENTS`.

    Works on the bytes of the lists, as ingest does this for every user of a micro-batch. An event that its row already
    holds (by `seq`) is skipped.

    Parameters
    ----------
    rows
        One row per user as stored, None if there is none.
    owners, item_ids, types, times, seqs
        One entry per event, in `seq` order: the index of its row, the item, type code, feature time (µs), `seq`.
        Every row must own an event.

    Raises
    ------
    ForeignRowError
        If a row has another layout, or lists of different length.
    """
    table = unpack_table(RECENT_LAYOUT, rows)
    newest, held = np.where(table.present, table.time, 0), np.where(table.present, table.seq, 0)
    new = np.flatnonzero(seqs > held[owners])
    order = new[np.argsort(owners[new], kind="stable")]  # each user's events together, in seq order
    sorted_owners = owners[order]
    bounds = np.searchsorted(sorted_owners, np.arange(len(rows) + 1))
    last = order[np.maximum(bounds[1:] - 1, 0)] if len(order) else np.zeros(len(rows), np.int64)
    appends = bounds[1:] > bounds[:-1]
    newest, held = np.where(appends, times[last], newest), np.where(appends, seqs[last], held)
    offsets, text = _text_of(item_ids.take(pa.array(order)))
    lengths, ends, cuts = np.diff(offsets).astype("<u4").tobytes(), offsets[bounds].tolist(), bounds.tolist()
    codes, moments = types[order].astype("<i1").tobytes(), times[order].astype("<i8").tobytes()
    tails: list[list[bytes | None]] = [[], [], []]
    for n, lists in enumerate(zip(*table.tails, strict=True)):
        strings, kinds, instants = lists[0] or b"\0\0\0\0", lists[1] or b"", lists[2] or b""
        start, end, old = cuts[n], cuts[n + 1], int.from_bytes(strings[:4], "little")
        if len(kinds) != old or len(instants) != 8 * old or len(strings) < 4 + 4 * old:
            raise ForeignRowError(f"a stored row of {RECENT_VIEW} (seq {table.seq[n]}) is damaged: its lists differ")
        sizes = strings[4 : 4 + 4 * old] + lengths[4 * start : 4 * end]
        words = strings[4 + 4 * old :] + text[ends[n] : ends[n + 1]]
        gone = old + end - start - RECENT_EVENTS
        if gone > 0:
            words = words[sum(struct.unpack_from(f"<{gone}I", sizes)) :]
            sizes = sizes[4 * gone :]
        tails[0].append((len(sizes) // 4).to_bytes(4, "little") + sizes + words)
        tails[1].append((kinds + codes[start:end])[-RECENT_EVENTS:])
        tails[2].append((instants + moments[8 * start : 8 * end])[-8 * RECENT_EVENTS :])
    return _pack_recent(newest, held, tails)


def _text_of(texts: pa.StringArray) -> tuple[I64, bytes]:
    """Return where each text begins (and the last one ends) in bytes, shape (n + 1,), and the UTF-8 of all."""
    _, offset_buffer, text_buffer = texts.buffers()
    offsets = np.frombuffer(offset_buffer, "<i4")[texts.offset : texts.offset + len(texts) + 1]
    return offsets.astype(np.int64), text_buffer.to_pybytes() if text_buffer is not None else b""


@dataclass(frozen=True, slots=True)
class CatalogItem:
    """What an item is; money in minor units, `created_at` in µs since the epoch (UTC).

    Where it was read from a row, `seq` is that of the change that made it so (0: as imported); it is no part of what
    the item is.
    """

    item_id: str
    title: str | None = None
    category: str | None = None
    price: int | None = None
    created_at: int | None = None
    available: bool = True
    blocked: bool = False
    seq: int = field(default=0, compare=False)


def pack_catalog(items: Sequence[CatalogItem], time: I64, seq: I64 | None = None) -> list[bytes]:
    """Pack catalogue rows.

    Parameters
    ----------
    time
        When each was learned (µs), shape (n,).
    seq
        The change that made each what it is, shape (n,); None: they are the imported catalogue.
    """
    n = len(items)
    numbers = [[item.price, item.created_at, int(item.available), int(item.blocked)] for item in items]
    ints = np.array([[NULL_INT if v is None else v for v in row] for row in numbers], dtype=np.int64).reshape(n, 4)
    tails = [[_utf8(item.title) for item in items], [_utf8(item.category) for item in items]]
    missing = np.array([[v is None for v in column] for column in tails], dtype=np.bool_).reshape(2, n).T
    nulls = np.concatenate([ints == NULL_INT, missing], axis=1)
    seqs, floats = np.zeros(n, dtype=np.int64) if seq is None else seq, np.empty((n, 0))
    return pack_table(Table(CATALOG_LAYOUT, time, seqs, ints, floats, nulls, tails, np.ones(n, np.bool_)))


def unpack_catalog(
    item_ids: Sequence[str], values: Sequence[bytes | None], *, foreign: Foreign = "raise"
) -> list[CatalogItem | None]:
    """Unpack catalogue rows, one per item; None where the catalogue does not know the item."""
    return catalog_items(item_ids, read_rows(CATALOG_LAYOUT, values, foreign=foreign), foreign=foreign)


def catalog_items(item_ids: Sequence[str], rows: PackedRows, *, foreign: Foreign = "raise") -> list[CatalogItem | None]:
    """Decode rows of `CATALOG_LAYOUT`, one per item; None where there is no row (or, on demand, a damaged one)."""
    return [None if row is None else row[0] for row in _catalog_rows(item_ids, rows, foreign)]


def unpack_catalog_rows(
    item_ids: Sequence[str], values: Sequence[bytes | None], *, foreign: Foreign = "raise"
) -> list[tuple[CatalogItem, int, int] | None]:
    """Unpack catalogue rows with their time (µs) and `seq`."""
    return _catalog_rows(item_ids, read_rows(CATALOG_LAYOUT, values, foreign=foreign), foreign)


def _catalog_rows(
    item_ids: Sequence[str], rows: PackedRows, foreign: Foreign
) -> list[tuple[CatalogItem, int, int] | None]:
    found: list[tuple[CatalogItem, int, int] | None] = []
    heads = rows.present.tolist(), rows.time.tolist(), rows.seq.tolist()
    columns = zip(item_ids, *heads, *rows.tails, rows.ints.tolist(), strict=True)
    for item_id, present, at, seq, title, category, (price, made, available, blocked) in columns:
        if not present:
            found.append(None)
            continue
        try:
            names = _text(title), _text(category)
        except ValueError as error:
            if foreign == "raise":
                raise ForeignRowError(f"a stored row of {CATALOG_VIEW} ({item_id!r}) is damaged: {error}") from error
            found.append(None)
            continue
        item = CatalogItem(item_id, *names, _number(price), _number(made), available != 0, blocked != 0, seq)
        found.append((item, at, seq))
    return found


def _utf8(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode()


def _number(value: int) -> int | None:
    return None if value == NULL_INT else value
