"""The first read of a request: four views of one user, asked in one message, decoded in a compiled pass each. PURE.

`ReadPlan` and `packed_row` read any rows of any views; for the same four views of every request, taking the request
apart takes longer than Redis does. Here what is plainly right is decoded: rows of this version's layout and whole.
Anything else (a foreign row, a cut one, an error of Redis) is left to the general way, which knows how to count it, so
the two cannot differ in what they accept; a property test compares them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

import numpy as np
from numba import njit

from feature_repo.online_keys import checked_project, row_key
from feature_repo.packed_row import layout_of
from feature_repo.packed_tail import RECENT_LAYOUT, decode_strings
from feature_repo.rows import NO_RECENT_EVENTS, AllPairs, RecentEvents, Rows, UserRows, null_rows
from feature_repo.views import NULL_INT, USER_CATEGORY, USER_ITEM, USER_STATS, View

Function = TypeVar("Function", bound=Callable[..., Any])

_NULL: Final = NULL_INT
#: After the hash and the time of a row of recent events: null bits, the ends of its three lists; and its `seq`.
_RECENT_ENDS: Final = struct.Struct("<Q3I")
_RECENT_SEQ: Final = struct.Struct(">q")
_RECENT_FIXED: Final = 8 * RECENT_LAYOUT.words
_RECENT_HASH: Final = RECENT_LAYOUT.layout_hash.to_bytes(8, "little")
#: In place of the entity, to see where it stands in a key.
_ENTITY: Final = "\0"


def _compiled(function: Function) -> Function:
    """Compile with numba (which is untyped, hence the cast); the interpreter is kept, as in the cascade's kernels."""
    return cast("Function", njit(cache=True)(function))


# Arguments of the compiled function are typed Any: numba infers the types, and ignores annotations.
@_compiled
def _decoded(words: Any, layout_hash: Any, first: int, n_ints: int, n_floats: int, oldest: int) -> Any:
    """Return ints, floats, block and presence as `Rows` has them, and whether all rows are of the layout."""
    n = len(words)
    signed, real = words.view(np.int64), words.view(np.float64)
    ints, floats = np.empty((n, 2 + n_ints), np.int64), np.empty((n, n_floats), np.float64)
    block, present = np.empty((2 + n_ints + n_floats, n), np.float64), np.empty(n, np.bool_)
    for i in range(n):
        if words[i, 0] != layout_hash:
            return ints, floats, block, present, False
        present[i] = signed[i, 1] >= oldest
        if present[i]:
            swapped, seq = words[i, 2], np.uint64(0)  # stored so that bytes are ordered like numbers
            for _ in range(8):
                seq = (seq << np.uint64(8)) | (swapped & np.uint64(255))
                swapped >>= np.uint64(8)
            ints[i, 0], ints[i, 1] = signed[i, 1], np.int64(seq)
            for c in range(n_ints):
                ints[i, 2 + c] = signed[i, first + c]
            for c in range(n_floats):
                floats[i, c] = real[i, first + n_ints + c]
        else:
            ints[i] = _NULL
            floats[i] = np.nan
        for c in range(2 + n_ints):
            block[c, i] = np.nan if ints[i, c] == _NULL else float(ints[i, c])
        for c in range(n_floats):
            block[2 + n_ints + c, i] = floats[i, c]
    return ints, floats, block, present, True


class _NotPlainError(Exception):
    """What came is not plainly right."""


class _ViewReader:
    """Decodes rows of one view of the fold."""

    def __init__(self, view: View) -> None:
        layout = layout_of(view)
        self._view, self._max_age_us = view, view.max_age_us
        self._size, self._shape = 8 * layout.words, (-1, layout.words)
        first = layout.words - len(layout.ints) - len(layout.floats)
        self._layout = np.uint64(layout.layout_hash), first, len(layout.ints), len(layout.floats)
        # Compiled here, where it is not on disk yet: no request is to wait for that.
        _decoded(np.frombuffer(layout.blank, np.uint64).reshape(self._shape), *self._layout, 0)

    def rows(self, values: Sequence[bytes], now_us: int) -> Rows:
        """Decode rows that are all there."""
        if not values:
            return null_rows(self._view, 0)
        if set(map(len, values)) != {self._size}:
            raise _NotPlainError
        words = np.frombuffer(b"".join(values), np.uint64).reshape(self._shape)
        oldest = NULL_INT if self._max_age_us is None else now_us - self._max_age_us
        ints, floats, block, present, right = _decoded(words, *self._layout, oldest)
        if not right:
            raise _NotPlainError
        return Rows(self._view, ints, floats, present, block)


