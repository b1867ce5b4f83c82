"""The account of an answer as one HTML page that needs nothing else. Ids are user data: every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Final

from larder.explaining import words
from larder.explaining.account import Account, Line

#: Nothing is loaded and no script runs, whatever an id says.
_CSP: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--up:#2e7d32;--down:#c62828}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2rem 0 .5rem}
table{border-collapse:collapse;width:100%}th,td{padding:.2rem .6rem;border-bottom:1px solid var(--line);
text-align:left;vertical-align:top;overflow-wrap:anywhere}th{font-weight:600;white-space:nowrap}
.n{text-align:right;font-variant-numeric:tabular-nums}.scroll{overflow-x:auto}
.up{color:var(--up)}.down{color:var(--down)}details{margin:.4rem 0}summary{cursor:pointer}
code{font:.85em ui-monospace,monospace;overflow-wrap:anywhere}ul{margin:.3rem 0;padding-left:1.2rem}
"""


def account_page(account: Account) -> str:
    """Return the page."""
    title = f"Request {escape(account.request_id)}"
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">',
        "<meta name=viewport content='width=device-width'>",
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>",
        "<table>",
        *(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in words.facts(account)),
        "</table>",
        *_list([f"{reason}: {text}" for reason, text in account.reasons.items()]),
        "<h2>The list</h2>",
        *_table(account.lines),
        "<h2>Why this order</h2>",
        *_list([*account.steps, *account.known]),
        "<h2>Why each item</h2>",
        *(part for line in account.lines for part in _item(line)),
        "<h2>What came of it so far</h2>",
        *_list([words.outcome_in_words(one) for one in account.outcome] or ["Nothing in the event log yet."]),
    ]
    if (shadow := words.shadow_in_words(account)) is not None:
        parts += ["<h2>Shadow</h2>", *_list([shadow])]
    if account.replayed is not None:
        parts += ["<h2>Replay (computed now, not logged)</h2>"]
        parts += _list(words.replay_in_words(account.replayed, len(account.lines)))
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _list(sentences: Iterable[str]) -> Iterator[str]:
    yield "<ul>"
    yield from (f"<li>{escape(sentence)}</li>" for sentence in sentences)
    yield "</ul>"


def _table(lines: Iterable[Line]) -> Iterator[str]:
    yield "<div class=scroll><table><tr><th class=n>rank</th><th>item</th><th class=n>score</th><th>brought by</th>"
    yield "<th>slot</th></tr>"
    for line in lines:
        by = escape(words.sources_in_words(line.source, line.brought))
        yield f"<tr><td class=n>{line.rank}</td><td>{escape(line.item_id)}</td><td class=n>{line.score:.4g}</td>"
        yield f"<td>{by}</td><td>{escape(line.slot or '')}</td></tr>"
    yield "</table></div>"


def _item(line: Line) -> Iterator[str]:
    yield f"<details{' open' if line.rank == 1 else ''}><summary>{line.rank}. <b>{escape(line.item_id)}</b> "
    yield f"{escape(line.summary)}</summary><ul>"
    for one in line.contributions:
        yield f"<li class={'up' if one.contribution > 0 else 'down'}>{escape(one.text)}</li>"
    yield "</ul>"
    if line.features:
        rows = "; ".join(f"{view}: {words.row_in_words(row)}" for view, row in line.rows.items())
        yield f"<p>{escape(rows)}</p><details><summary>What the model saw</summary><div class=scroll><table>"
        for name, value in line.features.items():
            yield f"<tr><td><code>{escape(name)}</code></td><td class=n>{'' if value is None else value}</td></tr>"
        yield "</table></div></details>"
    yield "</details>"
