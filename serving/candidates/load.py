"""Reads candidate generators from a bundle: the manifest's entry and safe files, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.errors import BadInputError
from serving.candidates.contract import CandidateGenerator
from serving.candidates.factors import ItemFactors
from serving.candidates.history import OwnHistory
from serving.candidates.item_to_item import ItemToItem
from serving.candidates.popularity import CategoryPopularity, Popularity
from serving.candidates.vocabulary import Vocabulary


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all arrays of an `.npz` and close it; pickled ones are refused."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def load_generator(spec: dict[str, Any], directory: Path) -> CandidateGenerator:
    """Build a generator from its manifest entry.

    Parameters
    ----------
    spec
        `{"name", "kind", "params", "file"?}`; `file` is an `.npz` of the bundle.

    Raises
    ------
    BadInputError
        For a kind this version does not know.
    """
    kind, params = spec["kind"], spec["params"]
    if kind == "popularity":
        return Popularity(name=spec["name"], **params)
    if kind == "category_popularity":
        return CategoryPopularity(name=spec["name"], **params)
    if kind == "history":
        return OwnHistory(name=spec["name"], **params)
    arrays = read_arrays(directory / spec["file"])
    vocabulary = Vocabulary([str(item) for item in arrays["ids"]])
    if kind == "item_factors":
        return ItemFactors(vocabulary, arrays["factors"], name=spec["name"], **params)
    if kind == "item_to_item":
        return ItemToItem(vocabulary, arrays["neighbours"], arrays["similarity"], name=spec["name"], **params)
    raise BadInputError(f"unknown kind of candidate generator {kind!r}")
