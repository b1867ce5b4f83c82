"""Why an item stands where it does, in words: the features that moved its score most. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
from pydantic import Field

from feature_repo.request_features import OUTPUTS
from serving.candidates.contract import F32
from serving.cascade.ranker import F64

#: So many features are named, those that moved the score most.
TOP: Final = 5

_DOCS: Final = dict(OUTPUTS)
#: What a generator goes by; another one goes by its name.
_GENERATORS: Final = {
    "history": "the user's own history",
    "popular": "popularity",
    "category": "popularity in the user's categories",
    "als": "what users alike took (ALS)",
    "similar": "similarity to the user's items",
    "history_30d": "the user's history of the last weeks",
    "popular_30d": "popularity over the last month",
    "als_60d": "what users alike took of late (ALS)",
    "ease": "what goes with the user's items (EASE)",
    "next": "what people take after the user's items",
}
#: Said before the summary of an item that was drawn.
EXPLORED: Final = "Explored: drawn by chance from the candidates below the list, to learn whether it is wanted. "
_NOT_SCORED: Final = {
    "popular": "No model scored it: it is popular with everybody, and fills the list.",
    "popular_file": "No model scored it: it is from the list of popular items kept for emergencies.",
}


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one feature did to a score."""

    feature: Annotated[str, Field(description="Column of the ranker (docs/features.md; `r_...`: retrieval).")]
    value: Annotated[float | None, Field(description="What the model saw; null if unknown.")]
    contribution: Annotated[
        float, Field(description="SHAP value in units of the raw score: log odds where the ranker is a classifier.")
    ]
    text: Annotated[str, Field(description="The same in words.")]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one item has its score.

    Attributes
    ----------
    summary
        One sentence: the score and what it is made of, or why there is none.
    contributions
        The largest ones, first the largest; empty where no model scored the item.
    """

    summary: str
    contributions: list[Contribution]


def explain_row(columns: Sequence[str], row: F32, shap: F64, top: int = TOP) -> Explanation:
    """Put the contributions to one score into words.

    Parameters
    ----------
    columns
        Names of the features, length f.
    row
        What the model saw, shape (f,).
    shap
        What each feature added to the raw score and, last, the model's mean, shape (f + 1,).
    top
        How many features are named at most; those that moved nothing are not.
    """
    parts, mean = shap[:-1], float(shap[-1])
    order = np.argsort(-np.abs(parts), kind="stable")[:top]
    total = float(parts.sum())
    summary = (
        f"The model's score is {mean + total:.2f}: {mean:.2f} on average, {total:+.2f} by what it knows of this user "
        "and item."
    )
    return Explanation(summary, [_contribution(columns[i], float(row[i]), float(parts[i])) for i in order if parts[i]])


def explain_unscored(source: str) -> Explanation:
    """Say why an item that no ranker scored is in the list."""
    return Explanation(_NOT_SCORED.get(source, f"No model scored it: it comes from {source}."), [])


def explain_below(limit: int) -> Explanation:
    """Say of an item far down a long list that it is not explained."""
    return Explanation(f"Only the first {limit} items of a list are explained.", [])


def describe(column: str) -> str:
    """Return what a column of the ranker is, in words; the column itself where nothing is known of it."""
    if column in _DOCS:
        return _DOCS[column]
    generator, _, kind = column.removeprefix("r_").rpartition("_")
    if column.startswith("r_") and kind in ("score", "rank"):
        by = _GENERATORS.get(generator, generator)
        return f"Score by {by}" if kind == "score" else f"Place in the list by {by}"
    return column


def _contribution(column: str, value: float, amount: float) -> Contribution:
    known = not np.isnan(value)
    shown = _number(value) if known else ("not in it" if column.endswith("_rank") else "unknown")
    moved = "raises" if amount > 0 else "lowers"
    size = f"{abs(amount):.2f}" if abs(amount) >= 0.1 else f"{abs(amount):.1g}"
    text = f"{describe(column)}: {shown} ({moved} the score by {size})"
    # Seven digits are all a float32 has: more would be those of its conversion.
    return Contribution(column, float(f"{value:.7g}") if known else None, float(f"{amount:.6g}"), text)


def _number(value: float) -> str:
    """Write a number as people do: 4, 1.33, 12,500."""
    if abs(value) >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
