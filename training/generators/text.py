"""Fits the text encoder on the catalogue: the words that count, their weights, and truncated SVD."""

from __future__ import annotations

from collections import Counter

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from serving.candidates.text import TextEncoder, words_of
from serving.cascade.items import ItemTable

#: Words of fewer items tie nothing together.
_MIN_ITEMS = 2


def fit_text_encoder(table: ItemTable, *, dimensions: int, max_words: int, seed: int) -> TextEncoder:
    """Fit on the titles and categories of a table.

    Parameters
    ----------
    dimensions
        Of the vectors; fewer where the catalogue has fewer words or items.
    max_words
        The most frequent words kept, ties in alphabetical order.

    Returns
    -------
    TextEncoder
        Of no dimension where no word is said of two items: its vectors say nothing.
    """
    documents = [Counter(words_of(title, name)) for title, name in zip(table.titles, table.category, strict=True)]
    frequency = Counter(word for document in documents for word in document)
    often = sorted(
        (word for word, n in frequency.items() if n >= _MIN_ITEMS), key=lambda word: (-frequency[word], word)
    )
    words = sorted(often[:max_words])
    if not words:
        return TextEncoder(np.empty(0, "<U1"), np.empty(0, np.float32), np.empty((0, 0), np.float32))
    # Smoothed as in scikit-learn: as if one more item said every word.
    idf = np.log((1 + len(documents)) / (1 + np.array([frequency[word] for word in words]))) + 1.0
    index = {word: i for i, word in enumerate(words)}
    entries = [
        (row, index[word], (1.0 + np.log(n)) * idf[index[word]])
        for row, document in enumerate(documents)
        for word, n in document.items()
        if word in index
    ]
    rows, columns, values = (np.array(one) for one in zip(*entries, strict=True))
    matrix = sparse.csr_matrix((values, (rows, columns)), shape=(len(documents), len(words)))
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    matrix = sparse.diags(1.0 / np.maximum(length, 1e-12)) @ matrix
    with threadpool_limits(1, "blas"):  # sums in another order are other bytes
        components = randomized_svd(matrix, min(dimensions, *matrix.shape), random_state=seed)[2].T
    return TextEncoder(np.array(words), idf.astype(np.float32), np.ascontiguousarray(components, np.float32))
