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
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Fused worth as an integer: finer than any two ranks differ, and coarser than the rounding of sums in another order.
_STEPS: Final = 2.0**38
#: Room for the item index below it.
_INDEX_BITS: Final = 24

#: Of so many scores for each one wanted, one in `_STRIDE` is looked at first.
_SAMPLED: Final = 8
_STRIDE: Final = 16
_LARGEST: Final = 2**31 - 1
_INDEX: Final = 2**32 - 1
_DAY_US: Final = 86_400_000_000.0
#: No mapping: every score belongs to the index at which it stands.
NO_MAPPING: Final = np.empty(0, np.int32)

Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """Compile with numba (which is untyped, hence the cast).

    The interpreter is kept: another thread that took it for these microseconds would keep the request for far longer.
    """
    return cast("Function", njit(cache=True)(function))


# Arguments of the compiled functions are typed Any: numba infers the types, and ignores annotations.
@_compiled
def _keys_above(scores: Any, target: Any, least: int) -> Any:
    bits, mapped = scores.view(np.int32), len(target) > 0
    keys = np.empty(len(bits), np.int64)
    count = 0
    for i in range(len(bits)):
        if bits[i] > least:
            index = target[i] if mapped else i
            if index >= 0:
                keys[count] = (np.int64(_LARGEST - bits[i]) << 32) | index
                count += 1
    return keys[:count]


def top_k(scores: F32, k: int, target: I32 = NO_MAPPING) -> I32:
    """Return the indices of the `k` largest positive scores, best first, ties to the smaller index.

    Every score with its index below it is an integer of its own, as the bits of positive floats are ordered like the
    floats: ties are settled, and integers are quickly sorted. A sample says above which score k are likely to be found;
    if it was wrong, all positive ones are looked at.

    Parameters
    ----------
    scores
        Shape (n,), finite.
    k
        May exceed n.
    target
        Index of each score, distinct, -1 for those that do not count, shape (n,); empty for 0 to n - 1.
    """
    if k <= 0:  # a generator that is switched off by its quota
        return np.empty(0, np.int32)
    scores = np.ascontiguousarray(scores, np.float32)
    keys = _keys_above(scores, target, _likely(scores, k))
    if len(keys) < k:
        keys = _keys_above(scores, target, 0)
    if len(keys) > k:
        keys = np.partition(keys, k - 1)[:k]
    keys.sort()
    return cast("I32", (keys & _INDEX).astype(np.int32))


def _likely(scores: F32, k: int) -> int:
    """Return the bits of a score that somewhat more than k exceed, by a sample; 0 where that saves nothing."""
    if len(scores) < _SAMPLED * k:
        return 0
    sample = scores[::_STRIDE]
    rank = k // _STRIDE + 3 * int((k / _STRIDE) ** 0.5) + 2  # three standard deviations more than expected
    at = len(sample) - rank
    return max(int(np.partition(sample, at)[at : at + 1].view(np.int32)[0]), 0) if at > 0 else 0


@_compiled
def _gathered(scores: Any, place: Any, items: Any) -> Any:
    out = np.empty(len(items), np.float32)
    for i in range(len(items)):
        at = place[items[i]]
        out[i] = scores[at] if at >= 0 else np.float32(0.0)
    return out


def gathered(scores: F32, place: I32, items: I32) -> F32:
    """Return the scores of some items, 0 for those that have no place among the scores, shape (len(items),)."""
    return cast("F32", _gathered(scores, place, items))


@_compiled
def _spread(known: Any, scores: Any, items: Any, size: int) -> Any:
    dense, out = np.zeros(size, np.float32), np.empty(len(items), np.float32)
    for i in range(len(known)):
        dense[known[i]] = scores[i]
    for i in range(len(items)):
        out[i] = dense[items[i]]
    return out


def spread(known: I32, scores: F32, items: I32, size: int) -> F32:
    """Return the scores of some items where those of a few are known, 0 for all others, shape (len(items),).

    Parameters
    ----------
    known, scores
        Distinct items, all below `size`, and their scores, shapes (m,).
    """
    return cast("F32", _spread(known, scores, items, size))


@_compiled
def _distinct(found: Any) -> Any:
    count = 0
    keys = np.empty(len(found), np.int64)
    for e in range(len(found)):
        if found[e] >= 0:
            key, at = (np.int64(found[e]) << 32) | e, count
            while at > 0 and keys[at - 1] > key:  # there are at most 200: numba's own sort takes seconds to compile
                keys[at] = keys[at - 1]
                at -= 1
            keys[at] = key
            count += 1
    items, which, events = np.empty(count, np.int32), np.empty(count, np.int64), np.empty(count, np.int64)
    place, last = np.empty(len(found), np.int64), -1
    n = 0
    for i in range(count):
        item = keys[i] >> 32
        if item != last:
            items[n], last = item, item
            n += 1
        place[keys[i] & _INDEX] = n - 1
    at = 0
    for e in range(len(found)):
        if found[e] >= 0:
            which[at], events[at] = place[e], e
            at += 1
    return items[:n].copy(), which, events


