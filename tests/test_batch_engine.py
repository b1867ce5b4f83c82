"""Feast's materialise through our engine: the same rows in Redis as through Feast's own, and what is refused."""

import math
import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, Map, String, UnixTimestamp
from feast.value_type import ValueType

from feature_repo.backfill import backfill
from feature_repo.batch_engine import PackedComputeEngine
from feature_repo.errors import BadInputError
from feature_repo.materialize import materialize
from feature_repo.packed_row import ForeignRowError
from feature_repo.redis_scripts import connect
from feature_repo.row_index import entities_of
from feature_repo.store import apply, repo_config
from feature_repo.views import RECENT_VIEW
from tests.live_shop import import_history, random_event

NOW = datetime.now(UTC).replace(microsecond=0)
USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
PLACE = Entity(name="place", join_keys=["place_id"], value_type=ValueType.INT64)
SHELF = Entity(name="shelf", join_keys=["shelf_id"], value_type=ValueType.INT64)
TIME = pa.timestamp("us", "UTC")

#: Feature -> type in Feast, type in Arrow, values it is drawn from.
COLUMNS = {
    "i64": (Int64, pa.int64(), [0, -1, 2**52, -(2**52)]),
    "i32": (Int32, pa.int32(), [0, -(2**31), 2**31 - 1]),
    "f64": (Float64, pa.float64(), [0.0, -0.0, 1e308, 5e-324, math.inf, -math.inf, math.nan]),
    "f32": (Float32, pa.float32(), [0.1, math.inf, math.nan]),
    "flag": (Bool, pa.bool_(), [True, False]),
    "moment": (UnixTimestamp, TIME, [NOW + timedelta(microseconds=999_999), datetime(1960, 1, 1, 0, 0, 1, 5, UTC)]),
    "text": (String, pa.string(), ["", "a", "naïve ☃"]),
    "raw": (Bytes, pa.binary(), [b"", b"\x00\xff"]),
    "texts": (Array(String), pa.list_(pa.string()), [[], ["", "ü"], ["a"] * 5]),
    "numbers": (Array(Int64), pa.list_(pa.int64()), [[], [2**62, -1]]),
    "small": (Array(Int32), pa.list_(pa.int32()), [[1], [2, 3]]),
    "floats": (Array(Float64), pa.list_(pa.float64()), [[], [math.inf, 0.5]]),
    "halves": (Array(Float32), pa.list_(pa.float32()), [[0.1], []]),
    "flags": (Array(Bool), pa.list_(pa.bool_()), [[True, False], []]),
    "moments": (Array(UnixTimestamp), pa.list_(TIME), [[], [NOW, NOW + timedelta(seconds=1)]]),
}  # fmt: skip
#: Feast's own engine passes its rows through pandas, which has no null in a column of booleans or whole numbers.
NEVER_NULL = {"i64", "i32", "flag", "moment"}


@pytest.fixture
def client(settings):
    with connect(settings, timeout_ms=5000) as client:
        yield client


def store_of(settings, views, engine=None) -> FeatureStore:
    config = repo_config(settings)
    if engine:
        config.batch_engine_config = engine
    store = FeatureStore(config=config)
    store.apply([USER, PLACE, SHELF, *views])
    return store


def view_of(name, entities, columns, path=None) -> FeatureView:
    keys = [Field(name=e.join_key, dtype=String if e is USER else Int64) for e in entities]
    return FeatureView(
        name=name,
        entities=entities,
        schema=[*keys, *(Field(name=column, dtype=dtype) for column, dtype in columns.items())],
        source=FileSource(name=f"{name}_file", path=path or f"{name}.parquet", timestamp_field="at"),
        ttl=timedelta(0),
    )


def write(settings, name, columns) -> None:
    settings.offline_dir.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), settings.offline_dir / f"{name}.parquet", coerce_timestamps="us")


def times(n, *, end=NOW):
    return pa.array([end - timedelta(seconds=i) for i in range(n)], TIME)


def dump(client) -> dict:
    return {
        key: client.get(key) if client.type(key) == b"string" else client.hgetall(key)
        for key in sorted(client.keys("*"))
        if b":fs:" in key or b":fi:" in key
    }


@pytest.mark.parametrize(("seed", "entities"), [(1, [USER]), (2, [USER, PLACE]), (3, [PLACE, USER, SHELF])])
def test_the_rows_are_those_of_feasts_own_engine_byte_for_byte(settings, client, seed, entities):
    rng, n = np.random.default_rng(seed), 200
    keys = {"user_id": pa.string(), "place_id": pa.int64(), "shelf_id": pa.int64()}
    columns = {
        entity.join_key: pa.array(
            [f"ü{i}" if entity is USER else int(i) for i in rng.integers(0, 12, n)], keys[entity.join_key]
        )
        for entity in entities
    }
    for name, (_, kind, values) in COLUMNS.items():
        drawn = [values[i] for i in rng.integers(0, len(values), n)]
        absent = np.zeros(n) if name in NEVER_NULL else rng.random(n) < 0.3
        columns[name] = pa.array([None if gone else value for value, gone in zip(drawn, absent, strict=True)], kind)
    write(settings, "any", columns | {"at": times(n)})
    view = view_of("any", entities, {name: dtype for name, (dtype, _, _) in COLUMNS.items()})
    dumps = []
    for engine in ("local", None):
        client.flushall()
        store_of(settings, [view], engine).materialize(NOW - timedelta(days=1), NOW)
        dumps.append(dump(client))
    assert len(dumps[0]) > 12
    assert dumps[1] == dumps[0]


