"""Random tables read in every way: through Feast from our store and from Feast's own Redis store (the oracle), sync and
async, and by the packed readers. Values, nulls and event times are the same, for every type Feast has.
"""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from feast import FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.entity import Entity
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Map, Value
from feast.types import (
    VALUE_TYPES_TO_FEAST_TYPES,
    Array,
    Int64,
    Set,
    String,
    Struct,
)
from feast.value_type import ValueType
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo.online_reader import AsyncOnlineReader, OnlineReader
from feature_repo.protobuf_rows import FeastView
from feature_repo.read_request import RowsOf, field_of
from feature_repo.redis_scripts import connect, connect_async
from feature_repo.store import repo_config
from feature_repo.views import NULL_INT

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW_US = 1_750_000_000_000_000

# -- Types: every one of Feast's, with a strategy for its protobuf.

SCALARS = {
    "int32_val": st.integers(-(2**31), 2**31 - 1),
    "int64_val": st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, 0, 127, 128]),
    "unix_timestamp_val": st.integers(-(2**63), 2**63 - 1),
    "double_val": st.floats() | st.sampled_from([5e-324, -0.0]),
    "float_val": st.floats(width=32),
    "bool_val": st.booleans(),
    "string_val": st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    "bytes_val": st.binary(max_size=6),
}
TEXTS = SCALARS["string_val"]
ONE_VALUE = st.one_of(*(st.builds(Value, **{name: values}) for name, values in SCALARS.items()))
MAPS = st.builds(Map, val=st.dictionaries(TEXTS, ONE_VALUE, max_size=3))
LISTS = st.builds(
    lambda numbers, texts: [Value(int64_list_val={"val": numbers}), Value(string_list_val={"val": texts})],
    st.lists(SCALARS["int64_val"], max_size=3),
    st.lists(TEXTS, max_size=3),
)
#: Field of `Value` for types whose values need more than scalars, with the content.
SPECIAL = {
    "map_val": MAPS,
    "struct_val": MAPS,
    "map_list_val": st.builds(lambda maps: {"val": maps}, st.lists(MAPS, max_size=2)),
    "struct_list_val": st.builds(lambda maps: {"val": maps}, st.lists(MAPS, max_size=2)),
    "list_val": st.builds(lambda values: {"val": values}, LISTS),
    "set_val": st.builds(lambda values: {"val": values}, LISTS),
    "zoned_timestamp_val": st.fixed_dictionaries(
        {"unix_timestamp": SCALARS["int64_val"], "zone": st.sampled_from(["UTC", "Europe/Berlin"])}
    ),
    "scalar_map_val": st.builds(
        lambda values: {"val": [{"key": {"int64_key": key}, "value": value} for key, value in values.items()]},
        st.dictionaries(SCALARS["int64_val"], ONE_VALUE, max_size=2),
    ),
}
DTYPES = {
    value_type.name.lower(): dtype for value_type, dtype in VALUE_TYPES_TO_FEAST_TYPES.items() if value_type.value
}
DTYPES |= {
    "struct": Struct({"a": Int64, "b": String}),
    "struct_list": Array(Struct({"a": Int64})),
    "value_list": Array(Array(Int64)),
    "value_set": Set(Array(Int64)),
}


def proto_field(name):
    base = {"pdf_bytes": "bytes", "image_bytes": "bytes", "value_list": "list", "value_set": "set"}.get(name, name)
    return f"{base}_val"


def values_of(name):
    """Strategy of a type's protobuf values; None is a null."""
    field = proto_field(name)
    element = field.removesuffix("_val").removesuffix("_list").removesuffix("_set")
    scalar = SCALARS.get(f"{element}_val", TEXTS)  # UUID, decimal and JSON are texts
    if field in SPECIAL:
        content = SPECIAL[field]
    elif field.endswith(("_list_val", "_set_val")):
        content = st.builds(lambda values: {"val": values}, st.lists(scalar, max_size=3))
    else:
        content = scalar
    return st.none() | content.map(lambda value: Value(**{field: value}))


# -- Views: one, two and three entities; more than 64 fields; every type.

USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
ITEM = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
SHOP = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
#: Join key to its field of `Value` and the entities that may have rows; one more is never written.
KEYS = {
    "user_id": ("string_val", ["u", "ü:1", "", "1"]),
    "item_id": ("int64_val", [1, -2]),
    "shop_id": ("string_val", ["s", "1:s"]),
}
NEVER = {"user_id": "nobody", "item_id": 9, "shop_id": "none"}
LISTS_OF = [name for name in DTYPES if name.endswith("_list")]
SCALARS_OF = [name for name in DTYPES if f"{name}_val" in SCALARS]
OTHERS = [name for name in DTYPES if name not in {*LISTS_OF, *SCALARS_OF}]


def view_of(name, entities, types):
    keys = [Field(name=e.join_key, dtype=Int64 if e is ITEM else String) for e in entities]
    fields = [Field(name=feature, dtype=DTYPES[type_name]) for feature, type_name in types.items()]
    source = FileSource(name=f"{name}_file", path=f"{name}.parquet", timestamp_field="at")
    return FeatureView(name=name, entities=entities, schema=[*keys, *fields], source=source, ttl=timedelta(0))


#: By view: the type of each feature.
TYPES = {
    "plain": {f"plain_{name}": name for name in SCALARS_OF},
    "lists": {f"lists_{name}": name for name in LISTS_OF},
    "others": {f"others_{name}": name for name in OTHERS},
    "wide": {f"wide_{i}": "double" if i % 9 == 0 else "int64" for i in range(75)},
}
ENTITIES = {"plain": [USER], "lists": [USER, ITEM], "others": [USER, SHOP, ITEM], "wide": [ITEM]}
VIEWS = [view_of(name, ENTITIES[name], types) for name, types in TYPES.items()]


