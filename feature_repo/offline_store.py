"""Feast's offline store over our Parquet parts: point-in-time joins by DuckDB, every entity row back, in order."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.feature_view import FeatureView
from feast.infra.offline_stores.file_source import FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig

from feature_repo.asof_sql import ROW, TIME, Source, join_sql, latest_recent_sql, latest_sql, recent_sql
from feature_repo.errors import BadInputError, ConflictError, NotFoundError
from feature_repo.events import TIMESTAMP
from feature_repo.offline_layout import layout_hashes, read_manifest
from feature_repo.views import RECENT_VIEW, VIEWS

#: Tag of a feature view with its maximal age in µs.
MAX_AGE_TAG = "max_age_us"


class DuckDBAsOfOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc] # Feast has no types
    """Settings of the offline store in `feature_store.yaml`."""

    type: Literal["feature_repo.offline_store.DuckDBAsOfOfflineStore"] = (
        "feature_repo.offline_store.DuckDBAsOfOfflineStore"
    )
    path: str
    """Directory of the offline store; paths of file sources are relative to it."""


class DuckDBRetrievalJob(RetrievalJob):  # type: ignore[misc] # Feast has no types
    """A query that runs when its result is asked for."""

    def __init__(
        self,
        query: Callable[[], pa.Table],
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._query = query
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = on_demand_feature_views or []
        self._metadata = metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._query()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._query().to_pandas()
        return frame

    @property
    def full_feature_names(self) -> bool:
        """Whether features are called view__feature."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """On-demand feature views Feast computes on the result."""
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """Which features were asked for."""
        return self._metadata

    def persist(
        self, storage: SavedDatasetFileStorage, allow_overwrite: bool = False, timeout: int | None = None
    ) -> None:
        """Write the result as one Parquet file."""
        path = Path(storage.file_options.uri)
        if path.exists() and not allow_overwrite:
            raise ConflictError(f"{path} exists; allow overwriting it or choose another path")
        pq.write_table(self.to_arrow(), path, coerce_timestamps="us", allow_truncated_timestamps=True)


class DuckDBAsOfOfflineStore(OfflineStore):  # type: ignore[misc] # Feast has no types
    """Point-in-time joins over the parts that the manifest names, and over other Parquet file sources."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """Join features to entity rows as they were at each row's time; see Feast's `OfflineStore`.

        Every row comes back, in the order given, with all its columns; features of entities that are not known then,
        or not any more (`max_age_us`), are null.
        """
        if not isinstance(entity_df, pd.DataFrame) or kwargs:
            raise BadInputError("this offline store takes entity rows as a DataFrame, without a range of time")
        time = infer_event_timestamp_from_entity_df(dict(zip(entity_df.columns, entity_df.dtypes, strict=True)))

        def query() -> pa.Table:
            result = pa.Table.from_pandas(entity_df, preserve_index=False)
            with _connection() as connection:
                for view in feature_views:
                    columns = _requested(view, feature_refs, full_feature_names=full_feature_names)
                    source = _source(config, view.batch_source, view.join_keys, view.tags)
                    if not columns:
                        continue
                    keys = [view.projection.join_key_map.get(key, key) for key in view.join_keys]
                    connection.register("spine", _spine(result, keys, view.join_keys, time))
                    build = recent_sql if view.name == RECENT_VIEW else join_sql
                    joined = connection.sql(f"{build(source, columns, 'spine')} ORDER BY {ROW}").to_arrow_table()
                    for name in columns:
                        result = result.append_column(name, joined[name])
            return result

        return DuckDBRetrievalJob(
            query,
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entity_df.columns if name != time],
                min_event_timestamp=entity_df[time].min(),
                max_event_timestamp=entity_df[time].max(),
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Return the last row of every entity in an interval of time; see Feast's `OfflineStore`."""
        return _pull(config, data_source, join_key_columns, feature_name_columns, start_date, end_date, latest=True)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return all rows in an interval of time; see Feast's `OfflineStore`."""
        return _pull(config, data_source, join_key_columns, feature_name_columns, start_date, end_date, latest=False)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Add rows to a feature view of a user's own; ours are written by the backfill alone."""
        if feature_view.batch_source.path in layout_hashes():
            raise BadInputError(f"{feature_view.name} is folded from events; send events instead of writing rows")
        directory = _path(config, feature_view.batch_source)
        if directory.is_file():
            raise BadInputError(f"rows can be added to a directory of Parquet files only, not to the file {directory}")
        directory.mkdir(parents=True, exist_ok=True)
        staged = directory / f".{uuid.uuid4()}"
        pq.write_table(table, staged, coerce_timestamps="us", allow_truncated_timestamps=True)
        staged.rename(directory / f"{staged.name[1:]}.parquet")
        if progress is not None:
            progress(table.num_rows)

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Check a file source of a user's own; ours exist from the first backfill on."""
        if data_source.path not in layout_hashes():
            data_source.validate(config=config)


