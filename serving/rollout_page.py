"""A rollout as HTML: the view that the live page shows and that its report keeps. Every text is escaped. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Final

from serving.rollout_charts import interval_bar, share_bar, timeline
from serving.rollout_status import ArmStatus, RolloutStatus, ShadowStatus, TestStatus

_ENDS: Final = {"champion": "good", "rejected": "bad", "rolled_back": "bad", "aborted": "bad"}
_WORDS: Final = {"rolled_back": "rolled back", "champion": "champion", "aborted": "aborted", "rejected": "rejected"}
_TEST_CLASS: Final = {"worse": "bad", "not worse": "good", "better": "good"}
#: What a guardrail counts, for people.
_TITLES: Final = {
    "error": "Errors and timeouts",
    "fallback": "Fallbacks",
    "slow": "Slower than the objective",
    "non_finite": "Scores that are no number",
    "empty": "Empty lists",
    "ctr": "Users who click",
    "conversion": "Users who buy",
    "sample ratio": "Users of the two arms",
}
_CLICKS: Final = ("ctr", "conversion")

STYLE: Final = """
:root{color-scheme:light dark;--ink:#1d2430;--soft:#5b6472;--line:#d9dee5;--card:#fff;--page:#f4f6f8;--good:#1b7f45;
--bad:#c0271d;--open:#8a6100;--canary:#c2570c;--base:#2b6cb0;--band:#2b6cb033}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa4b2;--line:#353c47;--card:#1b2029;--page:#12161c;
--good:#4ac07e;--bad:#ff7b6e;--open:#e0b04b;--canary:#f59a4f;--base:#7db3ea;--band:#7db3ea33}}
*{box-sizing:border-box}body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0}
main{max-width:1120px;margin:0 auto;padding:20px}h1{font-size:22px;margin:0}h2{font-size:16px;margin:26px 0 8px}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 18px}
.head{display:flex;flex-wrap:wrap;gap:6px 18px;align-items:baseline}.head p{flex-basis:100%;margin:4px 0 0}
.badge{border-radius:99px;padding:2px 12px;font-weight:600;font-size:13px;background:var(--c,var(--base));
color:var(--card)}.soft{color:var(--soft);font-size:13px}.good{--c:var(--good)}.bad{--c:var(--bad)}.open{--c:var(--open)}
.word{color:var(--c);font-weight:600;white-space:nowrap}ol.steps{display:flex;flex-wrap:wrap;list-style:none;
padding:0;margin:14px 0 0;gap:6px}ol.steps li{flex:1;min-width:84px;text-align:center;border-radius:6px;padding:6px 4px;
border:1px solid var(--line);color:var(--soft);font-size:13px}ol.steps .past{border-color:var(--good);color:var(--good)}
ol.steps .now{background:var(--base);border-color:var(--base);color:var(--card);font-weight:600}
ol.steps .stop{background:var(--bad);border-color:var(--bad);color:var(--card);font-weight:600}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--line);font-size:14px}th{white-space:nowrap}
td small{display:block;color:var(--soft);font-size:12.5px}
th{color:var(--soft);font-weight:500;font-size:13px}tr>*:first-child{text-align:left}tr:last-child td{border:0}
td.text{text-align:left;overflow-wrap:anywhere;width:55%}th.text{text-align:left}
.dot{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:7px;background:var(--c,#8a94a3)}
svg{display:block}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}svg .axis{stroke:var(--line)}
svg .zero{stroke:var(--soft)}svg .margin{stroke:var(--open);stroke-dasharray:4 3}svg .band{fill:var(--band)}
svg .value{stroke:var(--base);fill:none;stroke-width:1.8}svg .range{stroke:var(--c,var(--base));stroke-width:5;
stroke-linecap:round;opacity:.55}svg .point{fill:var(--c,var(--base))}svg .step{stroke:var(--line)}
svg .bar{fill:var(--base)}.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:12px}
.grid h3{font-size:14px;margin:0 0 4px;font-weight:600}#gone{position:sticky;top:0;background:var(--bad);
color:var(--card);padding:6px 20px;font-weight:600}#gone[hidden]{display:none}
"""


def rollout_view(status: RolloutStatus, now: datetime) -> str:
    """Return the view of a rollout at a time, without the page around it."""
    parts = [
        _head(status, now),
        "<h2>Arms</h2>",
        _arms(status.arms),
        "<h2>Canary against baseline</h2>",
        _tests(status.tests),
    ]
    if len(status.series) > 2:
        parts += ["<h2>Over time</h2>", _curves(status)]
    if status.shadow is not None:
        parts += ["<h2>Shadow</h2>", _shadow(status.shadow)]
    parts += ["<h2>History</h2>", _history(status)]
    return "".join(parts)


def whole_page(title: str, body: str, *, head: str = "") -> str:
    """Return a page that needs nothing from anywhere else."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title>{head}{body}</html>\n"
    )


