"""The catalogue at every moment: what was imported, and every change since, as rows of `item_catalog`. PURE."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.events import TIMESTAMP
from feature_repo.item_changes import CatalogState, changed, read_changes
from feature_repo.offline_layout import CATALOG_SCHEMA, VALID_FROM
from feature_repo.packed_tail import CatalogItem
from feature_repo.views import CATALOG_FIELDS


def catalog_table(items: pa.Table, first_time: int) -> pa.Table:
    """Return the catalogue (`ITEM_SCHEMA`) as rows of `item_catalog`.

    An item is known from its creation on; where that is not known, from `first_time` (µs), the start of history.
    """
    created = items["created_at"].cast(pa.int64())
    known = pc.fill_null(created, first_time).cast(TIMESTAMP)
    zero = pa.repeat(pa.scalar(0, pa.int64()), items.num_rows)
    columns = [items["item_id"], known, zero, items["title"], items["category"], items["price"], created]
    return pa.table([*columns, items["available"].cast(pa.int64()), zero], schema=CATALOG_SCHEMA)


def catalog_history(items: pa.Table, changes: pa.Table, first_time: int) -> pa.Table:
    """Return the rows of `item_catalog`, each valid from the moment it was known.

    Parameters
    ----------
    items
        The imported catalogue (`ITEM_SCHEMA`): what stood before the first change.
    changes
        `ITEM_CHANGE_SCHEMA`, in `seq` order.
    first_time
        Start of history (µs), from which imported items without a time of creation are known.

    Returns
    -------
    pa.Table
        `CATALOG_SCHEMA`; one row per (item, moment): of two changes within a microsecond the later one stands.
    """
    base = catalog_table(items, first_time)
    states: dict[str, CatalogState | None] = dict.fromkeys(changes["item_id"].to_pylist())
    for row in base.filter(pc.is_in(base["item_id"], pa.array(list(states), pa.string()))).to_pylist():
        states[row["item_id"]] = CatalogState(_item(row), 0, 0)
    first: dict[str, int] = {}
    rows: dict[tuple[str, int], CatalogState] = {}
    for seq, change in read_changes(changes):
        before = states[change.item_id]
        after = changed(before, change, seq)
        if after is not before:
            first.setdefault(change.item_id, after.time)
            states[change.item_id] = rows[change.item_id, after.time] = after
    return pa.concat_tables([_before(base, first), _rows(list(rows.values()))])


def _item(row: dict[str, Any]) -> CatalogItem:
    item_id, title, category, price, created_at, available, blocked = (
        row[name] for name in ("item_id", *CATALOG_FIELDS)
    )
    return CatalogItem(item_id, title, category, price, created_at, available != 0, blocked != 0)


def _before(base: pa.Table, first: dict[str, int]) -> pa.Table:
    """Let an imported row count before the item's first change, though the import says it came into the shop later."""
    if not first:
        return base
    limit = pa.array([first.get(item_id) for item_id in base["item_id"].to_pylist()], pa.int64())
    known = pc.min_element_wise(base[VALID_FROM].cast(pa.int64()), limit)  # a null limit counts for nothing
    index = base.schema.get_field_index(VALID_FROM)
    return base.set_column(index, base.schema.field(index), known.cast(base.schema.field(index).type))


def _rows(states: list[CatalogState]) -> pa.Table:
    items = [state.item for state in states]
    known = np.array([state.time for state in states], np.int64) + 1
    columns = [
        [item.item_id for item in items],
        known,
        [state.seq for state in states],
        [item.title for item in items],
        [item.category for item in items],
        [item.price for item in items],
        [item.created_at for item in items],
        [int(item.available) for item in items],
        [int(item.blocked) for item in items],
    ]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, CATALOG_SCHEMA, strict=True)], schema=CATALOG_SCHEMA)
