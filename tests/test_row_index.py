"""The index of rows: complete whatever wrote them, and all that listing and deleting looks at on a shared server."""

import random
import time
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource
from feast.types import Int64, String
from feast.value_type import ValueType
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from feature_repo.backfill import backfill
from feature_repo.errors import BadInputError, ConflictError
from feature_repo.ingest import IngestWorker
from feature_repo.materialize import materialize
from feature_repo.online_keys import base_key, checked_project, earlier_keys, events_key, row_key
from feature_repo.redis_scripts import connect
from feature_repo.row_index import delete_rows, entities_of
from feature_repo.row_scripts import ViewRows
from feature_repo.row_writer import write_rows
from feature_repo.store import apply, repo_config
from feature_repo.stream import append_events
from feature_repo.views import CATALOG_VIEW, FOLD_VIEWS, RECENT_VIEW
from tests.live_shop import import_history, random_event

NOW = datetime.now(UTC).replace(microsecond=0)
USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
OURS = [*(view.name for view in FOLD_VIEWS), RECENT_VIEW, CATALOG_VIEW]
ROW = bytes(24)
IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@pytest.fixture
def client(settings):
    with connect(settings, timeout_ms=5000) as client:
        yield client


def indexed(client, project, view) -> set[str]:
    return {entity for part in entities_of(client, project, view) for entity in part}


def stored(client, project, view) -> set[str]:
    """First entities of the rows there are, by looking at every key of the server."""
    prefix = row_key(project, view, "")[:-1]
    return {key.removeprefix(prefix)[:-1].decode() for key in client.keys("*") if key.startswith(prefix)}


def commands(client) -> set[str]:
    return {name.removeprefix("cmdstat_") for name in client.info("commandstats")}


@examples(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(IDS, IDS), max_size=30), st.booleans())
def test_every_written_row_is_in_the_index_and_deletable(client, settings, pairs, hashes):
    client.flushall()
    first = [user for user, _ in pairs]
    second = [item for _, item in pairs] if hashes else None
    write_rows(client, settings.project, ViewRows("v", first, [ROW] * len(pairs), second))
    write_rows(client, settings.project, ViewRows("w", first, [ROW] * len(pairs), second))
    assert indexed(client, settings.project, "v") == set(first) == stored(client, settings.project, "v")
    assert delete_rows(client, settings.project, "v") == len(set(first))
    assert stored(client, settings.project, "v") == indexed(client, settings.project, "v") == set()
    assert stored(client, settings.project, "w") == set(first)
    delete_rows(client, settings.project, "w")
    assert client.dbsize() == 0


def test_rows_of_ingest_and_materialise_are_in_the_index_and_an_import_of_other_data_removes_them(settings, client):
    rng = random.Random(3)
    now_us = time.time_ns() // 1000
    import_history(settings, [random_event(rng, f"h{i}", now_us - 10**11 + i) for i in range(60)])
    backfill(settings, full=True)
    materialize(settings)
    append_events(client, settings.project, [random_event(rng, f"l{i}", now_us) for i in range(200)], now_us // 1000)
    worker = IngestWorker(settings, client)
    worker.start()
    while worker.step():
        pass
    worker.flush()
    worker.close()
    for view in OURS:
        rows = stored(client, settings.project, view)
        assert rows
        assert indexed(client, settings.project, view) == rows, view
    client.set(base_key(settings.project), "other data")
    backfill(settings, full=True)
    write_rows(client, settings.project, ViewRows(OURS[0], ["gone"], [ROW]))
    assert materialize(settings).rebuilt
    assert "gone" not in indexed(client, settings.project, OURS[0])
    assert not client.exists(row_key(settings.project, OURS[0], "gone"))


def test_rows_that_only_ingest_wrote_are_in_the_index(settings, client):
    rng = random.Random(4)
    now_us = time.time_ns() // 1000
    worker = IngestWorker(settings, client)
    worker.start()
    for n in range(3):
        events = [random_event(rng, f"e{n}.{i}", now_us) for i in range(40)]
        append_events(client, settings.project, events, now_us // 1000)
        while worker.step():
            pass
        for view in OURS[:-1]:
            assert indexed(client, settings.project, view) == stored(client, settings.project, view), view
    worker.close()


def test_removing_a_view_and_teardown_look_at_nothing_else_on_the_server(settings, client):
    settings.offline_dir.mkdir(parents=True)
    views = [view_of(settings, name) for name in ("one", "two")]
    store = FeatureStore(config=repo_config(settings))
    store.apply([USER, *views])
    for name in ("one", "two"):
        frame = pd.DataFrame([{"user_id": f"u{i}*?[", "at": NOW, "n": i} for i in range(700)])
        store.write_to_online_store(name, frame)
    others = [b"other", events_key(settings.project).encode(), f"{settings.project}x:fs:one:{{u}}".encode()]
    for key in others:
        client.set(key, b"stays")
    client.execute_command("DEBUG", "POPULATE", "200000", "another", "10")
    client.config_resetstat()
    store.apply([USER, views[1]], objects_to_delete=[store.get_feature_view("one")], partial=False)
    assert not client.exists(row_key(settings.project, "one", "u0*?["))
    assert client.exists(row_key(settings.project, "two", "u0*?["))
    store.teardown()
    used = commands(client)
    assert client.dbsize() == 200_000 + len(others)
    assert all(client.get(key) == b"stays" for key in others)
    assert not used & {"scan", "keys", "flushdb", "flushall", "randomkey"}


def view_of(settings, name) -> FeatureView:
    path = settings.offline_dir / f"{name}.parquet"
    columns = {"user_id": pd.Series([], dtype=str), "at": pd.Series([], dtype="datetime64[us, UTC]")}
    pd.DataFrame(columns).to_parquet(path)
    source = FileSource(name=f"{name}_file", path=str(path), timestamp_field="at")
    return FeatureView(
        name=name,
        entities=[USER],
        schema=[Field(name="user_id", dtype=String), Field(name="n", dtype=Int64)],
        source=PushSource(name=f"{name}_push", batch_source=source),
        ttl=timedelta(0),
    )


@pytest.mark.parametrize("n", range(4))
def test_rows_of_a_version_without_an_index_are_refused_by_all_that_would_pass_over_them(settings, client, n):
    client.set(earlier_keys(settings.project)[n], "1")
    import_history(settings, [random_event(random.Random(1 + i), f"h{i}", 10**15 + i) for i in range(9)])
    backfill(settings, full=True)
    store = apply(settings)
    with pytest.raises(ConflictError, match="an earlier version of Larder wrote"):
        materialize(settings)
    worker = IngestWorker(settings, client)
    with pytest.raises(ConflictError, match="an earlier version of Larder wrote"):
        worker.start()
    with pytest.raises(ConflictError, match="an earlier version of Larder wrote"):
        store.teardown()


@pytest.mark.parametrize("name", ["", "a:b", "a{b", "a}b"])
def test_project_names_that_would_break_keys_are_refused(name):
    with pytest.raises(BadInputError, match="cannot be used"):
        checked_project(name)
