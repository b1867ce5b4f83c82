"""Which entities are compared: all that the event log names, or a sample, half of it from the newest events."""
# ruff: noqa: S608 - the SQL is made of names of ours

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from feature_repo.log_chunks import LogFile
from feature_repo.views import (
    CATALOG_VIEW,
    ITEM_STATS,
    RECENT_VIEW,
    USER_CATEGORY,
    USER_ITEM,
    USER_STATS,
)

#: One entity that nobody has ever seen: both sides have to say so.
NOBODY: Final = "nobody knows this id"
KEYS: Final = {
    USER_STATS.name: USER_STATS.entities,
    ITEM_STATS.name: ITEM_STATS.entities,
    USER_ITEM.name: USER_ITEM.entities,
    USER_CATEGORY.name: USER_CATEGORY.entities,
    RECENT_VIEW: ("user_id",),
    CATALOG_VIEW: ("item_id",),
}


@dataclass(frozen=True, slots=True)
class Entities:
    """Entities to compare: a table of key columns per view, and (user, item) pairs for request-time features."""

    views: dict[str, pa.Table]
    pairs: pa.Table

    def __len__(self) -> int:
        return sum(len(table[table.column_names[0]]) for table in (*self.views.values(), self.pairs))


def sample_entities(files: Sequence[LogFile], sample: int | None, seed: int) -> Entities:
    """Draw entities from the log.

    Parameters
    ----------
    sample
        Entities per view; None: all.
    seed
        With the same log, the same seed draws the same entities.
    """
    rng = np.random.default_rng(seed)
    with duckdb.connect() as connection:
        paths = [str(file.path) for file in files]
        connection.read_parquet(paths, hive_partitioning=False).create_view("events")
        drawn = {keys: _draw(connection, keys, sample, rng) for keys in dict.fromkeys(KEYS.values())}
    views = {name: _with_nobody(drawn[keys]) for name, keys in KEYS.items()}
    pairs = drawn[USER_ITEM.entities]
    if sample is None:
        pairs = pairs.take(rng.permutation(pairs.num_rows)[:100_000])  # each is a row of 50 features on both sides
    strangers = pa.table(
        {
            "user_id": _shuffled(drawn[("user_id",)]["user_id"], pairs.num_rows // 4, rng),
            "item_id": _shuffled(drawn[("item_id",)]["item_id"], pairs.num_rows // 4, rng),
        }
    )
    return Entities(views, pa.concat_tables([pairs, strangers]).combine_chunks())


def _draw(
    connection: duckdb.DuckDBPyConnection, keys: Sequence[str], sample: int | None, rng: np.random.Generator
) -> pa.Table:
    names = ", ".join(keys)
    known = " AND ".join(f"{name} IS NOT NULL" for name in keys)
    # By the last event, so that what streams in just now is among them.
    query = f"SELECT {names} FROM events WHERE {known} GROUP BY {names} ORDER BY max(seq) DESC, {names}"
    table = connection.sql(query).to_arrow_table()
    if sample is None or table.num_rows <= sample:
        return table
    newest = sample // 2
    others = newest + np.sort(rng.choice(table.num_rows - newest, sample - newest, replace=False))
    return table.take(np.concatenate([np.arange(newest), others]))


def _with_nobody(table: pa.Table) -> pa.Table:
    stranger = {name: [NOBODY] for name in table.column_names}
    return pa.concat_tables([table, pa.table(stranger, schema=table.schema)]).combine_chunks()


def _shuffled(column: pa.ChunkedArray, number: int, rng: np.random.Generator) -> pa.Array:
    return column.take(rng.integers(0, len(column), min(number, len(column) * number))).combine_chunks()
