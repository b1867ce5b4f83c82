"""Many or long commands on one server in one round trip, packed and read without redis-py's work for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import redis
import redis.asyncio
from hiredis import pack_command
from redis.exceptions import ResponseError

from feature_repo.redis_commands import Command, is_cluster, run, run_async

#: Words of the Redis protocol by their text. The fields of a request are item ids: the same some ten thousand again and
#: again, and packing 300 of them takes longer than Redis needs to find their rows.
_words: dict[str | bytes, bytes] = {}
_MOST_WORDS: Final = 200_000
_FEW: Final = 16


def ask(client: redis.Redis, commands: Sequence[Command], *, raise_on_error: bool = True) -> list[Any]:
    """Run commands and return their answers as Redis sent them; on a cluster as `redis_commands.run` does.

    A pipeline of redis-py costs several µs a command and a word, which is more than all else the worker or a request
    does with Redis.

    Parameters
    ----------
    raise_on_error
        Whether a command that Redis refuses raises; otherwise its error is its answer.

    Raises
    ------
    redis.exceptions.RedisError
        If Redis fails, or refuses a command; the others were run all the same.
    """
    if is_cluster(client):
        return run(client, commands, raise_on_error=raise_on_error)
    if not commands:
        return []
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    answers: list[Any] = []
    try:
        connection.send_packed_command([packed(commands)])
        for _ in commands:
            try:
                answers.append(connection.read_response())
            except ResponseError as error:  # the others' answers must be read, too
                answers.append(error)
    except BaseException:
        connection.disconnect()  # answers may be on their way
        raise
    finally:
        pool.release(connection)
    return _checked(answers) if raise_on_error else answers


async def ask_async(
    client: redis.asyncio.Redis, commands: Sequence[Command], *, raise_on_error: bool = True
) -> list[Any]:
    """Run commands without blocking the event loop; the twin of `ask`."""
    if is_cluster(client):
        return await run_async(client, commands, raise_on_error=raise_on_error)
    if not commands:
        return []
    pool: Any = client.connection_pool
    connection = await pool.get_connection()
    answers: list[Any] = []
    try:
        await connection.send_packed_command(packed(commands))
        for _ in commands:
            try:
                answers.append(await connection.read_response())
            except ResponseError as error:
                answers.append(error)
    finally:  # whoever gives up while it waits, redis-py closes the connection: no answer is left in it
        await pool.release(connection)
    return _checked(answers) if raise_on_error else answers


def _checked(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise answer
    return answers


def packed(commands: Sequence[Command]) -> bytes:
    """Return commands in the protocol of Redis."""
    return b"".join(
        [
            _packed_fields(*command) if command[0] == "HMGET" and len(command) > _FEW else pack_command(command)
            for command in commands
        ]
    )


def _packed_fields(name: str, key: bytes, *fields: str | bytes) -> bytes:
    """Pack the reading of many fields of one hash."""
    try:
        words = [_words[field] for field in fields]
    except KeyError:
        if len(_words) > _MOST_WORDS:
            _words.clear()
        for field in fields:
            _words[field] = _word(field)
        words = [_words[field] for field in fields]
    return b"".join([b"*%d\r\n" % (2 + len(fields)), _word(name), _word(key), *words])


def _word(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return b"$%d\r\n%b\r\n" % (len(data), data)
