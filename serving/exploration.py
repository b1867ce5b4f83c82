"""The exploration an installation declares, for all arms alike; and a list as it was before its draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from feature_repo.errors import BadInputError
from feature_repo.settings import Settings
from serving.cascade.exploration import Exploration, ExploredSlot
from serving.cascade.recommender import RankedItem


def exploration_of(settings: Settings) -> Exploration | None:
    """Read the declared exploration; None where there is none.

    Raises
    ------
    BadInputError
        For values that cannot be.
    """
    try:
        ranks = tuple(int(text) for text in settings.exploration_ranks.split(","))
    except ValueError:
        raise BadInputError(
            f"exploration_ranks must be places of a list, like 5 or 5,10, not {settings.exploration_ranks!r}"
        ) from None
    words: dict[str, Any] = {"kind": settings.exploration, "pool": settings.exploration_pool}
    rule = Exploration(
        **words, ranks=ranks, epsilon=settings.exploration_epsilon, pool_size=settings.exploration_pool_size
    )
    return None if rule.kind == "none" else rule


def before_exploration(items: Sequence[RankedItem], slots: Sequence[ExploredSlot]) -> list[RankedItem]:
    """Return a list with what stands in the drawn places without exploration."""
    out = list(items)
    for slot in slots:
        if slot.taken:
            out[slot.rank - 1] = RankedItem(slot.item_ids[0], slot.rank, slot.scores[0], "")
    return out
