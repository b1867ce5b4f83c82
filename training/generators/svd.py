"""Fits truncated SVD of the interactions (PureSVD, Cremonesi et al. 2010): the reference of factor models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from serving.candidates.projection import Projection
from serving.candidates.vocabulary import Vocabulary
from training.generators.contract import Past
from training.generators.interactions import interactions


@dataclass(frozen=True)
class Svd:
    """Settings of truncated SVD.

    Attributes
    ----------
    factors
        How many directions are kept; fewer where there are fewer users or items.
    half_life_days
        Of an event's weight, which enters as log(1 + weight).
    """

    quota: int = 100
    factors: int = 64
    half_life_days: float = 180.0
    name: str = "svd"

    def fit(self, past: Past) -> Projection:
        """Keep the main directions of the item space."""
        matrix, items = interactions(past, self.half_life_days)
        matrix.data = np.log1p(matrix.data)
        with threadpool_limits(1, "blas"):  # sums in another order are other bytes
            components = randomized_svd(matrix, min(self.factors, *matrix.shape), random_state=past.seed)[2].T
        return Projection(
            Vocabulary(items), np.ascontiguousarray(components, np.float32), self.half_life_days, self.name
        )
