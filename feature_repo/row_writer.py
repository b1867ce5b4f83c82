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
from feature_repo.online_keys import index_entries, row_keys
from feature_repo.redis_scripts import script_text

#: Rows per script: Redis answers nobody else while one runs (about 1 ms).
SCRIPT_ROWS: Final = 200
#: Scripts per round trip.
_PIPELINE_SCRIPTS: Final = 10


@dataclass(frozen=True, slots=True)
class ViewRows:
    """Packed rows of one view.

    Attributes
    ----------
    view
        Its name.
    first
        The entity of each row, which names its key.
    rows
        The rows, one per entity.
    second
        For a view of several entities: the field of each row in the hash under its key.
    """

    view: str
    first: Sequence[str]
    rows: Sequence[bytes]
    second: Sequence[str] | None = None


def write_rows(client: redis.Redis, project: str, batch: ViewRows) -> int:
    """Write rows and return how many were written; the others were older than what was there.

    Each row is written atomically, after its entity was entered into the view's index. Repeating a call that failed
    half-way is safe.

    Raises
    ------
    UnavailableError
        If Redis fails.
    """
    text, written = script_text("row_write"), 0
    scripts = _scripts(project, batch)
    try:
        pipeline = client.pipeline(transaction=False)
        for key, entities in index_entries(project, batch.view, batch.first):
            pipeline.execute_command("HSET", key, *_fields(entities))  # type: ignore[no-untyped-call] # redis-py's
        pipeline.execute()
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


async def write_rows_async(client: redis.asyncio.Redis, project: str, batch: ViewRows) -> int:
    """Write rows without blocking the event loop; the twin of `write_rows`."""
    script, written = client.register_script(script_text("row_write")), 0
    try:
        pipeline = client.pipeline(transaction=False)
        for key, entities in index_entries(project, batch.view, batch.first):
            pipeline.execute_command("HSET", key, *_fields(entities))
        await pipeline.execute()
        for keys, arguments in _scripts(project, batch):
            written += await script(keys=keys, args=arguments)
    except (RedisError, OSError) as error:
        raise _unavailable(error) from error
    return written


def _fields(entities: list[bytes]) -> Iterator[bytes]:
    for entity in entities:
        yield from (entity, b"")


def _scripts(project: str, batch: ViewRows) -> Iterator[tuple[list[bytes], list[Any]]]:
    """Yield keys and arguments of row_write.lua."""
    for start in range(0, len(batch.rows), SCRIPT_ROWS):
        part = slice(start, start + SCRIPT_ROWS)
        keys, rows = row_keys(project, batch.view, batch.first[part]), batch.rows[part]
        arguments: list[Any]
        if batch.second is None:
            arguments = [len(rows), *rows]
        else:
            arguments = [0]
            for field_and_row in zip(batch.second[part], rows, strict=True):
                arguments += field_and_row
        yield keys, arguments


def _unavailable(error: BaseException) -> UnavailableError:
    return UnavailableError(
        f"Redis failed while rows were written ({type(error).__name__}: {error}); repeat it, nothing counts twice"
    )
