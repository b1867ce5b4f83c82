"""The compiled fold against a slow one written differently, bit for bit; what it skips, and in which pieces it runs."""

import math
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.end_state import EndState
from feature_repo.errors import BadInputError
from feature_repo.events import EventType
from feature_repo.fold import Snapshots, encode_events, fold_events, new_state, recent_type, touches
from feature_repo.fold_kernel import UserColumns, column_positions
from feature_repo.views import FOLD_VIEWS, ITEM_STATS, NULL_INT, USER_CATEGORY, USER_ITEM, USER_STATS
from tests.event_tables import HOUR, START, event, event_table, histories, purchase, us
from tests.fold_oracle import oracle


def fold(end: EndState, table: pa.Table, out: Snapshots | None = None) -> None:
    events = encode_events(table)
    rows = end.rows(table, events.etype)
    fold_events(events, end.states, rows, out)


def rows_of(end: EndState, v: int) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the rows of a view by entity, None for null."""
    view, state, used = FOLD_VIEWS[v], end.states[v], end.counts()[v]
    entities = zip(*(column.to_pylist() for column in end.ids(v, np.arange(used)).values()), strict=True)
    found = {}
    for r, entity in enumerate(entities):
        ints = {n: None if x == NULL_INT else x for n, x in zip(view.ints, state.ints[r].tolist(), strict=True)}
        floats = {n: None if math.isnan(x) else x for n, x in zip(view.floats, state.floats[r].tolist(), strict=True)}
        found[entity] = ints | floats
    return found


def bits(rows: dict[tuple[str, ...], dict[str, Any]]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Make -0.0 and neighbouring floats differ in ==."""
    return {e: {n: struct.pack("d", x) if isinstance(x, float) else x for n, x in r.items()} for e, r in rows.items()}


def folded(*tables: pa.Table) -> EndState:
    end = EndState()
    for table in tables:
        fold(end, table)
    return end


@given(histories)
@settings(max_examples=300, deadline=None)
def test_equals_the_slow_fold_bit_for_bit(history: list[dict[str, Any]]) -> None:
    table = event_table(history)
    end, expected = folded(table), oracle(table)
    for v, view in enumerate(FOLD_VIEWS):
        assert bits(rows_of(end, v)) == bits(expected[view.name])


@given(histories, st.data())
@settings(max_examples=100, deadline=None)
def test_micro_batches_and_replays_change_nothing(history: list[dict[str, Any]], data: st.DataObject) -> None:
    table = event_table(history)
    cut = data.draw(st.integers(0, len(history)))
    again = data.draw(st.integers(0, cut))  # a crash: events are delivered a second time
    whole, pieces = folded(table), folded(table.slice(0, cut), table.slice(again))
    for v in range(4):
        assert bits(rows_of(whole, v)) == bits(rows_of(pieces, v))


def test_an_invoice_is_one_order_and_a_second_one_a_repurchase() -> None:
    lines = [purchase("u", "i", 0), purchase("u", "j", 0), purchase("u", "i", 0), purchase("u", "i", 48)]
    end = folded(event_table(lines))
    user, pair = rows_of(end, 0)["u",], rows_of(end, 2)["u", "i"]
    assert (user["user_orders"], user["user_purchases"], user["user_items_bought"], user["user_repurchases"]) == (
        2,
        4,
        2,
        1,
    )
    assert (pair["pair_orders"], pair["pair_purchases"], pair["pair_order_gap"]) == (2, 3, 48 * HOUR)
    assert user["user_spend"] == 2000
    assert user["user_order_gap"] == 48 * HOUR


def test_decay_halves_after_the_half_life_and_late_events_count_as_already_decayed() -> None:
    row = rows_of(folded(event_table([event("u", "i", "view", 0), event("u", "i", "impression", 24)])), 0)["u",]
    assert row["user_views_1d"] == 0.5
    late = rows_of(folded(event_table([event("u", "i", "impression", 24), event("u", "i", "view", 0)])), 0)["u",]
    assert late["user_views_1d"] == 0.5
    assert late["user_time"] == us(START) + 24 * HOUR


def test_a_cancel_takes_nothing_back() -> None:
    bought = event_table([purchase("u", "i", 0)])
    cancelled = event_table([event("u", "i", "cancel", 1, value=500.0, category="toys")], first_seq=2)
    before, after = rows_of(folded(bought), 0)["u",], rows_of(folded(bought, cancelled), 0)["u",]
    changed = {name for name in before if before[name] != after[name]}
    decayed = {c.name for c in USER_STATS.columns if c.half_life_us}
    assert changed - decayed == {"user_time", "user_seq", "user_cancels", "user_cancelled_value", "user_action_time"}


def test_impressions_are_no_actions_and_do_not_touch_categories() -> None:
    end = folded(event_table([event("u", "i", "impression", 0, category="toys")]))
    assert rows_of(end, 0)["u",]["user_action_time"] is None
    assert rows_of(end, 3) == {}
    assert touches(USER_CATEGORY, np.array([0, 1], np.int8)).tolist() == [False, True]
    assert [recent_type(kind) for kind in (EventType.impression, EventType.view)] == [False, True]


def test_each_row_skips_what_it_holds() -> None:
    table = event_table([event("u", "i", "view", 0), event("u", "j", "view", 1)])
    events, states = encode_events(table), tuple(new_state(view, 2) for view in FOLD_VIEWS)
    states[0].ints[0, 1] = 1  # the user's row came through the crash with the first event, the items' did not
    none = np.array([-1, -1])
    fold_events(events, states, (np.array([0, 0]), np.array([0, 1]), none, none))
    assert states[0].ints[0, USER_STATS.ints.index("user_views")] == 1
    assert states[1].ints[:, ITEM_STATS.ints.index("item_views")].tolist() == [1, 1]


def test_snapshots_keep_the_last_state_of_each_feature_time() -> None:
    end, out = EndState(), Snapshots(10)
    fold(end, event_table([purchase("u", "i", 0), purchase("u", "j", 0), event("u", "i", "view", 1)]), out)
    rows, state, superseding = out.view(0)
    assert rows.tolist() == [0, 0]
    assert state.ints[:, USER_STATS.ints.index("user_purchases")].tolist() == [2, 2]
    assert state.ints[:, USER_STATS.ints.index("user_views")].tolist() == [0, 1]
    assert superseding == 0
    out.clear()
    fold(end, event_table([event("u", "i", "view", 1)], first_seq=4), out)
    assert out.view(0)[2] == 1  # it replaces the last one from before


def test_a_layout_the_fold_does_not_know_fails_at_once() -> None:
    with pytest.raises(ValueError, match="fold and layout of item_stats differ"):
        column_positions(UserColumns, ITEM_STATS)


def test_impossible_arguments_are_refused() -> None:
    events, none = encode_events(event_table([event("u", "i", "view")])), np.array([-1])
    states = tuple(new_state(view, 1) for view in FOLD_VIEWS)
    with pytest.raises(ValueError, match="behind its 1 rows"):
        fold_events(events, states, (np.array([1]), none, none, none))
    with pytest.raises(ValueError, match="one entry per event"):
        fold_events(events, states, (none, none, none, np.array([], np.int64)))
    states[2].ints = np.asfortranarray(new_state(USER_ITEM, 5).ints)
    states[2].floats = new_state(USER_ITEM, 5).floats
    with pytest.raises(ValueError, match="contiguous"):
        fold_events(events, states, (none, none, np.array([0]), none))


def test_an_unknown_event_type_is_named() -> None:
    with pytest.raises(BadInputError, match="unknown event type 'buy'"):
        encode_events(event_table([event("u", "i", "buy")]))
