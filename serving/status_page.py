"""The status page as HTML: what an operator asks first, now and in the last minutes. Every text is escaped. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

import msgspec

from serving.status_charts import Series, line_chart, share_chart, stretch_chart
from serving.status_samples import EVERY_S, Sample, quantile, total

#: Objectives (docs/monitoring.md): a list within 100 ms; features no older than this.
_LIST_MS: Final = 100.0
_AGE_S: Final = 60.0
_LAG_S: Final = 10.0
#: Tiles show the last minute.
_RECENT: Final = 60 // EVERY_S
#: What charts have room for.
_INTERVALS: Final = 600 // EVERY_S
_LEVELS: Final = {"full": "full", "item_side": "item side", "popularity": "popularity", "popularity_file": "from file"}
_LEVEL_COLOURS: Final = {"full": "green", "item side": "orange", "popularity": "red", "from file": "violet"}
#: As on the page of the rollout.
_ARM_COLOURS: Final = {"stable": "grey", "baseline": "blue", "canary": "orange"}

STYLE: Final = """
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:12px;margin:14px 0}
.tile b{display:block;font-size:24px;font-variant-numeric:tabular-nums;color:var(--c,var(--ink))}
.tile{padding:10px 16px}ul.problems{margin:8px 0 0;padding-left:20px;color:var(--bad)}
.blue{--k:var(--base)}.orange{--k:var(--canary)}.violet{--k:#8d74c9}.red{--k:var(--bad)}.green{--k:var(--good)}
.grey{--k:#8a94a3}@media(min-width:1100px){.wide{grid-column:span 2}}
svg .line{stroke:var(--k);fill:none;stroke-width:1.6;stroke-linejoin:round}svg .area{fill:var(--k);opacity:.75}
svg .calm{fill:var(--line)}svg .alarm{fill:var(--bad)}.legend{margin:4px 0 0;font-size:12.5px;color:var(--soft);
display:flex;flex-wrap:wrap;gap:2px 14px}.legend i{display:inline-block;width:10px;height:10px;border-radius:2px;
background:var(--k);margin-right:5px}.badge.good,.badge.bad,.badge.open{background:var(--c)}
"""


class Facts(msgspec.Struct, frozen=True):
    """What stands now, as the process that was asked knows it.

    Attributes
    ----------
    ready, problems
        As `/readyz` says.
    arms
        Name of the arm, version and id of its bundle, share of users it answers; the stable one first.
    processes, answering
        How many there are, and how many answered.
    updated_s
        Seconds since ingest said something; None if it never did.
    """

    project: str
    ready: bool
    problems: list[str]
    epoch: int | None
    arms: list[tuple[str, str, str, float]]
    items: int | None
    item_table_age_s: float | None
    feature_age_s: float | None
    ingest_lag_s: float
    updated_s: float | None
    stream_entries: int
    quarantine_waiting: int
    processes: int
    answering: int


def status_view(facts: Facts, samples: Sequence[Sample]) -> str:
    """Return what the page shows, without the page around it."""
    newest = list(samples)[-_INTERVALS:]
    charts = [f"<div class=card><h3>{name}</h3>{chart}</div>" for name, chart in _charts(newest).items()]
    tiles = _tiles(facts, newest[-_RECENT:])
    return f"{_head(facts)}{tiles}<div class=grid>{''.join(charts)}{_models(facts)}</div>"


def _head(facts: Facts) -> str:
    kind, word = (
        ("bad", "not ready") if not facts.ready else ("open", "degraded") if facts.problems else ("good", "ready")
    )
    problems = "".join(f"<li>{escape(problem)}</li>" for problem in facts.problems)
    processes = f", {facts.answering} of {facts.processes} processes answer" if facts.processes > 1 else ""
    return (
        f"<div class=card><div class=head><span class='badge {kind}'>{word}</span><h1>{escape(facts.project)}</h1>"
        f"<span class=soft>{_model(facts)}{processes}</span></div>"
        f"{f'<ul class=problems>{problems}</ul>' if problems else ''}</div>"
    )


def _model(facts: Facts) -> str:
    if not facts.arms:
        return "no model is loaded"
    others = [f"{escape(arm)} {escape(version)} at {share:.3g} % of users" for arm, version, _, share in facts.arms[1:]]
    return ", ".join([f"version {escape(facts.arms[0][1])} answers", *others, f"plan epoch {facts.epoch}"])


def _tiles(facts: Facts, recent: Sequence[Sample]) -> str:
    buckets = total(sample.buckets for sample in recent)
    levels = total(sample.levels for sample in recent)
    statuses = total(sample.statuses for sample in recent)
    lists, made = sum(statuses.values()), sum(levels.values())
    errors = statuses.get("5xx", 0.0) / lists if lists else None
    degraded = 1.0 - levels.get("full", 0.0) / made if made else None
    p50, p95 = quantile(buckets, 0.5), quantile(buckets, 0.95)
    rate = lists / (len(recent) * EVERY_S) if recent else None
    silent = facts.updated_s is None or facts.updated_s > _LAG_S
    tiles = [
        ("lists a second", _number(rate), ""),
        ("p50 of a list", _ms(p50), ""),
        ("p95 of a list", _ms(p95), _bad(p95, _LIST_MS / 1e3)),
        ("errors and refusals", _percent(errors), _bad(errors, 0.001)),
        ("not on the first rung", _percent(degraded), _bad(degraded, 0.01)),
        ("feature age", _seconds(facts.feature_age_s), _bad(facts.feature_age_s, _AGE_S)),
        (
            "ingest lag",
            "away" if silent else _seconds(facts.ingest_lag_s),
            "bad" if silent else _bad(facts.ingest_lag_s, _LAG_S),
        ),
        ("entries in the stream", f"{facts.stream_entries:,}", ""),
    ]
    cells = [
        f"<div class='card tile {kind}'><span class=soft>{name}</span><b>{value}</b></div>"
        for name, value, kind in tiles
    ]
    return f"<div class=tiles>{''.join(cells)}</div>"


def _charts(samples: Sequence[Sample]) -> dict[str, str]:
    def over_time(values: Sequence[float | None]) -> Series:
        return [*([None] * (_INTERVALS - len(values))), *values]

    def rates(field: str, name: str) -> Series:
        return over_time([getattr(sample, field).get(name, 0.0) / EVERY_S for sample in samples])

    def quantiles(share: float) -> Series:
        found = [quantile(sample.buckets, share) for sample in samples]
        return over_time([None if value is None else 1e3 * value for value in found])

    padding = [False] * (_INTERVALS - len(samples))
    levels = [name for name in _LEVELS if any(sample.levels.get(name) for sample in samples)] or ["full"]
    arms = [name for name in _ARM_COLOURS if any(sample.arms.get(name) for sample in samples)]
    return {
        "Lists a second": line_chart(
            {"answered": rates("statuses", "2xx"), "errors and refusals": rates("statuses", "5xx")}, "", at_least=1.0
        ),
        "Time to make a list": line_chart({"p50": quantiles(0.5), "p95": quantiles(0.95)}, " ms", limit=_LIST_MS),
        "Rungs of the ladder": share_chart({_LEVELS[name]: rates("levels", name) for name in levels}, _LEVEL_COLOURS),
        "Arms": share_chart({name: rates("arms", name) for name in arms or ["stable"]}, _ARM_COLOURS),
        "Age of the features, lag of ingest": line_chart(
            {
                "feature age": over_time([sample.feature_age_s for sample in samples]),
                "ingest lag": over_time([sample.ingest_lag_s for sample in samples]),
            },
            " s",
            at_least=1.0,
        ),
        "Events a second": line_chart(
            {
                "accepted": over_time([sample.events / EVERY_S for sample in samples]),
                "folded": over_time([sample.folded for sample in samples]),
            },
            "",
            at_least=1.0,
        ),
        "Redis left alone": stretch_chart(
            {
                name: [*padding, *(sample.breakers[n] for sample in samples)]
                for n, name in enumerate(("reads", "writes"))
            }
        ),
    }


def _models(facts: Facts) -> str:
    rows = [
        f"<tr><td>{escape(arm)}</td><td>{escape(version)}</td><td>{share:.3g} %</td>"
        f"<td class=text>{escape(bundle)}</td></tr>"
        for arm, version, bundle, share in facts.arms
    ]
    head = "<tr><th>arm</th><th>version</th><th>of users</th><th class=text>bundle</th></tr>"
    items = (
        "no items" if facts.items is None else f"{facts.items:,} items, compared {_seconds(facts.item_table_age_s)} ago"
    )
    said = "never" if facts.updated_s is None else f"{_seconds(facts.updated_s)} ago"
    return (
        f"<div class='card scroll wide'><h3>Models and data</h3><table>{head}{''.join(rows)}</table>"
        f"<p class=soft>{items}; ingest said something {said}; {facts.quarantine_waiting:,} refused rows wait for "
        "their file.</p></div>"
    )


def _bad(value: float | None, limit: float) -> str:
    return "bad" if value is not None and value > limit else ""


def _number(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:,.1f}"


def _percent(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.1%}"


def _ms(value: float | None) -> str:
    return "&ndash;" if value is None else f"{1e3 * value:,.1f} ms"


def _seconds(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:,.1f} s"
