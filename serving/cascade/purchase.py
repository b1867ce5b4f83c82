"""The purchase score: the probability that a user buys an item, from point-in-time features alone. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from feature_repo.rows import Rows, UserRows
from serving.candidates.contract import F32, I32
from serving.cascade.features import feature_matrix
from serving.cascade.items import ItemTable
from serving.cascade.ranker import MODEL_SUFFIXES
from serving.cascade.recommender import F64, Ranker

#: Kind of model to its file in a bundle.
MODEL_FILES: Final = {kind: f"purchase{suffix}" for kind, suffix in MODEL_SUFFIXES.items()}
CALIBRATION_FILE: Final = "purchase_calibration.npz"
GOLDEN_FILE: Final = "purchase_golden.npz"


@dataclass(frozen=True, eq=False)
class PurchaseModel:
    """A classifier bound to a feature service.

    Attributes
    ----------
    ranker
        Scores rows of the service's features and calibrates the scores.
    service
        The feature service.
    horizon_us
        The purchase counts within this time after the moment of the score.
    """

    ranker: Ranker
    service: str
    horizon_us: int

    def matrix(self, user: UserRows, table: ItemTable, items: I32, pairs: Rows, now_us: int) -> F32:
        """Assemble the model's input by the code of the cascade, without retrieval, shape (len(items), features)."""
        nothing = np.empty((len(items), 0), np.float32)
        return feature_matrix(self.service, user, table, items, pairs, nothing, now_us)

    def probability(self, user: UserRows, table: ItemTable, items: I32, pairs: Rows, now_us: int) -> F64:
        """Probability of a purchase of each item within the horizon, shape (len(items),).

        Parameters
        ----------
        pairs
            USER_ITEM rows of the user and the items, in their order.
        """
        return self.ranker.probability(self.ranker.score(self.matrix(user, table, items, pairs, now_us)))
