"""Feast's `materialize` and `materialize_incremental` on packed rows: `PackedComputeEngine` in feature_store.yaml.

Feast's local engine spends most of its time making one protobuf per value; this one packs Arrow columns directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from feast import FeatureView
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.feature_builder import LocalFeatureBuilder
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel

from feature_repo.arrow_rows import event_times, pack_arrow
from feature_repo.online_store import PackedRedisOnlineStore, refuse_future
from feature_repo.row_scripts import ViewRows

#: Rows packed and written at a time.
_CHUNK_ROWS: Final = 10_000


class PackedComputeEngineConfig(FeastConfigBaseModel):  # type: ignore[misc] # Feast has no types
    """Settings of the engine in feature_store.yaml."""

    type: Literal["feature_repo.batch_engine.PackedComputeEngine"] = "feature_repo.batch_engine.PackedComputeEngine"


class PackedComputeEngine(LocalComputeEngine):  # type: ignore[misc] # Feast has no types
    """Writes the latest rows of an interval as packed rows; what it does not know it leaves to Feast's local engine.

    That is: another online store, and views whose rows are not simply those of their source.
    """

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        view = task.feature_view
        if not isinstance(self.online_store, PackedRedisOnlineStore) or not _is_plain(view):
            return super()._materialize_one(registry, task, **kwargs)
        job = f"{view.name}-{task.start_time}-{task.end_time}"
        try:
            if view.online:
                self._write(registry, task)
        except Exception as error:  # as every engine of Feast reports it; Feast raises it again
            return LocalMaterializationJob(job_id=job, status=MaterializationJobStatus.ERROR, error=error)
        return LocalMaterializationJob(job_id=job, status=MaterializationJobStatus.SUCCEEDED)

    def _write(self, registry: BaseRegistry, task: MaterializationTask) -> None:
        view = task.feature_view
        source = LocalFeatureBuilder(registry, task, backend=None).get_column_info(view)
        pulled = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=view.batch_source,
            join_key_columns=source.join_keys,
            feature_name_columns=source.feature_cols,
            timestamp_field=source.ts_col,
            created_timestamp_column=source.created_ts_col,
            start_date=task.start_time,
            end_date=task.end_time,
        )
        rows: pa.Table = pulled.to_arrow()
        if source.field_mapping:
            rows = rows.rename_columns([source.field_mapping.get(name, name) for name in rows.column_names])
        when = source.timestamp_column
        if rows.num_rows:
            refuse_future(view.name, int(np.max(event_times(rows, when))))
        with task.tqdm_builder(rows.num_rows) as progress:

            def packed() -> Iterator[ViewRows]:
                for start in range(0, rows.num_rows, _CHUNK_ROWS):
                    part = rows.slice(start, _CHUNK_ROWS)
                    yield pack_arrow(view, part, when)
                    progress.update(part.num_rows)

            self.online_store.write_packed(self.repo_config, packed())


def _is_plain(view: Any) -> bool:
    """Whether the rows of a view are those of its source."""
    made = ("source_views", "feature_transformation", "aggregations", "filter", "enable_validation", "offline")
    entities = DUMMY_ENTITY_ID not in view.join_keys
    return isinstance(view, FeatureView) and entities and not any(getattr(view, name, None) for name in made)
