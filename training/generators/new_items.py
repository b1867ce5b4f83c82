"""Fits the mapping from content to ALS factors (Gantner et al. 2010, "Learning attribute-to-feature mappings")."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from feature_repo.errors import BadInputError
from serving.candidates.new_items import NewItems as Fitted
from training.generators.als import Als
from training.generators.contract import Past
from training.generators.text import fit_text_encoder


@dataclass(frozen=True)
class NewItems:
    """Settings of the content-to-embedding mapping.

    Attributes
    ----------
    als
        Give the line-up's own, so that it is fitted once.
    shrinkage
        An item taken n times teaches with weight n / (n + shrinkage): the factors of rare ones are mostly noise.
    max_takers
        Up to that many purchases an item counts as new.
    window, popularity_floor
        See `serving.candidates.new_items.NewItems`.
    ridge
        Regularisation of the mapping, in items.
    """

    quota: int = 30
    als: Als = field(default_factory=Als)
    dimensions: int = 64
    max_words: int = 20_000
    shrinkage: float = 200.0
    max_takers: int = 2
    ridge: float = 30.0
    window: str = "30d"
    popularity_floor: float = 0.02
    name: str = "new_items"

    def fit(self, past: Past) -> Fitted:
        """Fit the encoder, and the mapping on the items that have been taken."""
        als = past.fit(self.als)
        encoder = fit_text_encoder(past.table, dimensions=self.dimensions, max_words=self.max_words, seed=past.seed)
        at = als.vocabulary.in_table(past.table)
        there = at >= 0
        takers = past.table.takers[at[there]]
        weight = takers / (takers + self.shrinkage)
        if not weight.any():
            raise BadInputError("nothing of the catalogue was ever taken: new items have nothing to be like")
        texts = encoder.table(past.table)[at[there]].astype(np.float64)
        factors = als.factors[there].astype(np.float64)
        # A factor's length says how popular an item is, and a new one is not: only directions are learned.
        factors /= np.maximum(np.linalg.norm(factors, axis=1, keepdims=True), 1e-12)
        offset, centre = (np.average(one, axis=0, weights=weight) for one in (factors, texts))
        weighted = (texts - centre).T * weight
        gram = weighted @ (texts - centre) + self.ridge * np.eye(texts.shape[1])
        mapping = np.linalg.solve(gram, weighted @ (factors - offset))
        return Fitted(
            encoder,
            als,
            mapping.astype(np.float32),
            (offset - centre @ mapping).astype(np.float32),
            self.max_takers,
            self.window,
            self.popularity_floor,
            self.name,
        )
