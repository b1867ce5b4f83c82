"""A real Redis Cluster of three nodes: rows, reads, materialise, events, ingest, and a worker killed half-way."""

import asyncio
import random
import subprocess
import time
from dataclasses import replace

import pandas as pd
import pytest
import redis

from feature_repo.backfill import backfill
from feature_repo.ingest import IngestWorker
from feature_repo.materialize import materialize
from feature_repo.online_keys import watermark_key
from feature_repo.online_reader import AsyncOnlineReader
from feature_repo.redis_memory import memory_use
from feature_repo.redis_scripts import connect, connect_async
from feature_repo.row_index import entities_of
from feature_repo.row_scripts import ViewRows
from feature_repo.row_writer import write_rows
from feature_repo.settings import Settings
from feature_repo.store import apply
from feature_repo.stream import append_events
from feature_repo.views import USER_STATS
from larder.services.ports import HOST, any_free_port, is_free
from larder.services.redis_server import find_redis_server
from tests.live_shop import ITEMS, USERS, assert_online_equals_offline, import_history, random_event

SLOTS = 16_384


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Ports of three masters, each with a third of the slots."""
    ports, processes = [], []
    try:
        for _ in range(3):
            port, process = start_node(tmp_path_factory)
            ports.append(port)
            processes.append(process)
        for n, port in enumerate(ports):
            with redis.Redis(HOST, port, socket_timeout=5) as node:
                node.execute_command("CLUSTER ADDSLOTS", *range(n * SLOTS // 3, (n + 1) * SLOTS // 3))
                node.execute_command("CLUSTER MEET", "127.0.0.1", ports[0])
        for port in ports:
            with redis.Redis(HOST, port, socket_timeout=5) as node:
                wait_until(lambda node=node: b"cluster_state:ok" in state(node) and b"known_nodes:3" in state(node))
        yield ports
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def start_node(tmp_path_factory, tries=20) -> tuple[int, subprocess.Popen]:
    """Start a node on a free port whose bus, 10,000 ports on, was free as well: another process may take it first."""
    executable, _ = find_redis_server()
    for _ in range(tries):
        port, directory = any_free_port(), tmp_path_factory.mktemp("node")
        if port > 55_000 or not is_free(port + 10_000):
            continue
        options = f"--bind {HOST} --port {port} --dir {directory} --logfile log --cluster-enabled yes --save".split()
        process = subprocess.Popen([executable, *options, ""])
        with redis.Redis(HOST, port, socket_timeout=5) as client:
            wait_until(lambda client=client, process=process: process.poll() is not None or answers(client))
        if process.poll() is None:
            return port, process
        print((directory / "log").read_text())
    raise AssertionError(f"no node of a cluster could be started in {tries} tries")


def state(node) -> bytes:
    raw = node.execute_command("CLUSTER INFO")
    return raw if isinstance(raw, bytes) else "".join(f"{k}:{v}\n" for k, v in raw.items()).encode()


def answers(node) -> bool:
    try:
        return bool(node.ping())
    except redis.ConnectionError:
        return False


def wait_until(is_so) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def on_cluster(nodes, tmp_path) -> Settings:
    for port in nodes:
        with redis.Redis(HOST, port) as node:
            node.flushall()
    return Settings(
        home=tmp_path / "home", project="shop", redis_port=nodes[0], redis_cluster=True, redis_timeout_ms=5000
    )


@pytest.fixture
def client(on_cluster):
    with connect(on_cluster, timeout_ms=5000) as client:
        yield client


def now_us() -> int:
    return time.time_ns() // 1000


def drained(settings, client) -> None:
    worker = IngestWorker(settings, client)
    worker.start()
    while worker.step():
        pass
    worker.flush()
    worker.close()


def test_memory_is_that_of_the_fullest_server(client, nodes):
    with redis.Redis(HOST, nodes[1]) as node:
        node.config_set("maxmemory", 50_000_000)
        try:
            used, limit = memory_use(client)
        finally:
            node.config_set("maxmemory", 0)
    assert limit == 50_000_000
    assert 0 < used < limit


def with_history(settings) -> None:
    rng, start = random.Random(1), now_us() - 10**11
    import_history(settings, [random_event(rng, f"h{i}", start + i * 10**6) for i in range(60)])
    backfill(settings, full=True)
    materialize(settings)


def append(settings, client, seed, n=40) -> None:
    rng, now = random.Random(seed), now_us()
    append_events(client, settings.project, [random_event(rng, f"e{seed}.{i}", now) for i in range(n)], now // 1000)


def test_rows_are_on_all_nodes_and_the_features_are_the_offline_ones(on_cluster, client, nodes):
    with_history(on_cluster)
    for seed in (2, 3):
        append(on_cluster, client, seed)
        drained(on_cluster, client)
    assert_online_equals_offline(on_cluster, client, now_us())
    names = [f"e{i}" for i in range(300)]
    assert write_rows(client, on_cluster.project, ViewRows("v", names, [bytes(24)] * 300)) == 300
    for port in nodes:
        with redis.Redis(HOST, port) as node:
            assert node.dbsize() > 50
    assert {e for part in entities_of(client, on_cluster.project, USER_STATS.name) for e in part} >= set(USERS)

    async def read():
        async with connect_async(on_cluster) as loop_client:
            return await AsyncOnlineReader(loop_client, on_cluster.project).read_items(ITEMS)

    rows, catalog = asyncio.run(read())
    assert rows.present.all()
    assert [item.title for item in catalog] == [f"Title {item}" for item in ITEMS]


def test_feasts_api_works_and_teardown_removes_the_rows(on_cluster, client):
    with_history(on_cluster)
    store = apply(on_cluster)
    asked = [{"item_id": item} for item in [*ITEMS, "unknown"]]
    before = store.get_online_features(
        ["item_stats:item_views", "item_catalog:item_title"], entity_rows=asked
    ).to_dict()
    assert before["item_title"] == [*(f"Title {item}" for item in ITEMS), None]
    store.materialize(pd.Timestamp("2000-01-01", tz="UTC"), pd.Timestamp.now("UTC"))
    assert store.get_online_features(list_of(before), entity_rows=asked).to_dict() == before

    async def read():
        answer = await store.get_online_features_async(list_of(before), entity_rows=asked)
        await store._get_provider().online_store.close()
        return answer.to_dict()

    assert asyncio.run(read()) == before
    store.teardown()
    left = {key for key in client.keys("*", target_nodes=redis.RedisCluster.ALL_NODES) if not key.startswith(b"{")}
    assert not left


def list_of(answer) -> list[str]:
    return [
        f"{'item_catalog' if name == 'item_title' else 'item_stats'}:{name}" for name in answer if name != "item_id"
    ]


class Killed(BaseException):
    """What a kill -9 leaves behind: nothing is done any more."""


@pytest.mark.parametrize("after", [1, 4, 8, 12])
def test_a_worker_killed_half_way_through_a_batch_leaves_nothing_counted_twice(on_cluster, client, monkeypatch, after):
    """Ends the worker's work after some of the batch's commands have reached some of the slots."""
    with_history(on_cluster)
    append(on_cluster, client, 5)
    with connect(on_cluster, timeout_ms=5000) as dying:
        worker = IngestWorker(on_cluster, dying)
        worker.start()
        sent = [0]
        pipeline_of, execute = dying.pipeline, dying.execute_command

        def pipeline(*args, **kwargs):
            made = pipeline_of(*args, **kwargs)
            queue = made.execute_command

            def one_by_one(*words, **options):
                if words[0] != "EVALSHA":
                    return queue(*words, **options)
                if sent[0] == after:
                    raise Killed
                sent[0] += 1
                execute(*words)  # at once: the later ones of the pipeline never come
                return queue(*words, **options)

            made.execute_command = one_by_one
            return made

        monkeypatch.setattr(dying, "pipeline", pipeline)
        place = client.get(watermark_key(on_cluster.project))
        with pytest.raises(Killed):
            worker.step()
        worker.close()
    assert client.get(watermark_key(on_cluster.project)) == place
    append(on_cluster, client, 6)
    drained(on_cluster, client)
    assert_online_equals_offline(on_cluster, client, now_us())


def test_a_second_worker_is_fenced_off(on_cluster, client):
    with_history(on_cluster)
    append(on_cluster, client, 7)
    worker = IngestWorker(on_cluster, client)
    worker.start()
    with connect(replace(on_cluster, home=on_cluster.home / "other"), timeout_ms=5000) as other:
        other.set(watermark_key(on_cluster.project), 2**62)
        with pytest.raises(Exception, match="moved the watermark"):
            worker.step()
    worker.close()
