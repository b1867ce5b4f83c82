"""Turns Feast's rows (protobuf values by name) into packed rows and back, for any feature view Feast hands us.

Views of ours keep their layout (views.py); any other view gets one from its schema. Numbers, booleans and timestamps
are columns; strings, bytes and lists are tails; a type that has no kind of its own is kept as its protobuf bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from feast import FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType

from feature_repo.errors import BadInputError
from feature_repo.offline_store import MAX_AGE_TAG
from feature_repo.packed_row import FLOAT_KINDS, INT_KINDS, Layout, Table, layout_of, pack_table, unpack_table
from feature_repo.packed_tail import CATALOG_LAYOUT, RECENT_LAYOUT, tail_codec
from feature_repo.views import NULL_INT, VIEWS

#: One row as Feast writes it: entity key, values by feature name, event time, created time.
FeastRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
#: One row as Feast reads it; (None, None) where there is none.
ReadRow = tuple[datetime | None, dict[str, Value] | None]

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
        self._values = {name: value for name, (_, value) in fields.items()}
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
        self.max_age_us = int(table.tags[MAX_AGE_TAG]) if MAX_AGE_TAG in table.tags else None

    def entities(self, key: EntityKey) -> tuple[str, str | None]:
        """Return the first entity, which names the key, and the others, which name the field of its hash."""
        values = dict(zip(key.join_keys, key.entity_values, strict=True))
        first, *others = (_entity_text(values[name]) for name in self.layout.entities)
        if len(others) > 1:
            return first, "".join(f"{len(text)}:{text}" for text in others)
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

    def unpack(self, values: Sequence[bytes | None], features: Sequence[str], oldest_us: int | None) -> list[ReadRow]:
        """Unpack rows into Feast's values.

        Parameters
        ----------
        values
            Rows as stored.
        features
            Names of the features wanted.
        oldest_us
            Rows of an earlier feature time count as missing (see `rows.within_max_age`); None for no limit.

        Raises
        ------
        ForeignRowError
            If a row has another layout.
        """
        table = unpack_table(self.layout, values)
        columns = {name: self._column(table, name) for name in features}
        # Offline a row of the fold is valid one µs after its feature time; the event time is to be the same here.
        later = 1 if self.layout.time_field else 0
        return [
            (_EPOCH + (time + later) * _MICROSECOND, {name: column[r] for name, column in columns.items()})
            if present and (oldest_us is None or time >= oldest_us)
            else (None, None)
            for r, (present, time) in enumerate(zip(table.present.tolist(), table.time.tolist(), strict=True))
        ]

    def _column(self, table: Table, name: str) -> list[Value]:
        """Return one feature of all rows as protobuf values; nulls are empty values."""
        layout, field = self.layout, self._values[name]
        if name in (layout.time_field, layout.seq_field):
            header = table.time if name == layout.time_field else table.seq
            return [Value(int64_val=value) for value in header.tolist()]
        order = (*layout.ints, *layout.floats, *layout.tails)
        nulls = table.nulls[:, order.index(name)].tolist()
        values: list[Any]
        if name in layout.ints:
            values = table.ints[:, layout.ints.index(name)].tolist()
        elif name in layout.floats:
            values = table.floats[:, layout.floats.index(name)].tolist()
        else:
            decode = tail_codec(layout.kinds[name])[1]
            tail = table.tails[layout.tails.index(name)]
            values = [None if data is None else decode(data) for data in tail]
        return [Value() if null else _proto(field, value) for value, null in zip(values, nulls, strict=True)]


def _plain(value: Value, kind: str) -> Any:
    """Return what a protobuf value holds, None where null."""
    which = value.WhichOneof("val")
    if which is None or which == "null_val":
        return None
    if kind == "value":
        return value.SerializeToString()
    inner = getattr(value, which)
    return list(inner.val) if kind.startswith("list[") else inner


def _proto(field: str, value: Any) -> Value:
    proto = Value()
    if not field:
        proto.ParseFromString(value)
        return proto
    if field.endswith("_list_val"):
        target = getattr(proto, field)
        target.SetInParent()  # an empty list is not null
        target.val.extend(value.tolist() if isinstance(value, np.ndarray) else value)
        return proto
    setattr(proto, field, bool(value) if field == "bool_val" else value)
    return proto


def _entity_text(value: Value) -> str:
    inner = getattr(value, value.WhichOneof("val") or "string_val")
    return inner.hex() if isinstance(inner, bytes) else str(inner)


def _micros(when: datetime) -> int:
    aware = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return (aware - _EPOCH) // _MICROSECOND
