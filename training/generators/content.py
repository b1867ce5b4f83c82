"""Fits content-based retrieval: the text encoder is all there is to fit."""

from __future__ import annotations

from dataclasses import dataclass

from serving.candidates.content import Content as Fitted
from training.generators.contract import Past
from training.generators.text import fit_text_encoder


@dataclass(frozen=True)
class Content:
    """Settings of content-based retrieval by TF-IDF and truncated SVD of title and category.

    Attributes
    ----------
    half_life_days
        Of the user's events.
    """

    quota: int = 100
    dimensions: int = 64
    max_words: int = 20_000
    half_life_days: float = 30.0
    name: str = "content"

    def fit(self, past: Past) -> Fitted:
        """Fit the encoder on the catalogue of the past."""
        encoder = fit_text_encoder(past.table, dimensions=self.dimensions, max_words=self.max_words, seed=past.seed)
        return Fitted(encoder, self.half_life_days, self.name)
