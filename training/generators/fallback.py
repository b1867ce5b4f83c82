"""Item-to-item with a fallback: neighbours by words for items of which only title and category are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from serving.candidates.contract import F32, top_k
from serving.candidates.item_to_item import ItemToItem
from serving.candidates.text import words_of
from serving.candidates.vocabulary import Vocabulary
from serving.cascade.items import ItemTable
from training.generators.contract import FitOf, Past
from training.generators.cooccurrence import Cooccurrence

#: Rows of similarities held at once.
_BLOCK = 512


@dataclass(frozen=True)
class WithFallback:
    """An item-to-item model, with neighbours by words for items it has none for.

    Attributes
    ----------
    source
        The model that fills the table.
    weight
        Jaccard similarities are multiplied with it: a look-alike counts less than what people took together.
    """

    quota: int = 120
    source: FitOf[ItemToItem] = field(default_factory=Cooccurrence)
    weight: float = 0.1
    name: str = "similar"

    def fit(self, past: Past) -> ItemToItem:
        """Fit the model and fill its empty rows, those of items of the catalogue it does not know included."""
        table = past.fit(self.source)
        unknown = sorted(set(past.table.ids) - set(table.vocabulary.ids))
        vocabulary = Vocabulary([*table.vocabulary.ids, *unknown])
        depth = table.neighbours.shape[1]
        neighbours = np.full((len(vocabulary.ids), depth), -1, np.int32)
        similarity = np.zeros((len(vocabulary.ids), depth), np.float32)
        neighbours[: len(table.neighbours)] = table.neighbours
        similarity[: len(table.neighbours)] = table.similarity
        empty = np.flatnonzero(neighbours[:, 0] < 0)
        words = _words(vocabulary, past.table)
        for item, values in zip(empty, _jaccard(words, empty), strict=True):
            values[item] = 0.0  # an item is not its own neighbour
            near = top_k(values, depth)
            neighbours[item, : len(near)] = near
            similarity[item, : len(near)] = values[near] * self.weight
        return replace(table, vocabulary=vocabulary, neighbours=neighbours, similarity=similarity, name=self.name)


def _words(vocabulary: Vocabulary, table: ItemTable) -> sparse.csr_matrix:
    """Which distinct words title and category of an item have, shape (n_items, n_words), 0 and 1."""
    at = vocabulary.in_table(table)
    sets = [set(words_of(table.titles[i], table.category[i])) if i >= 0 else set() for i in at]
    index = {word: n for n, word in enumerate(sorted(set().union(*sets)))}
    rows = np.repeat(np.arange(len(sets)), [len(one) for one in sets])
    columns = np.array([index[word] for one in sets for word in sorted(one)], np.int64)
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(sets), max(len(index), 1)))


def _jaccard(words: sparse.csr_matrix, asked: npt.NDArray[np.intp]) -> Iterator[F32]:
    """Jaccard similarity of some items to all, one row of shape (n_items,) for each."""
    size = np.asarray(words.sum(axis=1)).ravel()
    for start in range(0, len(asked), _BLOCK):
        block = asked[start : start + _BLOCK]
        common = (words[block] @ words.T).toarray()
        either = size[block][:, None] + size[None, :] - common
        yield from (common / np.maximum(either, 1.0)).astype(np.float32)
