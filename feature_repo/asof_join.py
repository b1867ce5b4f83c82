"""Runs point-in-time joins in DuckDB, in memory or through files so that memory does not grow with the entity rows."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.asof_sql import ROW, TIME, Source, join_sql, recent_sql
from feature_repo.entity_rows import BATCH_ROWS, EntityRows
from feature_repo.errors import BadInputError, ConflictError
from feature_repo.events import TIMESTAMP

#: What DuckDB may hold in memory; beyond that it goes through files.
MEMORY_LIMIT: Final = "1GB"
_SPINE_ROW_GROUP: Final = 100_000

Progress = Callable[[int, int], None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Join:
    """One feature view to be joined.

    Attributes
    ----------
    source
        Its rows.
    columns
        Its columns, by the name to return them under.
    keys
        Columns of the entity rows, in the order of `source.entities`.
    recent
        Whether it is the log of recent events, returned as lists.
    """

    source: Source
    columns: dict[str, str]
    keys: Sequence[str]
    recent: bool = False

    def sql(self, spine: str) -> str:
        """Return the query of the features in the order of the spine."""
        build = recent_sql if self.recent else join_sql
        return f"{build(self.source, self.columns, spine)} ORDER BY {ROW}"


def joined_table(entities: EntityRows, joins: Sequence[Join], time: str, *, memory_limit: str) -> pa.Table:
    """Return all entity rows with their features."""
    result = entities.table()
    with tempfile.TemporaryDirectory(prefix="larder-join-") as work, connected(Path(work), memory_limit) as connection:
        for join in joins:
            connection.register("spine", _spine(result, join, time, 0))
            joined = _run(join, lambda sql: connection.sql(sql).to_arrow_table(), "spine")
            for name in join.columns:
                result = result.append_column(name, joined[name])
            connection.unregister("spine")
    return result


def joined_batches(
    entities: EntityRows,
    joins: Sequence[Join],
    time: str,
    work: Path,
    *,
    memory_limit: str,
    on_step: Callable[[], None],
) -> Iterator[pa.Table]:
    """Yield entity rows with their features, batch by batch and in order; everything else is in files.

    Parameters
    ----------
    work
        Empty directory, on a disk with room for all features.
    on_step
        Called after each view.
    """
    files = []
    for number, join in enumerate(joins):
        spine, features = work / "spine.parquet", work / f"features-{number}.parquet"
        _write_spine(entities, join, time, spine)
        with connected(work, memory_limit) as connection:
            _run(join, partial(_copy, connection, features), f"read_parquet('{_text(spine)}')")
        files.append(features)
        on_step()
    streams = [pq.ParquetFile(file, pre_buffer=False) for file in files]
    readers = [_exactly(stream) for stream in streams]
    for batch in entities.batches():
        result = batch
        for join, read in zip(joins, readers, strict=True):
            joined = read(batch.num_rows)
            for name in join.columns:
                result = result.append_column(name, joined[name])
        yield result


@contextmanager
def connected(work: Path, memory_limit: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB that keeps within a limit of memory and goes through files in `work` beyond it."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory_limit,
        "temp_directory": str(work / "duckdb"),
    }
    with duckdb.connect(config=config) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a directory to work in, beside `path`; what is written to its file `result` becomes `path` at the end.

    A run that died leaves the directory, and the next one begins with an empty one.

    Raises
    ------
    ConflictError
        If another run is writing the same path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.partial")
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Path(lock.name).stat()  # a run that ends now takes its lock file away
        except (BlockingIOError, FileNotFoundError):
            raise ConflictError(f"another run is writing {path}; wait until it has ended") from None
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work
            with (work / "result").open("rb") as handle:
                os.fsync(handle.fileno())
            (work / "result").replace(path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            Path(lock.name).unlink()


def _write_spine(entities: EntityRows, join: Join, time: str, path: Path) -> None:
    schema, done = _spine(entities.schema.empty_table(), join, time, 0).schema, 0
    with pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=list(join.source.entities)) as writer:
        for batch in entities.batches():
            writer.write_table(_spine(batch, join, time, done), row_group_size=_SPINE_ROW_GROUP)
            done += batch.num_rows


def _spine(entities: pa.Table, join: Join, time: str, first: int) -> pa.Table:
    """Return the entity rows with what a join needs: number, time in µs and keys."""
    if missing := [key for key in join.keys if key not in entities.column_names]:
        raise BadInputError(f"the entity rows have no column {missing[0]!r}; they have: {entities.column_names}")
    columns = {
        ROW: pa.array(np.arange(first, first + entities.num_rows)),
        TIME: entities[time].cast(TIMESTAMP, safe=False).cast(pa.int64()),  # nanoseconds are cut off
    }
    keys = {name: _key(entities[key]) for name, key in zip(join.source.entities, join.keys, strict=True)}
    return pa.table(columns | keys)


def _key(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a key column as plain strings or integers; an empty or categorical one has another type."""
    return column if pa.types.is_integer(column.type) else column.cast(pa.string())


def _run(join: Join, run: Callable[[str], Result], spine: str) -> Result:
    try:
        return run(join.sql(spine))
    except (duckdb.BinderException, duckdb.ConversionException) as error:
        files = ", ".join(map(str, join.source.files[:3]))
        raise BadInputError(
            f"the features in {files} do not fit the entity rows or their definition: {error}"
        ) from None
    except duckdb.OutOfMemoryException as error:
        raise BadInputError(
            f"the join needs more memory than it may have: {error}. Give the offline store a higher memory_limit in "
            "feature_store.yaml, or ask for fewer entity rows at a time"
        ) from None


def _copy(connection: duckdb.DuckDBPyConnection, path: Path, sql: str) -> None:
    connection.execute(f"COPY ({sql}) TO '{_text(path)}' (FORMAT parquet, COMPRESSION lz4, ROW_GROUP_SIZE 50000)")


def _exactly(file: pq.ParquetFile) -> Callable[[int], pa.Table]:
    """Return a function that reads the next n rows."""
    batches, rest = file.iter_batches(BATCH_ROWS), file.schema_arrow.empty_table()

    def read(rows: int) -> pa.Table:
        nonlocal rest
        while rest.num_rows < rows:
            rest = pa.concat_tables([rest, pa.Table.from_batches([next(batches)])])
        result, rest = rest.slice(0, rows), rest.slice(rows)
        return result

    return read


def _text(path: Path) -> str:
    return str(path).replace("'", "''")
