"""Ingest: the one worker that folds the event stream into the online rows and writes the offline log behind.

Exactly once in effect: rows keep the `seq` they hold, and the watermark moves when all rows of a batch are written
(ingest_write.py says in which order). Scripts refuse if the watermark is not where the batch was read (another worker,
or one that came back from a long pause). The stream is trimmed only behind both the watermark and the log.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import redis
from redis.exceptions import RedisError, ResponseError

from feature_repo.errors import ConflictError, UnavailableError
from feature_repo.events import SEQ_COUNTER_BITS
from feature_repo.expiry_sweep import ExpirySweep
from feature_repo.ingest_log import LiveLog
from feature_repo.ingest_write import BatchWriter
from feature_repo.micro_batch import MicroBatch, warm_up
from feature_repo.online_keys import checked_project, status_key, watermark_key
from feature_repo.quarantine import QuarantineDrain
from feature_repo.read_ahead import ReadAhead
from feature_repo.redis_failures import passes
from feature_repo.redis_memory import memory_use
from feature_repo.row_index import refuse_earlier_rows
from feature_repo.settings import Settings
from feature_repo.stream import StreamBatch, decode_entries
from feature_repo.stream_reader import KeptBatches, StreamReader

logger = logging.getLogger(__name__)

#: Events folded at a time at most. A batch has as many as wait: few, unless ingest is behind; in large ones users and
#: items meet more often, while each row is read and written once.
BATCH_EVENTS: Final = 2_000
#: Events after which the log is written at once, without waiting for its time.
LOG_EVENTS: Final = 10_000
LOG_EVERY_S: Final = 2.0
STATUS_EVERY_S: Final = 1.0
TIDY_EVERY_S: Final = 20.0
_RETRY_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(slots=True)
class IngestStatus:
    """Counters of the worker, published as JSON to `<project>:ingest:status` once a second."""

    pid: int = field(default_factory=os.getpid)
    started_ms: int = 0
    updated_ms: int = 0
    watermark: int = 0
    log_watermark: int = 0
    events: int = 0
    item_changes: int = 0
    batches: int = 0
    malformed: int = 0
    redis_errors: int = 0
    log_errors: int = 0
    #: Entries in the stream, folded and logged ones that are not trimmed yet included.
    stream_entries: int = 0
    #: Refused rows that wait to be written to the quarantine files, and those written since the start.
    quarantine_waiting: int = 0
    quarantine_written: int = 0
    #: Entries of the last batch.
    batch_entries: int = 0
    #: Expired rows removed since the start, and how often all were looked at.
    rows_expired: int = 0
    expiry_rounds: int = 0
    #: Age of the newest folded event when its batch became visible; 0 while there is nothing to do.
    lag_ms: int = 0
    #: Everything accepted before this time is in the features.
    current_ms: int = 0
    #: Events per second over the last second.
    rate: float = 0.0
    #: Memory Redis uses, and may use (`redis_memory.memory_use`); then that of the events' Redis, if there is one.
    redis_used_bytes: int = 0
    redis_limit_bytes: int = 0
    events_redis_used_bytes: int = 0
    events_redis_limit_bytes: int = 0


def read_status(client: redis.Redis, project: str) -> IngestStatus | None:
    """Return what the worker last published; None if it never ran.

    Raises
    ------
    UnavailableError
        If Redis does not answer.
    """
    try:
        raw = client.get(status_key(project))
    except (RedisError, OSError) as error:
        raise UnavailableError(f"Redis did not answer: {type(error).__name__}: {error}") from error
    return msgspec.json.decode(raw, type=IngestStatus) if isinstance(raw, bytes) else None


class IngestWorker:
    """Folds accepted events in `seq` order.

    Parameters
    ----------
    settings
        Project and directories.
    client
        Client of the project's Redis for raw bytes, with a timeout of seconds rather than a request's.
    events
        Client of the Redis that has the stream and the quarantine; None: the same.
    batch_events
        Events folded at a time.
    """

    def __init__(
        self,
        settings: Settings,
        client: redis.Redis,
        *,
        events: redis.Redis | None = None,
        batch_events: int = BATCH_EVENTS,
    ) -> None:
        self._settings = settings
        self._project = checked_project(settings.project)
        self._client = client
        self._batch_events = batch_events
        self._events = events or client
        self._stream = StreamReader(self._events, settings.project)
        self._ahead: ReadAhead[tuple[StreamBatch, MicroBatch]] = ReadAhead(self._prepared)
        self._kept = KeptBatches(LOG_EVENTS + batch_events)
        self._rows = BatchWriter(client, settings.project)
        self._expired = ExpirySweep(client, settings.project, start=_now_ms())
        self._quarantine = QuarantineDrain(settings, self._events)
        self._log: LiveLog | None = None
        self._attempted = 0
        self._unlogged = 0
        self._log_due = self._status_due = self._tidy_due = 0.0
        self._rate_from = (0.0, 0)
        self.status = IngestStatus()

    def start(self) -> None:
        """Take the log's lock, read the watermark, compile the fold, and complete the log. Called once.

        Raises
        ------
        ConflictError
            If another worker of the project runs on this machine, or an earlier version wrote rows without an index.
        UnavailableError
            If Redis cannot be reached.
        """
        self._log = LiveLog(self._settings)
        try:
            warm_up()
            refuse_earlier_rows(self._client, self._project)
            self.status.started_ms = _now_ms()
            self.status.watermark = self._attempted = self._read_watermark()
            self._stream.go_on_after(self.status.watermark)
            self.flush()
            self._publish()
        except RedisError as error:
            self.close()
            raise UnavailableError(f"ingest cannot reach Redis: {type(error).__name__}: {error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the log's lock, and end the thread that reads ahead."""
        self._ahead.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def step(self, wait_ms: int = 0) -> int:
        """Fold the next events of the stream, `batch_events` at most.

        Parameters
        ----------
        wait_ms
            How long to wait for an event if there is none; 0 returns at once.

        Returns
        -------
        int
            How many entries of the stream were dealt with.

        Raises
        ------
        ConflictError
            If another writer has moved the watermark: this worker must stop.
        redis.exceptions.RedisError
            If Redis fails; part of the batch may be written then, and folding it again is safe.
        """
        asked_ms, before = _now_ms(), self.status.watermark
        ready = self._ahead.take(before) or self._prepared(before, wait_ms)
        if ready is None:
            self.status.lag_ms, self.status.current_ms = 0, asked_ms
            return 0
        batch, work = ready
        entries: int = batch.table.num_rows + len(batch.changes) + len(batch.malformed)
        work.fold(self._rows.read(work))
        if entries >= self._batch_events:  # behind
            self._ahead.begin(batch.last_seq)
        self._write(work, batch.last_seq)
        self._kept.add(before, batch)
        self.status.events += batch.table.num_rows
        self.status.item_changes += len(batch.changes)
        self.status.batches += 1
        self.status.batch_entries = entries
        self.status.malformed += len(batch.malformed)
        self._unlogged += entries
        self.status.current_ms = batch.last_seq >> SEQ_COUNTER_BITS
        self.status.lag_ms = max(_now_ms() - self.status.current_ms, 0)
        return entries

    def flush(self) -> None:
        """Write the log up to the watermark, and trim the stream behind both.

        Raises
        ------
        OSError
            If the log cannot be written; what is missing stays in the stream and is written by the next call.
        """
        if self._log is None:
            raise AssertionError("flush before start")
        log, kept = self._log, self._kept
        while log.watermark < self.status.watermark:
            until = kept.after if kept.batches else self.status.watermark
            entries = self._stream.between(log.watermark, until) if log.watermark < until else []
            if entries:
                log.append(decode_entries(entries))
            elif kept.batches:
                log.append(kept.joined())
                kept.batches.clear()
            else:
                break
        kept.batches.clear()
        self._unlogged = 0
        self.status.log_watermark = log.watermark
        if log.watermark:
            self._stream.trim(min(log.watermark, self.status.watermark))

    def run(self, stop: threading.Event, on_ready: Callable[[IngestStatus], None] | None = None) -> None:
        """Work until told to stop; Redis or the log's disk being away is waited out.

        Parameters
        ----------
        stop
            Ends the work after the batch at hand; the log is completed then.
        on_ready
            Called once, when the first event could be folded.

        Raises
        ------
        ConflictError
            If another worker runs, or Redis holds something else under a key of ours.
        """
        if self._log is None:
            self.start()
        if on_ready is not None:
            on_ready(self.status)
        failures = 0
        try:
            while not stop.is_set():
                try:
                    if failures:
                        self._find_place()
                    self.step(wait_ms=200)
                    self._maintain()
                    failures = 0
                except (RedisError, OSError) as error:
                    if not passes(error):
                        raise
                    self.status.redis_errors += 1
                    if not failures:
                        logger.warning("ingest waits for Redis: %s: %s", type(error).__name__, error)
                    stop.wait(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                    failures += 1
            self._finish()
        except ResponseError as error:
            raise ConflictError(f"Redis refuses a command of ingest: {error}") from error
        finally:
            self.close()

    def _prepared(self, after: int, wait_ms: int = 0) -> tuple[StreamBatch, MicroBatch] | None:
        """Return the batch after a `seq`, ready to be folded; None if nothing follows."""
        entries = self._stream.after(after, self._batch_events, wait_ms)
        if not entries:
            return None
        batch = decode_entries(entries)
        return batch, MicroBatch(self._project, batch.table, batch.changes)

    def _write(self, work: MicroBatch, last_seq: int) -> None:
        self._attempted = last_seq
        if not self._rows.write(work, self.status.watermark, last_seq):
            raise self._fenced()
        self.status.watermark = last_seq

    def _find_place(self) -> None:
        """After a failure, learn whether the last batch was written before the answer got lost."""
        place = self._read_watermark()
        if place not in (self.status.watermark, self._attempted):
            raise self._fenced()
        self.status.watermark = place
        self._stream.go_on_after(place)

    def _read_watermark(self) -> int:
        raw: Any = self._client.get(watermark_key(self._project))
        return int(raw or 0)

    def _fenced(self) -> ConflictError:
        return ConflictError(
            f"another writer moved the watermark of project {self._project!r} away from {self.status.watermark}; this "
            "worker stops, nothing counts twice: run exactly one `larder ingest run` per project"
        )

    def _maintain(self) -> None:
        now = time.monotonic()
        if self._unlogged and (now >= self._log_due or self._unlogged >= LOG_EVENTS):
            self._log_due = now + LOG_EVERY_S
            self._try_flush()
        if now >= self._status_due:
            self._drain_quarantine(now)
            self._sweep()
            self._tidy_log(now)
            self._publish()
            self._status_due = now + STATUS_EVERY_S

    def _try_flush(self) -> None:
        try:
            self.flush()
        except RedisError:
            raise
        except OSError as error:
            self.status.log_errors += 1
            self._unlogged = 1  # due by time alone: trying at every batch would leave no time for the features
            logger.warning("ingest cannot write the offline log, the events stay in the stream: %s", error)

    def _drain_quarantine(self, now: float) -> None:
        """Move refused rows to their files; where the disk refuses, they stay in Redis, which keeps the last ones."""
        try:
            self.status.quarantine_waiting = self._quarantine.waiting()
            self.status.quarantine_written += self._quarantine.step(now, self.status.quarantine_waiting)
        except RedisError:
            raise
        except OSError as error:
            logger.warning("ingest cannot write the quarantine, the rows stay in Redis: %s", error)

    def _sweep(self) -> None:
        """Remove some expired rows, unless events wait."""
        if self.status.batch_entries < self._batch_events:
            self._expired.step(self.status.watermark)
            self.status.rows_expired, self.status.expiry_rounds = self._expired.removed, self._expired.rounds

    def _tidy_log(self, now: float) -> None:
        """Merge small files of the log now and then, unless events wait."""
        if self._log is None or now < self._tidy_due or self.status.batch_entries >= self._batch_events:
            return
        self._tidy_due = now + TIDY_EVERY_S
        try:
            self._log.merge_small()
        except OSError as error:
            logger.warning("ingest cannot merge small files of the offline log, they stay: %s", error)

    def _publish(self) -> None:
        now = time.monotonic()
        self.status.stream_entries = self._stream.length()
        then, events = self._rate_from
        self.status.rate = round((self.status.events - events) / (now - then), 1) if then else 0.0
        self._rate_from = (now, self.status.events)
        self.status.redis_used_bytes, self.status.redis_limit_bytes = memory_use(self._client)
        if self._events is not self._client:
            self.status.events_redis_used_bytes, self.status.events_redis_limit_bytes = memory_use(self._events)
        self.status.updated_ms = _now_ms()
        self._client.set(status_key(self._project), msgspec.json.encode(self.status))

    def _finish(self) -> None:
        """Complete the log before the end; where Redis is away, the next start does."""
        try:
            self._try_flush()
            self._drain_quarantine(float("inf"))
            self._publish()
        except (RedisError, OSError) as error:
            logger.warning("ingest ends without completing the log (the next start does): %s", error)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
