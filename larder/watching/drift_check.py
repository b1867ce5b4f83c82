"""Watches the champion for drift: draws each window that is complete, judges it, and writes rows, state and report."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from deployment.store.control_store import ControlStore
from deployment.store.signals import SignalStore
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.settings import Settings
from feature_repo.views import DAY_US
from larder.watching.replay import champion_reference
from monitoring.drift.comparison import Finding, Rules
from monitoring.drift.judge import Window, judge
from monitoring.drift.records import DriftState, restored
from monitoring.drift.reference import Reference
from monitoring.drift.served import Known, Watched, draw_window, event_columns, window_columns, with_outcomes
from monitoring.drift.state import read_state, write_state
from monitoring.report_index import index_page
from monitoring.signals import Signal
from serving.bundle import Bundle, load_bundle
from serving.impressions import read_impressions
from serving.plan import Plan, load_plan
from serving.signature import signing_key

_LOG = logging.getLogger(__name__)
_MINUTE_US: Final = 60_000_000
#: Clicks come after the list: a window is judged so long after its end, a quarter of its length at most.
_SETTLE_US: Final = 30 * _MINUTE_US
#: Columns that ask what there was before.
_BEFORE: Final = {"event_new_category", "event_price_change"}
#: Reports kept as pages.
REPORTS: Final = 20
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Judged:
    """One window and what came of it."""

    state: DriftState
    findings: list[Finding]


def plan_in_force(settings: Settings) -> Plan:
    """Return what is served: the control plane's plan, or where it is kept elsewhere, what serving last received.

    Raises
    ------
    NotFoundError
        If nothing was promoted.
    """
    key = signing_key(settings)
    plan = ControlStore(settings, key).plan() or load_plan(settings.plan_path, key)
    if plan is None:
        raise NotFoundError(f"project {settings.project!r} has no champion to watch; `larder models promote` makes one")
    return plan


class DriftCheck:
    """Goes from window to window, and goes on after a restart.

    Parameters
    ----------
    reports
        Whether Evidently makes a report of each window (seconds of work).
    """

    def __init__(
        self, settings: Settings, store: SignalStore, *, reports: bool = True, rules: Rules | None = None
    ) -> None:
        if settings.drift_reference not in ("training", "served"):
            raise BadInputError(f"setting drift_reference is training or served, not {settings.drift_reference!r}")
        self._settings, self._store, self._reports = settings, store, reports
        self.rules = rules or Rules(sample=settings.drift_sample)
        self.window_us = max(round(settings.drift_window_minutes * _MINUTE_US), 1)
        self._bundle: Bundle | None = None
        self._reference: Reference | None = None

    def run(self, now_us: int, report: Report = lambda what, done, total: None) -> list[Judged]:
        """Judge all windows that are complete.

        Raises
        ------
        NotFoundError
            If there is no champion, or nothing to compare it with.
        UnavailableError
            If the database cannot be used: the windows are judged again next time.
        """
        plan, watched = self._look_up()
        state = read_state(self._settings)
        if state is None or (state.bundle_id, state.against) != (watched.bundle_id, self._settings.drift_reference):
            begun = round(plan.published_at.timestamp() * 1e6)
            state = DriftState(watched.bundle_id, self._settings.drift_reference, begun)
            write_state(self._settings, state)
        out: list[Judged] = []
        while (window := self._next(watched, state, now_us, report)) is not None:
            findings, state = judge(watched.service, window, self._of(watched, report).columns, state, self.rules)
            self._store.add(drift_signals(findings, state))
            write_state(self._settings, state)
            self._tell(window, state, report)
            out.append(Judged(state, findings))
        return out

    def _look_up(self) -> tuple[Plan, Watched]:
        plan, bundle = plan_in_force(self._settings), self._bundle
        if bundle is None or plan.stable.bundle_id != bundle.bundle_id:
            bundle = self._bundle = load_bundle(self._settings.bundles_dir / plan.stable.bundle_id)
            self._reference = None
        return plan, Watched.of(bundle.bundle_id, bundle.recommender.service, bundle.popular)

    def _of(self, watched: Watched, report: Report) -> Reference:
        if self._settings.drift_reference == "served":
            return Reference({}, Known(frozenset(), {}))
        if self._reference is None:
            self._reference = champion_reference(
                self._settings,
                self._bundle or load_bundle(self._settings.bundles_dir / watched.bundle_id),
                watched,
                size=self.rules.reference,
                every_us=self.window_us,
                report=lambda done, total: report("reference", done, total),
            )
        return self._reference

    def _next(self, watched: Watched, state: DriftState, now_us: int, report: Report) -> Window | None:
        """Draw the next window; None while it is not complete: too short, or of too few users."""
        settle = min(_SETTLE_US, self.window_us // 4)
        kept_us = now_us - self._settings.impression_days * DAY_US
        start = max(state.next_us, kept_us)
        end = start + self.window_us
        if end + settle > now_us:
            return None
        while end + settle <= now_us:
            report("draw the window", 0, 1)
            records = read_impressions(self._settings.impressions_dir, start)
            drawn = draw_window(records, watched, start, end, self.rules.sample)
            if drawn.enough:
                break
            end += self.window_us
        else:
            return None
        answers = with_outcomes(self._settings, drawn.answers, start, end + settle)
        known = self._of(watched, report).known
        events = event_columns(self._settings, start, end, known, self.rules.sample, self.window_us)
        if not known.categories:  # compared with itself: nothing is known of before
            events = {name: values for name, values in events.items() if name not in _BEFORE}
        report("draw the window", 1, 1)
        return Window(start, end, answers, window_columns(replace(drawn, answers=answers), watched.service, events))

    def _tell(self, window: Window, state: DriftState, report: Report) -> None:
        """Write the pages. They are for people: what goes wrong there stops no check."""
        settings, last = self._settings, state.last
        settings.reports_dir.mkdir(parents=True, exist_ok=True)
        if self._reports and last is not None and last.findings:
            from monitoring.evidently_report import write_report

            report("report", 0, 1)
            known = {**(self._reference.columns if self._reference else {})}
            known |= {name: restored(values) for name, values in state.baseline.items()}
            at = datetime.fromtimestamp(last.end_us / 1e6, UTC)
            try:
                write_report(
                    last, known, window.columns, project=settings.project,
                    page=settings.reports_dir / f"drift-{at:%Y-%m-%dT%H%M%SZ}.html", workspace=settings.evidently_dir,
                )  # fmt: skip
            except Exception:  # of a library with a lot of code between us and a page
                _LOG.exception("the report of the window could not be made")
            report("report", 1, 1)
        write_index(settings, state, self._store.open_alarms())


def write_index(settings: Settings, state: DriftState | None, alarms: list[Signal]) -> None:
    """Write the page before the reports, and remove the oldest of them."""
    settings.reports_dir.mkdir(parents=True, exist_ok=True)
    pages = sorted((path for path in settings.reports_dir.glob("drift-*.html")), reverse=True)
    for path in pages[REPORTS:]:
        path.unlink(missing_ok=True)
    page, scratch = settings.reports_dir / "index.html", settings.reports_dir / "index.tmp"
    scratch.write_text(index_page(settings.project, state, alarms, [path.name for path in pages[:REPORTS]]), "utf-8")
    scratch.replace(page)


def drift_signals(findings: list[Finding], state: DriftState) -> list[Signal]:
    """Return the rows of a window."""
    if (last := state.last) is None:
        return []
    at = datetime.fromtimestamp(last.end_us / 1e6, UTC)
    return [
        Signal(
            at=at,
            kind="drift",
            subject=one.column.subject,
            value=one.effect,
            threshold=one.column.floor,
            alarm=one.alarm,
            bundle_id=state.bundle_id,
            p_value=one.p_value,
            effect=one.effect,
            window_s=(last.end_us - last.start_us) / 1e6,
            details={
                "hit": one.hit,
                "rows": list(one.rows),
                "means": [None if mean != mean else mean for mean in one.means],  # noqa: PLR0124 - NaN
                "against": state.against,
            },
        )
        for one in findings
        if not one.column.expected
    ]
