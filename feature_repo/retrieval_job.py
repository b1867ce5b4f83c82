"""Feast's retrieval jobs over DuckDB: the result in memory, or streamed to a Parquet file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.types import from_feast_to_pyarrow_type

from feature_repo.asof_join import Progress, replacing
from feature_repo.errors import BadInputError, ConflictError


@dataclass(frozen=True)
class Result:
    """How a job gets its rows, before on-demand features.

    Attributes
    ----------
    table
        Returns all rows.
    batches
        Yields all rows in one or more tables, working in a directory and reporting (done, total).
    """

    table: Callable[[], pa.Table]
    batches: Callable[[Path, Progress], Iterator[pa.Table]]


class DuckDBRetrievalJob(RetrievalJob):  # type: ignore[misc] # Feast has no types
    """A query that runs when its result is asked for."""

    def __init__(
        self,
        result: Result,
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._result = result
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = on_demand_feature_views or []
        self._metadata = metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._result.table()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._result.table().to_pandas()
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

    def to_parquet(
        self, path: Path | str, *, columns: Mapping[str, str] | None = None, on_progress: Progress | None = None
    ) -> int:
        """Stream the result to one Parquet file, in order; memory does not grow with the number of rows.

        The file appears whole or not at all. A run that died is simply repeated.

        Parameters
        ----------
        columns
            Columns to write, by the name to write them under; all if None.
        on_progress
            Called with (steps done, steps in total).

        Returns
        -------
        int
            Rows written.

        Raises
        ------
        BadInputError
            For a column the result does not have.
        ConflictError
            If another run is writing the same path.
        """
        writer: pq.ParquetWriter | None = None
        rows = 0
        with replacing(Path(path)) as work:
            for batch in self._result.batches(work, on_progress or (lambda done, total: None)):
                table = _selected(self._computed(batch), columns)
                writer = writer or pq.ParquetWriter(
                    work / "result", table.schema, compression="zstd", compression_level=1
                )
                writer.write_table(table.cast(writer.schema))
                rows += table.num_rows
            if writer is not None:
                writer.close()
        return rows

    def persist(
        self, storage: SavedDatasetFileStorage, allow_overwrite: bool = False, timeout: int | None = None
    ) -> None:
        """Stream the result to one Parquet file."""
        path = Path(storage.file_options.uri)
        if path.exists() and not allow_overwrite:
            raise ConflictError(f"{path} exists; allow overwriting it or choose another path")
        self.to_parquet(path)

    def _computed(self, batch: pa.Table) -> pa.Table:
        """Let Feast add the on-demand features to a batch, with the types they are declared with."""
        if not self._on_demand_feature_views:
            return batch
        part = DuckDBRetrievalJob(
            Result(lambda: batch, lambda work, progress: iter([batch])),
            full_feature_names=self._full_feature_names,
            on_demand_feature_views=self._on_demand_feature_views,
            metadata=self._metadata,
        )
        table = part.to_arrow()
        for view in self._on_demand_feature_views:
            name = view.projection.name_to_use()
            for field in view.projection.features:
                column = f"{name}__{field.name}" if self._full_feature_names else field.name
                at = table.column_names.index(column) if column in table.column_names else -1
                if at >= 0 and not pa.types.is_list(table.schema.field(at).type):
                    kind = from_feast_to_pyarrow_type(field.dtype)
                    table = table.set_column(at, pa.field(column, kind), table[column].cast(kind))
        return table


def _selected(table: pa.Table, columns: Mapping[str, str] | None) -> pa.Table:
    if columns is None:
        return table
    if missing := [name for name in columns.values() if name not in table.column_names]:
        raise BadInputError(f"the result has no column {missing[0]!r}; it has: {', '.join(table.column_names)}")
    return pa.table([table[name] for name in columns.values()], names=list(columns))
