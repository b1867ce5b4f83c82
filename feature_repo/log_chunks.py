"""Reads the event log in `seq` order and in chunks, so that memory does not grow with the length of the log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.events import LOG_SCHEMA
from feature_repo.fold import I64, feature_time
from feature_repo.live_files import log_paths
from feature_repo.settings import Settings

#: What the fold needs of an event.
FOLD_COLUMNS: Final = (
    "seq",
    "user_id",
    "item_id",
    "event_type",
    "value",
    "quantity",
    "event_timestamp",
    "received_at",
    "session_id",
    "request_id",
    "category",
    "price",
)


@dataclass(frozen=True)
class LogFile:
    """One file of the log and the range of `seq` in it."""

    path: Path
    rows: int
    first_seq: int
    last_seq: int


def log_files(settings: Settings, since_seq: int = 0) -> list[LogFile]:
    """Return the files with events after `since_seq`, by their first `seq`, from their footers alone.

    To be called, and the files read, within `live_files.files_kept`: otherwise ingest may merge some away.
    """
    files: list[LogFile] = []
    for path in log_paths(settings.events_dir):
        metadata = pq.read_metadata(path)
        column = metadata.schema.names.index("seq")
        ranges = [metadata.row_group(g).column(column).statistics for g in range(metadata.num_row_groups)]
        if ranges and max(r.max for r in ranges) > since_seq:
            files.append(LogFile(path, metadata.num_rows, min(r.min for r in ranges), max(r.max for r in ranges)))
    return sorted(files, key=lambda file: file.first_seq)


def log_chunks(files: list[LogFile], since_seq: int, chunk_events: int) -> Iterator[pa.Table]:
    """Yield the events after `since_seq` in `seq` order, at least `chunk_events` at a time (but the last).

    Where a chunk ends depends on the events only, not on the files they are in. Neighbours with one feature time, as
    the lines of an invoice, are never parted.
    """
    buffer = LOG_SCHEMA.empty_table().select(FOLD_COLUMNS)
    for i, file in enumerate(files):
        new = pq.ParquetFile(file.path).read(columns=list(FOLD_COLUMNS)).select(FOLD_COLUMNS).cast(buffer.schema)
        buffer = pa.concat_tables([buffer, new.filter(pc.greater(new["seq"], since_seq))])
        last = i + 1 == len(files)
        if buffer.num_rows <= chunk_events and not last:
            continue
        buffer = _in_order(buffer)
        # Events that a later file may still precede wait for it.
        complete = len(buffer) if last else int(np.searchsorted(buffer["seq"].to_numpy(), files[i + 1].first_seq))
        time, start = feature_time(buffer.slice(0, complete)), 0
        while (stop := _cut(time, start + chunk_events)) is not None:
            yield buffer.slice(start, stop - start).combine_chunks()
            start = stop
        buffer = buffer.slice(start)
    if buffer.num_rows:
        yield buffer.combine_chunks()


def _cut(time: I64, at: int) -> int | None:
    """Return the first index from `at` on where the time changes; None if that is not in sight."""
    changes = np.flatnonzero(time[at:] != time[at - 1 : -1])
    return at + int(changes[0]) if len(changes) else None


def _in_order(events: pa.Table) -> pa.Table:
    """Sort by `seq`; an event that was logged twice counts once."""
    seq = events["seq"].to_numpy()
    if np.all(seq[1:] > seq[:-1]):
        return events
    return events.take(pa.array(np.unique(seq, return_index=True)[1]))
