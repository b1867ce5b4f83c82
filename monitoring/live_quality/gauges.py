"""Live quality for Prometheus: the newest report as gauges, by arm and segment; bundles are told beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from feature_repo.settings import Settings
from monitoring.live_quality.answered import FATES, VERDICTS
from monitoring.live_quality.report import FIGURES, SEGMENTS, Group, QualityReport

#: Arms of a plan; a record of any other is not shown.
ARMS: Final = ("stable", "baseline", "canary")


class QualityMetrics(Collector):
    """Shows the newest report; nothing before the first.

    Labels come from closed sets. Of each arm the bundle of its newest answers is shown: there are as many as arms.
    """

    def __init__(self) -> None:
        self._report: QualityReport | None = None

    def measured(self, report: QualityReport) -> None:
        """Show this report from now on."""
        self._report = report

    def describe(self) -> Iterator[Metric]:
        """Promise nothing: the first report comes later."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Give the report to Prometheus."""
        if self._report is None:
            return
        report, newest = self._report, _newest(self._report)
        names = {
            "value": "Figures of live quality", "low": "Lower end of the interval", "high": "Upper end of the interval"
        }  # fmt: skip
        shown = {
            name: GaugeMetricFamily(f"larder_quality_{name}", text, labels=["figure", "arm", "segment"])
            for name, text in names.items()
        }
        lists = GaugeMetricFamily("larder_quality_lists", "Lists the figures are of", labels=["arm", "segment"])
        for group in newest:
            lists.add_metric([group.arm, group.segment], group.requests)
            for figure, *values in _values(group):
                for family, value in zip(shown.values(), values, strict=True):
                    if math.isfinite(value):
                        family.add_metric([figure, group.arm, group.segment], value)
        yield from (*shown.values(), lists)
        info = GaugeMetricFamily(
            "larder_quality_bundle_info", "The bundle the figures of an arm are of",
            labels=["arm", "bundle_id", "model_version"],
        )  # fmt: skip
        for group in newest:
            if group.segment == "all":
                info.add_metric([group.arm, group.bundle_id, group.model_version], 1.0)
        yield info
        feedback = GaugeMetricFamily(
            "larder_quality_feedback_events", "Verdicts by what the log of what was served says", labels=["fate"]
        )
        for fate in FATES:
            feedback.add_metric([fate], report.events(fate, kinds=VERDICTS))
        yield feedback
        taken = GaugeMetricFamily("larder_quality_measured_timestamp_seconds", "When the report was taken")
        taken.add_metric([], datetime.fromisoformat(report.taken_at).timestamp())
        yield taken


def gauges_path(settings: Settings) -> Path:
    """Where `write_gauges` leaves the project's file."""
    return settings.root / "metrics" / "quality.prom"


def write_gauges(settings: Settings, report: QualityReport) -> Path:
    """Leave a report's gauges as a file for the node exporter's textfile collector; return its path."""
    registry, metrics = CollectorRegistry(), QualityMetrics()
    metrics.measured(report)
    registry.register(metrics)
    path = gauges_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(path), registry)
    return path


def _newest(report: QualityReport) -> list[Group]:
    """Return, of each arm, the groups of one bundle: that of the plan now, which has the newest point of the CTR."""
    last: dict[str, tuple[float, float, str]] = {}
    for point in report.by_time:
        if isinstance(point.at, (int, float)) and point.bundle_id:
            mark = (float(point.at), point.estimate.denominator, point.bundle_id)
            last[point.arm] = max(last.get(point.arm, mark), mark)
    newest = {arm: mark[2] for arm, mark in last.items()}
    return [
        group
        for group in report.groups
        if group.arm in ARMS and group.segment in SEGMENTS and group.bundle_id == newest.get(group.arm)
    ]


def _values(group: Group) -> Iterator[tuple[str, float, float, float]]:
    for name, one in group.figures.items():
        if name in FIGURES:
            yield name, one.value, one.low, one.high
    for name in ("coverage", "calibration_error", "calibration_noise"):
        value = getattr(group, name)
        if value is not None:
            yield name, value, math.nan, math.nan
