"""The fold of events into feature state: the interface of the compiled code that backfill and ingest share. PURE."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import BadInputError
from feature_repo.events import EventType
from feature_repo.fold_kernel import POSITIONS, fold_kernel
from feature_repo.views import FOLD_VIEWS, NULL_INT, USER_CATEGORY, View

I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_TYPES = pa.array([e.name for e in EventType])
_CODES = np.array([e.value for e in EventType], np.int8)
_HALF_LIVES = tuple(
    np.array([c.half_life_us for c in view.columns if c.kind == "float64"], np.float64) for view in FOLD_VIEWS
)
#: Types that have a column in `user_category_affinity`; other events do not touch that view.
_CATEGORY_TYPES: Final = (EventType.view, EventType.cart, EventType.purchase, EventType.cancel)


@dataclass(frozen=True, slots=True)
class EventArrays:
    """Events as arrays of length n, in `seq` order.

    Attributes
    ----------
    etype
        Event type codes.
    value
        Money in minor units or rating; NaN is null.
    quantity
        Units, 1 where the event does not say.
    price
        Unit price in minor units; `NULL_INT` is null.
    time
        Feature time, max(event_timestamp, received_at), in µs.
    session
        63-bit hash of the session id; `NULL_INT` is none.
    click
        Whether the event is a view that answers a recommendation.
    seq
        Order of acceptance.
    """

    etype: I8
    value: F64
    quantity: I64
    price: I64
    time: I64
    session: I64
    click: Mask
    seq: I64

    def __len__(self) -> int:
        return len(self.seq)


@dataclass(slots=True)
class State:
    """State rows of one view: shapes (N, len(view.ints)) and (N, len(view.floats)); updated in place."""

    ints: I64
    floats: F64

    def __len__(self) -> int:
        return len(self.ints)


States = tuple[State, State, State, State]
RowIndices = tuple[I64, I64, I64, I64]


def new_state(view: View, n: int) -> State:
    """Return `n` rows before their first event: counts and sums 0, nullable columns null."""
    ints = [NULL_INT if c.nullable else 0 for c in view.columns if c.kind == "int64"]
    floats = [np.nan if c.nullable else 0.0 for c in view.columns if c.kind == "float64"]
    return State(np.tile(np.array(ints, np.int64), (n, 1)), np.tile(np.array(floats), (n, 1)))


class Snapshots:
    """State rows as they were after each feature time, collected while folding: the rows of the offline store.

    Of several events of an entity with the same feature time only the last state is kept.

    Parameters
    ----------
    capacity
        The largest number of events folded before `clear`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._slots: list[I64] = [np.empty(0, np.int64) for _ in FOLD_VIEWS]
        self._rows = tuple(np.empty(capacity, np.int64) for _ in FOLD_VIEWS)
        self._ints = tuple(np.empty((capacity, len(view.ints)), np.int64) for view in FOLD_VIEWS)
        self._floats = tuple(np.empty((capacity, len(view.floats)), np.float64) for view in FOLD_VIEWS)
        self._counts = np.zeros(len(FOLD_VIEWS), np.int64)
        self._superseding = np.zeros(len(FOLD_VIEWS), np.int64)

    def view(self, v: int) -> tuple[I64, State, int]:
        """Return what was collected for `FOLD_VIEWS[v]`, valid until `clear`.

        Returns
        -------
        rows
            State row of each snapshot, shape (m,).
        state
            The m snapshots.
        superseding
            How many replace a snapshot of the same entity and feature time taken before the last `clear`.
        """
        count = self._counts[v]
        return (
            self._rows[v][:count],
            State(self._ints[v][:count], self._floats[v][:count]),
            int(self._superseding[v]),
        )

    def clear(self) -> None:
        """Forget what was collected."""
        for slots, rows, count in zip(self._slots, self._rows, self._counts, strict=True):
            slots[rows[:count]] = -1
        self._counts[:] = 0
        self._superseding[:] = 0

    def arguments(self, states: States) -> tuple[Any, ...]:
        """Return the arrays the compiled fold writes to, with a slot for every state row."""
        for v, state in enumerate(states):
            missing = len(state) - len(self._slots[v])
            if missing > 0:
                self._slots[v] = np.concatenate([self._slots[v], np.full(missing, -1, np.int64)])
        return tuple(self._slots), self._rows, self._ints, self._floats, self._counts, self._superseding


class Limits:
    """What bounds the rows of each of `FOLD_VIEWS`.

    Attributes
    ----------
    max_age_us
        An event later than a row by more than this begins the row anew, shape (4,).
    max_rows
        Rows made for one user over its life, shape (4,).
    """

    def __init__(self, max_age_us: Sequence[int | None], max_rows: Sequence[int | None]) -> None:
        self.max_age_us, self.max_rows = (
            np.array([_UNLIMITED if limit is None else limit for limit in limits], np.int64)
            for limits in (max_age_us, max_rows)
        )

    def arguments(self) -> tuple[Any, ...]:
        """Return what the compiled fold needs: the limits, and the row before its first event of every view."""
        return self.max_age_us, self.max_rows, _BLANK_INTS, _BLANK_FLOATS


