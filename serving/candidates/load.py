"""Takes candidate generators apart into settings and arrays, and builds them again from a bundle's safe files.

A generator is a dataclass: its fields are all there is to store. To add one, name its class in `KINDS`.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from feature_repo.errors import BadInputError
from serving.candidates.contract import CandidateGenerator
from serving.candidates.factors import ItemFactors
from serving.candidates.history import OwnHistory
from serving.candidates.item_to_item import ItemToItem
from serving.candidates.popularity import CategoryPopularity, Popularity
from serving.candidates.vocabulary import Vocabulary

#: Name in manifests to class.
KINDS: Final[dict[str, type[Any]]] = {
    "popularity": Popularity,
    "category_popularity": CategoryPopularity,
    "history": OwnHistory,
    "item_factors": ItemFactors,
    "item_to_item": ItemToItem,
}
#: Array of the vocabulary's item ids.
_IDS = "ids"


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all arrays of an `.npz` and close it; pickled ones are refused."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def parts_of(generator: CandidateGenerator) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Take a generator apart: its manifest entry, and the arrays of its file (none if nothing was fitted).

    Raises
    ------
    TypeError
        For a class that is not named in `KINDS`.
    """
    kind = next((kind for kind, one in KINDS.items() if type(generator) is one), None)
    if kind is None:
        raise TypeError(f"no kind of generator is a {type(generator).__name__}: add it to serving/candidates/load.py")
    params: dict[str, Any] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for one in fields(generator):  # type: ignore[arg-type]  # the classes of KINDS are dataclasses
        value = getattr(generator, one.name)
        if not one.init or one.name == "name":
            continue
        if isinstance(value, Vocabulary):
            arrays[_IDS] = np.array(value.ids)
        elif isinstance(value, np.ndarray):
            arrays[one.name] = value
        else:
            params[one.name] = value
    return {"name": generator.name, "kind": kind, "params": params}, arrays


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
    if spec["kind"] not in KINDS:
        raise BadInputError(f"unknown kind of candidate generator {spec['kind']!r}; known: {', '.join(KINDS)}")
    parts: dict[str, Any] = {"name": spec["name"], **spec["params"]}
    if "file" in spec:
        parts |= read_arrays(directory / spec["file"])
    if _IDS in parts:
        parts["vocabulary"] = Vocabulary([str(item) for item in parts.pop(_IDS)])
    generator: CandidateGenerator = KINDS[spec["kind"]](**parts)
    return generator
