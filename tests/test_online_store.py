"""PackedRedisOnlineStore through Feast's API on a real Redis: any schema, order of writes, the packed reader agrees."""

import asyncio
import inspect
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType

from feature_repo.errors import BadInputError, UnavailableError
from feature_repo.fold import new_state
from feature_repo.online_keys import row_key
from feature_repo.online_reader import OnlineReader
from feature_repo.online_store import PackedRedisOnlineStore
from feature_repo.packed_row import ForeignRowError, pack_rows
from feature_repo.protobuf_rows import FeastView
from feature_repo.read_request import RowsOf
from feature_repo.redis_scripts import connect
from feature_repo.row_scripts import ViewRows
from feature_repo.row_writer import write_rows
from feature_repo.store import repo_config
from feature_repo.views import NULL_INT, USER_ITEM, USER_STATS

NOW = datetime.now(UTC).replace(microsecond=0)
USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
ITEM = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
PLACE = Entity(name="place", join_keys=["place_id"], value_type=ValueType.INT64)

ALL_TYPES = {
    "i64": Int64,
    "i32": Int32,
    "f64": Float64,
    "f32": Float32,
    "flag": Bool,
    "moment": UnixTimestamp,
    "text": String,
    "raw": Bytes,
    "texts": Array(String),
    "numbers": Array(Int64),
    "floats": Array(Float64),
    "flags": Array(Bool),
}


def view_of(name, entities, types, *, tags=None):
    keys = [Field(name=e.join_key, dtype=Int64 if e is PLACE else String) for e in entities]
    source = FileSource(name=f"{name}_file", path=f"{name}.parquet", timestamp_field="at")
    return FeatureView(
        name=name,
        entities=entities,
        schema=[*keys, *(Field(name=n, dtype=t) for n, t in types.items())],
        source=PushSource(name=f"{name}_push", batch_source=source),
        ttl=timedelta(0),
        tags=tags or {},
    )


def fold_view(view, *entities):
    types = {c.name: Int64 if c.kind == "int64" else Float64 for c in view.columns}
    return view_of(view.name, list(entities), types)


@pytest.fixture
def config(settings) -> RepoConfig:
    settings.offline_dir.mkdir(parents=True)
    return repo_config(settings)


@pytest.fixture
def client(settings):
    with connect(settings) as client:
        yield client


def opened(config, *views) -> FeatureStore:
    """A store with some views registered, over empty files."""
    for view in views:
        if view.name not in {"user_stats", "user_item_interactions"}:
            columns = {key: pd.Series([], dtype=str) for key in view.join_keys}
            path = f"{config.offline_store.path}/{view.name}.parquet"
            pd.DataFrame(columns | {"at": pd.Series([], dtype="datetime64[us, UTC]")}).to_parquet(path)
    store = FeatureStore(config=config)
    store.apply([USER, ITEM, PLACE, *views])
    return store


def rows_of(store, view, keys, names=None):
    answer = store.get_online_features([f"{view}:{name}" for name in names], entity_rows=keys).to_dict()
    return [{name: answer[name][i] for name in names} for i in range(len(keys))]


def test_every_type_comes_back_and_nulls_stay_apart_from_nans(config):
    store = opened(config, view_of("any", [USER], ALL_TYPES))
    full = {
        "i64": -(2**63), "i32": -5, "f64": -0.0, "f32": math.inf, "flag": True, "moment": NOW, "text": "naïve ☃",
        "raw": b"\x00\xff", "texts": ["", "ü"], "numbers": [2**62, -1], "floats": [math.inf, 0.5],
        "flags": [True, False],
    }  # fmt: skip
    nan = dict.fromkeys(full) | {"f64": math.nan, "texts": []}
    store.write_to_online_store("any", pd.DataFrame([{"user_id": "u1", "at": NOW, **full}]))
    view = store.get_feature_view("any")
    key = EntityKey(join_keys=["user_id"], entity_values=[Value(string_val="u2")])
    protos = {"f64": Value(double_val=math.nan), "texts": Value()}
    protos["texts"].string_list_val.SetInParent()
    store._get_provider().online_store.online_write_batch(store.config, view, [(key, protos, NOW, None)], None)
    first, second, third = rows_of(store, "any", [{"user_id": f"u{i}"} for i in (1, 2, 3)], list(ALL_TYPES))
    assert first == full
    assert math.isnan(second.pop("f64"))
    nan.pop("f64")
    assert second == nan
    assert third == dict.fromkeys(ALL_TYPES)