_UNLIMITED: Final = 2**63 - 1
_BLANK_INTS = tuple(new_state(view, 1).ints[0] for view in FOLD_VIEWS)
_BLANK_FLOATS = tuple(new_state(view, 1).floats[0] for view in FOLD_VIEWS)
LIMITS = Limits([view.max_age_us for view in FOLD_VIEWS], [view.max_rows for view in FOLD_VIEWS])

_NO_SNAPSHOTS = Snapshots(0)
_NO_STATES: States = tuple(new_state(view, 0) for view in FOLD_VIEWS)  # type: ignore[assignment] # there are four


def fold_events(events: EventArrays, states: States, rows: RowIndices, out: Snapshots | None = None) -> None:
    """Apply events one after the other to the states of `FOLD_VIEWS`, in place.

    Parameters
    ----------
    events
        In `seq` order. A row that holds an event's `seq` or a later one skips the event.
    states
        State rows per view. Whether a purchase is a pair's first, and whether a row is made, is read from the pair's
        and the affinity's row: where rows are stored one by one, those must not be stored before their user's and
        their item's. A row whose time is still null afterwards was not made (the user has all it may have): it is
        not to be stored.
    rows
        `rows[v][e]` is the row of event `e` in `states[v]`; -1 for none.
    out
        Collects the states after each feature time, if given.

    Raises
    ------
    ValueError
        If the arrays do not fit together.
    """
    if any(len(r) != len(events) for r in rows):
        raise ValueError("each array of row indices must have one entry per event")
    for view, state, r in zip(FOLD_VIEWS, states, rows, strict=True):
        if len(r) and (int(r.max()) >= len(state) or len(state.ints) != len(state.floats)):
            raise ValueError(f"row indices of {view.name} point behind its {len(state)} rows")
        if not (state.ints.flags.c_contiguous and state.floats.flags.c_contiguous):
            raise ValueError(f"the state of {view.name} must be contiguous: it is updated in place")
    fold_kernel(
        tuple(
            _plain(column)
            for column in (
                events.etype,
                events.value,
                events.quantity,
                events.price,
                events.time,
                events.session,
                events.click,
                events.seq,
            )
        ),
        tuple(state.ints for state in states),
        tuple(state.floats for state in states),
        _HALF_LIVES,
        tuple(_plain(r) for r in rows),
        POSITIONS,
        LIMITS.arguments(),
        out is not None,
        (out or _NO_SNAPSHOTS).arguments(states if out else _NO_STATES),
    )


def _plain(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Copy a strided or read-only array: the fold is compiled for one kind only."""
    return array if array.flags.c_contiguous and array.flags.writeable else array.copy()


def encode_events(table: pa.Table) -> EventArrays:
    """Turn events (`LOG_SCHEMA`, in `seq` order) into arrays for the fold.

    Raises
    ------
    BadInputError
        If an event type is unknown.
    """
    codes = pc.index_in(table["event_type"], value_set=_TYPES)
    if codes.null_count:
        unknown = table["event_type"].filter(pc.is_null(codes))[0].as_py()
        known = ", ".join(e.name for e in EventType)
        raise BadInputError(f"unknown event type {unknown!r} in the event log; the types are: {known}")
    etype = _CODES[_numpy(codes)]
    return EventArrays(
        etype=etype,
        value=_numpy(table["value"].cast(pa.float64()).fill_null(np.nan)),
        quantity=_numpy(table["quantity"].fill_null(1)),
        price=_numpy(table["price"].fill_null(NULL_INT)),
        time=feature_time(table),
        session=_session_hashes(table["session_id"]),
        click=(etype == EventType.view) & _numpy(pc.is_valid(table["request_id"])),
        seq=_numpy(table["seq"]),
    )


def feature_time(table: pa.Table) -> I64:
    """Return when each event was known, max(event_timestamp, received_at) in µs, shape (n,)."""
    times = (_numpy(table[name].cast(pa.int64())) for name in ("event_timestamp", "received_at"))
    result: I64 = np.maximum(*times)
    return result


def recent_type(code: int) -> bool:
    """Whether events of this type belong to a user's recent events: all but impressions."""
    return code != EventType.impression


def touches(view: View, etype: I8) -> Mask:
    """Which events change a view at all; for the others no row needs to be read or kept, shape (n,)."""
    if view is USER_CATEGORY:
        return np.isin(etype, _CATEGORY_TYPES)
    return np.ones(len(etype), np.bool_)


def _session_hashes(sessions: pa.ChunkedArray) -> I64:
    """Hash session ids to 63 bits, so that no hash is `NULL_INT`."""
    encoded = sessions.combine_chunks().dictionary_encode()
    hashes = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
        for text in encoded.dictionary.to_pylist()
    ]
    codes = _numpy(encoded.indices.fill_null(len(hashes)))
    result: I64 = np.array([*hashes, NULL_INT], np.int64)[codes]
    return result


def _numpy(column: pa.Array | pa.ChunkedArray) -> Any:
    """Return a column without nulls as a NumPy array of its own type."""
    return column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
