"""The report of a rollout: one HTML file that needs nothing else, on disk and in MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Protocol

from deployment.rollout.kept import Kept, status_of
from deployment.rollout.moves import Current
from deployment.rollout.profile import RolloutProfile
from deployment.store.control_store import ControlStore
from deployment.store.records import LedgerEntry
from feature_repo.settings import Settings
from serving.rollout_page import STYLE, rollout_view, whole_page

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class ReportLog(Protocol):
    """Where reports go besides the disk: the registry."""

    def log_report(self, version: str, html: str, path: str) -> None:
        """Keep a page with the run of a version."""


def report_path(settings: Settings, rollout_id: str) -> Path:
    """Return the place of a rollout's report."""
    return settings.root / "rollouts" / rollout_id / "report.html"


def report_page(kept: Kept, entries: Sequence[LedgerEntry], plan_epoch: int, now: datetime) -> str:
    """Return the report: what the live page shows, the demands it was held against, and its lines of the ledger."""
    rollout = kept.rollout
    body = (
        f"<main>{rollout_view(status_of(kept, plan_epoch, now), now)}"
        f"<h2>Held against profile {escape(rollout.profile.name)}</h2>{_demands(rollout.profile)}"
        f"<h2>Ledger</h2>{_ledger(entries)}"
        f"<p class=soft>Written {now:%Y-%m-%d %H:%M:%S} UTC. Candidate bundle {escape(rollout.candidate.bundle_id)}, "
        f"stable bundle {escape(rollout.stable.bundle_id)}.</p></main>"
    )
    head = f"<meta http-equiv='Content-Security-Policy' content=\"{_POLICY}\"><style>{STYLE}</style>"
    return whole_page(f"Rollout {rollout.rollout_id}", body, head=head)


def write_report(settings: Settings, current: Current, store: ControlStore, log: ReportLog | None) -> Path:
    """Write the report to disk, and log it to MLflow.

    Raises
    ------
    UnavailableError
        If MLflow or the database cannot be used; the file is there already in the first case.
    """
    plan = store.plan()
    entries = [entry for entry in store.ledger() if entry.body.get("rollout_id") == current.row.rollout_id]
    page = report_page(current.kept, entries, plan.epoch if plan else 0, datetime.now(UTC))
    path = report_path(settings, current.row.rollout_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".report-", delete=False, encoding="utf-8") as file:
        file.write(page)
    Path(file.name).replace(path)
    if log is not None:
        log.log_report(current.rollout.candidate.model_version, page, f"rollout/{current.row.rollout_id}.html")
    return path


def _demands(profile: RolloutProfile) -> str:
    margins = ", ".join(f"{name.replace('_', ' ')} {100 * value:g}" for name, value in profile.margins.items())
    clicks = ", ".join(f"{name} {100 * value:g} %" for name, value in profile.clicks.margins.items())
    shadow, demands = profile.shadow, profile.clicks
    rows = [
        ("profile", profile.description),
        *(
            (f"at {step.weight / 100:g} %", f"{step.requests:,} requests in each arm, {step.minutes:g} minutes")
            for step in profile.steps
        ),
        ("latency objective", f"{profile.latency_objective_ms:g} ms"),
        ("margins, percentage points", margins),
        (
            "error rates",
            f"guardrails {profile.alpha:g}, sample ratio {profile.ratio_alpha:g}, clicks {profile.click_alpha:g}",
        ),
        (
            "clicks and purchases",
            f"{demands.looks} looks up to {demands.users:,} users in each arm; tolerated below the baseline: {clicks}; "
            f"needed for a champion: {', '.join(demands.required) or 'none'}",
        ),
        ("longest wait for a conclusion", f"{profile.max_hold_minutes:g} minutes a step"),
    ]
    if shadow.comparisons:
        words = f"{shadow.comparisons:,} answers, {shadow.minutes:g} minutes; at most {shadow.error_share:.1%} failed, "
        words += f"{shadow.slow_share:.1%} slow; overlap below {shadow.overlap_floor:.0%} is worth a look"
        rows.insert(1, ("shadow", words))
    cells = "".join(f"<tr><td>{escape(name)}</td><td class=text>{escape(text)}</td></tr>" for name, text in rows)
    return f"<div class='card scroll'><table>{cells}</table></div>"


def _ledger(entries: Sequence[LedgerEntry]) -> str:
    rows = "".join(
        f"<tr><td>{one.entry}</td><td>{escape(one.at[:19].replace('T', ' '))}</td><td>{one.epoch}</td>"
        f"<td>{escape(one.action)}</td><td>{escape(one.who)}</td><td class=text>{escape(one.why)}</td></tr>"
        for one in reversed(entries)
    )
    head = "<tr><th>entry</th><th>UTC</th><th>epoch</th><th>action</th><th>who</th><th class=text>why</th></tr>"
    return f"<div class='card scroll'><table>{head}{rows}</table></div>"
