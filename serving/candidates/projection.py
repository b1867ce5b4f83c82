"""Truncated SVD at serving time: the user's weights projected on the main directions of the interactions. PURE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.rows import UserRows
from serving.candidates.contract import F32
from serving.candidates.vocabulary import Vocabulary, VocabularyQuery
from serving.cascade.items import ItemTable


@dataclass(frozen=True, eq=False)
class Projection:
    """Scores (w V) V^T of the user's weights w: no user is stored, and fresh events count at once.

    Attributes
    ----------
    components
        V: orthonormal columns, shape (n_items, f).
    """

    vocabulary: Vocabulary
    components: F32
    half_life_days: float
    name: str = "svd"

    def query(self, user: UserRows, table: ItemTable, now_us: int) -> VocabularyQuery:
        """Project the user and score every item of the vocabulary."""
        items, total = self.vocabulary.weights(user.recent, table, now_us, self.half_life_days)
        vector = np.log1p(total) @ self.components[items]  # what the interactions were damped with at the fit
        return VocabularyQuery(self.components @ vector.astype(np.float32), self.vocabulary, table)
