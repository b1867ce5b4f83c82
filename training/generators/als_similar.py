"""Item-to-item by the cosine of ALS factors: alike is what the same kind of people take, together or not."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.candidates.item_to_item import ItemToItem
from training.generators.als import Als
from training.generators.contract import Past
from training.generators.neighbours import nearest_by_cosine


@dataclass(frozen=True)
class AlsSimilar:
    """Settings of item-to-item by ALS cosine.

    Attributes
    ----------
    als
        Give the line-up's own, so that it is fitted once.
    depth
        How many neighbours of an item are kept.
    half_life_days
        Of the user's events when neighbours are summed up.
    """

    quota: int = 100
    als: Als = field(default_factory=Als)
    depth: int = 100
    half_life_days: float = 60.0
    name: str = "als_similar"

    def fit(self, past: Past) -> ItemToItem:
        """Keep the nearest items of every item."""
        als = past.fit(self.als)
        neighbours, similarity = nearest_by_cosine(als.factors, self.depth)
        return ItemToItem(als.vocabulary, neighbours, similarity, self.half_life_days, self.name)
