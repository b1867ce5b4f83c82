"""The fold, compiled: applies events one after the other to state rows, in backfill and in ingest alike. PURE.

Everything a compiled function depends on arrives as an argument, or stands in this file: numba notices changes of
this file only when it decides whether its cached machine code is still good.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

from feature_repo.events import EventType
from feature_repo.views import ITEM_STATS, NULL_INT, USER_CATEGORY, USER_ITEM, USER_STATS, View

_IMPRESSION = int(EventType.impression)
_VIEW = int(EventType.view)
_CART = int(EventType.cart)
_PURCHASE = int(EventType.purchase)
_CANCEL = int(EventType.cancel)
_LIKE = int(EventType.like)
_DISLIKE = int(EventType.dislike)
_RATING = int(EventType.rating)
_CONFIRM = int(EventType.confirm)
_REJECT = int(EventType.reject)
_NULL = NULL_INT

# The columns of each view as the code below names them, in any order; filled with their positions among the view's
# int64 or float64 columns. They stay in this file: cached machine code depends on the order of these names.
UserColumns = namedtuple(
    "UserColumns",
    "time seq impressions views carts purchases cancels likes dislikes ratings orders quantity spend "
    "cancelled_value price_sum items_bought repurchases value_min value_max order_session pairs pairs_full_seq "
    "affinities affinities_full_seq first_time action_time first_order_time order_time order_gap value_sq rating_sum "
    "views_1h views_1d views_7d carts_1d purchases_7d purchases_30d spend_30d impressions_1d",
)
ItemColumns = namedtuple(
    "ItemColumns",
    "time seq impressions views carts purchases cancels likes dislikes ratings quantity revenue buyers "
    "repurchases clicks price_paid first_time purchase_time rating_sum views_1d views_7d carts_7d purchases_1d "
    "purchases_7d purchases_30d purchases_90d impressions_7d",
)
PairColumns = namedtuple(
    "PairColumns",
    "time seq impressions views carts purchases cancels orders quantity spend feedback order_session first_time "
    "view_time cart_time first_order_time order_time order_gap rating views_7d purchases_30d purchases_90d "
    "impressions_7d",
)
AffinityColumns = namedtuple(
    "AffinityColumns",
    "time seq views carts purchases cancels spend purchase_time views_1d views_7d purchases_30d purchases_90d",
)


def column_positions(kind: Any, view: View) -> Any:
    """Look up the columns the fold names in a view's layout.

    Raises
    ------
    ValueError
        If the fold and the layout do not have the same columns (one was renamed, added or removed).
    """
    mine, theirs = {f"{view.prefix}_{name}" for name in kind._fields}, {column.name for column in view.columns}
    if mine != theirs or view.ints[:2] != (view.time_column, view.seq_column):
        raise ValueError(f"fold and layout of {view.name} differ in {sorted(mine ^ theirs)}: change both together")
    names = [f"{view.prefix}_{field}" for field in kind._fields]
    return kind(*(view.ints.index(name) if name in view.ints else view.floats.index(name) for name in names))


POSITIONS = (
    column_positions(UserColumns, USER_STATS),
    column_positions(ItemColumns, ITEM_STATS),
    column_positions(PairColumns, USER_ITEM),
    column_positions(AffinityColumns, USER_CATEGORY),
)


Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """Compile with numba (which is untyped, hence the cast)."""
    return cast("Function", njit(cache=True, nogil=True)(function))


# Arguments of the compiled functions are typed Any: numba infers the types, and ignores annotations.
@_compiled
def _advance(ints: Any, floats: Any, half_lives: Any, row: int, time: int, seq: int) -> float:
    """Move a row to the event's time, decaying all that decays; return the event's lag behind the row in µs."""
    then = ints[row, 0]
    ints[row, 1] = seq
    if then == _NULL:
        ints[row, 0] = time
        return 0.0
    if time > then:
        age = float(time - then)
        for column in range(len(half_lives)):
            if half_lives[column] > 0.0:
                floats[row, column] *= math.exp2(-age / half_lives[column])
        ints[row, 0] = time
        return 0.0
    return float(then - time)


@_compiled
def _add(floats: Any, half_lives: Any, row: int, column: int, amount: float, lag: float) -> None:
    """Add to a decayed column; what comes late has already decayed."""
    if lag > 0.0:
        amount *= math.exp2(-lag / half_lives[column])
    floats[row, column] += amount


@_compiled
def _latest(ints: Any, row: int, column: int, time: int) -> None:
    """Keep the later of a time column and an event's time (null is the smallest int64)."""
    ints[row, column] = max(ints[row, column], time)


