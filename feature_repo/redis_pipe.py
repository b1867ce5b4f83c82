"""One connection to Redis that all requests of an event loop share: commands leave at once, answers come in order.

redis-py's asynchronous client lends a connection to each request and reads every answer through two coroutines, which
takes more processor than Redis and decoding together. Here a request is one write and one future.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, cast

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from feature_repo.packed_commands import packed
from feature_repo.redis_commands import Command

_NOTHING: Final = object()


class _Asked:
    """Commands sent together: their answers so far, and who waits for them."""

    __slots__ = ("answers", "count", "future", "since")

    def __init__(self, count: int, future: asyncio.Future[list[Any]], since: float) -> None:
        self.count, self.future, self.since = count, future, since
        self.answers: list[Any] = []


class _Connection(asyncio.Protocol):
    """A connection and the questions that are not answered yet, in the order they were sent."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[_Asked] = deque()
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=ResponseError, notEnoughData=_NOTHING)

    @property
    def open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def silent_for(self) -> float:
        """Return how long the oldest question has waited, in seconds."""
        return self._loop.time() - self._waiting[0].since if self._waiting else 0.0

    def send(self, data: bytes, count: int) -> asyncio.Future[list[Any]]:
        """Send commands and return the future of their answers."""
        asked = _Asked(count, self._loop.create_future(), self._loop.time())
        self._waiting.append(asked)
        if self._transport is not None:
            self._transport.write(data)
        return asked.future

    def abort(self, why: str) -> None:
        """Give the connection up; whoever still waits is told."""
        if self._transport is not None:
            self._transport.abort()
        self._lost(RedisConnectionError(why))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not _NOTHING:
                asked = self._waiting[0]  # an answer nobody asked for is an IndexError: no longer in step
                asked.answers.append(answer)
                if len(asked.answers) == asked.count:
                    self._waiting.popleft()
                    if not asked.future.done():  # given up meanwhile: its answers are read, and go to nobody else
                        asked.future.set_result(asked.answers)
        except (InvalidResponse, IndexError) as error:
            self.abort(f"what came is no answer: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(RedisConnectionError(f"the connection was lost: {exc or 'closed by Redis'}"))

    def _lost(self, error: RedisConnectionError) -> None:
        self._transport = None
        while self._waiting:
            future = self._waiting.popleft().future
            if not future.done():
                future.set_exception(error)


class RedisPipe:
    """Sends the commands of concurrent requests over one connection, which is made when first needed, and anew.

    Parameters
    ----------
    connect_timeout_s
        How long to wait for a connection.
    silence_s
        A connection whose oldest question has waited longer is given up at the next one: it may be half-open.
    """

    def __init__(self, host: str, port: int, *, connect_timeout_s: float, silence_s: float = 1.0) -> None:
        self._address = (host, port)
        self._connect_timeout_s = connect_timeout_s
        self._silence_s = silence_s
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands and return their answers as Redis sent them; an error of Redis is its command's answer.

        Raises
        ------
        redis.exceptions.ConnectionError
            If there is no connection, or it was lost before the answers came. Whether a command was run is not known
            then.
        OSError
            If no connection can be made (TimeoutError: not in time).
        """
        return await self.ask_packed(packed(commands), len(commands)) if commands else []

    async def ask_packed(self, message: bytes, count: int) -> list[Any]:
        """Run commands that are packed already: `ask` for who asks the same again and again.

        Parameters
        ----------
        message, count
            Commands in the protocol of Redis, and how many they are.
        """
        connection = self._connection
        if connection is not None and connection.silent_for() > self._silence_s:
            connection.abort(f"Redis was silent for {self._silence_s} s")
        if connection is None or not connection.open:
            connection = await self._connected()
        return await connection.send(message, count)

    async def aclose(self) -> None:
        """Close the connection; a later question opens another."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort("closed")
            self._connection = None

    async def _connected(self) -> _Connection:
        """Return the one connection all who wait for it get; a request given up does not end the attempt."""
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.ensure_future(self._connect())
            self._connecting.add_done_callback(_looked_at)
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_timeout_s):
            _, made = await loop.create_connection(lambda: _Connection(loop), *self._address)
        self._connection = made
        return made


def _looked_at(task: asyncio.Task[_Connection]) -> None:
    """Take an error that nobody waits for any more, lest asyncio reports it."""
    if not task.cancelled():
        task.exception()
