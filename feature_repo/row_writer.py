"""Writes packed rows to Redis in bulk, each unless a newer one is there: scripts of bounded size, in a steady stream.

On a cluster a script has the rows of one slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from hashlib import sha1
from itertools import islice
from typing import Any, Final

import redis
import redis.asyncio
from redis.crc import key_slot
from redis.exceptions import NoScriptError, RedisError, ResponseError

from feature_repo.errors import ConflictError, UnavailableError
from feature_repo.packed_commands import ask
from feature_repo.redis_commands import is_cluster, run, run_async
from feature_repo.redis_scripts import script_text
from feature_repo.row_scripts import Script, ViewRows, index_commands, scripts_by_slot, scripts_of

#: Scripts on their way to one server: enough that it never waits for the next.
_IN_FLIGHT: Final = 8
#: Scripts per round trip on a cluster, where most have one row.
_PIPELINE_SCRIPTS: Final = 1_000
_TEXT: Final = script_text("row_write")
_SHA: Final = sha1(_TEXT.encode(), usedforsecurity=False).hexdigest()


def write_rows(client: redis.Redis, project: str, batch: ViewRows) -> int:
    """Write rows and return how many were written; the others were older than what was there.

    Each row is written atomically, after its entity was entered into the view's index. Repeating a call that failed
    half-way is safe.

    Raises
    ------
    ConflictError
        If rows of the view with another number of entities are there.
    UnavailableError
        If Redis fails.
    """
    try:
        return store_rows(client, project, batch)
    except (RedisError, OSError) as error:
        raise _failed(batch.view, error) from error


def store_rows(client: redis.Redis, project: str, batch: ViewRows) -> int:
    """Write rows as `write_rows` does, for a caller that deals with Redis' errors itself.

    Raises
    ------
    redis.exceptions.RedisError
        If Redis fails.
    """
    ask(client, index_commands(project, batch))
    return _per_slot(client, project, batch) if is_cluster(client) else _stream(client, scripts_of(project, batch))


async def write_rows_async(client: redis.asyncio.Redis, project: str, batch: ViewRows) -> int:
    """Write rows without blocking the event loop; the twin of `write_rows`."""
    written = 0
    scripts = scripts_by_slot(project, batch, key_slot) if is_cluster(client) else scripts_of(project, batch)
    try:
        await run_async(client, index_commands(project, batch))
        while part := list(islice(scripts, _IN_FLIGHT)):
            commands = [_command(script) for script in part]
            try:
                written += sum(await run_async(client, commands))
            except NoScriptError:  # a new server, or somebody flushed the scripts
                await client.script_load(_TEXT)
                written += sum(await run_async(client, commands))
    except (RedisError, OSError) as error:
        raise _failed(batch.view, error) from error
    return written


def _command(script: Script) -> tuple[Any, ...]:
    keys, arguments = script
    return "EVALSHA", _SHA, len(keys), *keys, *arguments


def _per_slot(client: redis.Redis, project: str, batch: ViewRows) -> int:
    scripts, written = scripts_by_slot(project, batch, key_slot), 0
    while part := list(islice(scripts, _PIPELINE_SCRIPTS)):
        commands = [_command(script) for script in part]
        try:
            written += sum(run(client, commands))
        except NoScriptError:  # a new server, or somebody flushed the scripts
            client.script_load(_TEXT)
            written += sum(run(client, commands))
    return written


def _stream(client: redis.Redis, scripts: Iterator[Script]) -> int:
    """Run scripts on one server without waiting for each, and return how many rows were written."""
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    on_their_way: deque[list[bytes]] = deque()
    unknown: list[list[bytes]] = []  # scripts whose text the server no longer had
    written = 0

    def send(packed: list[bytes]) -> None:
        connection.send_packed_command(packed)
        on_their_way.append(packed)

    def receive() -> int:
        packed = on_their_way.popleft()
        try:
            return int(connection.read_response())
        except NoScriptError:
            unknown.append(packed)
            return 0

    def load() -> None:
        connection.send_command("SCRIPT LOAD", _TEXT)
        connection.read_response()

    try:
        load()
        for script in scripts:
            send(connection.pack_command(*_command(script)))
            if len(on_their_way) == _IN_FLIGHT:
                written += receive()
        while on_their_way or unknown:
            if on_their_way:
                written += receive()
            else:
                load()
                send(unknown.pop())
    except BaseException:
        connection.disconnect()  # answers may be on their way
        raise
    finally:
        pool.release(connection)
    return written


def _failed(view: str, error: BaseException) -> ConflictError | UnavailableError:
    if isinstance(error, ResponseError) and "WRONGTYPE" in str(error):
        return ConflictError(
            f"Redis has rows of view {view!r} with another number of entities; remove the view by `feast apply`, which "
            "removes its rows, then add it as it is now"
        )
    return UnavailableError(
        f"Redis failed while rows were written ({type(error).__name__}: {error}); repeat it, nothing counts twice"
    )
