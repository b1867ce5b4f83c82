"""Loops of the hot path, compiled: sums over neighbours, and the fusion of the generators' lists. PURE.

As NumPy calls each of them takes ten times as long: a request's arrays are so short that every call's fixed cost rules.
Everything a compiled function depends on stands in this file (numba decides by it whether its cache is still good).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Fused worth as an integer: finer than any two ranks differ, and coarser than the rounding of sums in another order.
_STEPS: Final = 2.0**38
#: Room for the item index below it.
_INDEX_BITS: Final = 24

Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """Compile with numba (which is untyped, hence the cast)."""
    return cast("Function", njit(cache=True, nogil=True)(function))


# Arguments of the compiled functions are typed Any: numba infers the types, and ignores annotations.
@_compiled
def _neighbour_sums(rows: Any, weights: Any, neighbours: Any, similarity: Any, target: Any, size: int) -> Any:
    total = np.zeros(len(target), np.float64)
    for r in range(len(rows)):
        row, weight = rows[r], weights[r]
        for d in range(neighbours.shape[1]):
            near = neighbours[row, d]
            if near >= 0:
                total[near] += similarity[row, d] * weight
    out = np.zeros(size, np.float32)
    for i in range(len(target)):
        if target[i] >= 0:
            out[target[i]] = total[i]
    return out


def neighbour_sums(rows: I32, weights: F64, neighbours: I32, similarity: F32, target: I32, size: int) -> F32:
    """Sum the similarities of some rows' neighbours.

    Parameters
    ----------
    rows, weights
        Rows of `neighbours` and how much each counts, shapes (m,).
    neighbours, similarity
        Shapes (n, depth); -1 pads short rows.
    target, size
        Where each of the n entries goes in the result, -1 for nowhere, shape (n,); and the result's length.

    Returns
    -------
    ndarray
        Shape (size,).
    """
    return cast("F32", _neighbour_sums(rows, weights, neighbours, similarity, target, size))


@_compiled
def _fuse(lists: Any, ends: Any, allowed: Any, curves: Any) -> Any:
    size, depth = len(allowed), curves.shape[1]
    worth, best, source = np.zeros(size, np.float64), np.zeros(size, np.int32), np.zeros(size, np.int8)
    start = 0
    for g in range(len(ends)):
        for position in range(start, ends[g]):
            item, rank = lists[position], position - start + 1
            if not allowed[item]:
                continue
            worth[item] += curves[g, min(rank, depth) - 1]
            if best[item] == 0 or rank < best[item]:
                best[item], source[item] = rank, g
        start = ends[g]
    count = 0
    for item in range(size):
        count += best[item] > 0
    keys = np.empty(count, np.int64)
    count = 0
    for item in range(size):
        if best[item] > 0:
            keys[count] = (np.int64((0.5 - worth[item]) * _STEPS) << _INDEX_BITS) | item
            count += 1
    return keys, source


def fuse(
    lists: I32, ends: npt.NDArray[np.int64], allowed: Mask, curves: F64, limit: int
) -> tuple[I32, npt.NDArray[np.int8]]:
    """Fuse ranked lists by what their ranks are worth.

    Parameters
    ----------
    lists, ends
        Item indices of all lists, one after the other, each distinct and best first; and where each list ends.
    allowed
        Which items may be kept, shape (n,).
    curves
        `Fusion.curves`: worth of each rank by list, shape (len(ends), depth).

    Returns
    -------
    tuple
        At most `limit` distinct items, most worth first, ties to the smaller index; and for each the number of the list
        that ranked it highest, the first of equals.
    """
    keys, source = _fuse(lists, ends, allowed, curves)
    if len(keys) > limit:
        keys = np.partition(keys, limit - 1)[:limit] if limit else keys[:0]
    keys.sort()
    items = (keys & ((1 << _INDEX_BITS) - 1)).astype(np.int32)
    return items, source[items]


@_compiled
def _ranks(lists: Any, ends: Any, items: Any, size: int, out: Any) -> None:
    where = np.full(size, -1, np.int32)
    for row in range(len(items)):
        where[items[row]] = row
    start = 0
    for g in range(len(ends)):
        for position in range(start, ends[g]):
            row = where[lists[position]]
            if row >= 0:
                out[row, g] = position - start + 1
        start = ends[g]


def ranks_in(lists: I32, ends: npt.NDArray[np.int64], items: I32, size: int) -> F32:
    """Return the 1-based rank of some distinct items in each of several lists, NaN where it lacks them.

    Parameters
    ----------
    lists, ends
        As of `fuse`.
    size
        Number of all items there are.

    Returns
    -------
    ndarray
        Shape (len(items), len(ends)).
    """
    out = np.full((len(items), len(ends)), np.nan, np.float32, order="F")
    _ranks(lists, ends, items, size, out)
    return out
