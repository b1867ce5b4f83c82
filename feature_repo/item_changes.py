"""Changes of the catalogue: what one is, and what an item becomes by it. Worker and backfill both run this. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import pyarrow as pa
from msgspec import UNSET, UnsetType

from feature_repo.events import ITEM_CHANGE_SCHEMA
from feature_repo.packed_tail import CatalogItem

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Time = Annotated[int, msgspec.Meta(ge=0, lt=253_402_300_800_000_000)]  # µs, before the year 10000


class ItemChange(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What an entry of the stream says of one item; what it does not name stays as it is. Times in µs, UTC."""

    change_id: str
    item_id: str
    received_at: _Time
    title: str | UnsetType | None = UNSET
    category: str | UnsetType | None = UNSET
    price: _Int64 | UnsetType | None = UNSET
    created_at: _Time | UnsetType | None = UNSET
    tags: list[str] | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    image: str | UnsetType | None = UNSET
    available: bool | UnsetType = UNSET
    blocked: bool | UnsetType = UNSET


#: What a change can set, in the order of `ITEM_CHANGE_SCHEMA`.
CHANGE_FIELDS: Final = tuple(name for name in ItemChange.__struct_fields__[3:])
#: Those of them that are in the rows; the others are kept in the log only.
ROW_FIELDS: Final = ("title", "category", "price", "created_at", "available", "blocked")


class CatalogState(NamedTuple):
    """An item, when it became so (µs), and the `seq` of the change that made it so (0: the imported catalogue)."""

    item: CatalogItem
    time: int
    seq: int


def given(change: ItemChange) -> dict[str, Any]:
    """Return what a change sets, by name."""
    return {name: value for name in CHANGE_FIELDS if (value := getattr(change, name)) is not UNSET}


def changed(before: CatalogState | None, change: ItemChange, seq: int) -> CatalogState:
    """Return an item after a change.

    A change the row already holds (by `seq`) changes nothing, so that a replay is harmless. An item nobody knew before
    came into the shop with its first change, unless that says otherwise. The time never falls from change to change,
    whatever the clocks of several API processes say.
    """
    if before is None:
        before = CatalogState(CatalogItem(change.item_id, created_at=change.received_at), 0, 0)
    elif seq <= before.seq:
        return before
    set_now = {name: value for name, value in given(change).items() if name in ROW_FIELDS}
    time = max(change.received_at, before.time) if before.seq else change.received_at
    return CatalogState(replace(before.item, **set_now), time, seq)


def change_table(changes: Sequence[tuple[int, ItemChange]]) -> pa.Table:
    """Return changes and their `seq` as `ITEM_CHANGE_SCHEMA`."""
    rows = [
        {"seq": seq, "change_id": c.change_id, "item_id": c.item_id, "received_at": c.received_at}
        | {"sets": list(set_now := given(c))}
        | set_now
        for seq, c in changes
    ]
    return pa.Table.from_pylist(rows, schema=ITEM_CHANGE_SCHEMA)


def read_changes(table: pa.Table) -> Iterable[tuple[int, ItemChange]]:
    """Yield the changes of a table and their `seq`; the inverse of `change_table`."""
    times = {name: table[name].cast(pa.int64()) for name in ("received_at", "created_at")}
    for name, column in times.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    for row in table.to_pylist():
        sets = {name: row[name] for name in row["sets"]}
        yield row["seq"], ItemChange(row["change_id"], row["item_id"], row["received_at"], **sets)
