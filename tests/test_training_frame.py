"""Training frames: every row back in order, strictly point-in-time, the numbers of the reader, clear errors."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo import asof_join, entity_rows
from feature_repo import training_frame as module
from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.errors import BadInputError, NotFoundError
from feature_repo.frame_file import write_training_frame
from feature_repo.request_features import compute, inputs_of
from feature_repo.services import FEATURE_LISTS
from feature_repo.settings import Settings
from feature_repo.store import open_store
from feature_repo.training_frame import training_frame
from feature_repo.views import USER_ITEM
from tests.event_tables import (
    START,
    US,
    event,
    event_table,
    item_table,
    ordered_histories,
    purchase,
    random_event,
    us,
    write_log,
)

CATALOGUE = {"i": "toys", "j": "books", "k": "toys", "l": "games"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, project="shop")


def items() -> pa.Table:
    return item_table(CATALOGUE, created_at=START - timedelta(days=30))


def filled(settings: Settings, events: list[dict[str, Any]]) -> Settings:
    write_log(settings, event_table(events), items())
    backfill(settings)
    return settings


def labels(*rows: tuple[str, str, float], **columns: Any) -> pd.DataFrame:
    """Entity rows (user, item, hours after START)."""
    users, ids, hours = zip(*rows, strict=True)
    times = pd.DatetimeIndex([START + timedelta(hours=h) for h in hours])
    return pd.DataFrame({"user_id": users, "item_id": ids, "event_timestamp": times} | columns)


def known_at(e: dict[str, Any]) -> Any:
    return max(e["event_timestamp"], e["received_at"])


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A project whose Feast objects are registered, for tests that fill it many times: registering takes a second."""
    return Settings(home=tmp_path_factory.mktemp("registered"), project="shop")


def refilled(settings: Settings, events: list[dict[str, Any]]) -> Settings:
    for directory in (settings.events_dir, settings.offline_dir):
        shutil.rmtree(directory, ignore_errors=True)
    return filled(settings, events)


@given(ordered_histories, st.data())
@hypothesis_settings(max_examples=10, deadline=None)
def test_the_future_changes_nothing(registered: Settings, history: list[dict[str, Any]], data: st.DataObject) -> None:
    """Events at or after the labels' time may be removed, moved or added: the frame stays the same."""
    label = known_at(data.draw(st.sampled_from(history)))
    past = [e for e in history if known_at(e) < label]
    moved = [
        e | {"received_at": known_at(e) + timedelta(hours=data.draw(st.integers(0, 9)))}
        for e in history
        if known_at(e) >= label and data.draw(st.booleans())
    ]
    added = [
        e | {"received_at": label} for e in data.draw(st.lists(random_event(), max_size=5)) if known_at(e) <= label
    ]
    entities = pd.DataFrame(
        [{"user_id": user, "item_id": item, "event_timestamp": label} for user in "uvz" for item in "ijl"]
    )
    later = sorted([*moved, *added], key=known_at)
    first = event("first", "i", "view", -1)  # so that there is a past
    one, other = (
        training_frame(entities, "ranking_v1", refilled(registered, [first, *events]))
        for events in (history, [*past, *later])
    )
    pd.testing.assert_frame_equal(one, other)


def test_lines_of_one_invoice_do_not_see_each_other(settings: Settings) -> None:
    before = purchase("u", "i", 0, session_id="a")
    invoice = [purchase("u", item, 5, session_id="b") for item in "ijk"]
    frame = training_frame(
        labels(("u", "i", 5), ("u", "j", 5), ("u", "k", 5)), "ranking_v1", filled(settings, [before, *invoice])
    )
    assert frame["f_user_orders"].tolist() == [1, 1, 1]
    assert frame["f_user_items_bought"].tolist() == [1, 1, 1]
    assert frame["f_pair_purchases"].fillna(0).tolist() == [1, 0, 0]
    assert frame["f_item_buyers"].fillna(0).tolist() == [1, 0, 0]


