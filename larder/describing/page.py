"""The report on a project's data as one HTML page. Names are user data: every text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

from larder.describing.figures import Description, share

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884}
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .5rem}p{margin:.3rem 0}
.tiles{display:flex;flex-wrap:wrap;gap:.7rem;margin:1rem 0}
.tile{border:1px solid var(--line);border-radius:.5rem;padding:.5rem .9rem;min-width:7rem}
.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}
img{max-width:100%;background:#fff;border-radius:.4rem}.scroll{overflow-x:auto}
table{border-collapse:collapse}th,td{padding:.2rem .8rem;border-bottom:1px solid var(--line);text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td{overflow-wrap:anywhere}
"""


def summary(data: Description) -> list[tuple[str, str]]:
    """Return the short table: what, and how much."""
    days = (data.last - data.first).total_seconds() / 86_400
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in data.kinds.items())
    per_user, per_item = _quantiles(data.per_user.quantiles), _quantiles(data.per_item.quantiles)
    told = [
        ("span", f"{data.first:%Y-%m-%d %H:%M} to {data.last:%Y-%m-%d %H:%M} UTC, {days:,.1f} days"),
        ("events", f"{data.events:,}: {kinds}"),
        ("users", f"{data.users:,}; events of each: {per_user}"),
        ("items", f"{data.items:,} with events, {data.catalogue:,} in the catalogue; events of each: {per_item}"),
    ]
    if data.funnel["view"]:
        seen = data.funnel["view"]
        carts, bought = (share(data.funnel_after[step], seen) for step in ("cart", "purchase"))
        told.append(
            ("funnel", f"{seen:,} pairs of user and item seen, {carts:.1%} then in the cart, {bought:.1%} then bought")
        )
    if data.categories:
        best = ", ".join(f"{name} {share(events, data.events):.0%}" for name, events, _ in data.categories[:3])
        told.append(("categories", f"{best}; none: {share(data.no_category, data.events):.1%}"))
    if data.price_quantiles:
        told.append(("price", f"{_quantiles(data.price_quantiles)} minor units"))
    refused = sum(data.quarantine.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in data.quarantine.items())
    told.append(("quarantine", f"{refused:,}" + (f": {reasons}" if reasons else "")))
    return told


def data_page(data: Description, pictures: Mapping[str, bytes]) -> str:
    """Return the page.

    Parameters
    ----------
    pictures
        Title to PNG.
    """
    tiles = [
        ("events", data.events),
        ("users", data.users),
        ("items", data.items),
        ("in quarantine", sum(data.quarantine.values())),
    ]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Data of {escape(data.project)}</title><style>{_STYLE}</style>",
        f"<h1>Data of {escape(data.project)}</h1><p>Data set {escape(data.data_set)}</p><div class=tiles>",
        *(f"<div class=tile><b>{count:,}</b>{name}</div>" for name, count in tiles),
        "</div>",
        _table(("", ""), summary(data)),
    ]
    for title, png in pictures.items():
        image = base64.b64encode(png).decode()
        parts.append(f"<h2>{escape(title)}</h2><img alt='{escape(title)}' src='data:image/png;base64,{image}'>")
        parts += _numbers(title, data)
    return "\n".join(parts) + "\n"


def _numbers(title: str, data: Description) -> Iterable[str]:
    """Yield the table below some pictures: what a picture rounds or cuts."""
    if title == "Categories":
        rows = [(name, f"{events:,}", f"{items:,}") for name, events, items in data.categories]
        yield _table(("category", "events", "items"), rows)
    if title == "Quarantine":
        yield _table(("reason", "rows"), [(reason, f"{count:,}") for reason, count in data.quarantine.items()])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    kind = " class=n" if head[0] else ""
    lines = [_row("th", kind, head)] if head[0] else []
    lines += [_row("td", kind, row) for row in rows]
    return f"<div class=scroll><table>{''.join(lines)}</table></div>"


def _row(tag: str, kind: str, texts: Sequence[str]) -> str:
    cells = "".join(f"<{tag}{kind}>{escape(text)}</{tag}>" for text in texts[1:])
    return f"<tr><{tag}>{escape(texts[0])}</{tag}>{cells}</tr>"


def _quantiles(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:,.0f}" for name, value in found.items())
