"""How much memory Redis uses: asked where that is allowed; of a cluster, see test_redis_cluster.py."""

from __future__ import annotations

import redis

from feature_repo.ingest import IngestWorker
from feature_repo.redis_memory import memory_use
from feature_repo.settings import Settings
from larder.services.ports import HOST


def test_it_is_what_redis_says(settings: Settings) -> None:
    with redis.Redis(HOST, settings.redis_port) as client:
        used, machine = memory_use(client)
        assert 1e5 < used < machine
        client.config_set("maxmemory", 70_000_000)
        try:
            assert memory_use(client)[1] == 70_000_000
        finally:
            client.config_set("maxmemory", 0)


def test_a_user_who_may_not_ask_stops_no_worker(settings: Settings) -> None:
    with redis.Redis(HOST, settings.redis_port) as client:
        client.acl_setuser("shop", enabled=True, nopass=True, categories=["+@all"], commands=["-info"], keys=["*"])
        try:
            with redis.Redis(HOST, settings.redis_port, username="shop", password="any") as limited:
                worker = IngestWorker(settings, limited)
                worker.start()
                worker.close()
        finally:
            client.acl_deluser("shop")
    assert (worker.status.redis_used_bytes, worker.status.redis_limit_bytes) == (0, 0)
