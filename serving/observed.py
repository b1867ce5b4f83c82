"""The gauges that are read when Prometheus asks: ages, sizes, and what ingest says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from serving.ingest_status import IngestView
from serving.metrics import Metrics
from serving.redis_client import RedisGuard
from serving.state import ServingState


def observe(
    metrics: Metrics,
    state: ServingState,
    now_us: Callable[[], int],
    queues: Mapping[str, Callable[[], float]],
    breakers: Mapping[str, RedisGuard],
) -> None:
    """Register what is read when Prometheus asks.

    Parameters
    ----------
    metrics, state, now_us
        Of the app.
    queues
        Name to the records that wait in it.
    breakers
        What Redis is asked for, to the breaker around it.
    """
    nan = float("nan")

    def feature_age_s() -> float:
        age = state.feature_age_s(now_us())
        return nan if age is None else age

    metrics.observe("feature_age_seconds", "Time since the features were complete", feature_age_s)
    metrics.observe("item_table_age_seconds", "Time since the item table was last compared", lambda: state.items.age_s)
    metrics.observe("item_table_items", "Items in the item table", lambda: len(state.table or ()))
    metrics.observe_each("queue_records", "What waits in a queue of the process", "queue", queues)
    open_breakers = {name: partial(_is_open, guard) for name, guard in breakers.items()}
    metrics.observe_each("breaker_open_status", "1 while Redis is left alone", "operation", open_breakers)
    metrics.observe("under_way_requests", "Recommendations being made", lambda: state.under_way)
    metrics.observe("ready_status", "1 if recommendations can be made", lambda: float(state.ready))
    metrics.observe("champion_status", "1 if a champion's bundle is loaded", lambda: float(state.release is not None))
    metrics.observe("plan_epoch", "Epoch of the plan in force; 0 if none", lambda: _epoch(state))
    metrics.observe("ingest_lag_seconds", "Age of events when they became visible", lambda: state.ingest.lag_ms / 1e3)
    for name, text, value in _INGEST_GAUGES:
        metrics.observe(name, text, partial(_of_ingest, state, value))


#: What ingest says of itself in Redis, which stays when it is gone; feature_repo/ingest_metrics.py has more.
_INGEST_GAUGES: tuple[tuple[str, str, Callable[[IngestView], float]], ...] = (
    ("ingest_updated_timestamp_seconds", "When ingest last said something", lambda said: said.updated_ms / 1e3),
    ("stream_entries", "Entries in the stream, those not trimmed yet included", lambda said: said.stream_entries),
    ("quarantine_waiting_rows", "Refused rows that wait to be written to files", lambda said: said.quarantine_waiting),
)


def _is_open(guard: RedisGuard) -> float:
    return float(guard.failing)


def _epoch(state: ServingState) -> float:
    return 0.0 if state.release is None else float(state.release.plan.epoch)


def _of_ingest(state: ServingState, value: Callable[[IngestView], float]) -> float:
    return float(value(state.ingest))
