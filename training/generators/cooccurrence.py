"""Fits item-to-item by co-occurrence: items that the same users took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from serving.candidates.item_to_item import ItemToItem
from serving.candidates.vocabulary import Vocabulary
from training.generators.contract import Past
from training.generators.interactions import FOREVER_DAYS, interactions
from training.generators.neighbours import nearest


@dataclass(frozen=True)
class Cooccurrence:
    """Cosine between items over the users who took them, shrunk where few did.

    Attributes
    ----------
    depth
        How many neighbours of an item are kept.
    shrinkage
        Added to the cosine's denominator.
    half_life_days
        Of the user's events when neighbours are summed up.
    """

    quota: int = 120
    depth: int = 100
    shrinkage: float = 10.0
    half_life_days: float = 60.0
    name: str = "similar"

    def fit(self, past: Past) -> ItemToItem:
        """Count who took both, and keep the nearest items."""
        matrix, items = interactions(past, FOREVER_DAYS)
        binary = matrix.copy()
        binary.data = np.ones_like(binary.data)
        together = sparse.csr_matrix(binary.T @ binary)
        count = together.diagonal()
        rows = np.repeat(np.arange(len(items)), np.diff(together.indptr))
        together.data = together.data / (np.sqrt(count[rows] * count[together.indices]) + self.shrinkage)
        neighbours, similarity = nearest(together, self.depth)
        return ItemToItem(Vocabulary(items), neighbours, similarity, self.half_life_days, self.name)