def test_async_read_and_write_agree_with_sync(config):
    store = opened(config, view_of("any", [USER], {"n": Int64}))

    async def both():
        await store.write_to_online_store_async("any", pd.DataFrame([{"user_id": "u", "at": NOW, "n": 7}]))
        answer = await store.get_online_features_async(["any:n"], entity_rows=[{"user_id": "u"}, {"user_id": "x"}])
        await store._get_provider().online_store.close()
        return answer.to_dict()["n"]

    assert asyncio.run(both()) == [7, None]
    assert asyncio.run(both()) == [7, None]  # in another event loop
    assert rows_of(store, "any", [{"user_id": "u"}], ["n"]) == [{"n": 7}]


def test_feasts_private_hook_is_the_one_we_override():
    """Red after a new Feast: read its online_store.py, then decision 0008."""
    assert version("feast").startswith("0.67.")
    for name in ("_read_features_per_fv", "_read_features_per_fv_async"):
        theirs, ours = (inspect.signature(getattr(store, name)) for store in (OnlineStore, PackedRedisOnlineStore))
        assert list(ours.parameters) == list(theirs.parameters)
        called = inspect.getsource(getattr(OnlineStore, "get_online_features" + "_async" * name.endswith("_async")))
        assert f"self.{name}(" in called


def test_all_views_of_a_request_are_one_round_trip(config, client):
    views = [
        view_of("one", [USER], {"a": Int64}),
        view_of("two", [USER, ITEM], {"b": Float64}),
        view_of("three", [ITEM], ALL_TYPES),
    ]
    store = opened(config, *views)
    store.write_to_online_store("one", pd.DataFrame([{"user_id": "u", "at": NOW, "a": 1}]))
    store.write_to_online_store("two", pd.DataFrame([{"user_id": "u", "item_id": "i2", "at": NOW, "b": 0.5}]))
    asked = {
        "features": ["one:a", "two:b", "three:text"],
        "entity_rows": {"user_id": ["u"] * 3, "item_id": ["i1", "i2", "i2"]},
    }

    async def read_twice():
        await store.get_online_features_async(**asked)
        before = client.info("stats")["total_reads_processed"]
        answer = await store.get_online_features_async(**asked)
        trips = client.info("stats")["total_reads_processed"] - before
        await store._get_provider().online_store.close()
        return answer.to_dict(), trips

    store.get_online_features(**asked)
    before = client.info("stats")["total_reads_processed"]
    answer = store.get_online_features(**asked).to_dict()
    assert client.info("stats")["total_reads_processed"] - before == 2  # INFO itself is the second read of the socket
    assert asyncio.run(read_twice()) == (answer, 2)
    assert (answer["a"], answer["b"], answer["text"]) == ([1, 1, 1], [None, 0.5, 0.5], [None] * 3)


def test_a_key_of_another_type_is_refused(config, client, settings):
    store = opened(config, view_of("two", [USER, ITEM], {"b": Float64}))
    client.set(row_key(settings.project, "two", "u"), b"no hash")
    with pytest.raises(ForeignRowError, match="WRONGTYPE"):
        rows_of(store, "two", [{"user_id": "u", "item_id": "i"}], ["b"])


def test_a_missing_or_null_entity_is_a_clear_error(config):
    store = opened(config, view_of("two", [USER, ITEM], {"b": Float64}))
    with pytest.raises(BadInputError, match="item_id is missing"):
        rows_of(store, "two", [{"user_id": "u"}], ["b"])
    with pytest.raises(BadInputError, match="item_id is null"):
        rows_of(store, "two", [{"user_id": "u", "item_id": None}], ["b"])


def test_two_entities_are_one_hash_per_first_entity_in_declared_order(config, client, settings):
    store = opened(config, view_of("visits", [USER, PLACE], {"n": Int64}))
    frame = pd.DataFrame([{"user_id": "u", "place_id": p, "at": NOW, "n": p * 10} for p in (1, 2)])
    store.write_to_online_store("visits", frame)
    assert client.hkeys(row_key(settings.project, "visits", "u")) == [b"1", b"2"]
    keys = [{"user_id": "u", "place_id": 2}, {"user_id": "x", "place_id": 1}, {"user_id": "u", "place_id": 1}]
    assert rows_of(store, "visits", keys, ["n"]) == [{"n": 20}, {"n": None}, {"n": 10}]


