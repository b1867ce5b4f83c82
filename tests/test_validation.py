"""The rules for events: one event, whole tables, and that both say the same."""

import json
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.errors import BadInputError
from feature_repo.events import EVENT_SCHEMA, ITEM_SCHEMA, MAX_FUTURE_S, QUARANTINE_SCHEMA, EventType
from feature_repo.validation import REASONS, check_event, microseconds, validate_events

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_US = microseconds(NOW)
GOOD = {
    "event_id": "e1",
    "user_id": "u1",
    "item_id": "i1",
    "event_type": "purchase",
    "value": 598.0,
    "quantity": 2,
    "event_timestamp": NOW - timedelta(hours=1),
    "received_at": NOW - timedelta(minutes=59),
    "session_id": "s1",
    "request_id": "r1",
    "rank": 1,
    "context": '{"page": "home"}',
    "category": "lamp",
    "price": 299,
}


def reason_of(**changes: object) -> str | None:
    problem = check_event(GOOD | changes, NOW_US)
    return problem and problem.partition(": ")[0]


def split(rows: list[dict], schema: pa.Schema | None = None, **options) -> tuple[pa.Table, pa.Table]:
    nullable = pa.schema([field.with_nullable(True) for field in EVENT_SCHEMA])
    table = pa.Table.from_pylist(rows, schema=schema or nullable)
    return validate_events(table, source="test", now=NOW, **options)


def test_a_right_event_passes_both_ways():
    assert check_event(GOOD, NOW_US) is None
    accepted, quarantine = split([GOOD])
    assert accepted.to_pylist() == [GOOD]
    assert accepted.schema.equals(EVENT_SCHEMA)
    assert quarantine.num_rows == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user_id": None}, "missing_field"),
        ({"event_type": "rating", "value": None}, "missing_field"),
        ({"colour": "red"}, "unknown_field"),
        ({"user_id": 17}, "bad_type"),
        ({"event_timestamp": "2026-03-01"}, "bad_type"),
        ({"quantity": True}, "bad_type"),
        ({"value": "5"}, "bad_type"),
        ({"item_id": ""}, "bad_id"),
        ({"item_id": " "}, "bad_id"),
        ({"item_id": "x" * 10_000}, "bad_id"),
        ({"item_id": "é" * 65}, "bad_id"),
        ({"item_id": "\ud800"}, "bad_id"),
        ({"item_id": "a\x00b"}, "bad_id"),
        ({"session_id": "a\nb"}, "bad_id"),
        ({"event_type": "purchased"}, "bad_event_type"),
        ({"context": "[1]"}, "bad_context"),
        ({"context": '{"a": NaN}'}, "bad_context"),
        ({"context": "{" * 100_000}, "bad_context"),
        ({"value": float("nan")}, "not_finite"),
        ({"value": float("inf")}, "not_finite"),
        ({"value": 9.5}, "not_whole"),
        ({"quantity": 1.5}, "not_whole"),
        ({"price": -1}, "negative"),
        ({"event_type": "cancel", "value": -598.0}, "negative"),
        ({"event_type": "cancel", "quantity": -2}, "negative"),
        ({"quantity": 0}, "bad_quantity"),
        ({"value": 2.0**60}, "too_large"),
        ({"value": 10**6000}, "too_large"),
        ({"rank": 0}, "bad_rank"),
        ({"rank": -3}, "bad_rank"),
        ({"event_timestamp": datetime(2026, 1, 1)}, "naive_time"),  # noqa: DTZ001 - naive is the point
        ({"event_timestamp": datetime(1969, 1, 1, tzinfo=UTC)}, "bad_time"),
        ({"received_at": None, "event_timestamp": NOW + timedelta(seconds=MAX_FUTURE_S + 1)}, "future_time"),
        ({"event_timestamp": NOW, "received_at": NOW - timedelta(hours=2)}, "future_time"),
        ({"received_at": NOW + timedelta(days=1)}, "future_time"),
    ],
)
def test_a_wrong_event_has_its_reason(changes, reason):
    assert reason_of(**changes) == reason
    assert reason in REASONS
    try:
        accepted, quarantine = split([GOOD | changes])
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return  # such a value cannot be in a column at all
    if reason not in ("unknown_field", "naive_time", "not_whole"):  # these are properties of the column
        assert (accepted.num_rows, quarantine["reason"].to_pylist()) == (0, [reason])


