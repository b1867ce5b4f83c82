"""Fits implicit ALS (Hu, Koren and Volinsky 2008); only the item factors are kept, users are folded in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from serving.candidates.factors import Confidence, ItemFactors, confidence_of
from serving.candidates.vector_index import EXACT_BELOW, cluster, with_index
from serving.candidates.vocabulary import Vocabulary
from training.generators.contract import Past
from training.generators.interactions import interactions


@dataclass(frozen=True)
class Als:
    """Settings of implicit ALS.

    Attributes
    ----------
    confidence, alpha
        Confidence above that of an unseen item: `alpha * w` (linear), `alpha * log1p(w)` (log) or `alpha` (binary),
        with w the decayed weight; users are folded in with the same.
    half_life_days
        Of the weight.
    """

    quota: int = 120
    factors: int = 64
    regularization: float = 0.05
    iterations: int = 15
    alpha: float = 4.0
    confidence: Confidence = "log"
    half_life_days: float = 180.0
    name: str = "als"

    def fit(self, past: Past) -> ItemFactors:
        """Fit on decayed confidence and keep the item factors."""
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits

        matrix, items = interactions(past, self.half_life_days)
        matrix.data = 1.0 + self.alpha * confidence_of(matrix.data, self.confidence)
        with threadpool_limits(1, "blas"):  # implicit brings its own threads; two pools fight and results vary
            model = AlternatingLeastSquares(
                factors=self.factors,
                regularization=self.regularization,
                alpha=1.0,
                iterations=self.iterations,
                num_threads=past.threads,
                random_state=past.seed,
                dtype=np.float32,
            )
            model.fit(matrix.astype(np.float32), show_progress=False)
        factors = np.asarray(model.item_factors, np.float32)
        fitted = ItemFactors(
            Vocabulary(items),
            factors,
            self.regularization,
            self.alpha,
            self.half_life_days,
            self.confidence,
            self.name,
        )
        if len(factors) < EXACT_BELOW:
            return fitted
        centroids, lists = cluster(factors, seed=past.seed)
        return with_index(replace(fitted, centroids=centroids, lists=lists))
