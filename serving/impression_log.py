"""Appends records of answers to files by a thread of its own, so that no answer waits for it; removes old days."""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import IO, Any, Final, Generic, Protocol, TypeVar

import msgspec

from serving.impressions import Impressions, ShadowRecord, day_of, to_record
from serving.shown_lists import ShownLists

_LOG = logging.getLogger(__name__)
#: Records waiting to be written; about 100 MB at k = 20.
QUEUE_LENGTH: Final = 10_000
_FLUSH_S: Final = 0.5
#: Requests that are named where their records are lost.
_NAMED: Final = 5
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")


class _Timed(Protocol):
    @property
    def time_us(self) -> int: ...
    @property
    def request_id(self) -> str: ...


T = TypeVar("T", bound=_Timed)


class RecordLog(Generic[T]):
    """A bounded queue and the thread that appends JSON lines to `<directory>/<UTC day>/<start>-<pid>.jsonl`.

    Parameters
    ----------
    directory
        `Settings.impressions_dir` or `Settings.shadow_dir`.
    on_drop
        Called with the number of records that were lost: the queue was full, or the disk refused them.
    length
        Records that may wait.
    keep_days
        Days before the day of the newest record that are kept; older directories are removed when a day begins.
    name
        Of the thread.
    """

    def __init__(
        self,
        directory: Path,
        on_drop: Callable[[int], None],
        length: int = QUEUE_LENGTH,
        keep_days: int = 14,
        name: str = "records",
    ) -> None:
        self._directory = directory
        self._on_drop = on_drop
        self._length = length
        # No queue.Queue: waking the thread for each record takes the interpreter from the event loop twice a request.
        self._waiting: deque[T] = deque()
        self._ending = threading.Event()
        self._keep_days = keep_days
        self._name = f"{time.time_ns() // 1_000_000}-{os.getpid()}.jsonl"
        self._file: IO[bytes] | None = None
        self._day = ""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def waiting(self) -> int:
        """Records not yet taken up by the thread."""
        return len(self._waiting)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def append(self, record: T) -> None:
        """Queue a record; drop it if the queue is full. Never waits, and wakes nobody: the thread looks by itself."""
        if len(self._waiting) < self._length:
            self._waiting.append(record)
        else:
            self._on_drop(1)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what is queued and end the thread; what cannot be written in time counts as dropped."""
        if not self._thread.is_alive():
            return
        self._ending.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._on_drop(len(self._waiting))

    def encoded(self, record: T) -> Any:
        """Return what is written down of a record; called in the log's thread."""
        return record

    def _run(self) -> None:
        encoder = msgspec.json.Encoder()
        ending = False
        while not ending:
            ending = self._ending.wait(_FLUSH_S)
            if taken := [self._waiting.popleft() for _ in range(len(self._waiting))]:
                self._write(taken, encoder)
        if self._file is not None:
            self._file.close()

    def _write(self, records: list[T], encoder: msgspec.json.Encoder) -> None:
        written = 0
        try:
            by_day: dict[str, list[T]] = {}
            for record in records:
                by_day.setdefault(day_of(record.time_us), []).append(record)
            for day, those in by_day.items():
                file = self._open(day)
                for one in those:  # one at a time: an encoder keeps the interpreter until it is through
                    file.write(encoder.encode(self.encoded(one)) + b"\n")
                file.flush()
                written += len(those)
        except (OSError, ValueError) as error:  # a closed file is a ValueError
            lost = ", ".join(one.request_id for one in records[written : written + _NAMED])
            _LOG.error("%d records could not be written: %s; of requests %s, ...", len(records) - written, error, lost)
            self._on_drop(len(records) - written)
            self._file = None

    def _open(self, day: str) -> IO[bytes]:
        if self._file is None or day != self._day:
            if self._file is not None:
                self._file.close()
            directory = self._directory / day
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / self._name).open("ab")
            self._day = day
            self._remove_old(day)
        return self._file

    def _remove_old(self, today: str) -> None:
        """Remove the directories of days too long before `today`; another process may be doing the same."""
        oldest = (date.fromisoformat(today) - timedelta(days=self._keep_days)).isoformat()
        for path in self._directory.iterdir():
            if _DAY.fullmatch(path.name) and path.name < oldest:
                shutil.rmtree(path, ignore_errors=True)


class ImpressionLog(RecordLog[Impressions]):
    """The log of answers; `lists` are those of this process, known before they are on disk."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lists = ShownLists()

    def append(self, record: Impressions) -> None:
        """Queue a record, and remember its list."""
        self.lists.remember(record.request_id, record.user_id, [item.item_id for item in record.items])
        super().append(record)

    def encoded(self, record: Impressions) -> Any:
        """Encode what the model saw."""
        return to_record(record)


class ShadowLog(RecordLog[ShadowRecord]):
    """The log of a shadow candidate's comparisons."""
