"""Which rows there are: the index of a view's (first) entities, which every writer of rows keeps, and what reads it.

An entity is entered before its row is written, so a row that is not in the index cannot be; an entry without a row can.
Reading and deleting all rows of a view goes through its index bucket by bucket, never through the keys of the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import redis
from redis.exceptions import RedisError

from feature_repo.errors import ConflictError, UnavailableError
from feature_repo.online_keys import INDEX_BUCKETS, checked_project, earlier_keys, index_key, row_keys

#: Buckets per round trip, and entities that Redis looks at in one command.
_BUCKETS: Final = 32
_ENTITIES: Final = 500


def entities_of(client: redis.Redis, project: str, view: str) -> Iterator[list[str]]:
    """Yield the (first) entities in a view's index, some at a time; one may come twice while writers write.

    Raises
    ------
    UnavailableError
        If Redis fails.
    """
    try:
        for _, fields in _parts(client, project, view):
            yield [field.decode() for field in fields]
    except (RedisError, OSError) as error:
        raise _unavailable(error) from error


def delete_rows(client: redis.Redis, project: str, view: str) -> int:
    """Delete all rows of a view and its index; return how many keys there were. Nobody may write to the view meanwhile.

    An interrupted call leaves the entries of the rows it did not come to, so repeating it completes the work.

    Raises
    ------
    ConflictError
        If the project has rows that an earlier version wrote without an index.
    UnavailableError
        If Redis fails.
    """
    deleted = 0
    try:
        refuse_earlier_rows(client, project)
        for key, fields in _parts(client, project, view):
            pipeline = client.pipeline(transaction=False)
            for name in row_keys(project, view, [field.decode() for field in fields]):
                pipeline.unlink(name)
            deleted += sum(pipeline.execute())
            # Only now: an entry must not go before its row.
            client.execute_command("HDEL", key, *fields)  # type: ignore[no-untyped-call] # redis-py has no types there
    except (RedisError, OSError) as error:
        raise _unavailable(error) from error
    return deleted


def refuse_earlier_rows(client: redis.Redis, project: str) -> None:
    """Check that the project has no keys of a version that kept no index.

    Raises
    ------
    ConflictError
        If it has.
    """
    pipeline = client.pipeline(transaction=False)
    for key in earlier_keys(checked_project(project)):
        pipeline.exists(key)
    if any(pipeline.execute()):
        raise ConflictError(
            f"Redis has keys of project {project!r} that an earlier version of Larder wrote, without an index of rows. "
            f"Let that version's `larder ingest run` fold and log what waits, remove the keys '{project}:*', then run "
            "`larder features backfill` and `larder features materialize`"
        )


def _parts(client: redis.Redis, project: str, view: str) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield (key, fields) of non-empty parts of a view's index."""
    for start in range(0, INDEX_BUCKETS, _BUCKETS):
        cursors = {index_key(project, view, b): 0 for b in range(start, min(start + _BUCKETS, INDEX_BUCKETS))}
        while cursors:
            pipeline = client.pipeline(transaction=False)
            for key, cursor in cursors.items():
                pipeline.hscan(key, cursor, count=_ENTITIES)
            answers: list[Any] = pipeline.execute()
            places = list(zip(cursors, answers, strict=True))
            for key, (_, fields) in places:
                if fields:
                    yield key, list(fields)
            cursors = {key: cursor for key, (cursor, _) in places if cursor}


def _unavailable(error: BaseException) -> UnavailableError:
    return UnavailableError(
        f"Redis failed while rows were listed or deleted, repeat it: {type(error).__name__}: {error}"
    )
