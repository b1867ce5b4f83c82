"""Runs commands on the project's Redis in one round trip, on one server or on a cluster.

A cluster has no command over keys of several slots: there an MGET becomes one GET a key, and the answer is put together
again. All else is one key a command, or keys of one slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import redis
import redis.asyncio

#: A command as its words.
Command = tuple[Any, ...]


def is_cluster(client: redis.Redis | redis.asyncio.Redis) -> bool:
    """Whether a client of `redis_scripts.connect` or `connect_async` speaks to a cluster."""
    return isinstance(client, redis.RedisCluster | redis.asyncio.RedisCluster)


def run(client: redis.Redis, commands: Sequence[Command], *, raise_on_error: bool = True) -> list[Any]:
    """Run commands and return their answers.

    Parameters
    ----------
    client
        From `redis_scripts.connect`.
    commands
        Words of each command.
    raise_on_error
        Whether a command that Redis refuses raises; otherwise its error is its answer.

    Raises
    ------
    redis.exceptions.RedisError
        If Redis fails.
    """
    if not commands:
        return []
    sent, joined = _split(commands) if is_cluster(client) else (commands, None)
    pipeline: Any = client.pipeline(transaction=False)
    for command in sent:
        pipeline.execute_command(*command)
    answers = pipeline.execute(raise_on_error=raise_on_error)
    return answers if joined is None else joined(answers)


async def run_async(
    client: redis.asyncio.Redis, commands: Sequence[Command], *, raise_on_error: bool = True
) -> list[Any]:
    """Run commands without blocking the event loop; the twin of `run`."""
    if not commands:
        return []
    sent, joined = _split(commands) if is_cluster(client) else (commands, None)
    pipeline: Any = client.pipeline(transaction=False)
    for command in sent:
        pipeline.execute_command(*command)
    answers = await pipeline.execute(raise_on_error=raise_on_error)
    return answers if joined is None else joined(answers)


def _split(commands: Sequence[Command]) -> tuple[list[Command], Callable[[list[Any]], list[Any]]]:
    """Return commands of one slot each, and what makes their answers those of the commands asked for."""
    sent: list[Command] = []
    for name, *words in commands:
        sent.extend([("GET", key) for key in words] if name == "MGET" else [(name, *words)])

    def joined(answers: list[Any]) -> list[Any]:
        rest, whole = iter(answers), []
        for name, *words in commands:
            if name != "MGET":
                whole.append(next(rest))
                continue
            values = [next(rest) for _ in words]
            # A wrong type is None to MGET.
            failed = [v for v in values if isinstance(v, Exception) and not str(v).startswith("WRONGTYPE")]
            whole.append(failed[0] if failed else [None if isinstance(v, Exception) else v for v in values])
        return whole

    return sent, joined