def distinct(found: I32) -> tuple[I32, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the distinct items of some events, and where each event's is, as `TakenItems` has them.

    Parameters
    ----------
    found
        Item of each event, -1 for none, shape (n,).
    """
    items, which, events = _distinct(found)
    return cast("I32", items), which, events


@_compiled
def _worth_in_category(items: Any, popularity: Any, by_code: Any, code: Any) -> Any:
    out = np.empty(len(items), np.float32)
    for i in range(len(items)):
        out[i] = popularity[items[i]] * by_code[code[items[i]]]
    return out


def worth_in_category(items: I32, popularity: F64, by_code: F64, code: I32) -> F32:
    """Return the popularity of some items times what their category counts, shape (len(items),).

    Parameters
    ----------
    popularity, code
        Popularity and category of every item, shapes (n,).
    by_code
        What each category counts.
    """
    return cast("F32", _worth_in_category(items, popularity, by_code, code))


@_compiled
def _first_of_each(order: Any, begins: Any, by_code: Any, k: int) -> Any:
    total = 0
    for code in range(len(by_code)):
        if by_code[code] > 0.0:
            total += min(k, begins[code + 1] - begins[code])
    out = np.empty(total, np.int32)
    at = 0
    for code in range(len(by_code)):
        if by_code[code] > 0.0:
            for i in range(begins[code], min(begins[code] + k, begins[code + 1])):
                out[at] = order[i]
                at += 1
    return out


def first_of_each(order: I32, begins: I64, by_code: F64, k: int) -> I32:
    """Return the first `k` items of each category that counts for something.

    Parameters
    ----------
    order, begins
        Items by category, and where each category begins (and the last one ends).
    by_code
        What each category counts, above 0 or nothing.
    """
    return cast("I32", _first_of_each(order, begins, by_code, max(k, 0)))


@_compiled
def _neighbour_sums(rows: Any, weights: Any, neighbours: Any, similarity: Any) -> Any:
    total = np.zeros(len(neighbours), np.float64)
    for r in range(len(rows)):
        row, weight = rows[r], weights[r]
        for d in range(neighbours.shape[1]):
            near = neighbours[row, d]
            if near >= 0:
                total[near] += similarity[row, d] * weight
    return total.astype(np.float32)


def neighbour_sums(rows: I32, weights: F64, neighbours: I32, similarity: F32) -> F32:
    """Sum the similarities of some rows' neighbours, shape (n,).

    Parameters
    ----------
    rows, weights
        Rows of `neighbours` and how much each counts, shapes (m,).
    neighbours, similarity
        Shapes (n, depth); -1 pads short rows.
    """
    return cast("F32", _neighbour_sums(rows, weights, neighbours, similarity))


@_compiled
def _decayed_sums(
    items: Any, which: Any, events: Any, types: Any, times: Any, worth: Any, now_us: int, days: float, place: Any
) -> Any:
    total = np.zeros(len(items), np.float64)
    for e in range(len(events)):
        event = events[e]
        age_days = max(now_us - times[event], 0) / _DAY_US
        total[which[e]] += worth[types[event]] * np.exp2(-age_days / days)
    mapped, count = len(place) > 0, 0
    found, weights = np.empty(len(items), np.int32), np.empty(len(items), np.float64)
    for i in range(len(items)):
        position = place[items[i]] if mapped else items[i]
        if total[i] > 0.0 and position >= 0:
            found[count], weights[count] = position, total[i]
            count += 1
    return found[:count], weights[:count]


def decayed_sums(
    items: I32,
    which: npt.NDArray[np.intp],
    events: npt.NDArray[np.intp],
    types: npt.NDArray[np.int8],
    times: I64,
    worth: F64,
    now_us: int,
    half_life_days: float,
    place: I32 = NO_MAPPING,
) -> tuple[I32, F64]:
    """Sum what a user's events say of each item: their type's worth, halved every `half_life_days`.

    Parameters
    ----------
    items, which, events
        As of `TakenItems`.
    types, times
        As of `RecentEvents`.
    worth
        What an event of each type counts.
    place
        Position wanted for each item of the table, -1 for items that do not count; empty for the item's own index.

    Returns
    -------
    tuple
        Positions of the items with a sum above 0, in the order of `items`, and their sums.
    """
    found, total = _decayed_sums(items, which, events, types, times, worth, now_us, half_life_days, place)
    return cast("I32", found), cast("F64", total)


@_compiled
def _fuse(lists: Any, ends: Any, allowed: Any, curves: Any) -> Any:
    size, depth = len(allowed), curves.shape[1]
    worth, best, source = np.zeros(size, np.float64), np.zeros(size, np.int32), np.zeros(size, np.int8)
    met = np.empty(len(lists), np.int32)
    start = count = 0
    for g in range(len(ends)):
        for position in range(start, ends[g]):
            item, rank = lists[position], position - start + 1
            if not allowed[item]:
                continue
            worth[item] += curves[g, min(rank, depth) - 1]
            if best[item] == 0:
                met[count] = item
                count += 1
            if best[item] == 0 or rank < best[item]:
                best[item], source[item] = rank, g
        start = ends[g]
    keys = np.empty(count, np.int64)
    for i in range(count):
        keys[i] = (np.int64((0.5 - worth[met[i]]) * _STEPS) << _INDEX_BITS) | met[i]
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
    out[:] = np.nan
    start = 0
    for g in range(len(ends)):
        for position in range(start, ends[g]):
            row = where[lists[position]]
            if row >= 0:
                out[row, g] = position - start + 1
        start = ends[g]


def ranks_in(lists: I32, ends: npt.NDArray[np.int64], items: I32, size: int, out: F32 | None = None) -> F32:
    """Return the 1-based rank of some distinct items in each of several lists, NaN where it lacks them.

    Parameters
    ----------
    lists, ends
        As of `fuse`.
    size
        Number of all items there are.
    out
        Where to put them; a new array if None.

    Returns
    -------
    ndarray
        Shape (len(items), len(ends)).
    """
    ranks = np.empty((len(items), len(ends)), np.float32, order="F") if out is None else out
    _ranks(lists, ends, items, size, ranks)
    return ranks
