"""The line-up of candidate generators: which are fitted, with what settings, and how they get into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from serving.candidates.contract import CandidateGenerator
from serving.candidates.history import OwnHistory
from serving.candidates.load import parts_of
from serving.candidates.popularity import CategoryPopularity, Popularity
from training.generators.als import Als
from training.generators.contract import GeneratorFit, Past, Ready
from training.generators.cooccurrence import Cooccurrence
from training.generators.ease import Ease
from training.generators.next_basket import NextBasket
from training.npz import write_npz

LineUp = tuple[GeneratorFit, ...]


#: How deep each list goes that is merged: an item far down several lists may still be a good candidate.
DEPTH: Final = 500


def default_line_up() -> LineUp:
    """Return the generators of a model, as tuned on windows before the test (docs/models.md)."""
    return (
        Ready(OwnHistory(half_life_days=120.0, window="30d"), DEPTH),
        Ready(OwnHistory(half_life_days=30.0, window="30d", name="history_30d"), DEPTH),
        Ready(Popularity("1d", name="popular_1d"), DEPTH),
        Ready(Popularity("7d"), DEPTH),
        Ready(Popularity("30d", name="popular_30d"), DEPTH),
        Ready(CategoryPopularity("30d"), DEPTH),
        Als(DEPTH),
        # Fewer factors on the last months: what the same people turn to now.
        Als(DEPTH, factors=32, half_life_days=60.0, alpha=8.0, name="als_60d"),
        Cooccurrence(DEPTH),
        Ease(DEPTH),
        NextBasket(DEPTH),
    )


def fit_line_up(line_up: LineUp, past: Past) -> tuple[CandidateGenerator, ...]:
    """Fit every generator on the past, in order."""
    return tuple(past.fit(one) for one in line_up)


def save_generators(generators: tuple[CandidateGenerator, ...], directory: Path) -> list[dict[str, Any]]:
    """Write the generators' files into a bundle directory and return their manifest entries."""
    entries = []
    for generator in generators:
        entry, arrays = parts_of(generator)
        if arrays:
            entry["file"] = f"{generator.name}.npz"
            write_npz(directory / entry["file"], **{name: np.asarray(array) for name, array in arrays.items()})
        entries.append(entry)
    return entries
