"""A request's time counts from its arrival: waits end before it is over, which alone is no failure of Redis."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
import redis

from feature_repo.errors import UnavailableError
from larder.services.ports import HOST
from serving.redis_client import RedisGuard
from tests.fault_proxy import Proxy
from tests.running_api import RunningApi, open_shop, wait_until


def test_a_slow_read_ends_with_the_request(settings):
    with redis.Redis(HOST, settings.redis_port) as client, Proxy(settings.redis_port) as proxy:
        open_shop(settings, client)
        own = replace(settings, redis_port=proxy.port, request_budget_ms=120)
        with RunningApi(own) as api:
            wait_until(lambda: api.ready()["status"] == "ready")
            assert wait_until(lambda: api.recommend("u00003", k=5))["level"] == "full"
            proxy.mode = "slow"  # later in each direction than the request has time, sooner than Redis is given up
            for _ in range(5):
                began = time.perf_counter()
                answer = api.recommend("u00003", k=5)
                assert (answer["level"], answer["reasons"]) == ("item_side", ["user_features_unavailable"])
                assert len(answer["items"]) == 5
                assert time.perf_counter() - began < 0.9
            proxy.mode = "pass"
            wait_until(lambda: api.recommend("u00003", k=5)["level"] == "full", timeout_s=5)


def test_who_waited_too_long_for_their_turn_gets_what_is_popular(settings):
    with redis.Redis(HOST, settings.redis_port) as client:
        shop, _ = open_shop(settings, client)
        with RunningApi(replace(settings, request_budget_ms=5)) as api:  # less than a model takes
            wait_until(lambda: api.ready()["status"] == "ready")
            answer = api.recommend("u00003", k=5, exclude=[shop.item_ids[0]])
            assert (answer["level"], answer["reasons"]) == ("popularity", ["late"])
            assert len(answer["items"]) == 5
            assert shop.item_ids[0] not in [item["item_id"] for item in answer["items"]]


@pytest.mark.asyncio
async def test_only_what_is_redis_fault_opens_the_breaker():
    guard = RedisGuard(0.05)
    for _ in range(5):
        with pytest.raises(UnavailableError):
            await guard.call(lambda: asyncio.sleep(1.0), within_s=0.01)
    assert not guard.failing
    for _ in range(3):
        with pytest.raises(UnavailableError):
            await guard.call(lambda: asyncio.sleep(1.0), within_s=0.5)
    assert guard.failing
