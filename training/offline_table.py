"""The item table as of a moment of the past, from the offline store."""

from __future__ import annotations

import numpy as np

from feature_repo.asof import AsOfReader
from feature_repo.rows import Rows, null_rows
from feature_repo.views import ITEM_STATS
from serving.cascade.items import CatalogEntry, ItemTable, build_item_table


def offline_item_table(reader: AsOfReader, as_of_us: int) -> ItemTable:
    """Build the table serving would have held at `as_of_us`: every item of the catalogue or of any event by then."""
    stat_ids, stats = reader.item_rows()
    catalog = {
        row["item_id"]: CatalogEntry(
            row["item_id"],
            row["item_title"],
            row["item_category"],
            row["item_price"],
            row["item_created_at"],
            bool(row["item_available"]) and not row["item_blocked"],
        )
        for row in reader.catalog().to_pylist()
    }
    ids = sorted(set(stat_ids) | set(catalog))
    position = {item_id: i for i, item_id in enumerate(stat_ids)}
    which = np.array([position.get(item_id, -1) for item_id in ids], np.int64)
    aligned = null_rows(ITEM_STATS, len(ids))
    found = which >= 0
    aligned.ints[found] = stats.ints[which[found]]
    aligned.floats[found] = stats.floats[which[found]]
    aligned.present[found] = stats.present[which[found]]
    rows = Rows(ITEM_STATS, aligned.ints, aligned.floats, aligned.present)
    return build_item_table([catalog.get(i, CatalogEntry(i, available=False)) for i in ids], rows, as_of_us)