@_compiled
def _opens_order(ints: Any, row: int, session_column: int, time_column: int, session: int, time: int) -> bool:
    """Whether a purchase begins a new order: another session, or another time where it has no session."""
    if session == _NULL:
        return bool(ints[row, time_column] != time)
    return bool(ints[row, session_column] != session)


@_compiled
def _open_order(ints: Any, row: int, first: int, last: int, gap: int, time: int) -> None:
    """Set the times of the first and the last order, and the gap between the last two."""
    if ints[row, last] == _NULL:
        ints[row, first] = time
    else:
        ints[row, gap] = max(time - ints[row, last], 0)
    _latest(ints, row, last, time)


@_compiled
def _make_row(v: int, row: int, user: int, full_column: int, e: Any, ints: Any, floats: Any, limits: Any) -> int:
    """Begin the row an event finds absent or, which is the same, too old to count.

    Returns 1 if it was made, 0 if the row that is there goes on, -1 if the user has all rows it may have. The `seq` at
    which that was reached also says so for events folded again after a crash, when the user's row may already hold
    them while the row they made was not stored.
    """
    max_ages, _most, blank_ints, blank_floats = limits
    time, seq, then = e[5], e[8], ints[v][row, 0]
    if then != _NULL and time - then <= max_ages[v]:
        return 0
    if user >= 0 and ints[0][user, full_column] != _NULL and seq > ints[0][user, full_column]:
        return -1
    ints[v][row] = blank_ints[v]
    floats[v][row] = blank_floats[v]
    return 1


@_compiled
def _count_made(ints: Any, row: int, column: int, full_column: int, seq: int, most: int) -> None:
    """Count a row made for a user, and note when it has all it may have."""
    ints[row, column] += 1
    if ints[row, column] >= most and ints[row, full_column] == _NULL:
        ints[row, full_column] = seq


@_compiled
def _fold_pair(x: Any, f: Any, half: Any, P: Any, r: int, e: Any) -> tuple[bool, bool]:
    """Fold an event into its (user, item) row; return whether it is the pair's first purchase, or a repurchase."""
    etype, value, money, quantity, _price, time, session, _click, seq = e
    lag = _advance(x, f, half, r, time, seq)
    if x[r, P.first_time] == _NULL:
        x[r, P.first_time] = time
    first_purchase = repurchase = False
    if etype == _IMPRESSION:
        x[r, P.impressions] += 1
        _add(f, half, r, P.impressions_7d, 1.0, lag)
    elif etype == _VIEW:
        x[r, P.views] += 1
        _latest(x, r, P.view_time, time)
        _add(f, half, r, P.views_7d, 1.0, lag)
    elif etype == _CART:
        x[r, P.carts] += 1
        _latest(x, r, P.cart_time, time)
    elif etype == _PURCHASE:
        first_purchase = x[r, P.purchases] == 0
        x[r, P.purchases] += 1
        x[r, P.quantity] += quantity
        x[r, P.spend] += money
        if _opens_order(x, r, P.order_session, P.order_time, session, time):
            x[r, P.orders] += 1
            x[r, P.order_session] = session
            _open_order(x, r, P.first_order_time, P.order_time, P.order_gap, time)
        repurchase = x[r, P.orders] > 1
        _add(f, half, r, P.purchases_30d, 1.0, lag)
        _add(f, half, r, P.purchases_90d, 1.0, lag)
    elif etype == _CANCEL:
        x[r, P.cancels] += 1
    elif etype in (_LIKE, _CONFIRM):
        x[r, P.feedback] = 1
    elif etype in (_DISLIKE, _REJECT):
        x[r, P.feedback] = -1
    elif etype == _RATING and not math.isnan(value):
        f[r, P.rating] = value
    return first_purchase, repurchase


