"""The offline store behind Feast's API: latest rows, saved results, feature views of a user's own, refusals."""

from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.types import Int64, String

from feature_repo import feature_definitions
from feature_repo.asof_join import replacing
from feature_repo.backfill import backfill
from feature_repo.errors import BadInputError, ConflictError, NotFoundError
from feature_repo.offline_store import DuckDBAsOfOfflineStore
from feature_repo.settings import Settings
from feature_repo.store import apply
from tests.event_tables import START, US, event, event_table, purchase, us, write_log

HOUR = timedelta(hours=1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path, project="shop")
    events = [event("u", "i", "view", 0), purchase("u", "j", 1), event("v", "i", "view", 2), event("u", "k", "view", 3)]
    write_log(settings, event_table(events))
    backfill(settings)
    return settings


@pytest.fixture
def store(settings: Settings) -> FeatureStore:
    return apply(settings)


def pull(
    store: FeatureStore, view: FeatureView, columns: list[str], end: timedelta, *, latest: bool = True
) -> pd.DataFrame:
    source = view.batch_source
    method = "pull_latest_from_table_or_query" if latest else "pull_all_from_table_or_query"
    job = getattr(DuckDBAsOfOfflineStore, method)(
        config=store.config,
        data_source=source,
        join_key_columns=["user_id"],
        feature_name_columns=columns,
        timestamp_field=source.timestamp_field,
        created_timestamp_column=None,
        start_date=START + US,
        end_date=START + end,
    )
    return job.to_df().sort_values(["user_id", "valid_from"])


def test_latest_and_all_rows_of_an_interval(store: FeatureStore) -> None:
    view = feature_definitions.user_stats
    latest = pull(store, view, ["user_views"], 3 * HOUR + US)
    assert latest[["user_id", "user_views"]].to_numpy().tolist() == [["u", 2], ["v", 1]]
    every = pull(store, view, ["user_views"], 3 * HOUR, latest=False)
    assert every[["user_id", "user_views"]].to_numpy().tolist() == [["u", 1], ["u", 1], ["v", 1]]
    assert us(every["valid_from"].iloc[0].to_pydatetime()) == us(START) + 1


def test_latest_recent_items(store: FeatureStore) -> None:
    view = feature_definitions.user_recent_items
    rows = pull(store, view, ["recent_item_ids", "recent_types"], 3 * HOUR)
    assert [list(x) for x in rows["recent_item_ids"]] == [["i", "j"], ["i"]]
    assert [list(x) for x in rows["recent_types"]] == [[1, 3], [1]]
    with pytest.raises(BadInputError, match="lists at a given time only"):
        pull(store, view, ["recent_types"], HOUR, latest=False)


def test_full_names_and_saved_results(store: FeatureStore, tmp_path: Path) -> None:
    entities = pd.DataFrame({"user_id": ["v", "u"], "event_timestamp": pd.DatetimeIndex([START + 3 * HOUR] * 2)})
    job = store.get_historical_features(entities, features=["user_stats:user_views"], full_feature_names=True)
    assert job.to_df()["user_stats__user_views"].tolist() == [1, 1]
    path = tmp_path / "saved.parquet"
    job.persist(SavedDatasetFileStorage(path=str(path)))
    assert pq.read_table(path)["user_stats__user_views"].to_pylist() == [1, 1]
    with pytest.raises(ConflictError, match="exists"):
        job.persist(SavedDatasetFileStorage(path=str(path)))


def own_view(name: str, *, created: str = "created", tags: dict[str, str] | None = None) -> tuple[Entity, FeatureView]:
    branch = Entity(name="branch", join_keys=["branch"], value_type=ValueType.INT64)
    source = FileSource(path=name, timestamp_field="at", created_timestamp_column=created, name=name)
    schema = [Field(name="branch", dtype=Int64), Field(name="stock", dtype=Int64), Field(name="note", dtype=String)]
    return branch, FeatureView(
        name=name, entities=[branch], schema=schema, source=source, ttl=timedelta(0), tags=tags or {}
    )


def test_a_feature_view_of_a_users_own(store: FeatureStore, settings: Settings) -> None:
    """A Parquet directory of one's own joins like ours: known strictly after its time and its arrival."""
    branch, view = own_view("own")
    rows = pd.DataFrame({"branch": [1, 1, 1], "at": START, "created": [START, START + HOUR, START], "stock": [4, 5, 6]})
    table = pa.Table.from_pandas(rows.assign(note="x"))
    written: list[int] = []
    DuckDBAsOfOfflineStore.offline_write_batch(store.config, view, table.slice(0, 2), written.append)
    DuckDBAsOfOfflineStore.offline_write_batch(store.config, view, table.slice(2), None)
    assert written == [2]
    store.apply([branch, view])
    times = [START + US, START, START + US, START + HOUR, START + HOUR + US]
    entities = pd.DataFrame({"branch": [2, 1, 1, 1, 1], "event_timestamp": pd.DatetimeIndex(times)})
    result = store.get_historical_features(entities, features=["own:stock", "own:note"]).to_df()
    assert result["stock"].fillna(-1).tolist() == [-1, -1, 6, 6, 5], "of rows of the same times the last written counts"


