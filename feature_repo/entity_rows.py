"""Entity rows for a point-in-time join, batch by batch: from a DataFrame, Parquet files, or a query in DuckDB's SQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.errors import BadInputError, NotFoundError

#: Rows of a batch: what is in memory at a time when frames are streamed.
BATCH_ROWS: Final = 250_000
_QUERIES: Final = ("select", "with", "from", "values", "table")


@dataclass(frozen=True)
class EntityRows:
    """Entity rows that can be read again and again, always in the same order.

    Attributes
    ----------
    schema
        Columns of every batch.
    rows
        How many there are.
    batches
        Returns the rows as tables of at most `BATCH_ROWS` rows; where there are no rows, one empty table.
    """

    schema: pa.Schema
    rows: int
    batches: Callable[[], Iterator[pa.Table]]

    def table(self) -> pa.Table:
        """Return all rows."""
        return pa.concat_tables(self.batches())


def entity_rows(source: pd.DataFrame | Path | str | None, work: Path) -> EntityRows:
    """Open entity rows.

    Parameters
    ----------
    source
        A DataFrame; a Parquet file or a directory of Parquet files; or a query in DuckDB's SQL, as text. The result of
        a query is kept in `work`.
    work
        A directory that lives as long as the rows are read.

    Raises
    ------
    BadInputError
        If the source is none of these, or a query fails.
    NotFoundError
        If there is no such file.
    """
    if isinstance(source, pd.DataFrame):
        return _of_frame(source)
    if isinstance(source, str) and source.lstrip(" (\n\t").lower().split(maxsplit=1)[:1] in ([q] for q in _QUERIES):
        source = _spooled(source, work / "entities.parquet")
    if not isinstance(source, str | Path):
        raise BadInputError(
            "this offline store takes entity rows as a DataFrame, a Parquet file, a directory of Parquet files, or a "
            f"query in DuckDB's SQL, not {type(source).__name__}, and no range of time"
        )
    path = Path(source)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not path.exists():
        raise NotFoundError(f"no entity rows in {path}: it must be a Parquet file, a directory of them, or a query")
    return _of_files(files)


def _of_frame(frame: pd.DataFrame) -> EntityRows:
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise BadInputError(f"the entity rows have a column of mixed types: {error}") from None

    def batches() -> Iterator[pa.Table]:
        for start in range(0, max(table.num_rows, 1), BATCH_ROWS):
            yield table.slice(start, BATCH_ROWS)

    return EntityRows(table.schema, table.num_rows, batches)


def _of_files(files: list[Path]) -> EntityRows:
    try:
        opened = [pq.ParquetFile(file) for file in files]
        schema, rows = opened[0].schema_arrow, sum(file.metadata.num_rows for file in opened)
        if other := [file for file, one in zip(files, opened, strict=True) if one.schema_arrow.names != schema.names]:
            raise BadInputError(f"{other[0]} has other columns than {files[0]}: {schema.names}")
    except pa.ArrowInvalid as error:
        raise BadInputError(f"the entity rows cannot be read as Parquet: {error}") from None

    def batches() -> Iterator[pa.Table]:
        if not rows:
            yield schema.empty_table()
        for file in files:
            for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(BATCH_ROWS):
                yield pa.Table.from_batches([batch]).cast(schema)

    return EntityRows(schema, rows, batches)


def _spooled(query: str, path: Path) -> Path:
    """Keep the result of a query, as its rows are read more than once."""
    path.unlink(missing_ok=True)
    try:
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.sql(query).write_parquet(str(path), compression="lz4")
    except duckdb.Error as error:
        raise BadInputError(f"the query for entity rows failed: {error}") from None
    return path