@st.composite
def tables(draw):
    """Rows of some views, each with its key, values by feature (None is null) and event time (µs)."""
    rows = []
    for view in VIEWS:
        entities = st.tuples(*(st.sampled_from(KEYS[key][1]) for key in view.join_keys))
        for key in draw(st.lists(entities, max_size=3, unique=True)):
            # Half the cells are null, so that examples stay small.
            types = TYPES[view.name]
            features = draw(st.lists(st.sampled_from(list(types)), unique=True, max_size=len(types) // 2 + 1))
            values = {feature: draw(values_of(types[feature])) for feature in features}
            rows.append((view, key, values, draw(st.integers(0, NOW_US))))
    return rows


ASKED = st.lists(
    st.fixed_dictionaries({key: st.sampled_from([*values, NEVER[key]]) for key, (_, values) in KEYS.items()}),
    min_size=1,
    max_size=5,
)


def key_of(view, key):
    values = [Value(**{KEYS[name][0]: value}) for name, value in zip(view.join_keys, key, strict=True)]
    return EntityKey(join_keys=view.join_keys, entity_values=values)


def write(store, rows):
    online = store._get_provider().online_store
    for view, key, values, time_us in rows:
        row = {field.name: values.get(field.name) or Value() for field in view.features}
        at = EPOCH + timedelta(microseconds=time_us)
        online.online_write_batch(store.config, view, [(key_of(view, key), row, at, None)], None)


def answer_of(response):
    """Feature to its cells: (value, event time), as bytes, because NaN is not NaN."""
    return {
        name: [
            (value.SerializeToString(deterministic=True), at.ToMicroseconds())
            for value, at in zip(vector.values, vector.event_timestamps, strict=True)
        ]
        for name, vector in zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True)
    }


@pytest.fixture
def stores(settings):
    """Our store and Feast's own Redis store, on one server, as two projects."""
    ours = repo_config(settings)
    oracle = repo_config(replace(settings, project=f"{settings.project}_stock"))
    stock = RepoConfig(
        project=oracle.project,
        provider="local",
        registry=oracle.registry_config,
        online_store={"type": "redis", "connection_string": f"127.0.0.1:{settings.redis_port}"},
        offline_store=oracle.offline_store.model_dump(),
        entity_key_serialization_version=3,
    )
    opened = []
    for config in (ours, stock):
        (settings.home / config.project).mkdir(parents=True, exist_ok=True)
        store = FeatureStore(config=config)
        store.apply([USER, ITEM, SHOP, *VIEWS])
        opened.append(store)
    return opened


def packed_cells(rows, feature, type_name):
    """What the packed read says of a feature, in the form of `answer_of`."""
    field, cells = proto_field(type_name), []
    for value, time, present in zip(rows.values(feature), rows.time.tolist(), rows.present.tolist(), strict=True):
        if value is None:
            proto = Value()
        elif rows.packed.layout.kinds[feature] == "value":  # kept as protobuf
            proto = Value.FromString(value)
        else:
            proto = Value(**{field: {"val": list(value)} if field.endswith("_list_val") else value})
        cells.append((proto.SerializeToString(deterministic=True), time if present else 0))
    return cells


def requests_of(asked):
    """The packed read's requests for the same rows, one per view."""
    requests = []
    for view in VIEWS:
        first, *further = ([str(row[key]) for row in asked] for key in view.join_keys)
        fields = [field_of(texts) for texts in zip(*further, strict=True)] if further else None
        requests.append(RowsOf(FeastView(view).layout, first, fields))
    return requests


def test_every_way_to_read_a_random_table_gives_the_same(stores, settings):
    names = [f"{view.name}:{field.name}" for view in VIEWS for field in view.features]
    ours_online, stock_online = (store._get_provider().online_store for store in stores)

    @hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(tables(), ASKED, st.lists(st.sampled_from(names), min_size=1, max_size=30, unique=True))
    def check(rows, asked, features):
        client.flushdb()
        for store in stores:
            write(store, rows)
        read = [store.get_online_features(features, asked) for store in stores]
        read += [runner.run(store.get_online_features_async(features, asked)) for store in stores]
        mine, expected, mine_async, expected_async = map(answer_of, read)
        assert mine == expected
        assert mine_async == expected_async == expected
        requests = requests_of(asked)
        packed, packed_async = reader.read(requests, NOW_US), runner.run(async_reader.read(requests, NOW_US))
        for view, one, other in zip(VIEWS, packed, packed_async, strict=True):
            assert one.packed.words.tobytes() == other.packed.words.tobytes()
            assert (one.seq == np.where(one.present, 0, NULL_INT)).all()
            for feature, type_name in TYPES[view.name].items():
                if f"{view.name}:{feature}" in features:
                    assert packed_cells(one, feature, type_name) == expected[feature], feature
        assert reader.malformed == async_reader.malformed == 0

    with connect(settings) as client, asyncio.Runner() as runner:
        reader = OnlineReader(client, settings.project)
        async_client = connect_async(settings)
        async_reader = AsyncOnlineReader(async_client, settings.project)
        try:
            check()
        finally:
            runner.run(async_client.aclose())
            runner.run(ours_online.close())
            runner.run(stock_online._client_async.aclose())
            stock_online._client.close()


def test_where_feasts_own_store_is_not_exact_ours_is(stores):
    """The exceptions from "the same", listed in docs/packed-rows.md."""
    ours, stock = stores
    view, at = VIEWS[0], datetime(1400, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    row = {field.name: Value() for field in view.features} | {"plain_string": Value(null_val=0)}
    read = []
    for store in stores:
        online = store._get_provider().online_store
        online.online_write_batch(store.config, view, [(key_of(view, ("u",)), row, at, None)], None)
        read.append(store.get_online_features(["plain:plain_string"], [{"user_id": "u"}, {"user_id": "nobody"}]))
    mine, theirs = (response.proto.results[1] for response in read)
    # Feast's store takes times through float seconds: microseconds are lost far from 1970.
    assert mine.event_timestamps[0].ToMicroseconds() == (at - EPOCH) // timedelta(microseconds=1)
    assert theirs.event_timestamps[0].ToMicroseconds() != mine.event_timestamps[0].ToMicroseconds()
    # It reports an entity without a row as present, and hands out a stored protobuf null as the number 0.
    assert [FieldStatus.Name(status) for status in mine.statuses] == ["PRESENT", "NOT_FOUND"]
    assert [FieldStatus.Name(status) for status in theirs.statuses] == ["PRESENT", "PRESENT"]
    assert [response.to_dict()["plain_string"] for response in read] == [[None, None], [0, None]]
    asyncio.run(ours._get_provider().online_store.close())
    stock._get_provider().online_store._client.close()
