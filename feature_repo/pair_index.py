"""Numbers pairs of codes by first appearance, O(1) a pair: a compiled hash table. PURE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

I64 = npt.NDArray[np.int64]

_FREE: Final = -1
#: 2^64 divided by the golden ratio: multiplying by it spreads keys that differ in few bits (Knuth, TAOCP 6.4).
_SPREAD: Final = 0x9E3779B97F4A7C15

Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """Compile with numba (which is untyped, hence the cast)."""
    return cast("Function", njit(cache=True, nogil=True)(function))


@_compiled
def _number(wanted: Any, keys: Any, count: int, slots: Any, shift: int, rows: Any) -> int:
    """Look up or add each wanted key; return how many keys there are then. `slots` has room for all of them."""
    last = len(slots) - 1
    for n in range(len(wanted)):
        key = wanted[n]
        slot = np.int64((np.uint64(key) * np.uint64(_SPREAD)) >> np.uint64(shift))
        while slots[slot] != _FREE and keys[slots[slot]] != key:
            slot = (slot + 1) & last
        row = slots[slot]
        if row == _FREE:
            row = count
            keys[row] = key
            slots[slot] = row
            count += 1
        rows[n] = row
    return count


class PairIndex:
    """Row numbers of int64 keys; a key never seen before gets the next number.

    Takes 8 bytes a key and 16 to 32 for the table, and about 10 ns a look-up.
    """

    def __init__(self, keys: I64 | None = None) -> None:
        self._keys = np.empty(0, np.int64)
        self._slots = np.empty(0, np.int64)
        self._count = 0
        if keys is not None:
            self.rows(keys)

    @property
    def keys(self) -> I64:
        """The keys by row."""
        return self._keys[: self._count]

    def rows(self, keys: I64) -> I64:
        """Return the row of every key, numbering new ones in the order given."""
        self._make_room(self._count + len(keys))
        rows = np.empty(len(keys), np.int64)
        shift = 64 - (len(self._slots).bit_length() - 1)
        self._count = _number(np.ascontiguousarray(keys), self._keys, self._count, self._slots, shift, rows)
        return rows

    def _make_room(self, count: int) -> None:
        """Keep at least half of the slots free for `count` keys; room doubles, so growing costs O(1) a key."""
        if 2 * count <= len(self._slots):
            return
        size = 1 << max(2 * count - 1, 1023).bit_length()
        known, self._keys = self.keys, np.empty(size // 2, np.int64)
        self._slots = np.full(size, _FREE, np.int64)
        self._count, again = 0, np.empty(len(known), np.int64)
        self._count = _number(known, self._keys, 0, self._slots, 64 - (size.bit_length() - 1), again)

    def __len__(self) -> int:
        return self._count