@pytest.mark.parametrize(
    "changes",
    [
        {"event_type": "rating", "value": 4.5},
        {"event_type": "view", "value": None, "quantity": None},
        {"quantity": 2.0},
        {"user_id": "x" * 128},
        {"user_id": "BANK CHARGES"},
        {"user_id": "女性用"},
        {"event_timestamp": NOW, "received_at": None},
        {"event_timestamp": (NOW - timedelta(hours=1)).astimezone(timezone(timedelta(hours=-7)))},
    ],
)
def test_unusual_events_that_are_right(changes):
    assert check_event(GOOD | changes, NOW_US) is None


def test_a_clock_that_runs_ahead_a_little_is_set_to_the_time_of_receipt():
    ahead = GOOD | {"event_timestamp": NOW + timedelta(seconds=MAX_FUTURE_S), "received_at": NOW}
    (event,) = split([ahead])[0].to_pylist()
    assert event["event_timestamp"] == event["received_at"] == NOW


def test_a_missing_time_of_receipt_is_the_time_of_the_event():
    (event,) = split([GOOD | {"received_at": None}])[0].to_pylist()
    assert event["received_at"] == GOOD["event_timestamp"]


def test_ids_are_stored_in_one_normal_form():
    decomposed, composed = unicodedata.normalize("NFD", "Müller"), "Müller"
    rows = [GOOD | {"event_id": "a", "user_id": decomposed}, GOOD | {"event_id": "b", "user_id": composed}]
    assert split(rows)[0]["user_id"].to_pylist() == [composed, composed]


def test_only_the_first_of_equal_event_ids_is_accepted_and_a_refused_row_claims_no_id():
    rows = [
        GOOD | {"rank": 0},
        GOOD,
        GOOD | {"event_id": "e2"},
        GOOD,
        GOOD | {"event_id": "é"},
        GOOD | {"event_id": "é"},
    ]
    accepted, quarantine = split(rows, row_offset=10)
    assert accepted["event_id"].to_pylist() == ["e1", "e2", "é"]
    assert quarantine["row"].to_pylist() == [10, 13, 15]
    assert quarantine["reason"].to_pylist() == ["bad_rank", "duplicate", "duplicate"]


def test_a_refused_row_is_kept_whole():
    _, quarantine = split([GOOD | {"value": -5.0}], row_offset=7)
    assert quarantine.schema.equals(QUARANTINE_SCHEMA)
    (row,) = quarantine.to_pylist()
    assert (row["source"], row["row"], row["reason"], row["detail"]) == ("test", 7, "negative", "value -5.0")
    assert json.loads(row["raw"])["event_id"] == "e1"


def test_unknown_missing_and_repeated_columns_are_named():
    table = pa.Table.from_pylist([GOOD])
    for broken, word in (
        (table.append_column("colour", pa.array(["red"])), "'colour'"),
        (table.drop(["user_id", "item_id"]), "'user_id', 'item_id'"),
        (table.append_column("rank", pa.array([1])), "'rank'"),
    ):
        with pytest.raises(BadInputError, match=word):
            validate_events(broken, source="test", now=NOW)


def test_columns_of_the_wrong_type_send_their_rows_to_quarantine():
    naive = pa.array([1], pa.timestamp("us"))
    for name, column, reason in (
        ("user_id", pa.array([5]), "bad_type"),
        ("value", pa.array(["5"]), "bad_type"),
        ("quantity", pa.array([1.5]), "not_whole"),
        ("event_timestamp", naive, "naive_time"),
        ("event_timestamp", pa.array(["2026-01-01T00:00:00Z"]), "bad_type"),
        ("event_timestamp", pa.array([2**62], pa.timestamp("us", "UTC")), "future_time"),
    ):
        table = pa.Table.from_pylist([GOOD])
        table = table.set_column(table.column_names.index(name), name, column)
        accepted, quarantine = validate_events(table, source="test", now=NOW)
        assert (accepted.num_rows, quarantine["reason"].to_pylist()) == (0, [reason]), name


