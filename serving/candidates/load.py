"""Takes candidate generators apart into settings and arrays, and builds them again from a bundle's safe files.

A generator is a dataclass: its fields are all there is to store. To add one, name its class in `KINDS`.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from feature_repo.errors import BadInputError
from serving.candidates.content import Content
from serving.candidates.contract import CandidateGenerator
from serving.candidates.contrastive import Contrastive, Tower
from serving.candidates.factors import ItemFactors
from serving.candidates.history import OwnHistory
from serving.candidates.item_to_item import ItemToItem
from serving.candidates.last_events import LastEvents
from serving.candidates.mapped_arrays import read_mapped
from serving.candidates.new_items import NewItems
from serving.candidates.popularity import CategoryPopularity, Popularity, RatedPopularity
from serving.candidates.projection import Projection
from serving.candidates.segment_popularity import SegmentPopularity
from serving.candidates.text import TextEncoder
from serving.candidates.vector_index import with_index
from serving.candidates.vocabulary import Vocabulary

#: Name in manifests to class.
KINDS: Final[dict[str, type[Any]]] = {
    "content": Content,
    "contrastive": Contrastive,
    "last_events": LastEvents,
    "new_items": NewItems,
    "popularity": Popularity,
    "projection": Projection,
    "rated_popularity": RatedPopularity,
    "segment_popularity": SegmentPopularity,
    "category_popularity": CategoryPopularity,
    "history": OwnHistory,
    "item_factors": ItemFactors,
    "item_to_item": ItemToItem,
}
#: Field to class of what generators are composed of; stored by its own fields, under the field's name and a dot.
PARTS: Final[dict[str, type[Any]]] = {
    "encoder": TextEncoder,
    "als": ItemFactors,
    "item_tower": Tower,
    "user_tower": Tower,
}
#: Array of the vocabulary's item ids.
_IDS = "ids"

Arrays = dict[str, npt.NDArray[Any]]


def read_arrays(path: Path) -> Arrays:
    """Read all arrays of an `.npz` and close it; pickled ones are refused."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def parts_of(generator: CandidateGenerator) -> tuple[dict[str, Any], Arrays]:
    """Take a generator apart: its manifest entry, and the arrays of its file (none if nothing was fitted).

    Raises
    ------
    TypeError
        For a class that is not named in `KINDS`.
    """
    kind = next((kind for kind, one in KINDS.items() if type(generator) is one), None)
    if kind is None:
        raise TypeError(f"no kind of generator is a {type(generator).__name__}: add it to serving/candidates/load.py")
    params, arrays = _take_apart(generator)
    return {"name": params.pop("name"), "kind": kind, "params": params}, arrays


def _take_apart(whole: Any) -> tuple[dict[str, Any], Arrays]:
    """Return settings and arrays of a dataclass, without what is derived from them."""
    params: dict[str, Any] = {}
    arrays: Arrays = {}
    for one in fields(whole):
        value = getattr(whole, one.name)
        if not one.init or not one.metadata.get("stored", True):
            continue
        if one.name in PARTS:
            params[one.name], inner = _take_apart(value)
            arrays |= {f"{one.name}.{name}": array for name, array in inner.items()}
        elif isinstance(value, Vocabulary):
            arrays[_IDS] = np.array(value.ids)
        elif isinstance(value, np.ndarray):
            arrays[one.name] = value
        else:
            params[one.name] = value
    return params, arrays


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
    arrays = read_mapped(directory / spec["file"]) if "file" in spec else {}
    generator: CandidateGenerator = _build(KINDS[spec["kind"]], {"name": spec["name"], **spec["params"]}, arrays)
    return with_index(generator)


@lru_cache(maxsize=4)
def _vocabulary(ids: tuple[str, ...]) -> Vocabulary:
    """Return the one vocabulary of these items: generators fitted on the same share it, and what is found by it."""
    return Vocabulary(ids)


def _build(kind: type[Any], params: dict[str, Any], arrays: Arrays) -> Any:
    """Put together what `_take_apart` took apart."""
    values: dict[str, Any] = {**params}
    for name, array in arrays.items():
        if name == _IDS:
            values["vocabulary"] = _vocabulary(tuple(map(str, array)))
        elif "." not in name:
            values[name] = array
    for name in PARTS.keys() & params.keys():
        inner = {one.removeprefix(f"{name}."): array for one, array in arrays.items() if one.startswith(f"{name}.")}
        values[name] = _build(PARTS[name], params[name], inner)
    return kind(**values)