def test_push_does_not_replace_a_newer_row_and_replaces_an_equal_one(config):
    store = opened(config, view_of("plain", [USER], {"n": Int64}))

    def push(n, minutes):
        store.push("plain_push", pd.DataFrame([{"user_id": "u", "at": NOW - timedelta(minutes=minutes), "n": n}]))
        return rows_of(store, "plain", [{"user_id": "u"}], ["n"])[0]["n"]

    assert push(1, minutes=5) == 1
    assert push(2, minutes=9) == 1
    assert push(3, minutes=5) == 3
    assert push(4, minutes=1) == 4


def test_a_batch_with_several_rows_of_one_entity_keeps_the_newest(config):
    store = opened(config, view_of("plain", [USER], {"n": Int64}))
    frame = pd.DataFrame([{"user_id": "u", "at": NOW - timedelta(minutes=m), "n": m} for m in (3, 1, 2)])
    store.write_to_online_store("plain", frame)
    assert rows_of(store, "plain", [{"user_id": "u"}], ["n"]) == [{"n": 1}]


def test_rows_from_the_future_are_refused(config):
    store = opened(config, view_of("plain", [USER], {"n": Int64}))
    frame = pd.DataFrame([{"user_id": "u", "at": NOW + timedelta(hours=1), "n": 1}])
    with pytest.raises(BadInputError, match=r"plain is dated .* in the future"):
        store.write_to_online_store("plain", frame)


def test_materialize_writes_the_latest_rows_and_never_older_ones(config, settings):
    store = opened(config, view_of("plain", [USER], {"n": Int64}))
    times = [NOW - timedelta(minutes=m) for m in (30, 20, 10)]
    frame = pd.DataFrame({"user_id": ["a", "a", "b"], "at": times, "n": [1, 2, 3]})
    frame.to_parquet(settings.offline_dir / "plain.parquet", coerce_timestamps="us")
    store.push("plain_push", pd.DataFrame([{"user_id": "b", "at": NOW, "n": 4}]))
    store.materialize(NOW - timedelta(hours=1), NOW)
    assert rows_of(store, "plain", [{"user_id": "a"}, {"user_id": "b"}], ["n"]) == [{"n": 2}, {"n": 4}]


def some_state(view, seq, time_us):
    state = new_state(view, 1)
    state.ints[:, :2] = time_us, seq
    return state


def test_rows_of_the_fold_are_ordered_by_seq_and_the_header_values_are_features(config, settings, client):
    store = opened(config, fold_view(USER_STATS, USER))
    now_us = int(NOW.timestamp() * 1e6)
    state = some_state(USER_STATS, 2**60 + 1, now_us - 10)  # above 2^53, where Lua's numbers lose integers
    batch = ViewRows(USER_STATS.name, ["u"], pack_rows(USER_STATS, state.ints, state.floats))
    assert write_rows(client, settings.project, batch) == 1
    for seq, views, expected in ((2**60, 1, 0), (2**60 + 2, 2, 2), (None, 3, 2), (2**60 + 1, 4, 2)):
        values = {c.name: 0 if c.kind == "int64" else 0.5 for c in USER_STATS.columns}
        values |= {"user_id": "u", "at": NOW, "user_time": now_us, "user_seq": seq, "user_views": views}
        frame = pd.DataFrame([values]).astype({"user_seq": "Int64"})
        store.write_to_online_store(USER_STATS.name, frame)
        read = rows_of(store, USER_STATS.name, [{"user_id": "u"}], ["user_views", "user_seq", "user_time"])[0]
        assert read["user_views"] == expected
    assert read == {"user_views": 2, "user_seq": 2**60 + 2, "user_time": now_us}


