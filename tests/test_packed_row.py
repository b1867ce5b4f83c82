"""The packed row: what goes in comes out, for every layout; what is not of the layout is never misread."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from feature_repo.packed_row import (
    ForeignRowError,
    Layout,
    Table,
    layout_of,
    pack_rows,
    pack_table,
    unpack_rows,
    unpack_table,
)
from feature_repo.packed_tail import (
    RECENT_LAYOUT,
    CatalogItem,
    append_recent,
    decode_strings,
    encode_strings,
    pack_catalog,
    pack_recent,
    tail_codec,
    unpack_catalog,
    unpack_recent,
)
from feature_repo.rows import RecentEvents
from feature_repo.views import FOLD_VIEWS, NULL_INT, RECENT_EVENTS, USER_STATS

I64 = st.integers(-(2**63), 2**63 - 1)
# Floats by their bits: every NaN payload, both zeros, infinities, subnormals.
BITS = hnp.arrays(np.uint64, st.integers(0, 6), elements=st.integers(0, 2**64 - 1))
KINDS = ["int64", "int32", "bool", "unix_timestamp", "float64", "float32", "string", "bytes", "list[string]"]


@st.composite
def states(draw):
    view = draw(st.sampled_from(FOLD_VIEWS))
    n = draw(st.integers(0, 5))
    ints = draw(hnp.arrays(np.int64, (n, len(view.ints)), elements=I64))
    floats = draw(hnp.arrays(np.float64, (n, len(view.floats)), elements=st.floats()))
    floats[np.isnan(floats)] = np.nan
    return view, ints, floats


@given(states(), st.data())
def test_state_rows_come_back_bit_for_bit_beside_missing_ones(state, data):
    view, ints, floats = state
    packed = pack_rows(view, ints, floats)
    place = data.draw(st.integers(0, len(packed)))
    rows = unpack_rows(view, [*packed[:place], None, *packed[place:]])
    kept = np.delete(np.arange(len(packed) + 1), place)
    assert rows.ints[kept].tobytes() == ints.tobytes()
    assert rows.floats[kept].tobytes() == floats.tobytes()
    assert rows.present.tolist() == [i != place for i in range(len(packed) + 1)]
    assert (rows.ints[place] == NULL_INT).all()
    assert np.isnan(rows.floats[place]).all()


@st.composite
def tables(draw):
    """Any layout, any values: also more than 64 fields, so that the bitmap has several words."""
    kinds = draw(st.lists(st.sampled_from(KINDS), max_size=8))
    if draw(st.booleans()):
        kinds += ["int64"] * 70
    layout = Layout("any", ("entity",), tuple((f"f{i}", kind) for i, kind in enumerate(kinds)))
    n = draw(st.integers(0, 4))
    ints = draw(hnp.arrays(np.int64, (n, len(layout.ints)), elements=I64))
    floats = draw(hnp.arrays(np.uint64, (n, len(layout.floats)), elements=st.integers(0, 2**64 - 1))).view(np.float64)
    nulls = draw(hnp.arrays(np.bool_, (n, len(layout.fields))))
    base = len(layout.ints) + len(layout.floats)
    tails = [
        [None if nulls[r, base + c] else draw(st.binary(max_size=9)) for r in range(n)]
        for c in range(len(layout.tails))
    ]
    time, seq = (draw(hnp.arrays(np.int64, n, elements=I64)) for _ in range(2))
    return Table(layout, time, seq, ints, floats, nulls, tails, np.ones(n, np.bool_))


@given(tables())
def test_any_table_comes_back_with_nulls_apart_from_nans(table):
    back = unpack_table(table.layout, pack_table(table))
    for name in ("time", "seq", "ints", "floats", "nulls"):
        assert np.ascontiguousarray(getattr(back, name)).tobytes() == getattr(table, name).tobytes(), name
    assert back.tails == table.tails
    assert back.present.all()


@given(tables(), st.binary(max_size=300), st.data())
def test_what_is_not_of_the_layout_is_refused_or_missing_never_misread(table, junk, data):
    packed = pack_table(table)
    for row in packed:
        if row:
            cut = data.draw(st.integers(0, len(row) - 1))
            for wrong in (junk, row[:cut], row + b"x", bytes([row[0] ^ 1]) + row[1:]):
                assert not unpack_table(table.layout, [wrong], foreign="missing").present.any()
                with pytest.raises(ForeignRowError, match=f"of {table.layout.name}"):
                    unpack_table(table.layout, [row, wrong])


def test_rows_of_another_view_are_not_read():
    for view in FOLD_VIEWS:
        row = pack_rows(view, np.zeros((1, len(view.ints)), np.int64), np.zeros((1, len(view.floats))))
        for other in FOLD_VIEWS:
            assert unpack_rows(other, row, foreign="missing").present.tolist() == [other is view]


def test_a_renamed_column_changes_the_layout():
    layout = layout_of(USER_STATS)
    assert layout.layout_hash == USER_STATS.layout_hash
    (name, kind), *rest = layout.fields
    renamed = Layout(layout.name, layout.entities, ((name + "x", kind), *rest), layout.time_field, layout.seq_field)
    assert renamed.layout_hash != layout.layout_hash


def test_seq_is_stored_big_endian_so_that_bytes_compare_like_numbers():
    seqs = sorted([0, 1, 255, 256, 2**31, 2**32, 2**53 + 1, 2**62])
    ints = np.zeros((len(seqs), len(USER_STATS.ints)), np.int64)
    ints[:, 1] = seqs
    parts = [row[16:24] for row in pack_rows(USER_STATS, ints, np.zeros((len(seqs), len(USER_STATS.floats))))]
    assert parts == sorted(parts)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@given(st.lists(TEXT))
def test_lists_of_strings_come_back(values):
    assert decode_strings(encode_strings(values)) == values


@given(st.binary(max_size=40))
def test_damaged_lists_of_strings_are_errors_of_one_kind(data):
    try:
        values = decode_strings(data)
    except ValueError:
        return
    assert encode_strings(values) == data


@given(BITS)
def test_lists_of_floats_come_back_bit_for_bit(bits):
    encode, decode = tail_codec("list[float64]")
    assert decode(encode(bits.view(np.float64))).tobytes() == bits.tobytes()


EVENTS = st.lists(st.tuples(st.integers(0, 2), TEXT, st.integers(0, 9), st.integers(0, 2**60)), max_size=12)


@given(EVENTS, st.integers(0, 250), st.data())
@settings(deadline=None)
def test_appending_in_any_batches_with_replays_keeps_the_last_events(events, before, data):
    history = [(0, f"old{k}", 1, k) for k in range(before)] + events
    stored: dict[int, bytes] = {}
    start = 0
    while start < len(history):
        replayed = data.draw(st.integers(0, start))
        end = data.draw(st.integers(start + 1, len(history)))
        batch = [(s, *history[s]) for s in range(replayed, end)]
        users = sorted({user for _, user, *_ in batch})
        rows = append_recent(
            [stored.get(user) for user in users],
            np.array([users.index(user) for _, user, *_ in batch]),
            pa.array([item for _, _, item, _, _ in batch], pa.string()),
            np.array([code for _, _, _, code, _ in batch], np.int8),
            np.array([time for *_, time in batch]),
            np.array([s + 1 for s, *_ in batch]),
        )
        stored |= dict(zip(users, rows, strict=True))
        start = end
    for user, row in stored.items():
        last = [(s, *event[1:]) for s, event in enumerate(history) if event[0] == user][-RECENT_EVENTS:]
        recent = unpack_recent([row])[0]
        assert recent.item_ids == [item for _, item, _, _ in last]
        assert recent.types.tolist() == [code for _, _, code, _ in last]
        assert recent.times.tolist() == [time for *_, time in last]
        assert recent.seq == last[-1][0] + 1


def test_recent_events_with_lists_of_different_length_are_damaged():
    good = RecentEvents(["a", "b"], np.array([1, 2], np.int8), np.array([5, 6]), 9)
    assert unpack_recent(pack_recent([good]))[0].seq == 9
    (damaged,) = pack_recent([RecentEvents(["a", "b"], np.array([1], np.int8), np.array([5, 6]), 9)])
    assert unpack_recent([damaged, None], foreign="missing") == [None, None]
    with pytest.raises(ForeignRowError, match=RECENT_LAYOUT.name):
        unpack_recent([damaged])


ITEMS = st.builds(
    CatalogItem,
    st.just("item"),
    st.none() | TEXT,
    st.none() | TEXT,
    st.none() | st.integers(0, 2**62),
    st.none() | st.integers(0, 2**62),
    st.booleans(),
)


@given(st.lists(ITEMS, max_size=4))
def test_catalogue_entries_come_back(items):
    packed = pack_catalog(items, np.arange(len(items)))
    assert unpack_catalog(["item"] * (len(items) + 1), [None, *packed]) == [None, *items]
