"""Re-ranking: diversity of a list, and the place kept for a new item. PURE.

Works on the candidates' positions in order of the ranker's score; what is shown stays a permutation of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from feature_repo.errors import BadInputError
from feature_repo.views import DAY_US
from serving.candidates.contract import F32, I32, ItemSimilarity
from serving.cascade.items import ItemTable

F64 = npt.NDArray[np.float64]
Positions = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

DiversityKind = Literal["off", "category_cap", "mmr"]
DIVERSITY_KINDS: Final[tuple[DiversityKind, ...]] = ("off", "category_cap", "mmr")
#: Candidates that are re-ranked: the best so many times the length of the list, and no fewer than the least.
_POOL_FACTOR: Final = 5
_POOL_LEAST: Final = 50


@dataclass(frozen=True, slots=True)
class Diversity:
    """How alike the items of one list may be.

    Attributes
    ----------
    kind
        `off`: the ranker's order. `category_cap`: at most `max_per_category` items of one category; those over it move
        behind. `mmr`: maximal marginal relevance (Carbonell and Goldstein 1998).
    trade_off
        Lambda of `mmr`: 1 is the ranker's order, 0 looks at similarity alone.

    Raises
    ------
    BadInputError
        For an unknown kind or a strength out of range.
    """

    kind: DiversityKind = "off"
    max_per_category: int = 3
    trade_off: float = 0.8

    def __post_init__(self) -> None:
        if self.kind not in DIVERSITY_KINDS:
            raise BadInputError(f"no diversity {self.kind!r}; there are: {', '.join(DIVERSITY_KINDS)}")
        if self.max_per_category < 1:
            raise BadInputError(f"max_per_category must be at least 1, not {self.max_per_category}")
        if not 0.0 <= self.trade_off <= 1.0:
            raise BadInputError(f"trade_off must be between 0 and 1, not {self.trade_off}")


@dataclass(frozen=True, slots=True)
class NewItems:
    """The place of a list that is kept for a new item.

    Attributes
    ----------
    slots
        0: none is kept; 1: one is.
    rank
        Where it is; shorter lists have none.
    max_purchases
        A new item has fewer purchase lines than this (views and ratings where nothing is ever bought).
    max_age_days
        And is no older: since it was created, or else first seen; where neither is known, the count decides.

    Raises
    ------
    BadInputError
        For values out of range.
    """

    slots: int = 0
    rank: int = 8
    max_purchases: int = 10
    max_age_days: float = 30.0

    def __post_init__(self) -> None:
        if self.slots not in (0, 1):
            raise BadInputError(f"slots must be 0 or 1, not {self.slots}")
        if self.rank < 1 or self.max_purchases < 1 or not self.max_age_days > 0:
            raise BadInputError(f"rank, max_purchases and max_age_days must be positive: {self}")


def diversify(
    ranked: Positions,
    k: int,
    diversity: Diversity,
    items: I32,
    table: ItemTable,
    probability: Callable[[Positions], F64],
    embedding: ItemSimilarity | None,
) -> Positions:
    """Choose and order `k` candidates.

    Parameters
    ----------
    ranked
        Positions of all candidates, best first, shape (c,).
    items
        Item index of each candidate, shape (c,).
    probability
        Returns the calibrated probability of candidates.
    embedding
        Knows how similar items are; where it does not, and if None, items of one category are alike.

    Returns
    -------
    ndarray
        Shape (min(k, c),).
    """
    if diversity.kind == "off":
        return ranked[:k]
    pool = ranked[: max(_POOL_FACTOR * k, _POOL_LEAST)]
    category = _categories(table, items[pool])
    if diversity.kind == "category_cap":
        return pool[cap_categories(category, diversity.max_per_category)][:k]
    similarity = same_category(category) if embedding is None else embedding.similarity(items[pool], table)
    unknown = np.isnan(similarity.diagonal())
    if unknown.any():
        either = unknown[:, None] | unknown
        similarity[either] = same_category(category)[either]
    return pool[mmr(probability(pool), similarity, k, diversity.trade_off)]


def cap_categories(category: I32, cap: int) -> Positions:
    """Order items so that at most `cap` of a category come first; those over it follow in their order.

    Parameters
    ----------
    category
        Code of each item's category, best item first, -1 for none (never capped), shape (n,).

    Returns
    -------
    ndarray
        A permutation of 0..n-1.

    Examples
    --------
    >>> cap_categories(np.array([7, 7, 7, 2, -1, -1, -1], np.int32), 2).tolist()
    [0, 1, 3, 4, 5, 6, 2]
    """
    order = np.argsort(category, kind="stable")
    grouped = category[order]
    nth = np.empty(len(category), np.intp)
    nth[order] = np.arange(len(category)) - np.searchsorted(grouped, grouped)  # how many of its kind stand above
    over = (nth >= cap) & (category >= 0)
    return np.argsort(over, kind="stable")


def mmr(probability: F64, similarity: F32, k: int, trade_off: float) -> Positions:
    """Choose items one by one by `trade_off * relevance - (1 - trade_off) * greatest similarity to those above`.

    Carbonell and Goldstein 1998. Relevance is the probability scaled to [0, 1] within the pool; of equals the one the
    ranker put first is taken.

    Parameters
    ----------
    probability
        Best item first, shape (n,).
    similarity
        Shape (n, n); below 0 counts as 0.

    Returns
    -------
    ndarray
        Shape (min(k, n),).

    Examples
    --------
    >>> alike = same_category(np.array([1, 1, 2], np.int32))
    >>> mmr(np.array([0.9, 0.8, 0.5]), alike, 3, 0.5).tolist(), mmr(np.array([0.9, 0.8, 0.5]), alike, 3, 1.0).tolist()
    ([0, 2, 1], [0, 1, 2])
    """
    n = len(probability)
    chosen = np.empty(min(k, n), np.intp)
    if not n:
        return chosen
    # Interpolation rounds: an item below may come out above by the last bit.
    relevance = np.minimum.accumulate(probability)
    relevance = (relevance - relevance[-1]) / max(float(relevance[0] - relevance[-1]), 1e-300)
    value = trade_off * relevance
    penalty = (1.0 - trade_off) * similarity.astype(np.float64)
    worst, margin = np.zeros(n), value.copy()
    for place in range(len(chosen)):
        best = chosen[place] = margin.argmax()
        np.maximum(worst, penalty[best], out=worst)
        value[best] = -np.inf
        np.subtract(value, worst, out=margin)
    return chosen


def same_category(category: I32) -> F32:
    """Similarity by category alone: 1 for items of one category, else 0; -1 (none) is like nothing; shape (n, n)."""
    alike: Mask = (category[:, None] == category) & (category >= 0)
    return alike.astype(np.float32)


def is_new(table: ItemTable, items: I32, now_us: int, rule: NewItems) -> Mask:
    """Return which items are new, shape (len(items),)."""
    created, first = table.columns["item_created_at"][items], table.columns["item_first_time"][items]
    since = np.where(np.isnan(created), first, created)
    old = now_us - since > rule.max_age_days * DAY_US  # False where nothing is known
    return np.asarray((table.taken[items] < rule.max_purchases) & ~old)


def keep_new_slot(shown: Positions, ranked: Positions, k: int, rank: int, new: Mask) -> tuple[Positions, int | None]:
    """Put the best new item that is not in the list at `rank`; those from there on move down, the last falls out.

    Parameters
    ----------
    shown
        Positions of the list of at most `k` candidates, best first.
    ranked
        Positions of all candidates, best first, shape (c,).
    new
        Which candidates are new, shape (c,).

    Returns
    -------
    tuple
        The list, and the 0-based place of the new item; None, and the list as it was, where there is no such item.
    """
    place = rank - 1
    if k < rank or len(shown) < rank:
        return shown, None
    waiting = new.copy()
    waiting[shown] = False
    found = ranked[waiting[ranked]]
    if not len(found):
        return shown, None
    return np.concatenate([shown[:place], found[:1], shown[place:]])[:k], place


def _categories(table: ItemTable, items: I32) -> I32:
    """Category codes of items, -1 for those without category."""
    codes = table.category_code[items]
    if table.category_names[:1] == ("",):  # names are sorted: no category is the first
        codes[codes == 0] = -1
    return codes
