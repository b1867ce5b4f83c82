"""AsOfReader: features at one instant equal the slow fold of all events before it; ages, cold users, recent events."""

import math
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.rows import Rows
from feature_repo.settings import Settings
from feature_repo.views import ITEM_STATS, NULL_INT, RECENT_EVENTS, USER_CATEGORY, USER_ITEM, USER_STATS
from tests.event_tables import (
    HOUR,
    START,
    US,
    event,
    event_table,
    item_table,
    ordered_histories,
    purchase,
    us,
    write_log,
)
from tests.fold_oracle import oracle


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, project="shop")


def unpacked(rows: Rows) -> list[dict[str, Any] | None]:
    """Return each row with None for null; None for a missing row."""
    found: list[dict[str, Any] | None] = []
    for ints, floats, present in zip(rows.ints.tolist(), rows.floats.tolist(), rows.present, strict=True):
        row = {n: None if x == NULL_INT else x for n, x in zip(rows.view.ints, ints, strict=True)}
        row |= {n: None if math.isnan(x) else x for n, x in zip(rows.view.floats, floats, strict=True)}
        found.append(row if present else None)
        assert present or set(row.values()) == {None}
    return found


@given(ordered_histories, st.data())
@hypothesis_settings(max_examples=25, deadline=None)
def test_equals_the_slow_fold_of_all_events_before(history: list[dict[str, Any]], data: st.DataObject) -> None:
    table = event_table(history)
    times = [max(us(e["event_timestamp"]), us(e["received_at"])) for e in history]
    as_of = data.draw(st.sampled_from(times)) + data.draw(st.sampled_from([0, 1, HOUR]))
    before = table.filter(pa.array([time < as_of for time in times]))
    expected = oracle(before)
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), project="shop")
        write_log(settings, table)
        backfill(settings, chunk_events=data.draw(st.integers(1, 20)))
        reader = AsOfReader(settings, as_of)
    items, rows = reader.item_rows()
    assert dict(zip(items, unpacked(rows), strict=True)) == {k[0]: r for k, r in expected[ITEM_STATS.name].items()}
    assert reader.users() == sorted(k[0] for k in expected[USER_STATS.name])
    for user in "uvwx":
        found = reader.user(user, as_of)
        assert unpacked(found.stats) == [expected[USER_STATS.name].get((user,))]
        own = {k[1]: r for k, r in sorted(expected[USER_CATEGORY.name].items()) if k[0] == user}
        assert (found.categories, unpacked(found.affinities)) == (list(own), list(own.values()))
        pairs = unpacked(reader.pairs(user, ["k", "x", "i", "j", "i"], as_of))
        assert pairs == [expected[USER_ITEM.name].get((user, item)) for item in "kxiji"]
        recent = [e for e in before.to_pylist() if e["user_id"] == user and e["event_type"] != "impression"]
        assert found.recent.item_ids == [e["item_id"] for e in recent]
        assert found.recent.seq == (recent[-1]["seq"] if recent else 0)
        assert found.known == any(e["user_id"] == user for e in before.to_pylist())


def test_an_event_at_the_instant_itself_is_not_seen(settings: Settings) -> None:
    write_log(settings, event_table([purchase("u", "i", 0), purchase("u", "i", 1)]))
    backfill(settings)
    hour = START + timedelta(hours=1)
    for as_of, purchases in ((START, None), (START + US, 1), (hour, 1), (hour + US, 2)):
        row = unpacked(AsOfReader(settings, as_of).user("u", us(hour)).stats)[0]
        assert (row and row["user_purchases"]) == purchases


def test_a_row_of_an_earlier_run_is_superseded(settings: Settings) -> None:
    write_log(settings, event_table([purchase("u", "i", 0)]), name="a")
    backfill(settings)
    write_log(settings, event_table([purchase("u", "j", 0)], first_seq=2), name="b")
    backfill(settings)
    row = unpacked(AsOfReader(settings, START + US).user("u", us(START)).stats)[0]
    assert row is not None
    assert row["user_purchases"] == 2


def test_rows_count_as_missing_beyond_their_maximal_age(settings: Settings) -> None:
    write_log(settings, event_table([purchase("u", "i", 0)]))
    backfill(settings)
    reader, limit = AsOfReader(settings, START + timedelta(days=1000)), us(START) + (USER_ITEM.max_age_us or 0)
    assert [reader.pairs("u", ["i"], now).present[0] for now in (limit, limit + 1)] == [True, False]
    assert [reader.user("u", now).affinities.present[0] for now in (limit, limit + 1)] == [True, False]
    assert reader.user("u", limit + 1).stats.present[0], "only views with a maximal age forget"


def test_the_last_recent_events_are_kept(settings: Settings) -> None:
    many = RECENT_EVENTS + 5
    write_log(settings, event_table([event("u", f"i{n}", "view", n) for n in range(many)]))
    backfill(settings, chunk_events=30)
    recent = AsOfReader(settings, START + timedelta(hours=many - 1)).user("u", 0).recent
    assert recent.item_ids == [f"i{n}" for n in range(many - 1 - RECENT_EVENTS, many - 1)]
    assert recent.types.dtype == np.int8
    assert recent.times[-1] == us(START) + (many - 2) * HOUR
    assert recent.seq == many - 1


def test_nothing_is_known_before_the_first_event(settings: Settings) -> None:
    write_log(settings, event_table([purchase("u", "i", 0)]), item_table({"i": "toys"}))
    backfill(settings)
    reader = AsOfReader(settings.offline_dir, us(START) - 1)
    assert reader.users() == []
    assert reader.item_rows()[0] == []
    assert reader.catalog().num_rows == 0
    assert not reader.user("u", us(START)).known
    assert reader.pairs("u", ["i", "j"], us(START)).present.tolist() == [False, False]
    assert AsOfReader(settings, START).catalog()["item_category"].to_pylist() == ["toys"]


def test_clear_errors(settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="larder features backfill"):
        AsOfReader(settings, START)
    with pytest.raises(BadInputError, match="time zone"):
        AsOfReader(settings, datetime(2024, 1, 1))  # noqa: DTZ001 - that is the mistake
