"""The verdict as one HTML page that needs nothing else: why a model was let through or not, in a minute. PURE."""

from __future__ import annotations

import math
from html import escape
from typing import Final

from deployment.verdict import Check, OffPolicy, Result, Verdict

#: Titles for people; a check without one is called by its name.
_TITLES: Final = {
    "security": "Safe to load",
    "feature_service": "Feature service",
    "feature_list": "Feature list",
    "bundle_size": "Size of the bundle",
    "memory": "Memory to load it",
    "non_finite_outputs": "Scores that are no probability",
    "disordered_lists": "Lists out of order",
    "nondeterministic": "Different answers to one request",
    "incomplete_lists": "Incomplete lists",
    "non_finite_on_extremes": "No number for extreme inputs",
    "wrong_width_accepted": "Wrong number of features accepted",
    "latency_p50": "Latency, median",
    "latency_p95": "Latency, 95th percentile",
    "latency_p99": "Latency, 99th percentile",
    "auc": "AUC",
    "ndcg_over_own_history": "nDCG@10 gained over own history",
    "ndcg_over_popularity_7d": "nDCG@10 gained over 7-day popularity",
    "average_precision": "MAP@10 gained over the better baseline",
    "calibration_error": "Calibration error",
    "ndcg_against_champion": "nDCG@10 against the champion",
    "hard_auc_against_champion": "AUC among candidates against the champion",
    "auc_of_worst_half": "AUC of the worst half of users",
    "auc_under_noise": "AUC lost under noise",
    "auc_with_missing": "AUC lost with missing values",
    "auc_of_worst_quarter": "AUC of the worst quarter of the window",
    "ndcg_of_cold_users": "nDCG@10 of unknown users over popularity",
    "ndcg_of_light_users": "nDCG@10 of light users over popularity",
    "ndcg_of_heavy_users": "nDCG@10 of heavy users over popularity",
}
_ORDER: Final[tuple[Result, ...]] = ("fail", "inconclusive", "pass")
_HEADINGS: Final = {"fail": "What stopped it", "inconclusive": "What could not be told", "pass": "What it passed"}
_MARKS: Final = {"fail": "✕ fail", "inconclusive": "? inconclusive", "pass": "✓ pass"}
_WORDS: Final = {">": "above", ">=": "at least", "<": "below", "<=": "at most", "==": "exactly"}
#: Beyond it, sums of numbers are none.
_LARGEST: Final = 1e300
_WIDTH, _HEIGHT, _PAD = 380, 46, 12

_STYLE: Final = """
:root { --ink: #1d2430; --soft: #5b6472; --line: #dfe3e8; --fail: #b3261e; --inconclusive: #8a5a00; --pass: #1b6e3c }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: #f6f7f9; margin: 0 }
main { max-width: 1000px; margin: 0 auto; padding: 24px 20px 48px }
header { background: #fff; border: 1px solid var(--line); border-left: 8px solid var(--c); border-radius: 6px;
  padding: 18px 22px }
h1 { font-size: 25px; margin: 0 0 6px; color: var(--c) }
header p { margin: 0 0 6px; font-size: 16px }
h2 { font-size: 18px; margin: 28px 0 8px }
dl { display: flex; flex-wrap: wrap; gap: 4px 26px; margin: 12px 0 0; font-size: 13px; color: var(--soft) }
dl div { display: flex; gap: 6px } dt::after { content: ":" } dd { margin: 0; color: var(--ink); word-break: break-all }
.check { background: #fff; border: 1px solid var(--line); border-left: 5px solid var(--c); padding: 10px 16px;
  display: grid; grid-template-columns: 1fr 380px; gap: 4px 20px; align-items: center; margin-bottom: -1px }
.check h3 { font-size: 15px; margin: 0 } .check h3 span { color: var(--c); font-weight: 700; margin-left: 8px;
  font-size: 13px; white-space: nowrap }
.check.wide { grid-template-columns: 1fr } .check.pass { padding: 7px 16px }
details { font-size: 13px; color: var(--soft) } summary { cursor: pointer; font-size: 12px }
.check p { margin: 4px 0 0; color: var(--soft); font-size: 13px }
.check.fail p, .check.inconclusive p { color: var(--ink); font-size: 14px }
.figure { font-variant-numeric: tabular-nums }
.fail { --c: var(--fail) } .inconclusive { --c: var(--inconclusive) } .pass { --c: var(--pass) }
.note { background: #fff; border: 1px solid var(--line); padding: 10px 16px; font-size: 14px }
.note p { margin: 4px 0 } table { border-collapse: collapse; font-size: 13px; margin: 8px 0 }
th, td { text-align: left; padding: 2px 18px 2px 0; font-weight: 400 } th { color: var(--soft) }
svg { display: block; max-width: 100% } svg text { font: 11px system-ui, sans-serif; fill: var(--soft) }
.legend { font-size: 13px; color: var(--soft); margin-top: 24px }
code { font-size: 12px } @media (max-width: 760px) { .check { grid-template-columns: 1fr } }
"""