def _head(status: RolloutStatus, now: datetime) -> str:
    word = "paused" if status.paused else _WORDS.get(status.state, status.state)
    kind = "open" if status.paused else _ENDS.get(status.state, "")
    share = f" at {status.weight / 100:g} % of users" if status.weight else ""
    ended = status.state in _ENDS
    decision = "" if ended else f"<b>{escape(status.decision)}</b>: "
    return (
        f"<div class=card><div class=head><span class='badge {kind}'>{escape(word)}{share}</span>"
        f"<h1>version {escape(status.candidate_version)} against {escape(status.stable_version)}</h1>"
        f"<span class=soft>{escape(status.rollout_id)}, plan epoch {status.epoch}, as of {_ago(status, now)}</span>"
        f"<p>{decision}{escape(status.reason)}</p></div>{_steps(status)}</div>"
    )


def _ago(status: RolloutStatus, now: datetime) -> str:
    if status.state in _ENDS:
        return f"{escape(_clock(status.step_started_at))} UTC"
    try:
        seconds = (now - datetime.fromisoformat(status.updated_at)).total_seconds()
    except (ValueError, TypeError):
        return escape(status.updated_at)
    return "now" if 0 <= seconds < 5 else f"{seconds:,.0f} s ago"


def _steps(status: RolloutStatus) -> str:
    """Return the line from shadow to champion, with where it is and where it stopped."""
    had_shadow = any(line.state == "shadow" for line in status.history)
    names = (["shadow"] if had_shadow else []) + [f"{weight / 100:g} %" for weight in status.steps] + ["champion"]
    at = status.step + (1 if had_shadow else 0)
    if status.state == "champion":
        at = len(names)
    cells = []
    for n, name in enumerate(names):
        kind = "past" if n < at else "" if n > at else "stop" if status.state in _ENDS else "now"
        cells.append(f"<li class='{'' if status.state == 'rejected' else kind}'>{escape(name)}</li>")
    return f"<ol class=steps>{''.join(cells)}</ol>"


def _arms(arms: Sequence[ArmStatus]) -> str:
    names = list(dict.fromkeys(name for arm in arms for name in arm.failures))
    head = ["arm", "version", "requests", "users", *(escape(name.replace("_", " ")) for name in names)]
    head += ["p50 ms", "p95 ms", "click", "buy"]
    colours = {"canary": "var(--canary)", "baseline": "var(--base)"}
    rows = []
    for arm in arms:
        dot = f"<span class=dot style='--c:{colours.get(arm.arm, '#8a94a3')}'></span>"
        failures = [_failures(arm.failures.get(name, 0), arm.requests) for name in names]
        compared = arm.arm in colours
        cells = [f"{dot}{escape(arm.arm)}", escape(arm.model_version), f"{arm.requests:,}"]
        cells += [f"{arm.users:,}" if compared else "", *failures, _number(arm.p50_ms), _number(arm.p95_ms)]
        cells += [_share(arm.ctr, arm.clicks), _share(arm.conversion, arm.conversions)]
        rows.append(cells)
    note = "<p class=soft>Requests, users and failures since the step began; clicks and purchases since the canary's."
    return f"<div class='card scroll'>{_table(head, rows)}{note}</p></div>" if rows else _nothing("no answer yet")


