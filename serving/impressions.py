"""What was served: one record per answer, appended to files by a thread of its own so that no answer waits for it."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec

from serving.cascade.recommender import RankedItem

_LOG = logging.getLogger(__name__)
#: Records waiting to be written; about 10 MB at k = 20.
QUEUE_LENGTH = 10_000
_FLUSH_S = 0.5


@dataclass(frozen=True, slots=True)
class Impressions:
    """One answer.

    Attributes
    ----------
    time_us
        When the request was answered from, µs since the epoch (its `now`).
    assigned_arm
        Arm of the plan the user belongs to; guardrails count by it, so a fallback hides nothing.
    served_bundle
        Bundle that made the list; None where none did (popularity).
    user_seq
        `seq` of the user's row and of the recent events the model saw; 0 where there was none.
    """

    request_id: str
    time_us: int
    user_id: str
    assigned_arm: str
    served_bundle: str | None
    model_version: str | None
    level: str
    k: int
    items: list[RankedItem]
    user_seq: int
    recent_seq: int
    feature_age_s: float | None
    reasons: list[str]


class ImpressionLog:
    """A bounded queue and the thread that appends JSON lines to `<directory>/<UTC day>/<start>-<pid>.jsonl`.

    Parameters
    ----------
    directory
        `Settings.impressions_dir`.
    on_drop
        Called with the number of records that were lost: the queue was full, or the disk refused them.
    length
        Records that may wait.
    """

    def __init__(self, directory: Path, on_drop: Callable[[int], None], length: int = QUEUE_LENGTH) -> None:
        self._directory = directory
        self._on_drop = on_drop
        self._queue: queue.Queue[Impressions | None] = queue.Queue(length)
        self._name = f"{time.time_ns() // 1_000_000}-{os.getpid()}.jsonl"
        self._file: IO[bytes] | None = None
        self._day = ""
        self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)

    @property
    def waiting(self) -> int:
        """Records not yet taken up by the thread."""
        return self._queue.qsize()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def append(self, record: Impressions) -> None:
        """Queue a record; drop it if the queue is full. Never waits."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._on_drop(1)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what is queued and end the thread; what cannot be written in time counts as dropped."""
        if not self._thread.is_alive():
            return
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(max(deadline - time.monotonic(), 0.1))
        if self._thread.is_alive():
            self._on_drop(self._queue.qsize())

    def _run(self) -> None:
        encoder = msgspec.json.Encoder()
        waiting: list[Impressions] = []
        stopping = False
        while not stopping:
            deadline = time.monotonic() + _FLUSH_S
            while not stopping and len(waiting) < QUEUE_LENGTH and (left := deadline - time.monotonic()) > 0:
                try:
                    record = self._queue.get(timeout=left)
                except queue.Empty:
                    break
                if record is None:
                    stopping = True
                else:
                    waiting.append(record)
            if waiting:
                self._write(waiting, encoder)
                waiting = []
        if self._file is not None:
            self._file.close()

    def _write(self, records: list[Impressions], encoder: msgspec.json.Encoder) -> None:
        try:
            by_day: dict[str, list[Impressions]] = {}
            for record in records:
                day = datetime.fromtimestamp(record.time_us / 1e6, UTC).strftime("%Y-%m-%d")
                by_day.setdefault(day, []).append(record)
            for day, those in by_day.items():
                file = self._open(day)
                file.write(encoder.encode_lines(those))
                file.flush()
        except (OSError, ValueError) as error:  # a closed file is a ValueError
            _LOG.error("%d impressions could not be written: %s", len(records), error)
            self._on_drop(len(records))
            self._file = None

    def _open(self, day: str) -> IO[bytes]:
        if self._file is None or day != self._day:
            if self._file is not None:
                self._file.close()
            directory = self._directory / day
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / self._name).open("ab")
            self._day = day
        return self._file
