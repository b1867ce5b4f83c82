"""Training frames as Parquet files: of any size, as memory does not grow with the number of rows."""
# ruff: noqa: S608 - the SQL is made of a quoted path

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.asof_join import MEMORY_LIMIT, Join, Progress, joined_batches, replacing
from feature_repo.entity_rows import EntityRows, entity_rows
from feature_repo.errors import BadInputError
from feature_repo.events import TIMESTAMP
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from feature_repo.store import apply
from feature_repo.training_frame import KEYS, LABEL_TIME, catalog_source, check_entities

_CSV_TYPES: Final = "{'user_id': 'VARCHAR', 'item_id': 'VARCHAR', 'event_timestamp': 'TIMESTAMPTZ'}"
#: The rows' own columns on their way, so that none has the name of something that is added.
_OWN: Final = "__column_"


def write_training_frame(
    entities: pd.DataFrame | Path | str,
    service: str,
    settings: Settings,
    path: Path,
    *,
    on_progress: Progress | None = None,
) -> int:
    """Write what `training_frame` returns to a Parquet file, which appears whole or not at all.

    Parameters
    ----------
    entities
        As for `training_frame`; or a Parquet or CSV file, a directory of Parquet files, or a query in DuckDB's SQL.
        Times without zone in a CSV file are UTC.
    on_progress
        Called with (steps done, steps in total).

    Returns
    -------
    int
        Rows written: all of `entities`, in their order.

    Raises
    ------
    BadInputError
        For missing or null columns, times without zone, or columns with the name of a feature.
    ConflictError
        If another run is writing the same path.
    NotFoundError
        For an unknown service, no such file, or where nothing was backfilled yet.
    """
    features = feature_list(service)
    if not isinstance(entities, pd.DataFrame) and str(entities).endswith(".csv") and Path(entities).is_file():
        quoted = str(entities).replace("'", "''")
        entities = f"SELECT * FROM read_csv('{quoted}', types = {_CSV_TYPES})"
    with replacing(path) as work:
        rows = entity_rows(entities, work)
        check_entities(rows.schema.empty_table().to_pandas(), features)
        prepared = _prepared(rows, settings, work)
        store = apply(settings)
        job = store.get_historical_features(entity_df=str(prepared), features=store.get_feature_service(service))
        columns = {name: f"{_OWN}{i}" for i, name in enumerate(rows.schema.names)} | {name: name for name in features}
        written: int = job.to_parquet(work / "result", columns=columns, on_progress=on_progress)
    return written


def _prepared(entities: EntityRows, settings: Settings, work: Path) -> Path:
    """Write the entity rows with the category of their item, and their time as `now_us`."""
    keys, prepared = work / "keys.parquet", work / "prepared.parquet"
    schema = _keys_of(entities.schema.empty_table()).schema
    with pq.ParquetWriter(keys, schema, compression="lz4") as writer:
        for batch in entities.batches():
            writer.write_table(_keys_of(batch))
    schema = schema.append(pa.field("category", pa.string())).append(pa.field("now_us", pa.int64()))
    with pq.ParquetWriter(prepared, schema, compression="lz4") as writer:
        for batch in _with_category(entity_rows(keys, work), settings, work):
            now = batch[LABEL_TIME].cast(pa.int64())
            writer.write_table(batch.append_column("now_us", now).select(schema.names).cast(schema))
    keys.unlink()
    return prepared


def _keys_of(batch: pa.Table) -> pa.Table:
    for name in (*KEYS, LABEL_TIME):
        if null := batch[name].null_count:
            raise BadInputError(f"column {name!r} of the entity rows has {null} null(s); drop those rows")
    own = {f"{_OWN}{i}": column for i, column in enumerate(batch.columns)}
    time = batch[LABEL_TIME].cast(TIMESTAMP, safe=False)  # nanoseconds are cut off
    return pa.table(own | {name: batch[name].cast(pa.string()) for name in KEYS} | {LABEL_TIME: time})


def _with_category(entities: EntityRows, settings: Settings, work: Path) -> Iterator[pa.Table]:
    source = catalog_source(settings)
    if source is None:
        for batch in entities.batches():
            yield batch.append_column("category", pa.nulls(batch.num_rows, pa.string()))
        return
    join = Join(source, {"category": "item_category"}, ["item_id"])
    directory = work / "categories"
    directory.mkdir()
    yield from joined_batches(entities, [join], LABEL_TIME, directory, memory_limit=MEMORY_LIMIT, on_step=lambda: None)
