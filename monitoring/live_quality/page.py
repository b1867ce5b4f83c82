"""The live quality report as one HTML page that needs nothing else and runs no script. Every text is escaped. PURE."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

from monitoring.live_quality.answered import FATES, VERDICTS
from monitoring.live_quality.charts import chart
from monitoring.live_quality.ratio import Estimate
from monitoring.live_quality.report import FIGURES, SEGMENTS, Group, Point, QualityReport

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--blue:#1f6fd6;--orange:#c2660c;--violet:#8447c9;--green:#2b8a3e;
--red:#c62828;--grey:#777}
body{font:15px/1.5 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .5rem}p{margin:.3rem 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:1rem 2rem}
table{border-collapse:collapse;width:100%}th,td{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:left;
vertical-align:top}th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td small{display:block;opacity:.65}td.what{min-width:20rem}th.n{white-space:normal;min-width:7rem}
.scroll{overflow-x:auto}.none{opacity:.45}.wrong{color:var(--red)}
.note{opacity:.75;max-width:60rem}svg{width:100%;height:auto}svg text{font-size:11px;fill:currentColor;opacity:.7}
.end{text-anchor:end}.mid{text-anchor:middle}.grid{stroke:var(--line)}.diagonal{stroke:currentColor;opacity:.5;
stroke-dasharray:4 4}.line{fill:none;stroke-width:1.6}.band{stroke:none!important;opacity:.16}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.85rem}.legend i{display:inline-block;width:.8rem;
height:.8rem;border-radius:.2rem;margin-right:.4rem;vertical-align:-1px}
.blue{stroke:var(--blue)}circle.blue,.band.blue{fill:var(--blue)}i.blue{background:var(--blue)}
.orange{stroke:var(--orange)}circle.orange,.band.orange{fill:var(--orange)}i.orange{background:var(--orange)}
.violet{stroke:var(--violet)}circle.violet,.band.violet{fill:var(--violet)}i.violet{background:var(--violet)}
.green{stroke:var(--green)}circle.green,.band.green{fill:var(--green)}i.green{background:var(--green)}
.red{stroke:var(--red)}circle.red,.band.red{fill:var(--red)}i.red{background:var(--red)}
.grey{stroke:var(--grey)}circle.grey,.band.grey{fill:var(--grey)}i.grey{background:var(--grey)}
"""
#: It loads nothing and runs nothing, whatever a string in it says.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
#: Versions that are drawn, and those in the tables: the ones with the most items shown.
_LINES: Final = 4
_COLUMNS: Final = 5
_FATE_TEXT: Final = {
    "settled": "the list has the item: counted",
    "not_shown": "that list of that user did not have the item: not counted",
    "other_user": "the list was another user's: not counted",
    "no_record": "no such list in the log: not counted",
    "too_late": "after the window, or before the list: not counted",
}


def quality_page(report: QualityReport) -> str:
    """Return the page."""
    day = "%Y-%m-%d %H:%M"
    since, until = (f"{datetime.fromtimestamp(us / 1e6, UTC):{day}}" for us in (report.since_us, report.until_us))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">',
        f"<title>Live quality: {escape(report.project)}</title><style>{_STYLE}</style>",
        f"<h1>Live quality of {escape(report.project)}</h1>",
        f"<p>{report.requests:,} lists from {since} to {until} UTC; what users did within "
        f"{report.window_us / 3.6e9:g} h of a list counts. Taken {escape(report.taken_at)}, {report.seconds:.1f} s."
        "</p>",
        *(f"<p>Left out: {number:,} lists {escape(why)}.</p>" for why, number in report.left_out.items()),
        "<p class=note>Intervals are 95 %, between users: lists of one user are alike. Figures on clicks depend on "
        "where an item stood: people look at the first places. They compare versions that had the same users at the "
        "same time, as arms of a rollout do, and no others.</p>",
        *_charts(report),
        *_figures(report),
        *_segments(report),
        *_categories(report),
        *_settled(report),
    ]
    return "\n".join(parts) + "\n"


def _charts(report: QualityReport) -> Iterator[str]:
    hours = report.bucket_us < 86_400_000_000
    time_label = lambda at: f"{datetime.fromtimestamp(at / 1e6, UTC):{'%d %b %H:%M' if hours else '%d %b'}}"  # noqa: E731
    yield "<div class=charts><section><h2>CTR over time</h2>"
    yield chart(_by_version(report, report.by_time), time_label, title="CTR over time by version")
    yield "</section><section><h2>CTR by place in the list</h2>"
    last = max((float(point.at) for point in report.by_rank), default=1.0)
    ticks = [float(n) for n in range(1, int(last) + 1) if n == 1 or n % max(round(last / 10), 1) == 0]
    yield chart(_by_version(report, report.by_rank), "{:.0f}".format, title="CTR by rank", x_ticks=ticks)
    yield "</section><section><h2>Reliability of the probability</h2>"
    yield chart(_by_version(report, report.reliability), "{:.1%}".format, title="Observed by predicted", diagonal=True)
    yield f"<p class=note>Across: what the ranker said. Up: what became a {escape(report.target)} within the window. "
    yield "On the dashed line the two are equal.</p></section></div>"


def _by_version(report: QualityReport, points: Sequence[Point]) -> dict[str, list[Point]]:
    """Return points by what the legend says: of models, where there are any."""
    found: dict[str, list[Point]] = {}
    groups = _largest(report)
    for group in ([one for one in groups if one.bundle_id] or groups)[:_LINES]:
        some = [point for point in points if (point.bundle_id, point.arm) == (group.bundle_id, group.arm)]
        if some:
            found[_name(group)] = some
    return found


def _largest(report: QualityReport) -> list[Group]:
    return sorted(report.of("all"), key=lambda group: (not group.bundle_id, -group.shown))


