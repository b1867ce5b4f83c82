"""The live part of the offline log: events and catalogue changes as Parquet by day, written by ingest behind the fold.

A file holds a run of entries of one kind that follow each other in the stream and fall on one UTC day; its name says
the first and the last `seq` in it. So how far the log reaches can always be told from the names, after any crash, and
what is missing is still in the stream, which is trimmed behind the log only.
"""

from __future__ import annotations

import fcntl
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import ConflictError
from feature_repo.events import ITEM_CHANGE_SCHEMA, LOG_SCHEMA, QUARANTINE_SCHEMA
from feature_repo.item_changes import change_table
from feature_repo.live_files import live_files, merge_small
from feature_repo.parquet_files import sync, write_whole
from feature_repo.settings import Settings
from feature_repo.stream import StreamBatch
from feature_repo.views import DAY_US

_TEMPORARY = ".live-*.tmp"


def log_watermark(directory: Path) -> int:
    """Return the last `seq` in a directory of live files, from their names; 0 if there is none."""
    return max((file.last for file in live_files(directory)), default=0)


class _Runs:
    """Live files of one kind below one directory, and the last `seq` in them.

    Raises
    ------
    ConflictError
        If files overlap so that it is not clear which counts.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(f"day=*/{_TEMPORARY}"):
            leftover.unlink()
        self.watermark = self._checked_watermark()

    def append(self, table: pa.Table, time: pa.ChunkedArray) -> None:
        """Write the rows that are not there yet, a file per run of rows of one UTC day.

        Parameters
        ----------
        table
            Rows in `seq` order.
        time
            Each row's time in µs, which says its day.
        """
        new = pc.greater(table["seq"], self.watermark)
        table, days = table.filter(new), time.filter(new).to_numpy() // DAY_US
        starts = np.flatnonzero(np.r_[True, days[1:] != days[:-1]][: len(days)]).tolist()
        for start, end in zip(starts, [*starts[1:], len(days)][: len(starts)], strict=True):
            self._write_run(table.slice(start, end - start), int(days[start]))

    def _write_run(self, run: pa.Table, day: int) -> None:
        first, last = run["seq"][0].as_py(), run["seq"][-1].as_py()
        directory = self.directory / f"day={datetime.fromtimestamp(day * 86_400, UTC).date().isoformat()}"
        if not directory.is_dir():
            directory.mkdir()
            sync(self.directory)
        write_whole(run, directory / f"live-{first}-{last}.parquet")
        self.watermark = last

    def _checked_watermark(self) -> int:
        """Return the last `seq` of all files; a file whose rows another one holds as well is removed."""
        reached = 0
        for file in live_files(self.directory):
            if file.last <= reached:
                file.path.unlink()
            elif file.first <= reached:
                raise ConflictError(
                    f"{file.path} begins at seq {file.first}, but the log before it reaches seq {reached}: two writers "
                    "wrote this log; move one of the two files away"
                )
            reached = max(reached, file.last)
        return reached


class LiveLog:
    """Appends what was in the stream to the offline log. One writer per directory, held by a lock.

    The changes of the catalogue in a batch are written before its events. So whatever comes before the last logged
    event is logged, of either kind, and after a crash that event says where to go on.

    Attributes
    ----------
    watermark
        `seq` up to which everything is in the log; 0 if nothing is.

    Raises
    ------
    ConflictError
        If another process writes the log, or files overlap so that it is not clear which counts.
    """

    def __init__(self, settings: Settings) -> None:
        self._directory = settings.events_dir
        self._quarantine = settings.quarantine_dir
        self._source = f"{settings.project}:events"
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        try:
            self._events, self._items = _Runs(settings.events_dir), _Runs(settings.item_changes_dir)
            self.watermark = self._events.watermark
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Let another process write the log."""
        self._lock.close()

    def append(self, batch: StreamBatch) -> None:
        """Write what the log does not have of a batch; it is safely on disk when this returns.

        Raises
        ------
        OSError
            If the disk is full or away; part of the batch may be written, and appending it again is safe.
        """
        if batch.malformed:
            self._set_aside(batch)
        if batch.changes:
            changes = change_table(batch.changes)
            self._items.append(changes, changes["received_at"].cast(pa.int64()))
        times = (batch.table[name].cast(pa.int64()) for name in ("event_timestamp", "received_at"))
        try:
            self._events.append(batch.table, pc.max_element_wise(*times))  # the day of feature time
        finally:
            self.watermark = max(self.watermark, self._events.watermark)
        self.watermark = max(self.watermark, batch.last_seq)

    def merge_small(self) -> int:
        """Merge one run of small files of either kind, if there is one; return how many files became one.

        Raises
        ------
        OSError
            If the disk is full or away; the small files stay.
        """
        return merge_small(self._events.directory, LOG_SCHEMA) or merge_small(self._items.directory, ITEM_CHANGE_SCHEMA)

    def _set_aside(self, batch: StreamBatch) -> None:
        """Keep stream entries that are neither in a quarantine file named by the first one's `seq`."""
        self._quarantine.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "source": self._source,
                "row": seq,
                "reason": "undecodable_payload",
                "detail": f"{len(payload)} bytes",
                "raw": json.dumps(payload.hex()),
            }
            for seq, payload in batch.malformed
        ]
        table = pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)
        write_whole(table, self._quarantine / f"live-{batch.malformed[0][0]}-{batch.malformed[-1][0]}.parquet")

    def _locked(self) -> IO[str]:
        handle = (self._directory / ".writer.lock").open("a")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise ConflictError(
                f"another ingest worker writes {self._directory}; a project has exactly one (stop it first)"
            ) from None
        return handle