def verdict_page(verdict: Verdict) -> str:
    """Return the page: headline, then checks, red ones first."""
    by_result = {result: [one for one in verdict.checks if one.result == result] for result in _ORDER}
    sections = "".join(
        f"<h2>{_HEADINGS[result]} ({len(checks)})</h2>" + "".join(map(_card, checks))
        for result, checks in by_result.items()
        if checks
    )
    kind = {"passed": "pass", "failed": "fail", "inconclusive": "inconclusive"}[verdict.word]
    title = f"{verdict.model} version {verdict.version}"
    facts = {
        "bundle": verdict.bundle_id or "none could be made",
        "champion": f"version {verdict.champion_version}" if verdict.champion_version else "none yet",
        "feature service": f"{verdict.feature_service} {verdict.feature_service_hash}".strip() or "unknown",
        "thresholds": verdict.thresholds_hash,
        "judged": verdict.gated_at,
    }
    listed = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items() if value
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Verdict: {escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<header class="{kind}"><h1>{escape(_headline(verdict))}</h1><p>{escape(title)}. {escape(_why(verdict))}</p>'
        f"<dl>{listed}</dl></header>{sections}{_off_policy(verdict.off_policy)}"
        '<p class="legend">In each picture the green ground is where the value may lie, its edge the threshold; the '
        "dot is what was measured, the bar through it the 95 % interval. What the checks are and how "
        "thresholds are set: docs/gate.md.</p></main></body></html>\n"
    )


def _off_policy(said: OffPolicy | None) -> str:
    """Say what the log of explored places tells of the candidate; nothing is decided by it."""
    if said is None:
        return ""
    rows = "".join(
        f"<tr><td>{escape(what)}</td><td>{value:.4f}</td><td>{low:.4f} to {high:.4f}</td></tr>".replace(
            "-", "\N{MINUS SIGN}"
        )
        for what, value, low, high in said.lines
    )
    table = (
        f'<table class="figure"><tr><th></th><th>clicks a place</th><th>95 % interval</th></tr>{rows}</table>'
        if rows
        else ""
    )
    return (
        f'<h2>What the log says off policy</h2><div class="note"><p>{escape(said.text)}</p>{table}'
        "<p>For information: nothing is let through or stopped by it (docs/off-policy.md).</p></div>"
    )


def _headline(verdict: Verdict) -> str:
    return {
        "passed": "Let through",
        "failed": "Stopped",
        "inconclusive": "Not let through: the evidence is not enough",
    }[verdict.word]


def _why(verdict: Verdict) -> str:
    count = len(verdict.checks)
    red = [one for one in verdict.checks if one.result != "pass"]
    if not red:
        return f"All {count} checks passed."
    if len(red) == 1:
        one = red[0]
        return f"{title_of(one)}: {one.explanation}" if one.op == "==" else f"{title_of(one)}: {_figures(one)}."
    red.sort(key=lambda one: _ORDER.index(one.result))
    names = ", ".join(title_of(one) for one in red[:3]) + (f" and {len(red) - 3} more" if len(red) > 3 else "")
    advice = (
        " Intervals reach across their thresholds: a longer test window or more users would tell."
        if verdict.word == "inconclusive"
        else ""
    )
    return f"{len(red)} of {count} checks did not pass: {names}.{advice}"


