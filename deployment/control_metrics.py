"""Metrics of the controller for Prometheus: what the gate said, where the rollout is, and its evidence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deployment.rollout.profile import CLICKS, GUARDRAILS
from deployment.verdict import Verdict, Word
from serving.rollout_status import STATES, RolloutStatus

_ENDS: Final = STATES[3:]
_TESTS: Final = (*GUARDRAILS, *CLICKS, "sample ratio")


class ControlMetrics(Collector):
    """All metrics of one controller, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._status: RolloutStatus | None = None
        self._verdicts = Counter("larder_gate_verdicts", "Verdicts by word", ["result"], registry=self.registry)
        self._ends = Counter("larder_rollout_ends", "Rollouts that ended, by how", ["state"], registry=self.registry)
        self._active = self._gauge("controller_active_status", "1 if this controller is the active one")
        self._problem = self._gauge("controller_problem_status", "1 while something it needs is away")
        self._tick = self._gauge("controller_tick_timestamp_seconds", "When it last looked")
        self._attempts = self._gauge(
            "gate_failed_attempts", "Attempts in a row without a verdict because something around the gate failed"
        )
        for word in get_args(Word):
            self._verdicts.labels(word)
        for state in _ENDS:
            self._ends.labels(state)
        self.registry.register(self)

    def judged(self, verdict: Verdict) -> None:
        """Count a verdict of the gate."""
        self._verdicts.labels(verdict.word).inc()

    def attempted(self, attempts: int) -> None:
        """Take note of how often in a row the gate was kept from a verdict."""
        self._attempts.set(attempts)

    def ticked(self, status: RolloutStatus | None, *, active: bool, problem: str) -> None:
        """Take note of what one look of the controller found."""
        before, self._status = self._status, status
        if status is not None and before is not None and status.state != before.state and status.state in _ENDS:
            self._ends.labels(status.state).inc()
        self._active.set(float(active))
        self._problem.set(float(bool(problem)))
        self._tick.set(time.time())

    def collect(self) -> Iterator[Metric]:
        """Give the newest rollout to Prometheus; without one, all states are 0."""
        status = self._status
        state = GaugeMetricFamily("larder_rollout_state_status", "1 for the state it is in", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(status is not None and status.state == name))
        yield state
        yield from _of_rollout(status)
        yield from _of_arms(status)
        yield from _of_tests(status)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"larder_{name}", text, registry=self.registry)


def _of_rollout(status: RolloutStatus | None) -> Iterator[Metric]:
    running = status is not None and status.state not in _ENDS
    weight = status.weight / 10_000 if status is not None and running else 0.0
    yield GaugeMetricFamily("larder_rollout_weight_ratio", "Share of users in the canary", weight)
    since = _step_s(status) if status is not None and running else 0.0
    yield GaugeMetricFamily("larder_rollout_step_seconds", "Time since the step began; 0 without a rollout", since)


def _of_arms(status: RolloutStatus | None) -> Iterator[Metric]:
    requests = GaugeMetricFamily("larder_rollout_requests", "Answers since the step began", labels=["arm"])
    failures = GaugeMetricFamily(
        "larder_rollout_failures", "Of those, the ones that failed a guardrail", labels=["arm", "guardrail"]
    )
    p95 = GaugeMetricFamily("larder_rollout_p95_seconds", "95th percentile of the time to answer", labels=["arm"])
    ctr = GaugeMetricFamily("larder_rollout_ctr_ratio", "Clicks per user with a list", labels=["arm"])
    bought = GaugeMetricFamily("larder_rollout_conversion_ratio", "Purchases per user with a list", labels=["arm"])
    for arm in status.arms if status is not None else ():
        requests.add_metric([arm.arm], arm.requests)
        for name in GUARDRAILS:
            failures.add_metric([arm.arm, name], arm.failures.get(name, 0))
        if arm.p95_ms is not None:
            p95.add_metric([arm.arm], arm.p95_ms / 1e3)
        if arm.ctr is not None:
            ctr.add_metric([arm.arm], arm.ctr)
        if arm.conversion is not None:
            bought.add_metric([arm.arm], arm.conversion)
    yield from (requests, failures, p95, ctr, bought)


def _of_tests(status: RolloutStatus | None) -> Iterator[Metric]:
    texts = {
        "e_value": "Evidence that the canary is worse; it goes back at its threshold",
        "e_threshold": "Evidence at which it goes back",
        "difference": "Canary less baseline",
        "difference_low": "Lower end of the interval",
        "difference_high": "Upper end of the interval",
        "margin": "What is tolerated",
    }
    found = {name: GaugeMetricFamily(f"larder_rollout_{name}", text, labels=["test"]) for name, text in texts.items()}
    for test in status.tests if status is not None else ():
        values = (test.e_value, test.threshold, test.value, test.low, test.high, test.margin)
        for family, value in zip(found.values(), values, strict=True):
            if value is not None and test.name in _TESTS:
                family.add_metric([test.name], value)
    yield from found.values()


def _step_s(status: RolloutStatus) -> float:
    try:
        began, now = datetime.fromisoformat(status.step_started_at), datetime.fromisoformat(status.updated_at)
        return max((now - began).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0
