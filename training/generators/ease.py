"""Fits EASE (Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"): a closed-form item model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_repo.errors import BadInputError
from serving.candidates.item_to_item import ItemToItem
from serving.candidates.vocabulary import Vocabulary
from training.generators.contract import Past
from training.generators.interactions import interactions
from training.generators.neighbours import nearest


@dataclass(frozen=True)
class Ease:
    """Settings of EASE.

    Attributes
    ----------
    regularization
        Added to the diagonal of the Gram matrix; larger for more events per item.
    depth
        How many weights of an item are kept; those below count least.
    max_items
        The Gram matrix is dense and inverted: time grows with the cube of the items, memory with the square. Of a
        larger catalogue the most taken items are modelled.
    """

    quota: int = 300
    regularization: float = 500.0
    depth: int = 200
    half_life_days: float = 120.0
    max_items: int = 4_000
    name: str = "ease"

    def fit(self, past: Past) -> ItemToItem:
        """Solve for the item weights B = I - P / diag(P), P the inverse of the regularised Gram matrix."""
        matrix, items = interactions(past, self.half_life_days)
        matrix.data = np.sqrt(matrix.data)  # one often repeated item shall not drown all others
        if len(items) > self.max_items:
            weight = np.asarray(matrix.sum(axis=0)).ravel()
            kept = np.sort(np.lexsort((np.arange(len(items)), -weight))[: self.max_items])
            matrix, items = matrix[:, kept], [items[i] for i in kept]
        if not items:
            raise BadInputError("EASE has no events to learn from")
        gram = (matrix.T @ matrix).toarray()
        gram[np.diag_indices_from(gram)] += self.regularization
        inverse = np.linalg.inv(gram)
        weights = -inverse / np.diag(inverse)
        # Column j of B predicts item j; row i says what having taken i adds to every j.
        neighbours, value = nearest(weights, self.depth)
        return ItemToItem(Vocabulary(items), neighbours, value, self.half_life_days, self.name)