@_compiled
def _fold_user(x: Any, f: Any, half: Any, U: Any, r: int, e: Any, first_purchase: bool, repurchase: bool) -> None:  # noqa: PLR0912 - a branch per event type
    """Fold an event into its user's row."""
    etype, value, money, quantity, price, time, session, _click, seq = e
    lag = _advance(x, f, half, r, time, seq)
    if x[r, U.first_time] == _NULL:
        x[r, U.first_time] = time
    if etype == _IMPRESSION:
        x[r, U.impressions] += 1
        _add(f, half, r, U.impressions_1d, 1.0, lag)
        return
    _latest(x, r, U.action_time, time)
    if etype == _VIEW:
        x[r, U.views] += 1
        _add(f, half, r, U.views_1h, 1.0, lag)
        _add(f, half, r, U.views_1d, 1.0, lag)
        _add(f, half, r, U.views_7d, 1.0, lag)
    elif etype == _CART:
        x[r, U.carts] += 1
        _add(f, half, r, U.carts_1d, 1.0, lag)
    elif etype == _PURCHASE:
        x[r, U.purchases] += 1
        x[r, U.quantity] += quantity
        if _opens_order(x, r, U.order_session, U.order_time, session, time):
            x[r, U.orders] += 1
            x[r, U.order_session] = session
            _open_order(x, r, U.first_order_time, U.order_time, U.order_gap, time)
        if not math.isnan(value):
            x[r, U.spend] += money
            if x[r, U.value_min] == _NULL or money < x[r, U.value_min]:
                x[r, U.value_min] = money
            _latest(x, r, U.value_max, money)
            f[r, U.value_sq] += float(money) * float(money)
            _add(f, half, r, U.spend_30d, float(money), lag)
        if price != _NULL:
            x[r, U.price_sum] += price
        if first_purchase:
            x[r, U.items_bought] += 1
        if repurchase:
            x[r, U.repurchases] += 1
        _add(f, half, r, U.purchases_7d, 1.0, lag)
        _add(f, half, r, U.purchases_30d, 1.0, lag)
    elif etype == _CANCEL:
        x[r, U.cancels] += 1
        x[r, U.cancelled_value] += money
    elif etype in (_LIKE, _CONFIRM):
        x[r, U.likes] += 1
    elif etype in (_DISLIKE, _REJECT):
        x[r, U.dislikes] += 1
    elif etype == _RATING and not math.isnan(value):
        x[r, U.ratings] += 1
        f[r, U.rating_sum] += value


@_compiled
def _fold_item(x: Any, f: Any, half: Any, T: Any, r: int, e: Any, first_purchase: bool, repurchase: bool) -> None:  # noqa: PLR0912 - a branch per event type
    """Fold an event into its item's row."""
    etype, value, money, quantity, price, time, _session, click, seq = e
    lag = _advance(x, f, half, r, time, seq)
    if x[r, T.first_time] == _NULL:
        x[r, T.first_time] = time
    if price != _NULL:
        x[r, T.price_paid] = price
    if etype == _IMPRESSION:
        x[r, T.impressions] += 1
        _add(f, half, r, T.impressions_7d, 1.0, lag)
    elif etype == _VIEW:
        x[r, T.views] += 1
        if click:
            x[r, T.clicks] += 1
        _add(f, half, r, T.views_1d, 1.0, lag)
        _add(f, half, r, T.views_7d, 1.0, lag)
    elif etype == _CART:
        x[r, T.carts] += 1
        _add(f, half, r, T.carts_7d, 1.0, lag)
    elif etype == _PURCHASE:
        x[r, T.purchases] += 1
        x[r, T.quantity] += quantity
        x[r, T.revenue] += money
        _latest(x, r, T.purchase_time, time)
        if first_purchase:
            x[r, T.buyers] += 1
        if repurchase:
            x[r, T.repurchases] += 1
        _add(f, half, r, T.purchases_1d, 1.0, lag)
        _add(f, half, r, T.purchases_7d, 1.0, lag)
        _add(f, half, r, T.purchases_30d, 1.0, lag)
        _add(f, half, r, T.purchases_90d, 1.0, lag)
    elif etype == _CANCEL:
        x[r, T.cancels] += 1
    elif etype in (_LIKE, _CONFIRM):
        x[r, T.likes] += 1
    elif etype in (_DISLIKE, _REJECT):
        x[r, T.dislikes] += 1
    elif etype == _RATING and not math.isnan(value):
        x[r, T.ratings] += 1
        f[r, T.rating_sum] += value


