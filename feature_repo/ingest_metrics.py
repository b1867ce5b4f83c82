"""Metrics of the ingest worker for Prometheus: its own counters, the memory of its Redis, the disk it writes to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from feature_repo.events import SEQ_COUNTER_BITS
from feature_repo.ingest import IngestStatus


def _log_lag_s(said: IngestStatus) -> float:
    if not said.log_watermark:
        return 0.0
    return max((said.watermark >> SEQ_COUNTER_BITS) - (said.log_watermark >> SEQ_COUNTER_BITS), 0) / 1e3


_COUNTERS: Final[tuple[tuple[str, str, Callable[[IngestStatus], int]], ...]] = (
    ("ingest_events", "Events folded", lambda said: said.events),
    ("ingest_item_changes", "Catalogue changes applied", lambda said: said.item_changes),
    ("ingest_batches", "Micro-batches written", lambda said: said.batches),
    ("ingest_malformed_entries", "Entries of the stream that were neither, set aside", lambda said: said.malformed),
    ("ingest_redis_errors", "Failures of Redis that were waited out", lambda said: said.redis_errors),
    ("ingest_log_errors", "Failures of the offline log's disk that were waited out", lambda said: said.log_errors),
    ("ingest_expired_rows", "Feature rows removed because nobody came back", lambda said: said.rows_expired),
    ("quarantine_written_rows", "Refused rows written to files", lambda said: said.quarantine_written),
)
_GAUGES: Final[tuple[tuple[str, str, Callable[[IngestStatus], float]], ...]] = (
    ("ingest_batch_entries", "Entries of the last batch", lambda said: said.batch_entries),
    (
        "ingest_watermark_timestamp_seconds",
        "Time of the last event folded",
        lambda said: (said.watermark >> SEQ_COUNTER_BITS) / 1e3,
    ),
    ("ingest_log_lag_seconds", "How far the offline log is behind the features", _log_lag_s),
)


class IngestMetrics(Collector):
    """What the worker counts, asked for when Prometheus asks.

    Parameters
    ----------
    status
        Gives the worker's counters.
    directory
        On the disk that holds the offline log and, on one machine, everything else.
    """

    def __init__(self, status: Callable[[], IngestStatus], directory: Path) -> None:
        self._status = status
        self._directory = directory

    def collect(self) -> Iterator[Metric]:
        """Give all to Prometheus."""
        said = self._status()
        for name, text, count in _COUNTERS:
            yield CounterMetricFamily(f"larder_{name}", text, count(said))
        for name, text, value in _GAUGES:
            yield GaugeMetricFamily(f"larder_{name}", text, value(said))
        used = GaugeMetricFamily("larder_redis_used_memory_bytes", "Memory Redis uses", labels=["redis"])
        limit = GaugeMetricFamily(
            "larder_redis_memory_limit_bytes",
            "Memory Redis may use: its maxmemory, else the machine's",
            labels=["redis"],
        )
        used.add_metric(["features"], said.redis_used_bytes)
        limit.add_metric(["features"], said.redis_limit_bytes)
        if said.events_redis_limit_bytes:
            used.add_metric(["events"], said.events_redis_used_bytes)
            limit.add_metric(["events"], said.events_redis_limit_bytes)
        yield from (used, limit)
        disk = shutil.disk_usage(self._directory)
        yield GaugeMetricFamily("larder_disk_free_bytes", "Free space where the offline log is", disk.free)
        yield GaugeMetricFamily("larder_disk_size_bytes", "Size of that disk", disk.total)
