"""The compiled fold against a slow one written differently, bit for bit; what it skips, and in which pieces it runs."""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import feature_repo.fold as fold_module
from feature_repo.end_state import EndState
from feature_repo.errors import BadInputError
from feature_repo.events import EventType
from feature_repo.fold import (
    EventArrays,
    Limits,
    Snapshots,
    State,
    States,
    encode_events,
    fold_events,
    new_state,
    recent_type,
    touches,
)
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


def made(rows: dict[tuple[str, ...], dict[str, Any]], time: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """Leave out the rows that were not made because their user has all it may have."""
    return {entity: row for entity, row in rows.items() if row[time] is not None}


def folded(*tables: pa.Table) -> EndState:
    end = EndState()
    for table in tables:
        fold(end, table)
    return end


#: Small enough for the histories to reach them: (max_age_us, rows of pairs, rows of affinities).
small_limits = st.tuples(st.sampled_from([0, HOUR, 24 * HOUR, 30 * 24 * HOUR, 730 * 24 * HOUR]),
                         st.integers(1, 4), st.integers(1, 3))  # fmt: skip


@contextmanager
def limited(max_age: int, *most: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold_module, "LIMITS", Limits([None, None, max_age, max_age], [None, None, *most]))
        yield


@given(histories)
@settings(max_examples=150, deadline=None)
def test_equals_the_slow_fold_bit_for_bit(history: list[dict[str, Any]]) -> None:
    table = event_table(history)
    end, expected = folded(table), oracle(table)
    for v, view in enumerate(FOLD_VIEWS):
        assert bits(rows_of(end, v)) == bits(expected[view.name])


@given(histories, small_limits)
@settings(max_examples=120, deadline=None)
def test_old_rows_begin_anew_and_users_are_capped_as_in_the_slow_fold(
    history: list[dict[str, Any]], limits: tuple[int, int, int]
) -> None:
    table, (max_age, *most) = event_table(history), limits
    with limited(max_age, *most):
        end = folded(table)
    expected = oracle(table, max_age, (most[0], most[1]))
    for v, view in enumerate(FOLD_VIEWS):
        assert bits(made(rows_of(end, v), view.time_column)) == bits(expected[view.name])


@given(histories, small_limits, st.data())
@settings(max_examples=100, deadline=None)
def test_micro_batches_and_replays_change_nothing(
    history: list[dict[str, Any]], limits: tuple[int, int, int], data: st.DataObject
) -> None:
    table = event_table(history)
    cut = data.draw(st.integers(0, len(history)))
    again = data.draw(st.integers(0, cut))  # a crash: events are delivered a second time
    with limited(*limits):
        whole, pieces = folded(table), folded(table.slice(0, cut), table.slice(again))
    for v in range(4):
        assert bits(rows_of(whole, v)) == bits(rows_of(pieces, v))


@given(histories, small_limits, st.data())
@settings(max_examples=120, deadline=None)
def test_a_batch_stored_in_part_and_folded_again_changes_nothing(
    history: list[dict[str, Any]], limits: tuple[int, int, int], data: st.DataObject
) -> None:
    """Rows are stored one by one, users and items before pairs and affinities; a crash leaves any part of the batch."""
    table, end = event_table(history), EndState()
    events = encode_events(table)
    rows = end.rows(table, events.etype)
    begin = data.draw(st.integers(0, len(history)))
    crash = data.draw(st.integers(begin, len(history)))

    def states_after(start: int, stop: int, states: States | None = None) -> States:
        copies = [
            State(s.ints.copy(), s.floats.copy())
            for s in states or [new_state(v, len(s)) for v, s in zip(FOLD_VIEWS, end.states, strict=True)]
        ]
        result = copies[0], copies[1], copies[2], copies[3]
        piece = EventArrays(**{f.name: getattr(events, f.name)[start:stop] for f in fields(EventArrays)})
        fold_events(piece, result, (rows[0][start:stop], rows[1][start:stop], rows[2][start:stop], rows[3][start:stop]))
        return result

    with limited(*limits):
        found = states_after(0, begin)
        written = states_after(begin, crash, found)
        order = [(v, r) for v in (0, 1) for r in range(len(found[v]))]
        order = data.draw(st.permutations(order)) + data.draw(
            st.permutations([(v, r) for v in (2, 3) for r in range(len(found[v]))])
        )
        for v, r in order[: data.draw(st.integers(0, len(order)))]:
            found[v].ints[r], found[v].floats[r] = written[v].ints[r], written[v].floats[r]
        again, whole = states_after(begin, len(history), found), states_after(0, len(history))
    for mine, other in zip(again, whole, strict=True):
        assert (mine.ints.tobytes(), mine.floats.tobytes()) == (other.ints.tobytes(), other.floats.tobytes())


def test_a_row_idle_for_longer_than_its_maximum_age_begins_anew_and_one_as_old_goes_on() -> None:
    max_age = USER_ITEM.max_age_us / HOUR
    for gap, views in ((max_age, 2), (max_age + 1, 1)):
        end = folded(event_table([event("u", "i", "view", 0), event("u", "i", "view", gap)]))
        pair, user = rows_of(end, 2)["u", "i"], rows_of(end, 0)["u",]
        assert (pair["pair_views"], user["user_views"]) == (views, 2)
        assert pair["pair_first_time"] == us(START) + (gap * HOUR if views == 1 else 0)
        assert user["user_pairs"] == 3 - views


def test_a_user_at_the_cap_still_counts_but_gets_no_further_rows() -> None:
    with limited(30 * 24 * HOUR, 2, 1):
        end = folded(event_table([purchase("u", item, at) for at, item in enumerate("iijk")]))
    user = rows_of(end, 0)["u",]
    assert list(made(rows_of(end, 2), "pair_time")) == [("u", "i"), ("u", "j")]
    assert (user["user_pairs"], user["user_pairs_full_seq"], user["user_affinities_full_seq"]) == (2, 3, 1)
    assert (user["user_purchases"], user["user_items_bought"], rows_of(end, 1)["k",]["item_purchases"]) == (4, 2, 1)


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