def _connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _path(config: RepoConfig, source: FileSource) -> Path:
    return Path(config.offline_store.path, source.path)


def _source(config: RepoConfig, source: DataSource, entities: list[str], tags: dict[str, str]) -> Source:
    """Find the files of a data source."""
    if not isinstance(source, FileSource):
        raise BadInputError(f"this offline store reads file sources, not {type(source).__name__}")
    if source.path in layout_hashes():
        directory = Path(config.offline_store.path)
        manifest = read_manifest(directory)
        files, seq = manifest.files(directory, source.path), None
        if manifest.superseding(source.path) and source.path in VIEWS:
            seq = VIEWS[source.path].seq_column
    else:
        path, seq = _path(config, source), source.created_timestamp_column or None
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise NotFoundError(f"no rows of {source.path} in {config.offline_store.path}; run `larder features backfill`")
    max_age = tags.get(MAX_AGE_TAG)
    return Source(files, entities, source.timestamp_field, seq, None if max_age is None else int(max_age))


def _requested(view: FeatureView, feature_refs: list[str], *, full_feature_names: bool) -> dict[str, str]:
    """Return which columns of a view were asked for, by the name to return them under."""
    name = view.projection.name_to_use()
    features = [ref.split(":", 1)[1] for ref in feature_refs if ref.split(":", 1)[0] == name]
    return {f"{name}__{feature}" if full_feature_names else feature: feature for feature in features}


def _spine(entities: pa.Table, keys: list[str], names: list[str], time: str) -> pa.Table:
    """Return the entity rows with what a join needs: number, time in µs and keys."""
    if missing := [key for key in keys if key not in entities.column_names]:
        raise BadInputError(f"the entity rows have no column {missing[0]!r}; they have: {entities.column_names}")
    columns = {ROW: pa.array(np.arange(entities.num_rows)), TIME: entities[time].cast(TIMESTAMP, safe=False)}
    return pa.table(columns | {name: _key(entities[key]) for name, key in zip(names, keys, strict=True)})


def _key(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a key column as plain strings or integers; an empty or categorical one has another type."""
    return column if pa.types.is_integer(column.type) else column.cast(pa.string())


def _pull(
    config: RepoConfig,
    data_source: DataSource,
    keys: list[str],
    columns: list[str],
    start: datetime | None,
    end: datetime | None,
    *,
    latest: bool,
) -> RetrievalJob:
    first = -(2**62) if start is None else _us(start)
    last = 2**62 if end is None else _us(end)
    source = _source(config, data_source, keys, {})
    if data_source.path != RECENT_VIEW:
        sql = latest_sql(source, columns, (first, last), latest=latest)
    elif latest:
        sql = latest_recent_sql(source, columns, (first, last))
    else:
        raise BadInputError(f"{RECENT_VIEW} has lists at a given time only; its rows are the events themselves")

    def query() -> pa.Table:
        with _connection() as connection:
            return connection.sql(sql).to_arrow_table()

    return DuckDBRetrievalJob(query)


def _us(time: datetime) -> int:
    """Return µs since the epoch; Feast's naive times are UTC."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return int(aware.timestamp()) * 1_000_000 + aware.microsecond
