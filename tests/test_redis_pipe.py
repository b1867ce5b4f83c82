"""The connection all requests share: answers go to whoever asked, whatever others do, and it comes back by itself."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.exceptions import RedisError, ResponseError

from feature_repo.redis_pipe import RedisPipe
from feature_repo.redis_scripts import connect
from larder.services.ports import HOST
from tests.fault_proxy import Proxy


@pytest.fixture
def client(settings):
    with connect(settings, timeout_ms=5000) as client:
        yield client


def a_pipe(port: int, **kwargs: float) -> RedisPipe:
    return RedisPipe(HOST, port, connect_timeout_s=2.0, **kwargs)


def run(port, questions, **kwargs):
    async def main():
        pipe = a_pipe(port, **kwargs)
        try:
            return await questions(pipe)
        finally:
            await pipe.aclose()

    return asyncio.run(main())


@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    askers=st.lists(
        st.tuples(st.lists(st.sampled_from(["a", "b", "text", "none"]), min_size=0, max_size=5), st.booleans()),
        min_size=1,
        max_size=20,
    )
)
def test_everybody_gets_their_own_answers_whoever_gives_up(settings, client, askers):
    client.mset({"a": "1", "b": "2" * 70_000, "text": "x"})
    expected = {"a": b"1", "b": b"2" * 70_000, "none": None}

    async def questions(pipe):
        async def one(keys):
            return await pipe.ask([("HGETALL" if key == "text" else "GET", key) for key in keys])

        tasks = [asyncio.ensure_future(one(keys)) for keys, _ in askers]
        await asyncio.sleep(0)
        for task, (_, gives_up) in zip(tasks, askers, strict=True):
            if gives_up:
                task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    for (keys, gives_up), answers in zip(askers, run(settings.redis_port, questions), strict=True):
        if gives_up and keys:
            assert isinstance(answers, asyncio.CancelledError)
            continue
        assert len(answers) == len(keys)
        for key, answer in zip(keys, answers, strict=True):
            if key == "text":  # an error is the answer of its own command, not an exception for all
                assert isinstance(answer, ResponseError)
            else:
                assert answer == expected[key]


def test_what_was_given_up_is_answered_to_nobody_else(settings, client):
    client.mset({"mine": "mine", "other": "other"})

    async def questions(pipe):
        assert await pipe.ask([("GET", "other")]) == [b"other"]
        client.execute_command("CLIENT", "PAUSE", 300)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pipe.ask([("GET", "other")] * 3)
        return await pipe.ask([("GET", "mine")])

    assert run(settings.redis_port, questions) == [b"mine"]


def test_one_connection_serves_many_at_once(settings, client):
    client.set("key", "value")

    async def questions(pipe):
        before = client.info("stats")["total_connections_received"]
        answers = await asyncio.gather(*(pipe.ask([("GET", "key")]) for _ in range(50)))
        assert answers == [[b"value"]] * 50
        return client.info("stats")["total_connections_received"] - before

    assert run(settings.redis_port, questions) == 1


def test_a_lost_connection_fails_those_who_wait_and_the_next_question_opens_another(settings, client):
    client.set("key", "value")

    async def questions(pipe):
        assert await pipe.ask([("GET", "key")]) == [b"value"]
        client.execute_command("CLIENT", "PAUSE", 500)
        waiting = asyncio.ensure_future(pipe.ask([("GET", "key")]))
        await asyncio.sleep(0.05)
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with pytest.raises(RedisError):
            await waiting
        client.execute_command("CLIENT", "UNPAUSE")
        return await pipe.ask([("GET", "key")])

    assert run(settings.redis_port, questions) == [b"value"]


def test_a_half_open_connection_is_given_up_and_no_other_piles_up(settings, client):
    client.set("key", "value")
    with Proxy(settings.redis_port) as proxy:

        async def questions(pipe):
            assert await pipe.ask([("GET", "key")]) == [b"value"]
            proxy.mode = "swallow"
            for _ in range(5):
                with pytest.raises((TimeoutError, RedisError)):
                    async with asyncio.timeout(0.1):
                        await pipe.ask([("GET", "key")])
                await asyncio.sleep(0.1)
            silent = len(proxy._open)
            proxy.mode = "pass"
            began = time.monotonic()
            while True:
                try:
                    async with asyncio.timeout(0.5):
                        return silent, await pipe.ask([("GET", "key")])
                except (TimeoutError, RedisError, OSError):
                    assert time.monotonic() - began < 10

        silent, answer = run(proxy.port, questions, silence_s=0.15)
        assert answer == [b"value"]
        assert silent <= 2


def test_nobody_listens(settings):
    async def questions(pipe):
        for _ in range(2):
            with pytest.raises(OSError):
                await pipe.ask([("GET", "key")])

    run(1, questions)
