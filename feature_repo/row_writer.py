"""Writes packed rows to Redis in bulk, each unless a newer one is there: scripts of bounded size, pipelined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import redis
import redis.asyncio
from redis.exceptions import NoScriptError, RedisError

from feature_repo.errors import UnavailableError
from feature_repo.redis_scripts import script_text

#: Rows per script: Redis answers nobody else while one runs (about 1 ms).
SCRIPT_ROWS: Final = 200
#: Scripts per round trip.
_PIPELINE_SCRIPTS: Final = 10


@dataclass(frozen=True, slots=True)
class RowWrite:
    """One row to write: the value of a key, or of a field of the hash under that key."""

    key: bytes
    row: bytes
    field: str | bytes | None = None


def write_rows(client: redis.Redis, writes: Sequence[RowWrite]) -> int:
    """Write rows and return how many were written; the others were older than what was there.

    Each row is written atomically. Repeating a call that failed half-way is safe.

    Raises
    ------
    UnavailableError
        If Redis fails.
    """
    text, written = script_text("row_write"), 0
    scripts = _scripts(writes)
    try:
        while chunk := list(islice(scripts, _PIPELINE_SCRIPTS)):
            for attempt in (1, 2):
                pipeline = client.pipeline(transaction=False)
                script = client.register_script(text)
                for keys, arguments in chunk:
                    script(keys=keys, args=arguments, client=pipeline)
                try:
                    written += sum(pipeline.execute())
                    break
                except NoScriptError:  # somebody flushed the scripts between loading and running
                    if attempt == 2:
                        raise
    except (RedisError, OSError) as error:
        raise _unavailable(error) from error
    return written


async def write_rows_async(client: redis.asyncio.Redis, writes: Sequence[RowWrite]) -> int:
    """Write rows without blocking the event loop; the twin of `write_rows`."""
    script, written = client.register_script(script_text("row_write")), 0
    try:
        for keys, arguments in _scripts(writes):
            written += await script(keys=keys, args=arguments)
    except (RedisError, OSError) as error:
        raise _unavailable(error) from error
    return written


def _scripts(writes: Sequence[RowWrite]) -> Iterator[tuple[list[bytes], list[Any]]]:
    """Yield keys and arguments of row_write.lua."""
    for start in range(0, len(writes), SCRIPT_ROWS):
        part = writes[start : start + SCRIPT_ROWS]
        alone = [write for write in part if write.field is None]
        fields = [write for write in part if write.field is not None]
        arguments: list[Any] = [len(alone), *(write.row for write in alone)]
        for write in fields:
            arguments += [write.field, write.row]
        yield [write.key for write in (*alone, *fields)], arguments


def delete_rows(client: redis.Redis, prefix: bytes) -> int:
    """Delete all keys that begin with a prefix and return how many there were.

    Looks through the names of all keys of the server (SCAN), a few thousand at a time, so that nobody waits.

    Raises
    ------
    UnavailableError
        If Redis fails.
    """
    pattern = b"".join(b"\\" + bytes([c]) if c in b"*?[]\\" else bytes([c]) for c in prefix) + b"*"
    deleted = 0
    try:
        keys = client.scan_iter(match=pattern, count=2_000)
        while chunk := list(islice(keys, 2_000)):
            count: Any = client.unlink(*chunk)
            deleted += count
    except (RedisError, OSError) as error:
        raise _unavailable(error) from error
    return deleted


def _unavailable(error: BaseException) -> UnavailableError:
    return UnavailableError(
        f"Redis failed while rows were written ({type(error).__name__}: {error}); repeat it, nothing counts twice"
    )
