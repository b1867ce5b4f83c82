"""The skew report as one HTML page that needs nothing else. Ids are user data: every text is escaped. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

import numpy as np

from monitoring.outcomes import OUTCOMES, Comparison, Example, SkewReport, quantile

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--wrong:#c62828;--late:#b26a00;--missing:#6a1b9a;--match:#2e7d32}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .5rem}h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.3rem 0}.tiles{display:flex;flex-wrap:wrap;gap:.7rem;margin:1rem 0}
.tile{border:1px solid var(--line);border-radius:.5rem;padding:.5rem .9rem;min-width:7rem}
.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}
table{border-collapse:collapse;width:100%}th,td{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:left;
vertical-align:top}th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.v{font-family:ui-monospace,monospace;font-size:.85em;overflow-wrap:anywhere}.scroll{overflow-x:auto}
.match{color:var(--match)}.wrong{color:var(--wrong)}.late{color:var(--late)}.missing{color:var(--missing)}
.none{opacity:.45}.bars{display:flex;align-items:flex-end;gap:3px;height:6rem}
.bars div{flex:1;background:var(--late);min-height:1px}.axis{display:flex;gap:3px;font-size:.75rem}
.axis span{flex:1;text-align:center}details{margin:.4rem 0}
"""
#: Upper ends of the bars of the histogram of delays, ms.
_BINS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, float("inf"))


def skew_page(report: SkewReport) -> str:
    """Return the page."""
    verdict = "Nothing was compared" if not report.compared else "The same" if report.passed else "Not the same"
    mood = "match" if report.passed else "wrong"
    counts = dict(zip(OUTCOMES, report.total.tolist(), strict=True))
    tiles = [("values compared", f"{report.compared:,}", "")]
    tiles += [(name, f"{counts[name]:,}", name if counts[name] else "none") for name in OUTCOMES]
    delays = report.lateness()
    tiles += [("p95 of late rows", f"{quantile(delays, 0.95):,.0f} ms", "")]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Skew check: {escape(report.project)}</title><style>{_STYLE}</style>",
        f"<h1>Skew check of {escape(report.project)}: <span class={mood}>{verdict}</span></h1>",
        f"<p>{escape(report.taken_at)}, {report.seconds:.1f} s</p><div class=tiles>",
        *(f"<div class=tile><b class='{mood}'>{value}</b>{escape(text)}</div>" for text, value, mood in tiles),
        "</div><p><b>match</b>: equal bit for bit. <b>wrong</b>: both sides hold the same events and differ. "
        "<b>late</b>: an accepted event was not in the row yet. <b>missing</b>: a row or an event that must be there "
        "is not.</p>",
    ]
    for comparison in report.comparisons:
        parts += _comparison(comparison)
    return "\n".join(parts) + "\n"


def _comparison(one: Comparison) -> Iterable[str]:
    yield f"<h2>{escape(one.title[:1].upper() + one.title[1:])}</h2>"
    if not one.counts:
        yield "<p class=wrong>Nothing could be compared.</p>"
    else:
        head = "".join(f"<th class=n>{name}</th>" for name in OUTCOMES)
        yield f"<div class=scroll><table><tr><th></th><th class=n>values</th>{head}</tr>"
        for name, counts in (*one.counts.items(), ("all", one.total)):
            cells = "".join(
                f"<td class='n {outcome if count else 'none'}'>{count:,}</td>"
                for outcome, count in zip(OUTCOMES, counts.tolist(), strict=True)
            )
            yield f"<tr><td>{escape(name)}</td><td class=n>{int(counts.sum()):,}</td>{cells}</tr>"
        yield "</table></div>"
    if one.left_out:
        left = "; ".join(f"{escape(why)}: {number:,}" for why, number in one.left_out.items())
        yield f"<p>Not compared: {left}.</p>"
    yield from _lateness(one)
    for outcome in OUTCOMES[1:]:
        some = [example for example in one.examples if example.outcome == outcome]
        if some:
            yield f"<details {'open' if outcome != 'late' else ''}><summary class={outcome}>{len(some)} examples: "
            yield f"{outcome}</summary><div class=scroll>{_examples(one, some)}</div></details>"


def _lateness(one: Comparison) -> Iterable[str]:
    if not one.late_ms:
        return
    yield "<h3>How late rows were</h3><div class=scroll><table><tr><th>view</th><th class=n>late rows</th>"
    yield "<th class=n>p50 ms</th><th class=n>p95 ms</th><th class=n>max ms</th></tr>"
    for view in one.late_ms:
        ms = one.lateness(view)
        figures = "".join(f"<td class=n>{quantile(ms, q):,.1f}</td>" for q in (0.5, 0.95, 1.0))
        yield f"<tr><td>{escape(view)}</td><td class=n>{len(ms):,}</td>{figures}</tr>"
    yield "</table></div>"
    found = np.histogram(one.lateness(), bins=[0.0, *_BINS_MS])[0]
    highest = max(int(found.max()), 1)
    yield "<p>Late rows by delay:</p><div class=bars>"
    yield "".join(f"<div title='{count:,}' style='height:{100 * count / highest:.1f}%'></div>" for count in found)
    labels = (f"&lt; {end:,.0f} ms" if np.isfinite(end) else "more" for end in _BINS_MS)
    yield f"</div><div class=axis>{''.join(f'<span>{label}</span>' for label in labels)}</div>"


def _examples(one: Comparison, examples: Sequence[Example]) -> str:
    rows = [f"<tr><th>name</th><th>where</th><th>{escape(one.here)}</th><th>{escape(one.there)}</th><th>why</th></tr>"]
    for example in examples:
        where = "<br>".join(f"{escape(key)}: {escape(value)}" for key, value in example.where.items())
        cells = f"<td>{escape(example.name)}</td><td class=v>{where}</td><td class=v>{escape(example.here)}</td>"
        rows.append(f"<tr>{cells}<td class=v>{escape(example.there)}</td><td>{escape(example.why)}</td></tr>")
    return f"<table>{''.join(rows)}</table>"
