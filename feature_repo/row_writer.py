"""Writes packed rows to Redis in bulk, each unless a newer one is there: scripts of bounded size, in a steady stream.

On a cluster a script has the rows of one slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from hashlib import sha1
from itertools import islice
from typing import Any, Final

import redis
import redis.asyncio
from hiredis import pack_command
from redis.crc import key_slot
from redis.exceptions import NoScriptError, RedisError, ResponseError

from feature_repo.errors import ConflictError, UnavailableError
from feature_repo.redis_commands import Command, is_cluster, run, run_async
from feature_repo.redis_scripts import script_text
from feature_repo.row_scripts import Script, ViewRows, index_commands, scripts_by_slot, scripts_of

#: Bytes on their way to one server: enough that it has work while the next rows are packed.
_IN_FLIGHT_BYTES: Final = 2_000_000
#: Scripts per round trip of the asynchronous twin.
_SCRIPTS: Final = 8
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
    return write_batches(client, project, [batch])


def write_batches(client: redis.Redis, project: str, batches: Iterable[ViewRows]) -> int:
    """Write batch after batch as `write_rows` does; the next ones are made while Redis writes those before.

    Raises
    ------
    ConflictError
        If rows of a view with another number of entities are there.
    UnavailableError
        If Redis fails.
    """
    try:
        return store_batches(client, project, batches)
    except (RedisError, OSError) as error:
        raise _failed(error) from error


def store_batches(client: redis.Redis, project: str, batches: Iterable[ViewRows]) -> int:
    """Write rows as `write_batches` does, for a caller that deals with Redis' errors itself.

    Raises
    ------
    redis.exceptions.RedisError
        If Redis fails.
    """
    if is_cluster(client):
        return sum(_per_slot(client, project, batch) for batch in batches)
    return _stream(client, (command for batch in batches for command in _commands(project, batch)))


async def write_rows_async(client: redis.asyncio.Redis, project: str, batch: ViewRows) -> int:
    """Write rows without blocking the event loop; the twin of `write_rows`."""
    written = 0
    scripts = scripts_by_slot(project, batch, key_slot) if is_cluster(client) else scripts_of(project, batch)
    try:
        await run_async(client, index_commands(project, batch))
        while part := list(islice(scripts, _SCRIPTS)):
            commands = [_command(script) for script in part]
            try:
                written += sum(await run_async(client, commands))
            except NoScriptError:  # a new server, or somebody flushed the scripts
                await client.script_load(_TEXT)
                written += sum(await run_async(client, commands))
    except (RedisError, OSError) as error:
        raise _failed(error) from error
    return written


def _command(script: Script) -> tuple[Any, ...]:
    keys, arguments = script
    return "EVALSHA", _SHA, len(keys), *keys, *arguments


def _commands(project: str, batch: ViewRows) -> Iterator[Command]:
    yield from index_commands(project, batch)
    yield from map(_command, scripts_of(project, batch))


def _per_slot(client: redis.Redis, project: str, batch: ViewRows) -> int:
    run(client, index_commands(project, batch))
    scripts, written = scripts_by_slot(project, batch, key_slot), 0
    while part := list(islice(scripts, _PIPELINE_SCRIPTS)):
        commands = [_command(script) for script in part]
        try:
            written += sum(run(client, commands))
        except NoScriptError:  # a new server, or somebody flushed the scripts
            client.script_load(_TEXT)
            written += sum(run(client, commands))
    return written


def _stream(client: redis.Redis, commands: Iterable[Command]) -> int:
    """Run commands on one server, without waiting for each; return how many rows the scripts among them wrote.

    They run in the order given, so an index entry is there before its row.
    """
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    on_their_way: deque[tuple[bytes, bool]] = deque()  # packed commands, and whether each is a script
    unknown: list[bytes] = []  # scripts whose text the server no longer had
    written = size = 0

    def send(packed: bytes, *, is_script: bool) -> int:
        connection.send_packed_command([packed])
        on_their_way.append((packed, is_script))
        return len(packed)

    def receive() -> tuple[int, int]:
        packed, is_script = on_their_way.popleft()
        try:
            answer = connection.read_response()
        except NoScriptError:
            unknown.append(packed)
            return 0, len(packed)
        return int(answer) if is_script else 0, len(packed)

    def load() -> None:
        connection.send_command("SCRIPT LOAD", _TEXT)
        connection.read_response()

    try:
        load()
        for command in commands:
            size += send(pack_command(command), is_script=command[0] == "EVALSHA")
            while size > _IN_FLIGHT_BYTES:
                rows, done = receive()
                written, size = written + rows, size - done
        while on_their_way or unknown:
            if not on_their_way:
                load()
                send(unknown.pop(), is_script=True)
            written += receive()[0]
    except BaseException:
        connection.disconnect()  # answers may be on their way
        raise
    finally:
        pool.release(connection)
    return written


def _failed(error: BaseException) -> ConflictError | UnavailableError:
    if isinstance(error, ResponseError) and "WRONGTYPE" in str(error):
        return ConflictError(
            "Redis has rows of this view with another number of entities; remove the view by `feast apply`, which "
            "removes its rows, then add it as it is now"
        )
    return UnavailableError(
        f"Redis failed while rows were written ({type(error).__name__}: {error}); repeat it, nothing counts twice"
    )
