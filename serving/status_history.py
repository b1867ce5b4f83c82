"""The newest minutes of an API process, as its status page draws them: counts of each interval, and what stood then."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec
from prometheus_client.registry import Collector

from serving.hot_path import PATH
from serving.metrics import Metrics
from serving.redis_client import RedisGuard
from serving.state import ServingState
from serving.status_samples import EVERY_S, Sample

#: Ingest says something every second; what it said longer ago says nothing of now.
_SILENCE_S: Final = 5.0
_KEPT: Final = 600 // EVERY_S


class StatusHistory:
    """Takes a sample now and then, and keeps the newest ten minutes."""

    def __init__(self, metrics: Metrics, state: ServingState, breakers: tuple[RedisGuard, RedisGuard]) -> None:
        self._metrics = metrics
        self._state = state
        self._breakers = breakers
        self._samples: deque[Sample] = deque(maxlen=_KEPT)
        self._before = self._counts()

    async def take(self, now_us: int) -> None:
        """Take the sample of the newest interval that has ended; nothing where that was done.

        Processes begin intervals at the same time, so that their samples can be added up; asked often enough, none
        leaves one out.
        """
        at = now_us // 1_000_000 // EVERY_S * EVERY_S
        if self._samples and self._samples[-1].at >= at:
            return
        before, self._before = self._before, self._counts()
        grown = [_less(now, then) for now, then in zip(self._before, before, strict=True)]
        statuses, levels, arms, buckets, events = grown
        reads, writes = self._breakers
        ingest = self._state.ingest
        heard = now_us / 1e6 - ingest.updated_ms / 1e3 < _SILENCE_S
        self._samples.append(
            Sample(
                at=at,
                statuses=statuses,
                levels=levels,
                arms=arms,
                buckets=_apart(buckets),
                events=events.get("accepted", 0.0),
                folded=ingest.rate if heard else None,
                feature_age_s=self._state.feature_age_s(now_us),
                ingest_lag_s=ingest.lag_ms / 1e3 if heard else None,
                breakers=(reads.failing, writes.failing),
            )
        )

    def encoded(self) -> bytes:
        """Return all samples as JSON, for the process that shows the page."""
        return msgspec.json.encode(list(self._samples))

    def _counts(self) -> tuple[dict[str, float], ...]:
        statuses, levels, arms = dict[str, float](), dict[str, float](), dict[str, float]()
        for labels, _, value in _values(self._metrics.requests, "larder_requests_total"):
            if labels["route"] == PATH:
                _add(statuses, f"{labels['status'][0]}xx", value)
                if labels["level"] != "none":
                    _add(levels, labels["level"], value)
                    _add(arms, labels["arm"], value)
        buckets, events = dict[str, float](), dict[str, float]()
        for labels, _, value in _values(self._metrics.all_arms_seconds, "larder_arm_seconds_bucket"):
            _add(buckets, labels["le"], value)
        for labels, _, value in _values(self._metrics.events, "larder_events_total"):
            events[labels["status"]] = value
        return statuses, levels, arms, buckets, events


def _values(metric: Collector, name: str) -> Iterator[tuple[dict[str, str], str, float]]:
    for family in metric.collect():
        for sample in family.samples:
            if sample.name == name:
                yield sample.labels, sample.name, sample.value


def _less(now: dict[str, float], then: dict[str, float]) -> dict[str, float]:
    return {name: value - then.get(name, 0.0) for name, value in now.items() if value != then.get(name, 0.0)}


def _apart(cumulative: dict[str, float]) -> dict[str, float]:
    """Return the lists of each bucket alone; buckets of Prometheus hold those of all smaller ones too."""
    counts, below = dict[str, float](), 0.0
    for bound in sorted(cumulative, key=float):
        if cumulative[bound] > below:
            counts[bound] = cumulative[bound] - below
        below = cumulative[bound]
    return counts


def _add(sums: dict[str, float], name: str, value: float) -> None:
    sums[name] = sums.get(name, 0.0) + value
