"""Request-time features of one user and many items in one compiled pass. PURE.

`request_features` says what a feature is, and computes it in NumPy; here the same operations are done on each number,
so that the numbers are the same to the bit (a test compares them). For the 300 candidates of a request, NumPy's calls
cost more than what they compute. And a request's rows are few: a user dealt with some tens of items and categories, so
their features are computed once for each of those, and each candidate takes what is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

from feature_repo.request_features import (
    FEATURES,
    TREND_PRIOR,
    Ages,
    Decayed,
    Due,
    Feature,
    MeanGap,
    Price,
    PriceRatio,
    Ratio,
    Raw,
    Since,
    Smoothed,
    Trend,
    inputs_of,
)
from feature_repo.views import DAY_US

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

Function = TypeVar("Function", bound=Callable[..., Any])


class _Side(IntEnum):
    """Whose rows a feature is computed from; all but the item's may look at the user's row as well."""

    user = 0
    item = auto()
    pair = auto()
    affinity = auto()


# What the compiled pass can do with a row. Plain integers, as numba takes them for constants.
_RAW, _SINCE, _DECAYED, _TREND, _RATIO, _RATIO_TO_USER, _SMOOTHED, _GAP, _DUE, _PRICE, _PRICE_RATIO = range(11)
#: Kinds that may divide by what is of the user.
_WITH_USER: Final = {_RATIO_TO_USER, _PRICE_RATIO}
_DAY: Final = float(DAY_US)
_PRIOR: Final = TREND_PRIOR


def _compiled(function: Function) -> Function:
    """Compile with numba (which is untyped, hence the cast); the interpreter is kept, as in the cascade's kernels."""
    return cast("Function", njit(cache=True)(function))


# Arguments of the compiled functions are typed Any: numba infers the types, and ignores annotations.
@_compiled
def _not_below_0(value: float) -> float:
    return 0.0 if value < 0.0 else value  # a NaN stays one, as in `np.maximum`


@_compiled
def _age(time: float, now: float) -> float:
    return _not_below_0(now - time)


@_compiled
def _ratio(numerator: float, denominator: float) -> float:
    return np.nan if denominator == 0.0 else numerator / denominator


@_compiled
def _gap(first: float, last: float, orders: float) -> float:
    return _ratio((last - first) / _DAY, _not_below_0(orders - 1.0))


@_compiled
def _half_lives(
    user: Any, items: Any, pairs: Any, affinities: Any, which: Any, decays: Any, lives: Any, now: Any
) -> Any:
    """Return the items' columns, shape (columns, n), and how many half-lives have passed, decay after decay."""
    n, width = len(which), items.shape[1]
    columns = np.empty((width, n), np.float64)
    for i in range(n):
        row = items[which[i]]
        for c in range(width):
            columns[c, i] = row[c]
    ends = np.empty(len(decays), np.int64)
    total = 0
    for d in range(len(decays)):
        side = decays[d, 0]
        total += 1 if side == 0 else n if side == 1 else pairs.shape[1] if side == 2 else affinities.shape[1]
        ends[d] = total
    passed = np.empty(total, np.float64)
    at = 0
    for d in range(len(decays)):
        side, column = decays[d, 0], decays[d, 2]
        times = user[column]
        if side == 1:
            times = columns[column]
        elif side == 2:
            times = pairs[column]
        elif side == 3:
            times = affinities[column]
        for i in range(len(times)):
            passed[at + i] = _age(times[i], now) / lives[d]
        at = ends[d]
    return columns, passed, ends