def test_every_row_comes_back_in_order_with_its_columns(settings: Settings) -> None:
    filled(settings, [purchase("u", "i", 0), purchase("v", "j", 1)])
    entities = labels(
        ("v", "j", 9), ("cold", "i", 2), ("u", "i", 0), ("u", "i", 3), ("v", "nothing", 4), ("u", "i", 3),
        label=[1, 0, 0, 1, 0, 1], note=["a", None, "c", "d", "e", "f"],
    )  # fmt: skip
    entities.index = pd.Index([7, 7, 3, 2, 1, 0], name="number")
    frame = training_frame(entities, "purchase_v1", settings)
    pd.testing.assert_frame_equal(frame[entities.columns.tolist()], entities)
    assert tuple(frame.columns[len(entities.columns) :]) == FEATURE_LISTS["purchase_v1"]
    features = frame[list(FEATURE_LISTS["purchase_v1"])]
    assert set(features.dtypes) == {np.dtype(np.float32)}
    assert features["f_user_orders"].fillna(-1).tolist() == [1, -1, -1, 1, 1, 1]
    assert features["f_item_buyers"].fillna(-1).tolist() == [1, 1, -1, 1, -1, 1]
    assert features["f_pair_purchases"].fillna(-1).tolist() == [1, -1, -1, 1, -1, 1]
    always = {"f_hour_of_day", "f_day_of_week", "f_item_age_days", "f_item_price"}
    cold = features.drop(columns=list(always)).iloc[4]
    assert cold[[n for n in cold.index if n.startswith(("f_item", "f_pair", "f_affinity"))]].isna().all()
    assert features.iloc[3].equals(features.iloc[5])


@given(ordered_histories, st.data())
@hypothesis_settings(max_examples=10, deadline=None)
def test_equals_the_reader_and_the_api_bit_for_bit(
    registered: Settings, history: list[dict[str, Any]], data: st.DataObject
) -> None:
    """The numbers evaluation and serving compute from a reader's rows, beyond the maximal age too."""
    old = event("u", "i", "view", -24 * 729, category="toys")  # some labels below are older than 730 days, some not
    pairs = [(user, item) for user in "uvz" for item in "ijl"]
    hours = data.draw(st.lists(st.sampled_from([-1, 0, 0.5, 23.999, 24, 24.001, 26, 24 * 90]), min_size=1, max_size=3))
    entities = labels(*((user, item, h) for h in hours for user, item in pairs))
    names = FEATURE_LISTS["ranking_v1"]
    settings = refilled(registered, [old, *history])
    frame = training_frame(entities, "ranking_v1", settings)
    readers = {h: AsOfReader(settings, START + timedelta(hours=h)) for h in hours}
    for row in frame.itertuples():
        now = us(row.event_timestamp.to_pydatetime())
        reader = readers[(row.event_timestamp.to_pydatetime() - START) / timedelta(hours=1)]
        columns = served_columns(reader, row.user_id, row.item_id, now)
        served = compute({name: columns[name] for name in inputs_of()}, np.array([now]))
        assert [float(served[n][0]).hex() for n in names] == [float(getattr(row, n)).hex() for n in names]


def served_columns(reader: AsOfReader, user: str, item: str, now: int) -> dict[str, Any]:
    found, (ids, item_rows) = reader.user(user, now), reader.item_rows()
    columns: dict[str, Any] = {name: np.array([np.nan]) for name in inputs_of()}
    sources = [(found.stats, 0), (reader.pairs(user, [item], now), 0)]
    if item in ids:
        sources.append((item_rows, ids.index(item)))
    if CATALOGUE[item] in found.categories:
        sources.append((found.affinities, found.categories.index(CATALOGUE[item])))
    for rows, at in sources:
        for name in (*rows.view.ints, *rows.view.floats):
            columns[name] = rows.column(name)[at : at + 1]
    entry = next((row for row in reader.catalog().to_pylist() if row["item_id"] == item), None)
    if entry:
        columns |= {name: np.array([float(entry[name])]) for name in ("item_price", "item_created_at")}
    return columns


def test_the_maximal_age_is_that_of_the_reader(settings: Settings) -> None:
    filled(settings, [event("u", "i", "view", 0, category="toys")])
    last = (USER_ITEM.max_age_us or 0) / 3_600_000_000
    entities = labels(("u", "i", last), ("u", "i", last))
    entities.loc[1, "event_timestamp"] += US
    frame = training_frame(entities, "ranking_v1", settings)
    assert frame["f_pair_views"].notna().tolist() == [True, False]
    assert frame["f_affinity_views_7d"].notna().tolist() == [True, False]
    assert frame["f_user_views_7d"].notna().tolist() == [True, True]


def test_nanoseconds_and_other_zones_are_cut_to_the_microsecond_before(settings: Settings) -> None:
    filled(settings, [event("u", "i", "view", 0)])
    entities = labels(("u", "i", 0), ("u", "i", 0))
    entities["event_timestamp"] = entities["event_timestamp"].dt.as_unit("ns").dt.tz_convert("Asia/Kolkata")
    entities["event_timestamp"] += pd.to_timedelta([999, 1000], unit="ns")
    frame = training_frame(entities, "ranking_v1", settings)
    assert frame["f_user_views_7d"].notna().tolist() == [False, True]
    assert str(frame["event_timestamp"].dt.tz) == "Asia/Kolkata"


