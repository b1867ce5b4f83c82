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

#: Bits of a positive float, cut to sign, exponent and four bits more: buckets in the order of the floats.
_BUCKET_SHIFT: Final = 19
_BUCKETS: Final = 1 << (31 - _BUCKET_SHIFT)
_LARGEST: Final = 2**31 - 1
_INDEX: Final = 2**32 - 1

Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """Compile with numba (which is untyped, hence the cast)."""
    return cast("Function", njit(cache=True, nogil=True)(function))


@_compiled
def _best_keys(scores: Any, k: int) -> Any:
    bits = scores.view(np.int32)
    counts = np.zeros(_BUCKETS, np.int32)
    for i in range(len(bits)):
        if bits[i] > 0:
            counts[bits[i] >> _BUCKET_SHIFT] += 1
    found, least = 0, _BUCKETS
    while least > 0 and found < k:
        least -= 1
        found += counts[least]
    keys = np.empty(found, np.int64)
    at = 0
    for i in range(len(bits)):
        if bits[i] > 0 and bits[i] >> _BUCKET_SHIFT >= least:
            keys[at] = (np.int64(_LARGEST - bits[i]) << 32) | i
            at += 1
    return keys


def top_k(scores: F32, k: int) -> I32:
    """Return the indices of the `k` largest positive scores, best first, ties to the smaller index.

    The bits of positive floats are ordered like the floats. So a count by their first bits says where the k best begin,
    and with the index below them every key is another one: ties are settled, and integers are quickly sorted.

    Parameters
    ----------
    scores
        Shape (n,), finite.
    k
        May exceed n.
    """
    if k <= 0:  # a generator that is switched off by its quota
        return np.empty(0, np.int32)
    keys = _best_keys(np.ascontiguousarray(scores, np.float32), k)
    if len(keys) > k:
        keys = np.partition(keys, k - 1)[:k]
    keys.sort()
    return cast("I32", (keys & _INDEX).astype(np.int32))


@_compiled
def _spread(scores: Any, target: Any, size: int) -> Any:
    out = np.zeros(size, np.float32)
    for i in range(len(target)):
        if target[i] >= 0:
            out[target[i]] = scores[i]
    return out


def spread(scores: npt.NDArray[np.floating], target: I32, size: int) -> F32:
    """Put scores where `target` says, shape (size,); those of -1 nowhere, and 0 where none goes."""
    return cast("F32", _spread(scores, target, size))


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