@_compiled
def _fill(  # noqa: PLR0912 - one loop for each kind
    out: Any,
    user: Any,
    items: Any,
    pairs: Any,
    affinities: Any,
    pair_of: Any,
    affinity_of: Any,
    plan: Any,
    numbers: Any,
    decays: Any,
    factors: Any,
    ends: Any,
    now: Any,
) -> None:
    n = out.shape[1]
    found = np.empty(max(1, n, pairs.shape[1], affinities.shape[1]), np.float32)
    for f in range(len(plan)):
        place, side, kind = plan[f, 0], plan[f, 1], plan[f, 2]
        a, b, c, d = plan[f, 3], plan[f, 4], plan[f, 5], plan[f, 6]
        p, q = numbers[f, 0], numbers[f, 1]
        block = user
        if side == 1:
            block = items
        elif side == 2:
            block = pairs
        elif side == 3:
            block = affinities
        rows = block.shape[1]
        if kind == _DECAYED:
            first = ends[a] - rows
            values = block[decays[a, 1]]
            for i in range(rows):
                found[i] = values[i] * factors[first + i]
        elif kind == _TREND:
            first, second = ends[a] - rows, ends[b] - rows
            short, long = block[decays[a, 1]], block[decays[b, 1]]
            for i in range(rows):
                week, quarter = short[i] * factors[first + i], long[i] * factors[second + i]
                found[i] = (week + _PRIOR) / (quarter * p + _PRIOR)
        elif kind == _RAW:
            values = block[a]
            for i in range(rows):
                found[i] = values[i]
        elif kind == _SINCE:
            values = block[a]
            for i in range(rows):
                found[i] = _age(values[i], now) / p
        elif kind == _RATIO:
            for i in range(rows):
                found[i] = _ratio(block[a, i], block[b, i])
        elif kind == _RATIO_TO_USER:
            for i in range(rows):
                found[i] = _ratio(block[a, i], user[b, 0])
        elif kind == _SMOOTHED:
            for i in range(rows):
                found[i] = (block[a, i] + p) / (block[b, i] + q)
        elif kind == _GAP:
            for i in range(rows):
                found[i] = _gap(block[a, i], block[b, i], block[c, i])
        elif kind == _DUE:
            for i in range(rows):
                found[i] = _ratio((now - block[b, i]) / _DAY, _gap(block[a, i], block[b, i], block[c, i]))
        elif kind == _PRICE:
            for i in range(rows):
                found[i] = block[b, i] if np.isnan(block[a, i]) else block[a, i]
        elif kind == _PRICE_RATIO:
            mean = _ratio(user[c, 0], user[d, 0])
            for i in range(rows):
                found[i] = _ratio(block[b, i] if np.isnan(block[a, i]) else block[a, i], mean)
        if side == 1:
            for i in range(n):
                out[place, i] = found[i]
        elif side == 0:
            for i in range(n):
                out[place, i] = found[0]
        else:
            mine = pair_of if side == 2 else affinity_of
            for i in range(n):
                out[place, i] = found[mine[i]] if mine[i] >= 0 else np.float32(np.nan)


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """The state of one request, columns by rows, NaN for null; every block C-contiguous.

    Attributes
    ----------
    user
        Of the user, shape (user columns, 1).
    items, item_of
        Of all items there are, rows by columns, shape (all, item columns), and the item of each row wanted, shape (n,).
    pairs, pair_of
        Of the items the user dealt with, shape (pair columns, p), and which is each row's, -1 for none, shape (n,).
    affinities, affinity_of
        Of the user's categories, in the same way.
    """

    user: F64
    items: F64
    item_of: I32
    pairs: F64
    pair_of: I32
    affinities: F64
    affinity_of: I32


