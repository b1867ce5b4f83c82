"""What feature readers hand out: state rows as arrays, whether they come from Redis or from Parquet. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from feature_repo.views import NULL_INT, View

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Rows:
    """State rows of one view, one per entity asked for, in the order asked.

    Attributes
    ----------
    ints, floats
        Shapes (n, len(view.ints)) and (n, len(view.floats)); nulls are `NULL_INT` and NaN.
    present
        Shape (n,): False where the entity has no row, or one older than the view's `max_age_us`; the values of such
        a row are all null.
    known_block
        What `block` returns, where it is known already.
    """

    view: View
    ints: I64
    floats: F64
    present: Mask
    known_block: F64 | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.present)

    def column(self, name: str) -> F64:
        """Return one column as contiguous float64, shape (n,), with NaN for nulls and missing rows.

        Integers up to 2**53 keep their value exactly; counts, money and µs times stay far below that.
        """
        if name in self.view.floats:
            values = np.ascontiguousarray(self.floats[:, self.view.floats.index(name)])
            return values if self.present.all() else np.where(self.present, values, np.nan)
        raw = self.ints[:, self.view.ints.index(name)]
        return np.where((raw == NULL_INT) | ~self.present, np.nan, raw.astype(np.float64))

    def columns(self) -> dict[str, F64]:
        """Return all columns by name, each as `column` does: much faster than one after the other."""
        return dict(zip(block_names(self.view), self.block(), strict=True))

    def block(self) -> F64:
        """Return all columns in the order of `block_names`, each as `column` does, shape (columns, n)."""
        if self.known_block is not None:
            return self.known_block
        there = self.present[:, None]
        ints = np.where((self.ints != NULL_INT) & there, self.ints, np.nan)
        floats = np.where(there, self.floats, np.nan)
        found: F64 = np.ascontiguousarray(np.concatenate([ints, floats], axis=1).T)
        object.__setattr__(self, "known_block", found)  # frozen, and asked for several times a request
        return found

    @property
    def time(self) -> I64:
        """Feature time of each row in µs (`NULL_INT` where missing), shape (n,)."""
        return self.ints[:, 0]

    @property
    def seq(self) -> I64:
        """`seq` each row holds, shape (n,)."""
        return self.ints[:, 1]

    def held(self, rows: slice | npt.NDArray[np.intp]) -> I64:
        """Return the `seq` that some of the rows hold, 0 where there is none."""
        return np.where(self.present[rows], self.seq[rows], 0)


def block_names(view: View) -> tuple[str, ...]:
    """Return the names of a view's columns in the order of `Rows.block`."""
    return (*view.ints, *view.floats)


def null_rows(view: View, n: int) -> Rows:
    """Return `n` missing rows of a view."""
    return Rows(
        view,
        np.full((n, len(view.ints)), NULL_INT, dtype=np.int64),
        np.full((n, len(view.floats)), np.nan),
        np.zeros(n, dtype=np.bool_),
    )


def within_max_age(max_age_us: int | None, time_us: I64, now_us: int) -> Mask:
    """Apply a view's maximal age, the one rule of both stores: True where a row still counts at `now_us`.

    Parameters
    ----------
    max_age_us
        `View.max_age_us`, or the tag of that name of another feature view; None for no limit.
    time_us
        Feature times; `NULL_INT` for rows that are missing anyway.
    """
    present: Mask = time_us != NULL_INT
    if max_age_us is None:
        return present
    fresh: Mask = present & (time_us >= now_us - max_age_us)
    return fresh


@dataclass(frozen=True, slots=True)
class RecentEvents:
    """The last events of a user other than impressions, oldest first.

    Attributes
    ----------
    item_ids
        Length n <= RECENT_EVENTS.
    types
        Event type codes, shape (n,).
    times
        Feature times in µs, shape (n,).
    seq
        `seq` of the newest event; 0 if there is none.
    """

    item_ids: list[str]
    types: npt.NDArray[np.int8]
    times: I64
    seq: int = 0


NO_RECENT_EVENTS = RecentEvents([], np.empty(0, np.int8), np.empty(0, np.int64))


