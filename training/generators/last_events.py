"""Candidates from the last few events, by the table of any item-to-item model."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.candidates.item_to_item import ItemToItem
from serving.candidates.last_events import LastEvents as Fitted
from training.generators.contract import FitOf, Past
from training.generators.cooccurrence import Cooccurrence


@dataclass(frozen=True)
class LastEvents:
    """Settings of candidates from the last few events.

    Attributes
    ----------
    source
        Whose table of neighbours is used; give the line-up's own, so that it is fitted once.
    items, decay
        How many distinct items back, and the weight of each relative to the next later one.
    """

    quota: int = 100
    source: FitOf[ItemToItem] = field(default_factory=Cooccurrence)
    items: int = 5
    decay: float = 0.7
    name: str = "recent"

    def fit(self, past: Past) -> Fitted:
        """Fit the table, or take the one the line-up has fitted."""
        table = past.fit(self.source)
        return Fitted(table.vocabulary, table.neighbours, table.similarity, self.items, self.decay, self.name)
