"""Feast's offline store over our Parquet parts: point-in-time joins by DuckDB, every entity row back, in order."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.errors import EntityTimestampInferenceException
from feast.feature_view import FeatureView
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig

from feature_repo.asof_join import MEMORY_LIMIT, Join, Progress, connected, joined_batches, joined_table
from feature_repo.asof_sql import Source, latest_recent_sql, latest_sql
from feature_repo.entity_rows import entity_rows
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.offline_layout import layout_hashes, read_manifest
from feature_repo.retrieval_job import DuckDBRetrievalJob, Result
from feature_repo.views import RECENT_VIEW, VIEWS

#: Tag of a feature view with its maximal age in µs.
MAX_AGE_TAG = "max_age_us"
#: DuckDB rewrites "the last row of each" into an aggregate that makes 0.0 of -0.0: what is materialised is to be exact.
_EXACT = "SET disabled_optimizers = 'top_n_window_elimination'"


class DuckDBAsOfOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc] # Feast has no types
    """Settings of the offline store in `feature_store.yaml`."""

    type: Literal["feature_repo.offline_store.DuckDBAsOfOfflineStore"] = (
        "feature_repo.offline_store.DuckDBAsOfOfflineStore"
    )
    path: str
    """Directory of the offline store; paths of file sources are relative to it."""
    memory_limit: str = MEMORY_LIMIT
    """What DuckDB may hold in memory before it goes through temporary files."""


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
        or not any more (`max_age_us`), are null. Entity rows are a DataFrame, the path of a Parquet file or of a
        directory of them, or a query in DuckDB's SQL. Arrival times are respected always, as with Feast's
        `filter_by_created_timestamp`.
        """
        if unknown := sorted(set(kwargs) - {"filter_by_created_timestamp"}):
            raise BadInputError(f"this offline store takes entity rows, without a range of time ({', '.join(unknown)})")
        with tempfile.TemporaryDirectory(prefix="larder-entities-") as work:
            schema = entity_rows(entity_df, Path(work)).schema
        time_column = _time_column(schema)
        odfvs = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        _check_request_data(odfvs, schema.names)
        limit = config.offline_store.memory_limit

        def joins() -> list[Join]:
            wanted = [(v, _requested(v, feature_refs, full_feature_names=full_feature_names)) for v in feature_views]
            return [
                Join(
                    _source(config, view.batch_source, view.join_keys, _max_age_us(view)),
                    columns,
                    [view.projection.join_key_map.get(key, key) for key in view.join_keys],
                    recent=view.name == RECENT_VIEW,
                )
                for view, columns in wanted
                if columns
            ]

        def table() -> pa.Table:
            with tempfile.TemporaryDirectory(prefix="larder-entities-") as work:
                return joined_table(entity_rows(entity_df, Path(work)), joins(), time_column, memory_limit=limit)

        def batches(work: Path, on_progress: Progress) -> Iterator[pa.Table]:
            entities, wanted = entity_rows(entity_df, work), joins()
            steps = iter(range(1, len(wanted) + 1))
            total = entities.rows * (len(wanted) + 1)
            done = 0

            def one_view() -> None:
                on_progress(entities.rows * next(steps), total)

            for batch in joined_batches(entities, wanted, time_column, work, memory_limit=limit, on_step=one_view):
                yield batch
                done += batch.num_rows
                on_progress(entities.rows * len(wanted) + done, total)

        return DuckDBRetrievalJob(
            Result(table, batches),
            full_feature_names=full_feature_names,
            on_demand_feature_views=odfvs,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in schema.names if name != time_column],
                min_event_timestamp=entity_df[time_column].min() if isinstance(entity_df, pd.DataFrame) else None,
                max_event_timestamp=entity_df[time_column].max() if isinstance(entity_df, pd.DataFrame) else None,
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
        # Names in the order of writing: among rows of the same times the one written last counts.
        staged = directory / f".{time.time_ns():020d}-{uuid.uuid4()}"
        pq.write_table(table, staged, coerce_timestamps="us", allow_truncated_timestamps=True)
        staged.rename(directory / f"{staged.name[1:]}.parquet")
        if progress is not None:
            progress(table.num_rows)

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Check a file source of a user's own; ours exist from the first backfill on."""
        if data_source.path not in layout_hashes():
            data_source.validate(config=config)