class PickedRows(Rows):
    """Some rows of others, or missing ones, by position; copied when they are asked for, which is rarely.

    A user dealt with some tens of items, and is shown hundreds: what is computed of rows is computed of those few.

    Attributes
    ----------
    base
        The rows picked from.
    which
        Position in `base` of each row, -1 for a missing one, shape (n,).
    """

    __slots__ = ("base", "which")

    base: Rows
    which: npt.NDArray[np.int32]

    def __init__(self, base: Rows, which: npt.NDArray[np.int32]) -> None:
        for name, value in (("view", base.view), ("base", base), ("which", which)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.which)

    @property
    def ints(self) -> I64:
        """As of `Rows`."""
        return _picked(self.base.ints, self.which, NULL_INT)

    @property
    def floats(self) -> F64:
        """As of `Rows`."""
        return _picked(self.base.floats, self.which, np.nan)

    @property
    def present(self) -> Mask:
        """As of `Rows`."""
        return _picked(self.base.present, self.which, False)

    @property
    def time(self) -> I64:
        """As of `Rows`."""
        return _picked(self.base.time, self.which, NULL_INT)

    @property
    def seq(self) -> I64:
        """As of `Rows`."""
        return _picked(self.base.seq, self.which, NULL_INT)

    def block(self) -> F64:
        """As of `Rows`."""
        return np.ascontiguousarray(_picked(self.base.block().T, self.which, np.nan).T)

    def held(self, rows: slice | npt.NDArray[np.intp]) -> I64:
        """As of `Rows`."""
        some = PickedRows(self.base, self.which[rows])
        return np.where(some.present, some.seq, 0)


def _picked(values: npt.NDArray[T], which: npt.NDArray[np.int32], null: float) -> npt.NDArray[T]:
    """Return rows of an array by position, filled with `null` where that is -1."""
    if not len(values):
        return np.full((len(which), *values.shape[1:]), null, values.dtype)
    found = values.take(which, 0, mode="clip")
    found[which < 0] = null
    return found


class AllPairs:
    """All rows a user has in USER_ITEM: those of any items are taken from it without another read.

    Parameters
    ----------
    item_ids
        Items of the rows, distinct.
    rows
        Shape (len(item_ids),).
    """

    __slots__ = ("_rows", "item_ids")

    def __init__(self, item_ids: Sequence[str], rows: Rows) -> None:
        self.item_ids = item_ids
        self._rows = rows

    def __len__(self) -> int:
        return len(self.item_ids)

    def of(self, item_ids: Sequence[str]) -> PickedRows:
        """Return the rows of some items, as reading them would, shape (len(item_ids),)."""
        place = {item_id: row for row, item_id in enumerate(self.item_ids)}
        return PickedRows(self._rows, np.array([place.get(item_id, -1) for item_id in item_ids], np.int32))

    def at(self, indices: npt.NDArray[np.integer], items: npt.NDArray[np.integer], size: int) -> PickedRows:
        """Return the rows of items of a table by their index there: `of` without a text for each, shape (len(items),).

        Parameters
        ----------
        indices
            Index in the table of each of `item_ids`, -1 for those it lacks.
        size
            Items of the table.
        """
        which = np.full(size + 1, -1, np.int32)
        which[indices] = np.arange(len(indices), dtype=np.int32)
        which[size] = -1  # where those are that the table lacks
        return PickedRows(self._rows, which.take(items))


@dataclass(frozen=True, slots=True)
class UserRows:
    """Everything the first read of a request brings: the user's row, category affinities and recent events.

    `pairs` are the user's rows in USER_ITEM, where the reader brought them along.
    """

    user_id: str
    stats: Rows  # one row of USER_STATS
    categories: list[str]  # the user's categories, sorted
    affinities: Rows  # one row of USER_CATEGORY per entry of `categories`
    recent: RecentEvents
    pairs: AllPairs | None = None

    @property
    def known(self) -> bool:
        """Whether anything is known of the user."""
        return bool(self.stats.present[0]) or bool(self.recent.item_ids)


class FeatureReader(Protocol):
    """Reads features of one user as of now; implemented over Redis and over the offline store."""

    def user(self, user_id: str, now_us: int) -> UserRows:
        """Read the user's row, affinities and recent events."""
        ...

    def pairs(self, user_id: str, item_ids: list[str], now_us: int) -> Rows:
        """Read the rows of USER_ITEM for one user and some items."""
        ...
