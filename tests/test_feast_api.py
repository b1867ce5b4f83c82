"""All of Feast's API on our stores, over a real project: from `apply` to a real `feast serve` process over HTTP."""

import asyncio
import os
import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pandas as pd
import pytest
from feast import FeatureView, Field, FileSource, PushSource
from feast.types import Array, Float64, Int64, String

from feature_repo import feature_definitions
from feature_repo.asof import AsOfReader
from feature_repo.backfill import backfill
from feature_repo.online_reader import OnlineReader
from feature_repo.redis_scripts import connect
from feature_repo.services import FEATURE_LISTS
from feature_repo.store import REPOSITORY, apply, feast_environment
from feature_repo.views import DAY_US
from larder.services.ports import any_free_port
from tests.live_shop import ITEMS, USERS, assert_rows_equal, import_history, random_event
from tests.running_api import wait_until

NOW = datetime.now(UTC).replace(microsecond=0)


def supplier_view(settings):
    """A view that a data scientist adds to the project: pushed, with a batch source beside it."""
    path = settings.offline_dir / "supplier.parquet"
    rows = [{"item_id": "i1", "at": NOW - timedelta(hours=2), "cost": 1.5, "tags": ["a"], "stock": 3}]
    pd.DataFrame(rows).to_parquet(path, coerce_timestamps="us")
    source = FileSource(name="supplier_file", path=str(path), timestamp_field="at")
    return FeatureView(
        name="supplier",
        entities=[feature_definitions.item],
        schema=[
            Field(name="item_id", dtype=String),
            Field(name="cost", dtype=Float64),
            Field(name="tags", dtype=Array(String)),
            Field(name="stock", dtype=Int64),
        ],
        source=PushSource(name="supplier_push", batch_source=source),
        ttl=timedelta(0),
    )


@pytest.fixture
def store(settings):
    """The project's store: real history, all of Larder's views and one more, materialised by Feast itself."""
    rng, end_us = random.Random(3), int((NOW - timedelta(hours=1)).timestamp() * 1e6)
    times = sorted(end_us - rng.randrange(20 * DAY_US) for _ in range(120))
    import_history(settings, [random_event(rng, f"e{i}", time_us) for i, time_us in enumerate(times)])
    backfill(settings)
    store = apply(settings)
    store.apply([supplier_view(settings)], partial=True)
    store.materialize(NOW - timedelta(days=60), NOW)
    yield store
    asyncio.run(store._get_provider().online_store.close())


ASKED = {
    "features": [
        "user_stats:user_views", "user_item_interactions:pair_views", "item_catalog:item_title", "supplier:cost",
        "supplier:tags", "supplier:stock", "user_recent_items:recent_item_ids",
    ],
    "entity_rows": {"user_id": ["ann", "ann", "çem", "nobody"], "item_id": ["i1", "ï4", "i1", "?"]},
}  # fmt: skip


def supplier_row(**fields):
    row = {"item_id": "i1", "at": NOW, "cost": 9.0, "tags": [], "stock": 1} | fields
    return pd.DataFrame([row]).astype({"stock": "Int64"})


def test_what_feast_materializes_is_what_our_readers_read(store, settings):
    now_us = int(NOW.timestamp() * 1e6)
    offline = AsOfReader(settings, now_us)
    with connect(settings) as client:
        online = OnlineReader(client, settings.project)
        for user in [*USERS, "nobody"]:
            ours, theirs = online.user(user, now_us), offline.user(user, now_us)
            assert_rows_equal(ours.stats, theirs.stats)
            assert ours.recent.item_ids == theirs.recent.item_ids
            assert_rows_equal(online.pairs(user, ITEMS, now_us), offline.pairs(user, ITEMS, now_us))
            assert user == "nobody" or ours.stats.present.all()
    answer = store.get_online_features(**ASKED).to_dict()
    assert answer["cost"] == [1.5, None, 1.5, None]
    assert answer["item_title"] == ["Title i1", "Title ï4", "Title i1", None]
    store.materialize_incremental(NOW)  # nothing is newer: nothing changes
    assert store.get_online_features(**ASKED).to_dict() == answer
    assert len({*answer}) == len(ASKED["features"]) + 2


