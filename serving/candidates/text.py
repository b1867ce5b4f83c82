"""The built-in text encoder: title and category of an item as a vector, TF-IDF then truncated SVD. PURE.

Bundles carry the encoder, not the vectors: an item that entered the catalogue after the training is encoded like any
other, from the live item table.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from serving.candidates.contract import F32
from serving.cascade.items import ItemTable

#: Two letters or more; digits are sizes and article numbers, which say little of what an item is.
_WORD = re.compile(r"[^\W\d_]{2,}")


def words_of(title: str, category: str) -> list[str]:
    """Lower-cased words of an item, in order, repeated ones included; the category's count like the title's."""
    return _WORD.findall(unicodedata.normalize("NFC", f"{title} {category}").lower())


def unit_rows(matrix: npt.NDArray[np.floating]) -> F32:
    """Scale the rows to length 1; rows of zeros stay, shape as given."""
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: F32 = np.divide(matrix, length, out=np.zeros_like(matrix), where=length > 0).astype(np.float32)
    return unit


@dataclass(eq=False)
class _Encoded:
    """Vectors of the last table seen, by the texts they were made from."""

    titles: tuple[str, ...] = ()
    category: tuple[str, ...] = ()
    vectors: F32 = field(default_factory=lambda: np.empty((0, 0), np.float32))


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """TF-IDF over known words, projected on the main directions of the catalogue it was fitted on.

    Attributes
    ----------
    words
        Known words, shape (n_words,); others are not seen.
    idf
        Inverse document frequencies, shape (n_words,).
    components
        Shape (n_words, d).
    """

    words: npt.NDArray[np.str_]
    idf: F32
    components: F32
    _last: list[_Encoded] = field(default_factory=lambda: [_Encoded()], init=False, repr=False)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {str(word): i for i, word in enumerate(self.words)}

    def encode(self, titles: list[str], categories: list[str]) -> F32:
        """Vectors of some items.

        Returns
        -------
        ndarray
            Shape (len(titles), d), rows of length 1; 0 for an item without a known word.
        """
        out = np.zeros((len(titles), self.components.shape[1]), np.float32)
        for row, (title, category) in enumerate(zip(titles, categories, strict=True)):
            counts = Counter(self._index[word] for word in words_of(title, category) if word in self._index)
            if counts:
                known = np.fromiter(counts, np.int64, len(counts))
                # Logarithm of the count: a word said three times is not three words.
                weight = (1.0 + np.log(np.fromiter(counts.values(), np.float64, len(counts)))) * self.idf[known]
                out[row] = weight @ self.components[known]
        return unit_rows(out)

    def table(self, table: ItemTable) -> F32:
        """Vectors of all items of a table, shape (len(table), d), read-only.

        Only items whose title or category differ from those of the last table are encoded: tables follow each other
        within a second, and hand on both tuples as long as no text changes.
        """
        last = self._last[0]
        if last.titles is table.titles and last.category is table.category:
            return last.vectors
        old = len(last.titles)
        changed = [
            i
            for i, (title, category) in enumerate(zip(table.titles, table.category, strict=True))
            if i >= old or title != last.titles[i] or category != last.category[i]
        ]
        vectors = np.zeros((len(table), self.components.shape[1]), np.float32)
        if kept := min(old, len(table)):
            vectors[:kept] = last.vectors[:kept]
        vectors[changed] = self.encode([table.titles[i] for i in changed], [table.category[i] for i in changed])
        vectors.flags.writeable = False
        self._last[0] = _Encoded(table.titles, table.category, vectors)  # one assignment: requests run side by side
        return vectors