def test_other_widths_of_the_same_types_are_read():
    table = pa.Table.from_pylist([GOOD])
    for name, kind in (
        ("user_id", pa.dictionary(pa.int32(), pa.string())),
        ("item_id", pa.large_string()),
        ("quantity", pa.int16()),
        ("price", pa.float64()),
        ("value", pa.int32()),
        ("event_timestamp", pa.timestamp("ns", "Europe/Berlin")),
    ):
        index = table.column_names.index(name)
        table = table.set_column(index, name, table[name].cast(kind))
    accepted, _ = validate_events(table, source="test", now=NOW)
    assert accepted.to_pylist() == [GOOD]


def test_an_empty_table_gives_two_empty_tables():
    accepted, quarantine = split([])
    assert (accepted.num_rows, quarantine.num_rows) == (0, 0)


TEXT = st.one_of(
    st.sampled_from(["a", "b", "é", "e\u0301", "", " ", "x" * 128, "x" * 129, "a\tb", "\u2028"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=70),
    st.none(),
)
NUMBER = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), 2.0**53, 2.0**53 + 2, 1e300]),
    st.floats(),
    st.none(),
)
WHOLE = st.one_of(st.sampled_from([0, 1, -1, 2**53, 2**53 + 1, -(2**63), 2**63 - 1]), st.integers(0, 99), st.none())
TIME = st.one_of(
    st.datetimes(datetime(1960, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - hypothesis' bounds
    st.integers(-2 * MAX_FUTURE_S, 2 * MAX_FUTURE_S).map(lambda s: NOW + timedelta(seconds=s)),
    st.none(),
)
EVENT = st.fixed_dictionaries(
    {
        "event_id": TEXT,
        "user_id": TEXT,
        "item_id": TEXT,
        "event_type": st.one_of(st.sampled_from([*EventType.__members__, "buy"]), st.none()),
        "value": NUMBER,
        "quantity": WHOLE,
        "event_timestamp": TIME,
        "received_at": TIME,
        "session_id": TEXT,
        "request_id": TEXT,
        "rank": WHOLE,
        "context": st.sampled_from([None, "{}", '{"a": 1}', "{", "1", '{"a": Infinity}']),
        "category": TEXT,
        "price": WHOLE,
    }
)
MOSTLY_GOOD = st.builds(
    lambda event, names, number: GOOD | {"event_id": f"e{number}"} | {name: event[name] for name in names},
    EVENT,
    st.sets(st.sampled_from(sorted(GOOD)), max_size=3),
    st.integers(0, 9),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(MOSTLY_GOOD, max_size=12))
def test_tables_and_single_events_follow_the_same_rules(rows):
    accepted, quarantine = split(rows)
    refused = {row["row"]: row["reason"] for row in quarantine.to_pylist()}
    assert accepted.num_rows + len(refused) == len(rows)
    seen: set[str] = set()
    ids = []
    for number, row in enumerate(rows):
        problem = check_event(row, NOW_US)
        if problem is not None:
            assert refused[number] == problem.partition(": ")[0]
            continue
        event_id = unicodedata.normalize("NFC", row["event_id"])
        assert refused.get(number) == ("duplicate" if event_id in seen else None)
        if event_id not in seen:
            ids.append(event_id)
        seen.add(event_id)
    assert accepted["event_id"].to_pylist() == ids
    for event in accepted.to_pylist():  # what is accepted is right, and stays accepted
        assert check_event(event, NOW_US) is None
        assert event["event_timestamp"] <= event["received_at"] <= NOW
    again, nothing = validate_events(accepted, source="test", now=NOW)
    assert again.equals(accepted)
    assert nothing.num_rows == 0


def test_the_page_on_events_names_every_field_type_and_reason():
    page = (Path(__file__).parents[1] / "docs" / "events.md").read_text("utf-8")
    names = [*EVENT_SCHEMA.names, *ITEM_SCHEMA.names, "seq", *EventType.__members__]
    assert [name for name in names if f"`{name}`" not in page] == []
    rows = {f"| `{slug}` | {sentence} |" for slug, sentence in REASONS.items()}
    assert rows - set(page.splitlines()) == set()
