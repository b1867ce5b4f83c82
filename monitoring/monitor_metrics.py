"""Metrics of the monitoring worker: drift, skew, age, the quality to expect, and what it could not do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from monitoring.drift.columns import GROUPS
from monitoring.drift.records import DriftState
from monitoring.freshness import LIMITS_S, SUBJECTS, Subject
from monitoring.signals import KINDS, Signal

Check = Literal["drift", "skew", "freshness", "quality"]
CHECKS: Final[tuple[Check, ...]] = get_args(Check)


class MonitorMetrics:
    """All metrics of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._alarm = self._gauge("drift_alarm", "Columns whose drift held over several windows", "kind")
        self._hits = self._gauge("drift_columns", "Columns that differ in the newest window", "kind")
        self._effect = self._gauge("drift_effect_ratio", "How much a column differs from the reference", "column")
        self._column_alarm = self._gauge("drift_column_alarm", "1 if a column's drift held", "kind", "column")
        self._window = self._gauge("drift_window_end_timestamp_seconds", "End of the newest window")
        self._windows = self._gauge("drift_windows", "Windows of this champion so far")
        self._precision = self._gauge("estimated_precision_ratio", "Precision to expect without labels", "of")
        self._wrong = self._gauge("skew_wrong", "Values served otherwise than they are offline", "feature")
        self._age = self._gauge("freshness_age_seconds", "Age of what serving lives on", "subject")
        self._limit = self._gauge("freshness_limit_seconds", "Age beyond which somebody should act", "subject")
        self._open = self._gauge("open_signals", "Alarms that are open in the signals table", "kind")
        self._problem = self._gauge("monitor_problem_status", "1 while a check cannot be made", "check")
        self._last = self._gauge("monitor_check_timestamp_seconds", "When a check was last made", "check")
        self._checks = Counter(
            "larder_monitor_checks", "Checks, by how they ended", ["check", "result"], registry=self.registry
        )
        for group in GROUPS:
            self._alarm.labels(group).set(0)
            self._hits.labels(group).set(0)
        for subject in SUBJECTS:
            self._limit.labels(subject).set(LIMITS_S[subject])
        for kind in KINDS:
            self._open.labels(kind).set(0)
        for check in CHECKS:
            self._problem.labels(check).set(0)
            for result in ("succeeded", "failed"):
                self._checks.labels(check, result)

    def drift(self, state: DriftState | None) -> None:
        """Show what the newest window says; after a change of champion nothing, until it has one."""
        findings = state.last.findings if state and state.last else []
        self._effect.clear()
        self._column_alarm.clear()
        for group in GROUPS:
            mine = [one for one in findings if one.group == group]
            self._alarm.labels(group).set(sum(one.alarm for one in mine))
            self._hits.labels(group).set(sum(one.hit for one in mine))
        for one in findings:
            self._effect.labels(one.name).set(one.effect)
            self._column_alarm.labels(one.group, one.name).set(float(one.alarm))
        self._windows.set(state.windows if state else 0)
        if state and state.last:
            self._window.set(state.last.end_us / 1e6)
            for of, value in (("window", state.last.precision), ("reference", state.last.precision_then)):
                if value is not None:
                    self._precision.labels(of).set(value[0])

    def skew(self, wrong: Mapping[str, int]) -> None:
        """Show the wrong values of each feature compared."""
        self._wrong.clear()
        for feature, count in wrong.items():
            self._wrong.labels(feature).set(count)

    def freshness(self, ages_s: Mapping[Subject, float]) -> None:
        """Show ages; what cannot be measured is not shown."""
        self._age.clear()
        for subject, age in ages_s.items():
            self._age.labels(subject).set(age)

    def signals(self, alarms: Sequence[Signal]) -> None:
        """Show how many alarms are open."""
        for kind in KINDS:
            self._open.labels(kind).set(sum(one.kind == kind for one in alarms))

    def checked(self, check: Check, *, failed: bool) -> None:
        """Take note of how a check ended."""
        self._checks.labels(check, "failed" if failed else "succeeded").inc()
        self._problem.labels(check).set(float(failed))
        if not failed:
            self._last.labels(check).set(time.time())

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"larder_{name}", text, labels, registry=self.registry)
