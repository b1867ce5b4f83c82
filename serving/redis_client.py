"""Serving's connection to Redis: bounded in time, connections and attempts, so that a dead Redis costs little."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from feature_repo.errors import UnavailableError
from feature_repo.redis_pipe import RedisPipe
from feature_repo.settings import Settings

T = TypeVar("T")

_MAX_CONNECTIONS = 64
#: Backstop for work outside a request (loading all items); requests are bounded by the guard's timeout.
BACKGROUND_TIMEOUT_S = 2.0
#: Who gave Redis so much time and got no answer has met a slow Redis, not a late request.
_FAIR_S = 0.03
#: What a Redis that is away looks like. RuntimeError is uvloop's, on writing to a connection reset since its last use.
AWAY = (TimeoutError, RedisError, OSError, RuntimeError)


def connect(settings: Settings) -> Redis:
    """Return a client that never retries; redis-py's defaults hang for seconds."""
    return _client(settings, settings.redis_host, settings.redis_port)


def connect_events(settings: Settings, features: Redis) -> Redis:
    """Return a client of the Redis that has the event stream: `features` itself where there is one Redis."""
    if not settings.events_redis_host:
        return features
    return _client(settings, settings.events_redis_host, settings.events_redis_port)


def _client(settings: Settings, host: str, port: int) -> Redis:
    return Redis.from_pool(  # unlike `connection_pool=`, closing the client closes the pool
        BlockingConnectionPool(
            host=host,
            port=port,
            max_connections=_MAX_CONNECTIONS,
            timeout=BACKGROUND_TIMEOUT_S,
            socket_timeout=BACKGROUND_TIMEOUT_S,
            socket_connect_timeout=settings.redis_timeout_ms / 1000,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,  # telling the library's name would cost two more round trips per connection
        )
    )


def open_pipe(settings: Settings) -> RedisPipe:
    """Return the connection of the requests' reads; opened by the first."""
    timeout_s = settings.redis_timeout_ms / 1000
    return RedisPipe(settings.redis_host, settings.redis_port, connect_timeout_s=timeout_s)


class RedisGuard:
    """Bounds every call, and does not ask at all for a moment after several failures in a row.

    Parameters
    ----------
    timeout_s
        Longest wait of a call, waiting for a connection included.
    failures
        After so many failures in a row, calls fail at once for `pause_s`; then one call tries again.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        timeout_s: float,
        *,
        failures: int = 3,
        pause_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s = timeout_s
        self._limit = failures
        self._pause_s = pause_s
        self._clock = clock
        self._failed_in_a_row = 0
        self._closed_until = 0.0

    @property
    def failing(self) -> bool:
        """Whether the last calls failed so often that Redis is left alone."""
        return self._failed_in_a_row >= self._limit

    async def call(
        self, ask: Callable[[], Awaitable[T]], timeout_s: float | None = None, *, within_s: float = math.inf
    ) -> T:
        """Run one call.

        Parameters
        ----------
        ask
            Makes the call; not called while Redis is left alone.
        timeout_s
            Instead of the guard's own.
        within_s
            What is left of a request's time. Where that is little, its end is no failure of Redis.

        Raises
        ------
        UnavailableError
            If Redis did not answer in time, refused, or is left alone.
        """
        if self.failing:
            now = self._clock()
            if now < self._closed_until:
                raise UnavailableError("Redis does not answer; it will be asked again in a moment")
            self._closed_until = now + self._pause_s  # this call tries; the others go on failing at once
        try:
            limit_s = timeout_s or self._timeout_s
            async with asyncio.timeout(min(limit_s, within_s)):
                result = await ask()
        except (UnavailableError, *AWAY) as error:
            if isinstance(error, TimeoutError) and within_s < min(limit_s, _FAIR_S):
                raise UnavailableError("Redis did not answer before the request's time was over") from error
            self._failed_in_a_row += 1
            self._closed_until = self._clock() + self._pause_s
            if isinstance(error, UnavailableError):
                raise
            raise UnavailableError(f"Redis did not answer: {type(error).__name__}") from error
        self._failed_in_a_row = 0
        return result