def title_of(check: Check) -> str:
    """Return a check's title for people."""
    return _TITLES.get(check.name, check.name.replace("_", " ").capitalize())


def _card(check: Check) -> str:
    picture = _picture(check)
    explained = f"<p>{escape(check.explanation)}</p>"
    if check.result == "pass":  # who reads on wants to see it at a glance; the words are there for who asks
        explained = f"<details><summary>what this is</summary>{explained}</details>"
    return (
        f'<div class="check {check.result}{"" if picture else " wide"}"><div><h3>{escape(title_of(check))}'
        f"<span>{_MARKS[check.result]}</span></h3>"
        f'<p class="figure">{escape(_figures(check))}</p>{explained}</div>{picture}</div>'
    )


def _figures(check: Check) -> str:
    """Return value, demand and interval as a sentence."""
    unit = f" {check.unit}" if check.unit else ""
    if not math.isfinite(check.value):
        return f"not measured, must be {_WORDS[check.op]} {_number(check.threshold)}"
    if check.op == "==":
        return f"{_number(check.value)}{unit}, must be {_number(check.threshold)}"
    interval = (
        ""
        if check.low is None or check.high is None
        else f" (95 % interval {_number(check.low)} to {_number(check.high)})"
    )
    return f"{_number(check.value)}{unit}, must be {_WORDS[check.op]} {_number(check.threshold)}{interval}"


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}") if abs(value) < 1000 else f"{value:,.0f}"


def _picture(check: Check) -> str:
    """Draw value, interval and threshold on one axis; nothing where there is no number, or only a count of errors."""
    if not math.isfinite(check.value) or check.op == "==":
        return ""
    low, high = (
        bound if bound is not None and math.isfinite(bound) else check.value for bound in (check.low, check.high)
    )
    marks = [check.value, check.threshold, low, high]
    if min(marks) >= 0 and max(marks) > 4 * min(marks):
        marks.append(0.0)  # amounts begin at nothing; an AUC near its floor would be squeezed
    # A near miss must look like one: the axis spans a twentieth of the threshold at least.
    span = max(max(marks) - min(marks), abs(check.threshold) / 20) or 1.0
    if not span < _LARGEST:
        return ""
    first, last = min(marks) - 0.08 * span, max(marks) + 0.08 * span

    def x(value: float) -> float:
        return _PAD + (value - first) / (last - first) * (_WIDTH - 2 * _PAD)

    edge = x(check.threshold)
    left, right = (edge, _WIDTH - _PAD) if check.op in {">", ">="} else (_PAD, edge)
    anchor = "start" if edge < _WIDTH / 4 else "end" if edge > 3 * _WIDTH / 4 else "middle"
    colour = f"var(--{check.result})"
    interval = (
        f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="15" y2="15" stroke="{colour}" stroke-width="5" '
        f'stroke-linecap="round" opacity=".45"/>'
        if high > low
        else ""
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{escape(_figures(check), quote=True)}">'
        f'<rect x="{_PAD}" y="5" width="{_WIDTH - 2 * _PAD}" height="20" fill="#eef0f3"/>'
        f'<rect x="{left:.1f}" y="5" width="{max(right - left, 0):.1f}" height="20" fill="#cfe8d6"/>'
        f'<line x1="{edge:.1f}" x2="{edge:.1f}" y1="2" y2="28" stroke="#1d2430" stroke-width="2"/>'
        f'<text x="{edge:.1f}" y="41" text-anchor="{anchor}">{_WORDS[check.op]} {_number(check.threshold)}</text>'
        f'{interval}<circle cx="{x(check.value):.1f}" cy="15" r="5.5" fill="{colour}"/></svg>'
    )