def _path(config: RepoConfig, source: FileSource) -> Path:
    return Path(config.offline_store.path, source.path)


def _source(config: RepoConfig, source: DataSource, entities: list[str], max_age_us: int | None) -> Source:
    """Find the files of a data source."""
    if not isinstance(source, FileSource):
        raise BadInputError(f"this offline store reads file sources, not {type(source).__name__}")
    ours = source.path in layout_hashes()
    seq = None
    if ours:
        directory = Path(config.offline_store.path)
        manifest = read_manifest(directory)
        files = manifest.files(directory, source.path)
        if manifest.superseding(source.path) and source.path in VIEWS:
            seq = VIEWS[source.path].seq_column
    else:
        path = _path(config, source)
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise NotFoundError(f"no rows of {source.path} in {config.offline_store.path}; run `larder features backfill`")
    return Source(
        files,
        entities,
        source.timestamp_field,
        created=None if ours else source.created_timestamp_column or None,
        folded=ours,
        tie_breaker=seq,
        max_age_us=max_age_us,
    )


def _max_age_us(view: FeatureView) -> int | None:
    """Return when a view's rows are too old: by our tag, and by Feast's `ttl` where a user's own view has one."""
    ages = [int(view.tags[MAX_AGE_TAG])] if MAX_AGE_TAG in view.tags else []
    if view.ttl:
        ages.append(view.ttl // timedelta(microseconds=1))
    return min(ages, default=None)


def _requested(view: FeatureView, feature_refs: list[str], *, full_feature_names: bool) -> dict[str, str]:
    """Return which columns of a view were asked for, by the name to return them under."""
    name = view.projection.name_to_use()
    features = [ref.split(":", 1)[1] for ref in feature_refs if ref.split(":", 1)[0] == name]
    return {f"{name}__{feature}" if full_feature_names else feature: feature for feature in features}


def _time_column(schema: pa.Schema) -> str:
    """Return the column with the entity rows' times, as Feast finds it."""
    dtypes = schema.empty_table().to_pandas().dtypes
    try:
        name: str = infer_event_timestamp_from_entity_df(dict(dtypes))
    except EntityTimestampInferenceException:
        name = ""
    if name not in schema.names or not pa.types.is_timestamp(schema.field(name).type):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise BadInputError(f"the entity rows have no column of times 'event_timestamp'; they have: {columns}")
    return name


def _check_request_data(odfvs: list[OnDemandFeatureView], names: list[str]) -> None:
    """Refuse entity rows without what on-demand features need; Feast itself checks DataFrames only."""
    for view in odfvs:
        for name in view.get_request_data_schema():
            if name not in names:
                raise BadInputError(f"{view.name} needs the column {name!r}; the entity rows have: {', '.join(names)}")


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
    source = _source(config, data_source, keys, None)
    if data_source.path != RECENT_VIEW:
        sql = latest_sql(source, columns, (first, last), latest=latest)
    elif latest:
        sql = latest_recent_sql(source, columns, (first, last))
    else:
        raise BadInputError(f"{RECENT_VIEW} has lists at a given time only; its rows are the events themselves")

    limit = config.offline_store.memory_limit

    def table() -> pa.Table:
        with tempfile.TemporaryDirectory(prefix="larder-pull-") as work, connected(Path(work), limit) as connection:
            connection.execute(_EXACT)
            return connection.sql(sql).to_arrow_table()

    def batches(work: Path, on_progress: Progress) -> Iterator[pa.Table]:
        with connected(work, limit) as connection:
            connection.execute(_EXACT)
            connection.sql(sql).write_parquet(str(work / "pulled.parquet"), compression="lz4")
        rows = entity_rows(work / "pulled.parquet", work)
        yield from rows.batches()
        on_progress(rows.rows, rows.rows)

    return DuckDBRetrievalJob(Result(table, batches))


def _us(time: datetime) -> int:
    """Return µs since the epoch; Feast's naive times are UTC."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return int(aware.timestamp()) * 1_000_000 + aware.microsecond