def test_feast_and_the_packed_reader_see_the_same(config, settings, client):
    store = opened(config, fold_view(USER_ITEM, USER, ITEM))
    rng = np.random.default_rng(5)
    now_us = int(NOW.timestamp() * 1e6)
    items = ["a", "b", "ç"]
    state = new_state(USER_ITEM, len(items))
    state.ints[:, 2:] = np.where(rng.random((3, state.ints.shape[1] - 2)) < 0.3, NULL_INT, 2**53 + 7)
    state.floats[:] = np.where(rng.random(state.floats.shape) < 0.3, np.nan, rng.normal(size=state.floats.shape))
    state.ints[:, 0], state.ints[:, 1] = now_us, [1, 2, 3]
    packed = pack_rows(USER_ITEM, state.ints, state.floats)
    write_rows(client, settings.project, ViewRows(USER_ITEM.name, ["u"] * len(items), packed, items))
    asked = [*items, "unknown"]
    ours = OnlineReader(client, settings.project).pairs("u", asked, now_us)
    names = [c.name for c in USER_ITEM.columns]
    theirs = rows_of(store, USER_ITEM.name, [{"user_id": "u", "item_id": item} for item in asked], names)
    for i, row in enumerate(theirs):
        for name, value in row.items():
            column = ours.ints[:, USER_ITEM.ints.index(name)] if name in USER_ITEM.ints else ours.column(name)
            mine = None if column[i] == NULL_INT or np.isnan(column[i]) else column[i].item()
            assert value == mine, (i, name)
    assert not ours.present[3]


def test_rows_past_their_age_are_missing(config):
    day_us = 86_400_000_000
    store = opened(config, view_of("aging", [USER], {"n": Int64}, tags={"max_age_us": str(day_us)}))
    ages = {"old": timedelta(days=1, minutes=1), "young": timedelta(hours=23)}
    store.write_to_online_store(
        "aging", pd.DataFrame([{"user_id": user, "at": NOW - age, "n": 1} for user, age in ages.items()])
    )
    assert rows_of(store, "aging", [{"user_id": "old"}, {"user_id": "young"}], ["n"]) == [{"n": None}, {"n": 1}]


def test_a_changed_schema_is_refused_not_misread(config, client, settings):
    store = opened(config, view_of("plain", [USER], {"n": Int64}))
    store.write_to_online_store("plain", pd.DataFrame([{"user_id": "u", "at": NOW, "n": 1}]))
    changed = view_of("plain", [USER], {"m": Float64})
    store.apply([changed])
    online, asked = store._get_provider().online_store, {"features": ["plain:m"], "entity_rows": [{"user_id": "u"}]}
    key = EntityKey(join_keys=["user_id"], entity_values=[Value(string_val="u")])

    async def closing(read):
        try:
            return await read
        finally:
            await online.close()

    for read in (
        lambda: store.get_online_features(**asked),
        lambda: asyncio.run(closing(store.get_online_features_async(**asked))),
        lambda: online.online_read(store.config, changed, [key]),
        lambda: asyncio.run(closing(online.online_read_async(store.config, changed, [key]))),
    ):
        with pytest.raises(ForeignRowError, match="of plain"):
            read()
    reader = OnlineReader(client, settings.project)
    (rows,) = reader.read([RowsOf(FeastView(changed).layout, ["u"])], 0)
    assert (rows.present.tolist(), rows.values("m"), reader.malformed) == ([False], [None], 1)
    online.online_write_batch(store.config, changed, [(key, {"m": Value(double_val=0.5)}, NOW, None)], None)
    assert rows_of(store, "plain", [{"user_id": "u"}], ["m"]) == [{"m": 0.5}]


def test_a_view_of_ours_with_another_column_is_refused(config):
    store = opened(config, view_of("user_stats", [USER], {"user_views": String}))
    with pytest.raises(BadInputError, match="'user_views' of view 'user_stats' is string"):
        rows_of(store, "user_stats", [{"user_id": "u"}], ["user_views"])


def test_redis_away_is_one_clear_error(config, settings):
    store = opened(config, view_of("plain", [USER], {"n": Int64}))
    away = repo_config(replace(settings, redis_port=9, redis_timeout_ms=200))
    view, key = store.get_feature_view("plain"), EntityKey(join_keys=["user_id"], entity_values=[Value(string_val="u")])
    with pytest.raises(UnavailableError, match="Redis did not answer"):
        PackedRedisOnlineStore().online_read(away, view, [key])
    with pytest.raises(UnavailableError, match="Redis failed"):
        PackedRedisOnlineStore().online_write_batch(away, view, [(key, {"n": Value(int64_val=1)}, NOW, None)], None)


def test_scripts_flushed_in_between_are_loaded_again(client, settings):
    state = some_state(USER_STATS, 5, 1)
    row = pack_rows(USER_STATS, state.ints, state.floats)
    assert write_rows(client, settings.project, ViewRows(USER_STATS.name, ["u"], row)) == 1
    client.script_flush()
    assert write_rows(client, settings.project, ViewRows(USER_STATS.name, ["u"] * 500, row * 500)) == 500
