"""Commands packed by us say the same to Redis as redis-py's, and an answer never goes to the wrong question."""

import asyncio

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from feature_repo import packed_commands
from feature_repo.packed_commands import ask, ask_async
from feature_repo.redis_scripts import connect, connect_async


@pytest.fixture
def client(settings):
    with connect(settings, timeout_ms=5000) as client:
        yield client


texts = st.text(max_size=20).filter(lambda text: "\0" not in text)


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(fields=st.lists(texts, min_size=1, max_size=40), key=texts, most=st.sampled_from([0, 200_000]))
def test_fields_of_any_text_are_read_as_redis_py_reads_them(client, fields, key, most):
    stored = fields[::2]
    client.delete(key)
    if stored:
        client.hset(key, mapping={field: f"value of {field}" for field in stored})
    packed_commands._MOST_WORDS, before = most, packed_commands._MOST_WORDS
    try:
        (answer,) = ask(client, [("HMGET", key.encode(), *fields)])
    finally:
        packed_commands._MOST_WORDS = before
    assert answer == client.hmget(key, fields)


def test_an_error_is_raised_or_handed_out_and_the_other_answers_are_their_own(settings, client):
    commands = [("SET", "text", "x"), ("HGETALL", "text"), ("GET", "text")]
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        ask(client, commands)
    answers = ask(client, commands, raise_on_error=False)
    assert isinstance(answers[1], ResponseError)
    assert [answers[0], answers[2]] == [b"OK", b"x"]

    async def asked():
        async with connect_async(settings, timeout_ms=5000) as own:
            with pytest.raises(ResponseError, match="WRONGTYPE"):
                await ask_async(own, commands)
            return await ask_async(own, commands, raise_on_error=False)

    assert [type(answer) for answer in asyncio.run(asked())] == [type(answer) for answer in answers]


def test_a_request_given_up_leaves_no_answer_to_the_next(settings, client):
    client.set("mine", "mine")
    client.set("other", "other")

    async def asked():
        async with connect_async(settings, timeout_ms=5000) as own:
            assert await ask_async(own, [("GET", "other")]) == [b"other"]
            client.execute_command("CLIENT", "PAUSE", 300)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await ask_async(own, [("GET", "other")] * 3)
            return await ask_async(own, [("GET", "mine")])

    assert asyncio.run(asked()) == [b"mine"]
