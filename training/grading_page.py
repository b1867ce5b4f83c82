"""A grading as one HTML page that needs nothing else: the figures with intervals, the plots, how it was made."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Final

from training.grading import Figure, Grading
from training.grading_plots import TITLES, plots
from training.slate_metrics import KS, LIST_METRICS, USER_METRICS

#: Metric to how people write it.
NAMES: Final = {
    "ndcg": "nDCG", "recall": "Recall", "precision": "Precision", "map": "MAP", "mrr": "MRR", "hr": "HR",
    "coverage": "Coverage", "gini": "Gini", "novelty": "Novelty, bits", "tail_share": "Tail share",
}  # fmt: skip
_STYLE: Final = """
:root{color-scheme:light}body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2.2rem 0 .5rem}table{border-collapse:collapse}
th,td{padding:.15rem .7rem;border-bottom:1px solid #8884;text-align:right;font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}small{opacity:.65}.scroll{overflow-x:auto}img{max-width:100%}
.up{color:#2e7d32}.down{color:#c62828}
"""


def grading_page(grading: Grading, name: str, made_of: Mapping[str, str]) -> str:
    """Return the page.

    Parameters
    ----------
    made_of
        What was graded and how, for people: name to value.
    """
    facts = "".join(f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in made_of.items())
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Evaluation: {escape(name)}</title><style>{_STYLE}</style><h1>Evaluation: {escape(name)}</h1>",
        f"<div class=scroll><table>{facts}</table></div>",
    ]
    for title, figure in plots(grading):
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=100)
        data = base64.b64encode(image.getvalue()).decode()
        parts.append(f"<h2>{escape(title)}</h2><img alt='{escape(title)}' src='data:image/png;base64,{data}'>")
    for kind, segment in grading.segments.items():
        parts.append(f"<h2>{TITLES[kind].capitalize()} ({segment.users:,})</h2>")
        parts += _table(segment.figures, signed=False)
        if segment.gains:
            parts.append(
                f"<p>Paired gain over {escape(grading.against)}; coloured where the interval leaves 0 out:</p>"
            )
            parts += _table(segment.gains, signed=True)
    return "\n".join(parts) + "\n"


def _table(models: Mapping[str, Mapping[str, Figure]], *, signed: bool) -> Iterator[str]:
    head = "".join(f"<th>{escape(model)}</th>" for model in models)
    yield f"<div class=scroll><table><tr><th></th>{head}</tr>"
    for metric in (*USER_METRICS, *LIST_METRICS):
        for k in KS:
            key = f"{metric}@{k}"
            if any(key in figures for figures in models.values()):
                cells = "".join(_cell(figures.get(key), signed=signed) for figures in models.values())
                yield f"<tr><td>{NAMES[metric]} @{k}</td>{cells}</tr>"
    yield "</table></div>"


def _cell(one: Figure | None, *, signed: bool) -> str:
    if one is None:
        return "<td></td>"
    mood = "" if not signed else "up" if one.low > 0 else "down" if one.high < 0 else ""
    sign = "+" if signed else ""
    spread = f" <small>[{one.low:{sign}.4f}, {one.high:{sign}.4f}]</small>" if math.isfinite(one.low) else ""
    return f"<td class='{mood}'>{one.value:{sign}.4f}{spread}</td>"
