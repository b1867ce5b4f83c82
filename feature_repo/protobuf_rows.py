"""Turns Feast's rows (protobuf values by name) into packed rows and back, for any feature view Feast hands us.

Views of ours keep their layout (views.py); any other view gets one from its schema. Numbers, booleans and timestamps
are columns; strings, bytes and lists are tails; a type that has no kind of its own is kept as its protobuf bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from feast import FeatureView
from feast.metrics import track_feature_statuses
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # its stubs are no dependency

from feature_repo.errors import BadInputError
from feature_repo.offline_store import MAX_AGE_TAG
from feature_repo.packed_row import (
    FLOAT_KINDS,
    INT_KINDS,
    ForeignRowError,
    Layout,
    PackedRows,
    Table,
    layout_of,
    pack_table,
)
from feature_repo.packed_tail import CATALOG_LAYOUT, RECENT_LAYOUT, split_strings, tail_codec
from feature_repo.protobuf_wire import (
    field,
    float_values,
    int_values,
    message_values,
    packed_varints,
    statuses,
    timestamps,
)
from feature_repo.read_request import field_of
from feature_repo.rows import I64
from feature_repo.views import NULL_INT, VIEWS

#: One row as Feast writes it: entity key, values by feature name, event time, created time.
FeastRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
#: One row as Feast reads it; (None, None) where there is none.
ReadRow = tuple[datetime | None, dict[str, Value] | None]

FeatureVector: Final = GetOnlineFeaturesResponse.FeatureVector
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

#: Kind in the packed row and field of the protobuf, by Feast's type.
_KINDS: Final = {
    ValueType.INT64: ("int64", "int64_val"),
    ValueType.INT32: ("int32", "int32_val"),
    ValueType.BOOL: ("bool", "bool_val"),
    ValueType.UNIX_TIMESTAMP: ("unix_timestamp", "unix_timestamp_val"),
    ValueType.DOUBLE: ("float64", "double_val"),
    ValueType.FLOAT: ("float32", "float_val"),
    ValueType.STRING: ("string", "string_val"),
    ValueType.BYTES: ("bytes", "bytes_val"),
    ValueType.STRING_LIST: ("list[string]", "string_list_val"),
    ValueType.INT64_LIST: ("list[int64]", "int64_list_val"),
    ValueType.INT32_LIST: ("list[int32]", "int32_list_val"),
    ValueType.BOOL_LIST: ("list[bool]", "bool_list_val"),
    ValueType.UNIX_TIMESTAMP_LIST: ("list[unix_timestamp]", "unix_timestamp_list_val"),
    ValueType.DOUBLE_LIST: ("list[float64]", "double_list_val"),
    ValueType.FLOAT_LIST: ("list[float32]", "float_list_val"),
}
_OTHER: Final = ("value", "")
_NUMBERS: Final = {one.name: one.number for one in Value.DESCRIPTOR.fields}
_DOUBLE, _FLOAT = _NUMBERS["double_val"], _NUMBERS["float_val"]
_RESULTS: Final = GetOnlineFeaturesResponse.DESCRIPTOR.fields_by_name["results"].number
_OURS: Final = {view.name: layout_of(view) for view in VIEWS.values()} | {
    layout.name: layout for layout in (RECENT_LAYOUT, CATALOG_LAYOUT)
}


def is_ours(view: str) -> bool:
    """Whether a view is one of views.py, written by ingest and materialise."""
    return view in _OURS


def _sort_of(kind: str) -> str:
    """Return what two kinds must share to be exchanged: int, float, or the same sort of tail."""
    if kind in INT_KINDS:
        return "int"
    if kind in FLOAT_KINDS:
        return "float"
    return "list of int" if kind.startswith("list[int") else kind


class FeastView:
    """How a feature view of Feast is kept in packed rows.

    Raises
    ------
    BadInputError
        If a view has the name of one of ours, but a feature our layout does not have (or of another type).
    """

    def __init__(self, table: FeatureView) -> None:
        self.name: str = table.name
        fields = {field.name: _KINDS.get(field.dtype.to_value_type(), _OTHER) for field in table.features}
        self._numbers = {name: _NUMBERS.get(value, 0) for name, (_, value) in fields.items()}
        self.layout = _OURS.get(table.name) or Layout(
            table.name, tuple(table.join_keys), tuple((name, kind) for name, (kind, _) in fields.items())
        )
        head = {name: "int64" for name in (self.layout.time_field, self.layout.seq_field) if name}
        kinds = self.layout.kinds | head
        for name, (kind, _) in fields.items():
            if _sort_of(kinds.get(name, "")) != _sort_of(kind):
                raise BadInputError(
                    f"feature {name!r} of view {table.name!r} is {kind}; the layout of that view in "
                    f"feature_repo/views.py has {kinds.get(name, 'no such column')}: make the two equal"
                )
        header = (self.layout.time_field, self.layout.seq_field)
        self._int_columns = {name: c for c, name in enumerate((*header, *self.layout.ints)) if name is not None}
        self._float_columns = {name: c for c, name in enumerate(self.layout.floats)}
        self.max_age_us = int(table.tags[MAX_AGE_TAG]) if MAX_AGE_TAG in table.tags else None

    def entities(self, key: EntityKey) -> tuple[str, str | None]:
        """Return the first entity, which names the key, and the others, which name the field of its hash."""
        values = dict(zip(key.join_keys, key.entity_values, strict=True))
        first, *others = (_entity_text(values[name]) for name in self.layout.entities)
        return first, field_of(others) if others else None

    def entity_columns(self, values: Mapping[str, Sequence[Value]]) -> tuple[list[str], list[str] | None]:
        """Return the same as `entities`, as columns: `values` by join key.

        Raises
        ------
        BadInputError
            If a join key is missing or null.
        """
        columns = []
        for name in self.layout.entities:
            if name not in values:
                raise BadInputError(
                    f"view {self.name!r} is read by {', '.join(self.layout.entities)}; {name} is missing"
                )
            columns.append(_entity_texts(name, values[name]))
        first, *others = columns
        if len(others) > 1:
            return first, list(map(field_of, zip(*others, strict=True)))
        return first, others[0] if others else None

    def pack(self, rows: Sequence[FeastRow]) -> list[bytes]:
        """Pack rows. Feature time and `seq` are the view's own columns if it has them, else event time and 0."""
        layout, n = self.layout, len(rows)
        nulls = np.zeros((n, len(layout.fields)), dtype=np.bool_)
        ints = np.full((n, len(layout.ints)), NULL_INT, dtype=np.int64)
        floats = np.full((n, len(layout.floats)), np.nan)
        tails: list[list[bytes | None]] = [[None] * n for _ in layout.tails]
        codecs = [tail_codec(layout.kinds[name])[0] for name in layout.tails]
        time, seq = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        for r, (_, values, when, _) in enumerate(rows):
            plain = {name: _plain(value, layout.kinds.get(name, "int64")) for name, value in values.items()}
            own_time, own_seq = plain.get(layout.time_field or ""), plain.get(layout.seq_field or "")
            time[r] = _micros(when) if own_time is None else own_time
            seq[r] = own_seq or 0
            for c, name in enumerate((*layout.ints, *layout.floats, *layout.tails)):
                value, f = plain.get(name), c - len(layout.ints)
                if value is None:
                    nulls[r, c] = True
                elif f < 0:
                    ints[r, c] = value
                elif f < len(layout.floats):
                    floats[r, f] = value
                else:
                    tails[f - len(layout.floats)][r] = codecs[f - len(layout.floats)](value)
        return pack_table(Table(layout, time, seq, ints, floats, nulls, tails, np.ones(n, np.bool_)))

    def columns(self, rows: PackedRows, features: Sequence[str]) -> list[bytes]:
        """Encode features as the `values` of a `FeatureVector` each, in the order asked for; nulls are empty values.

        Raises
        ------
        ForeignRowError
            If a list of strings is damaged.
        """
        layout, n = self.layout, len(rows)
        encoded: dict[str, bytes] = {}
        ints = [name for name in features if name in self._int_columns]
        if ints:
            every = np.concatenate([rows.time[:, None], rows.seq[:, None], rows.ints], axis=1)
            nulls = np.concatenate(
                [np.broadcast_to(~rows.present[:, None], (n, 2)), rows.nulls[:, : len(layout.ints)]], 1
            )
            which = [self._int_columns[name] for name in ints]
            numbers = [self._numbers[name] for name in ints]
            encoded |= zip(ints, int_values(every[:, which], nulls[:, which], numbers), strict=True)
        base = len(layout.ints)
        for number in (_DOUBLE, _FLOAT):
            floats = [name for name in features if name in self._float_columns and self._numbers[name] == number]
            if floats:
                which = [self._float_columns[name] for name in floats]
                nulls = rows.nulls[:, [base + column for column in which]]
                columns = float_values(rows.floats[:, which], nulls, number, single=number == _FLOAT)
                encoded |= zip(floats, columns, strict=True)
        for name in set(features).difference(encoded):
            encode = _tail_message(layout.kinds[name], self._numbers[name])
            encoded[name] = message_values([None if data is None else encode(data) for data in rows.tail(name)])
        return [encoded[name] for name in features]

    def event_times(self, rows: PackedRows) -> I64:
        """Event times of rows (µs), shape (n,).

        Offline a row of the fold is valid one µs after its feature time; the event time is to be the same here.
        """
        return rows.time + (1 if self.layout.time_field else 0)

    def unpack(self, rows: PackedRows, features: Sequence[str]) -> list[ReadRow]:
        """Return rows as Feast's values, in the order given; (None, None) for missing ones."""
        vectors = [_parsed(FeatureVector(), data, self.name).values for data in self.columns(rows, features)]
        return [
            (_EPOCH + time * _MICROSECOND, {name: vector[r] for name, vector in zip(features, vectors, strict=True)})
            if present
            else (None, None)
            for r, (present, time) in enumerate(
                zip(rows.present.tolist(), self.event_times(rows).tolist(), strict=True)
            )
        ]

    def fill(self, response: GetOnlineFeaturesResponse, rows: PackedRows, features: Sequence[str], n: int) -> None:
        """Append features to Feast's response, as Feast itself would from `unpack`.

        Parameters
        ----------
        rows
            One per row of the response, or a single one for all.
        features
            Their names in the view.
        n
            Rows of the response.
        """
        times = timestamps(self.event_times(rows), rows.present)
        present = rows.present
        columns = self.columns(rows, features)
        if len(rows) != n:
            times, present = times * n, np.repeat(present, n)
            columns = [column * n for column in columns]
        rest = statuses(present, FieldStatus.PRESENT, FieldStatus.NOT_FOUND) + times
        data = b"".join(field(_RESULTS, column + rest) for column in columns)
        _parsed(response, data, self.name)
        found = int(np.count_nonzero(present)) * len(features)
        track_feature_statuses(self.name, found, n * len(features) - found)