class UserRead:
    """The read of one project's users; the requests are `online_reader.user_requests`, with or without all pairs."""

    def __init__(self, project: str) -> None:
        self._few = _template(project, (USER_STATS.name, USER_CATEGORY.name, RECENT_LAYOUT.name))
        self._all = self._few + _template(project, (USER_ITEM.name,))
        self._lengths = [length for _, length in self._all]
        self._text_few = b"".join(text for text, _ in self._few)
        self._text_all = b"".join(text for text, _ in self._all)
        self._stats, self._affinities, self._pairs = map(_ViewReader, (USER_STATS, USER_CATEGORY, USER_ITEM))

    def message(self, user_id: str, *, with_pairs: bool) -> tuple[bytes, int]:
        """Return the commands in the protocol of Redis, and how many answers there will be."""
        entity = user_id.encode()
        n = len(entity)
        a, b, c, d = self._lengths
        if with_pairs:
            return self._text_all % (a + n, entity, b + n, entity, c + n, entity, d + n, entity), 4
        return self._text_few % (a + n, entity, b + n, entity, c + n, entity), 3

    def decoded(self, user_id: str, replies: Sequence[Any], now_us: int) -> UserRows | None:
        """Decode the answers; None where anything is not plainly right.

        Parameters
        ----------
        replies
            One per command, as Redis sent them.
        now_us
            Time of the request (µs).
        """
        if not all(type(reply) is list for reply in replies):
            return None
        try:
            (row,), fields, (recent,) = replies[:3]
            stats = null_rows(USER_STATS, 1) if row is None else self._stats.rows([row], now_us)
            known = dict(sorted(zip(fields[::2], fields[1::2], strict=True)))
            affinities = self._affinities.rows(list(known.values()), now_us)
            categories = [name.decode() for name in known]
            events = NO_RECENT_EVENTS if recent is None else _recent(recent)
            pairs = None
            if len(replies) > 3:
                item_ids = [name.decode() for name in replies[3][::2]]
                pairs = AllPairs(item_ids, self._pairs.rows(replies[3][1::2], now_us))
        except (_NotPlainError, ValueError):  # UnicodeDecodeError is a ValueError
            return None
        return UserRows(user_id, stats, categories, affinities, events, pairs)


def _recent(row: bytes) -> RecentEvents:
    """Decode a row of recent events."""
    if len(row) < _RECENT_FIXED or row[:8] != _RECENT_HASH:
        raise _NotPlainError
    nulls, first, second, third = _RECENT_ENDS.unpack_from(row, 24)
    if nulls or not first <= second <= third or _RECENT_FIXED + third != len(row):
        raise _NotPlainError
    base = _RECENT_FIXED
    items = decode_strings(row[base : base + first])
    # Slices, not offsets: what begins at an odd byte is no array that compiled code takes.
    types = np.frombuffer(row[base + first : base + second], "<i1")
    times = np.frombuffer(row[base + second :], "<i8")
    if not len(items) == len(types) == len(times):
        raise _NotPlainError
    return RecentEvents(items, types, times, _RECENT_SEQ.unpack_from(row, 16)[0])


def _template(project: str, views: Sequence[str]) -> list[tuple[bytes, int]]:
    """Return the command of each view with places for the key's length and the entity, and a key's length without."""
    found = []
    for view in views:
        command = b"HGETALL" if view in (USER_CATEGORY.name, USER_ITEM.name) else b"MGET"
        key = row_key(checked_project(project), view, _ENTITY)
        before, after = (part.replace(b"%", b"%%") for part in key.split(_ENTITY.encode()))
        text = b"*2\r\n$" + str(len(command)).encode() + b"\r\n" + command + b"\r\n$%d\r\n" + before + b"%b" + after
        found.append((text + b"\r\n", len(key) - 1))
    return found