def test_entity_rows_from_files_and_queries(store: FeatureStore, tmp_path: Path) -> None:
    """A Parquet file, a directory of them and a query give the rows of a DataFrame, in memory and streamed."""
    times = pd.DatetimeIndex([START + HOUR * h for h in (9, 2, 0, 1)])
    entities = pd.DataFrame({"user_id": ["u", "v", "cold", "u"], "event_timestamp": times, "label": [1, 2, 3, 4]})
    features = ["user_stats:user_views", "user_recent_items:recent_item_ids"]
    expected = store.get_historical_features(entities, features=features).to_arrow()
    assert expected["label"].to_pylist() == [1, 2, 3, 4]
    (tmp_path / "rows").mkdir()
    for number in (0, 1):
        entities[number * 2 : number * 2 + 2].to_parquet(tmp_path / "rows" / f"{number}.parquet", index=False)
    entities.to_parquet(tmp_path / "rows.parquet", index=False)
    query = f"SELECT * FROM '{tmp_path}/rows.parquet' ORDER BY label"  # noqa: S608 - our own path
    for source in (str(tmp_path / "rows"), str(tmp_path / "rows.parquet"), query, entities):
        job = store.get_historical_features(source, features=features)
        assert job.to_arrow().to_pylist() == expected.to_pylist()
        assert job.to_parquet(tmp_path / "out.parquet") == 4
        assert pq.read_table(tmp_path / "out.parquet").to_pylist() == expected.to_pylist()
    empty = store.get_historical_features(entities[:0], features=features)
    assert empty.to_parquet(tmp_path / "out.parquet") == 0
    assert pq.read_schema(tmp_path / "out.parquet").names == expected.column_names
    assert sorted(path.name for path in tmp_path.glob(".out*")) == []


def test_a_failed_or_second_run_leaves_the_file(store: FeatureStore, tmp_path: Path) -> None:
    entities = pd.DataFrame({"user_id": ["u"], "event_timestamp": pd.DatetimeIndex([START + HOUR])})
    job = store.get_historical_features(entities, features=["user_stats:user_views"])
    path = tmp_path / "out.parquet"
    path.write_text("as before")
    with pytest.raises(BadInputError, match="no column 'nothing'"):
        job.to_parquet(path, columns={"x": "nothing"})
    with replacing(path) as work:
        with pytest.raises(ConflictError, match="another run is writing"):
            job.to_parquet(path)
        (work / "result").write_text("as before")
    assert path.read_text() == "as before"
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == ["out.parquet"]


def test_refusals(store: FeatureStore, settings: Settings) -> None:
    with pytest.raises(BadInputError, match="folded from events"):
        DuckDBAsOfOfflineStore.offline_write_batch(store.config, feature_definitions.user_stats, pa.table({}), None)
    for entities, message in (
        (7, "not int"),
        ("SELECT 1 AS user_id", "no column of times"),
        ("SELECT nothing", "query for entity rows failed"),
    ):
        with pytest.raises(BadInputError, match=message):
            store.get_historical_features(entities, features=["user_stats:user_views"])
    with pytest.raises(NotFoundError, match=r"no entity rows in nowhere\.parquet"):
        store.get_historical_features("nowhere.parquet", features=["user_stats:user_views"])
    with pytest.raises(BadInputError, match="without a range of time"):
        store.get_historical_features(start_date=START, features=["user_stats:user_views"])
    entities = pd.DataFrame({"user": ["u"], "event_timestamp": pd.DatetimeIndex([START])})
    with pytest.raises(BadInputError, match="no column 'user_id'"):
        store.get_historical_features(entities, features=["user_stats:user_views"]).to_df()
    renamed = entities.rename(columns={"user": "item_id"})
    result = store.get_historical_features(renamed, features=["item_catalog:item_price"]).to_df()
    assert result["item_price"].isna().all(), "a project may have no catalogue"
    source = FileSource(path="nowhere", timestamp_field="at", name="nowhere")
    with pytest.raises(NotFoundError, match="no rows of nowhere"):
        DuckDBAsOfOfflineStore.pull_all_from_table_or_query(store.config, source, [], [], "at")


def test_a_join_without_room_says_what_to_raise(store: FeatureStore, tmp_path: Path) -> None:
    store.config.offline_store.memory_limit = "1KB"
    entities = pd.DataFrame({"user_id": ["u"] * 10_000, "event_timestamp": START + 4 * HOUR})
    job = store.get_historical_features(entities, features=["user_stats:user_views"])
    for result in (job.to_arrow, lambda: job.to_parquet(tmp_path / "frame.parquet")):
        with pytest.raises(BadInputError, match="memory_limit"):
            result()
    assert not (tmp_path / "frame.parquet").exists()