def _parsed(message: Any, data: bytes, view: str) -> Any:
    try:
        message.MergeFromString(data)
    except DecodeError as error:
        raise ForeignRowError(f"a stored row of {view} is damaged: {error}") from error
    return message


def _plain(value: Value, kind: str) -> Any:
    """Return what a protobuf value holds, None where null."""
    which = value.WhichOneof("val")
    if which is None or which == "null_val":
        return None
    if kind == "value":
        return value.SerializeToString()
    inner = getattr(value, which)
    return list(inner.val) if kind.startswith("list[") else inner


def _tail_message(kind: str, number: int) -> Callable[[bytes], bytes]:
    """Return what turns a stored tail into the content of a `Value`."""
    if kind == "value":
        return lambda data: data
    if not kind.startswith("list["):
        return lambda data: field(number, data)
    if kind == "list[string]":
        return lambda data: field(number, b"".join(field(1, text) for text in _texts(data)))
    if kind in ("list[float64]", "list[float32]", "list[bool]"):  # stored as on the wire
        return lambda data: field(number, field(1, data) if data else b"")
    decode = tail_codec(kind)[1]
    return lambda data: field(number, field(1, packed_varints(decode(data).astype(np.int64))) if data else b"")


def _texts(data: bytes) -> list[bytes]:
    try:
        return split_strings(data)
    except ValueError as error:
        raise ForeignRowError(f"a stored list of strings is damaged: {error}") from error


def _entity_text(value: Value) -> str:
    inner = getattr(value, value.WhichOneof("val") or "string_val")
    return inner.hex() if isinstance(inner, bytes) else str(inner)


def _entity_texts(name: str, values: Sequence[Value]) -> list[str]:
    texts = [value.string_val for value in values]
    if "" not in texts:
        return texts  # all of them strings, as nearly always
    if any(value.WhichOneof("val") is None for value in values):
        raise BadInputError(f"entity {name} is null; give every row a value")
    return [_entity_text(value) for value in values]


def _micros(when: datetime) -> int:
    aware = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return (aware - _EPOCH) // _MICROSECOND