def test_batches_are_one_frame(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(settings, [purchase("u", "i", 0), purchase("v", "j", 1)])
    entities = labels(*((u, i, h) for h in (3, 1, 2) for u in "uv" for i in "ij"))
    whole = training_frame(entities, "ranking_v1", settings)
    monkeypatch.setattr(module, "BATCH_ROWS", 5)
    pd.testing.assert_frame_equal(training_frame(entities, "ranking_v1", settings), whole)
    assert training_frame(entities.iloc[:0], "ranking_v1", settings).shape == (0, whole.shape[1])


def test_recent_items_come_as_lists_and_rows_of_earlier_runs_are_superseded(settings: Settings) -> None:
    filled(settings, [event("u", "i", "view", 0), event("u", "j", "impression", 0)])
    write_log(settings, event_table([purchase("u", "k", 0)], first_seq=3), name="b")
    backfill(settings)
    training_frame(labels(("u", "i", 1)), "ranking_v1", settings)  # registers the views
    entities = labels(("u", "i", 0), ("z", "i", 1), ("u", "i", 1))
    features = ["user_recent_items:recent_item_ids", "user_recent_items:recent_types", "user_stats:user_views",
                "user_stats:user_purchases"]  # fmt: skip
    result = open_store(settings).get_historical_features(entity_df=entities, features=features).to_df()
    assert [None if x is None else list(x) for x in result["recent_item_ids"]] == [None, None, ["i", "k"]]
    assert [None if x is None else list(x) for x in result["recent_types"]] == [None, None, [1, 3]]
    assert result["user_purchases"].fillna(-1).tolist() == [-1, -1, 1]


def test_a_frame_file_is_the_frame(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From every kind of entity rows, in small batches, also with columns named like what is added on the way."""
    filled(settings, [purchase("u", "i", 0), purchase("v", "j", 1)])
    hours = (3, 1, 2, 0)
    entities = labels(*((u, i, h) for h in hours for u in "uz" for i in "ix"), category="mine", now_us=1, user_views=2)
    expected = training_frame(entities, "ranking_v1", settings)
    entities.to_parquet(tmp_path / "rows.parquet", index=False)
    entities.to_csv(tmp_path / "rows.csv", index=False)
    monkeypatch.setattr(entity_rows, "BATCH_ROWS", 5)
    monkeypatch.setattr(asof_join, "BATCH_ROWS", 3)
    out = tmp_path / "out.parquet"
    sources = entities, tmp_path / "rows.parquet", str(tmp_path / "rows.csv"), f"FROM '{tmp_path}/rows.parquet'"
    for source in sources:
        seen: list[tuple[int, int]] = []
        rows = write_training_frame(
            source, "ranking_v1", settings, out, on_progress=lambda *step, seen=seen: seen.append(step)
        )
        assert rows == len(entities)
        assert seen[-1][0] == seen[-1][1]
        assert seen == sorted(seen)
        found = pd.read_parquet(out)
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)
        assert set(found[list(FEATURE_LISTS["ranking_v1"])].dtypes) == {np.dtype(np.float32)}
    with pytest.raises(BadInputError, match="'item_id' of the entity rows has 1 null"):
        write_training_frame(entities.assign(item_id=[None, *["i"] * 15]), "ranking_v1", settings, out)
    with pytest.raises(BadInputError, match="no column 'user_id'"):
        write_training_frame("SELECT 1 AS x", "ranking_v1", settings, out)
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected, check_dtype=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.drop(columns="item_id"), "no column 'item_id'"),
        (lambda e: e.assign(event_timestamp=e["event_timestamp"].dt.tz_localize(None)), "times with a zone"),
        (lambda e: e.assign(event_timestamp="2024-05-06"), "times with a zone"),
        (lambda e: e.assign(user_id=7), "'user_id' of the entity rows must hold text, not integer"),
        (lambda e: e.assign(item_id=None), "'item_id' of the entity rows has 1 null"),
        (lambda e: e.assign(f_item_price=1.0), "'f_item_price' of the entity rows has the name of a feature"),
    ],
)
def test_entity_rows_that_cannot_be_right_are_refused(settings: Settings, change: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        training_frame(change(labels(("u", "i", 0))), "ranking_v1", settings)


def test_unknown_services_and_missing_features_are_named(settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="no feature service 'ranking_v9'; there are: purchase_v1, ranking_v1"):
        training_frame(labels(("u", "i", 0)), "ranking_v9", settings)
    with pytest.raises(NotFoundError, match="larder features backfill"):
        training_frame(labels(("u", "i", 0)), "ranking_v1", settings)
