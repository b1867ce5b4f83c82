"""The page that leads to the reports: what the newest window says, and each report in a sandboxed frame. PURE.

It works from a file and from the API. Reports come from Evidently and hold data of users: their frame may run scripts,
but has no origin, so it can read nothing of ours; texts of this page are escaped, and it runs no script at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

from monitoring.drift.records import DriftState, FindingRecord
from monitoring.signals import Signal

POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self' file:; base-uri 'none'; form-action 'none'"
)
_AGAINST: Final = {"training": "what it would have served on its test window", "served": "its own first windows"}
_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--alarm:#c62828;--hit:#b26a00;--fine:#2e7d32}
body{font:15px/1.5 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .5rem}p{margin:.3rem 0}
table{border-collapse:collapse;width:100%}th,td{padding:.15rem .6rem;border-bottom:1px solid var(--line);
text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.scroll{overflow-x:auto;max-height:28rem;overflow-y:auto}
.alarm{color:var(--alarm);font-weight:600}.hit{color:var(--hit)}.fine{color:var(--fine)}.soft{opacity:.65}
iframe{width:100%;height:44rem;border:1px solid var(--line);border-radius:.4rem;background:#fff}
summary{cursor:pointer;margin:.3rem 0}
"""


def index_page(project: str, state: DriftState | None, alarms: Sequence[Signal], reports: Sequence[str]) -> str:
    """Return the page.

    Parameters
    ----------
    alarms
        Those that are open.
    reports
        Names of report files beside the page, the newest first.
    """
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        "<meta name=viewport content='width=device-width'>",
        f"<title>Drift: {escape(project)}</title><style>{_STYLE}</style>",
        f"<h1>Drift of {escape(project)}</h1>",
        *_window(state),
        *_alarms(alarms),
        *_findings(state.last.findings if state and state.last else ()),
        *_reports(reports),
    ]
    return "\n".join(parts) + "\n"


def _window(state: DriftState | None) -> Iterable[str]:
    if state is None or state.last is None:
        yield "<p class=soft>No window was complete yet.</p>"
        return
    last = state.last
    yield (
        f"<p>Window {state.windows}: {_time(last.start_us)} to {_time(last.end_us)} UTC, {last.requests:,} requests of "
        f"as many users, champion <code>{escape(last.bundle_id[:12])}</code>, compared with "
        f"{_AGAINST[state.against]}.</p>"
    )
    if last.precision is not None:
        now, then = last.precision, last.precision_then
        before = "" if then is None else f"; on the test window {then[0]:.4f} ({then[1]:.4f} to {then[2]:.4f})"
        yield (
            f"<p>Precision of the first places to expect without labels: <b>{now[0]:.4f}</b> ({now[1]:.4f} to "
            f"{now[2]:.4f}){before}. It trusts the model's calibration: a hint that something changed, not how much "
            "(docs/drift.md).</p>"
        )


def _alarms(alarms: Sequence[Signal]) -> Iterable[str]:
    yield "<h2>Open alarms</h2>"
    if not alarms:
        yield "<p class=fine>None.</p>"
        return
    yield "<div class=scroll><table><tr><th>kind<th>subject<th class=n>value<th class=n>threshold<th>window of</tr>"
    for one in alarms:
        yield (
            f"<tr><td class=alarm>{escape(one.kind)}<td>{escape(one.subject)}<td class=n>{one.value:.4g}"
            f"<td class=n>{one.threshold:.4g}<td>{one.at:%Y-%m-%d %H:%M}</tr>"
        )
    yield "</table></div>"


def _findings(findings: Sequence[FindingRecord]) -> Iterable[str]:
    if not findings:
        return
    yield "<h2>Columns of the newest window</h2><div class=scroll><table><tr><th>group<th>column<th class=n>effect"
    yield "<th class=n>floor<th class=n>p, corrected<th class=n>mean then<th class=n>mean now<th class=n>rows<th></tr>"
    for one in sorted(findings, key=lambda one: (not one.alarm, not one.hit, one.expected, -one.effect)):
        word, kind = ("alarm", "alarm") if one.alarm else ("drifted", "hit") if one.hit else ("", "")
        word = "moves with the clock" if one.expected else word
        means = "".join(f"<td class=n>{'' if mean is None else f'{mean:.4g}'}" for mean in one.means)
        yield (
            f"<tr class='{'soft' if one.expected else ''}'><td>{escape(one.group)}<td>{escape(one.name)}"
            f"<td class=n>{one.effect:.3f}<td class=n>{one.floor:.2f}<td class=n>{one.p_value:.2g}{means}"
            f"<td class=n>{one.rows[0]:,}, {one.rows[1]:,}<td class='{kind}'>{word}</tr>"
        )
    yield "</table></div>"


def _reports(reports: Sequence[str]) -> Iterable[str]:
    yield "<h2>Reports of Evidently</h2>"
    if not reports:
        yield "<p class=soft>None yet.</p>"
    for number, name in enumerate(reports):
        # A closed one is not loaded: each has several MB.
        yield f"<details {'open' if number == 0 else ''}><summary>{escape(name)}</summary>"
        yield f"<iframe sandbox='allow-scripts' loading=lazy title='{escape(name)}' src='{escape(name)}'></iframe>"
        yield "</details>"


def _time(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%d %H:%M}"
