"""Proof of sameness: compares the online store with the offline one, and what was served with the event log."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import numpy as np
import redis

from feature_repo.backfill import backfill
from feature_repo.errors import ConflictError
from feature_repo.event_log import imported_at_us
from feature_repo.events import SEQ_COUNTER_BITS
from feature_repo.ingest import read_status
from feature_repo.ingest_log import log_watermark
from feature_repo.live_files import files_kept
from feature_repo.log_chunks import log_files
from feature_repo.offline_layout import read_manifest
from feature_repo.online_reader import OnlineReader
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from feature_repo.store import apply
from monitoring.entities import sample_entities
from monitoring.online_offline import OnlineState, compare_online, read_all_online
from monitoring.outcomes import Comparison, SkewReport
from monitoring.served_features import REQUESTS_PER_PASS, compare_served
from serving.impressions import ImpressionRecord, read_impressions

#: The worker writes its log every two seconds; one that does not run never does.
_LOG_WAIT_S: Final = 20.0
_BACKFILL_WAIT_S: Final = 120.0
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is compared.

    Attributes
    ----------
    sample
        Entities per view, and requests; None: all.
    seed
        Which ones are drawn.
    since_us
        Requests answered from then on only, µs. Those before the history was imported are left out in any case: their
        `seq`s are of another log.
    only
        `stores` or `served` for one of the two checks.
    """

    sample: int | None = 1_000
    seed: int = 0
    since_us: int = 0
    only: str | None = None


def check_features(settings: Settings, extent: Extent, report: Report) -> SkewReport:
    """Run both checks.

    Brings the offline store up to the event log (a backfill).

    Parameters
    ----------
    report
        Called with (what is being done, steps done, steps in total).

    Raises
    ------
    NotFoundError
        If the project has no events.
    UnavailableError
        If Redis does not answer.
    ConflictError
        If another backfill runs and does not end.
    """
    began, now_us = time.perf_counter(), time.time_ns() // 1000
    stores = Comparison("stores", "online against offline", "online", "offline")
    served = Comparison("served", "served against the event log", "served", "from the log")
    store = apply(settings)
    records = _drawn(_requests(settings, extent, now_us, served), extent) if extent.only != "stores" else []
    with connect(settings, timeout_ms=5_000) as client:
        online = _read_online(settings, client, store, extent, now_us, report) if extent.only != "served" else None
        last = max(online.last_seq() if online else 0, OnlineReader(client, settings.project).watermark())
        _wait_for_log(settings, client, last, report)
    _bring_up(settings, report)
    if online is not None:
        manifest = read_manifest(settings.offline_dir)
        compare_online(
            store, online, manifest.last_seq, manifest.last_time or 0, stores, partial(report, "compare with offline")
        )
    with files_kept(settings.events_dir):
        files = log_files(settings)
        for block in records:
            compare_served(settings, block, files, served, partial(report, "fold the log again"))
    comparisons = {None: (stores, served), "stores": (stores,), "served": (served,)}[extent.only]
    taken_at = datetime.fromtimestamp(now_us / 1e6, UTC).isoformat(timespec="seconds")
    return SkewReport(settings.project, taken_at, time.perf_counter() - began, comparisons)


def _read_online(
    settings: Settings, client: redis.Redis, store: Any, extent: Extent, now_us: int, report: Report
) -> OnlineState:
    reader = OnlineReader(client, settings.project)
    with files_kept(settings.events_dir):
        entities = sample_entities(log_files(settings), extent.sample, extent.seed)
    total, done = len(entities), 0

    def known_us() -> int:
        status = read_status(client, settings.project)
        folded_us = (reader.watermark() >> SEQ_COUNTER_BITS) * 1000
        return max(status.current_ms * 1000 if status else 0, folded_us)

    def read(number: int) -> None:
        nonlocal done
        done += number
        report("read online", done, total)

    return read_all_online(store, entities, now_us, known_us, read)


def _requests(settings: Settings, extent: Extent, until_us: int, into: Comparison) -> Iterable[ImpressionRecord]:
    """Yield the answers given before the check began: the log will have all that they may have used."""
    imported = imported_at_us(settings)
    for record in read_impressions(settings.impressions_dir, extent.since_us):
        if record.time_us >= until_us:
            continue
        if record.time_us < imported:
            into.leave_out("answers from before the history was imported", 1)
        else:
            yield record


def _drawn(records: Iterable[ImpressionRecord], extent: Extent) -> Iterable[list[ImpressionRecord]]:
    """Return the requests to compare, in blocks; a sample is drawn at once, in one pass and in its own memory."""
    if extent.sample is None:
        return _blocks(records)
    rng = np.random.default_rng(extent.seed)
    kept: list[ImpressionRecord] = []
    for number, record in enumerate(records):
        if number < extent.sample:
            kept.append(record)
        elif (place := int(rng.integers(number + 1))) < extent.sample:
            kept[place] = record
    return _blocks(kept)


def _blocks(records: Iterable[ImpressionRecord]) -> Iterable[list[ImpressionRecord]]:
    rest = iter(records)
    while block := list(itertools.islice(rest, REQUESTS_PER_PASS)):
        yield block


def _wait_for_log(settings: Settings, client: redis.Redis, last: int, report: Report) -> None:
    """Wait until the log holds what was read; without a worker it never will, and that is then late."""
    report("wait for the event log", 0, 1)
    deadline = time.monotonic() + _LOG_WAIT_S
    while time.monotonic() < deadline:
        # The worker's word covers catalogue changes too; files are there also where no worker runs.
        status = read_status(client, settings.project)
        if max(status.log_watermark if status else 0, log_watermark(settings.events_dir)) >= last:
            break
        with files_kept(settings.events_dir):
            if max((file.last_seq for file in log_files(settings)), default=0) >= last:
                break
        time.sleep(0.1)
    report("wait for the event log", 1, 1)


def _bring_up(settings: Settings, report: Report) -> None:
    deadline = time.monotonic() + _BACKFILL_WAIT_S
    while True:
        try:
            backfill(settings, on_progress=lambda done, total: report("bring the offline store up", done, total))
        except ConflictError:  # another one runs: it does the same
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return
