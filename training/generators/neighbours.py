"""Keeps the nearest items of every item from a similarity matrix, as the artefact serving loads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse
from threadpoolctl import threadpool_limits

from serving.candidates.contract import F32, I32, top_k
from serving.candidates.text import unit_rows

#: Rows of similarities held at once by `nearest_by_cosine`.
_BLOCK = 512


def nearest(similarity: sparse.csr_matrix | npt.NDArray[np.floating], depth: int) -> tuple[I32, F32]:
    """Keep the largest positive entries of each row; ties go to the smaller index.

    Parameters
    ----------
    similarity
        Shape (n, n), row = the item asked for; the diagonal is not looked at.

    Returns
    -------
    tuple
        Neighbours and values, shapes (n, depth), best first; -1 and 0 pad short rows.
    """
    n = similarity.shape[0]
    depth = min(depth, max(n - 1, 1))
    neighbours = np.full((n, depth), -1, np.int32)
    values = np.zeros((n, depth), np.float32)
    for item in range(n):
        if sparse.issparse(similarity):
            row = similarity.getrow(item)
            columns, value = row.indices, row.data
        else:
            value = np.asarray(similarity[item])
            columns = np.arange(n, dtype=np.int32)
        keep = (value > 0) & (columns != item)
        columns, value = columns[keep], value[keep]
        order = np.lexsort((columns, -value))[:depth]
        neighbours[item, : len(order)] = columns[order]
        values[item, : len(order)] = value[order]
    return neighbours, values


def nearest_by_cosine(vectors: F32, depth: int) -> tuple[I32, F32]:
    """Keep the items of the largest positive cosine to each; ties go to the smaller index.

    Parameters
    ----------
    vectors
        Shape (n, d). Memory grows with n, not with its square.

    Returns
    -------
    tuple
        As of `nearest`.
    """
    n = len(vectors)
    depth = min(depth, max(n - 1, 1))
    unit = unit_rows(vectors)
    neighbours = np.full((n, depth), -1, np.int32)
    values = np.zeros((n, depth), np.float32)
    with threadpool_limits(1, "blas"):  # sums in another order are other bytes
        for start in range(0, n, _BLOCK):
            block = unit[start : start + _BLOCK] @ unit.T
            for item, row in enumerate(block, start=start):
                row[item] = 0.0  # an item is not its own neighbour
                near = top_k(row, depth)
                neighbours[item, : len(near)] = near
                values[item, : len(near)] = row[near]
    return neighbours, values