@_compiled
def _fold_affinity(x: Any, f: Any, half: Any, A: Any, r: int, e: Any) -> None:
    """Fold an event into its (user, category) row."""
    etype, _value, money, _quantity, _price, time, _session, _click, seq = e
    lag = _advance(x, f, half, r, time, seq)
    if etype == _VIEW:
        x[r, A.views] += 1
        _add(f, half, r, A.views_1d, 1.0, lag)
        _add(f, half, r, A.views_7d, 1.0, lag)
    elif etype == _CART:
        x[r, A.carts] += 1
    elif etype == _PURCHASE:
        x[r, A.purchases] += 1
        x[r, A.spend] += money
        _latest(x, r, A.purchase_time, time)
        _add(f, half, r, A.purchases_30d, 1.0, lag)
        _add(f, half, r, A.purchases_90d, 1.0, lag)
    elif etype == _CANCEL:
        x[r, A.cancels] += 1


@_compiled
def _keep(v: int, row: int, then: int, ints: Any, floats: Any, out: Any) -> None:
    """Copy a row after an event to the snapshots; one of the same feature time takes the earlier one's slot."""
    slots, rows, snapshot_ints, snapshot_floats, counts, superseding = out
    slot = slots[v][row]
    if slot < 0 or snapshot_ints[v][slot, 0] != ints[row, 0]:
        if slot < 0 and then == ints[row, 0]:
            superseding[v] += 1
        slot = counts[v]
        counts[v] += 1
        slots[v][row] = slot
        rows[v][slot] = row
    snapshot_ints[v][slot] = ints[row]
    snapshot_floats[v][slot] = floats[row]


@_compiled
def fold_kernel(  # noqa: PLR0912 - a branch per view, twice for those that are made
    events: Any, ints: Any, floats: Any, half: Any, rows: Any, columns: Any, limits: Any, keep: bool, out: Any
) -> None:
    """Apply events in order. See fold.fold_events for the meaning of the arguments."""
    etypes, values, quantities, prices, times, sessions, clicks, seqs = events
    U, T, P, A = columns
    most = limits[1]
    for n in range(len(seqs)):
        seq = seqs[n]
        value = values[n]
        money = 0 if math.isnan(value) else np.int64(np.rint(value))
        e = (etypes[n], value, money, quantities[n], prices[n], times[n], sessions[n], clicks[n], seq)
        user = rows[0][n]
        # Pair and affinity first: whether the purchase is the pair's first, and whether rows are made, is not known
        # from the other rows.
        first_purchase = repurchase = False
        made_pair = made_affinity = 0
        r = rows[2][n]
        if r >= 0 and ints[2][r, 1] < seq:
            then = ints[2][r, 0]
            made_pair = _make_row(2, r, user, U.pairs_full_seq, e, ints, floats, limits)
            if made_pair >= 0:
                first_purchase, repurchase = _fold_pair(ints[2], floats[2], half[2], P, r, e)
                if keep:
                    _keep(2, r, then, ints[2], floats[2], out)
        r = rows[3][n]
        if r >= 0 and e[0] in (_VIEW, _CART, _PURCHASE, _CANCEL) and ints[3][r, 1] < seq:
            then = ints[3][r, 0]
            made_affinity = _make_row(3, r, user, U.affinities_full_seq, e, ints, floats, limits)
            if made_affinity >= 0:
                _fold_affinity(ints[3], floats[3], half[3], A, r, e)
                if keep:
                    _keep(3, r, then, ints[3], floats[3], out)
        if user >= 0 and ints[0][user, 1] < seq:
            then = ints[0][user, 0]
            if made_pair == 1:
                _count_made(ints[0], user, U.pairs, U.pairs_full_seq, seq, most[2])
            if made_affinity == 1:
                _count_made(ints[0], user, U.affinities, U.affinities_full_seq, seq, most[3])
            _fold_user(ints[0], floats[0], half[0], U, user, e, first_purchase, repurchase)
            if keep:
                _keep(0, user, then, ints[0], floats[0], out)
        r = rows[1][n]
        if r >= 0 and ints[1][r, 1] < seq:
            then = ints[1][r, 0]
            _fold_item(ints[1], floats[1], half[1], T, r, e, first_purchase, repurchase)
            if keep:
                _keep(1, r, then, ints[1], floats[1], out)
