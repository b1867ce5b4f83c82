"""An open-loop load generator: requests leave when they are due, whether or not earlier ones were answered.

A closed loop waits for a slow server and so never sees what its users would (coordinated omission). Here latency counts
from the moment a request was due; the generator also says how late it sent and what it used of a core, so that its own
slowness cannot pass for the server's.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
#: A request that is not answered by then counts as failed.
TIMEOUT_S = 10.0
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


@dataclass(frozen=True)
class LoadResult:
    """What came of one run.

    Attributes
    ----------
    latency_ms
        From the moment each request was due to the end of its answer, shape (n,), in the order sent; NaN where none
        came in time.
    status
        HTTP status, shape (n,); 0 where none came.
    lateness_ms
        How long after that moment each left, shape (n,): the generator's own delay, and the wait for a free connection.
    seconds
        From the first request due to the last answer.
    generator_cpu
        Share of one core the generator used.
    """

    latency_ms: F64
    status: npt.NDArray[np.int64]
    lateness_ms: F64
    seconds: float
    generator_cpu: float

    @property
    def failed(self) -> float:
        """Share of requests without a good answer."""
        return float(np.mean(self.status != 200))

    @property
    def achieved_rps(self) -> float:
        """Good answers a second."""
        return float(np.sum(self.status == 200) / self.seconds)

    def quantile_ms(self, q: float) -> float:
        """Latency quantile; infinite if so many were never answered."""
        values = np.where(np.isnan(self.latency_ms), np.inf, self.latency_ms)
        return float(np.quantile(values, q, method="higher"))


class _Connection(asyncio.Protocol):
    """One kept-alive connection with at most one request under way."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.request = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Offer itself for requests."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._run.opened(self)
        self._run.free(self)

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()

    def send(self, number: int, data: bytes) -> None:
        """Send one request."""
        self.request = number
        if self._transport is not None:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Collect an answer; hand it over when it is whole."""
        self._buffer += data
        head = self._buffer.find(_HEAD_END)
        if head < 0:
            return
        at = self._buffer[:head].lower().find(_LENGTH)
        length = int(self._buffer[at + len(_LENGTH) : head + 2].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < head + 4 + length:
            return
        status = int(self._buffer[9:12])
        self._buffer.clear()
        number, self.request = self.request, -1
        self._run.answered(number, status)
        self._run.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the request under way as failed and open another connection."""
        if self.request >= 0:
            self._run.answered(self.request, 0)
        self._run.lost(self)


class _Run:
    """One run of a schedule."""

    def __init__(self, host: str, port: int, requests: Sequence[bytes], due: F64, connections: int) -> None:
        self._address = (host, port)
        self._requests, self._due, self._connections = requests, due, connections
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[int] = deque()
        self._loop = asyncio.get_running_loop()
        self._open: set[asyncio.Task[object]] = set()
        self._all: set[_Connection] = set()
        self._left = len(due)
        self._finished = asyncio.Event()
        self._start = 0.0
        self.sent = np.full(len(due), np.nan)
        self.done = np.full(len(due), np.nan)
        self.status = np.zeros(len(due), np.int64)

    def opened(self, connection: _Connection) -> None:
        """Keep a connection, to close it at the end."""
        self._all.add(connection)

    def free(self, connection: _Connection) -> None:
        """Use an idle connection for the request that waits longest."""
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        """Replace a connection."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._finished.is_set():
            self._connect()

    def answered(self, number: int, status: int) -> None:
        """Note an answer."""
        self.done[number], self.status[number] = time.perf_counter() - self._start, status
        self._left -= 1
        if not self._left:
            self._finished.set()

    def _send(self, connection: _Connection, number: int) -> None:
        self.sent[number] = time.perf_counter() - self._start
        connection.send(number, self._requests[number % len(self._requests)])

    def _connect(self) -> None:
        task: asyncio.Task[object] = asyncio.ensure_future(self._dial())
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _dial(self) -> None:
        try:
            await self._loop.create_connection(lambda: _Connection(self), *self._address)
        except OSError:
            await asyncio.sleep(0.1)
            if not self._finished.is_set():
                self._connect()

    async def run(self) -> float:
        """Send everything when it is due; return the seconds until the last answer, or the timeout."""
        for _ in range(self._connections):
            await self._dial()
        self._start = time.perf_counter()
        for number, due in enumerate(self._due.tolist()):
            wait = due - (time.perf_counter() - self._start)
            if wait > 0:
                await asyncio.sleep(wait)
            elif number % 8 == 0:
                await asyncio.sleep(0)  # behind schedule: answers must be read all the same
            if self._idle:
                self._send(self._idle.popleft(), number)
            else:
                self._waiting.append(number)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._finished.wait()
        except TimeoutError:
            self._finished.set()
        seconds = time.perf_counter() - self._start
        for connection in tuple(self._all):
            connection.close()
        await asyncio.sleep(0)  # the loop closes them on its next turn
        return seconds


def schedule(rate: float, seconds: float, rng: np.random.Generator) -> F64:
    """Return when requests are due: a Poisson process, as of many users who do not know of each other, shape (n,)."""
    return np.sort(rng.random(max(round(rate * seconds), 1)) * seconds)


def open_loop(host: str, port: int, requests: Sequence[bytes], due: F64, *, connections: int = 64) -> LoadResult:
    """Send requests at given moments and wait for their answers.

    Parameters
    ----------
    requests
        Whole HTTP/1.1 requests, used in turn.
    due
        Seconds after the start at which each is due, ascending, shape (n,).
    connections
        Kept-alive connections; a request that is due while all are busy waits, and its wait counts.
    """
    import uvloop

    async def main() -> tuple[_Run, float]:
        run = _Run(host, port, requests, due, connections)
        return run, await run.run()

    before = time.process_time()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        run, seconds = runner.run(main())
    latency = (run.done - due) * 1e3
    return LoadResult(latency, run.status, (run.sent - due) * 1e3, seconds, (time.process_time() - before) / seconds)


def post(path: str, body: bytes, host: str = "127.0.0.1") -> bytes:
    """Return a whole POST request with a JSON body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
