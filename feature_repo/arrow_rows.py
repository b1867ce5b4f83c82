"""Packs Arrow columns of a feature view into rows, a column at a time: what the batch engine writes.

The values are those Feast makes of the same columns: NaN is null, a time is whole seconds, a null in a list is 0 or "".
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from feast.type_map import python_values_to_proto_values

from feature_repo.errors import BadInputError
from feature_repo.packed_row import Table, pack_table
from feature_repo.packed_tail import ELEMENTS
from feature_repo.protobuf_rows import FeastView
from feature_repo.read_request import field_of
from feature_repo.row_scripts import ViewRows
from feature_repo.rows import F64, I64, Mask
from feature_repo.views import NULL_INT


def pack_arrow(table: FeatureView, columns: pa.Table, time: str) -> ViewRows:
    """Pack rows of a feature view.

    Parameters
    ----------
    table
        The feature view.
    columns
        Its join keys and features by their names, and the event time.
    time
        Name of the column with the event time.

    Raises
    ------
    BadInputError
        If an entity or an event time is null, or a column is not what the view says.
    """
    view, n = FeastView(table), columns.num_rows
    layout = view.layout
    types = {field.name: field.dtype.to_value_type() for field in table.features}
    ints = np.full((n, len(layout.ints)), NULL_INT, dtype=np.int64)
    floats = np.full((n, len(layout.floats)), np.nan)
    nulls = np.ones((n, len(layout.fields)), dtype=np.bool_)
    tails: list[list[bytes | None]] = [[None] * n for _ in layout.tails]
    try:
        when = _micros(columns[time])
        for c, name in enumerate((*layout.ints, *layout.floats, *layout.tails)):
            if name not in types:
                continue
            column, f = columns[name].combine_chunks(), c - len(layout.ints)
            if f < 0:
                ints[:, c], nulls[:, c] = _whole(column)
            elif f < len(layout.floats):
                floats[:, f], nulls[:, c] = _real(column, layout.kinds[name])
            elif (kind := layout.kinds[name]) == "value":
                protos = python_values_to_proto_values(column.to_pylist(maps_as_pydicts="strict"), types[name])
                tails[f - len(layout.floats)] = [p.SerializeToString() if p.WhichOneof("val") else None for p in protos]
            else:
                tails[f - len(layout.floats)] = _tail(column, kind)
            if f >= len(layout.floats):
                nulls[:, c] = [value is None for value in tails[f - len(layout.floats)]]
        own_time, own_seq = (name if name in types else None for name in (layout.time_field, layout.seq_field))
        seq = np.zeros(n, dtype=np.int64)
        if own_time is not None:
            values, missing = _whole(columns[own_time].combine_chunks())
            when = np.where(missing, when, values)
        if own_seq is not None:
            values, missing = _whole(columns[own_seq].combine_chunks())
            seq = np.where(missing, 0, values)
        first, *others = (_texts(columns[name]) for name in layout.entities)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, KeyError) as error:
        raise BadInputError(f"the rows of {table.name} do not fit its schema: {error}") from error
    packed = pack_table(Table(layout, when, seq, ints, floats, nulls, tails, np.ones(n, np.bool_)))
    fields = list(map(field_of, zip(*others, strict=True))) if others else None
    return ViewRows(table.name, first, packed, fields)


def event_times(columns: pa.Table, time: str) -> I64:
    """Return event times in µs.

    Raises
    ------
    BadInputError
        If one is null.
    """
    return _micros(columns[time])


def _micros(column: pa.ChunkedArray) -> I64:
    if column.null_count:
        raise BadInputError("an event time is null")
    zone = column.type.tz if pa.types.is_timestamp(column.type) else None
    micros: I64 = column.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64()).to_numpy()
    return micros


def _whole(column: pa.Array) -> tuple[I64, Mask]:
    """Return a column of integers, booleans or times and where it is null."""
    if pa.types.is_timestamp(column.type):
        column = _seconds(column)
    elif pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)  # pandas' null
    missing: Mask = column.is_null().to_numpy(zero_copy_only=False)
    values: I64 = column.cast(pa.int64()).fill_null(NULL_INT).to_numpy(zero_copy_only=False)
    return values, missing


def _seconds(column: pa.Array) -> pa.Array:
    """Return times as the whole seconds that have passed, as Feast does."""
    return pc.floor_temporal(column, unit="second").cast(pa.timestamp("s", column.type.tz)).cast(pa.int64())


def _real(column: pa.Array, kind: str) -> tuple[F64, Mask]:
    if kind == "float32":
        column = column.cast(pa.float32(), safe=False)
    values: F64 = column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
    return values, np.isnan(values)


def _tail(column: pa.Array, kind: str) -> list[bytes | None]:
    if kind in ("string", "bytes"):
        texts: list[bytes | None] = column.cast(pa.binary()).to_pylist()
        return texts
    lists = column.cast(pa.large_list(column.type.value_type))
    # A null list may hide elements, and a slice may begin after the first.
    offsets = lists.offsets.to_numpy()
    values = lists.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    cut = _strings(values) if kind == "list[string]" else _numbers(values, kind)
    places = (offsets - offsets[0]).tolist()
    missing = lists.is_null().to_numpy(zero_copy_only=False).tolist()
    return [None if null else cut(a, b) for (a, b), null in zip(pairwise(places), missing, strict=True)]


def _numbers(values: pa.Array, kind: str) -> Callable[[int, int], bytes]:
    """Return what cuts the encoded list of elements a to b out of all."""
    dtype = np.dtype(ELEMENTS[kind])
    if pa.types.is_timestamp(values.type):
        values = _seconds(values)
    elements = values.fill_null(False if pa.types.is_boolean(values.type) else 0).to_numpy(zero_copy_only=False)
    data, size = elements.astype(dtype).tobytes(), dtype.itemsize
    return lambda a, b: data[size * a : size * b]


def _strings(values: pa.Array) -> Callable[[int, int], bytes]:
    texts = values.cast(pa.large_string()).fill_null("").cast(pa.large_binary())
    _, offset_buffer, text_buffer = texts.buffers()
    data = text_buffer.to_pybytes() if text_buffer is not None else b""
    offsets = np.frombuffer(offset_buffer, "<i8")[texts.offset : texts.offset + len(texts) + 1]
    lengths, ends = np.diff(offsets).astype("<u4").tobytes(), offsets.tolist()
    return lambda a, b: (b - a).to_bytes(4, "little") + lengths[4 * a : 4 * b] + data[ends[a] : ends[b]]


def _texts(column: pa.ChunkedArray) -> list[str]:
    """Return entities as they stand in keys, as Feast's write path makes them."""
    if column.null_count:
        raise BadInputError("an entity is null")
    if pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts: list[str] = column.cast(pa.string()).to_pylist()
        return texts
    return [value.hex() if isinstance(value, bytes) else str(_whole_seconds(value)) for value in column.to_pylist()]


def _whole_seconds(value: Any) -> Any:
    return int(value.timestamp()) if hasattr(value, "timestamp") else value