def test_nulls_and_extremes_that_feasts_own_engine_loses_are_kept(settings):
    columns = {
        "user_id": pa.array(["a", "b"]),
        "i64": pa.array([2**63 - 1, None]),
        "flag": pa.array([True, None]),
        "moment": pa.array([NOW, None], TIME),
        "at": times(2),
    }
    write(settings, "any", columns)
    store = store_of(settings, [view_of("any", [USER], {"i64": Int64, "flag": Bool, "moment": UnixTimestamp})])
    store.materialize(NOW - timedelta(days=1), NOW)
    names = ["any:i64", "any:flag", "any:moment"]
    answer = store.get_online_features(names, entity_rows=[{"user_id": "a"}, {"user_id": "b"}]).to_dict()
    assert answer["i64"] == [2**63 - 1, None]
    assert answer["flag"] == [True, None]
    assert answer["moment"] == [NOW, None]


def test_a_type_without_a_kind_of_its_own_comes_back(settings):
    pairs = pa.array([[("a", "b")], None], pa.map_(pa.string(), pa.string()))
    write(settings, "any", {"user_id": pa.array(["a", "b"]), "pairs": pairs, "at": times(2)})
    store = store_of(settings, [view_of("any", [USER], {"pairs": Map})])
    store.materialize(NOW - timedelta(days=1), NOW)
    answer = store.get_online_features(["any:pairs"], entity_rows=[{"user_id": "a"}, {"user_id": "b"}]).to_dict()
    assert answer["pairs"] == [{"a": "b"}, None]


def test_mapped_columns_incremental_runs_and_progress(settings, client, capsys):
    view = view_of("any", [USER], {"n": Int64})
    view.batch_source.field_mapping = {"raw_user": "user_id", "raw_n": "n"}
    names = [f"u{i}" for i in range(25_000)]
    write(settings, "any", {"raw_user": names, "raw_n": pa.array(range(25_000)), "at": times(25_000)})
    store = store_of(settings, [view])
    assert isinstance(store._get_provider().batch_engine, PackedComputeEngine)
    store.materialize_incremental(NOW)
    assert "25000/25000" in capsys.readouterr().err
    assert {e for part in entities_of(client, settings.project, "any") for e in part} == set(names)
    later = NOW + timedelta(seconds=1)
    write(settings, "any", {"raw_user": ["u1"], "raw_n": pa.array([7]), "at": times(1, end=later)})
    store.materialize_incremental(later)
    answer = store.get_online_features(["any:n"], entity_rows=[{"user_id": "u1"}, {"user_id": "u2"}]).to_dict()
    assert answer["n"] == [7, 2]


def test_newer_rows_stay_and_rows_from_the_future_are_refused_before_any_is_written(settings, client):
    view = view_of("any", [USER], {"n": Int64})
    write(settings, "any", {"user_id": ["a"], "n": pa.array([1]), "at": times(1)})
    store = store_of(settings, [view])
    newer = NOW + timedelta(seconds=1)
    store.write_to_online_store("any", pd.DataFrame([{"user_id": "a", "at": newer, "n": 2}]))
    store.materialize(NOW - timedelta(days=1), NOW)
    assert store.get_online_features(["any:n"], entity_rows=[{"user_id": "a"}]).to_dict()["n"] == [2]
    ahead = NOW + timedelta(hours=1)
    write(settings, "any", {"user_id": ["b", "c"], "n": pa.array([1, 1]), "at": pa.array([NOW, ahead], TIME)})
    before = dump(client)
    with pytest.raises(BadInputError, match=r"any is dated .* in the future"):
        store.materialize(NOW - timedelta(days=1), ahead)
    assert dump(client) == before


@pytest.mark.parametrize("columns", [{"user_id": [None]}, {"n": ["x"]}])
def test_rows_that_do_not_fit_the_view_are_refused(settings, columns):
    write(settings, "any", {"user_id": ["a"], "n": pa.array([1]), "at": times(1)} | columns)
    store = store_of(settings, [view_of("any", [USER], {"n": Int64})])
    with pytest.raises(BadInputError, match=r"null|fit its schema"):
        store.materialize(NOW - timedelta(days=1), NOW)


def test_a_changed_schema_is_refused_until_it_is_materialised_again_whatever_the_times(settings):
    write(settings, "any", {"user_id": ["a"], "n": pa.array([1]), "m": pa.array([0.5]), "at": times(1)})
    store = store_of(settings, [view_of("any", [USER], {"n": Int64})])
    store.write_to_online_store("any", pd.DataFrame([{"user_id": "a", "at": NOW + timedelta(seconds=9), "n": 1}]))
    store.apply([view_of("any", [USER], {"m": Float64, "n": Int64})])
    keys = [{"user_id": "a"}]
    with pytest.raises(ForeignRowError, match="of any"):
        store.get_online_features(["any:n"], entity_rows=keys)
    store.materialize(NOW - timedelta(days=1), NOW)  # older than the row of the schema that is no more
    answer = store.get_online_features(["any:n", "any:m"], entity_rows=keys).to_dict()
    assert (answer["n"], answer["m"]) == ([1], [0.5])


def test_our_own_views_materialised_by_feast_are_the_rows_of_larders_materialise(settings, client):
    rng = random.Random(8)
    start = int((NOW - timedelta(days=2)).timestamp() * 1e6)
    import_history(settings, [random_event(rng, f"h{i}", start + i * 10**6) for i in range(80)])
    backfill(settings, full=True)
    materialize(settings)
    ours = dump(client)
    client.flushall()
    apply(settings).materialize(datetime(2000, 1, 1, tzinfo=UTC), datetime.now(UTC))
    theirs = dump(client)
    assert set(theirs) == set(ours)
    for key, row in ours.items():
        # To Feast the recent events have no seq, and another event time: words 2 and 3.
        start = 24 if RECENT_VIEW.encode() in key and isinstance(row, bytes) else 0
        assert theirs[key][start:] == row[start:] if start else theirs[key] == row, key
