"""The Lua scripts that make writes to Redis atomic, and the connections they run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from feature_repo.errors import UnavailableError
from feature_repo.settings import Settings

_DIRECTORY = Path(__file__).parent
_WITH_ROW_ORDER = frozenset({"row_write", "ingest_write"})


@cache
def script_text(name: str) -> str:
    """Return the text of a script of this folder, by name without suffix."""
    text = (_DIRECTORY / f"{name}.lua").read_text("utf-8")
    return (_DIRECTORY / "row_order.lua").read_text("utf-8") + text if name in _WITH_ROW_ORDER else text


def connect(settings: Settings, *, timeout_ms: int | None = None) -> redis.Redis:
    """Return a client of the project's Redis for raw bytes, which waits `timeout_ms` at most and never retries.

    Parameters
    ----------
    settings
        Host, port, and the timeout of requests, which is the default.
    timeout_ms
        Another timeout, for work outside requests.
    """
    timeout_ms = settings.redis_timeout_ms if timeout_ms is None else timeout_ms
    return connect_to(settings.redis_host, settings.redis_port, timeout_ms, cluster=settings.redis_cluster)


def connect_events(settings: Settings, *, timeout_ms: int | None = None) -> redis.Redis:
    """Return a client of the Redis that has the event stream and the quarantine: its own, or the features' Redis."""
    if not settings.events_redis_host:
        return connect(settings, timeout_ms=timeout_ms)
    timeout_ms = settings.redis_timeout_ms if timeout_ms is None else timeout_ms
    return connect_to(settings.events_redis_host, settings.events_redis_port, timeout_ms)


@contextmanager
def both_connected(settings: Settings, *, timeout_ms: int) -> Iterator[tuple[redis.Redis, redis.Redis]]:
    """Yield a client of the features' Redis and one of the events'; they are the same where there is one Redis."""
    with closing(connect(settings, timeout_ms=timeout_ms)) as features:
        if not settings.events_redis_host:
            yield features, features
            return
        with closing(connect_events(settings, timeout_ms=timeout_ms)) as events:
            yield features, events


def connect_async(settings: Settings, *, timeout_ms: int | None = None) -> redis.asyncio.Redis:
    """Return the asynchronous twin of `connect`."""
    timeout_ms = settings.redis_timeout_ms if timeout_ms is None else timeout_ms
    return connect_to_async(settings.redis_host, settings.redis_port, timeout_ms, cluster=settings.redis_cluster)


def connect_to(host: str, port: int, timeout_ms: int, *, cluster: bool = False) -> redis.Redis:
    """Return a client for raw bytes. The library's own timeouts and retries would hang a request for half a minute.

    Raises
    ------
    UnavailableError
        If a cluster cannot be reached; a single server is looked for when it is first asked.
    """
    if cluster:
        try:
            # It has the same commands; what it does not have is in redis_commands.py.
            client = redis.RedisCluster(host=host, port=port, **_limits(timeout_ms), retry=Retry(NoBackoff(), 0))
        except (RedisError, OSError) as error:
            raise UnavailableError(f"the Redis Cluster did not answer: {type(error).__name__}: {error}") from error
        return cast("redis.Redis", client)
    return redis.Redis(host=host, port=port, **_limits(timeout_ms), retry=Retry(NoBackoff(), 0))


def connect_to_async(host: str, port: int, timeout_ms: int, *, cluster: bool = False) -> redis.asyncio.Redis:
    """Return the asynchronous twin of `connect_to`."""
    if cluster:
        limits, retry = _limits(timeout_ms), AsyncRetry(NoBackoff(), 0)
        return cast("redis.asyncio.Redis", redis.asyncio.RedisCluster(host=host, port=port, **limits, retry=retry))
    return redis.asyncio.Redis(host=host, port=port, **_limits(timeout_ms), retry=AsyncRetry(NoBackoff(), 0))


def _limits(timeout_ms: int) -> dict[str, Any]:
    return {"socket_timeout": timeout_ms / 1000, "socket_connect_timeout": timeout_ms / 1000, "decode_responses": False}
