"""The gauges that are read when Prometheus asks: ages, sizes, and what ingest says of itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from feature_repo.events import SEQ_COUNTER_BITS
from serving.impression_log import ImpressionLog
from serving.ingest_status import IngestView
from serving.metrics import Metrics
from serving.state import ServingState


def _log_lag_s(said: IngestView) -> float:
    logged_ms = said.log_watermark >> SEQ_COUNTER_BITS
    return max(said.watermark_ms - logged_ms, 0) / 1e3 if logged_ms else 0.0


def observe(metrics: Metrics, state: ServingState, impressions: ImpressionLog, now_us: Callable[[], int]) -> None:
    """Register what is read when Prometheus asks."""
    nan = float("nan")

    def feature_age_s() -> float:
        age = state.feature_age_s(now_us())
        return nan if age is None else age

    metrics.observe("feature_age_seconds", "Time since the features were complete", feature_age_s)
    metrics.observe("item_table_age_seconds", "Time since the item table was last compared", lambda: state.items.age_s)
    metrics.observe("item_table_items", "Items in the item table", lambda: len(state.table or ()))
    metrics.observe("impressions_waiting_records", "Records waiting to be written", lambda: impressions.waiting)
    metrics.observe("ready_status", "1 if recommendations can be made", lambda: float(state.ready))
    metrics.observe("ingest_lag_seconds", "Age of events when they became visible", lambda: state.ingest.lag_ms / 1e3)
    metrics.observe("ingest_rate", "Events folded per second", lambda: state.ingest.rate)
    for name, text, value in _INGEST_GAUGES:
        metrics.observe(name, text, partial(_of_ingest, state, value))


#: What ingest says of itself: gauges, as its counters begin anew with each start.
_INGEST_GAUGES: tuple[tuple[str, str, Callable[[IngestView], float]], ...] = (
    ("ingest_watermark_timestamp_seconds", "Time of the last event folded", lambda said: said.watermark_ms / 1e3),
    ("ingest_updated_timestamp_seconds", "When ingest last said something", lambda said: said.updated_ms / 1e3),
    ("ingest_folded_events", "Events folded since ingest started", lambda said: said.events),
    ("ingest_item_changes", "Catalogue changes applied since ingest started", lambda said: said.item_changes),
    ("ingest_malformed_entries", "Entries of the stream that were none, since it started", lambda said: said.malformed),
    ("ingest_redis_errors", "Failures of Redis ingest waited out", lambda said: said.redis_errors),
    ("ingest_log_errors", "Failures of the offline log's disk it waited out", lambda said: said.log_errors),
    ("ingest_log_lag_seconds", "How far the offline log is behind the features", _log_lag_s),
    ("stream_entries", "Entries in the stream, those not trimmed yet included", lambda said: said.stream_entries),
    ("quarantine_waiting_rows", "Refused rows that wait to be written to files", lambda said: said.quarantine_waiting),
    ("quarantine_written_rows", "Refused rows written since ingest started", lambda said: said.quarantine_written),
)


def _of_ingest(state: ServingState, value: Callable[[IngestView], float]) -> float:
    return float(value(state.ingest))