def _name(group: Group) -> str:
    made_by = f"version {group.model_version} ({group.bundle_id[:8]})" if group.bundle_id else "no model"
    return f"{made_by}, {group.arm}"


def _figures(report: QualityReport) -> Iterator[str]:
    groups = _largest(report)[:_COLUMNS]
    yield "<h2>Figures by version</h2><div class=scroll><table><tr><th></th>"
    yield "".join(f"<th class=n>{escape(_name(group))}</th>" for group in groups) + "</tr>"
    for text, values in (
        ("lists", [f"{group.requests:,}" for group in groups]),
        ("users", [f"{group.users:,}" for group in groups]),
        ("items shown", [f"{group.shown:,}" for group in groups]),
    ):
        yield f"<tr><td>{text}</td>{''.join(f'<td class=n>{value}</td>' for value in values)}</tr>"
    for name, (_, text) in FIGURES.items():
        if any(name in group.figures for group in groups):
            cells = "".join(_cell(name, group.figures.get(name)) for group in groups)
            yield f"<tr><td class=what>{_title(name)}<small>{escape(text)}</small></td>{cells}</tr>"
    for name, text in (
        ("calibration_error", "mean distance of the reliability curve from the diagonal (ECE)"),
        ("calibration_noise", "that distance if every probability were right"),
        ("coverage", "share of the available catalogue shown to anybody; no interval"),
    ):
        cells = "".join(_plain(getattr(group, name)) for group in groups)
        yield f"<tr><td class=what>{_title(name)}<small>{text}</small></td>{cells}</tr>"
    yield "</table></div>"


def _segments(report: QualityReport) -> Iterator[str]:
    columns = ("ctr", "click_rate", "ndcg", "conversion", "observed_to_predicted", "confirmed")
    yield "<h2>By segment of users</h2><div class=scroll><table><tr><th>version</th><th>segment</th>"
    yield "<th class=n>lists</th>"
    yield "".join(f"<th class=n>{_title(name)}</th>" for name in columns) + "</tr>"
    for group in sorted(report.groups, key=lambda one: (one.arm, one.bundle_id, SEGMENTS.index(one.segment))):
        if group.segment != "all":
            cells = "".join(_cell(name, group.figures.get(name)) for name in columns)
            yield f"<tr><td>{escape(_name(group))}</td><td>{escape(group.segment)}</td>"
            yield f"<td class=n>{group.requests:,}</td>{cells}</tr>"
    yield "</table></div><p class=note>warm: 10 or more events before the report's time; cold: fewer; new: nothing was "
    yield "known of the user when the list was made.</p>"


def _categories(report: QualityReport) -> Iterator[str]:
    versions = _by_version(report, report.by_category)
    if not versions:
        return
    names = list(dict.fromkeys(str(point.at) for some in versions.values() for point in some))
    yield "<h2>CTR by category</h2><div class=scroll><table><tr><th>category</th>"
    yield "".join(f"<th class=n>{escape(name)}</th>" for name in versions) + "</tr>"
    for name in names:
        found = [next((p.estimate for p in some if p.at == name), None) for some in versions.values()]
        yield f"<tr><td>{escape(name)}</td>{''.join(_cell('ctr', one) for one in found)}</tr>"
    yield "</table></div>"


def _settled(report: QualityReport) -> Iterator[str]:
    """Say what events that name a list came to: those that do not agree with the log are told, not used."""
    kinds = [
        kind for kind in (*VERDICTS, "view", "impression", "cart", "purchase") if report.events(*FATES, kinds=(kind,))
    ]
    if not kinds:
        yield "<h2>Answers that name their list</h2><p class=none>None came in.</p>"
        return
    yield "<h2>Answers that name their list</h2><div class=scroll><table><tr><th></th>"
    yield "".join(f"<th class=n>{escape(kind)}</th>" for kind in kinds) + "</tr>"
    for fate in FATES:
        mood = "" if fate == "settled" else "wrong"
        counts = [report.events(fate, kinds=(kind,)) for kind in kinds]
        cells = "".join(f"<td class='n {mood if count else 'none'}'>{count:,}</td>" for count in counts)
        yield f"<tr><td>{_FATE_TEXT[fate]}</td>{cells}</tr>"
    kept = [one for one in report.settled if one.fate == "settled"]
    other = [sum(one.rank_differs for one in kept if one.kind == kind) for kind in kinds]
    unchecked = [sum(one.events for one in kept if one.kind == kind and not one.claimed) for kind in kinds]
    for text, counts in (
        ("counted, with another rank than the list's (the list's holds)", other),
        ("counted, without a rank: of feedback, the API could not check it when it came", unchecked),
    ):
        yield f"<tr><td>{text}</td>{''.join(f'<td class=n>{count:,}</td>' for count in counts)}</tr>"
    yield "</table></div>"


def _title(name: str) -> str:
    return {"ctr": "CTR", "seen_ctr": "CTR of what was seen", "ndcg": "nDCG on clicks", "mrr": "MRR", "f1": "F1"}.get(
        name, name.replace("_", " ")
    )


def _cell(name: str, one: Estimate | None) -> str:
    if one is None:
        return "<td class='n none'>-</td>"
    percent = FIGURES[name][0] == "share" and name not in ("ndcg", "mrr", "f1")
    show = "{:.2%}".format if percent else "{:.3f}".format
    interval = f"{show(one.low)} to {show(one.high)}" if math.isfinite(one.low) else "one user"
    return f"<td class=n>{show(one.value)}<small>{interval}</small></td>"


def _plain(value: float | None) -> str:
    return "<td class='n none'>-</td>" if value is None else f"<td class=n>{value:.4f}</td>"
