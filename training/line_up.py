"""The line-up of candidate generators: which are fitted, with what settings, and how they get into a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from feature_repo.errors import BadInputError
from serving.candidates.contract import CandidateGenerator
from serving.candidates.history import OwnHistory
from serving.candidates.load import parts_of
from serving.candidates.popularity import CategoryPopularity, Popularity
from training.generators.als import Als
from training.generators.contract import GeneratorFit, Past, Ready
from training.generators.contrastive import Contrastive
from training.generators.cooccurrence import Cooccurrence
from training.generators.ease import Ease
from training.generators.info_nce import require_jax
from training.generators.last_events import LastEvents
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


def with_contrastive(vectors: str | None = None) -> LineUp:
    """Return the default and the contrastive user-item model, which takes JAX to train (docs/contrastive.md).

    Parameters
    ----------
    vectors
        File of further frozen embeddings of the items (`larder items encode`).
    """
    return (*default_line_up(), Contrastive(DEPTH, vectors=vectors))


def with_sequence() -> LineUp:
    """Return the default and what follows the last few items, in their order."""
    return (*default_line_up(), LastEvents(DEPTH, source=NextBasket(DEPTH)))


#: Name to line-up, as `larder train --line-up` takes it.
LINE_UPS: Final[Mapping[str, Callable[[], LineUp]]] = {
    "default": default_line_up,
    "contrastive": with_contrastive,
    "sequence": with_sequence,
}


def line_up_of(name: str, vectors: str | None = None) -> LineUp:
    """Return a line-up by its name.

    Raises
    ------
    BadInputError
        For a name that is none, vectors that no generator of it takes, or a library that is missing.
    """
    if name not in LINE_UPS:
        raise BadInputError(f"no line-up {name!r}; there are: {', '.join(LINE_UPS)}")
    if name == "contrastive":
        require_jax()
        return with_contrastive(vectors)
    if vectors is not None:
        raise BadInputError(f"the line-up {name!r} takes no item vectors; `contrastive` does")
    return LINE_UPS[name]()


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