class RequestBatch:
    """How the named features are computed from the blocks of a request.

    Parameters
    ----------
    names
        Features, in the order wanted.
    user, item, pair, affinity
        Names of the state columns in the blocks.
    """

    def __init__(
        self,
        names: Sequence[str],
        user: Sequence[str],
        item: Sequence[str],
        pair: Sequence[str],
        affinity: Sequence[str],
    ) -> None:
        self._at = {
            name: (side, row)
            for side, columns in zip(_Side, (user, item, pair, affinity), strict=True)
            for row, name in enumerate(columns)
        }
        self._decays: dict[Decayed, int] = {}
        self._others: list[tuple[int, Feature]] = []  # of kinds the compiled pass does not know
        plan: list[tuple[int, ...]] = []
        numbers: list[tuple[float, float]] = []
        for place, name in enumerate(names):
            feature = FEATURES[name][1]
            step, inputs = self._step(feature), inputs_of((name,))
            sides = {self._at[column][0] for column in inputs}
            if step is None or len(sides - ({_Side.user} if step[0] in _WITH_USER else set())) != 1:
                self._others.append((place, feature))
                continue
            kind, arguments, (p, q) = step
            plan.append((place, self._side(inputs), kind, *arguments, *[0] * (4 - len(arguments))))
            numbers.append((p, q))
        self._plan = np.array(plan, np.int32).reshape(-1, 7)
        self._numbers = np.array(numbers, np.float64).reshape(-1, 2)
        rows = [(self._side((one.name,)), self._row(one.name), self._row(one.time)) for one in self._decays]
        self._decay_rows = np.array(rows, np.int32).reshape(-1, 3)
        self._lives = np.array([-one.half_life_us for one in self._decays], np.float64)

    def compute(self, blocks: RowBlocks, now_us: int, out: F32) -> None:
        """Compute all features.

        Parameters
        ----------
        now_us
            Time of the request.
        out
            Takes the features, shape (names, n), C-contiguous.
        """
        now, b = float(now_us), blocks
        items, passed, ends = _half_lives(
            b.user, b.items, b.pairs, b.affinities, b.item_of, self._decay_rows, self._lives, now
        )
        factors = np.exp2(passed, out=passed)  # not compiled: another library's has other last bits
        _fill(
            out, b.user, items, b.pairs, b.affinities, b.pair_of, b.affinity_of,
            self._plan, self._numbers, self._decay_rows, factors, ends, now,
        )  # fmt: skip
        if self._others:
            moment = np.array([now])
            known = Ages(_Columns(self._at, b, items), moment)
            for place, feature in self._others:
                out[place] = feature(known, moment)

    def _step(self, feature: Feature) -> tuple[int, list[int], tuple[float, float]] | None:  # noqa: PLR0911
        """Return a feature's kind, the rows of its columns (or its decays) and its numbers; None for other kinds."""
        row, none = self._row, (0.0, 0.0)
        match feature:
            case Decayed():
                return _DECAYED, [self._decay(feature)], none
            case Trend(short, long, share):
                return _TREND, [self._decay(short), self._decay(long)], (share, 0.0)
            case Raw(name):
                return _RAW, [row(name)], none
            case Since(time, unit_us):
                return _SINCE, [row(time)], (float(unit_us), 0.0)
            case Ratio(numerator, denominator):
                of_user = self._at[denominator][0] == _Side.user and self._at[numerator][0] != _Side.user
                return _RATIO_TO_USER if of_user else _RATIO, [row(numerator), row(denominator)], none
            case Smoothed(numerator, denominator, prior, weight):
                return _SMOOTHED, [row(numerator), row(denominator)], (prior * weight, weight)
            case MeanGap(first, last, orders):
                return _GAP, [row(first), row(last), row(orders)], none
            case Due(gap):
                return _DUE, [row(gap.first), row(gap.last), row(gap.orders)], none
            case Price(paid, listed):
                return _PRICE, [row(paid), row(listed)], none
            case PriceRatio(price, mean) if self._at[mean.numerator][0] == _Side.user:
                columns = (price.paid, price.listed, mean.numerator, mean.denominator)
                return _PRICE_RATIO, [row(name) for name in columns], none
        return None

    def _side(self, columns: Iterable[str]) -> int:
        return max(self._at[name][0] for name in columns)

    def _row(self, column: str) -> int:
        return self._at[column][1]

    def _decay(self, one: Decayed) -> int:
        return self._decays.setdefault(one, len(self._decays))


class _Columns(Mapping[str, F64]):
    """The columns of all blocks by name, as long as there are rows wanted (the user's: 1)."""

    def __init__(self, at: Mapping[str, tuple[_Side, int]], blocks: RowBlocks, items: F64) -> None:
        self._at, self._blocks, self._items = at, blocks, items

    def __getitem__(self, name: str) -> F64:
        side, row = self._at[name]
        if side == _Side.user:
            return cast("F64", self._blocks.user[row])
        if side == _Side.item:
            return cast("F64", self._items[row])
        pair = side == _Side.pair
        block, of = (
            (self._blocks.pairs, self._blocks.pair_of) if pair else (self._blocks.affinities, self._blocks.affinity_of)
        )
        return np.append(block[row], np.nan)[of]

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)