def test_push_and_write_in_every_way_show_at_once(store):
    def read():
        answer = store.get_online_features(**ASKED).to_dict()
        return answer["cost"][0], answer["tags"][0], answer["stock"][0]

    assert read() == (1.5, ["a"], 3)
    store.push("supplier_push", supplier_row(at=NOW - timedelta(minutes=9)))
    assert read() == (9.0, [], 1)
    store.write_to_online_store(
        "supplier", supplier_row(at=NOW - timedelta(minutes=8), cost=8.0, tags=["ü", ""], stock=None)
    )
    assert read() == (8.0, ["ü", ""], None)

    async def push_and_read():
        await store.push_async("supplier_push", supplier_row(at=NOW - timedelta(minutes=7), cost=7.0))
        await store.write_to_online_store_async("supplier", supplier_row(at=NOW - timedelta(days=1), cost=0.0))
        answer = await store.get_online_features_async(**ASKED)
        await store._get_provider().online_store.close()
        return answer.to_dict()

    assert asyncio.run(push_and_read()) == store.get_online_features(**ASKED).to_dict()
    assert read() == (7.0, [], 1)  # the row dated a day back did not replace a newer one
    store.materialize(NOW - timedelta(days=60), NOW)
    assert read() == (7.0, [], 1)


def by_name(answer):
    """Feature to values, from what `feast serve` answers."""
    names, results = answer["metadata"]["feature_names"], answer["results"]
    return {name: result["values"] for name, result in zip(names, results, strict=True)}


@pytest.fixture
def server(store, settings, tmp_path):
    """A client of `feast -c feature_repo serve`, a process of its own; its workers end with it."""
    port, log = any_free_port(), (tmp_path / "serve.log").open("w+")
    command = [sys.executable, "-W", "ignore", "-m", "feast.cli.cli", "-c", str(REPOSITORY)]
    command += ["serve", "--host", "127.0.0.1", "--port", str(port), "--no-access-log"]
    process = subprocess.Popen(command, env=os.environ | feast_environment(settings), stdout=log, stderr=log)

    def ready():
        assert process.poll() is None, log.seek(0) or log.read()
        try:
            return client.get("/health").status_code == 200
        except httpx.TransportError:
            return time.sleep(0.2)

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        try:
            wait_until(ready, 240)  # a loaded machine imports Feast for a minute
            yield client
        finally:
            process.terminate()
            process.wait(30)
            log.close()


def test_feast_serve_answers_over_http_as_the_store_does_in_process(store, server):
    def ask(**body):
        answer = server.post("/get-online-features", json=body)
        assert answer.status_code == 200, answer.text
        return by_name(answer.json())

    body = {"features": ASKED["features"], "entities": ASKED["entity_rows"]}
    assert ask(**body) == store.get_online_features(**ASKED).to_dict()
    entities = {"user_id": ["ann", "bob"], "item_id": ["i1", "i2"], "category": ["tea", "tea"]}
    entities["now_us"] = [int(NOW.timestamp() * 1e6)] * 2
    ranking = ask(feature_service="ranking_v1", entities=entities)
    here = store.get_online_features(store.get_feature_service("ranking_v1"), entities).to_dict()
    for name in FEATURE_LISTS["ranking_v1"]:
        over_http = [float("nan") if value is None else float(value) for value in ranking[name]]
        np.testing.assert_array_equal(np.array(over_http, np.float32), np.array(here[name], np.float32), err_msg=name)
    frame = supplier_row(at=NOW - timedelta(minutes=5), cost=4.25, tags=["x"])
    pushed = {name: column.astype(str).tolist() if name == "at" else column.tolist() for name, column in frame.items()}
    answer = server.post("/push", json={"push_source_name": "supplier_push", "df": pushed, "to": "online"})
    assert answer.status_code == 200, answer.text
    assert ask(**body)["cost"][0] == 4.25
    written = pushed | {"at": [str(NOW - timedelta(minutes=4))], "cost": [5.5]}
    answer = server.post("/write-to-online-store", json={"feature_view_name": "supplier", "df": written})
    assert answer.status_code == 200, answer.text
    assert ask(**body) == store.get_online_features(**ASKED).to_dict()
    assert ask(**body)["cost"][0] == 5.5