def _tests(tests: Sequence[TestStatus]) -> str:
    rows = []
    for test in tests:
        is_ratio, is_click = test.name == "sample ratio", test.name in _CLICKS
        kind = "good" if is_ratio and test.state == "open" else _TEST_CLASS.get(test.state, "open")
        word = ("unequal" if test.state == "worse" else "equal") if is_ratio else test.state
        rows.append([
            f"{escape(_TITLES.get(test.name, test.name))}<small>{escape(test.text)}</small>",
            f"<span class='word {kind}'>{escape(word)}</span>",
            _points(test.value),
            f"<span class={kind}>{interval_bar(test, low_is_bad=is_click)}</span>",
            _points(test.margin, sign="-" if is_click else "+") if test.margin else "",
            _evidence(test),
        ])  # fmt: skip
    head = ["", "", "difference", "interval; dashes: what is tolerated", "margin", "evidence"]
    legend = (
        "<p class=soft>Difference of shares of users, canary less baseline, in percentage points. Evidence says how "
        "many times likelier this is if the canary is worse; at its bound the rollout goes back. A canary goes on when "
        "the interval of every guardrail ends before the dashes.</p>"
    )
    return f"<div class='card scroll'>{_table(head, rows)}{legend}</div>" if rows else _nothing("no canary yet")


def _curves(status: RolloutStatus) -> str:
    margins = {test.name: test.margin for test in status.tests}
    names = list(dict.fromkeys(name for point in status.series for name in point.tests))
    cards = []
    for name in names:
        margin = margins.get(name)
        chart = timeline(status.series, name, -margin if margin and name in _CLICKS else margin)
        cards.append(f"<div class=card><h3>{escape(_TITLES.get(name, name))}</h3>{chart}</div>")
    return f"<div class=grid>{''.join(cards)}</div>"


def _shadow(shadow: ShadowStatus) -> str:
    rows = [
        ["answers compared", f"{shadow.compared:,}"],
        ["failed", _failures(shadow.errors, shadow.compared)],
        ["left out under load", f"{shadow.dropped:,}"],
        ["items in common with what was served", _percent(shadow.overlap)],
        ["rank correlation", _number(shadow.rank_correlation, 2)],
        ["shift of scores", _number(shadow.score_shift, 4)],
        ["p95, ms (served: " + _number(shadow.served_p95_ms) + ")", _number(shadow.p95_ms)],
    ]
    parts = [f"<div class=grid><div class='card scroll'>{_table([], rows)}</div>"]
    if shadow.segments:
        bars = [[escape(name), share_bar(value), _percent(value)] for name, value in shadow.segments.items()]
        parts.append(
            f"<div class='card scroll'><h3>Segments that differ most (items in common)</h3>{_table([], bars)}</div>"
        )
    return "".join([*parts, "</div>"])


def _history(status: RolloutStatus) -> str:
    rows = [
        [
            escape(_clock(line.at)),
            escape(_WORDS.get(line.state, line.state)) + (f" {line.weight / 100:g} %" if line.weight else ""),
            escape(line.who),
            escape(line.reason),
        ]
        for line in reversed(status.history)
    ]
    return f"<div class='card scroll'>{_table(['UTC', 'state', 'who', 'why'], rows, text=3)}</div>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text: int = -1) -> str:
    """Return a table of cells that are HTML already; column `text` holds sentences."""
    lines = ["<tr>" + "".join(_cell("th", n, one, text) for n, one in enumerate(head)) + "</tr>"] if head else []
    lines += ["<tr>" + "".join(_cell("td", n, one, text) for n, one in enumerate(row)) + "</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _cell(tag: str, column: int, content: str, text: int) -> str:
    return f"<{tag}{' class=text' if column == text else ''}>{content}</{tag}>"


def _nothing(words: str) -> str:
    return f"<div class='card soft'>{words}</div>"


def _evidence(test: TestStatus) -> str:
    if test.e_value is None or test.threshold is None:
        return ""
    value = f"{test.e_value:,.3g}" if test.e_value < 1e3 else f"{test.e_value:,.0f}"
    value = value if test.e_value < 1e6 else "over a million"
    return f"{value} of {test.threshold:,.0f}"


def _failures(count: int, requests: int) -> str:
    return f"{count:,} ({count / requests:.2%})" if count and requests else f"{count:,}"


def _share(value: float | None, count: int) -> str:
    return "" if value is None else f"{value:.2%} ({count:,})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _points(value: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{sign}{100 * value:.2f}" if sign else f"{100 * value:+.2f}"


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _clock(text: str) -> str:
    return text[:19].replace("T", " ")
