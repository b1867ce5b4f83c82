"""Training frames: the features of a service for given (user, item, time), strictly as of each row's time."""

from __future__ import annotations

from typing import Final

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from feature_repo.asof_sql import ROW, TIME, Source, join_sql
from feature_repo.errors import BadInputError
from feature_repo.events import TIMESTAMP
from feature_repo.offline_layout import read_manifest
from feature_repo.services import feature_list
from feature_repo.settings import Settings
from feature_repo.store import apply
from feature_repo.views import CATALOG_VIEW

KEYS: Final = ("user_id", "item_id")
LABEL_TIME: Final = "event_timestamp"
#: Rows per call of Feast, which holds every input of the features three times in memory.
BATCH_ROWS: Final = 750_000


def training_frame(entities: pd.DataFrame, service: str, settings: Settings) -> pd.DataFrame:
    """Return all rows in the order given, with their columns and the features of a service.

    Parameters
    ----------
    entities
        user_id, item_id (text), event_timestamp (the label's time, aware) and any other columns, which are kept.
    service
        Name of a feature service, e.g. "ranking_v1".
    settings
        Whose offline store is read.

    Returns
    -------
    pandas.DataFrame
        The index and columns of `entities`, then the service's features in their order, float32, NaN where unknown.
        No event at or after a row's time has any part in its features.

    Raises
    ------
    BadInputError
        For missing or null columns, times without zone, or columns with the name of a feature.
    NotFoundError
        For an unknown service, or where nothing was backfilled yet.
    """
    features = feature_list(service)
    check_entities(entities, features)
    keys = entities[[*KEYS, LABEL_TIME]].reset_index(drop=True)
    time = pa.array(keys[LABEL_TIME].dt.tz_convert("UTC")).cast(TIMESTAMP, safe=False)  # nanoseconds are cut off
    category = _categories(settings, keys["item_id"], time)
    keys = keys.assign(category=category.to_numpy(zero_copy_only=False), now_us=time.cast(pa.int64()).to_numpy())
    store = apply(settings)  # registers our objects where they are not, or not as they are now
    columns = {name: np.empty(len(keys), np.float32) for name in features}
    for start in range(0, len(keys), BATCH_ROWS):
        batch = keys.iloc[start : start + BATCH_ROWS]
        job = store.get_historical_features(entity_df=batch, features=store.get_feature_service(service))
        table = job.to_arrow()
        for name in features:
            columns[name][start : start + len(batch)] = table[name].to_numpy()
    return pd.concat([entities, pd.DataFrame(columns, index=entities.index)], axis=1)


def check_entities(entities: pd.DataFrame, features: tuple[str, ...]) -> None:
    """Refuse entity rows whose features could not be right."""
    if missing := [name for name in (*KEYS, LABEL_TIME) if name not in entities.columns]:
        have = ", ".join(map(str, entities.columns)) or "none"
        raise BadInputError(f"the entity rows have no column {missing[0]!r}; their columns are: {have}")
    if taken := [name for name in features if name in entities.columns]:
        raise BadInputError(f"column {taken[0]!r} of the entity rows has the name of a feature; rename or drop it")
    times = entities[LABEL_TIME]
    if not isinstance(times.dtype, pd.DatetimeTZDtype):
        raise BadInputError(
            f"{LABEL_TIME} must hold times with a zone, not {times.dtype}; use pandas.to_datetime(..., utc=True)"
        )
    for name in (*KEYS, LABEL_TIME):
        if null := int(entities[name].isna().sum()):
            raise BadInputError(f"column {name!r} of the entity rows has {null} null(s); drop those rows")
    for name in KEYS:
        kind = pd.api.types.infer_dtype(entities[name], skipna=False)
        if kind not in ("string", "empty"):
            raise BadInputError(f"column {name!r} of the entity rows must hold text, not {kind}; use astype(str)")


def _categories(settings: Settings, items: pd.Series[str], time: pa.Array) -> pa.Array:
    """Return each item's category as the catalogue had it at the time; null where it did not know the item."""
    source = catalog_source(settings)
    if source is None:
        return pa.nulls(len(items), pa.string())
    spine = pa.table({ROW: np.arange(len(items)), TIME: time.cast(pa.int64()), "item_id": pa.array(items, pa.string())})
    with duckdb.connect() as connection:
        connection.register("spine", spine)
        query = join_sql(source, {"category": "item_category"}, "spine")
        joined = connection.sql(f"{query} ORDER BY {ROW}").to_arrow_table()
    return joined["category"].combine_chunks()


def catalog_source(settings: Settings) -> Source | None:
    """Return where the catalogue is; None if there is none."""
    directory = settings.offline_dir
    files = read_manifest(directory).files(directory, CATALOG_VIEW)
    return Source(files, ["item_id"]) if files else None
