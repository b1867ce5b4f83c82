"""The catalogue's entries of items at exactly the `seq` that was used, and the change that came next."""
# ruff: noqa: S608 - the SQL is made of names of ours

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.offline_layout import read_manifest
from feature_repo.request_features import CATALOG_INPUTS
from feature_repo.settings import Settings
from feature_repo.views import CATALOG_VIEW

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CatalogThen:
    """Entries of n items.

    Attributes
    ----------
    used
        `seq` of the entry, 0 for the imported one, shape (n,).
    found
        Whether the catalogue has such an entry, shape (n,).
    next_seq
        `seq` of the item's next change, shape (n,); 0 if there was none.
    columns
        `CATALOG_INPUTS`, NaN for null and where there is no entry, shape (n,) each.
    category
        Null for none, length n.
    """

    used: I64
    found: Mask
    next_seq: I64
    columns: dict[str, F64]
    category: pa.Array


def catalog_then(settings: Settings, items: list[str], used: I64) -> CatalogThen:
    """Look entries up in the offline store, which a backfill has brought up to the changes logged.

    Parameters
    ----------
    used
        `seq` of each item's entry, shape (n,).
    """
    files = read_manifest(settings.offline_dir).files(settings.offline_dir, CATALOG_VIEW)
    n = len(items)
    if not files or not n:
        nothing = {name: np.full(n, np.nan) for name in CATALOG_INPUTS}
        return CatalogThen(used, np.zeros(n, np.bool_), np.zeros(n, np.int64), nothing, pa.nulls(n, pa.string()))
    wanted = ", ".join(f"entry.{name}" for name in (*CATALOG_INPUTS, "item_category"))
    with duckdb.connect() as connection:
        paths = [str(path) for path in files]
        connection.read_parquet(paths, hive_partitioning=False).create_view("entries")
        connection.register(
            "lines", pa.table({"line": np.arange(n), "item_id": pa.array(items, pa.string()), "used": used})
        )
        table = connection.sql(
            f"SELECT line, entry.seq IS NOT NULL AS found, coalesce(following.seq, 0) AS next_seq, {wanted} FROM lines "
            "LEFT JOIN entries entry ON entry.item_id = lines.item_id AND entry.seq = lines.used "
            "ASOF LEFT JOIN entries following ON following.item_id = lines.item_id AND lines.used < following.seq "
            "ORDER BY line"
        ).to_arrow_table()
    columns = {name: table[name].cast(pa.float64()).fill_null(np.nan).to_numpy() for name in CATALOG_INPUTS}
    return CatalogThen(
        used,
        table["found"].to_numpy(),
        table["next_seq"].to_numpy(),
        columns,
        table["item_category"].combine_chunks(),
    )
