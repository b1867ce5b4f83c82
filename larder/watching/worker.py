"""`larder monitor run`: one loop that checks drift, skew, age and live quality, each when it is due."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from deployment.store.signals import SignalStore
from feature_repo.errors import LarderError, NotFoundError
from feature_repo.events import SEQ_COUNTER_BITS
from feature_repo.ingest import read_status
from feature_repo.offline_layout import read_manifest
from feature_repo.redis_scripts import connect
from feature_repo.settings import Settings
from larder.watching.drift_check import DriftCheck, plan_in_force, write_index
from monitoring.drift.comparison import Rules
from monitoring.drift.state import read_state
from monitoring.freshness import Subject, freshness_signals
from monitoring.live_quality.gauges import QualityMetrics
from monitoring.live_quality.watch import look as look_at_quality
from monitoring.monitor_metrics import Check, MonitorMetrics
from monitoring.outcomes import WRONG, SkewReport
from monitoring.signals import Signal, ctr_decay
from monitoring.skew_check import Extent, check_features
from serving.bundle import read_manifest as read_bundle

_LOG = logging.getLogger(__name__)
_REDIS_MS: Final = 5_000
#: Rows of age are written so often, and when an alarm begins or ends.
_AGE_ROW_S: Final = 3600.0
#: How long rows of the signals table are kept.
KEPT: Final = timedelta(days=90)
#: Requests that a scheduled check of skew replays.
SKEW_REQUESTS: Final = 300
#: How often live quality is measured (monitoring/live_quality: a day's lists each time).
QUALITY_EVERY_S: Final = 3600.0
Report = Callable[[str, int, int], None]


class Kept(msgspec.Struct):
    """What the worker remembers beside the state of drift.

    Attributes
    ----------
    skew_us, quality_us
        When skew and live quality were last checked.
    wrong
        What that found, by feature.
    aged
        Subjects that were too old, and when rows of age were last written, µs.
    """

    skew_us: int = 0
    quality_us: int = 0
    wrong: dict[str, int] = {}
    aged: list[str] = []
    aged_us: int = 0


class MonitorWorker:
    """All checks of one project."""

    def __init__(self, settings: Settings, *, reports: bool = True, rules: Rules | None = None) -> None:
        self.metrics, self._measured = MonitorMetrics(), QualityMetrics()
        self.metrics.registry.register(self._measured)
        self._settings = settings
        self._store = SignalStore(settings)
        self._drift = DriftCheck(settings, self._store, reports=reports, rules=rules)
        self._path = settings.monitoring_dir / "worker.json"
        self._kept = self._read()
        self._said: dict[Check, str] = {}

    def run(self, stop: threading.Event) -> None:
        """Check until told to stop; what fails is tried again, and stops nothing else."""
        self.metrics.drift(read_state(self._settings))
        self.metrics.skew(self._kept.wrong)
        while not stop.is_set():
            self.look(time.time_ns() // 1000)
            stop.wait(self._settings.monitor_every_s)

    def look(self, now_us: int) -> None:
        """Make every check that is due."""
        self._try("freshness", lambda: self._freshness(now_us))
        self._try("drift", lambda: self._look_for_drift(now_us))
        if now_us - self._kept.skew_us >= self._settings.skew_every_minutes * 60e6:
            self._try("skew", lambda: self._skew(now_us))
        if now_us - self._kept.quality_us >= QUALITY_EVERY_S * 1e6:
            self._try("quality", lambda: self._quality(now_us))
        try:
            alarms = self._store.open_alarms()
            self._store.prune(datetime.fromtimestamp(now_us / 1e6, UTC) - KEPT)
            self.metrics.signals(alarms)
            write_index(self._settings, read_state(self._settings), alarms)
        except (LarderError, OSError) as error:
            _LOG.warning("the signals table cannot be read: %s", error)

    def _look_for_drift(self, now_us: int) -> None:
        for judged in self._drift.run(now_us):
            alarms = [one.column.subject for one in judged.findings if one.alarm]
            _LOG.info("drift: window %d, alarms: %s", judged.state.windows, ", ".join(alarms) or "none")
        self.metrics.drift(read_state(self._settings))

    def _skew(self, now_us: int) -> None:
        since = max(self._kept.skew_us, now_us - round(self._settings.skew_every_minutes * 60e6))
        report, rows = skew(self._settings, since, SKEW_REQUESTS)
        self._store.add(rows)
        self._keep(skew_us=now_us, wrong=wrong_by_feature(report))
        self.metrics.skew(self._kept.wrong)

    def _quality(self, now_us: int) -> None:
        try:
            report, decay = look_at_quality(self._settings, now_us)
        except NotFoundError:
            return  # nobody was served lately
        self._measured.measured(report)
        if decay is not None:
            at = datetime.fromtimestamp(decay.at_us / 1e6, UTC)
            row = ctr_decay(
                at, decay.subject, ctr=decay.value, floor=decay.threshold, alarm=decay.alarm, p_value=decay.p_value,
                effect=decay.effect, window_s=decay.window_s, details=decay.details,
            )  # fmt: skip
            self._store.add([row])
        self._keep(quality_us=now_us)

    def _freshness(self, now_us: int) -> None:
        ages, bundle_id = measured_ages(self._settings, now_us)
        rows = freshness_signals(datetime.fromtimestamp(now_us / 1e6, UTC), ages, bundle_id)
        self.metrics.freshness(ages)
        aged = [row.subject for row in rows if row.alarm]
        if aged != self._kept.aged or now_us - self._kept.aged_us >= _AGE_ROW_S * 1e6:
            self._store.add(rows)
            self._keep(aged=aged, aged_us=now_us)

    def _try(self, check: Check, make: Callable[[], None]) -> None:
        try:
            make()
        except (LarderError, OSError, ValueError) as error:
            self.metrics.checked(check, failed=True)
            if self._said.get(check) != str(error):  # once, not every half minute
                _LOG.warning("%s cannot be checked: %s", check, error)
                self._said[check] = str(error)
        else:
            self.metrics.checked(check, failed=False)
            self._said.pop(check, None)

    def _read(self) -> Kept:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Kept)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return Kept()

    def _keep(self, **changes: object) -> None:
        self._kept = msgspec.structs.replace(self._kept, **changes)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_suffix(".tmp")
        scratch.write_bytes(msgspec.json.encode(self._kept))
        scratch.replace(self._path)


def skew(
    settings: Settings, since_us: int, requests: int, report: Report = lambda what, done, total: None
) -> tuple[SkewReport, list[Signal]]:
    """Replay served features against the event log, and return the rows that say so; none where nobody was served.

    Raises
    ------
    UnavailableError
        If Redis does not answer.
    """
    found = check_features(settings, Extent(sample=requests, since_us=since_us, only="served"), report)
    if not found.compared:
        return found, []
    at = datetime.fromisoformat(found.taken_at)
    wrong = wrong_by_feature(found)
    total = int(found.total[WRONG])
    details = {"wrong": {name: count for name, count in wrong.items() if count}, "compared": found.compared}
    return found, [Signal(at, "skew", "served", float(total), 0.0, total > 0, details=details)]


def wrong_by_feature(report: SkewReport) -> dict[str, int]:
    """Return the wrong values of every feature that was compared."""
    return {name: int(counts[WRONG]) for one in report.comparisons for name, counts in one.counts.items()}


def measured_ages(settings: Settings, now_us: int) -> tuple[dict[Subject, float], str]:
    """Return the ages that can be measured, in seconds, and the champion.

    Raises
    ------
    UnavailableError
        If Redis does not answer.
    """
    ages: dict[Subject, float] = {}
    with closing(connect(settings, timeout_ms=_REDIS_MS)) as client:
        status = read_status(client, settings.project)
    if status is not None and status.current_ms:
        ages["features"] = max(now_us / 1e6 - status.current_ms / 1e3, 0.0)
        behind_ms = (status.watermark >> SEQ_COUNTER_BITS) - (status.log_watermark >> SEQ_COUNTER_BITS)
        ages["event_log"] = max(behind_ms / 1e3, 0.0) if status.log_watermark else 0.0
    try:
        last = read_manifest(settings.offline_dir).last_time
    except LarderError:
        last = None
    if last:
        ages["offline_store"] = max((now_us - last) / 1e6, 0.0)
    try:
        bundle_id = plan_in_force(settings).stable.bundle_id
        until = read_bundle(settings.bundles_dir / bundle_id).get("trained_until_us")
    except LarderError:
        return ages, ""
    if until:
        ages["champion"] = max((now_us - int(until)) / 1e6, 0.0)
    return ages, bundle_id
