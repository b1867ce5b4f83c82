"""Many commands on one server in one round trip, packed and read without redis-py's work per command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from hiredis import pack_command
from redis.exceptions import ResponseError

from feature_repo.redis_commands import Command, is_cluster, run


def ask(client: redis.Redis, commands: Sequence[Command]) -> list[Any]:
    """Run commands and return their answers as Redis sent them; on a cluster as `redis_commands.run` does.

    A pipeline of redis-py costs several µs a command, which for the thousands of short ones of ingest is more than all
    else the worker does.

    Raises
    ------
    redis.exceptions.RedisError
        If Redis fails, or refuses a command; the others were run all the same.
    """
    if is_cluster(client):
        return run(client, commands)
    if not commands:
        return []
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    answers, failed = [], None
    try:
        connection.send_packed_command([b"".join(map(pack_command, commands))])
        for _ in commands:
            try:
                answers.append(connection.read_response())
            except ResponseError as error:  # the others' answers must be read, too
                failed = failed or error
    except BaseException:
        connection.disconnect()  # answers may be on their way
        raise
    finally:
        pool.release(connection)
    if failed is not None:
        raise failed
    return answers
